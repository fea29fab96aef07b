"""Counts images that run through sessions, except in the self-test of a session."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sk_cnncodes.codes import sessions
from sk_cnncodes.engines import session as runtime


class Forwards:
    """Numbers of images run and sessions opened."""

    def __init__(self) -> None:
        self.images = 0
        self.sessions = 0


@contextmanager
def counted_forwards(*, keep_sessions: bool = False) -> Iterator[Forwards]:
    """Count images run and sessions opened inside the context.

    Cached sessions are cleared first, unless `keep_sessions`, so that all are counted.
    """
    count = Forwards()
    testing = threading.local()
    run, open_session = runtime.CodeSession._run, sessions.open_session

    def counting_run(self: runtime.CodeSession, images: np.ndarray) -> list[np.ndarray]:
        if not getattr(testing, "now", False):
            count.images += len(images)
        return run(self, images)

    def counting_open(*arguments: Any) -> runtime.CodeSession:
        count.sessions += 1
        testing.now = True
        try:
            return open_session(*arguments)
        finally:
            testing.now = False

    runtime.CodeSession._run = counting_run  # type: ignore[method-assign]
    sessions.open_session = counting_open
    if not keep_sessions:
        sessions.SESSIONS.clear()
    try:
        yield count
    finally:
        runtime.CodeSession._run = run  # type: ignore[method-assign]
        sessions.open_session = open_session
