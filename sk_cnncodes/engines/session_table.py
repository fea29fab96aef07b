"""Table of the open sessions of this process."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from sk_cnncodes.base.forks import after_fork_in_child, fork_safe_lock

# Default limit; each session holds the weights and an arena of about 200 MB.
MAX_SESSIONS = 4
S = TypeVar("S")

_tables: weakref.WeakSet[SessionTable[Any]] = weakref.WeakSet()


class _Entry(Generic[S]):
    """An open session, or None while the thread that holds the lock opens it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: S | None = None


class SessionTable(Generic[S]):
    """LRU cache of the open sessions of this process.

    Sessions cannot be pickled, must not be deleted in a forked child, and take seconds
    to open, so estimators get theirs from this table each time.

    Parameters
    ----------
    max_sessions : int, default=4
        Maximum number of sessions kept open; the least recently used is closed first.
    """

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self.max_sessions = max_sessions
        self._entries: OrderedDict[Hashable, _Entry[S]] = OrderedDict()
        self._lock = fork_safe_lock()
        _tables.add(self)

    def get(self, key: Hashable, make: Callable[[], S]) -> S:
        """Return the session of a key; concurrent calls call `make` only once."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry[S]())
            self._entries.move_to_end(key)
            while len(self._entries) > self.max_sessions:
                self._entries.popitem(last=False)
        with entry.lock:
            if entry.session is None:
                entry.session = make()
            return entry.session

    def clear(self) -> None:
        """Close all sessions that are not in use."""
        with self._lock:
            self._entries.clear()

    def _abandon(self) -> None:
        # Deleting a session whose threads are only in the parent hangs, also at exit:
        # a leaked reference prevents it in the child.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._entries))
        self._entries = OrderedDict()


def _abandon_all() -> None:
    for table in _tables:
        table._abandon()


after_fork_in_child(_abandon_all)
