"""CodeCache: codes by (code spec, image), in memory or in an SQLite file."""

from __future__ import annotations

import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sk_cnncodes.base.exceptions import CacheError
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.base.public import public
from sk_cnncodes.cache.cache_warning import CacheWarning, report_size, report_told
from sk_cnncodes.cache.file_store import FileState, FileStore, Row
from sk_cnncodes.cache.memory_store import MemoryStore
from sk_cnncodes.cache.process_store import MAX_FILE_BYTES, ProcessStore
from sk_cnncodes.cache.shared_folder import watch_root

MEMORY_MAX_BYTES = 512 * 2**20
FILE_MAX_BYTES = 10 * 2**30
FILE_NAME = "sk_cnncodes.sqlite3"
# Number of cache files given as paths that are kept open.
_MAX_FILES = 16


@public
@dataclass(frozen=True)
class CacheInfo:
    """Contents of a cache, and its hits and misses in this process.

    Attributes
    ----------
    rows : int
        Number of codes in the cache.
    bytes : int
        Size of the codes, in bytes.
    hits, misses : int
        Number of codes that this process looked up and did or did not find.
    """

    rows: int
    bytes: int
    hits: int
    misses: int


class Store(Protocol):
    """Storage of the rows of a cache."""

    def get(self, spec: str, images: Sequence[bytes]) -> list[np.ndarray | None]:
        """Codes of images; None for each image without a code."""
        ...

    # Size of all codes in use, once one that was dropped was asked for again; else 0.
    needed_bytes: int
    # Largest size of the codes.
    max_bytes: int

    def put(self, rows: Iterable[Row]) -> None:
        """Store codes of several specs at once; all of them or none."""
        ...

    def claim(self, spec: str, images: Sequence[bytes], owner: str) -> set[bytes]:
        """Claim images that will be computed; those that nobody else has claimed."""
        ...

    def release(self, owner: str) -> None:
        """Give up all claims of an owner."""
        ...

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        """Remembered digests of files; None for each unknown file."""
        ...

    def remember_files(self, files: Sequence[tuple[FileState, bytes]]) -> None:
        """Remember digests of files."""
        ...

    def size(self) -> tuple[int, int]:
        """Number of rows, and their size in bytes."""
        ...

    def prune(self, max_bytes: int) -> None:
        """Drop the least recently used codes until at most `max_bytes` remain."""
        ...


@public
class CodeCache:
    """Cache of codes, in memory or in an SQLite file.

    The key of a code is the digest of its code spec (backbone, layer, pooling,
    preprocessing; without norm) and the digest of its image. It does not include
    batch size, device and number of threads.

    Parameters
    ----------
    path : str, path-like or None, default=None
        None keeps codes in the memory of this process. A path keeps them in an SQLite
        file, created if needed, which persists and is shared between processes; in an
        existing folder, the file is `sk_cnncodes.sqlite3`. It must be on a local disk.
    max_bytes : int or None, default=None
        Largest size of the codes. Above it, new codes replace the least recently used;
        if those in use do not fit, some are kept and the others computed each time.
        None means 512 MiB in memory and 10 GiB in a file.

    Raises
    ------
    TypeError
        If `max_bytes` is not a number.
    ValueError
        If `max_bytes` is not positive.

    Notes
    -----
    A cache in a file is pickled as its path; a cache in memory is empty after
    unpickling. Copies share the store of the original.

    A file that cannot be used (not a cache, made by a newer version, or on a network
    file system) is left unchanged, and codes are computed without it. If a file cannot
    be written (read-only, or a full disk), its codes are used but no new ones are
    stored. Either way, one `CacheWarning` reports the fault.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_cnncodes import CNNCodeTransformer, CodeCache
    >>> cache = CodeCache()
    >>> X = np.zeros((3, 8, 8, 3), np.uint8)
    >>> transformer = CNNCodeTransformer(cache=cache).fit(X)
    >>> transformer.transform(X).shape
    (3, 800)
    >>> cache.info().rows  # three equal images
    1
    """

    # What to do about a cache that is too small.
    _larger = "Raise max_bytes."

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int | None = None,
    ) -> None:
        if max_bytes is not None and not isinstance(max_bytes, Real):
            raise TypeError(f"max_bytes: expected a positive int, got {max_bytes!r}.")
        if max_bytes is not None and max_bytes <= 0:
            raise ValueError(f"max_bytes: expected a positive int, got {max_bytes!r}.")
        self.path = None if path is None else _cache_file(path)
        default = MEMORY_MAX_BYTES if path is None else FILE_MAX_BYTES
        self.max_bytes = default if max_bytes is None else int(max_bytes)
        self._lock = fork_safe_lock()
        self._hits = self._misses = 0
        self._store: Store | None = None
        self._reported: set[str] = set()
        self._reported_bytes = 0.0

    # -- rows ----------------------------------------------------------------

    def get_many(
        self, spec: str, images: Sequence[bytes], *, counted: bool = True
    ) -> list[np.ndarray | None]:
        """Look up the codes of images.

        Parameters
        ----------
        spec : str
            Digest of the code spec.
        images : sequence of bytes
            Digests of the images.
        counted : bool, default=True
            False if they were looked up just before: hits and misses are not counted
            twice.

        Returns
        -------
        list of (ndarray of float32, shape (code_length,)) or None
            One element per image; None if the cache has no code for it.
        """
        found: list[np.ndarray | None] = self._attempt(
            lambda store: store.get(spec, images)
        ) or [None] * len(images)
        if counted:
            hits = sum(code is not None for code in found)
            with self._lock:
                self._hits += hits
                self._misses += len(found) - hits
        report_told()
        return found

    def put_many(self, rows: Iterable[Row]) -> None:
        """Store codes, or issue a `CacheWarning`, before returning.

        Parameters
        ----------
        rows : iterable of (spec digest, image digests, codes)
            The codes are float32, shape (n_images, code_length).
        """
        rows = list(rows)
        self._attempt(lambda store: store.put(rows))
        store = self._store
        if store is not None and store.needed_bytes > self._reported_bytes:
            self._report_size(store.needed_bytes, store.max_bytes)

    def claim(self, spec: str, images: Sequence[bytes], owner: str) -> set[bytes]:
        """Claim images before computing them.

        Parameters
        ----------
        spec : str
            Digest of a code spec.
        images : sequence of bytes
            Digests of the images.
        owner : str
            From `sk_cnncodes.cache.memory_store.new_owner`.

        Returns
        -------
        set of bytes
            The images that no other process or thread has claimed. A claim ends with
            `release`, with its process, or after two minutes.
        """
        if not images:
            return set()
        mine = self._attempt(lambda store: store.claim(spec, images, owner))
        return set(images) if mine is None else mine

    def release(self, owner: str) -> None:
        """Give up all claims of an owner."""
        self._attempt(lambda store: store.release(owner))

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        """Remembered digests of files; None for each unknown or changed file."""
        found: list[bytes | None] = self._attempt(
            lambda store: store.file_digests(files)
        ) or [None] * len(files)
        return found

    def remember_files(self, files: Sequence[tuple[FileState, bytes]]) -> None:
        """Remember digests of files under their state."""
        if files:
            self._attempt(lambda store: store.remember_files(files))

    # -- size ----------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Largest size of the codes, in bytes."""
        return self.max_bytes

    def info(self) -> CacheInfo:
        """Return the size of the cache, and its hits and misses."""
        rows, size = self._attempt(lambda store: store.size()) or (0, 0)
        return CacheInfo(rows, size, self._hits, self._misses)

    def clear(self) -> None:
        """Drop all codes."""
        self.prune(0)

    def prune(self, max_bytes: int) -> None:
        """Drop the least recently used codes until at most `max_bytes` remain.

        Raises
        ------
        ValueError
            If `max_bytes` is negative.
        """
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected at least 0, got {max_bytes!r}.")
        self._attempt(lambda store: store.prune(max_bytes))

    # -- the store -----------------------------------------------------------

    def _attempt(self, action: Any) -> Any:
        """Call a function on the store; on failure, warn once and return None."""
        try:
            return action(self._open())
        except CacheError as error:
            self._warn_once(str(error), str(error))
            return None

    def _report_size(self, needed: int, allowed: int) -> None:
        message = (
            f"{self!r} is too small: the codes in use need {_mib(needed)}, "
            f"{_mib(allowed)} are allowed. Some are kept; the others are computed each "
            f"time. {self._larger}"
        )
        # Those in memory have one name.
        shared = self.path is not None or self is MEMORY
        told = report_size(repr(self), message, shared)
        # What a worker tells its parent is read later: again if the figure grows.
        self._reported_bytes = 1.1 * needed if told else math.inf

    def _warn_once(self, message: str, kind: str) -> None:
        if kind not in self._reported:
            self._reported.add(kind)
            warnings.warn(message, CacheWarning, stacklevel=4)

    def _open(self) -> Store:
        watch_root()
        with self._lock:
            if self._store is None:
                self._store = self._new_store()
            return self._store

    def _new_store(self) -> Store:
        if self.path is None:
            return MemoryStore(self.max_bytes)
        return FileStore(self.path, self.max_bytes)

    # -- copies --------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> CodeCache:
        return self

    def __copy__(self) -> CodeCache:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return CodeCache._of_process, (self.path, self.max_bytes)

    # Saved pickles name this method: do not rename it.
    @classmethod
    def _of_process(cls, path: str | None, max_bytes: int) -> CodeCache:
        """The shared cache of a path in this process; without a path, an empty one."""
        return _shared_cache(path, max_bytes)

    # skops uses these two instead of `__reduce__`.

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], max_bytes=state["max_bytes"])  # type: ignore[misc]

    def __repr__(self) -> str:
        where = "" if self.path is None else repr(self.path)
        return f"CodeCache({where})"


# -- the `cache` parameter ---------------------------------------------------


class _ProcessCache(CodeCache):
    """The cache "memory": of this process, and shared with its workers."""

    _larger = "Choose cache=PATH, on a disk with more space."

    @property
    def capacity(self) -> int:
        return self.max_bytes + MAX_FILE_BYTES

    def _new_store(self) -> Store:
        return ProcessStore(self.max_bytes)

    def __repr__(self) -> str:
        return "cache='memory'"


MEMORY = _ProcessCache()
# Caches by path, the least recently used first. Bounded, since each has open files.
_files: OrderedDict[str, CodeCache] = OrderedDict()
_files_lock = fork_safe_lock()


def resolve_cache(
    cache: str | os.PathLike[str] | CodeCache | None,
) -> CodeCache | None:
    """The cache that a `cache` parameter refers to in this process.

    Raises
    ------
    TypeError
        If `cache` is not "memory", a path, a CodeCache or None.
    ValueError
        If `cache` is an empty path.
    """
    if cache is None or isinstance(cache, CodeCache):
        return cache
    if not isinstance(cache, (str, os.PathLike)):
        raise TypeError(
            f"cache: expected 'memory', a path, a CodeCache or None, got {cache!r}."
        )
    if cache == "memory":
        return MEMORY
    if cache == "":
        raise ValueError("cache: expected 'memory', a path or None, got ''.")
    return _shared_cache(_cache_file(cache), FILE_MAX_BYTES)


def _shared_cache(path: str | None, max_bytes: int) -> CodeCache:
    """The shared cache of a path in this process; without a path, an empty one."""
    if path is None:
        return CodeCache(max_bytes=max_bytes)
    with _files_lock:
        cache = _files.get(path)
        if cache is None or cache.max_bytes != max_bytes:
            cache = _files[path] = CodeCache(path, max_bytes=max_bytes)
        _files.move_to_end(path)
        while len(_files) > _MAX_FILES:
            _files.popitem(last=False)
        return cache


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _cache_file(path: str | os.PathLike[str]) -> str:
    """Absolute path of a cache's file."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - keeps symlinks
    return str(absolute / FILE_NAME if absolute.is_dir() else absolute)
