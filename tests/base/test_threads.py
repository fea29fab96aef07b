"""Threads of one user: in order, no more than asked for, and gone with it."""

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
def test_no_more_is_begun_than_was_allowed(n_threads: int) -> None:
    begun: list[int] = []
    with OrderedThreadPool(n_threads, "tested") as threads:
        results = threads.in_order(begun.append, range(100), 4)
        for _ in range(10):
            next(results)
    assert len(begun) <= 14


@pytest.mark.parametrize("n_threads", [1, 3])
def test_an_error_is_raised_in_its_place(n_threads: int) -> None:
    def invert(number: int) -> float:
        return 1 / number

    with OrderedThreadPool(n_threads, "tested") as threads:
        results = threads.in_order(invert, [1, 2, 0, 4], 4)
        assert [next(results), next(results)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)
        # The threads go on with other work.
        assert list(threads.in_order(invert, [4, 2], 2)) == [0.25, 0.5]
    assert not own_threads()


def test_what_was_not_begun_is_dropped() -> None:
    begun: list[int] = []

    def wait(number: int) -> None:
        begun.append(number)
        time.sleep(0.05)

    with OrderedThreadPool(2, "tested") as threads:
        next(threads.in_order(wait, range(100), 50))
    assert len(begun) < 50
    assert not own_threads()


def test_threads_end_though_their_context_did_not() -> None:
    threads = OrderedThreadPool(2, "tested")
    assert list(threads.in_order(abs, [-1, -2], 2)) == [1, 2]
    assert len(own_threads()) == 2
    del threads
    end = time.monotonic() + 10
    while own_threads() and time.monotonic() < end:
        time.sleep(0.001)
    assert not own_threads()


def test_nothing_is_kept() -> None:
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
def test_a_stop_iteration_is_not_the_end(n_threads: int) -> None:
    """With `map`, what came behind it was left out in silence."""

    def stop(number: int) -> int:
        return number if number != 2 else next(iter(()))

    with OrderedThreadPool(n_threads, "tested") as threads:
        results = threads.in_order(stop, range(5), 2)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(RuntimeError, match="StopIteration"):
            next(results)


def test_what_is_shared_is_used_by_one_at_a_time() -> None:
    things = [[], []]
    shared = ResourcePool(things)
    most = []

    def use(thing: list[int]) -> None:
        thing.append(1)
        most.append(len(thing))
        time.sleep(0.001)
        thing.pop()

    with OrderedThreadPool(5, "tested") as threads:
        list(threads.in_order(lambda _: shared.use(use), range(50), 10))
    assert most == [1] * 50
    with pytest.raises(ZeroDivisionError):
        shared.use(lambda _: 1 / 0)
    assert shared.use(lambda thing: thing) in things
    assert shared._free.qsize() == 2


def test_threads_whose_making_was_interrupted_can_be_deleted() -> None:
    OrderedThreadPool.__new__(OrderedThreadPool).__del__()
