"""Progress bars that neither abort nor block the work they show."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import lru_cache
from typing import Any

from sk_cnncodes.base.forks import hold_during_fork


def progress_bar(*, disable: bool | None = False, **options: Any) -> Any:
    """A tqdm bar, disabled if there is no standard error.

    Parameters
    ----------
    disable : bool or None, default=False
        None shows it only on a terminal.
    **options
        Passed to tqdm.
    """
    disable = True if sys.stderr is None else disable
    return _bar_class()(disable=disable, file=sys.stderr, **options)


class OptionalBar:
    """Context manager for a progress bar; imports nothing unless it is shown.

    Parameters
    ----------
    shown : bool
    total : int or None
        How much there is to do, if that is known.
    show : callable or None
        Is called with the share that is done, from 0 to 1, if `total` is known.
    **options
        Passed to tqdm.
    """

    def __init__(
        self,
        shown: bool,
        *,
        total: int | None,
        show: Callable[[float], None] | None = None,
        **options: Any,
    ) -> None:
        self._shown = shown
        self._total = total
        self._show = show
        self._options = options
        self._count = 0
        self._bar: Any = None

    def __enter__(self) -> None:
        if self._shown:
            self._bar = progress_bar(total=self._total, **self._options)

    def advance(self, count: int) -> None:
        """Count some more as done."""
        self._count += count
        if self._bar is not None:
            self._bar.update(count)
        if self._show is not None and self._total:
            self._show(self._count / self._total)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


@lru_cache(maxsize=1)
def _bar_class() -> Any:
    from tqdm.auto import tqdm
    from tqdm.std import TqdmDefaultWriteLock

    class Bar(tqdm):
        # No monitor thread, which would outlive the bar.
        monitor_interval = 0
        # tqdm's lock for threads, without its lock for processes: a process killed
        # while writing would block all others forever.
        _lock = TqdmDefaultWriteLock.th_lock

        def __init__(self, *arguments: Any, **options: Any) -> None:
            with self._lock:
                super().__init__(*arguments, **options)

        def display(self, *arguments: Any, **options: Any) -> Any:
            """Disable the bar if standard error is a closed pipe or a full disk."""
            try:
                return super().display(*arguments, **options)
            except (OSError, ValueError):
                self.disable = True

        def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:
            """Refresh the bar; an interrupt does not leave the lock held."""
            with nullcontext() if nolock else self._lock:
                return super().refresh(nolock=True)

        def close(self) -> None:
            with self._lock, suppress(OSError, ValueError):
                super().close()

    # A child would wait for this lock, or that of sys.stderr, if a thread writes.
    hold_during_fork(Bar.get_lock())
    return Bar
