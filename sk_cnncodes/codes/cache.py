"""CodeCache: codes by (code spec, image), in memory or in one SQLite file."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sk_cnncodes.base.exceptions import CacheError
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.base.public import public
from sk_cnncodes.codes.cache_file import FileState, FileStore

MEMORY_MAX_BYTES = 512 * 2**20
FILE_MAX_BYTES = 10 * 2**30
# What a row costs in memory beside its numbers: keys, objects, the table's slot.
_ROW_OVERHEAD = 450
FILE_NAME = "sk_cnncodes.sqlite3"
# How many files that were given as paths are kept open.
_MAX_FILES = 16


@public
class CacheWarning(UserWarning):
    """A code cache does not work as asked for; codes are computed all the same."""


@public
@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds, and how it served this process.

    Attributes
    ----------
    rows : int
        Number of codes.
    bytes : int
        Their size.
    hits, misses : int
        Codes that this process asked for and got, or did not get.
    """

    rows: int
    bytes: int
    hits: int
    misses: int


class Store(Protocol):
    """Where the rows of a cache lie."""

    def get(self, spec: str, images: Sequence[bytes]) -> list[np.ndarray | None]:
        """Codes of images, None where there is none."""
        ...

    def put(self, rows: Iterable[tuple[str, Sequence[bytes], np.ndarray]]) -> None:
        """Store codes of several specs at once; all of them or none."""
        ...

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        """Remembered digests of files."""
        ...

    def remember_files(self, files: Sequence[tuple[FileState, bytes]]) -> None:
        """Remember digests of files."""
        ...

    def size(self) -> tuple[int, int]:
        """Number of rows and bytes."""
        ...

    def prune(self, max_bytes: int) -> None:
        """Drop the least recently used codes until the size is kept."""
        ...


@public
class CodeCache:
    """Codes that were computed once, to be looked up from then on.

    A code is found by the digest of its code spec (backbone, layer, pooling,
    normalisation, preprocessing) and the digest of its image. Batch size, device and
    threads do not matter.

    Parameters
    ----------
    path : str, path-like or None, default=None
        None keeps codes in the memory of this process. A path keeps them in one
        SQLite file, made if it does not exist, which processes and days share; for an
        existing folder, in the file `sk_cnncodes.sqlite3` in it. It must lie on a
        local disk.
    max_bytes : int or None, default=None
        Size above which the least recently used codes are dropped. None stands for
        512 MiB in memory and 10 GiB in a file.

    Raises
    ------
    ValueError
        If `max_bytes` is not positive.

    Notes
    -----
    A cache in a file is pickled as its path; a cache in memory arrives empty in
    another process. Copies share the store with their original.

    A file that cannot be used (not a cache, made by a newer version, read-only, on a
    full disk or on a network file system) is left as it is: one `CacheWarning` says
    what is wrong, and codes are computed without it.

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

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int | None = None,
    ) -> None:
        if max_bytes is not None and max_bytes <= 0:
            raise ValueError(f"max_bytes: expected a positive int, got {max_bytes!r}.")
        self.path = None if path is None else _cache_file(path)
        default = MEMORY_MAX_BYTES if path is None else FILE_MAX_BYTES
        self.max_bytes = default if max_bytes is None else int(max_bytes)
        self._lock = fork_safe_lock()
        self._hits = self._misses = 0
        self._store: Store | None = None
        self._said: set[str] = set()

    # -- rows ----------------------------------------------------------------

    def get_many(self, spec: str, images: Sequence[bytes]) -> list[np.ndarray | None]:
        """Look codes up.

        Parameters
        ----------
        spec : str
            Digest of the code spec.
        images : sequence of bytes
            Digests of the images.

        Returns
        -------
        list of (ndarray of float32, shape (code_length,)) or None
            None where the cache has no code.
        """
        found: list[np.ndarray | None] = self._attempt(
            lambda store: store.get(spec, images)
        ) or [None] * len(images)
        hits = sum(code is not None for code in found)
        with self._lock:
            self._hits += hits
            self._misses += len(found) - hits
        return found

    def put_many(self, rows: Iterable[tuple[str, Sequence[bytes], np.ndarray]]) -> None:
        """Store codes; when it returns, they are stored or a warning was given.

        Parameters
        ----------
        rows : iterable of (spec digest, image digests, codes)
            Codes as float32, shape (n_images, code_length).
        """
        rows = list(rows)
        self._attempt(lambda store: store.put(rows))

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        """Digests of files whose state is remembered; None of others."""
        found: list[bytes | None] = self._attempt(
            lambda store: store.file_digests(files)
        ) or [None] * len(files)
        return found

    def remember_files(self, files: Sequence[tuple[FileState, bytes]]) -> None:
        """Remember digests of files by their state."""
        if files:
            self._attempt(lambda store: store.remember_files(files))

    # -- care ----------------------------------------------------------------

    def info(self) -> CacheInfo:
        """Count what the cache holds."""
        rows, size = self._attempt(lambda store: store.size()) or (0, 0)
        return CacheInfo(rows, size, self._hits, self._misses)

    def clear(self) -> None:
        """Drop all codes."""
        self.prune(0)

    def prune(self, max_bytes: int) -> None:
        """Drop the least recently used codes until at most `max_bytes` are held."""
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected at least 0, got {max_bytes!r}.")
        self._attempt(lambda store: store.prune(max_bytes))

    # -- the store -----------------------------------------------------------

    def _attempt(self, action: Any) -> Any:
        """Do something with the store; where that fails, say so once, and give None."""
        try:
            return action(self._open())
        except CacheError as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                warnings.warn(str(error), CacheWarning, stacklevel=3)
            return None

    def _open(self) -> Store:
        with self._lock:
            if self._store is None:
                if self.path is None:
                    self._store = MemoryStore(self.max_bytes)
                else:
                    self._store = FileStore(self.path, self.max_bytes)
            return self._store

    # -- copies --------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> CodeCache:
        return self

    def __copy__(self) -> CodeCache:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return CodeCache._of_process, (self.path, self.max_bytes)

    @classmethod
    def _of_process(cls, path: str | None, max_bytes: int) -> CodeCache:
        """The cache of a path, one in each process; for no path, an empty one."""
        return _cache_of_process(path, max_bytes)

    # For skops, which does not call what __reduce__ gives.

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], max_bytes=state["max_bytes"])  # type: ignore[misc]

    def __repr__(self) -> str:
        where = "" if self.path is None else repr(self.path)
        return f"CodeCache({where})"


class MemoryStore:
    """Rows in a dictionary in the order of their use."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._rows: OrderedDict[tuple[str, bytes], np.ndarray] = OrderedDict()
        self._files: OrderedDict[bytes, tuple[FileState, bytes]] = OrderedDict()
        self._lock = fork_safe_lock()

    def get(self, spec: str, images: Sequence[bytes]) -> list[np.ndarray | None]:
        with self._lock:
            found = []
            for image in images:
                row = self._rows.get((spec, image))
                if row is not None:
                    self._rows.move_to_end((spec, image))
                found.append(row)
            return found

    def put(self, rows: Iterable[tuple[str, Sequence[bytes], np.ndarray]]) -> None:
        with self._lock:
            for spec, images, codes in rows:
                for image, code in zip(images, codes, strict=True):
                    if (spec, image) not in self._rows:
                        # A view would keep the whole batch alive.
                        self._rows[spec, image] = np.array(code, np.float32)
                        self._bytes += code.nbytes + _ROW_OVERHEAD
            self._shrink(self._max_bytes)

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        with self._lock:
            found: list[bytes | None] = []
            for file in files:
                state, digest = self._files.get(file.path, (None, None))
                found.append(digest if state == file else None)
            return found

    def remember_files(self, files: Sequence[tuple[FileState, bytes]]) -> None:
        with self._lock:
            for state, digest in files:
                if state.path not in self._files:
                    self._bytes += _ROW_OVERHEAD
                self._files[state.path] = (state, digest)
            self._shrink(self._max_bytes)

    def size(self) -> tuple[int, int]:
        with self._lock:
            return len(self._rows), self._bytes

    def prune(self, max_bytes: int) -> None:
        with self._lock:
            self._shrink(max_bytes)

    def _shrink(self, max_bytes: int) -> None:
        while self._bytes > max_bytes and self._rows:
            _, code = self._rows.popitem(last=False)
            self._bytes -= code.nbytes + _ROW_OVERHEAD
        while self._bytes > max_bytes and self._files:
            self._files.popitem(last=False)
            self._bytes -= _ROW_OVERHEAD


# -- which cache a parameter means -------------------------------------------

MEMORY = CodeCache()
# Caches of paths, the least recently used leaving first: each has open files.
_files: OrderedDict[str, CodeCache] = OrderedDict()
_files_lock = fork_safe_lock()


def resolve_cache(
    cache: str | os.PathLike[str] | CodeCache | None,
) -> CodeCache | None:
    """The cache that a `cache` parameter stands for in this process.

    Raises
    ------
    TypeError
        If it is not "memory", a path, a CodeCache or None.
    ValueError
        If it is an empty path.
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
    return _cache_of_process(_cache_file(cache), FILE_MAX_BYTES)


_advised = False


def warn_memory_cache_in_worker(cache: CodeCache | None) -> None:
    """Say once in a worker process that its memory is not shared."""
    global _advised
    if cache is not MEMORY or _advised or multiprocessing.parent_process() is None:
        return
    _advised = True
    warnings.warn(
        "cache='memory' in a worker process: every process embeds the images for "
        "itself. Pass a path, cache='codes.sqlite3', so that all share one cache; or "
        "cache=None to compute without one.",
        CacheWarning,
        stacklevel=3,
    )


def _cache_of_process(path: str | None, max_bytes: int) -> CodeCache:
    """The cache of a path, one in each process; for no path, an empty one."""
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


def _cache_file(path: str | os.PathLike[str]) -> str:
    """Absolute path of the file of a cache."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - links are kept
    return str(absolute / FILE_NAME if absolute.is_dir() else absolute)
