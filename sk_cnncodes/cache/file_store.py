"""FileStore: the rows of a code cache in an SQLite file."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sk_cnncodes.base.exceptions import CacheError
from sk_cnncodes.base.files import is_running
from sk_cnncodes.cache.database import (
    CacheDatabase,
    set_busy_timeout,
    transaction,
)

# Number of images or paths per SQL statement.
_CHUNK = 500
# Resolution of a spec's last-used time; without it, every read would also write.
_USE_SECONDS = 3600
_CODE = np.dtype("<f4")
# Bytes in the file for each byte of a code: what is left free in its pages.
_PAGE_SHARE = 1.3
# Share of the largest size that is kept when codes are dropped.
_KEPT_SHARE = 0.97
# Seconds during which codes that were dropped for others do not come back.
_DROPPED_SECONDS = 3600.0
# Seconds after which images that were claimed and not computed may be claimed again.
CLAIM_SECONDS = 120.0
# Spec digest, image digests, and float32 codes of shape (n_images, code_length).
Row = tuple[str, Sequence[bytes], np.ndarray]


class Owner(str):
    """Name of an owner of claims, which end with the object."""


living_owners: weakref.WeakValueDictionary[str, Owner] = weakref.WeakValueDictionary()

_DROPPED = """
CREATE TABLE IF NOT EXISTS dropped (spec INTEGER, image BLOB, size INTEGER, time REAL,
                                    PRIMARY KEY (spec, image)) WITHOUT ROWID
"""
_CLAIMS = """
CREATE TABLE IF NOT EXISTS claims (spec TEXT, image BLOB, owner TEXT, end REAL,
                                   PRIMARY KEY (spec, image)) WITHOUT ROWID
"""


@dataclass(frozen=True)
class FileState:
    """Key of a file's remembered digest: a change of content changes a field of it.

    `path` is the real path with device and inode in front, as bytes, since file names
    need not be valid UTF-8.
    """

    path: bytes
    size: int
    mtime_ns: int
    ctime_ns: int


class FileStore:
    """Codes in an SQLite file in WAL mode.

    Every method raises `CacheError` if the file cannot be used.

    Parameters
    ----------
    path : str
    max_bytes : int
        Size above which codes are dropped: of specs that were not used lately, then
        the oldest.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        self._database = CacheDatabase(path)
        self.max_bytes = max_bytes
        self.needed_bytes = 0

    # -- rows ----------------------------------------------------------------

    def get(self, spec: str, images: Sequence[bytes]) -> list[np.ndarray | None]:
        return self._database.use(lambda db: self._get(db, spec, images))

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
                # A row damaged on disk is a miss, so it is computed and stored again.
                if _checksum(spec, image, code) == checksum:
                    found[image] = np.frombuffer(code, _CODE)
        return [found.get(image) for image in images]

    def put(self, rows: Iterable[Row]) -> None:
        self._database.use(lambda db: self._put(db, rows))

    def _put(self, db: sqlite3.Connection, rows: Iterable[Row]) -> None:
        if self._database.read_only:
            raise CacheError(self._database.read_only)
        rows = list(rows)
        with transaction(db):
            size = int(_PAGE_SHARE * sum(codes.nbytes for _, _, codes in rows))
            if self._pages_in_use(db) + size > self.max_bytes:
                db.execute(_DROPPED)
                rows = self._refuse_dropped(db, rows)
                if rows:
                    self._make_room(db, size)
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

    def _refuse_dropped(self, db: sqlite3.Connection, rows: list[Row]) -> list[Row]:
        """Rows without codes that were dropped lately to make room for others.

        If the codes in use do not fit, they would be dropped for each other, and none
        would be found again. So those that are stored stay.
        """
        since = time.time() - _DROPPED_SECONDS
        kept: list[Row] = []
        n_refused = 0
        for spec, images, codes in rows:
            marks = ",".join("?" * len(images))
            query = (
                "SELECT image FROM dropped WHERE time > ? AND spec = "
                f"(SELECT id FROM specs WHERE digest = ?) AND image IN ({marks})"
            )
            dropped = {image for (image,) in db.execute(query, (since, spec, *images))}
            n_refused += len(dropped)
            stay = [i for i, image in enumerate(images) if image not in dropped]
            if stay:
                kept.append((spec, [images[i] for i in stay], codes[stay]))
        if n_refused:
            query = "SELECT sum(size) FROM dropped WHERE time > ?"
            (size,) = db.execute(query, (since,)).fetchone()
            self.needed_bytes = self._pages_in_use(db) + int(_PAGE_SHARE * size)
        return kept

    def _make_room(self, db: sqlite3.Connection, size: int) -> None:
        """Drop the oldest codes so that `size` bytes fit, and remember which."""
        db.execute(
            "DELETE FROM dropped WHERE time < ?", (time.time() - _DROPPED_SECONDS,)
        )
        # Some more, so that not every following write drops rows.
        self._drop_oldest(db, int(_KEPT_SHARE * self.max_bytes) - size, remember=True)

    # -- claims --------------------------------------------------------------

    def claim(self, spec: str, images: Sequence[bytes], owner: str) -> set[bytes]:
        name = str(owner)
        return self._database.use(lambda db: self._claim(db, spec, images, name))

    def _claim(
        self, db: sqlite3.Connection, spec: str, images: Sequence[bytes], owner: str
    ) -> set[bytes]:
        if self._database.read_only:
            return set(images)
        now = time.time()
        with transaction(db):
            db.execute(_CLAIMS)
            marks = ",".join("?" * len(images))
            claimed = db.execute(
                "SELECT image, owner, end FROM claims "
                f"WHERE spec = ? AND image IN ({marks})",
                (spec, *images),
            ).fetchall()
            others = {
                image
                for image, other, end in claimed
                if other != owner and end > now and _is_alive(other)
            }
            mine = [image for image in images if image not in others]
            db.executemany(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)",
                [(spec, image, owner, now + CLAIM_SECONDS) for image in mine],
            )
        return set(mine)

    def release(self, owner: str) -> None:
        self._database.use(lambda db: self._release(db, str(owner)))

    def _release(self, db: sqlite3.Connection, owner: str) -> None:
        if not self._database.read_only:
            with transaction(db):
                db.execute(_CLAIMS)
                db.execute("DELETE FROM claims WHERE owner = ?", (owner,))

    # -- files ---------------------------------------------------------------

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        return self._database.use(lambda db: self._file_digests(db, files))

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
        self._database.use(lambda db: self._remember_files(db, files))

    def _remember_files(
        self, db: sqlite3.Connection, files: Sequence[tuple[FileState, bytes]]
    ) -> None:
        if self._database.read_only:
            return
        with transaction(db):
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                [(f.path, f.size, f.mtime_ns, f.ctime_ns, d) for f, d in files],
            )

    # -- size ----------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        query = "SELECT count(*), coalesce(sum(length(code)), 0) FROM codes"
        rows, size = self._database.use(lambda db: db.execute(query).fetchone())
        return int(rows), int(size)

    def prune(self, max_bytes: int) -> None:
        self._database.use(lambda db: self._prune(db, max_bytes))

    def _prune(self, db: sqlite3.Connection, max_bytes: int) -> None:
        with transaction(db):
            if max_bytes == 0:
                # Specs are kept, so that their numbers are never reused.
                db.execute("DELETE FROM codes")
                db.execute("DELETE FROM files")
                db.execute(_DROPPED)
                db.execute("DELETE FROM dropped")
            self._drop_oldest(db, max_bytes, remember=False)

    def _drop_oldest(
        self, db: sqlite3.Connection, max_bytes: int, *, remember: bool
    ) -> None:
        """Drop codes: least recently used specs first, and their oldest rows first."""
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
            if remember:
                db.executemany(
                    "INSERT OR REPLACE INTO dropped SELECT spec, image, length(code), "
                    f"{time.time()} FROM codes WHERE rowid = ?",
                    dropped,
                )
            db.executemany("DELETE FROM codes WHERE rowid = ?", dropped)

    @staticmethod
    def _pages_in_use(db: sqlite3.Connection) -> int:
        """Size of the pages that are not free, in bytes."""
        values = [
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        ]
        return int((values[0] - values[1]) * values[2])

    def _spec(self, db: sqlite3.Connection, digest: str, *, make: bool) -> int | None:
        """Number of a spec; its last-used time is updated about once an hour."""
        if digest in self._database.spec_numbers:
            return self._database.spec_numbers[digest]
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
        if now - row[1] > _USE_SECONDS and not self._database.read_only:
            _update_last_use(db, row[0], now, self._database.busy_timeout)
        if not db.in_transaction:
            self._database.spec_numbers[digest] = row[0]
        return int(row[0])


def _checksum(spec: str, image: bytes, code: bytes) -> int:
    """Checksum of a row and its key: a damaged file may return another row's code."""
    return zlib.crc32(code, zlib.crc32(image, zlib.crc32(spec.encode())))


def _is_alive(owner: str) -> bool:
    """Whether the process that an owner names exists."""
    if owner.startswith(f"{os.getpid()}-"):
        return owner in living_owners
    process = owner.partition("-")[0]
    return not process.isdecimal() or is_running(int(process))


def _update_last_use(
    db: sqlite3.Connection, spec: int, now: int, busy_timeout: float
) -> None:
    """Set when a spec was last used; skipped if the file is locked."""
    set_busy_timeout(db, 0)
    try:
        db.execute("UPDATE specs SET used = ? WHERE id = ?", (now, spec))
    except sqlite3.OperationalError:
        pass  # readers do not wait; the next process will set it
    finally:
        set_busy_timeout(db, busy_timeout)
