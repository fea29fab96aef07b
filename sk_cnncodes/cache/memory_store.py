"""MemoryStore: the rows of a code cache in the memory of a process."""

from __future__ import annotations

import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.cache.file_store import (
    CLAIM_SECONDS,
    FileState,
    Owner,
    Row,
    living_owners,
)

# Bytes that a row takes in memory besides its values: keys, objects, dictionary slot.
_ROW_OVERHEAD = 450
# Largest number of dropped rows that are remembered.
_MAX_DROPPED = 2**16

_Key = tuple[str, bytes]


class MemoryStore:
    """Codes in a dictionary, the least recently used first.

    If the codes in use do not fit, dropping the least recently used would drop each one
    before it is asked for again. So a code that was dropped comes back only if it was
    asked for twice since the last use of the code that would make room for it. A search
    over more images than fit then keeps a stable part of them, in every fold, and new
    images are taken in.

    Parameters
    ----------
    max_bytes : int

    Attributes
    ----------
    needed_bytes : int
        Size of all codes in use, once one that did not fit was asked for again; 0
        before.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._bytes = self._dropped_bytes = 0
        self.needed_bytes = 0
        # Codes and times of last use.
        self._rows: OrderedDict[_Key, tuple[np.ndarray, float]] = OrderedDict()
        # Sizes and times of the last two uses of codes that did not fit.
        self._dropped: OrderedDict[_Key, tuple[int, float, float]] = OrderedDict()
        # When those that were dropped were last asked for.
        self._asked: dict[_Key, float] = {}
        self._files: OrderedDict[bytes, tuple[FileState, bytes]] = OrderedDict()
        # Owner and end of claims.
        self._claims: dict[_Key, tuple[str, float]] = {}
        self._lock = fork_safe_lock()

    # -- rows ----------------------------------------------------------------

    def get(self, spec: str, images: Sequence[bytes]) -> list[np.ndarray | None]:
        now = time.monotonic()
        with self._lock:
            found: list[np.ndarray | None] = []
            for image in images:
                key = (spec, image)
                row = self._rows.get(key)
                if row is None:
                    found.append(None)
                    if key in self._dropped:
                        self._asked[key] = now
                    continue
                self._rows[key] = (row[0], now)
                self._rows.move_to_end(key)
                found.append(row[0])
            return found

    def put(self, rows: Iterable[Row]) -> None:
        self.put_and_drop(rows)

    def put_and_drop(self, rows: Iterable[Row]) -> list[Row]:
        """Store codes; return those that were dropped, or did not fit, for them."""
        now = time.monotonic()
        dropped: list[Row] = []
        with self._lock:
            for spec, images, codes in rows:
                for image, code in zip(images, codes, strict=True):
                    key = (spec, image)
                    if key in self._rows:
                        continue
                    size = code.nbytes + _ROW_OVERHEAD
                    # Copied, since a view would keep the whole batch alive.
                    row = np.array(code, np.float32)
                    if self._bytes + size > self.max_bytes and self._is_older(key):
                        self.needed_bytes = max(
                            self.needed_bytes, self._bytes + self._dropped_bytes
                        )
                        last_use = self._dropped[key][2]
                        asked = self._asked.get(key, now)
                        self._remember_dropped(key, size, last_use, asked)
                        dropped.append((spec, [image], row[None]))
                        continue
                    self._forget_dropped(key)
                    self._rows[key] = (row, now)
                    self._bytes += size
            return dropped + self._shrink(self.max_bytes)

    def has_room(self) -> bool:
        """Whether codes can be stored without dropping others."""
        return self._bytes < self.max_bytes

    def _is_older(self, key: _Key) -> bool:
        """Whether a code was dropped, and all others were used since its last use."""
        if key not in self._dropped or not self._rows:
            return False
        _, oldest = next(iter(self._rows.values()))
        return self._dropped[key][1] <= oldest

    def _remember_dropped(
        self, key: _Key, size: int, use_before: float, last_use: float
    ) -> None:
        self._forget_dropped(key)
        self._dropped[key] = (size, use_before, last_use)
        self._dropped_bytes += size
        while len(self._dropped) > _MAX_DROPPED:
            self._forget_dropped(next(iter(self._dropped)))

    def _forget_dropped(self, key: _Key) -> None:
        size, *_ = self._dropped.pop(key, (0, 0.0, 0.0))
        self._asked.pop(key, None)
        self._dropped_bytes -= size

    # -- files ---------------------------------------------------------------

    def file_digests(self, files: Sequence[FileState]) -> list[bytes | None]:
        with self._lock:
            found: list[bytes | None] = []
            for file in files:
                state, digest = self._files.get(file.path, (None, None))
                found.append(digest if state == file else None)
            return found

    def remember_files(self, files: Sequence[tuple[FileState, bytes]]) -> None:
        with self._lock:
            for state, digest in files:
                if state.path not in self._files:
                    self._bytes += _ROW_OVERHEAD
                self._files[state.path] = (state, digest)
            self._shrink(self.max_bytes)

    # -- claims --------------------------------------------------------------

    def claim(self, spec: str, images: Sequence[bytes], owner: str) -> set[bytes]:
        now, owner = time.monotonic(), str(owner)
        mine = set()
        with self._lock:
            for image in images:
                other, end = self._claims.get((spec, image), (owner, 0.0))
                if other == owner or end < now or not _is_of_this_process(other):
                    self._claims[spec, image] = (owner, now + CLAIM_SECONDS)
                    mine.add(image)
        return mine

    def release(self, owner: str) -> None:
        with self._lock:
            claims = [key for key, (other, _) in self._claims.items() if other == owner]
            for key in claims:
                del self._claims[key]

    # -- size ----------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        with self._lock:
            return len(self._rows), self._bytes

    def prune(self, max_bytes: int) -> None:
        with self._lock:
            self._shrink(max_bytes)
            if max_bytes == 0:
                self._dropped.clear()
                self._asked.clear()
                self._dropped_bytes = 0

    def _shrink(self, max_bytes: int) -> list[Row]:
        """Drop the least recently used codes, then files; return the codes."""
        dropped: list[Row] = []
        while self._bytes > max_bytes and self._rows:
            (spec, image), (code, last_use) = self._rows.popitem(last=False)
            size = code.nbytes + _ROW_OVERHEAD
            self._bytes -= size
            self._remember_dropped((spec, image), size, last_use, last_use)
            dropped.append((spec, [image], code[None]))
        while self._bytes > max_bytes and self._files:
            self._files.popitem(last=False)
            self._bytes -= _ROW_OVERHEAD
        return dropped


_numbers = itertools.count()


def new_owner() -> Owner:
    """A name for the owner of claims: the process, and a number in it."""
    owner = Owner(f"{os.getpid()}-{next(_numbers)}")
    living_owners[str(owner)] = owner
    return owner


def _is_of_this_process(owner: str) -> bool:
    """Whether an owner's threads exist: those of a parent do not after a fork."""
    # One that an interrupt kept from releasing its claims is gone.
    return owner.startswith(f"{os.getpid()}-") and owner in living_owners
