"""Each image is embedded once, and every change that affects a code is detected."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sk_cnncodes import (
    CacheWarning,
    CNNCodeTransformer,
    CodeCache,
    Preprocessing,
    layer_grid,
)
from sk_cnncodes.cache import code_cache as cache_module
from sk_cnncodes.cache.code_cache import MEMORY, resolve_cache
from sk_cnncodes.cache.file_store import FileState
from sk_cnncodes.cache.shared_folder import shared_folder
from tests import networks
from tests.forwards import Forwards, counted_forwards


@pytest.fixture
def forwards() -> Iterator[Forwards]:
    MEMORY.clear()
    with counted_forwards() as count:
        yield count


@pytest.fixture
def net(tmp_path: Path, plain: Preprocessing) -> str:
    return save_net(tmp_path / "net.onnx", plain)


def save_net(path: Path, plain: Preprocessing, seed: int = 0) -> str:
    model = networks.resnet()
    for tensor in model.graph.initializer:
        if seed:
            array = networks.numpy_helper.to_array(tensor)
            scaled = networks.numpy_helper.from_array(array * 1.5, tensor.name)
            tensor.CopyFrom(scaled)
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return networks.save(model, path)


# -- one forward pass per image ----------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "file", "instance"])
def test_an_image_runs_once(
    kind: str,
    net: str,
    photograph_files: list[Path],
    forwards: Forwards,
    tmp_path: Path,
) -> None:
    cache = {
        "memory": "memory",
        "file": tmp_path / "codes.sqlite3",
        "instance": CodeCache(tmp_path / "own.sqlite3"),
    }[kind]
    transformer = CNNCodeTransformer(net, cache=cache)
    expected = CNNCodeTransformer(net, cache=None).transform(photograph_files)
    assert forwards.images == 8
    first = transformer.fit_transform(photograph_files)
    assert forwards.images == 16
    np.testing.assert_array_equal(first, expected)
    again = transformer.transform(photograph_files[::-1])
    np.testing.assert_array_equal(again, expected[::-1])
    cloned = clone(transformer).fit_transform(photograph_files)
    np.testing.assert_array_equal(cloned, expected)
    assert forwards.images == 16


def test_without_a_cache_everything_runs(
    net: str, photograph_files: list[Path], forwards: Forwards
) -> None:
    transformer = CNNCodeTransformer(net, cache=None)
    transformer.transform(photograph_files)
    transformer.transform(photograph_files)
    assert forwards.images == 16
    assert MEMORY.info().rows == 0


def test_equal_images_run_once(
    net: str, photographs: list[np.ndarray], forwards: Forwards, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(photographs[0]).save(path)
    content = paths[0].read_bytes()
    X = [*paths, content, str(paths[1]), content]
    codes = CNNCodeTransformer(net).transform(X)
    assert forwards.images == 1
    assert (codes == codes[0]).all()
    arrays = [photographs[0], photographs[0].copy(), Image.fromarray(photographs[0])]
    CNNCodeTransformer(net).transform(arrays)
    assert forwards.images == 3  # arrays and PIL images have digests of their own


def search_of(net: str, cache: object, grid: dict) -> GridSearchCV:
    model = make_pipeline(
        CNNCodeTransformer(net, cache=cache), LogisticRegression(max_iter=1000)
    )
    return GridSearchCV(model, grid | {"logisticregression__C": [0.1, 1]}, cv=4)


def test_search_runs_each_image_once_for_all_layers(
    net: str, photograph_files: list[Path], forwards: Forwards, tmp_path: Path
) -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    layers = {"cnncodetransformer__layer": [-1, -2, -3]}
    plain_search = search_of(net, None, layers).fit(photograph_files, labels)
    assert forwards.images > 8 * 20
    forwards.images = 0
    one_by_one = search_of(net, CodeCache(), layers).fit(photograph_files, labels)
    assert forwards.images == 8
    forwards.images = 0
    cache = tmp_path / "codes.sqlite3"
    grid = layer_grid([-1, -2, -3])
    together = search_of(net, cache, grid).fit(photograph_files, labels)
    assert forwards.images == 8
    forwards.images = 0
    again = search_of(net, cache, grid).fit(photograph_files, labels)
    assert forwards.images == 0
    for search in (one_by_one, together, again):
        for fold in range(4):
            key = f"split{fold}_test_score"
            np.testing.assert_array_equal(
                search.cv_results_[key], plain_search.cv_results_[key]
            )


@pytest.mark.filterwarnings("ignore")  # the failed fits
def test_a_layer_that_one_of_two_backbones_lacks(
    net: str, photograph_files: list[Path]
) -> None:
    grid = layer_grid([-1, -10]) | {
        "cnncodetransformer__backbone": [net, "cnncodes-mini"]
    }
    search = search_of(net, "memory", grid).fit(photograph_files, [0, 1] * 4)
    for candidate, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        layer = candidate["cnncodetransformer__layer"]
        lacks = candidate["cnncodetransformer__backbone"] == net and layer == -10
        assert np.isfinite(score) == (not lacks), candidate


def test_a_full_cache_needs_no_session(
    net: str, photograph_files: list[Path], forwards: Forwards, tmp_path: Path
) -> None:
    cache = tmp_path / "codes.sqlite3"
    CNNCodeTransformer(net, cache=cache).transform(photograph_files)
    assert forwards.sessions == 1
    from sk_cnncodes.codes.sessions import SESSIONS

    SESSIONS.clear()
    CNNCodeTransformer(net, cache=cache).transform(photograph_files)
    assert forwards.sessions == 1


def test_a_transform_that_finds_all_codes_writes_nothing(
    net: str,
    photograph_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transformer = CNNCodeTransformer(net, cache=tmp_path / "codes.sqlite3")
    codes = transformer.fit_transform(photograph_files)

    def no_write(*_: Any) -> None:
        raise AssertionError("a transaction")

    monkeypatch.setattr("sk_cnncodes.cache.file_store.transaction", no_write)
    np.testing.assert_array_equal(transformer.transform(photograph_files), codes)


def test_workers_share_one_file(
    net: str, photograph_files: list[Path], forwards: Forwards, tmp_path: Path
) -> None:
    cache = CodeCache(tmp_path / "codes.sqlite3")
    codes = CNNCodeTransformer(net, cache=cache, cache_layers=[-1, -2])
    codes.precompute(photograph_files)
    assert cache.info().rows == 16
    model = make_pipeline(codes, LogisticRegression(max_iter=1000))
    grid = layer_grid([-1, -2]) | {"logisticregression__C": [0.1, 1, 10]}
    search = GridSearchCV(model, grid, cv=4, n_jobs=2, error_score="raise")
    search.fit(photograph_files, [0, 0, 0, 0, 1, 1, 1, 1])
    assert cache.info().rows == 16
    assert forwards.images == 8  # none for the refit in this process


def test_workers_share_the_memory_cache(
    net: str, photograph_files: list[Path], forwards: Forwards
) -> None:
    MEMORY.clear()
    model = make_pipeline(CNNCodeTransformer(net), LogisticRegression(max_iter=1000))
    grid = layer_grid([-1, -2]) | {"logisticregression__C": [0.1, 1]}
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    search = GridSearchCV(model, grid, cv=4, n_jobs=2, error_score="raise")
    search.fit(photograph_files, labels)
    folder = shared_folder(os.getpid())
    assert folder.is_dir()
    assert MEMORY.info().rows >= 16
    assert forwards.images == 0  # this process found the codes of its workers
    assert folder.stat().st_mode & 0o077 == 0


# -- cache keys --------------------------------------------------------------


def test_every_parameter_that_affects_a_code_is_in_the_key(
    net: str, photograph_files: list[Path], plain: Preprocessing, tmp_path: Path
) -> None:
    cache = CodeCache(tmp_path / "codes.sqlite3")
    other = Preprocessing(crop_size=(32, 32), resize="exact", scale=1 / 255)
    variants = [
        {},
        {"layer": -2},
        {"pooling": "max"},
        {"views": "flip"},
        {"views": "ten_crop", "norm": "power"},
        {"preprocessing": other},
        {"backbone": save_net(tmp_path / "other.onnx", plain, seed=1)},
    ]
    for parameters in variants * 2:
        given = {"backbone": net} | parameters
        codes = CNNCodeTransformer(**given, cache=cache).transform(photograph_files)
        fresh = CNNCodeTransformer(**given, cache=None).transform(photograph_files)
        np.testing.assert_array_equal(codes, fresh)
    assert cache.info().rows == 8 * len(variants)


def test_parameters_that_do_not_affect_a_code_are_not_in_the_key(
    net: str, photograph_files: list[Path], forwards: Forwards
) -> None:
    for parameters in (
        {"batch_size": 3},
        {"n_jobs": 1},
        {"device": "cpu"},
        {"on_error": "nan"},
        {"cache_layers": [-1]},
    ):
        CNNCodeTransformer(net, **parameters).transform(photograph_files)
    assert forwards.images == 8


def test_a_backbone_replaced_under_the_same_name(
    net: str, photograph_files: list[Path], plain: Preprocessing
) -> None:
    before = CNNCodeTransformer(net).transform(photograph_files)
    save_net(Path(net), plain, seed=1)
    after = CNNCodeTransformer(net).transform(photograph_files)
    fresh = CNNCodeTransformer(net, cache=None).transform(photograph_files)
    np.testing.assert_array_equal(after, fresh)
    assert not np.allclose(before, after)


# -- files that change -------------------------------------------------------


@pytest.fixture
def own_files(
    photographs: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Path]:
    folder = tmp_path / "own"
    folder.mkdir()
    paths = [folder / f"{i}.bmp" for i in range(4)]
    for path, pixels in zip(paths, photographs, strict=False):
        Image.fromarray(pixels[:40, :40]).save(path)
    # As if the files were old: their digests are remembered immediately.
    monkeypatch.setattr("sk_cnncodes.codes.digests.SETTLED_NS", -(10**18))
    return paths


@pytest.mark.skipif(sys.platform != "linux", reason="needs arbitrary file names")
def test_names_that_are_not_utf8(
    net: str, own_files: list[Path], tmp_path: Path
) -> None:
    name = os.fsdecode(b"caf\xe9.bmp")
    own_files[0] = own_files[0].rename(own_files[0].with_name(name))
    cache = CodeCache(tmp_path / "codes.sqlite3")
    transformer = CNNCodeTransformer(net, cache=cache)
    codes = transformer.transform(own_files)
    np.testing.assert_array_equal(transformer.transform(own_files), codes)
    assert cache.info().rows == len(own_files)


class Augmenting(Sequence[Any]):
    """Returns a different image each time, as augmentation does."""

    def __init__(self, images: list[np.ndarray], kind: Callable[..., Any]) -> None:
        self.images, self.kind = images, kind
        self.seen: list[Any] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        shifted = np.roll(self.images[index], 40 * len(self.seen), axis=1)
        self.seen.append(self.kind(shifted))
        return self.seen[-1]


@pytest.mark.parametrize("kind", [np.asarray, Image.fromarray])
def test_images_that_differ_each_time(
    kind: Callable[..., Any], net: str, photographs: list[np.ndarray]
) -> None:
    """No code is stored under the digest of another image."""
    cache = CodeCache()
    transformer = CNNCodeTransformer(net, cache=cache, n_jobs=1)
    images = Augmenting([pixels[:60, :60] for pixels in photographs], kind)
    transformer.transform(images)
    fresh = CNNCodeTransformer(net, cache=None).transform(images.seen)
    codes = transformer.transform(images.seen)
    np.testing.assert_allclose(codes, fresh, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_changed_file(
    kind: str, net: str, own_files: list[Path], photographs: list, tmp_path: Path
) -> None:
    """Even with the same size and timestamp."""
    cache = CodeCache(None if kind == "memory" else tmp_path / "codes.sqlite3")
    transformer = CNNCodeTransformer(net, cache=cache)
    before = transformer.transform(own_files)
    status = own_files[1].stat()
    Image.fromarray(photographs[6][:40, :40]).save(own_files[1])
    os.utime(own_files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert own_files[1].stat().st_size == status.st_size
    after = transformer.transform(own_files)
    fresh = CNNCodeTransformer(net, cache=None).transform(own_files)
    np.testing.assert_array_equal(after, fresh)
    np.testing.assert_array_equal(np.delete(after, 1, 0), np.delete(before, 1, 0))
    assert not np.allclose(after[1], before[1])


def test_a_file_that_changes_in_quick_succession(
    net: str, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    """Timestamps are too coarse for files written a moment ago."""
    path = tmp_path / "fast.bmp"
    for pixels in photographs:
        Image.fromarray(pixels[:40, :40]).save(path)
        code = CNNCodeTransformer(net).transform([path])
        fresh = CNNCodeTransformer(net, cache=None).transform([path])
        np.testing.assert_array_equal(code, fresh)


def test_a_file_that_changes_between_look_up_and_decoding(
    net: str,
    own_files: list[Path],
    photographs: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sk_cnncodes.codes import preparation

    read = preparation.read_content
    cache = CodeCache()
    old = own_files[2].read_bytes()
    X = [*own_files, own_files[2], old]

    def late_change(image: object, index: int) -> bytes:
        if index == 2:
            Image.fromarray(photographs[7][:40, :40]).save(own_files[2])
        return read(image, index)

    monkeypatch.setattr(preparation, "read_content", late_change)
    codes = CNNCodeTransformer(net, cache=cache, n_jobs=1).transform(X)
    monkeypatch.undo()
    fresh = CNNCodeTransformer(net, cache=None).transform(X)
    np.testing.assert_allclose(codes, fresh, rtol=1e-5, atol=1e-6)
    # No wrong code was stored.
    again = CNNCodeTransformer(net, cache=cache).transform(X)
    np.testing.assert_allclose(again, fresh, rtol=1e-5, atol=1e-6)


def test_touched_moved_and_linked_files_are_the_same_images(
    net: str, own_files: list[Path], forwards: Forwards, tmp_path: Path
) -> None:
    cache = tmp_path / "codes.sqlite3"
    codes = CNNCodeTransformer(net, cache=cache).transform(own_files)
    own_files[0].touch()
    moved = tmp_path / "moved"
    shutil.move(own_files[0].parent, moved)
    paths = [moved / path.name for path in own_files]
    link = tmp_path / "link.bmp"
    link.symlink_to(paths[3])
    again = CNNCodeTransformer(net, cache=cache).transform([*paths, link])
    np.testing.assert_array_equal(again, codes[[0, 1, 2, 3, 3]])
    assert forwards.images == 4


def test_a_second_look_up_reads_no_file(
    net: str, own_files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sk_cnncodes.codes import digests

    cache = tmp_path / "codes.sqlite3"
    codes = CNNCodeTransformer(net, cache=cache).transform(own_files)

    def no_reading(image: object, index: int) -> bytes:
        raise AssertionError(f"{image} is read again")

    monkeypatch.setattr(digests, "read_content", no_reading)
    again = CNNCodeTransformer(net, cache=cache).transform(own_files)
    np.testing.assert_array_equal(again, codes)
    # In another process too.
    monkeypatch.setattr(cache_module, "_files", OrderedDict())
    again = CNNCodeTransformer(net, cache=cache).transform(own_files)
    np.testing.assert_array_equal(again, codes)


# -- precompute --------------------------------------------------------------


def test_precompute_continues_after_an_interruption(
    net: str,
    photograph_files: list[Path],
    forwards: Forwards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = CodeCache(tmp_path / "codes.sqlite3")
    transformer = CNNCodeTransformer(
        net, cache=cache, cache_layers=[-1, -2], batch_size=2, n_jobs=1
    )
    with pytest.raises(FileNotFoundError):
        transformer.precompute([*photograph_files[:4], "gone.jpg"])
    assert cache.info().rows == 8
    assert transformer.precompute(photograph_files) is transformer
    assert forwards.images == 8
    assert cache.info().rows == 16
    assert "8/8" in capsys.readouterr().err
    transformer.set_params(layer=-2).transform(photograph_files)
    assert forwards.images == 8


def test_precompute_completes_the_layers(
    net: str, photograph_files: list[Path], forwards: Forwards
) -> None:
    cache = CodeCache()
    CNNCodeTransformer(net, cache=cache).transform(photograph_files)
    CNNCodeTransformer(net, cache=cache, cache_layers=[-2]).precompute(photograph_files)
    assert cache.info().rows == 16


def test_precompute_needs_a_cache(net: str, photograph_files: list[Path]) -> None:
    with pytest.raises(ValueError, match="precompute needs a cache"):
        CNNCodeTransformer(net, cache=None).precompute(photograph_files)


# -- CodeCache ---------------------------------------------------------------


def digests(count: int, start: int = 0) -> list[bytes]:
    return [f"image {i:026d}".encode() for i in range(start, start + count)]


@pytest.fixture(params=["memory", "file"])
def any_cache(request: pytest.FixtureRequest, tmp_path: Path) -> CodeCache:
    path = None if request.param == "memory" else tmp_path / "codes.sqlite3"
    return CodeCache(path)


def test_rows_come_back(any_cache: CodeCache) -> None:
    codes = np.random.default_rng(0).normal(size=(1200, 7)).astype(np.float32)
    keys = digests(1200)
    any_cache.put_many([("spec", keys[:700], codes[:700]), ("b", keys[:2], codes[5:7])])
    any_cache.put_many([("spec", keys[700:], codes[700:])])
    order = np.random.default_rng(1).permutation(1200)
    found = any_cache.get_many("spec", [keys[i] for i in order])
    np.testing.assert_array_equal(found, codes[order])
    assert any_cache.get_many("spec", [b"other", keys[3]])[0] is None
    assert any_cache.get_many("no spec", keys[:2]) == [None, None]
    np.testing.assert_array_equal(any_cache.get_many("b", keys[:2]), codes[5:7])
    info = any_cache.info()
    assert info.rows == 1202
    assert info.bytes >= 1202 * 7 * 4
    assert (info.hits, info.misses) == (1203, 3)
    any_cache.clear()
    assert any_cache.info().rows == 0
    assert any_cache.get_many("spec", keys[:1]) == [None]


def test_files_are_remembered(any_cache: CodeCache) -> None:
    files = [FileState(f"/a/{i}", i, 2 * i, 3 * i) for i in range(900)]
    any_cache.remember_files([(f, f.path.encode()) for f in files])
    assert any_cache.file_digests(files) == [f.path.encode() for f in files]
    changed = [FileState(f.path, f.size, f.mtime_ns + 1, f.ctime_ns) for f in files]
    assert any_cache.file_digests(changed) == [None] * 900
    any_cache.remember_files([(changed[0], b"new")])
    assert any_cache.file_digests([files[0], changed[0]]) == [None, b"new"]


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_size_is_bounded(kind: str, tmp_path: Path) -> None:
    path = None if kind == "memory" else tmp_path / "codes.sqlite3"
    cache = CodeCache(path, max_bytes=300_000)
    codes = np.ones((50, 500), np.float32)  # 100 kB
    for number in range(10):
        keys = digests(50, 50 * number)
        cache.put_many([(f"spec {number // 5}", keys, codes)])
    info = cache.info()
    assert 50_000 < info.bytes <= 300_000
    # The newest are kept, the oldest are dropped.
    assert cache.get_many("spec 1", digests(50, 450))[-1] is not None
    assert cache.get_many("spec 0", digests(1)) == [None]
    cache.prune(100_000)
    assert cache.info().bytes <= 100_000
    with pytest.raises(ValueError, match="max_bytes"):
        cache.prune(-1)


def test_the_least_recently_used_are_dropped_first() -> None:
    cache = CodeCache(max_bytes=10_000)
    rows = np.ones((1, 500), np.float32)
    for number in range(4):
        cache.put_many([("spec", digests(1, number), rows)])
    cache.get_many("spec", digests(1, 0))
    cache.put_many([("spec", digests(1, 4), rows)])
    found = cache.get_many("spec", digests(5))
    assert [code is not None for code in found] == [True, False, True, True, True]


def test_copies_share_the_store(tmp_path: Path) -> None:
    for cache in (CodeCache(), CodeCache(tmp_path / "codes.sqlite3")):
        assert copy.deepcopy(cache) is cache
        transformer = clone(CNNCodeTransformer(cache=cache))
        assert transformer.cache is cache
    sent = pickle.loads(pickle.dumps(CodeCache(tmp_path / "a.sqlite3", max_bytes=77)))
    assert (sent.path, sent.max_bytes) == (str(tmp_path / "a.sqlite3"), 77)
    assert pickle.loads(pickle.dumps(CodeCache(max_bytes=5))).max_bytes == 5


def test_the_cache_parameter(tmp_path: Path) -> None:
    assert resolve_cache(None) is None
    assert resolve_cache("memory") is MEMORY
    in_folder = resolve_cache(tmp_path)
    assert in_folder.path == str(tmp_path / "sk_cnncodes.sqlite3")
    assert resolve_cache(str(tmp_path)) is in_folder
    with pytest.raises(TypeError, match="cache: expected 'memory', a path"):
        resolve_cache(3)
    with pytest.raises(ValueError, match="max_bytes"):
        CodeCache(max_bytes=0)
    with pytest.raises(TypeError, match="cache_layers: expected a list"):
        CNNCodeTransformer(cache_layers=-1).fit([tmp_path])


def test_threads_share_a_cache(any_cache: CodeCache) -> None:
    codes = np.random.default_rng(0).normal(size=(400, 9)).astype(np.float32)
    keys = digests(400)

    def work(start: int) -> None:
        for i in range(start, 400, 8):
            any_cache.put_many([("spec", keys[i : i + 1], codes[i : i + 1])])
            any_cache.get_many("spec", keys[:i])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(any_cache.get_many("spec", keys), codes)


def test_a_forked_child_uses_the_same_file(tmp_path: Path) -> None:
    program = (
        "import os, sys, warnings, numpy as np\n"
        "warnings.simplefilter('ignore')\n"
        "from sk_cnncodes import CodeCache\n"
        "cache = CodeCache(sys.argv[1])\n"
        "code = np.ones((1, 3), np.float32)\n"
        "cache.put_many([('s', [b'parent'], code)])\n"
        "child = os.fork()\n"
        "name = b'after' if child else b'child'\n"
        "assert cache.get_many('s', [b'parent'])[0] is not None\n"
        "cache.put_many([('s', [name], code)])\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    assert cache.info().rows == 3, cache.info()\n"
    )
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    path = str(tmp_path / "codes.sqlite3")
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)


def test_a_cache_that_fails_does_not_break_a_transform(
    net: str, photograph_files: list[Path], tmp_path: Path
) -> None:
    expected = CNNCodeTransformer(net, cache=None).transform(photograph_files)
    text = tmp_path / "notes.txt"
    text.write_text("not a cache" * 500)
    transformer = CNNCodeTransformer(net, cache=text)
    with pytest.warns(CacheWarning, match="notes.txt.*not an SQLite file") as caught:
        codes = transformer.transform(photograph_files)
    assert len(caught) == 1
    np.testing.assert_array_equal(codes, expected)
    assert text.read_text() == "not a cache" * 500
    again = transformer.transform(photograph_files)  # reported once
    np.testing.assert_array_equal(again, expected)


def test_claims_of_codes_that_are_not_kept_make_nobody_wait(
    net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transforms waited two minutes for what each of them had computed."""
    images = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), np.uint8)
    cache = CodeCache()
    claim, both = cache.claim, threading.Barrier(2)

    def claim_together(spec: str, digests: Any, owner: str) -> set[bytes]:
        mine = claim(spec, digests, owner)
        with suppress(threading.BrokenBarrierError):
            both.wait(5)
        return mine

    monkeypatch.setattr(cache, "claim", claim_together)
    monkeypatch.setattr(cache, "put_many", lambda rows: None)  # keeps nothing
    transformer = CNNCodeTransformer(net, cache=cache, batch_size=32)
    orders = [images, images[::-1]]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(transformer.transform, order) for order in orders]
        codes = [future.result(timeout=60) for future in futures]
    np.testing.assert_allclose(codes[0], codes[1][::-1], atol=1e-4)
