"""ProcessStore: codes in memory, and in a temporary file shared with worker processes.

`GridSearchCV(n_jobs=2)` and the like run in worker processes. Each finds the file of
the process that started it, writes its codes there, and finds those of the others. A
process without workers writes to the file only what its memory cannot hold.

The file is removed when the process ends. If it is killed, joblib's resource tracker or
a worker removes it, and the workers of a pool, which nobody would end, end themselves.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from sk_cnncodes.base.exceptions import CacheError
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.base.logs import logger
from sk_cnncodes.cache.file_store import FileState, FileStore, Row
from sk_cnncodes.cache.memory_store import MemoryStore

# Largest size of the temporary file, in bytes and as a share of the free disk space.
MAX_FILE_BYTES = 10 * 2**30
_MAX_DISK_SHARE = 0.25
# Seconds between two looks whether the parent process is alive.
_WATCH_SECONDS = 0.5

T = TypeVar("T")
# Folders that joblib's resource tracker would remove.
_registered: set[Path] = set()


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
        self._file: FileStore | None = None
        self._file_root = 0
        self._watched = 0
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
        to_write = rows if _root() != os.getpid() else dropped
        if to_write and (file := self._shared_file(make=True)) is not None:
            self._try(lambda: file.put(to_write))

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        return self._memory.file_digests(files)

    def remember_files(self, files: Sequence[tuple[FileState, bytes]]) -> None:
        self._memory.remember_files(files)

    # -- claims --------------------------------------------------------------

    def claim(self, spec: str, images: Sequence[bytes], owner: str) -> set[bytes]:
        mine = self._memory.claim(spec, images, owner)
        file = self._shared_file(make=_root() != os.getpid())
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
        if file is None or _root() != os.getpid():
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
        root = _root()
        folder = shared_folder(root)
        exists = folder.is_dir()
        if not exists and not make:
            return None
        with self._lock:
            if self._file is None or self._file_root != root or not exists:
                try:
                    _make_folder(folder, root)
                    free = shutil.disk_usage(folder).free
                except OSError as error:
                    logger.debug("no temporary file for codes: %s", error)
                    return None
                limit = min(MAX_FILE_BYTES, int(_MAX_DISK_SHARE * free))
                path = str(folder / "codes.sqlite3")
                self._file = FileStore(path, max(limit, 1))
                self._file_root = root
                if root not in (os.getpid(), self._watched) and root == os.getppid():
                    self._watched = root
                    _watch_parent(root, folder)
            return self._file

    @staticmethod
    def _try(action: Callable[[], T]) -> T | None:
        try:
            return action()
        except CacheError as error:
            logger.debug("temporary file for codes: %s", error)
            return None


# -- whose file ----------------------------------------------------------------


def _root() -> int:
    """The process whose file is used: the parent of a worker, otherwise this one."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        return parent.pid
    return _ray_driver(os.getpid()) if "ray" in sys.modules else os.getpid()


@functools.cache
def _ray_driver(pid: int) -> int:
    """The process that started the raylet, if one started this process."""
    parent = _status(pid)
    above = _status(int(parent[1])) if parent else []
    is_worker = bool(above) and above[-1] == "raylet" and above[1] != "1"
    return int(above[1]) if is_worker else pid


@functools.cache
def shared_folder(root: int) -> Path:
    """Folder of the temporary file of a process and its workers."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    name = f"sk_cnncodes-{user}-{root}-{_start_time(root)}"
    return Path(tempfile.gettempdir(), name)


def _start_time(pid: int) -> str:
    """When a process started, where the system says it: numbers are used again."""
    return (_status(pid) or ["0"] * 20)[19]


def _status(pid: int) -> list[str]:
    """State, parent and so on of a process, and its name last; [] if not known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return []
    head, _, rest = text.rpartition(")")
    return [*rest.split(), head.partition("(")[2]]


def _make_folder(folder: Path, root: int) -> None:
    """Create the folder for this user alone, and see to it that it is removed.

    Raises
    ------
    PermissionError
        If another user made it, who could have written codes into it.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if hasattr(os, "getuid") and folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{str(folder)!r} belongs to another user")
    if root == os.getpid() and folder not in _registered:
        from joblib.externals.loky.backend import resource_tracker

        # Removes it if this process is killed.
        resource_tracker.register(str(folder), "folder")
        _registered.add(folder)


def _watch_parent(root: int, folder: Path) -> None:
    """Remove the file, and end a worker of a pool, when the parent process has ended.

    Pools have daemonic workers, which are to end with their parent, or those of loky.
    """
    worker = multiprocessing.current_process()

    def watch() -> None:
        while os.getppid() == root:
            time.sleep(_WATCH_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        if worker.daemon or worker.name.startswith("LokyProcess"):
            os._exit(1)

    thread = threading.Thread(target=watch, daemon=True, name="sk_cnncodes-watch")
    thread.start()


def _remove_own_folder() -> None:
    """Remove the temporary file of this process at its end."""
    folder = shared_folder(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)
    if folder in _registered:
        from joblib.externals.loky.backend import resource_tracker

        resource_tracker.unregister(str(folder), "folder")


atexit.register(_remove_own_folder)
