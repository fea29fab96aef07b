"""A thread pool with ordered results, and a pool of shared resources."""

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

# Value and error of a call; a function, its argument and the queue for its outcome.
_Outcome = tuple[Any, BaseException | None]
_Task = tuple[Callable[[Any], Any], Any, "SimpleQueue[_Outcome]"]


class OrderedThreadPool:
    """Thread pool with ordered results; a context manager that ends its threads.

    In the executors of `concurrent.futures`, Python code holds locks: an interrupt
    between two of its steps can leave one locked and block a thread forever. Here
    everything passes through queues whose operations an interrupt cannot split.

    Parameters
    ----------
    n_threads : int
        Threads are started on demand. With 1 there are none: the caller computes
        the results.
    name : str
        Prefix of the thread names.
    """

    # On the class, so that `__del__` works if `__init__` was interrupted.
    _tasks: SimpleQueue[_Task | None] | None = None

    def __init__(self, n_threads: int, name: str) -> None:
        self._n_threads = n_threads
        self._name = name
        self._threads: list[threading.Thread] = []
        self._tasks = SimpleQueue()
        _live_pools.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop pending tasks and wait for running ones."""
        assert self._tasks is not None
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __del__(self) -> None:
        # An interrupt may have skipped `__exit__`.
        if self._tasks is not None:
            self._tasks.put(None)

    def in_order(
        self, function: Callable[[S], T], items: Iterable[S], ahead: int
    ) -> Iterator[T]:
        """Yield results in the order of the items, up to `ahead` of them in advance."""
        if self._n_threads <= 1:
            for item in items:
                # `map` would end silently on a StopIteration of the function.
                yield function(item)
            return
        waiting: deque[SimpleQueue[_Outcome]] = deque()
        for item in items:
            waiting.append(self._submit(function, item))
            if len(waiting) == ahead:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())

    def _submit(
        self, function: Callable[[Any], Any], item: Any
    ) -> SimpleQueue[_Outcome]:
        if _exiting:
            raise RuntimeError("the process is exiting")
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
    """Run tasks until a None arrives."""
    while (task := tasks.get()) is not None:
        function, item, outcome = task
        try:
            outcome.put((function(item), None))
        except BaseException as error:
            outcome.put((None, error))
        del task, function, item, outcome  # keep nothing alive while waiting
    tasks.put(None)  # for the next thread


def _result(outcome: SimpleQueue[_Outcome]) -> Any:
    """Wait for an outcome and return its value, or raise its error."""
    value, error = outcome.get()
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # breaks the reference cycle with its traceback


class ResourcePool(Generic[T]):
    """Resources that threads share, each used by one thread at a time.

    Parameters
    ----------
    resources : iterable
    """

    def __init__(self, resources: Iterable[T]) -> None:
        self._free: SimpleQueue[T] = SimpleQueue()
        for resource in resources:
            self._free.put(resource)

    def use(self, function: Callable[[T], S]) -> S:
        """Call a function with the resource that has been free longest."""
        taken: list[T] = []
        try:
            # A single step in C: an interrupt after `get` would lose its result.
            taken.extend(islice(iter(self._free.get, None), 1))
            return function(taken[0])
        finally:
            for resource in taken:
                self._free.put(resource)


_live_pools: weakref.WeakSet[OrderedThreadPool] = weakref.WeakSet()
_exiting = False


def _end_all() -> None:
    """End pools that a daemon thread of the user still uses.

    If the interpreter ended their threads inside C++ code, the process would abort.
    """
    global _exiting
    _exiting = True
    for pool in list(_live_pools):
        pool.__exit__()


atexit.register(_end_all)
