"""CacheDatabase: connection to the SQLite file of a code cache, and error handling."""

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

# "skcc" in SQLite's header field for applications: marks a file as a code cache.
APPLICATION_ID = 0x736B6363
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE specs (id INTEGER PRIMARY KEY, digest TEXT UNIQUE, used INTEGER);
CREATE TABLE codes (spec INTEGER, image BLOB, checksum INTEGER, code BLOB,
                    PRIMARY KEY (spec, image));
CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER,
                    ctime_ns INTEGER, digest BLOB) WITHOUT ROWID;
"""
# Timeout of writers for the lock; readers never wait in WAL mode.
BUSY_SECONDS = 30.0
# After a timeout, writers use the short timeout below for this long: another process
# may hold the lock for hours, and there are many writes.
_BACKOFF_SECONDS = 300.0
_BACKOFF_BUSY_SECONDS = 0.1
# WAL needs memory shared by all processes, which these do not provide.
_NETWORK_FILE_SYSTEMS = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "gpfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "vboxsf"),
)

T = TypeVar("T")

# Held during every use of SQLite. One lock for all files, so that none is in use
# during a fork.
_lock = threading.RLock()
_databases: weakref.WeakSet[CacheDatabase] = weakref.WeakSet()


class CacheDatabase:
    """Connection to the file of a code cache.

    It is opened on first use, and closed before the process forks, since SQLite's
    locks and log must not be shared with a child process.

    Parameters
    ----------
    path : str

    Attributes
    ----------
    read_only : str
        Why nothing can be written; empty if the file is writable.
    spec_numbers : dict of str to int
        Row numbers of code specs by their digests, valid for the open connection.
    """

    # A class attribute, so that `__del__` works if `__init__` was interrupted.
    _connection: sqlite3.Connection | None = None

    def __init__(self, path: str) -> None:
        self._path = path
        self._fault: str | None = None
        # Device and inode of the file that the connection or the fault belongs to.
        self._file: tuple[int, int] | None = None
        self._backoff_until: float | None = None
        self.read_only = ""
        self.spec_numbers: dict[str, int] = {}
        with _lock:
            _databases.add(self)

    def use(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function with the connection.

        Raises
        ------
        CacheError
            If SQLite raises an error.
        """
        with _lock:
            self._reset_if_replaced()
            if self._fault is not None:
                raise CacheError(self._fault)
            try:
                self._end_backoff()
                db = self._connect()
                try:
                    return action(db)
                finally:
                    # Open after an error or an interrupt only: release the lock.
                    if db.in_transaction:
                        db.rollback()
            except sqlite3.Error as error:
                raise CacheError(self._error_message(error)) from error

    def _reset_if_replaced(self) -> None:
        """Close the connection and clear faults if the file was deleted or replaced."""
        known = self._connection is not None or self._fault is not None
        if known and self._file != file_identity(self._path):
            self._close()
            self._fault, self.read_only = None, ""

    @property
    def busy_timeout(self) -> float:
        """Seconds to wait for a lock held by another process."""
        return BUSY_SECONDS if self._backoff_until is None else _BACKOFF_BUSY_SECONDS

    def _end_backoff(self) -> None:
        """Restore the long timeout once the back-off time is over."""
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

    def _connect(self) -> sqlite3.Connection:
        """The connection, opened if needed: read-only if the file is not writable."""
        if self._connection is None:
            kind = file_system(self._path)
            if kind in _NETWORK_FILE_SYSTEMS:
                raise self._unusable(
                    f"it is on a network file system ({kind}), where SQLite's "
                    "write-ahead log does not work. Expected a path on a local disk"
                )
            try:
                self._connection = self._open()
            except sqlite3.OperationalError as error:
                cannot_write = _name(error).startswith(
                    ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_IOERR")
                )
                if not cannot_write or not os.access(self._path, os.R_OK):
                    raise
                self._connection = self._open_read_only()
            self._file = file_identity(self._path)
            open_databases[id(self)] = self._file
        return self._connection

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path,
            timeout=self.busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._check(db, make=True)
            # A power cut may lose the last rows; killing the process does not.
            db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection, *, make: bool) -> None:
        """Create the tables in an empty file; refuse a file that is no code cache."""
        if not self._is_ours(db) and make:
            _use_write_ahead_log(db, self.busy_timeout)
            with transaction(db):
                if not self._is_ours(db):  # another process may have been faster
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
        """Whether a file is a code cache. An empty file is not one yet."""
        # In this order, since another process may commit tables and mark in between.
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (mark,) = db.execute("PRAGMA application_id").fetchone()
        if mark != APPLICATION_ID and tables:
            raise self._unusable(
                "it is an SQLite database of another program. Expected a code cache, "
                "or a path without a file"
            )
        return bool(mark == APPLICATION_ID)

    def _open_read_only(self) -> sqlite3.Connection:
        """Open a file that cannot be written, to read its codes."""
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
                # Without the index of its log, a file in WAL mode can be read only
                # as immutable. If it does change, checksums reject wrong rows.
                db.close()
                log = Path(f"{self._path}-wal")
                if log.exists() and log.stat().st_size > 0:
                    raise self._unusable(
                        "a process was killed while using it, and its last codes can "
                        "be read only with write permission and free disk space"
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
        self.read_only = self._read_only_message("it cannot be written")
        return db

    def _is_writable(self) -> bool:
        return all(os.access(p, os.W_OK) for p in (self._path, Path(self._path).parent))

    # -- faults --------------------------------------------------------------

    def _unusable(self, reason: str) -> CacheError:
        """Record a fault and return its error; the file is not used until replaced."""
        self._file = file_identity(self._path)
        self._fault = (
            f"code cache {self._path!r}: {reason}. Codes are computed without it."
        )
        return CacheError(self._fault)

    def _read_only_message(self, reason: str) -> str:
        return (
            f"code cache {self._path!r}: {reason}. No codes are stored; existing codes "
            "are used."
        )

    def _error_message(self, error: sqlite3.Error) -> str:
        """The message for an SQLite error; sets the state that follows from it."""
        name, text = _name(error), str(error)
        if name.startswith("SQLITE_FULL"):
            self.read_only = self._read_only_message("the disk is full")
            return self.read_only
        if name.startswith("SQLITE_READONLY"):
            self.read_only = self._read_only_message("it cannot be written")
            return self.read_only
        if name.startswith("SQLITE_IOERR") and "READ" not in name:
            # Disk quotas and limits on file sizes raise this, too.
            self.read_only = self._read_only_message(f"it cannot be written ({text})")
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
            reason = "it is not an SQLite file. Expected a code cache, or a path"
            return str(self._unusable(f"{reason} without a file"))
        if name.startswith("SQLITE_CANTOPEN"):
            reason = f"it cannot be opened ({text}). Expected a path in an existing, "
            return str(
                self._unusable(f"{reason}writable folder, and free file handles")
            )
        if name.startswith("SQLITE_CORRUPT"):
            reason = f"it is damaged ({text}). Delete it to start over"
            return str(self._unusable(reason))
        return str(self._unusable(f"it cannot be used ({text})"))


def set_busy_timeout(db: sqlite3.Connection, seconds: float) -> None:
    db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")


def _name(error: sqlite3.Error) -> str:
    """SQLite's name for an error, such as SQLITE_FULL."""
    return str(getattr(error, "sqlite_errorname", ""))


def _use_write_ahead_log(db: sqlite3.Connection, busy_timeout: float) -> None:
    """Switch to WAL mode; retries, since SQLite's busy timeout does not apply here."""
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
    """BEGIN IMMEDIATE ... COMMIT; `CacheDatabase.use` rolls back after an error."""
    db.execute("BEGIN IMMEDIATE")
    yield
    db.execute("COMMIT")


def file_system(path: str) -> str:
    """Type of the file system that holds a path; "" if unknown."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    best = ("", "")
    for line in mounts:
        _, mount_point, kind, *_ = line.split(" ")
        mount_point = mount_point.replace("\\040", " ")
        inside = real == mount_point or real.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best[0]):
            best = (mount_point, kind)
    return best[1]


def _close_all() -> None:
    """Close all connections: their locks and logs must not be shared with a child."""
    for database in _databases:
        database._close()


hold_during_fork(_lock)
before_fork(_close_all)
