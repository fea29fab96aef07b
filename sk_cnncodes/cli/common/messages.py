"""Errors in the words of the command line: short lines, options by their names."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping
from typing import Any

_MAX_LINES = 3
# Longer messages have a line for each sentence.
_WIDTH = 100
# Parameters of the library whose option has another name.
_OTHER_NAMES = {
    "n_jobs": "jobs",
    "layers": "layer",
    "heads": "head",
    "norms": "norm",
    "backbones": "backbone",
    "random_state": "seed",
    "groups": "group_column",
}
# What a value is as an option, where it is another.
_VALUES = {("max_pixels", "None"): "0", ("cache", "PATH"): "FILE"}
# Words for programs, and what they are on the command line.
_WORDS = {
    "max_pixels (--max-pixels of a command)": "--max-pixels",
    "list_backbones()": "the list of `sk-cnncodes backbones`",
}
_QUOTED = r"'[^'\n]*'|\"[^\"\n]*\""
_SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z`'\"(-])")
# Errors of the system, and what to do.
_CURES = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "permission denied. Use another folder, or allow yourself to use it",
    errno.EPERM: "not permitted. Use another folder, or allow yourself to use it",
    errno.EROFS: "this disk can only be read. Use a folder on another",
    errno.ENOSPC: "the disk is full. Free some space, or use a folder on another",
    errno.EISDIR: "is a folder. Expected a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ENAMETOOLONG: "this name is too long",
    errno.EMFILE: "too many open files",
}


def in_lines(error: BaseException, options: Mapping[str, str]) -> str:
    """The message of an error, in at most three lines.

    Parameters
    ----------
    error : Exception
    options : mapping of str to str
        The options of the command, such as ``--jobs``, by name of their parameter.
    """
    text = with_options(_text_of(error), options)
    if len(text) <= _WIDTH:
        return text
    sentences = list(_sentences(text))
    first, last = sentences[: _MAX_LINES - 1], sentences[_MAX_LINES - 1 :]
    return "\n  ".join([*first, " ".join(last)] if last else first)


def _text_of(error: BaseException) -> str:
    """The message; that of an error of the system without its number."""
    text = " ".join(str(error).split("\n")).strip() or type(error).__name__
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return f"there is not enough memory{detail}. Close other programs."
    if not (isinstance(error, OSError) and text.startswith("[Errno")):
        return text
    reason = _CURES.get(error.errno or 0, error.strerror or text)
    names = [error.filename, error.filename2]
    where = " -> ".join(repr(str(name)) for name in names if name is not None)
    return f"{where}: {reason}." if where else f"{reason[0].upper()}{reason[1:]}."


def _sentences(text: str) -> Iterable[str]:
    """The sentences of a text; those in quotes are not taken apart."""
    inside = [match.span() for match in re.finditer(_QUOTED, text)]
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if not any(first < end.start() < last for first, last in inside):
            yield text[start : end.start()]
            start = end.end()
    yield text[start:]


def with_options(text: str, options: Mapping[str, str]) -> str:
    """A text with the options of a command in place of parameters.

    Examples
    --------
    >>> from sk_cnncodes.cli.common.messages import with_options
    >>> options = {"max_pixels": "--max-pixels", "device": "--device"}
    >>> with_options("device='tpu': expected cpu, or max_pixels=None.", options)
    '--device tpu: expected cpu, or --max-pixels 0.'
    """
    names = {name: _OTHER_NAMES.get(name, name) for name in (*options, *_OTHER_NAMES)}
    known = {name: options[own] for name, own in names.items() if own in options}
    for words, others in _WORDS.items():
        text = text.replace(words, others)
    text = _assigned(text, known)
    # What is no option, such as a positional argument.
    text = re.sub(rf"\A(\w+)=({_QUOTED})", r"\1 \2", text)
    return re.sub(r"\Ay: ", "labels: ", text)


def _assigned(text: str, known: Mapping[str, str]) -> str:
    """A text with options in place of parameters with values, or before a colon."""
    if not known:
        return text
    either = "|".join(sorted(known, key=len, reverse=True))

    def assigned(match: re.Match[str]) -> str:
        name, value = match.groups()
        plain = value[1:-1] if value[0] in "'\"" and " " not in value else value
        return f"{known[name]} {_VALUES.get((name, plain), plain)}"

    text = re.sub(rf"(?<![\w.(-])({either})=({_QUOTED}|[\w./-]*\w)", assigned, text)
    return re.sub(rf"\A({either}): ", lambda match: f"{known[match[1]]}: ", text)


def options_of(command: Any) -> dict[str, str]:
    """The options of a command by the names of their parameters."""
    return {
        parameter.name: max(parameter.opts, key=len)
        for parameter in command.params
        if any(each.startswith("--") for each in parameter.opts)
    }
