"""Find image files in folders by their suffixes."""

from __future__ import annotations

import heapq
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sk_cnncodes.datasets.labelled_images import LeftOut
from sk_cnncodes.images.formats import image_suffixes, unreadable_suffixes

# What systems and programs put into folders of photographs, in lower case; names that
# begin with a dot are their own too.
_SYSTEM_FOLDERS = {
    *("@eadir", "__macosx", "$recycle.bin", "system volume information"),
    *("#recycle", "lost+found", "__pycache__"),
}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
# Names that are sorted at once.
_BLOCK = 2**16


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
        suffix = _suffix(entry.name)
        if _is_system_file(entry.name):
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
                f"{suffix} {counted('file', names)}",
                inside(folder, names),
                "cannot be read here",
                f"{unreadable_suffixes()[suffix]}.",
            )
            for suffix, names in sorted(self.unreadable.items())
        ]
        for suffix, names in sorted(self.others.items()):
            what = f"{suffix} {counted('file', names)}".lstrip()
            reason = "not the suffix of an image" if suffix else "no suffix"
            found.append(LeftOut(what, inside(folder, names), reason))
        if self.system:
            reason = "hidden, or made by a system"
            what = "entry" if len(self.system) == 1 else "entries"
            found.append(LeftOut(what, inside(folder, self.system), reason))
        if self.repeated:
            reason = "to folders that were searched already"
            found.append(
                LeftOut(
                    counted("link", self.repeated),
                    inside(folder, self.repeated),
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
    >>> from sk_cnncodes.datasets.image_files import find_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.JPG", "b.png", "notes.txt", ".hidden.png"):
    ...         Path(folder, name).touch()
    ...     found = find_images(folder)
    >>> [Path(path).name for path in found.paths], found.ignored
    (['a.JPG', 'b.png'], 2)
    """
    found = walk_folder(os.fspath(folder))
    warn_of_unreadable(folder, found)
    return found


def walk_folder(folder: str, around: Sequence[str] = ()) -> FoundFiles:
    """The files of a folder, and of those in it, but not of those `around` it."""
    found = FoundFiles()
    for _ in _folders(folder, found, around):
        pass
    depth = len(Path(folder).parts)
    found.paths.sort(key=lambda path: _place(path, depth))
    return found


def walk_images(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Yield what `find_images` finds, one folder after the other, as they are listed.

    To be sorted, the names in one folder are held at once: those of images, as their
    bytes and one more. Of folders, paths are held: about 300 bytes for each that was
    found.

    Raises
    ------
    OSError
        If a folder cannot be read.
    """
    found = _ImageNames()
    for parent in _folders(os.fspath(folder), found):
        for name in found.pop_names():
            yield os.path.join(parent, name)  # noqa: PTH118


class _ImageNames(FoundFiles):
    """The names of the images of a folder; what else is in it is forgotten.

    Ten million names take less than a third of the memory of a list of str.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = list[bytes]()
        # Sorted names of `_BLOCK` images each, with a zero after each name.
        self._blocks = list[bytes]()

    def take(self, entry: os.DirEntry[str]) -> None:
        if not is_image_file(entry.name):
            return
        # In the order of their code points, as str are.
        self._last.append(entry.name.encode("utf-8", "surrogatepass"))
        if len(self._last) == _BLOCK:
            self._pack()

    def _pack(self) -> None:
        self._last.sort()
        self._blocks.append(b"".join(name + b"\0" for name in self._last))
        self._last.clear()

    def pop_names(self) -> Iterator[str]:
        """Yield the names in order, and forget them."""
        self._pack()
        blocks, self._blocks = self._blocks, []
        self.system.clear()
        for name in heapq.merge(*map(_names_in, blocks)):
            yield name.decode("utf-8", "surrogatepass")


def _names_in(block: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(block):
        end = block.index(b"\0", start)
        yield block[start:end]
        start = end + 1


def _folders(
    folder: str, found: FoundFiles, around: Sequence[str] = ()
) -> Iterator[str]:
    """Add the files of a folder, and of those in it; yield each when it is done."""
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
        folders, linked = list[str](), list[str]()
        with os.scandir(parent) as entries:
            for entry in entries:
                if not entry.is_dir():
                    found.take(entry)
                elif is_system_folder(entry.name):
                    found.system.append(entry.path)
                else:
                    (linked if entry.is_symlink() else folders).append(entry.path)
        rest += sorted(folders, reverse=True)
        links += sorted(linked)
        yield parent


def _identity(folder: str) -> tuple[int, int]:
    """What a folder is, whatever its name."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _place(path: str, depth: int) -> tuple[tuple[str, ...], str]:
    """What files are sorted by: those of a folder before those of folders in it."""
    *parents, name = Path(path).parts[depth:]
    return tuple(parents), name


def sorted_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def is_image_file(name: str) -> bool:
    """Whether a file of that name is among the images of its folder."""
    return not _is_system_file(name) and _suffix(name) in image_suffixes()


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def is_system_path(path: str) -> bool:
    """Whether a path inside of a folder or an archive is left out as a system's own.

    Its folders are between slashes; "." and ".." are none.
    """
    *folders, name = path.replace("\\", "/").split("/")
    names = [each for each in folders if each not in (".", "..")]
    return _is_system_file(name) or any(map(is_system_folder, names))


def is_system_folder(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


# -- messages ----------------------------------------------------------------


def inside(folder: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Paths from a folder on."""
    return tuple(os.path.relpath(path, folder) for path in sorted(paths))


def counted(noun: str, names: Sequence[str]) -> str:
    return noun if len(names) == 1 else f"{noun}s"


def warn_of_unreadable(folder: str | os.PathLike[str], found: FoundFiles) -> None:
    """Name what a user would miss, and what to do."""
    by_cure: dict[str, list[str]] = {}
    for suffix, names in sorted(found.unreadable.items()):
        files = f"{len(names)} {suffix} {counted('file', names)}"
        by_cure.setdefault(unreadable_suffixes()[suffix], []).append(files)
    for cure, counts in by_cure.items():
        warnings.warn(
            f"{os.fspath(folder)!r}: left out {', '.join(counts)}, which cannot be "
            f"read here. {cure}.",
            stacklevel=3,
        )
