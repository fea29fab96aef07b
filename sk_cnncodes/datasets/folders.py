"""Find image files in folders by their suffixes, and their classes by sub-folder."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sk_cnncodes.base.public import public
from sk_cnncodes.datasets.labelled_images import (
    SPLIT_NAMES,
    LabelledImages,
    LeftOut,
)
from sk_cnncodes.images.formats import image_suffixes, unreadable_suffixes

# What systems and programs put into folders of photographs, in lower case; names that
# begin with a dot are their own too.
_SYSTEM_FOLDERS = {
    *("@eadir", "__macosx", "$recycle.bin", "system volume information"),
    *("#recycle", "lost+found", "__pycache__"),
}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


@dataclass
class FoundFiles:
    """What a walk through folders found.

    Attributes
    ----------
    paths : list of str
        Image files; each begins with the folder as it was passed.
    system : list of str
        Hidden files and folders, and those that systems make.
    others : dict of str to list of str
        Files that are no images, by lower-case suffix.
    unreadable : dict of str to list of str
        Photographs that nothing here can read, by lower-case suffix.
    repeated : list of str
        Links to folders that were searched already.
    """

    paths: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unreadable: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    repeated: list[str] = field(default_factory=list)

    @property
    def ignored(self) -> int:
        """Number of entries that are hidden, or no images."""
        return len(self.system) + sum(map(len, self.others.values()))

    def add(self, other: FoundFiles) -> None:
        """Add what another walk found."""
        self.paths += other.paths
        self.system += other.system
        self.repeated += other.repeated
        for suffix, names in other.others.items():
            self.others[suffix] += names
        for suffix, names in other.unreadable.items():
            self.unreadable[suffix] += names

    def take(self, entry: os.DirEntry[str]) -> None:
        """Sort a file into its kind."""
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FILES:
            self.system.append(entry.path)
        elif suffix in image_suffixes():
            self.paths.append(entry.path)
        elif suffix in unreadable_suffixes():
            self.unreadable[suffix].append(entry.path)
        else:
            self.others[suffix].append(entry.path)

    def left_out(self, folder: str) -> tuple[LeftOut, ...]:
        """All but the images, with reasons and cures."""

        found = [
            LeftOut(
                f"{suffix} {_counted('file', names)}",
                _inside(folder, names),
                "cannot be read here",
                f"{unreadable_suffixes()[suffix]}.",
            )
            for suffix, names in sorted(self.unreadable.items())
        ]
        for suffix, names in sorted(self.others.items()):
            what = f"{suffix} {_counted('file', names)}".lstrip()
            reason = "not the suffix of an image" if suffix else "no suffix"
            found.append(LeftOut(what, _inside(folder, names), reason))
        if self.system:
            reason = "hidden, or made by a system"
            what = "entry" if len(self.system) == 1 else "entries"
            found.append(LeftOut(what, _inside(folder, self.system), reason))
        if self.repeated:
            reason = "to folders that were searched already"
            found.append(
                LeftOut(
                    _counted("link", self.repeated),
                    _inside(folder, self.repeated),
                    reason,
                )
            )
        return tuple(found)


def find_images(folder: str | os.PathLike[str]) -> FoundFiles:
    """Find the image files of a folder, recursively.

    Links to files and folders are followed; a folder is searched once, by its own name
    if it has one here.

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
    found = _walk(os.fspath(folder))
    _warn_of_unreadable(folder, found)
    return found


def _walk(folder: str, around: Sequence[str] = ()) -> FoundFiles:
    """The files of a folder, and of those in it, but not of those `around` it."""
    found = FoundFiles()
    for _ in _folders(folder, found, around):
        pass
    depth = len(Path(folder).parts)
    found.paths.sort(key=lambda path: _place(path, depth))
    return found


def walk_images(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Yield what `find_images` finds, one folder after the other, as they are listed.

    Raises
    ------
    OSError
        If a folder cannot be read.
    """
    found = FoundFiles()
    for _ in _folders(os.fspath(folder), found):
        yield from found.paths
        for names in (found.paths, found.system, found.others, found.unreadable):
            names.clear()


def _folders(
    folder: str, found: FoundFiles, around: Sequence[str] = ()
) -> Iterator[None]:
    """Add the files of a folder, and of those in it; yield after each."""
    rest, links = [folder], list[str]()
    seen = {*map(_identity, around)}
    while rest or links:
        # Links come last, so that a folder has its own name where it is inside.
        parent = rest.pop() if rest else links.pop(0)
        identity = _identity(parent)
        if identity in seen:
            found.repeated.append(parent)
            continue
        seen.add(identity)
        folders = list[str]()
        for entry in _entries(parent):
            if not entry.is_dir():
                found.take(entry)
            elif _is_system_folder(entry.name):
                found.system.append(entry.path)
            else:
                (links if entry.is_symlink() else folders).append(entry.path)
        rest += reversed(folders)
        yield


def _identity(folder: str) -> tuple[int, int]:
    """What a folder is, whatever its name."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _place(path: str, depth: int) -> tuple[tuple[str, ...], str]:
    """What files are sorted by: those of a folder before those of folders in it."""
    *parents, name = Path(path).parts[depth:]
    return tuple(parents), name


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _is_system_folder(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


# -- classes -------------------------------------------------------------------


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
    _warn_of_unreadable(folder, found)
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
            LeftOut(_counted(what, paths), _inside(self.root, paths), reason, cure)
            for what, paths, reason, cure in kinds
            if paths
        ]


_NO_FLAT = "Without flat=True they are of its class."


def _sub_folders(folder: str, *others: str) -> tuple[FoundFiles, dict[str, FoundFiles]]:
    """The files of a folder, and those of each sub-folder, by its path.

    Links back to the folder, or to `others`, are not followed.
    """
    direct, folders = FoundFiles(), dict[str, FoundFiles]()
    for entry in _entries(folder):
        if not entry.is_dir():
            direct.take(entry)
        elif _is_system_folder(entry.name):
            direct.system.append(entry.path)
        else:
            folders[entry.path] = _walk(entry.path, (folder, *others))
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


def _inside(folder: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Paths from a folder on."""
    return tuple(os.path.relpath(path, folder) for path in sorted(paths))


def _counted(noun: str, names: Sequence[str]) -> str:
    return noun if len(names) == 1 else f"{noun}s"


def _warn_of_unreadable(folder: str | os.PathLike[str], found: FoundFiles) -> None:
    """Name what a user would miss, and what to do."""
    by_cure: dict[str, list[str]] = {}
    for suffix, names in sorted(found.unreadable.items()):
        files = f"{len(names)} {suffix} {_counted('file', names)}"
        by_cure.setdefault(unreadable_suffixes()[suffix], []).append(files)
    for cure, counts in by_cure.items():
        warnings.warn(
            f"{os.fspath(folder)!r}: left out {', '.join(counts)}, which cannot be "
            f"read here. {cure}.",
            stacklevel=3,
        )
