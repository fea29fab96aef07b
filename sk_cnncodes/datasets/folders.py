"""Find the classes of the images in a folder by its sub-folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sk_cnncodes.base.public import public
from sk_cnncodes.datasets.image_files import (
    FoundFiles,
    counted,
    inside,
    is_system_folder,
    sorted_entries,
    walk_folder,
    warn_of_unreadable,
)
from sk_cnncodes.datasets.labelled_images import (
    SPLIT_NAMES,
    LabelledImages,
    LeftOut,
)
from sk_cnncodes.images.formats import image_suffixes


@public
def find_labelled_images(
    folder: str | os.PathLike[str], *, flat: bool = False
) -> LabelledImages:
    """Find the image files of a folder with one sub-folder per class.

    An image belongs to the class of the sub-folder of `folder` that it lies in, however
    deep: ``cat/tabby/1.jpg`` is a cat. If all sub-folders are called as the parts of a
    data set are, such as ``train`` and ``test``, classes are the folders in them, and
    `LabelledImages.splits` says which image is of which part. Links are followed.

    Parameters
    ----------
    folder : str or path-like
    flat : bool, default=False
        Whether to take only images that lie directly in the folder of their class.

    Returns
    -------
    LabelledImages
        Sorted by class and path, and what was not taken.

    Raises
    ------
    OSError
        If a folder cannot be read.
    ValueError
        If there are no images in sub-folders, or if some sub-folders are called as
        parts of a data set, and others are not.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sk_cnncodes import find_labelled_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat/1.jpg", "dog/old/1.png", "dog/notes.txt"):
    ...         Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
    ...         Path(folder, name).touch()
    ...     found = find_labelled_images(folder)
    >>> found.labels, found.left_out[0].what
    (['cat', 'dog'], '.txt file')
    """
    found, images = labelled_folder(folder, flat)
    warn_of_unreadable(folder, found)
    return images


def labelled_folder(
    folder: str | os.PathLike[str], flat: bool
) -> tuple[FoundFiles, LabelledImages]:
    """What `find_labelled_images` returns; and all files, for its warning."""
    root = os.fspath(folder)
    files, folders = _sub_folders(root)
    parts = _parts(root, folders)
    images = _Classes(root, flat)
    notes = list[str]()
    if not parts:
        images.take(folders, None)
    for name in parts:
        # Again, to tell the folders in it apart.
        inner, classes = _sub_folders(os.path.join(root, name), root)  # noqa: PTH118
        files.add(inner)
        images.take(classes, SPLIT_NAMES[name.lower()])
    if parts:
        notes.append(
            f"The folders {_listed(parts)} are taken as parts of a data set, and the "
            "folders in them as classes."
        )
    images.loose += files.paths
    for found in images.files:
        files.add(found)
    if not images.paths:
        suffixes = " ".join(sorted(image_suffixes()))
        hint = ""
        if images.loose:
            hint = f" Found images outside of them, such as {images.loose[0]!r}."
        if images.nested:
            hint = f" Found images in nested folders, such as {images.nested[0]!r}."
        raise ValueError(
            f"{root!r}: found no images in its sub-folders. Expected one "
            f"sub-folder of images per class ({suffixes}).{hint}"
        )
    splits = images.splits if len({*images.splits}) > 1 else None
    return files, LabelledImages(
        images.paths,
        images.labels,
        splits=splits,
        left_out=(*files.left_out(root), *images.left_out()),
        notes=tuple(notes),
    )


class _Classes:
    """Images that are sorted into classes, and those that are not."""

    def __init__(self, root: str, flat: bool) -> None:
        self.root, self.flat = root, flat
        self.paths = list[str]()
        self.labels = list[str]()
        self.splits = list[str]()
        self.files = list[FoundFiles]()
        self.loose = list[str]()
        self.nested = list[str]()
        self.empty = list[str]()

    def take(self, folders: dict[str, FoundFiles], split: str | None) -> None:
        """Take the images of class folders."""
        for path, found in folders.items():
            self.files.append(found)
            taken = found.paths
            if self.flat:
                taken = [each for each in taken if os.path.dirname(each) == path]  # noqa: PTH120
                self.nested += sorted({*found.paths} - {*taken})
            if not taken:
                self.empty.append(path)
            self.paths += taken
            self.labels += [os.path.basename(path)] * len(taken)  # noqa: PTH119
            self.splits += [split or ""] * len(taken)

    def left_out(self) -> list[LeftOut]:
        """The images that were not taken, and folders without images."""
        kinds = (
            ("image", self.loose, "not in the folder of a class", ""),
            ("image", self.nested, "in folders inside of those of classes", _NO_FLAT),
            ("folder", self.empty, "no images inside", ""),
        )
        return [
            LeftOut(counted(what, paths), inside(self.root, paths), reason, cure)
            for what, paths, reason, cure in kinds
            if paths
        ]


_NO_FLAT = "Without flat=True they are of its class."


def _sub_folders(folder: str, *others: str) -> tuple[FoundFiles, dict[str, FoundFiles]]:
    """The files of a folder, and those of each sub-folder, by its path.

    Links back to the folder, or to `others`, are not followed.
    """
    direct, folders = FoundFiles(), dict[str, FoundFiles]()
    for entry in sorted_entries(folder):
        if not entry.is_dir():
            direct.take(entry)
        elif is_system_folder(entry.name):
            direct.system.append(entry.path)
        else:
            folders[entry.path] = walk_folder(entry.path, (folder, *others))
    return direct, folders


def _parts(root: str, folders: dict[str, FoundFiles]) -> list[str]:
    """The sub-folders that are parts of a data set, such as "train" and "test".

    Raises
    ------
    ValueError
        If only some are, or the parts have no folders of classes.
    """
    names = {os.path.basename(path): found for path, found in folders.items()}  # noqa: PTH119
    parts = [name for name in names if name.lower() in SPLIT_NAMES]
    inner = {name: _inner_folders(root, name, names[name]) for name in parts}
    if parts and len(parts) == len(names):
        if any(inner.values()):
            return parts
        if any(found.paths for found in folders.values()):
            raise ValueError(
                f"{root!r}: {_listed(parts)} look like parts of a data set, and have "
                "no folders of classes in them. Expected one sub-folder of images per "
                "class; or a table with their labels."
            )
    kinds = {SPLIT_NAMES[name.lower()] for name in parts if inner[name]}
    if "train" in kinds and len(kinds) > 1:
        others = sorted({*names} - {*parts})
        raise ValueError(
            f"{root!r}: {_listed(parts)} look like parts of a data set, and "
            f"{_listed(others)} beside them do not. Expected either; pass one of the "
            "folders, or move the others away."
        )
    return []


def _inner_folders(root: str, name: str, found: FoundFiles) -> set[str]:
    """The folders inside of a sub-folder that contain images."""
    depth = len(Path(root, name).parts)
    inner = (Path(path).parts[depth:] for path in found.paths)
    return {parts[0] for parts in inner if len(parts) > 1}


def _listed(names: Sequence[str]) -> str:
    shown = [repr(name) for name in names[:5]] + ["..."] * (len(names) > 5)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)
