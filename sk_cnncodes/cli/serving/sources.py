"""Images that come while the command runs: paths on a stream, files in a folder."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.cli.common.image_arguments import CHUNK_SIZE
from sk_cnncodes.datasets.image_files import find_images

# Paths that are read ahead.
_AHEAD = 4 * CHUNK_SIZE
# Seconds between two looks into a watched folder, and how much of the time they take.
_INTERVAL = 0.1
_SHARE = 0.1
# Seconds that a file must stay as it is, and for which an unreadable one is tried.
_SETTLED = 0.2
_PATIENCE = 10.0
_RETRY = 1.0


def as_they_come(paths: Iterator[str]) -> Iterator[list[str]]:
    """Yield paths in parts: what there is without waiting, at least one.

    The iterator is advanced in a thread, which reads ahead a little.
    """
    read: queue.Queue[Any] = queue.Queue(_AHEAD)

    def fill() -> None:
        fault: BaseException | None = None
        try:
            for path in paths:
                read.put(path)
        except BaseException as error:  # raised where the paths are used
            fault = error
        read.put(_End(fault))

    threading.Thread(target=fill, name="sk_cnncodes-paths", daemon=True).start()
    while True:
        part, end = _available(read)
        if part:
            yield part
        if end is not None:
            if end.fault is not None:
                raise end.fault
            return


@dataclass(frozen=True)
class _End:
    fault: BaseException | None


def _available(read: queue.Queue[Any]) -> tuple[list[str], _End | None]:
    """Wait for one element; take others that are there."""
    part: list[str] = []
    while len(part) < CHUNK_SIZE:
        try:
            # With a time limit, Ctrl-C ends the waiting on Windows too.
            found = read.get_nowait() if part else read.get(timeout=0.5)
        except queue.Empty:
            if part:
                break
            continue
        if isinstance(found, _End):
            return part, found
        part.append(found)
    return part, None


# -- a watched folder -----------------------------------------------------------

# Size and time of the last change.
_State = tuple[int, int]


@dataclass
class _Waiting:
    """A new file that may not be written to its end."""

    state: _State
    since: float
    next_try: float


class WatchedFolder:
    """The image files that come into a folder, and those that change in it.

    Files that are there when this object is created are not taken. A file is taken when
    it has stayed as it is for a fifth of a second and can be read; one that cannot is
    waited for, since its writer may pause, and taken after 10 seconds without a change.
    The folder is looked at again and again, which needs no service of the system and
    works on network drives.

    Parameters
    ----------
    folder : Path
        Searched recursively; hidden files and those without the suffix of an image are
        left out.
    max_pixels : dict
        The parameter `max_pixels` for images that are tried, or {}.
    """

    def __init__(self, folder: Path, max_pixels: dict[str, Any]) -> None:
        self._folder = folder
        self._max_pixels = max_pixels
        self._taken = self._look()
        self._waiting: dict[str, _Waiting] = {}

    def leave_out(self, paths: Iterable[str]) -> None:
        """Do not take files that were taken otherwise."""
        same = {os.path.realpath(path): path for path in self._look()}
        for path in paths:
            found = same.get(os.path.realpath(path))
            state = None if found is None else _state(found)
            if found is not None and state is not None:
                self._taken[found] = state

    def parts(self) -> Iterator[list[str]]:
        """Yield new files, in parts, without end."""
        while True:
            start = time.monotonic()
            ready = self._ready(self._look(), start)
            for first in range(0, len(ready), CHUNK_SIZE):
                yield ready[first : first + CHUNK_SIZE]
            if not ready:
                looked = time.monotonic() - start
                time.sleep(max(_INTERVAL, looked * (1 / _SHARE - 1)))

    def _look(self) -> dict[str, _State]:
        try:
            paths = find_images(self._folder).paths
        except FileNotFoundError:
            if not self._folder.is_dir():
                raise
            return dict(self._taken)  # a folder in it has just gone
        states = ((path, _state(path)) for path in paths)
        return {path: state for path, state in states if state is not None}

    def _ready(self, found: dict[str, _State], now: float) -> list[str]:
        """The files that can be taken now; others are remembered."""
        ready = []
        waiting: dict[str, _Waiting] = {}
        for path, state in found.items():
            if self._taken.get(path) == state:
                continue
            known = self._waiting.get(path)
            if known is None or known.state != state:
                waiting[path] = _Waiting(state, now, now + _SETTLED)
            elif now < known.next_try:
                waiting[path] = known
            elif self._is_whole(path) or now - known.since >= _PATIENCE:
                ready.append(path)
                self._taken[path] = state
            else:
                known.next_try = now + _RETRY
                waiting[path] = known
        self._waiting = waiting
        self._taken = {path: s for path, s in self._taken.items() if path in found}
        return ready

    def _is_whole(self, path: str) -> bool:
        from sk_cnncodes.images.decode import read_rgb

        try:
            read_rgb(path, 0, **self._max_pixels)
        except (ImageError, OSError):
            return False
        return True


def _state(path: str) -> _State | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None  # it has just gone
    return status.st_size, status.st_mtime_ns
