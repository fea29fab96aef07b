"""Scarce resources: an error or a slower run, but no lost or wrong code."""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import sqlite3
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, CodeCache
from sk_cnncodes.images import decode as images
from sk_cnncodes.images import sources as contents
from tests.faults.conftest import allow_threads, check_rows, own_threads
from tests.faults.programs import ROOT, bound_by_permissions, output_of, run_program

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs limits on processes")

# Each program prints the outcome of a transform under each limit.
_TRY = """
def attempt(**parameters):
    given = {"n_jobs": 2, "batch_size": 2, "on_error": "nan"} | parameters
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            codes = CNNCodeTransformer(net, **given).transform(files)
        except Exception as error:
            outcome = type(error).__name__
        else:
            outcome = "right" if right(codes) else "WRONG"
    assert not own_threads(), own_threads()
    warned = {w.category.__name__ for w in caught}
    # A code may be missing only with an error, not as a row of NaN.
    assert outcome != "WRONG", [str(w.message) for w in caught]
    return outcome, "+".join(sorted(warned))
"""


def check_cache(path: Path, net: str, files: list[str], alone: np.ndarray) -> None:
    """Check that a cache is undamaged and works."""
    cache = CodeCache(path)
    for _ in range(2):
        check_rows(CNNCodeTransformer(net, cache=cache).transform(files), alone)
    assert cache.info().rows >= len(files)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


# -- disks -------------------------------------------------------------------

# A limit on file sizes makes writes fail as a full disk or a quota does.
FULL_DISK = (
    _TRY
    + """
attempt(cache=None)
for kb in (0, 3, 5, 20, 25, 30, 34, 40, 200):
    path = os.path.join(folder, f"{kb}.sqlite3")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * kb, resource.RLIM_INFINITY))
    outcome, warned = attempt(cache=CodeCache(path), cache_layers=[-1, -2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert outcome == "right" and warned in ("", "CacheWarning"), (kb, outcome, warned)
    assert warned == "CacheWarning" or kb > 20, kb
    print(kb, warned)
"""
)


def test_a_full_disk(
    given: tuple[str, ...], net: str, files: list[str], alone: np.ndarray
) -> None:
    output = output_of(FULL_DISK, *given).splitlines()
    assert output[0] == "0 CacheWarning"
    assert output[-1] == "200"
    for path in Path(given[3]).glob("*.sqlite3"):
        check_cache(path, net, files, alone)


def test_a_limit_on_file_sizes_is_not_reported_as_damage(
    given: tuple[str, ...],
) -> None:
    """The message used to advise deleting an intact cache."""
    program = """
cache = CodeCache(os.path.join(folder, "codes.sqlite3"))
cache.put_many([("spec", [b"a"], np.ones((1, 3), np.float32))])
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    cache.put_many([("spec", [b"b"], np.ones((1, 30_000), np.float32))])
assert cache.get_many("spec", [b"a"])[0] is not None
print(caught[0].message)
"""
    message = output_of(program, *given)
    assert "cannot be written" in message and "are used" in message
    assert "damaged" not in message and "Delete" not in message


READ_ONLY = """
cache = CodeCache(os.path.join(folder, "codes.sqlite3"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    transformer = CNNCodeTransformer(net, cache=cache, n_jobs=2)
    for _ in range(2):
        assert right(transformer.transform(files))
    assert right(transformer.transform(files[:3]), expected[:3])
texts = [str(w.message) for w in caught]
assert len(texts) == 1, texts
print(cache.info().hits, texts[0])
"""


@pytest.mark.parametrize("filled", [True, False])
def test_a_read_only_folder(
    filled: bool,
    given: tuple[str, ...],
    net: str,
    files: list[str],
) -> None:
    """With half of the codes cached, or without any file."""
    prefix = bound_by_permissions()
    folder = Path(given[3])
    if filled:
        CNNCodeTransformer(net, cache=folder / "codes.sqlite3").transform(files[:6])
    # As on a read-only disk: no process has the file open.
    from sk_cnncodes.cache import code_cache as cache_module

    cache_module._files.clear()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    done = run_program(READ_ONLY, *given, prefix=prefix)
    folder.chmod(0o755)
    assert done.returncode == 0, done.stderr[-3000:]
    hits, _, message = done.stdout.partition(" ")
    if filled:
        assert int(hits) == 6 + 6 + 3
        assert "it cannot be written" in message
    else:
        assert "cannot be opened" in message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# -- handles -----------------------------------------------------------------

FEW_HANDLES = (
    _TRY
    + """
assert attempt(cache=None) == ("right", "")
path = os.path.join(folder, "codes.sqlite3")
CodeCache(path).put_many([("other", [b"a"], np.ones((1, 3), np.float32))])
used = max(map(int, os.listdir("/proc/self/fd"))) if os.path.exists("/proc") else 50
while (probe := os.open(os.devnull, os.O_RDONLY)) <= used:
    pass  # until no lower number is free
os.close(probe)
for free in range(9):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + free, most))
    found = [attempt(cache=c) for c in (None, CodeCache(), CodeCache(path))]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for outcome, warned in found:
        assert outcome in ("right", "OSError", "BackboneError"), (free, outcome, warned)
        assert warned in ("", "CacheWarning"), (free, outcome, warned)
    print(free, found)
"""
)


def test_too_few_handles(
    given: tuple[str, ...], net: str, files: list[str], alone: np.ndarray
) -> None:
    output = output_of(FEW_HANDLES, *given).splitlines()
    assert "OSError" in output[0] or "BackboneError" in output[0]
    assert output[-1] == "8 [('right', ''), ('right', ''), ('right', '')]"
    check_cache(Path(given[3]) / "codes.sqlite3", net, files, alone)


@pytest.mark.parametrize("cache", [None, "memory"])
@pytest.mark.parametrize("kind", [OSError, MemoryError])
def test_resource_errors_do_not_give_nan(
    kind: type[Exception],
    cache: str | None,
    net: str,
    files: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With on_error="nan", such rows were NaN, with the image reported as damaged."""

    def scarce(*arguments: Any) -> Any:
        raise kind(errno.EMFILE, "Too many open files")

    transformer = CNNCodeTransformer(net, cache=cache, on_error="nan", n_jobs=2)
    if kind is MemoryError:
        monkeypatch.setattr(images, "open_image", scarce)
    else:
        monkeypatch.setattr(contents, "open", scarce, raising=False)
    with pytest.raises(kind) as caught:
        transformer.transform(files)
    assert re.search(r"happened to image \d+ \('.*\d.png'\)", caught.value.__notes__[0])
    assert not own_threads()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_cache_is_closed_after_a_resource_error(
    n_jobs: int,
    net: str,
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stayed open, with three file handles, until the next garbage collection."""

    def scarce(*arguments: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    cache = CodeCache(tmp_path / "codes.sqlite3")
    transformer = CNNCodeTransformer(net, cache=cache, n_jobs=n_jobs)
    gone = weakref.ref(cache)
    monkeypatch.setattr(contents, "open", scarce, raising=False)
    gc.disable()
    try:
        transformer.transform(files)
    except OSError as error:
        assert error.errno == errno.EMFILE
    else:
        raise AssertionError("no error")
    finally:
        gc.enable()
    del cache, transformer
    assert gone() is None


# -- memory ------------------------------------------------------------------

LITTLE_MEMORY = (
    _TRY
    + """
def in_use():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
if sys.argv[5] == "warm":
    assert attempt(cache=None) == ("right", "")
else:
    import onnx, onnxruntime
allowed = int(sys.argv[6])
resource.setrlimit(resource.RLIMIT_AS, (in_use() + allowed * 2**20,) * 2)
# With almost no memory, CPython waits forever for a thread that failed to start.
n_jobs = 2 if allowed >= 40 else 1
print(*attempt(cache=os.path.join(folder, f"{allowed}.sqlite3"), n_jobs=n_jobs))
"""
)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("state", ["warm", "cold"])
def test_little_memory(state: str, given: tuple[str, ...]) -> None:
    outcomes = []
    for megabytes in (0, 2, 9, 17, 40, 600):
        done = run_program(LITTLE_MEMORY, *given, state, megabytes)
        # Without memory to handle an error, Python exits with status 1.
        assert done.returncode in (0, 1), (megabytes, done)
        if done.returncode == 1:
            assert "MemoryError" in done.stderr, (megabytes, done)
        outcomes.append(done.stdout.strip() or "MemoryError")
    print(outcomes)
    assert outcomes[-1] == "right"


def test_no_thread_can_be_started(
    net: str, files: list[str], alone: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = CNNCodeTransformer(net, cache=CodeCache(), n_jobs=4)
    with monkeypatch.context() as patch:
        allow_threads(patch, 2)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            transformer.transform(files)
    assert not own_threads()
    check_rows(transformer.transform(files), alone)


# -- open files --------------------------------------------------------------


def test_reading_an_open_file_leaves_its_position(
    net: str, files: list[str], alone: np.ndarray
) -> None:
    with open(files[0], "rb") as file:
        file.seek(7)
        check_rows(CNNCodeTransformer(net).transform([file, file]), alone[[0, 0]])
        assert file.tell() == 7


def test_reading_a_large_file_allocates_no_more_than_its_size(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`read(limit)` allocates `limit` bytes; several threads did so at once."""
    asked = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            asked.append(size)
            return super().read(size)

    content = Path(files[0]).read_bytes()
    assert contents.read_content(Watched(content), 0) == content
    assert asked == [-1]
    monkeypatch.setattr(contents, "LARGEST_FILE", len(content) - 1)
    for image in (Watched(content), files[0]):
        with pytest.raises(ValueError, match=f"at most {len(content) - 1} bytes"):
            contents.read_content(image, 0)


def test_a_full_disk_leaves_stored_codes_readable(
    given: tuple[str, ...], net: str, files: list[str]
) -> None:
    """There was no space for the index of SQLite's log, and nothing was read."""
    program = """
path = os.path.join(folder, "codes.sqlite3")
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
cache = CodeCache(path)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    transformer = CNNCodeTransformer(net, cache=cache)
    assert right(transformer.transform(files))
    assert right(transformer.transform(files[:3]), expected[:3])
messages = [str(w.message) for w in caught if w.category is CacheWarning]
assert len(messages) == 1 and "existing codes are used" in messages[0], messages
assert cache.info().hits == 8 + 3, cache.info()
"""
    stored = (
        "import sys; from sk_cnncodes import CNNCodeTransformer as T; "
        "T(sys.argv[1], cache=sys.argv[2]).transform(sys.argv[3:])"
    )
    path = str(Path(given[3]) / "codes.sqlite3")
    # In a separate process, which closes the file.
    run = [sys.executable, "-c", stored, net, path, *files[:8]]
    subprocess.run(run, cwd=ROOT, check=True, timeout=100)
    output_of(program, *given)


KILLED = """
cache = CodeCache(os.path.join(folder, "codes.sqlite3"))
cache.put_many([("spec", [b"a"], np.ones((1, 3), np.float32))])
os.remove(cache.path + "-shm")  # as in a copied folder
os._exit(0)
"""
READ_KILLED = """
cache = CodeCache(os.path.join(folder, "codes.sqlite3"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert cache.get_many("spec", [b"a"]) == [None]
print(*[w.message for w in caught])
"""


def test_a_killed_process_and_a_read_only_folder(given: tuple[str, ...]) -> None:
    """It was reported as damaged or old, with advice to delete an intact cache."""
    prefix = bound_by_permissions()
    output_of(KILLED, *given)
    folder = Path(given[3])
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    done = run_program(READ_KILLED, *given, prefix=prefix)
    folder.chmod(0o755)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "process was killed" in done.stdout
    assert "Delete" not in done.stdout
