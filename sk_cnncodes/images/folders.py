"""Image files in folders: which files are images by their names, and their classes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image

from sk_cnncodes.base.public import public
from sk_cnncodes.images.safe_open import FORMATS


@public
@dataclass(frozen=True)
class ImageFiles:
    """Image files of a folder.

    Attributes
    ----------
    paths : list of str
        Sorted; each begins with the folder as it was given.
    labels : list of str
        The class of each path, where the folder has one sub-folder a class.
    ignored : int
        Number of other entries: files that are hidden or have no suffix of an image
        format, and hidden folders.
    outside : int
        Number of images that lie where no class's image is looked for: beside the
        sub-folders, or in folders within them.
    without_images : list of str
        Names of the sub-folders in which no image lies directly.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    ignored: int = 0
    outside: int = 0
    without_images: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case with their dot, of the formats that can be read."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in FORMATS)


def find_images(folder: str | os.PathLike[str]) -> ImageFiles:
    """Image files of a folder and of all folders in it.

    Links to files are followed, links to folders are not.

    Raises
    ------
    OSError
        If a folder cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sk_cnncodes.images.folders import find_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.JPG", "b.png", "notes.txt", ".hidden.png"):
    ...         Path(folder, name).touch()
    ...     found = find_images(folder)
    >>> [Path(path).name for path in found.paths], found.ignored
    (['a.JPG', 'b.png'], 2)
    """
    paths, ignored = list[str](), 0

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        visible = sorted(name for name in folders if not name.startswith("."))
        ignored += len(folders) - len(visible)
        folders[:] = visible  # where the walk goes on, and in which order
        images = sorted(name for name in files if _is_image_name(name))
        ignored += len(files) - len(images)
        paths += [os.path.join(place, name) for name in images]  # noqa: PTH118
    return ImageFiles(paths, [], ignored)


@public
def find_labelled_images(folder: str | os.PathLike[str]) -> ImageFiles:
    """Image files of the sub-folders of a folder; a sub-folder is a class.

    Folders within a class are not looked into: their images might be of other
    classes, as in ``data/train/cat``.

    Raises
    ------
    OSError
        If a folder cannot be read.
    ValueError
        If no sub-folder has an image.
    """
    found = ImageFiles()
    paths, labels, ignored, outside = found.paths, found.labels, 0, 0
    deeper = ""
    for place in sorted(Path(folder).iterdir()):
        if not place.is_dir() and _is_image_name(place.name):
            outside += 1
            continue
        if place.name.startswith(".") or not place.is_dir():
            ignored += 1
            continue
        before = len(paths)
        for entry in sorted(place.iterdir()):
            if entry.is_dir() and not entry.name.startswith("."):
                deeper = deeper or str(entry)
                within = find_images(entry)
                outside += len(within.paths)
                ignored += within.ignored
            elif _is_image_name(entry.name) and not entry.is_dir():
                paths.append(str(entry))
                labels.append(place.name)
            else:
                ignored += 1
        if len(paths) == before:
            found.without_images.append(place.name)
    if not paths:
        hint = f" Folders lie deeper, such as {deeper!r}." if deeper else ""
        suffixes = " ".join(sorted(image_suffixes()))
        raise ValueError(
            f"{str(folder)!r}: found no images in its sub-folders. Expected one "
            f"sub-folder of images for each class ({suffixes}).{hint}"
        )
    return replace(found, ignored=ignored, outside=outside)


def _is_image_name(name: str) -> bool:
    is_image = os.path.splitext(name)[1].lower() in image_suffixes()  # noqa: PTH122
    return is_image and not name.startswith(".")
