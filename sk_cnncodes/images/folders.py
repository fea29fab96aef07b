"""Find image files in folders by their suffixes, and their classes by sub-folder."""

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
    """Image files found in a folder.

    Attributes
    ----------
    paths : list of str
        Sorted; each begins with the folder as it was passed.
    labels : list of str
        Class of each path; empty unless the folder has one sub-folder per class.
    ignored : int
        Number of other entries: hidden files and folders, and files without the suffix
        of an image format.
    outside : int
        Number of images that belong to no class: next to the sub-folders, or in folders
        nested in them.
    without_images : list of str
        Names of the sub-folders that contain no images directly.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    ignored: int = 0
    outside: int = 0
    without_images: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with the dot, of the formats that can be read."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in FORMATS)


def find_images(folder: str | os.PathLike[str]) -> ImageFiles:
    """Find the image files of a folder, recursively.

    Symlinks to files are followed, symlinks to folders are not.

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

    for parent, folders, files in os.walk(folder, onerror=fail):
        visible = sorted(name for name in folders if not name.startswith("."))
        ignored += len(folders) - len(visible)
        folders[:] = visible  # os.walk descends into these, in this order
        images = sorted(name for name in files if _is_image_name(name))
        ignored += len(files) - len(images)
        paths += [os.path.join(parent, name) for name in images]  # noqa: PTH118
    return ImageFiles(paths, [], ignored)


@public
def find_labelled_images(folder: str | os.PathLike[str]) -> ImageFiles:
    """Find the image files of a folder with one sub-folder per class.

    Images in folders nested in a class are only counted, as they may belong to other
    classes, as in ``data/train/cat``.

    Parameters
    ----------
    folder : str or path-like

    Returns
    -------
    found : ImageFiles
        Paths and labels, and what was not taken.

    Raises
    ------
    OSError
        If a folder cannot be read.
    ValueError
        If no sub-folder contains an image.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sk_cnncodes import find_labelled_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat/1.jpg", "dog/1.png", "dog/notes.txt"):
    ...         Path(folder, name).parent.mkdir(exist_ok=True)
    ...         Path(folder, name).touch()
    ...     found = find_labelled_images(folder)
    >>> found.labels, found.ignored
    (['cat', 'dog'], 1)
    """
    found = ImageFiles()
    paths, labels, ignored, outside = found.paths, found.labels, 0, 0
    subfolder = ""
    for child in sorted(Path(folder).iterdir()):
        if not child.is_dir() and _is_image_name(child.name):
            outside += 1
            continue
        if child.name.startswith(".") or not child.is_dir():
            ignored += 1
            continue
        n_before = len(paths)
        for entry in sorted(child.iterdir()):
            if entry.is_dir() and not entry.name.startswith("."):
                subfolder = subfolder or str(entry)
                nested = find_images(entry)
                outside += len(nested.paths)
                ignored += nested.ignored
            elif _is_image_name(entry.name) and not entry.is_dir():
                paths.append(str(entry))
                labels.append(child.name)
            else:
                ignored += 1
        if len(paths) == n_before:
            found.without_images.append(child.name)
    if not paths:
        hint = f" Found nested folders, such as {subfolder!r}." if subfolder else ""
        suffixes = " ".join(sorted(image_suffixes()))
        raise ValueError(
            f"{str(folder)!r}: found no images in its sub-folders. Expected one "
            f"sub-folder of images per class ({suffixes}).{hint}"
        )
    return replace(found, ignored=ignored, outside=outside)


def _is_image_name(name: str) -> bool:
    is_image = os.path.splitext(name)[1].lower() in image_suffixes()  # noqa: PTH122
    return is_image and not name.startswith(".")
