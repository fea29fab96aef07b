"""Find image files in folders by their suffixes, and their classes by sub-folder."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sk_cnncodes.base.public import public
from sk_cnncodes.images.formats import image_suffixes, unreadable_suffixes


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
    unreadable : dict of str to int
        Number of photographs that nothing here can read, by suffix, such as those of
        raw photographs, or HEIC without the extra `heif`; a warning names them too.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    ignored: int = 0
    outside: int = 0
    without_images: list[str] = field(default_factory=list)
    unreadable: dict[str, int] = field(default_factory=dict)


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
    >>> from sk_cnncodes.datasets.folders import find_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.JPG", "b.png", "notes.txt", ".hidden.png"):
    ...         Path(folder, name).touch()
    ...     found = find_images(folder)
    >>> [Path(path).name for path in found.paths], found.ignored
    (['a.JPG', 'b.png'], 2)
    """
    found = _walk(folder)
    _warn_of_unreadable(folder, found.unreadable)
    return found


def _walk(folder: str | os.PathLike[str]) -> ImageFiles:
    paths, ignored, unreadable = list[str](), 0, Counter[str]()

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=fail):
        visible = sorted(name for name in folders if not name.startswith("."))
        ignored += len(folders) - len(visible)
        folders[:] = visible  # os.walk descends into these, in this order
        images = sorted(name for name in files if _is_image_name(name))
        unread = [suffix for name in files if (suffix := _unreadable_suffix(name))]
        unreadable.update(unread)
        ignored += len(files) - len(images) - len(unread)
        paths += [os.path.join(parent, name) for name in images]  # noqa: PTH118
    return ImageFiles(paths, [], ignored, unreadable=dict(unreadable))


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
    unreadable = Counter[str]()
    subfolder = ""
    for child in sorted(Path(folder).iterdir()):
        if not child.is_dir() and _is_image_name(child.name):
            outside += 1
            continue
        if not child.is_dir() and (suffix := _unreadable_suffix(child.name)):
            unreadable[suffix] += 1
            continue
        if child.name.startswith(".") or not child.is_dir():
            ignored += 1
            continue
        n_before = len(paths)
        for entry in sorted(child.iterdir()):
            if entry.is_dir() and not entry.name.startswith("."):
                subfolder = subfolder or str(entry)
                nested = _walk(entry)
                unreadable.update(nested.unreadable)
                outside += len(nested.paths)
                ignored += nested.ignored
            elif _is_image_name(entry.name) and not entry.is_dir():
                paths.append(str(entry))
                labels.append(child.name)
            elif not entry.is_dir() and (suffix := _unreadable_suffix(entry.name)):
                unreadable[suffix] += 1
            else:
                ignored += 1
        if len(paths) == n_before:
            found.without_images.append(child.name)
    _warn_of_unreadable(folder, unreadable)
    if not paths:
        hint = f" Found nested folders, such as {subfolder!r}." if subfolder else ""
        suffixes = " ".join(sorted(image_suffixes()))
        raise ValueError(
            f"{str(folder)!r}: found no images in its sub-folders. Expected one "
            f"sub-folder of images per class ({suffixes}).{hint}"
        )
    return replace(found, ignored=ignored, outside=outside, unreadable=dict(unreadable))


def _is_image_name(name: str) -> bool:
    return _suffix(name) in image_suffixes() and not name.startswith(".")


def _unreadable_suffix(name: str) -> str:
    """Suffix of a photograph that cannot be read; empty for other files."""
    suffix = _suffix(name)
    hidden = name.startswith(".")
    return suffix if suffix in unreadable_suffixes() and not hidden else ""


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _warn_of_unreadable(
    folder: str | os.PathLike[str], unreadable: Mapping[str, int]
) -> None:
    """Name what a user would miss, and what to do."""
    by_cure: dict[str, list[str]] = {}
    for suffix, count in sorted(unreadable.items()):
        files = f"{count} {suffix} file{'s' * (count > 1)}"
        by_cure.setdefault(unreadable_suffixes()[suffix], []).append(files)
    for cure, counts in by_cure.items():
        warnings.warn(
            f"{os.fspath(folder)!r}: left out {', '.join(counts)}, which cannot be "
            f"read here. {cure}.",
            stacklevel=3,
        )
