"""ProcessStore: codes in memory, and in a temporary file shared with worker processes.

`GridSearchCV(n_jobs=2)` and the like run in worker processes. Each finds the file of
the process that started it, writes its codes there, and finds those of the others. A
process without workers writes to the file only what its memory cannot hold.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from sk_cnncodes.base.exceptions import CacheError
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.base.logs import logger
from sk_cnncodes.cache.file_store import FileState, FileStore, Row
from sk_cnncodes.cache.memory_store import MemoryStore
from sk_cnncodes.cache.shared_folder import make_folder, root_process, shared_folder

# Largest size of the temporary file, in bytes and as a share of the free disk space.
MAX_FILE_BYTES = 10 * 2**30
_MAX_DISK_SHARE = 0.25

T = TypeVar("T")


class ProcessStore:
    """Codes in the memory of a process; what does not fit is in a temporary file.

    A fault of the file, such as a full disk, is logged: codes are then computed again.

    Parameters
    ----------
    max_bytes : int
        Size of the codes in memory.
    """

    def __init__(self, max_bytes: int) -> None:
        self._memory = MemoryStore(max_bytes)
        self.max_bytes = max_bytes
        self._file: FileStore | None = None
        self._file_root = 0
        self._lock = fork_safe_lock()
        self.needed_bytes = 0

    # -- rows ----------------------------------------------------------------

    def get(self, spec: str, images: Sequence[bytes]) -> list[np.ndarray | None]:
        found = self._memory.get(spec, images)
        missing = [i for i, code in zip(images, found, strict=True) if code is None]
        if not missing or (file := self._shared_file(make=False)) is None:
            return found
        fetched = self._try(lambda: file.get(spec, missing)) or [None] * len(missing)
        codes = dict(zip(missing, fetched, strict=True))
        if self._memory.has_room():
            rows = [(i, code) for i, code in codes.items() if code is not None]
            self._memory.put_and_drop([(spec, [i], code[None]) for i, code in rows])
        return [
            codes.get(image) if code is None else code
            for image, code in zip(images, found, strict=True)
        ]

    def put(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        dropped = self._memory.put_and_drop(rows)
        is_root = root_process() == os.getpid()
        to_write = dropped if is_root else rows
        if not to_write:
            return
        file = self._write(to_write)
        if file is None:
            self.needed_bytes = self._memory.needed_bytes
            self.max_bytes = self._memory.max_bytes
        elif file.needed_bytes:
            # In a worker, what is in memory is in the file too.
            _, in_memory = self._memory.size() if is_root else (0, 0)
            self.needed_bytes = file.needed_bytes + in_memory
            self.max_bytes = file.max_bytes + is_root * self._memory.max_bytes

    def _write(self, rows: list[Row]) -> FileStore | None:
        """Write to the file; None if it cannot be written."""
        file = self._shared_file(make=True)
        try:
            if file is not None:
                file.put(rows)
        except CacheError as error:
            _log(error)
            return None
        return file

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        return self._memory.file_digests(files)

    def remember_files(self, files: Sequence[tuple[FileState, bytes]]) -> None:
        self._memory.remember_files(files)

    # -- claims --------------------------------------------------------------

    def claim(self, spec: str, images: Sequence[bytes], owner: str) -> set[bytes]:
        mine = self._memory.claim(spec, images, owner)
        file = self._shared_file(make=root_process() != os.getpid())
        if not mine or file is None:
            return mine
        in_file = self._try(lambda: file.claim(spec, [*mine], owner))
        return mine if in_file is None else in_file

    def release(self, owner: str) -> None:
        self._memory.release(owner)
        if (file := self._shared_file(make=False)) is not None:
            self._try(lambda: file.release(owner))

    # -- size ----------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        rows, size = self._memory.size()
        file = self._shared_file(make=False)
        if file is None or root_process() != os.getpid():
            return rows, size
        more_rows, more = self._try(file.size) or (0, 0)
        return rows + more_rows, size + more

    def prune(self, max_bytes: int) -> None:
        self._memory.prune(max_bytes)
        if (file := self._shared_file(make=False)) is not None:
            self._try(lambda: file.prune(max_bytes))

    # -- the file ------------------------------------------------------------

    def _shared_file(self, *, make: bool) -> FileStore | None:
        """The temporary file, if there is one; with `make`, there will be."""
        root = root_process()
        folder = shared_folder(root)
        exists = folder.is_dir()
        if not exists and not make:
            return None
        with self._lock:
            if self._file is None or self._file_root != root or not exists:
                try:
                    free = shutil.disk_usage(make_folder(root)).free
                except OSError as error:
                    logger.debug("no temporary file for codes: %s", error)
                    return None
                limit = min(MAX_FILE_BYTES, int(_MAX_DISK_SHARE * free))
                path = str(folder / "codes.sqlite3")
                self._file = FileStore(path, max(limit, 1))
                self._file_root = root
            return self._file

    @staticmethod
    def _try(action: Callable[[], T]) -> T | None:
        try:
            return action()
        except CacheError as error:
            _log(error)
            return None


def _log(error: CacheError) -> None:
    logger.debug("temporary file for codes: %s", error)
