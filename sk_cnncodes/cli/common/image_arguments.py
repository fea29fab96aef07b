"""Image arguments: list the paths, process them in chunks, isolate bad images."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.base.progress import progress_bar
from sk_cnncodes.cli.common.frame import note
from sk_cnncodes.cli.common.messages import with_options
from sk_cnncodes.datasets.image_files import find_images
from sk_cnncodes.images.safe_open import MAX_PIXELS
from sk_cnncodes.images.sources import describe_image

# Images per chunk, so that memory does not grow with the number of images.
CHUNK_SIZE = 256
_READ_BYTES = 2**16

ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES",
        show_default=False,
        help="Image files; folders, searched recursively; or - to read paths from "
        "standard input, one per line.",
    ),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        metavar="N",
        min=0,
        show_default=False,
        help="Refuse images that take more than 16 N bytes of memory to decode; 0: no "
        f"limit.  [default: the model's own limit, or {MAX_PIXELS}]",
    ),
]
# What faults of images name, of the options above.
_OPTIONS_OF_FAULTS = {"max_pixels": "--max-pixels"}
T = TypeVar("T")


def pixel_limit(option: int | None) -> dict[str, Any]:
    """The parameter `max_pixels` that `--max-pixels` sets; {} without the option."""
    return {} if option is None else {"max_pixels": option or None}


def image_paths(arguments: list[str]) -> Iterator[str]:
    """Yield the image paths that arguments name, reading standard input lazily.

    Files that are named themselves are taken whatever their suffix; in folders, only
    files with the suffix of an image format are taken.
    """
    ignored = 0
    for argument in _expand_dash(arguments):
        if not Path(argument).is_dir():
            yield argument
            continue
        found = find_images(argument)
        ignored += found.ignored
        if not found.paths:
            note(f"{argument!r}: this folder contains no images.")
        yield from found.paths
    note_ignored(ignored)


def note_ignored(count: int) -> None:
    """Report how many entries of folders were ignored."""
    if count:
        what = "entry that is" if count == 1 else "entries that are"
        note(f"Ignored {count} {what} hidden or without an image suffix.")


def _expand_dash(arguments: list[str]) -> Iterator[str]:
    """Yield arguments, with the lines of standard input in place of ``-``."""
    for argument in arguments:
        if argument == "-":
            yield from filter(None, _input_lines())
        else:
            yield argument


def _input_lines() -> Iterator[str]:
    """Yield the lines of standard input as they come, without their ends.

    Not by iterating over `sys.stdin`: a thread that waits in it holds its lock, which
    ends the process with a crash.
    """
    try:
        stream = sys.stdin.fileno()
    except (OSError, ValueError):  # no file, as in tests
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    encoding, rest = sys.stdin.encoding or "utf-8", b""
    while content := os.read(stream, _READ_BYTES):
        *lines, rest = (rest + content).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode(encoding, "surrogateescape")
    if rest:
        yield rest.rstrip(b"\r").decode(encoding, "surrogateescape")


def listed_paths(arguments: list[str]) -> list[str]:
    """List `image_paths`; raise a ValueError if there are none."""
    paths = list(image_paths(arguments))
    if not paths:
        raise ValueError("found no images in the arguments.")
    return paths


@dataclass(frozen=True)
class Part(Generic[T]):
    """Images and their result; or one bad image and its fault.

    Attributes
    ----------
    paths : list of str
    result : object or None
        None for a bad image, which is a part by itself.
    fault : str
        Why the image is bad.
    """

    paths: list[str]
    result: T | None
    fault: str = ""


def compute_parts(
    compute: Callable[[list[str]], T], paths: Iterable[str], bar: Any
) -> Iterator[Part[T]]:
    """Apply a function to images in order, in parts that leave out bad images.

    Bad images are reported on standard error.

    Parameters
    ----------
    compute : callable
        Takes paths; raises an ImageError with the index of a bad image.
    paths : iterable of str
    bar : tqdm
    """
    return compute_chunks(compute, chunks_of(paths), bar)


def chunks_of(paths: Iterable[str]) -> Iterator[list[str]]:
    """Yield paths in chunks."""
    rest = iter(paths)
    while chunk := list(islice(rest, CHUNK_SIZE)):
        yield chunk


def compute_chunks(
    compute: Callable[[list[str]], T], chunks: Iterable[list[str]], bar: Any
) -> Iterator[Part[T]]:
    """Apply a function to images as `compute_parts`, which come in chunks."""
    for chunk in chunks:
        for part in _around_bad_images(compute, chunk):
            if part.result is None:
                bar.write(f"{part.paths[0]}: {part.fault}", file=sys.stderr)
            bar.update(len(part.paths))
            yield part


def _around_bad_images(
    compute: Callable[[list[str]], T], paths: list[str]
) -> Iterator[Part[T]]:
    """Apply a function to paths, split at bad images."""
    while paths:
        try:
            result = compute(paths)
        except ImageError as error:
            if error.index is None:
                raise
            bad = error.index
            fault = str(error).removeprefix(f"{describe_image(paths[bad], bad)}: ")
            fault = with_options(fault, _OPTIONS_OF_FAULTS)
            yield from _around_bad_images(compute, paths[:bad])
            yield Part(paths[bad : bad + 1], None, fault)
            paths = paths[bad + 1 :]
        else:
            yield Part(paths, result)
            return


def image_bar(total: int | None, what: str, beside_rows: bool = False) -> Any:
    """Progress bar on standard error, if that is a terminal.

    Parameters
    ----------
    total : int or None
        Number of images, if known.
    what : str
        Label of the bar.
    beside_rows : bool, default=False
        Whether rows are printed at the same time; there is no bar if they go to a
        terminal, where both would mix.
    """
    mixed = beside_rows and sys.stdout.isatty()
    return progress_bar(
        total=total,
        desc=what,
        unit="image",
        dynamic_ncols=True,
        disable=True if mixed else None,
    )
