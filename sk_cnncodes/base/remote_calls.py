"""Calls of other machines: time limits, and connections that are checked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

# Connections that are kept open to each host.
_CONNECTIONS = 64
# Calls that were given up and whose threads have not ended: no more are begun then.
_MOST_LEFT = 64

T = TypeVar("T")


class PassingFault(Exception):
    """A fault that may pass."""


def open_session(check_peer: Callable[[str, int, str], None]) -> Any:
    """A client that checks where its connections lead, and sends no passwords."""
    from http.cookiejar import DefaultCookiePolicy

    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    def checked(pool: Any) -> Any:
        class Connection(pool.ConnectionCls):
            def _new_conn(self) -> socket.socket:
                found: socket.socket = super()._new_conn()
                _watch(found)
                try:
                    check_peer(self.host, self.port, found.getpeername()[0])
                except BaseException:
                    found.close()
                    raise
                return found

            def request(self, *arguments: Any, **options: Any) -> None:
                if self.sock is not None:  # an earlier request opened it
                    _watch(self.sock)
                super().request(*arguments, **options)

        return type("Pool", (pool,), {"ConnectionCls": Connection})

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, **options)
            self.poolmanager.pool_classes_by_scheme = {
                "http": checked(HTTPConnectionPool),
                "https": checked(HTTPSConnectionPool),
            }

    session = requests.Session()
    session.auth = lambda request: request  # otherwise it asks ~/.netrc
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(4, _CONNECTIONS))
    return session


_here = threading.local()
_left: set[threading.Thread] = set()


def _watch(connection: Any) -> None:
    """Note a connection of this thread: when the time is over, it is shut down."""
    watched: list[socket.socket] | None = getattr(_here, "watched", None)
    if watched is not None:
        number, kind = connection.fileno(), (connection.family, connection.type)
        watched.append(socket.fromfd(number, *kind))


def within(seconds: float, function: Callable[[], T]) -> T:
    """Call a function that may hang, in a thread that is left if it does.

    Raises
    ------
    PassingFault
        If it takes longer.
    MemoryError
        If this process can have no more threads.
    """
    # A copy: other threads add to it meanwhile.
    _left.difference_update([each for each in list(_left) if not each.is_alive()])
    if len(_left) >= _MOST_LEFT:
        raise PassingFault(f"{len(_left)} earlier reads have not ended")
    outcome: list[tuple[Any, BaseException | None]] = []
    watched: list[socket.socket] = []

    def work() -> None:
        _here.watched = watched
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, name="sk_cnncodes-remote", daemon=True)
    try:
        thread.start()
    except RuntimeError as fault:  # no image is at fault
        raise MemoryError(f"{fault}, for a read that has a time limit") from fault
    thread.join(seconds)
    try:
        if not outcome:
            # Limits of single steps are not enough: bytes may come one by one.
            for connection in list(watched):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            thread.join(1)
            if thread.is_alive():
                _left.add(thread)
            raise PassingFault(f"longer than {seconds:g} seconds")
    finally:
        for connection in watched:
            connection.close()
    value, error = outcome[0]
    if error is not None:
        try:
            raise error
        finally:
            del error, outcome[0]  # breaks the reference cycle with its traceback
    found: T = value
    return found
