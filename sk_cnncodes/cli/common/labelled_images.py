"""A folder of labelled images, and their codes in a cache, for several commands."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sk_cnncodes.cli.common.frame import note
from sk_cnncodes.cli.common.image_arguments import (
    compute_parts,
    image_bar,
    note_ignored,
)
from sk_cnncodes.datasets.folders import find_labelled_images

if TYPE_CHECKING:
    from sk_cnncodes.codes.transformer import CNNCodeTransformer

LabelledFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        show_default=False,
        exists=True,
        file_okay=False,
        help="A folder with one sub-folder of images for each class.",
    ),
]
BackbonesOption = Annotated[
    list[str],
    typer.Option(
        "--backbone",
        help="Name of a backbone, or path of an ONNX file; repeatable.",
    ),
]


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels, and what was left out.

    Attributes
    ----------
    paths, labels : list of str
    ignored : int
        Number of entries of the folders that are no images.
    bad : list of dict
        Path and error of each image that cannot be read.
    """

    paths: list[str]
    labels: list[str]
    ignored: int
    bad: list[dict[str, str]]


def labelled_images(folder: Path) -> LabelledImages:
    """The images of a folder; what is left out is reported on standard error."""
    found = find_labelled_images(folder)
    note_ignored(found.ignored)
    if found.without_images:
        note(
            "These sub-folders contain no images themselves and are skipped: "
            f"{', '.join(map(repr, found.without_images))}."
        )
    if found.outside:
        note(
            f"Ignored {found.outside} images outside the class folders, or in folders "
            "within them."
        )
    return LabelledImages(found.paths, found.labels, found.ignored, [])


@contextmanager
def cache_file(cache: Path | None) -> Iterator[Path]:
    """The cache file to use: a temporary one if none is given.

    A file can be shared by processes, and holds any number of codes.
    """
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder, "codes.sqlite3")


def embed_labelled(
    layers_of: list[tuple[CNNCodeTransformer, list[Any]]], images: LabelledImages
) -> LabelledImages:
    """Store the codes of images in the cache.

    Parameters
    ----------
    layers_of : list of (transformer, layers)
        The layers are those whose codes are needed.
    images : LabelledImages

    Returns
    -------
    LabelledImages
        Those that can be read.
    """
    for transformer, layers in layers_of:
        for layer in layers:  # fail early on a wrong layer
            transformer.set_params(layer=layer).fit(images.paths)
    labels = dict(zip(images.paths, images.labels, strict=True))
    paths, bad = images.paths, list(images.bad)
    with image_bar(len(paths) * len(layers_of), "Embed") as bar:
        for transformer, layers in layers_of:
            good = list[str]()
            for part in compute_parts(_storing(transformer, layers), paths, bar):
                if part.result is None:
                    bad.append({"path": part.paths[0], "error": part.fault})
                else:
                    good += part.paths
            paths = good
    return LabelledImages(paths, [labels[path] for path in paths], images.ignored, bad)


def _storing(
    transformer: CNNCodeTransformer, layers: list[Any]
) -> Callable[[list[str]], bool]:
    """Return a function that caches the codes of images at all layers."""

    def store(paths: list[str]) -> bool:
        # The first layer's forward pass stores all layers; the others are cache hits,
        # except for codes that an older cache lacks.
        for layer in layers:
            transformer.set_params(layer=layer).transform(paths)
        return True

    return store
