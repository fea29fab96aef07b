"""What a fork waits for, and what its child gets anew."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fork is POSIX")

PROGRAM = """
import os, sys, threading, time
from sk_cnncodes.base import forks

{before}

def child():
{child}

held, go_on = threading.Event(), threading.Event()

def hold(lock):
    with lock:
        held.set()
        go_on.wait(20)

{holder}
process = os.fork()
if process == 0:
    try:
        child()
    except BaseException as error:
        print(repr(error), flush=True)
    os._exit(0)
go_on.set()
os.waitpid(process, 0)
"""


def test_a_fork_safe_lock_is_free_in_the_child() -> None:
    """Another thread of the parent has it when the process forks."""
    program = PROGRAM.format(
        before="lock = forks.fork_safe_lock()",
        holder="threading.Thread(target=hold, args=[lock]).start(); held.wait(20)",
        child="    print('free' if lock.acquire(timeout=5) else 'locked', flush=True)",
    )
    assert run_python(program) == "free"


def test_a_fork_waits_for_a_held_lock() -> None:
    program = PROGRAM.format(
        before="lock = threading.RLock(); forks.hold_during_fork(lock)",
        holder="threading.Thread(target=hold, args=[lock]).start(); held.wait(20)\n"
        "start = time.monotonic(); threading.Timer(0.5, go_on.set).start()",
        child="    print(time.monotonic() - start > 0.4, lock.acquire(timeout=5))\n"
        "    sys.stdout.flush()",
    )
    assert run_python(program) == "True True"


def test_actions_run_before_the_fork_and_in_the_child() -> None:
    program = PROGRAM.format(
        before="done = []\n"
        "forks.before_fork(lambda: done.append('before'))\n"
        "forks.after_fork_in_child(lambda: done.append('child'))",
        holder="",
        child="    print(done, flush=True)",
    )
    assert run_python(program) == "['before', 'child']"


def test_the_parent_goes_on_with_its_locks() -> None:
    program = PROGRAM.format(
        before="lock = threading.RLock(); forks.hold_during_fork(lock)",
        holder="",
        child="    pass",
    )
    program += "\nprint(threading.Thread(target=lock.acquire).start())"
    program += "\nprint(forks.fork_lock.acquire(timeout=5))"
    assert run_python(program).split() == ["None", "True"]


def test_an_interrupt_does_not_leave_a_fork_unprepared() -> None:
    """The child would have the lock of a thread that it does not have."""
    program = PROGRAM.format(
        before="import signal",
        holder="threading.Thread(target=hold, args=[forks.fork_lock]).start()\n"
        "held.wait(20)\n"
        "threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()\n"
        "threading.Timer(0.8, go_on.set).start()",
        child="    print('free' if forks.fork_lock.acquire(timeout=5) else 'locked')\n"
        "    sys.stdout.flush()",
    )
    # The interpreter reports what a hook raises, and goes on.
    assert run_python(program).startswith("free")


def test_a_failed_import_of_another_thread_does_not_leave_a_fork_unprepared() -> None:
    program = PROGRAM.format(
        before="def fail(): raise ImportError('no such module')\n"
        "forks.finish_imports = fail\n"
        "done = []\n"
        "forks.before_fork(lambda: done.append('closed'))",
        holder="",
        child="    print(done, forks.fork_lock.acquire(timeout=5), flush=True)",
    )
    assert run_python(program) == "['closed'] True"
