"""A few threads that call functions, and give what these return in order."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, Self, TypeVar

S = TypeVar("S")
T = TypeVar("T")

# What a function gave, or its error; and a function, its argument, where that goes.
_Outcome = tuple[Any, BaseException | None]
_Task = tuple[Callable[[Any], Any], Any, "SimpleQueue[_Outcome]"]


class OrderedThreadPool:
    """Threads of one user, which end with it; a context.

    The executors of `concurrent.futures` have locks whose holder is Python code: an
    interrupt between two of its steps leaves one locked, and a thread waiting for
    ever. Here everything passes through queues that an interrupt cannot cut in two.

    Parameters
    ----------
    n_threads : int
        They start when they are needed. With 1 there are none: whoever asks for a
        result computes it.
    name : str
        What their names begin with.
    """

    # Of the class, so that one whose making was interrupted can be deleted.
    _tasks: SimpleQueue[_Task | None] | None = None

    def __init__(self, n_threads: int, name: str) -> None:
        self._n_threads = n_threads
        self._name = name
        self._threads: list[threading.Thread] = []
        self._tasks = SimpleQueue()
        _live.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what was not begun, and wait for the rest."""
        assert self._tasks is not None
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __del__(self) -> None:
        # An interrupt may have kept the context from its end.
        if self._tasks is not None:
            self._tasks.put(None)

    def in_order(
        self, function: Callable[[S], T], items: Iterable[S], ahead: int
    ) -> Iterator[T]:
        """Results in the order of the items, computed up to `ahead` in advance."""
        if self._n_threads <= 1:
            for item in items:
                # Not by `map`: a StopIteration of the function would be its end.
                yield function(item)
            return
        waiting: deque[SimpleQueue[_Outcome]] = deque()
        for item in items:
            waiting.append(self._begin(function, item))
            if len(waiting) == ahead:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())

    def _begin(
        self, function: Callable[[Any], Any], item: Any
    ) -> SimpleQueue[_Outcome]:
        if _exiting:
            raise RuntimeError("the process is ending")
        assert self._tasks is not None
        if len(self._threads) < self._n_threads:
            name = f"{self._name}_{len(self._threads)}"
            thread = threading.Thread(
                target=_work, args=(self._tasks,), name=name, daemon=True
            )
            thread.start()
            self._threads.append(thread)
        outcome: SimpleQueue[_Outcome] = SimpleQueue()
        self._tasks.put((function, item, outcome))
        return outcome


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    """What a thread does until it is told to end."""
    while (task := tasks.get()) is not None:
        function, item, outcome = task
        try:
            outcome.put((function(item), None))
        except BaseException as error:
            outcome.put((None, error))
        del task, function, item, outcome  # nothing is kept while it waits
    tasks.put(None)  # for the next thread


def _result(outcome: SimpleQueue[_Outcome]) -> Any:
    value, error = outcome.get()
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # its traceback has this frame: they would keep each other


class ResourcePool(Generic[T]):
    """Things that threads use in turns, each by one at a time.

    Parameters
    ----------
    things : iterable
    """

    def __init__(self, things: Iterable[T]) -> None:
        self._free: SimpleQueue[T] = SimpleQueue()
        for thing in things:
            self._free.put(thing)

    def use(self, function: Callable[[T], S]) -> S:
        """What a function gives for the thing that has waited longest."""
        taken: list[T] = []
        try:
            # In one step of C: an interrupt after `get` would lose what it gave.
            taken.extend(islice(iter(self._free.get, None), 1))
            return function(taken[0])
        finally:
            for thing in taken:
                self._free.put(thing)


_live: weakref.WeakSet[OrderedThreadPool] = weakref.WeakSet()
_exiting = False


def _end_all() -> None:
    """End threads that a daemon thread of the user still needs.

    Where the interpreter ended them, in the middle of C++, the process would abort.
    """
    global _exiting
    _exiting = True
    for threads in list(_live):
        threads.__exit__()


atexit.register(_end_all)
