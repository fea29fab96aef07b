"""What a process finishes before a fork, and what its child recreates.

A child inherits the state of its parent's locks, but not the threads that would release
them. All fork hooks of the package are here, in a fixed order.
"""

from __future__ import annotations

import importlib

# Before a fork, hooks run in reverse order of registration. Importing logging first
# makes its hook run after ours, which wait for other threads' imports: these may log.
import logging  # noqa: F401
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

# Packages that this one imports on first use, perhaps in a thread.
_IMPORTED_LATE = {
    *("PIL", "filelock", "onnx", "onnxruntime", "openvino", "pooch", "sk_cnncodes"),
    *("huggingface_hub", "pillow_heif", "pillow_jxl", "tqdm"),
}

# Held during whatever a fork must not interrupt, such as loading a network, when ONNX
# Runtime holds locks of its own.
fork_lock = threading.RLock()
# Other locks that a fork acquires, in this order.
_fork_locks: list[Any] = []
_before_hooks: list[Callable[[], object]] = []
_child_hooks: list[Callable[[], object]] = []
_renewed_locks: weakref.WeakSet[Any] = weakref.WeakSet()
# Locks held by the fork in progress, with one entry for each time.
_acquired: list[tuple[Any, list[bool]]] = []


def fork_safe_lock() -> threading.Lock:
    """Return a lock that is free in forked children, whoever held it before."""
    lock = threading.Lock()
    _renewed_locks.add(lock)
    return lock


def hold_during_fork(lock: Any) -> None:
    """Make forks acquire a reentrant lock; the last one registered comes first."""
    with fork_lock:
        _fork_locks.insert(0, lock)


def before_fork(action: Callable[[], object]) -> None:
    """Register a function to call before each fork, with all locks held."""
    _before_hooks.append(action)


def after_fork_in_child(action: Callable[[], object]) -> None:
    """Register a function to call in each forked child."""
    _child_hooks.append(action)


def import_fork_safe(name: str) -> ModuleType:
    """Import a module; forks wait until it is imported."""
    with fork_lock:
        return importlib.import_module(name)


def finish_imports() -> None:
    """Wait for imports in progress in other threads: they hold module locks."""
    for name, module in list(sys.modules.items()):
        if module is not None and name.partition(".")[0] in _IMPORTED_LATE:
            importlib.import_module(name)


def _prepare() -> None:
    """Acquire all locks and run the hooks before a fork.

    The fork goes on whatever happens here: an interrupt must not leave it unprepared.
    """
    interrupt: KeyboardInterrupt | None = None
    acquired: list[tuple[Any, list[bool]]] = [(fork_lock, [])]
    while True:
        try:
            for lock, times in acquired:
                if not times:
                    # Acquired and recorded by one C function: an interrupt comes
                    # before or after both.
                    times.extend(filter(lock.acquire, (True,)))
                if len(acquired) == 1:
                    acquired += [(other, []) for other in _fork_locks]
            _acquired[:] = acquired
            for action in _before_hooks:
                action()
            with suppress(ImportError):  # of another thread, which gets it itself
                finish_imports()
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _release() -> None:
    """Release all locks after a fork."""
    held = list(_acquired)
    _acquired.clear()  # before the first release, after which another fork may begin
    for lock, times in reversed(held):
        for _ in times:
            lock.release()


def _renew() -> None:
    """Release and renew the locks, and run the hooks, in a child."""
    _release()
    for lock in _renewed_locks:
        lock._at_fork_reinit()
    for action in _child_hooks:
        action()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_prepare, after_in_parent=_release, after_in_child=_renew
    )
