"""Ctrl-C in every phase: nothing is lost, wrong, locked or left over."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, CodeCache
from sk_cnncodes.backbones import analysis, backbone
from sk_cnncodes.cache import file_store
from sk_cnncodes.codes import digests, extraction, preparation, workers
from sk_cnncodes.codes.sessions import SESSIONS
from sk_cnncodes.engines import session as runtime
from tests.faults.conftest import check_rows, leftovers, own_threads
from tests.faults.programs import output_of
from tests.fuzz.pool import asked_cases

# The function that does the work of each phase; most run in worker threads.
PHASES: dict[str, tuple[Any, str]] = {
    "look-up of files": (digests.ImageDigests, "_file_state"),
    "digests": (digests, "read_content"),
    "reading the cache": (file_store.FileStore, "_get"),
    "analysis of the graph": (analysis, "_number"),
    "cutting the graph": (backbone, "build_code_graphs"),
    "opening the session": (runtime, "_open_runner"),
    "its self-test": (runtime, "_batch_fault"),
    "reading": (preparation, "read_content"),
    "decoding": (preparation, "decode_content"),
    "stacking": (workers.Workers, "_forward"),
    "running": (runtime.CodeSession, "_run"),
    "checking": (extraction, "_check_finite"),
    "writing rows": (extraction.Extraction, "_store"),
    "storing": (file_store.FileStore, "_put"),
    "in a transaction": (file_store, "_checksum"),
    "remembering files": (file_store.FileStore, "_remember_files"),
}


class Interrupting:
    """Wraps a function; one call raises, before or after the function runs."""

    def __init__(self, function: Callable[..., Any], at: int, *, after: bool) -> None:
        self.function, self.left, self.after = function, at, after
        self.raised = False

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return lambda *args, **options: self(instance, *args, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        now = self.left == 0
        if now and not self.after:
            self.raised = True
            raise KeyboardInterrupt
        result = self.function(*args, **options)
        if now:
            self.raised = True
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("n_jobs", [1, 3])
@pytest.mark.parametrize("phase", sorted(PHASES))
def test_an_interrupt_in_a_phase(
    phase: str,
    n_jobs: int,
    net: str,
    files: list[str],
    alone: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**18))
    owner, name = PHASES[phase]
    happened = 0
    for at, after in [(1, False), (1, True), (2, True), (4, False)]:
        folder = tmp_path / f"{at} {after}"
        folder.mkdir()
        cache = CodeCache(folder / "codes.sqlite3")
        transformer = CNNCodeTransformer(net, cache=cache, n_jobs=n_jobs, batch_size=2)
        if phase in ("opening the session", "its self-test", "cutting the graph"):
            SESSIONS.clear()
        if phase == "reading the cache":
            transformer.transform(files[:5])
        with monkeypatch.context() as patch:
            interrupt = Interrupting(getattr(owner, name), at, after=after)
            patch.setattr(owner, name, interrupt)
            try:
                codes = transformer.transform(files)
            except KeyboardInterrupt:
                assert interrupt.raised
            else:
                assert not interrupt.raised, "the interrupt was swallowed"
                check_rows(codes, alone)
        happened += interrupt.raised
        assert not own_threads()
        assert leftovers(folder, folder / "codes.sqlite3") == []
        # No lock is held, and all stored codes are right.
        other = sqlite3.connect(folder / "codes.sqlite3", timeout=0)
        other.execute("BEGIN IMMEDIATE")
        other.rollback()
        other.close()
        check_rows(transformer.transform(files), alone)
        check_rows(transformer.transform(files), alone)
        assert cache.info().rows == len(files)
    assert happened >= 1, "the phase was never reached"


# Like that of Ctrl-C, the handler of an alarm raises anywhere in the main thread.
ANY_TIME = """
def interrupt(number, frame):
    path, name = frame.f_code.co_filename, frame.f_code.co_name
    if path.endswith("threading.py") and name != "wait":
        # CPython starts threads and waits for them with several locks: an interrupt
        # between two of them leaves them locked forever.
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        return
    raise KeyboardInterrupt
warnings.simplefilter("error")
signal.signal(signal.SIGALRM, interrupt)
rounds, n_jobs = int(sys.argv[5]), int(sys.argv[6])
def fresh(round_):
    cache = CodeCache(os.path.join(folder, f"{round_ // 5}.sqlite3"))
    return CNNCodeTransformer(net, cache=cache, n_jobs=n_jobs, batch_size=2)
fresh(0).transform(files)
began = time.monotonic()
fresh(5).transform(files)
usual = time.monotonic() - began
rng = np.random.default_rng(n_jobs)
interrupted = 0
for round_ in range(10, 10 + rounds):
    transformer = fresh(round_)
    if round_ % 2 == 0:
        transformer.cache.clear()
    try:
        signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(0.0002, 1.1 * usual)))
        try:
            codes = transformer.transform(files)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert right(codes)
    except KeyboardInterrupt:
        interrupted += 1
    end = time.monotonic() + 10
    while own_threads() and time.monotonic() < end:
        time.sleep(0.001)
    assert not own_threads(), own_threads()
    # The same cache object, and another one for the same file.
    began = time.monotonic()
    assert right(transformer.transform(files[:6]), expected[:6])
    assert right(fresh(round_).transform(files[:6]), expected[:6])
    assert time.monotonic() - began < 20, "something waited"
    if round_ % 5 == 4:
        transformer.cache.clear()
print(interrupted)
"""


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_interrupts_at_any_time(n_jobs: int, given: tuple[str, ...]) -> None:
    rounds = asked_cases(200)
    interrupted = int(output_of(ANY_TIME, *given, rounds, n_jobs))
    assert interrupted >= rounds / 20


SHARED = """
from sk_cnncodes.base.threads import ResourcePool
shared, interrupts = ResourcePool([1, 2]), 0
signal.signal(signal.SIGALRM, signal.default_int_handler)
rng = np.random.default_rng(0)
while interrupts < int(sys.argv[5]):
    try:
        signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(1e-5, 5e-4)))
        while True:
            shared.use(abs)
    except KeyboardInterrupt:
        interrupts += 1
    assert shared._free.qsize() == 2, f"one is lost after {interrupts} interrupts"
"""


def test_an_interrupt_loses_no_shared_resource(given: tuple[str, ...]) -> None:
    """A session that has lost its last runner waits forever."""
    output_of(SHARED, *given, asked_cases(2000))


def test_an_interrupted_transaction_is_rolled_back(tmp_path: Path) -> None:
    """An interrupt right after BEGIN left the file locked for all processes."""
    cache = CodeCache(tmp_path / "codes.sqlite3")
    code = np.ones((1, 3), np.float32)
    cache.put_many([("spec", [b"a"], code)])
    store = cache._open()
    assert isinstance(store, file_store.FileStore)

    def interrupted(db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store._database.use(interrupted)
    other = sqlite3.connect(tmp_path / "codes.sqlite3", timeout=0)
    other.execute("BEGIN IMMEDIATE")
    other.rollback()
    other.close()
    cache.put_many([("spec", [b"b"], code)])
    assert cache.info().rows == 2
