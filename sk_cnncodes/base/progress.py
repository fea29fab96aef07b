"""Progress bars that neither end nor stop the work that they tell of."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress
from functools import lru_cache
from typing import Any

from sk_cnncodes.base.forks import hold_during_fork


def progress_bar(*, disable: bool | None = False, **options: Any) -> Any:
    """A bar of tqdm; none where there is no standard error to show it on.

    Parameters
    ----------
    disable : bool or None, default=False
        None shows it on a terminal only.
    **options
        As tqdm takes them.
    """
    disable = True if sys.stderr is None else disable
    return _bar_class()(disable=disable, file=sys.stderr, **options)


@lru_cache(maxsize=1)
def _bar_class() -> Any:
    from tqdm.auto import tqdm
    from tqdm.std import TqdmDefaultWriteLock

    class Bar(tqdm):
        # No thread of its own, which would be left over.
        monitor_interval = 0
        # tqdm's lock for threads, without its lock for processes: one that is killed
        # while it writes would have all others wait for ever.
        _lock = TqdmDefaultWriteLock.th_lock

        def __init__(self, *arguments: Any, **options: Any) -> None:
            with self._lock:
                super().__init__(*arguments, **options)

        def display(self, *arguments: Any, **options: Any) -> Any:
            """A pipe that nobody reads, or a full disk, ends the bar alone."""
            try:
                return super().display(*arguments, **options)
            except (OSError, ValueError):
                self.disable = True

        def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:
            """Without leaving the lock taken where it is interrupted."""
            with nullcontext() if nolock else self._lock:
                return super().refresh(nolock=True)

        def close(self) -> None:
            with self._lock, suppress(OSError, ValueError):
                super().close()

    # A child would wait for a thread that writes: here, and in sys.stderr itself.
    hold_during_fork(Bar.get_lock())
    return Bar
