"""Images of a command: paths from its arguments, work in parts, bad ones apart."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.base.progress import progress_bar
from sk_cnncodes.cli.frame import note
from sk_cnncodes.images.folders import find_images
from sk_cnncodes.images.sources import describe_image

# Images that are asked for at once: memory does not grow with their number.
PART = 256

ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES",
        show_default=False,
        help="Image files; folders, with all that lies in them; or - to read paths "
        "from the standard input, one a line.",
    ),
]
T = TypeVar("T")


def image_paths(arguments: list[str]) -> Iterator[str]:
    """Paths of the images that arguments name; standard input is read as it comes.

    What is named itself is taken, whatever its name; of folders, files whose suffix
    is that of an image format.
    """
    ignored = 0
    for argument in _lines_for_dash(arguments):
        if not Path(argument).is_dir():
            yield argument
            continue
        found = find_images(argument)
        ignored += found.ignored
        if not found.paths:
            note(f"{argument!r}: this folder holds no images.")
        yield from found.paths
    note_ignored(ignored)


def note_ignored(count: int) -> None:
    """Say how many files of folders were not taken."""
    if count:
        what = "entry that is" if count == 1 else "entries that are"
        note(f"Ignored {count} {what} hidden or no image.")


def _lines_for_dash(arguments: list[str]) -> Iterator[str]:
    for argument in arguments:
        if argument != "-":
            yield argument
            continue
        for line in sys.stdin:
            path = line.rstrip("\r\n")
            if path:
                yield path


def listed_paths(arguments: list[str]) -> list[str]:
    """All of `image_paths`; an error where there are none."""
    paths = list(image_paths(arguments))
    if not paths:
        raise ValueError("found no images in what was given.")
    return paths


@dataclass(frozen=True)
class Part(Generic[T]):
    """Images and what was computed of them; or a bad image, and why it is bad.

    Attributes
    ----------
    paths : list of str
    result : object or None
        None for a bad image, which is alone.
    fault : str
    """

    paths: list[str]
    result: T | None
    fault: str = ""


def compute_parts(
    compute: Callable[[list[str]], T], paths: Iterable[str], bar: Any
) -> Iterator[Part[T]]:
    """Apply a function to images in parts, around bad images, in their order.

    Bad images are said on standard error.

    Parameters
    ----------
    compute : callable
        Raises an ImageError that has the position of a bad image.
    paths : iterable of str
    bar : tqdm
    """
    rest = iter(paths)
    while chunk := list(islice(rest, PART)):
        for part in _around_bad_images(compute, chunk):
            if part.result is None:
                bar.write(f"{part.paths[0]}: {part.fault}", file=sys.stderr)
            bar.update(len(part.paths))
            yield part


def _around_bad_images(
    compute: Callable[[list[str]], T], paths: list[str]
) -> Iterator[Part[T]]:
    while paths:
        try:
            result = compute(paths)
        except ImageError as error:
            if error.index is None:
                raise
            bad = error.index
            fault = str(error).removeprefix(f"{describe_image(paths[bad], bad)}: ")
            yield from _around_bad_images(compute, paths[:bad])
            yield Part(paths[bad : bad + 1], None, fault)
            paths = paths[bad + 1 :]
        else:
            yield Part(paths, result)
            return


def image_bar(total: int | None, what: str, beside_rows: bool = False) -> Any:
    """A bar on standard error, if that is a terminal.

    Parameters
    ----------
    total : int or None
    what : str
    beside_rows : bool, default=False
        Whether rows are printed meanwhile: on one terminal they would mix.
    """
    mixed = beside_rows and sys.stdout.isatty()
    return progress_bar(
        total=total,
        desc=what,
        unit="image",
        dynamic_ncols=True,
        disable=True if mixed else None,
    )
