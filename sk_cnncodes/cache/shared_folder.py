"""The temporary folder that a process and its workers share.

`GridSearchCV(n_jobs=2)` and the like run in worker processes. They find the folder of
the process that started them, the root: by its number and the time when it started.

The folder is removed when the root ends. If it is killed, joblib's resource tracker or
a worker removes it, and the workers of a pool, which nobody would end, end themselves.
If all of them are killed at once, the next process that needs such a folder removes it.
"""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

# Seconds between two looks whether the root is alive.
_WATCH_SECONDS = 0.5

# Folders that joblib's resource tracker would remove.
_registered: set[Path] = set()
# The root that this process watches.
_watched = 0


def root_process() -> int:
    """The process whose folder is used: the parent of a worker, otherwise this one."""
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
    try:
        parent = tempfile.gettempdir()
    except FileNotFoundError:  # none can be written to: nor can this one
        parent = "/tmp"
    return Path(parent, f"{_prefix()}{root}-{_start_time(root)}")


@functools.cache
def _prefix() -> str:
    """What the folders of this user begin with, where numbers of processes are ours."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    space = 0
    with suppress(OSError):  # a container may share the folder, and not the numbers
        space = Path("/proc/self/ns/pid").stat().st_ino
    return f"sk_cnncodes-{user}-{space}-"


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


def make_folder(root: int) -> Path:
    """Create the folder for this user alone, and see to it that it is removed.

    Raises
    ------
    PermissionError
        If another user made it, who could have written codes into it.
    """
    folder = shared_folder(root)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        _remove_orphans(folder.parent)
    if hasattr(os, "getuid") and folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{str(folder)!r} belongs to another user")
    if root == os.getpid() and folder not in _registered:
        from joblib.externals.loky.backend import resource_tracker

        # Removes it if this process is killed.
        resource_tracker.register(str(folder), "folder")
        _registered.add(folder)
    return folder


def _remove_orphans(parent: Path) -> None:
    """Remove folders whose processes have ended, where the system says which."""
    for folder in parent.glob(f"{_prefix()}*-*"):
        number, _, start = folder.name.removeprefix(_prefix()).partition("-")
        if start != "0" and number.isdigit() and _start_time(int(number)) != start:
            shutil.rmtree(folder, ignore_errors=True)


# -- messages ------------------------------------------------------------------


def tell_root(name: str, message: str) -> bool:
    """Leave a message for the root, in place of an earlier one of the same name."""
    stem = sha256(name.encode()).hexdigest()[:16]
    try:
        folder = make_folder(root_process())
        part = folder / f"{stem}.{os.getpid()}"
        part.write_text(json.dumps([name, message]), encoding="utf-8")
        part.replace(folder / f"{stem}.json")
    except OSError:
        return False
    return True


def told() -> list[tuple[str, str]]:
    """Names and messages that workers left for this process; they are removed."""
    folder = shared_folder(os.getpid())
    found = []
    for file in folder.glob("*.json") if folder.is_dir() else ():
        with suppress(OSError):
            name, message = json.loads(file.read_text(encoding="utf-8"))
            found.append((name, message))
            file.unlink()
    return found


# -- the end of a process ------------------------------------------------------


def watch_root() -> None:
    """End a worker of a pool, and remove the folder, when the root has ended.

    Pools have daemonic workers, which are to end with their parent, or those of loky.
    """
    global _watched
    root = root_process()
    if root in (os.getpid(), _watched) or root != os.getppid():
        return
    _watched = root
    worker = multiprocessing.current_process()
    folder = shared_folder(root)

    def watch() -> None:
        while os.getppid() == root:
            time.sleep(_WATCH_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        if worker.daemon or worker.name.startswith("LokyProcess"):
            os._exit(1)

    thread = threading.Thread(target=watch, daemon=True, name="sk_cnncodes-watch")
    thread.start()


def _remove_own_folder() -> None:
    """Remove the folder of this process at its end."""
    folder = shared_folder(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)
    if folder in _registered:
        from joblib.externals.loky.backend import resource_tracker

        resource_tracker.unregister(str(folder), "folder")


atexit.register(_remove_own_folder)
