"""The table of sessions of this process."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from sk_cnncodes.runtime import CodeSession

# Sessions kept open; each holds the weights and an arena of about 200 MB.
MAX_SESSIONS = 4
S = TypeVar("S")


class _Entry(Generic[S]):
    """A session that is there, or is being made by the thread that holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: S | None = None


class SessionTable(Generic[S]):
    """Sessions of this process, the least recently used leaving first.

    Sessions cannot be pickled, must not be deleted in a forked child, and cost
    seconds to make: estimators ask this table for theirs each time.

    Parameters
    ----------
    max_sessions : int
        How many are kept.
    """

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self.max_sessions = max_sessions
        self._entries: OrderedDict[Hashable, _Entry[S]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], S]) -> S:
        """The session of a key; `make` is called once however many threads ask."""
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
        """Close all sessions that no one is using."""
        with self._lock:
            self._entries.clear()

    def _abandon_after_fork(self) -> None:
        # Deleting a session whose threads stayed in the parent hangs, at exit too:
        # one reference that is never given back keeps the child from trying.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._entries))
        self._entries = OrderedDict()
        self._lock = threading.Lock()


SESSIONS: SessionTable[CodeSession] = SessionTable()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SESSIONS._abandon_after_fork)
