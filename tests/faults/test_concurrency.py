"""Concurrency: right rows, no hang, and no more threads than cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sk_cnncodes import CNNCodeTransformer, CodeCache, layer_grid
from sk_cnncodes.cache.code_cache import MEMORY
from tests.faults.conftest import check_rows, own_threads
from tests.faults.programs import output_of
from tests.fuzz.pool import asked_cases

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


# -- threads -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "memory", "file"])
def test_sixteen_threads_use_one_transformer(
    kind: str, net: str, files: list[str], alone: np.ndarray, tmp_path: Path
) -> None:
    """Each repeatedly requests different images in a different order."""
    cache = {"none": None, "memory": "memory", "file": tmp_path / "codes.sqlite3"}
    transformer = CNNCodeTransformer(
        net, cache=cache[kind], cache_layers=[-1, -2], batch_size=2, n_jobs=2
    )

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(asked_cases(3)):
            rows = rng.integers(0, len(files), rng.integers(1, 30))
            check_rows(transformer.transform([files[r] for r in rows]), alone[rows])

    with ThreadPoolExecutor(16, "user") as threads:
        for done in [threads.submit(work, number) for number in range(16)]:
            done.result(timeout=300)
    if kind == "memory":
        assert MEMORY.info().rows == 2 * len(files)


# -- searches ----------------------------------------------------------------


def search(net: str, cache: object, n_jobs: int, before: Any = None) -> GridSearchCV:
    codes = CNNCodeTransformer(net, cache=cache, cache_layers=[-1, -2])
    steps = [before] if before is not None else []
    model = make_pipeline(*steps, codes, LogisticRegression(max_iter=1000))
    grid = layer_grid([-1, -2]) | {"logisticregression__C": [0.1, 1]}
    return GridSearchCV(model, grid, cv=3, n_jobs=n_jobs, error_score="raise")


LABELS = [0, 1] * 6


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
@pytest.mark.parametrize("used_before", [True, False])
def test_searches_in_parallel(
    backend: str, used_before: bool, net: str, files: list[str], tmp_path: Path
) -> None:
    """Scores and refit equal those of one thread, also if the parent used the cache."""
    expected = search(net, None, 1).fit(files, LABELS)
    cache = CodeCache(tmp_path / "codes.sqlite3")
    if used_before:
        CNNCodeTransformer(net, cache=cache).transform(files[:5])
    with joblib.parallel_backend(backend, n_jobs=2):
        found = search(net, cache, 2).fit(files, LABELS)
    for key, values in expected.cv_results_.items():
        if "score" in key and "time" not in key:
            np.testing.assert_array_equal(found.cv_results_[key], values)
    np.testing.assert_allclose(
        found.predict_proba(files), expected.predict_proba(files), rtol=1e-4, atol=1e-5
    )
    assert cache.info().rows == 2 * len(files)


class Deadly(TransformerMixin, BaseEstimator):
    """Passes images through; one of them kills its process, unless it is `parent`."""

    def __init__(self, parent: int, path: str) -> None:
        self.parent, self.path = parent, path

    def fit(self, X: Any, y: Any = None) -> Deadly:
        return self

    def transform(self, X: Any) -> list[Any]:
        return _DeadlyList(X, self.parent, self.path)


class _DeadlyList(list[Any]):
    def __init__(self, X: Any, parent: int, path: str) -> None:
        super().__init__(X)
        self.parent, self.path = parent, path

    def __getitem__(self, index: Any) -> Any:
        image = super().__getitem__(index)
        if image == self.path and os.getpid() != self.parent:
            time.sleep(0.3)  # the images before it are being stored
            os.kill(os.getpid(), signal.SIGKILL)
        return image


@needs_fork
def test_a_worker_that_is_killed(
    net: str, files: list[str], alone: np.ndarray, tmp_path: Path
) -> None:
    """joblib raises its error promptly, and the cache is undamaged."""
    path = tmp_path / "codes.sqlite3"
    X = [*files[:11], files[11]]
    deadly = Deadly(os.getpid(), files[11])
    began = time.monotonic()
    with (
        joblib.parallel_backend("loky", n_jobs=2),
        pytest.raises(TerminatedWorkerError),
    ):
        search(net, path, 2, deadly).fit(X, LABELS)
    assert time.monotonic() - began < 200
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    check_rows(CNNCodeTransformer(net, cache=path).transform(X), alone)
    # The next search gets new workers.
    with joblib.parallel_backend("loky", n_jobs=2):
        search(net, path, 2).fit(X, LABELS)


# -- forks -------------------------------------------------------------------


def codes_in_child(net: str, cache: object, files: list[str]) -> np.ndarray:
    return CNNCodeTransformer(net, cache=cache, n_jobs=2).transform(files)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:cache='memory' in a worker")
@pytest.mark.parametrize("kind", ["none", "memory", "file"])
def test_a_pool_of_forked_processes_after_use(
    kind: str, net: str, files: list[str], alone: np.ndarray, tmp_path: Path
) -> None:
    cache = {"none": None, "memory": "memory", "file": str(tmp_path / "c.sqlite3")}
    check_rows(codes_in_child(net, cache[kind], files[:7]), alone[:7])
    with multiprocessing.get_context("fork").Pool(3) as pool:
        arguments = [(net, cache[kind], files[n:]) for n in range(6)]
        results = pool.starmap_async(codes_in_child, arguments)
        for number, codes in enumerate(results.get(timeout=240)):
            check_rows(codes, alone[number:])
    check_rows(codes_in_child(net, cache[kind], files), alone)


FORK_WHILE_BUSY = """
warnings.simplefilter("ignore")
path = os.path.join(folder, "codes.sqlite3")
cache = CodeCache(path)
opened = [open(file, "rb") for file in files]
stop = threading.Event()
faults = []
def work(number):
    rng = np.random.default_rng(number)
    while not stop.is_set():
        rows = rng.permutation(12)
        for used in (cache, "memory", None):
            X = [opened[r] if used is None else files[r] for r in rows]
            codes = CNNCodeTransformer(net, cache=used, n_jobs=2).transform(X)
            if not right(codes, expected[rows]):
                faults.append("wrong rows in the parent")
        CodeCache(path).clear()
threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
for thread in threads:
    thread.start()
children = []
for round_ in range(int(sys.argv[5])):
    time.sleep(0.05)
    child = os.fork()
    if not child:
        signal.alarm(100)  # a hang ends with a status of its own
        rows = np.random.default_rng(round_).permutation(12)
        X = [opened[r] for r in rows]
        ok = True
        for used in (None, cache, "memory", path):
            codes = CNNCodeTransformer(net, cache=used, n_jobs=2).transform(X)
            ok = ok and right(codes, expected[rows])
        os._exit(0 if ok else 3)
    children.append(child)
    if len(children) == 3:
        for child in children:
            assert os.waitpid(child, 0)[1] == 0, "a child hung or was wrong"
        children = []
for child in children:
    assert os.waitpid(child, 0)[1] == 0, "a child hung or was wrong"
stop.set()
for thread in threads:
    thread.join()
assert not faults, faults
"""


@needs_fork
def test_forks_while_other_threads_are_at_work(given: tuple[str, ...]) -> None:
    """The threads hold locks, and share the positions of open files with the child."""
    output_of(FORK_WHILE_BUSY, *given, asked_cases(9))


FORK_IN_CALIBRATION = """
from sk_cnncodes import load_backbone
from sk_cnncodes.codes import calibration
measured, held = calibration._ranges, threading.Event()
def slow(*arguments):
    held.set()
    time.sleep(0.5)
    return measured(*arguments)
calibration._ranges = slow
backbone = load_backbone(net)
specs = [backbone.spec(-1, "auto", None)]
def fit():
    calibration.calibrate(files, backbone, specs, 1, skip_bad=False)
thread = threading.Thread(target=fit)
thread.start()
held.wait()
child = os.fork()
if not child:
    signal.alarm(60)
    fit()
    os._exit(0)
thread.join()
assert os.waitpid(child, 0)[1] == 0
"""

FORK_IN_LOADING = """
from sk_cnncodes.base.forks import fork_lock
box, held = [CodeCache(os.path.join(folder, "codes.sqlite3"))], threading.Event()
box[0].info()
def load():
    with fork_lock:  # as during the loading of a network
        held.set()
        time.sleep(0.5)
        box.clear()  # as garbage collection may
threading.Thread(target=load).start()
held.wait()
signal.alarm(60)
child = os.fork()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@needs_fork
@pytest.mark.parametrize("source", [FORK_IN_CALIBRATION, FORK_IN_LOADING])
def test_a_fork_while_a_thread_holds_a_lock(
    source: str, given: tuple[str, ...]
) -> None:
    output_of(source, *given)


EXIT_WHILE_BUSY = """
codes = CNNCodeTransformer(net, cache=None, n_jobs=2, batch_size=1).fit(files)
codes.transform(files)
began = threading.Event()
def work():
    while True:
        began.set()
        codes.transform(files * 20)
threading.Thread(target=work, daemon=True).start()
began.wait()
time.sleep(float(sys.argv[5]))
"""


@pytest.mark.parametrize("after", [0.05, 0.11, 0.17])
def test_a_process_ends_while_a_daemon_thread_transforms(
    after: float, given: tuple[str, ...]
) -> None:
    """Threads ended by the interpreter inside ONNX Runtime made the process abort."""
    output_of(EXIT_WHILE_BUSY, *given, after)


PARENT_CLOSES = """
path = os.path.join(folder, "codes.sqlite3")
cache = CodeCache(path)
code = np.ones((1, 300), np.float32)
keys = [str(i).encode() for i in range(60)]
for key in keys[:20]:
    cache.put_many([("parent", [key], code)])
ready, go = os.pipe(), os.pipe()
child = os.fork()
if not child:
    for number, key in enumerate(keys):
        if number == 30:  # the parent closes the file
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        cache.put_many([("child", [key], number * code)])
    os._exit(0)
os.read(ready[0], 1)
del cache
other = CodeCache(path)
other.put_many([("parent", [key], code) for key in keys[20:]])
os.write(go[1], b"x")
assert os.waitpid(child, 0)[1] == 0
found = CodeCache(path).get_many("child", keys)
assert all((row == number).all() for number, row in enumerate(found))
assert all(row is not None for row in CodeCache(path).get_many("parent", keys))
"""


@needs_fork
def test_a_parent_that_closes_the_cache_loses_nothing_of_its_child(
    given: tuple[str, ...],
) -> None:
    """The child's codes were written to a log that the parent had deleted."""
    output_of(PARENT_CLOSES, *given)


# -- threads of workers ------------------------------------------------------


def thread_usage(net: str, seed: int) -> tuple[float, float, int]:
    """CPU seconds of this thread and of all others, and the number of our threads."""
    # Too few images to try batch sizes, which is done in a separate thread.
    images = np.random.default_rng(seed).integers(0, 256, (120, 9, 9, 3), np.uint8)
    ours = [0]

    class Watched(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            ours[0] = max(ours[0], len(own_threads()))
            return super().__getitem__(index)

    transformer = CNNCodeTransformer(net, cache=None)
    transformer.transform(images[:1])
    thread, process = time.thread_time(), time.process_time()
    transformer.transform(Watched(images))
    thread, process = time.thread_time() - thread, time.process_time() - process
    return thread, process - thread, ours[0]


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_workers_together_have_no_more_threads_than_cores(
    backend: str, net: str
) -> None:
    """As many workers as cores: each computes in the thread that called it."""
    jobs = max(2, joblib.cpu_count())
    with joblib.parallel_backend(backend, n_jobs=jobs):
        found = joblib.Parallel()(
            joblib.delayed(thread_usage)(net, seed) for seed in range(2 * jobs)
        )
    assert max(ours for _, _, ours in found) == 0, found
    if backend != "threading":  # there, the other threads are workers too
        assert all(others < 0.3 * own for own, others, _ in found), found


def test_one_worker_has_all_cores(net: str) -> None:
    assert thread_usage(net, 0)[2] == min(joblib.cpu_count(), 300) or (
        joblib.cpu_count() == 1
    )
