"""CacheDatabase: the SQLite file of a code cache, its connection and its faults."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sk_cnncodes.base.exceptions import CacheError
from sk_cnncodes.base.files import file_identity, open_databases
from sk_cnncodes.base.forks import before_fork, hold_during_fork

# "skcc": marks a file as a code cache in SQLite's own header field.
APPLICATION_ID = 0x736B6363
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE specs (id INTEGER PRIMARY KEY, digest TEXT UNIQUE, used INTEGER);
CREATE TABLE codes (spec INTEGER, image BLOB, checksum INTEGER, code BLOB,
                    PRIMARY KEY (spec, image));
CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER,
                    ctime_ns INTEGER, digest BLOB) WITHOUT ROWID;
"""
# Writers wait for each other this long; readers never wait in WAL mode.
BUSY_SECONDS = 30.0
# After they have waited so in vain, they do not wait for this long: somebody may hold
# the file for hours, and there are many writes.
_BACKOFF_SECONDS = 300.0
_BACKOFF_BUSY_SECONDS = 0.1
# WAL needs memory that all processes share, which these do not have.
_NETWORK_FILE_SYSTEMS = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "gpfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "vboxsf"),
)

T = TypeVar("T")

# Held while SQLite is used: one for all files, so that a fork finds none at work.
_lock = threading.RLock()
_databases: weakref.WeakSet[CacheDatabase] = weakref.WeakSet()


class CacheDatabase:
    """The connection to a code cache's file.

    It is opened when it is first needed, and closed before the process forks:
    SQLite's locks and its log do not survive in two processes.

    Parameters
    ----------
    path : str

    Attributes
    ----------
    read_only : str
        Why nothing can be written, if so.
    spec_numbers : dict of str to int
        What users know of the file while the connection is open.
    """

    # Of the class, so that one whose making was interrupted can be deleted.
    _connection: sqlite3.Connection | None = None

    def __init__(self, path: str) -> None:
        self._path = path
        self._fault: str | None = None
        # Device and inode of what the connection, or the fault, is of.
        self._file: tuple[int, int] | None = None
        self._backoff_until: float | None = None
        self.read_only = ""
        self.spec_numbers: dict[str, int] = {}
        with _lock:
            _databases.add(self)

    def use(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with the connection; SQLite's errors become a CacheError."""
        with _lock:
            self._forget_another_file()
            if self._fault is not None:
                raise CacheError(self._fault)
            try:
                self._end_backoff()
                db = self._connected()
                try:
                    return action(db)
                finally:
                    # An error or an interrupt ended it: nobody must wait for it.
                    if db.in_transaction:
                        db.rollback()
            except sqlite3.Error as error:
                raise CacheError(self._explained(error)) from error

    def _forget_another_file(self) -> None:
        """Begin anew where the file was deleted, or another one is there now."""
        known = self._connection is not None or self._fault is not None
        if known and self._file != file_identity(self._path):
            self._close()
            self._fault, self.read_only = None, ""

    @property
    def busy_timeout(self) -> float:
        """Seconds to wait for others who hold the file."""
        return BUSY_SECONDS if self._backoff_until is None else _BACKOFF_BUSY_SECONDS

    def _end_backoff(self) -> None:
        if self._backoff_until is not None and time.monotonic() > self._backoff_until:
            self._backoff_until = None
            if self._connection is not None:
                set_busy_timeout(self._connection, BUSY_SECONDS)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            open_databases.pop(id(self), None)
        self._connection = None
        self.spec_numbers = {}

    def __del__(self) -> None:
        with _lock:
            self._close()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            kind = file_system(self._path)
            if kind in _NETWORK_FILE_SYSTEMS:
                raise self._unusable(
                    f"it lies on a network file system ({kind}), on which SQLite's "
                    "write-ahead log does not work. Expected a path on a local disk"
                )
            try:
                self._connection = self._opened()
            except sqlite3.OperationalError as error:
                cannot_write = _name(error).startswith(
                    ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_IOERR")
                )
                if not cannot_write or not os.access(self._path, os.R_OK):
                    raise
                self._connection = self._opened_read_only()
            self._file = file_identity(self._path)
            open_databases[id(self)] = self._file
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path,
            timeout=self.busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._check(db, make=True)
            # A power cut may lose the last rows, a killed process does not.
            db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection, *, make: bool) -> None:
        """Make the tables of an empty file; refuse a file that is something else."""
        if not self._is_ours(db) and make:
            _use_write_ahead_log(db, self.busy_timeout)
            with transaction(db):
                if not self._is_ours(db):  # no other process was faster
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        db.execute(statement)
                    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            newer = "a newer" if version > SCHEMA_VERSION else "an older"
            raise self._unusable(
                f"it has schema {version}, of {newer} version of sk_cnncodes. Expected "
                f"schema {SCHEMA_VERSION}; choose another path"
            )

    def _is_ours(self, db: sqlite3.Connection) -> bool:
        """Whether a file is a code cache; an empty one is not yet."""
        # In this order: another process may make tables and mark, at once, in between.
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (mark,) = db.execute("PRAGMA application_id").fetchone()
        if mark != APPLICATION_ID and tables:
            raise self._unusable(
                "it is a SQLite database of another program. Expected a code cache, or "
                "a path where there is no file"
            )
        return bool(mark == APPLICATION_ID)

    def _opened_read_only(self) -> sqlite3.Connection:
        """A connection to a file that cannot be written; its codes can be read."""
        uri = f"{Path(self._path).as_uri()}?mode=ro"
        db = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            try:
                self._check(db, make=False)
            except sqlite3.OperationalError as error:
                full = _name(error).startswith("SQLITE_IOERR_SHM")
                if self._is_writable() and not full:
                    raise
                # Without its log's index, a file in WAL mode can only be read as one
                # that nobody changes. Should somebody do so all the same, checksums
                # keep wrong rows away.
                db.close()
                log = Path(f"{self._path}-wal")
                if log.exists() and log.stat().st_size > 0:
                    raise self._unusable(
                        "a process was killed that used it, and what it stored last "
                        "can only be read where there is room and the right to write"
                    ) from error
                db = sqlite3.connect(
                    f"{uri}&immutable=1",
                    uri=True,
                    isolation_level=None,
                    check_same_thread=False,
                )
                self._check(db, make=False)
        except BaseException:
            db.close()
            raise
        self.read_only = self._said_read_only("it cannot be written")
        return db

    def _is_writable(self) -> bool:
        return all(os.access(p, os.W_OK) for p in (self._path, Path(self._path).parent))

    # -- faults --------------------------------------------------------------

    def _unusable(self, reason: str) -> CacheError:
        """An error after which the file is not touched again, while it is there."""
        self._file = file_identity(self._path)
        self._fault = (
            f"code cache {self._path!r}: {reason}. Codes are computed without it."
        )
        return CacheError(self._fault)

    def _said_read_only(self, reason: str) -> str:
        return (
            f"code cache {self._path!r}: {reason}. No codes are stored; those that are "
            "there are used."
        )

    def _explained(self, error: sqlite3.Error) -> str:
        name, text = _name(error), str(error)
        if name.startswith("SQLITE_FULL"):
            self.read_only = self._said_read_only("the disk is full")
            return self.read_only
        if name.startswith("SQLITE_READONLY"):
            self.read_only = self._said_read_only("it cannot be written")
            return self.read_only
        if name.startswith("SQLITE_IOERR") and "READ" not in name:
            # So end a quota and a limit on the size of files, too.
            self.read_only = self._said_read_only(f"it cannot be written ({text})")
            return self.read_only
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            self._backoff_until = time.monotonic() + _BACKOFF_SECONDS
            if self._connection is not None:
                set_busy_timeout(self._connection, _BACKOFF_BUSY_SECONDS)
            return (
                f"code cache {self._path!r}: other processes kept it locked for "
                f"{BUSY_SECONDS:.0f} s. Some codes were not stored."
            )
        if name.startswith("SQLITE_NOTADB"):
            reason = "it is not a SQLite file. Expected a code cache, or no file there"
            return str(self._unusable(reason))
        if name.startswith("SQLITE_CANTOPEN"):
            reason = f"it cannot be opened ({text}). Expected a path in a folder that "
            return str(
                self._unusable(reason + "exists and can be written, and free handles")
            )
        if name.startswith("SQLITE_CORRUPT"):
            reason = f"it is damaged ({text}). Delete it to start anew"
            return str(self._unusable(reason))
        return str(self._unusable(f"it cannot be used ({text})"))


def set_busy_timeout(db: sqlite3.Connection, seconds: float) -> None:
    db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")


def _name(error: sqlite3.Error) -> str:
    """SQLite's name of an error, such as SQLITE_FULL."""
    return str(getattr(error, "sqlite_errorname", ""))


def _use_write_ahead_log(db: sqlite3.Connection, busy_timeout: float) -> None:
    """Switch to WAL, for which SQLite does not wait where others do so too."""
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE ... COMMIT; `CacheDatabase.use` ends what does not get there."""
    db.execute("BEGIN IMMEDIATE")
    yield
    db.execute("COMMIT")


def file_system(path: str) -> str:
    """Type of the file system that a path lies on; "" where that is not known."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    best = ("", "")
    for line in mounts:
        _, place, kind, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        inside = real == place or real.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best[0]):
            best = (place, kind)
    return best[1]


def _close_all() -> None:
    """SQLite's locks and its log do not survive in two processes."""
    for database in _databases:
        database._close()


hold_during_fork(_lock)
before_fork(_close_all)
