"""MemoryStore: the rows of a code cache in the memory of a process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.cache.file_store import FileState

# Bytes that a row takes in memory besides its values: keys, objects, dictionary slot.
_ROW_OVERHEAD = 450


class MemoryStore:
    """Codes in a dictionary, the least recently used first.

    Parameters
    ----------
    max_bytes : int
        Size above which the least recently used codes are dropped.
    """

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
                        # Copied, since a view would keep the whole batch alive.
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
