"""The cache "memory": what does not fit, and worker processes, use a temporary file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sk_cnncodes.cache import shared_folder as folders
from sk_cnncodes.cache.process_store import ProcessStore
from sk_cnncodes.cache.shared_folder import shared_folder

# Prints its number, and is then killed while its workers wait in a search.
_SEARCH = """
import os, sys, time
import numpy as np
from joblib import parallel_config
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sk_cnncodes import CNNCodeTransformer
from sk_cnncodes.cache.shared_folder import shared_folder

class Slow(LogisticRegression):
    def fit(self, X, y):
        os.write(1, b"%d\\n" % os.getpid())  # in one piece, beside the other worker's
        time.sleep(600)

if __name__ == "__main__":
    print(shared_folder(os.getpid()), flush=True)
    cache, backend = sys.argv[1:]
    if cache == "file":
        cache = os.path.join(os.path.dirname(__file__), "codes.sqlite3")
    X = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), np.uint8)
    model = make_pipeline(CNNCodeTransformer(cache=cache), Slow())
    with parallel_config(backend=backend):
        GridSearchCV(model, {"slow__C": [1, 2]}, cv=2, n_jobs=2).fit(X, [0, 1] * 4)
"""
# Its codes do not fit into the memory.
_SPILL = """
import os, sys
import numpy as np
from sk_cnncodes.cache.process_store import ProcessStore
from sk_cnncodes.cache.shared_folder import shared_folder

store = ProcessStore(1000)
store.put([("spec", [bytes([i]) for i in range(9)], np.ones((9, 64), np.float32))])
folder = shared_folder(os.getpid())
assert (folder / "codes.sqlite3").is_file()
print(folder, flush=True)
sys.stdin.read()
"""


def rows_of(count: int, length: int = 100) -> tuple[list[bytes], np.ndarray]:
    images = [number.to_bytes(4, "big") for number in range(count)]
    codes = np.arange(count * length, dtype=np.float32).reshape(count, length)
    return images, codes


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(folder: Path, pids: list[int]) -> bool:
    for _ in range(200):
        if not folder.exists() and not any(map(is_alive, pids)):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path))
    shared_folder.cache_clear()
    yield tmp_path
    shared_folder.cache_clear()


def test_what_does_not_fit_is_found_again(temporary_folder: Path) -> None:
    store = ProcessStore(5000)
    images, codes = rows_of(30)
    store.put([("spec", images, codes)])
    assert shared_folder(os.getpid()).parent == temporary_folder
    found = store.get("spec", images)
    np.testing.assert_array_equal(np.stack(found), codes)
    assert store.get("other", images) == [None] * 30
    store.prune(0)
    assert store.get("spec", images) == [None] * 30


def test_what_fits_is_not_written(temporary_folder: Path) -> None:
    store = ProcessStore(10**6)
    images, codes = rows_of(30)
    store.put([("spec", images, codes)])
    assert store.claim("spec", images, "1-1") == set(images)
    store.release("1-1")
    assert list(temporary_folder.iterdir()) == []


def test_without_a_temporary_folder_codes_are_only_dropped(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = str(temporary_folder / "gone")
    monkeypatch.setattr(folders.tempfile, "tempdir", gone)
    shared_folder.cache_clear()
    store = ProcessStore(5000)
    images, codes = rows_of(30)
    store.put([("spec", images, codes)])
    found = [code for code in store.get("spec", images) if code is not None]
    assert 0 < len(found) < 30


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners of files")
def test_a_folder_of_another_user_is_not_used(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_folder(os.getpid())
    folder.mkdir()
    monkeypatch.setattr(folders.os, "getuid", lambda: folder.stat().st_uid + 1)
    store = ProcessStore(5000)
    images, codes = rows_of(30)
    store.put([("spec", images, codes)])
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("ending", ["end", "kill"])
def test_the_file_goes_with_its_process(ending: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SPILL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.parent == tmp_path
        if ending == "kill":
            process.kill()
    assert wait_until_gone(folder, [])


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
@pytest.mark.parametrize("cache", ["memory", "file"])
def test_a_killed_search_leaves_no_file_and_no_process(
    cache: str, backend: str, tmp_path: Path
) -> None:
    script = tmp_path / "search.py"
    script.write_text(_SEARCH, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(script), cache, backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # joblib's resource tracker says what it cleans up
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            folder = Path(process.stdout.readline().strip())
            workers = [int(process.stdout.readline()) for _ in range(2)]
            assert (folder / "codes.sqlite3").is_file() == (cache == "memory")
        finally:
            process.kill()
    assert wait_until_gone(folder, workers)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_processes_left_that_were_killed_together_is_removed(
    temporary_folder: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "open(0).read()"], stdin=subprocess.PIPE
    ) as process:
        left = shared_folder(process.pid)
        left.mkdir()
        living = shared_folder(os.getppid())
        living.mkdir()
    assert process.poll() is not None
    store = ProcessStore(5000)
    images, codes = rows_of(30)
    store.put([("spec", images, codes)])
    assert {*temporary_folder.iterdir()} == {living, shared_folder(os.getpid())}


# A disk that is full soon, for this process and its workers.
_FULL = """
import resource, sys
import numpy as np
from joblib import parallel_config
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sk_cnncodes import CNNCodeTransformer

def scores(cache, n_jobs):
    X = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    model = make_pipeline(CNNCodeTransformer(cache=cache), RidgeClassifier())
    grid = {"ridgeclassifier__alpha": [1, 10]}
    search = GridSearchCV(model, grid, cv=2, n_jobs=n_jobs).fit(X, np.arange(40) % 2)
    return search.cv_results_["mean_test_score"]

if __name__ == "__main__":
    expected = scores(None, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    with parallel_config(backend=sys.argv[1]):
        print(*(scores("memory", 2) == expected))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of files")
@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_a_search_on_a_full_temporary_folder(backend: str, tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(_FULL, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), backend],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout == "True True\n", done.stderr
