"""Thread pools: ordered results, bounded work, and threads that end."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from sk_cnncodes.base.threads import OrderedThreadPool, ResourcePool


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("tested")]


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_results_come_in_order(n_threads: int, ahead: int) -> None:
    def late_if_even(number: int) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return -number

    with OrderedThreadPool(n_threads, "tested") as threads:
        assert list(threads.in_order(late_if_even, range(20), ahead)) == [
            -number for number in range(20)
        ]
        assert len(own_threads()) == (0 if n_threads == 1 else n_threads)
    assert not own_threads()


@pytest.mark.parametrize("n_threads", [1, 3])
def test_no_more_than_ahead_is_started(n_threads: int) -> None:
    started: list[int] = []
    with OrderedThreadPool(n_threads, "tested") as threads:
        results = threads.in_order(started.append, range(100), 4)
        for _ in range(10):
            next(results)
    assert len(started) <= 14


@pytest.mark.parametrize("n_threads", [1, 3])
def test_an_error_is_raised_in_order(n_threads: int) -> None:
    def invert(number: int) -> float:
        return 1 / number

    with OrderedThreadPool(n_threads, "tested") as threads:
        results = threads.in_order(invert, [1, 2, 0, 4], 4)
        assert [next(results), next(results)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)
        # The threads continue with other work.
        assert list(threads.in_order(invert, [4, 2], 2)) == [0.25, 0.5]
    assert not own_threads()


def test_pending_items_are_dropped() -> None:
    started: list[int] = []

    def wait(number: int) -> None:
        started.append(number)
        time.sleep(0.05)

    with OrderedThreadPool(2, "tested") as threads:
        next(threads.in_order(wait, range(100), 50))
    assert len(started) < 50
    assert not own_threads()


def test_threads_end_without_a_context() -> None:
    threads = OrderedThreadPool(2, "tested")
    assert list(threads.in_order(abs, [-1, -2], 2)) == [1, 2]
    assert len(own_threads()) == 2
    del threads
    end = time.monotonic() + 10
    while own_threads() and time.monotonic() < end:
        time.sleep(0.001)
    assert not own_threads()


def test_no_references_are_kept() -> None:
    class Large:
        pass

    with OrderedThreadPool(2, "tested") as threads:
        given = [Large() for _ in range(4)]
        gone = [weakref.ref(large) for large in given]
        for _ in threads.in_order(lambda large: large, given, 2):
            pass
        del given, _
        end = time.monotonic() + 10
        while any(ref() for ref in gone) and time.monotonic() < end:
            gc.collect()
            time.sleep(0.001)
        assert not any(ref() for ref in gone)


@pytest.mark.parametrize("n_threads", [0, 1, 3])
def test_a_stop_iteration_does_not_end_the_results(n_threads: int) -> None:
    """With `map`, all later items were silently skipped."""

    def stop(number: int) -> int:
        return number if number != 2 else next(iter(()))

    with OrderedThreadPool(n_threads, "tested") as threads:
        results = threads.in_order(stop, range(5), 2)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(RuntimeError, match="StopIteration"):
            next(results)


def test_a_shared_resource_is_used_by_one_thread_at_a_time() -> None:
    resources = [[], []]
    shared = ResourcePool(resources)
    n_users = []

    def use(resource: list[int]) -> None:
        resource.append(1)
        n_users.append(len(resource))
        time.sleep(0.001)
        resource.pop()

    with OrderedThreadPool(5, "tested") as threads:
        list(threads.in_order(lambda _: shared.use(use), range(50), 10))
    assert n_users == [1] * 50
    with pytest.raises(ZeroDivisionError):
        shared.use(lambda _: 1 / 0)
    assert shared.use(lambda resource: resource) in resources
    assert shared._free.qsize() == 2


def test_a_pool_whose_init_was_interrupted_can_be_deleted() -> None:
    OrderedThreadPool.__new__(OrderedThreadPool).__del__()
