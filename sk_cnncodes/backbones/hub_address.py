"""Addresses of networks on the Hugging Face Hub, and which file they mean."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

from sk_cnncodes.base.exceptions import BackboneError

PREFIX = "hf://"
# What is taken of a repository with several networks. Exports for the web of a network
# of images and texts have its part for images in a file of its own.
CHOICE = (
    *("onnx/vision_model.onnx", "vision_model.onnx"),
    *("onnx/model.onnx", "model.onnx"),
)
_PART = re.compile(r"[A-Za-z0-9_](?:[\w.-]*\w)?", re.ASCII)
# Revisions with a slash that need not be quoted, as in addresses of huggingface_hub.
_REFERENCE = re.compile(r"(refs/(?:convert|pr)/[\w.-]+)(?:/|$)", re.ASCII)


class HubAddress(NamedTuple):
    """The parts of `hf://owner/name[@revision][/path/file.onnx]`.

    `file` is "" if it is to be chosen.
    """

    repository: str
    revision: str
    file: str

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{quote(self.revision, safe='')}"
        return f"{PREFIX}{self.repository}{at}" + (f"/{self.file}" if self.file else "")


def is_hub_address(backbone: object) -> bool:
    """Whether a parameter `backbone` is an address of the Hub."""
    return isinstance(backbone, str) and backbone.startswith(PREFIX)


def parse_address(text: str) -> HubAddress:
    """Read an address; nothing is opened.

    Raises
    ------
    BackboneError
        If it is malformed.
    """
    owner, _, rest = text.removeprefix(PREFIX).partition("/")
    named = re.match(r"([^@/]*)(@?)", rest)
    name, has_revision = named.groups() if named else ("", "")
    rest = rest[len(name) + len(has_revision) :]
    revision = "main"
    if has_revision:
        reference = _REFERENCE.match(rest)
        revision = reference[1] if reference else rest.partition("/")[0]
        rest = rest[len(revision) :]
        revision = unquote(revision)
    file = rest.removeprefix("/")
    fault = ""
    if not _PART.fullmatch(owner) or not _PART.fullmatch(name) or ".." in owner + name:
        fault = "it has no valid owner and name"
    elif not is_safe(revision):
        fault = f"{revision!r} is no revision"
    elif file and not (is_safe(file) and file.endswith(".onnx")):
        fault = f"{file!r} is no path of an ONNX file in a repository"
    elif rest == "/":
        fault = "it ends with a slash"
    if fault:
        raise BackboneError(
            f"backbone={text!r}: {fault}. Expected {PREFIX}owner/name, "
            f"{PREFIX}owner/name@revision or {PREFIX}owner/name/path/file.onnx."
        )
    return HubAddress(f"{owner}/{name}", revision, file)


def is_safe(path: str) -> bool:
    """Whether a path of a repository stays in it, on any system."""
    parts = path.split("/")
    return not {"", ".", ".."} & set(parts) and not re.search(r'[\\:\x00-\x1f"]', path)


def choose_file(address: HubAddress, names: list[str]) -> str:
    """The ONNX file that an address means, among the files of a repository.

    Raises
    ------
    BackboneError
        If there is none, or several of which none has one of the usual names.
    """
    networks = sorted(name for name in names if name.endswith(".onnx"))
    shown = ", ".join(networks[:20]) + (", ..." if len(networks) > 20 else "")
    if address.file:
        if address.file in networks:
            return address.file
        raise BackboneError(
            f"backbone='{address}': the repository has no such file. Expected one of "
            f"its ONNX files: {shown or 'it has none'}."
        )
    if not networks:
        raise BackboneError(
            f"backbone='{address}': the repository has no ONNX file. Expected one, as "
            "those of onnx-community and Xenova have; models/README.md says how to "
            "export networks of timm and transformers."
        )
    usual = [name for name in CHOICE if name in networks]
    chosen = networks if len(networks) == 1 else usual
    if not chosen:
        raise BackboneError(
            f"backbone='{address}': the repository has {len(networks)} ONNX files, and "
            f"none is called {', '.join(CHOICE[:-1])} or {CHOICE[-1]}. Expected one of "
            f"them, such as '{address}/{networks[0]}': {shown}."
        )
    if not is_safe(chosen[0]):
        raise BackboneError(
            f"backbone='{address}': its file {chosen[0]!r} has a path that leads out "
            "of the repository. Expected another repository."
        )
    return chosen[0]
