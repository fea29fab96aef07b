"""What a process that forks must finish first, and what its child must make anew.

A child gets the locks of its parent as they are at that moment, but not the threads
that would release them. All of the package's hooks are here, in one order.
"""

from __future__ import annotations

import importlib

# Before a fork, hooks run in reverse: that of logging, which is registered first, must
# not have its lock when ours wait for a thread that imports something and wants to log.
import logging  # noqa: F401
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

# Packages that this one imports where they are first needed, perhaps in a thread.
_IMPORTED_LATE = {"PIL", "onnx", "onnxruntime", "openvino", "sk_cnncodes", "tqdm"}

# Held by whatever a fork must not interrupt, such as the loading of a network: ONNX
# Runtime has locks for that.
fork_lock = threading.RLock()
# Further locks that a fork waits for, in the order in which it takes them.
_held: list[Any] = []
_before: list[Callable[[], object]] = []
_in_child: list[Callable[[], object]] = []
_renewed: weakref.WeakSet[Any] = weakref.WeakSet()


def fork_safe_lock() -> threading.Lock:
    """A lock that is free in a forked child, whoever held it in the parent."""
    lock = threading.Lock()
    _renewed.add(lock)
    return lock


def hold_during_fork(lock: Any) -> None:
    """Have forks wait for a reentrant lock; the one named last is taken first."""
    with fork_lock:
        _held.insert(0, lock)


def before_fork(action: Callable[[], object]) -> None:
    """Call a function before each fork, with all locks held."""
    _before.append(action)


def after_fork_in_child(action: Callable[[], object]) -> None:
    """Call a function in each forked child."""
    _in_child.append(action)


def import_fork_safe(name: str) -> ModuleType:
    """Import a module; a fork waits until it is there."""
    with fork_lock:
        return importlib.import_module(name)


def finish_imports() -> None:
    """Wait for imports that other threads have begun: modules have locks."""
    for name, module in list(sys.modules.items()):
        if module is not None and name.partition(".")[0] in _IMPORTED_LATE:
            importlib.import_module(name)


def _prepare() -> None:
    fork_lock.acquire()
    for lock in _held:
        lock.acquire()
    finish_imports()
    for action in _before:
        action()


def _release() -> None:
    for lock in (*reversed(_held), fork_lock):
        # An interrupt may have ended the wait for a lock: then it is not held.
        with suppress(RuntimeError):
            lock.release()


def _renew() -> None:
    _release()
    for lock in _renewed:
        lock._at_fork_reinit()
    for action in _in_child:
        action()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_prepare, after_in_parent=_release, after_in_child=_renew
    )
