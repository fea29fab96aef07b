"""FileStore: the rows of a code cache in one SQLite file."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sk_cnncodes.exceptions import CacheError

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
_BUSY_SECONDS = 30.0
# Numbers of images or paths in one statement.
_CHUNK = 500
# How exactly the last use of a spec is kept: each reading would be a writing else.
_USE_SECONDS = 3600
# WAL needs memory that all processes share, which these do not have.
_NETWORK_FILE_SYSTEMS = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "gpfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "vboxsf"),
)
_CODE = np.dtype("<f4")

T = TypeVar("T")


# Held while SQLite is used: one for all files, so that a fork finds none at work.
_lock = threading.RLock()
_stores: weakref.WeakSet[FileStore] = weakref.WeakSet()


@dataclass(frozen=True)
class FileState:
    """What is remembered a file's digest by: a change of content changes one of it."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int


class FileStore:
    """Codes in a SQLite file in WAL mode.

    It has one connection, opened when it is first needed, and closed before the
    process forks: SQLite's locks and its log do not survive in two processes. Every
    method raises `CacheError` where the file cannot be used.

    Parameters
    ----------
    path : str
    max_bytes : int
        Size of the codes above which the least recently used are dropped.
    """

    # Of the class, so that a store whose making was interrupted can be deleted.
    _connection: sqlite3.Connection | None = None

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._specs: dict[str, int] = {}
        self._fault: str | None = None
        self._read_only = ""  # why nothing can be written, if so
        with _lock:
            _stores.add(self)

    # -- rows ----------------------------------------------------------------

    def get(self, spec: str, images: Sequence[bytes]) -> list[np.ndarray | None]:
        return self._use(lambda db: self._get(db, spec, images))

    def _get(
        self, db: sqlite3.Connection, spec: str, images: Sequence[bytes]
    ) -> list[np.ndarray | None]:
        number = self._spec(db, spec, make=False)
        if number is None:
            return [None] * len(images)
        found: dict[bytes, np.ndarray] = {}
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            rows = db.execute(
                "SELECT image, checksum, code FROM codes "
                f"WHERE spec = ? AND image IN ({marks})",
                (number, *part),
            )
            for image, checksum, code in rows:
                # A row that was damaged on the disk is computed and stored again.
                if _checksum(spec, image, code) == checksum:
                    found[image] = np.frombuffer(code, _CODE)
        return [found.get(image) for image in images]

    def put(self, rows: Iterable[tuple[str, Sequence[bytes], np.ndarray]]) -> None:
        self._use(lambda db: self._put(db, rows))

    def _put(
        self,
        db: sqlite3.Connection,
        rows: Iterable[tuple[str, Sequence[bytes], np.ndarray]],
    ) -> None:
        if self._read_only:
            raise CacheError(self._read_only)
        with _transaction(db):
            for spec, images, codes in rows:
                number = self._spec(db, spec, make=True)
                blobs = [code.astype(_CODE, copy=False).tobytes() for code in codes]
                db.executemany(
                    "INSERT OR REPLACE INTO codes VALUES (?, ?, ?, ?)",
                    [
                        (number, image, _checksum(spec, image, blob), blob)
                        for image, blob in zip(images, blobs, strict=True)
                    ],
                )
        if self._pages_in_use(db) > self._max_bytes:
            # Some room at once, so that not every further row evicts another.
            self._prune(db, int(0.9 * self._max_bytes))

    # -- files ---------------------------------------------------------------

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        return self._use(lambda db: self._file_digests(db, files))

    def _file_digests(
        self, db: sqlite3.Connection, files: Sequence[FileState]
    ) -> list[bytes | None]:
        found: dict[FileState, bytes] = {}
        for start in range(0, len(files), _CHUNK):
            part = files[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            for *state, digest in db.execute(
                f"SELECT * FROM files WHERE path IN ({marks})", [f.path for f in part]
            ):
                found[FileState(*state)] = digest
        return [found.get(file) for file in files]

    def remember_files(self, files: Sequence[tuple[FileState, bytes]]) -> None:
        self._use(lambda db: self._remember_files(db, files))

    def _remember_files(
        self, db: sqlite3.Connection, files: Sequence[tuple[FileState, bytes]]
    ) -> None:
        if self._read_only:
            return
        with _transaction(db):
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                [(f.path, f.size, f.mtime_ns, f.ctime_ns, d) for f, d in files],
            )

    # -- size ----------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        query = "SELECT count(*), coalesce(sum(length(code)), 0) FROM codes"
        rows, size = self._use(lambda db: db.execute(query).fetchone())
        return int(rows), int(size)

    def prune(self, max_bytes: int) -> None:
        self._use(lambda db: self._prune(db, max_bytes))

    def _prune(self, db: sqlite3.Connection, max_bytes: int) -> None:
        """Drop codes, specs that were not used for longest first, oldest rows first."""
        with _transaction(db):
            if max_bytes == 0:
                # Specs stay: their numbers must never mean another one.
                db.execute("DELETE FROM codes")
                db.execute("DELETE FROM files")
            while (excess := self._pages_in_use(db) - max_bytes) > 0:
                oldest = db.execute(
                    "SELECT codes.rowid, length(code) FROM specs "
                    "JOIN codes ON codes.spec = specs.id "
                    "WHERE specs.id = (SELECT id FROM specs WHERE id IN "
                    "(SELECT spec FROM codes) ORDER BY used, id LIMIT 1) "
                    "ORDER BY codes.rowid LIMIT 10000"
                ).fetchall()
                if not oldest:
                    break
                dropped = []
                for rowid, size in oldest:
                    dropped.append((rowid,))
                    excess -= size
                    if excess <= 0:
                        break
                db.executemany("DELETE FROM codes WHERE rowid = ?", dropped)

    @staticmethod
    def _pages_in_use(db: sqlite3.Connection) -> int:
        """Bytes of the pages that hold something."""
        values = [
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        ]
        return int((values[0] - values[1]) * values[2])

    def _spec(self, db: sqlite3.Connection, digest: str, *, make: bool) -> int | None:
        """Number of a spec; its use is noted about once an hour."""
        if digest in self._specs:
            return self._specs[digest]
        now = int(time.time())
        row = db.execute(
            "SELECT id, used FROM specs WHERE digest = ?", (digest,)
        ).fetchone()
        if row is None and not make:
            return None
        if row is None:
            db.execute(
                "INSERT OR IGNORE INTO specs (digest, used) VALUES (?, ?)",
                (digest, now),
            )
            query = "SELECT id FROM specs WHERE digest = ?"
            return int(db.execute(query, (digest,)).fetchone()[0])
        if now - row[1] > _USE_SECONDS and not self._read_only:
            _note_use(db, row[0], now)
        if not db.in_transaction:
            self._specs[digest] = row[0]
        return int(row[0])

    # -- the connection ------------------------------------------------------

    def _use(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with the connection; SQLite's errors become a CacheError."""
        with _lock:
            if self._fault is not None:
                raise CacheError(self._fault)
            try:
                db = self._connected()
                try:
                    return action(db)
                finally:
                    # An error or an interrupt ended it: nobody must wait for it.
                    if db.in_transaction:
                        db.rollback()
            except sqlite3.Error as error:
                raise CacheError(self._explained(error)) from error

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._specs = {}

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
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path,
            timeout=_BUSY_SECONDS,
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
            _use_write_ahead_log(db)
            with _transaction(db):
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
            except sqlite3.OperationalError:
                if self._is_writable():
                    raise
                # Without its log's index, a file in WAL mode can only be read as one
                # that nobody changes. Should somebody do so all the same, checksums
                # keep wrong rows away.
                db.close()
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
        self._read_only = self._said_read_only("it cannot be written")
        return db

    def _is_writable(self) -> bool:
        return all(os.access(p, os.W_OK) for p in (self._path, Path(self._path).parent))

    # -- faults --------------------------------------------------------------

    def _unusable(self, reason: str) -> CacheError:
        """An error after which the file is not touched again."""
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
            self._read_only = self._said_read_only("the disk is full")
            return self._read_only
        if name.startswith("SQLITE_READONLY"):
            self._read_only = self._said_read_only("it cannot be written")
            return self._read_only
        if name.startswith("SQLITE_IOERR") and "READ" not in name:
            # So end a quota and a limit on the size of files, too.
            self._read_only = self._said_read_only(f"it cannot be written ({text})")
            return self._read_only
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return (
                f"code cache {self._path!r}: other processes kept it locked for "
                f"{_BUSY_SECONDS:.0f} s. Some codes were not stored."
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


def _checksum(spec: str, image: bytes, code: bytes) -> int:
    """Of a row's key too: a file that is damaged may give one row for another."""
    return zlib.crc32(code, zlib.crc32(image, zlib.crc32(spec.encode())))


def _name(error: sqlite3.Error) -> str:
    """SQLite's name of an error, such as SQLITE_FULL."""
    return str(getattr(error, "sqlite_errorname", ""))


def _use_write_ahead_log(db: sqlite3.Connection) -> None:
    """Switch to WAL, for which SQLite does not wait where others do so too."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _note_use(db: sqlite3.Connection, spec: int, now: int) -> None:
    """Note when a spec was used, unless a writer is at work: readers do not wait."""
    db.execute("PRAGMA busy_timeout = 0")
    try:
        db.execute("UPDATE specs SET used = ? WHERE id = ?", (now, spec))
    except sqlite3.OperationalError:
        pass  # the next process will note it
    finally:
        db.execute(f"PRAGMA busy_timeout = {int(1000 * _BUSY_SECONDS)}")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE ... COMMIT; `FileStore._use` ends what does not get there."""
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


def _before_fork() -> None:
    """Wait for other threads, and close all files."""
    _lock.acquire()
    for store in _stores:
        store._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_lock.release,
        after_in_child=_lock.release,
    )
