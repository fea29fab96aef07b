"""CodeIndex: the nearest codes, by key, whether all are compared or not."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.neighbors import NearestNeighbors

from sk_cnncodes import CNNCodeTransformer, CodeIndex, embed_to, open_codes
from sk_cnncodes.scale import index as module
from sk_cnncodes.scale import index_file
from tests.scale.conftest import png

LENGTH = 24
INSTALLED = find_spec("usearch") is not None
METRICS = ["cosine", "euclidean"]
KINDS = [
    True,
    pytest.param(
        False,
        marks=pytest.mark.skipif(not INSTALLED, reason="usearch is not installed"),
    ),
]
all_kinds = pytest.mark.parametrize("exact", KINDS)
all_metrics = pytest.mark.parametrize("metric", METRICS)


def codes_like(count: int, seed: int = 0) -> np.ndarray:
    """Codes as networks give them: around some centres, none below 0."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, 6))[rng.integers(0, 20, count)]
    points = centres + 0.3 * rng.normal(size=centres.shape)
    weights = np.random.default_rng(7).normal(size=(6, LENGTH))
    return np.maximum(points @ weights, 0).astype(np.float32) + 0.01


def keys_of(count: int) -> list[str]:
    return [f"k{row}" for row in range(count)]


@all_kinds
@all_metrics
def test_the_nearest(metric: str, exact: bool) -> None:
    codes, queries = codes_like(600), codes_like(50, seed=1)
    index = CodeIndex(metric, exact=exact).add(codes, keys_of(600))
    keys, distances = index.search(queries, 5)
    far, rows = (
        NearestNeighbors(n_neighbors=5, metric=metric, algorithm="brute")
        .fit(codes)
        .kneighbors(queries)
    )
    assert (keys.shape, keys.dtype, distances.dtype) == ((50, 5), object, np.float32)
    same = np.mean(keys == np.array(keys_of(600), object)[rows])
    assert same == 1 if exact else same > 0.95
    # Euclidean distances are of float16 in a graph.
    np.testing.assert_allclose(distances, far, rtol=1e-5 if exact else 1e-3, atol=1e-4)


@all_kinds
@all_metrics
def test_equal_codes_are_in_the_order_of_their_rows(metric: str, exact: bool) -> None:
    codes = np.repeat(codes_like(9), 4, axis=0)
    index = CodeIndex(metric, exact=exact).add(codes, keys_of(36))
    keys, distances = index.search(codes[::4], 3)
    assert keys.tolist() == [[f"k{4 * i + j}" for j in range(3)] for i in range(9)]
    np.testing.assert_allclose(distances, 0, atol=1e-6)


@all_kinds
def test_codes_of_zeros_are_far_by_cosine(exact: bool) -> None:
    index = CodeIndex(exact=exact).add([[0.0, 0.0], [1.0, 2.0]], ["zero", "one"])
    keys, distances = index.search(np.array([[2.0, 4.0], [0.0, 0.0]]))
    assert keys.tolist() == [["one", "zero"], ["zero", "one"]]
    np.testing.assert_allclose(distances, [[0, 1], [1, 1]], atol=1e-6)


@all_kinds
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_codes_of_any_size(size: float, exact: bool) -> None:
    codes = codes_like(300) * np.float32(size)
    index = CodeIndex("euclidean", exact=exact).add(codes, keys_of(300))
    keys, distances = index.search(codes, 2)
    assert (keys[:, 0] == keys_of(300)).all()
    true = np.linalg.norm(codes[:, None] - codes, axis=2)
    np.testing.assert_allclose(distances[:, 1], np.sort(true)[:, 1], atol=5e-3 * size)


@all_kinds
@all_metrics
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e20, 1e36])
@pytest.mark.filterwarnings("error")
def test_codes_whose_squares_are_too_large_or_too_small(
    size: float, metric: str, exact: bool
) -> None:
    """In float32; some are compared with usual ones where it is about angles."""
    codes = codes_like(200)
    if metric == "cosine":
        codes[::2] *= np.float32(size)
    else:
        codes = codes * np.float32(size)
    codes[3] = 0
    index = CodeIndex(metric, exact=exact).add(codes, keys_of(200))
    true = codes.astype(float)
    far = distances_between(true, metric)
    keys, distances = index.search(codes, 2)
    rows = np.vectorize(lambda key: int(key[1:]))(keys)
    found = np.take_along_axis(far, rows, axis=1)
    unit = 1 if metric == "cosine" else far.max()
    close = 1e-6 if exact else 2e-3
    np.testing.assert_allclose(found / unit, np.sort(far)[:, :2] / unit, atol=close)
    np.testing.assert_allclose(distances / unit, found / unit, atol=close)


def distances_between(codes: np.ndarray, metric: str) -> np.ndarray:
    if metric == "euclidean":
        return np.linalg.norm(codes[:, None] - codes, axis=2)
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    unit = codes / np.where(lengths == 0, 1, lengths)
    return np.clip(1 - unit @ unit.T, 0, 2)


@pytest.mark.skipif(not INSTALLED, reason="usearch is not installed")
def test_codes_far_larger_than_the_first_are_refused() -> None:
    index = CodeIndex("euclidean", exact=False).add(codes_like(30), keys_of(30))
    with pytest.raises(ValueError, match="is too large beside those that the index"):
        index.add(codes_like(1) * 1e6, ["large"])
    # What the key of a refused code had is still found.
    with pytest.raises(ValueError, match="is too large beside those that the index"):
        index.add([*codes_like(2, seed=1), codes_like(1)[0] * 1e6], ["new", "k1", "k0"])
    keys, _ = index.search(codes_like(30), 1)
    assert (len(index), keys.ravel().tolist()) == (30, keys_of(30))


class Model:
    """The same by brute force: codes by key, in the order of their first adding."""

    def __init__(self) -> None:
        self.codes: dict[str, np.ndarray] = {}

    def search(self, query: np.ndarray, k: int) -> list[tuple[str, float]]:
        far = [
            (float(np.linalg.norm(code - query)), place, key)
            for place, (key, code) in enumerate(self.codes.items())
        ]
        return [(key, distance) for distance, _, key in sorted(far)[:k]]


names = st.sampled_from([f"name {number}" for number in range(12)])
# Exact in float16: distances are those of the model.
values = st.lists(st.integers(-4, 4), min_size=3, max_size=3)
changes = st.one_of(
    st.tuples(st.just("add"), st.lists(st.tuples(names, values), max_size=6)),
    st.tuples(st.just("remove"), st.lists(names, max_size=4)),
    st.tuples(st.just("reopen"), st.none()),
)


@all_kinds
@settings(deadline=None, max_examples=60)
@given(steps=st.lists(changes, max_size=12), query=values, k=st.integers(1, 14))
def test_any_changes(
    exact: bool, steps: list, query: list[int], k: int, tmp_path_factory: object
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any-{exact}.index"  # type: ignore[attr-defined]
    index, model = CodeIndex("euclidean", exact=exact), Model()
    searched = np.array([query], float)
    for what, given_ in steps:
        if what == "add" and given_:
            keys, codes = zip(*given_, strict=True)
            index.add(np.array(codes, float), keys)
            model.codes.update(zip(keys, np.array(codes, float), strict=True))
        elif what == "remove":
            there = [key for key in given_ if key in model.codes]
            index.remove(there)
            for key in {*there}:
                del model.codes[key]
        elif what == "reopen":
            index.save(path)
            index = CodeIndex.open(path)
        assert len(index) == len(model.codes)
        if model.codes:
            keys, distances = index.search(searched, k)
            expected = model.search(searched[0], k)
            assert keys[0].tolist() == [key for key, _ in expected]
            np.testing.assert_allclose(distances[0], [far for _, far in expected])
    assert index.keys == list(model.codes)
    assert ("name 0" in index) == ("name 0" in model.codes)


@pytest.mark.skipif(not INSTALLED, reason="usearch is not installed")
def test_recall_after_many_changes(tmp_path: Path) -> None:
    """Each code replaced about five times, and half of them removed."""
    rng = np.random.default_rng(0)
    codes = codes_like(3000)
    index = CodeIndex(exact=False, n_jobs=-1).add(codes, keys_of(3000))
    for turn in range(15):
        rows = rng.choice(3000, 1000, replace=False)
        codes[rows] = codes_like(1000, seed=turn)
        index.add(codes[rows], [f"k{row}" for row in rows])
    index.remove(keys_of(1500))
    index.save(tmp_path / "index")
    queries = codes_like(100, seed=99)
    true, _ = CodeIndex().add(codes[1500:], keys_of(3000)[1500:]).search(queries)
    for each in (index, CodeIndex.open(tmp_path / "index")):
        found, _ = each.search(queries)
        same = [len({*a} & {*b}) for a, b in zip(found, true, strict=True)]
        assert np.mean(same) / 10 > 0.95


def test_codes_of_nan_are_left_out_and_counted() -> None:
    codes = codes_like(6)
    codes[[1, 4]] = np.nan
    index = CodeIndex().add(codes, keys_of(6))
    assert (len(index), index.n_left_out, "k1" in index) == (4, 2, False)
    keys, _ = index.search(codes[:1])
    assert sorted(keys[0]) == ["k0", "k2", "k3", "k5"]
    index.add(codes[1:2], ["k0"])  # what was there stays
    assert index.search(codes[:1], 1)[0].tolist() == [["k0"]]
    with pytest.raises(ValueError, match="codes: row 1 has values that are not finite"):
        index.search(codes[:2])


def test_the_last_code_of_a_key_counts() -> None:
    codes = codes_like(3)
    index = CodeIndex().add(codes, ["a", "b", "a"])
    assert (len(index), index.keys) == (2, ["a", "b"])
    assert index.search(codes[2:], 1)[0].tolist() == [["a"]]
    assert index.search(codes[2:], 1)[1] < 1e-6


def test_nothing_to_find() -> None:
    keys, distances = CodeIndex().search(codes_like(3))
    assert keys.shape == distances.shape == (3, 0)
    index = CodeIndex().add(np.full((2, LENGTH), np.nan), ["a", "b"])
    assert index.search(codes_like(3))[0].shape == (3, 0)


# -- how many are compared ----------------------------------------------------------


@pytest.mark.skipif(not INSTALLED, reason="usearch is not installed")
def test_beyond_some_codes_a_graph_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EXACT", 500)
    codes = codes_like(900)
    index = CodeIndex().add(codes[:500], keys_of(500))
    assert "all compared" in repr(index)
    index.add(codes[500:], keys_of(900)[500:])
    assert "in a graph" in repr(index)
    assert (index.search(codes, 1)[0][:, 0] == keys_of(900)).mean() > 0.95
    assert "all compared" in repr(CodeIndex(exact=True).add(codes, keys_of(900)))


def test_without_usearch_all_codes_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_EXACT", 500)
    monkeypatch.setitem(sys.modules, "usearch", None)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    codes = codes_like(900)
    index = CodeIndex()
    with pytest.warns(UserWarning, match=r"pip install 'sk-cnncodes\[index\]'") as seen:
        for start in range(0, 900, 100):
            part = slice(start, start + 100)
            index.add(codes[part], keys_of(900)[part])
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert (index.search(codes, 1)[0][:, 0] == keys_of(900)).all()
    with pytest.raises(ImportError, match=r"pip install 'sk-cnncodes\[index\]'"):
        CodeIndex(exact=False)


def test_many_codes_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from sk_cnncodes.scale import nearest

    codes = codes_like(700)
    whole = CodeIndex().add(codes, keys_of(700)).search(codes, 7)
    monkeypatch.setattr(nearest, "_DISTANCES", 1500)
    monkeypatch.setattr(nearest, "_ROWS", 64)
    in_parts = CodeIndex().add(codes, keys_of(700)).search(codes, 7)
    assert (whole[0] == in_parts[0]).all()
    assert (whole[1] == in_parts[1]).all()


@pytest.mark.skipif(not INSTALLED, reason="usearch is not installed")
def test_one_thread_gives_the_same_index(tmp_path: Path) -> None:
    for name in ("a", "b"):
        index = CodeIndex(exact=False).add(codes_like(800), keys_of(800))
        index.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@all_kinds
def test_searches_of_several_threads(exact: bool) -> None:
    codes = codes_like(800)
    index = CodeIndex(exact=exact, n_jobs=2).add(codes, keys_of(800))
    expected, found = index.search(codes)[0], []

    def search() -> None:
        for _ in range(5):
            found.append(bool((index.search(codes)[0] == expected).all()))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 20


# -- shards and code specs ----------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow")
    images: list[tuple[str, bytes]] = [(f"k{n}", png(n)) for n in range(23)]
    images[7] = ("k7", b"no image")
    folder = tmp_path_factory.mktemp("codes")
    embed_to(CNNCodeTransformer(tiny), folder, images, shard_rows=5)
    return folder


def test_codes_of_shards(shards: Path, tiny: str) -> None:
    index = CodeIndex("euclidean").add(shards)
    assert (len(index), index.n_left_out) == (22, 1)
    own = CNNCodeTransformer(tiny)
    assert index.search(own.transform([png(3)]), 1, spec=own)[0].tolist() == [["k3"]]
    again = CodeIndex("euclidean").add(open_codes(shards))
    assert again.keys == index.keys == [f"k{n}" for n in range(23) if n != 7]
    assert (
        index.search(open_codes(shards)[8:12], 1)[0][:, 0].tolist() == keys_of(12)[8:]
    )


def test_positions_as_keys_that_replace_others(tiny: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name, first in (("a", 0), ("b", 3)):
        images = [png(number) for number in range(first, first + 3)]
        embed_to(CNNCodeTransformer(tiny), tmp_path / name, images)
    index = CodeIndex().add(tmp_path / "a")
    with pytest.warns(UserWarning, match=r"^3 codes of the index were replaced") as got:
        index.add(tmp_path / "b")
    assert (len(got), got[0].filename, len(index)) == (1, __file__, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(open_codes(tmp_path / "a")[:], ["a", "b", "c"])
        index.add(open_codes(tmp_path / "a")[:], ["0", "1", "2"])  # their own choice
    assert len(index) == 6


def test_codes_of_another_spec_are_refused(shards: Path, tiny: str) -> None:
    index = CodeIndex().add(shards)
    other = CNNCodeTransformer(tiny, norm="l2")
    for call in (index.search, lambda c, spec: index.add(c, ["new"], spec=spec)):
        with pytest.raises(ValueError, match="of another code spec"):
            call(np.ones((1, 5)), spec=other)
    with pytest.raises(ValueError, match="of another code spec"):
        CodeIndex().add(np.ones((1, 5)), ["a"], spec="0" * 64).add(shards)
    assert len(index) == 22


# -- files --------------------------------------------------------------------------


def saved(tmp_path: Path, exact: bool) -> tuple[CodeIndex, Path]:
    index = CodeIndex(exact=exact).add(codes_like(300), keys_of(300), spec="a" * 64)
    index.save(tmp_path / "photos.index")
    return index, tmp_path / "photos.index"


@all_kinds
def test_opened_in_another_process(tmp_path: Path, exact: bool) -> None:
    index, path = saved(tmp_path, exact)
    np.save(tmp_path / "queries.npy", codes_like(5, seed=3))
    code = """
        import sys, numpy as np
        from sk_cnncodes import CodeIndex
        index = CodeIndex.open(sys.argv[1])
        keys, distances = index.search(np.load(sys.argv[2]), 4)
        print(repr(index), index.spec, keys.tolist(), distances.tolist(), sep="\\n")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), path]
    command += [tmp_path / "queries.npy"]
    lines = subprocess.check_output(command, text=True).splitlines()
    keys, distances = index.search(codes_like(5, seed=3), 4)
    expected = [repr(index), "a" * 64, str(keys.tolist()), str(distances.tolist())]
    assert lines == expected


@all_kinds
def test_an_opened_index_is_mapped_until_it_is_changed(
    tmp_path: Path, exact: bool
) -> None:
    index, path = saved(tmp_path, exact)
    before, first = path.read_bytes(), codes_like(300)[:1]
    opened = CodeIndex.open(path)
    if sys.platform == "linux":
        mapped = Path("/proc/self/maps").read_text()
        assert str(path) in mapped
    opened.remove(["k0"]).add(first, ["k300"])
    assert path.read_bytes() == before
    assert opened.search(first, 1)[0].tolist() == [["k300"]]
    opened.save(path)  # over the file that it was opened from
    assert CodeIndex.open(path).keys == opened.keys
    assert index.search(first, 1)[0].tolist() == [["k0"]]


@all_kinds
@pytest.mark.parametrize("key", ["", "ü/漢字.png", "a\nb", "\udcff.png", "x" * 10_000])
def test_any_key(tmp_path: Path, key: str, exact: bool) -> None:
    path = tmp_path / "index"
    index = CodeIndex(exact=exact).add(codes_like(3), ["a", key, "b"]).remove(["a"])
    index.save(path)
    assert CodeIndex.open(path).keys == [key, "b"]
    assert CodeIndex.open(path).search(codes_like(3)[1:2], 1)[0].tolist() == [[key]]


@all_kinds
def test_damage_is_found(tmp_path: Path, exact: bool) -> None:
    _, path = saved(tmp_path, exact)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(whole), 60).tolist(), 0, len(whole) - 1]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        if content[place] != whole[place] and not _is_padding(whole, place):
            with pytest.raises(ValueError, match=r"photos\.index'"):
                CodeIndex.open(path)
    for size in [0, 1, 100, *rng.integers(0, len(whole), 20).tolist(), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"photos\.index'.*cut off"):
            CodeIndex.open(path)


def _is_padding(whole: bytes, place: int) -> bool:
    """Whether a byte stands between the parts of a file."""
    text = whole[: -index_file._TAIL]
    start = text.rindex(b'{"version"')
    parts = json.loads(text[start:])["parts"].values()
    within = [p["offset"] <= place < p["offset"] + p["bytes"] for p in parts]
    return place < start and not any(within)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 100, pickle.dumps([1] * 99)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a file that CodeIndex\.save wrote"):
        CodeIndex.open(path)
    with pytest.raises(FileNotFoundError):
        CodeIndex.open(tmp_path / "missing")


def test_a_graph_needs_usearch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("usearch")
    _, path = saved(tmp_path, exact=False)
    monkeypatch.setitem(sys.modules, "usearch", None)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(ImportError, match=r"pip install 'sk-cnncodes\[index\]'"):
        CodeIndex.open(path)


def test_an_error_while_saving_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, path = saved(tmp_path, exact=True)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_file, "_key_parts", fail)
    with pytest.raises(OSError, match="No space left"):
        index.add(codes_like(2), ["x", "y"]).save(path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
@all_kinds
def test_killed_while_saving(tmp_path: Path, exact: bool) -> None:
    path = tmp_path / "photos.index"
    code = f"""
        import sys
        from sk_cnncodes import CodeIndex
        from tests.scale.test_index import codes_like, keys_of
        index = CodeIndex(exact={exact}).add(codes_like(2000), keys_of(2000))
        print("ready", flush=True)
        while True:
            index.save(sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), path]
    root = Path(__file__).parents[2]
    rng = np.random.default_rng(0)
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if path.exists():
            assert len(CodeIndex.open(path)) == 2000
    index = CodeIndex().add(codes_like(2), ["a", "b"])
    parts = [each for each in tmp_path.iterdir() if each != path]
    index.save(path)
    assert all(each.exists() for each in parts)  # they may be of another machine
    for each in parts:
        os.utime(each, (0, 0))
    index.save(path)
    assert [*tmp_path.iterdir()] == [path]
    assert CodeIndex.open(path).keys == ["a", "b"]


# -- wrong arguments ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: CodeIndex("l1"), "metric='l1': expected 'cosine' or 'euclidean'"),
        (lambda _: CodeIndex(exact=3), "exact=3: expected True, False or None"),
        (lambda _: CodeIndex(n_jobs=0), "n_jobs: expected None or an int"),
        (lambda i: i.add(codes_like(2)), "keys=None: expected a text for each of 2"),
        (lambda i: i.add(codes_like(2), "ab"), "keys='ab': expected a text for each"),
        (lambda i: i.add(codes_like(2), ["x"]), "keys: got 1. Expected one for each"),
        (lambda i: i.add(codes_like(2), ["x", 3]), r"keys\[1\]=3: expected a str"),
        (lambda i: i.add([[1.0]], ["x"]), "got 1 features. Expected 24"),
        (lambda i: i.add([["a"]], ["x"]), "Expected numbers of shape"),
        (lambda i: i.search(codes_like(1)[0]), r"of one code, codes\[None\]"),
        (lambda i: i.search(np.ones((2, 3))), "got 3 features. Expected 24"),
        (lambda i: i.search(codes_like(1), 0), "k=0: expected a number of codes"),
        (lambda i: i.remove("k0"), "keys='k0': expected a list of keys"),
        (lambda i: i.add("missing"), "expected a folder that embed_to wrote"),
    ],
)
def test_errors(call: Callable[[CodeIndex], object], message: str) -> None:
    index = CodeIndex().add(codes_like(5), keys_of(5))
    with pytest.raises(ValueError, match=message):
        call(index)
    assert len(index) == 5


def test_a_key_that_is_not_there_is_not_removed() -> None:
    index = CodeIndex().add(codes_like(5), keys_of(5))
    with pytest.raises(KeyError, match="key 'gone': it is not in the index"):
        index.remove(["k0", "gone"])
    assert index.keys == keys_of(5)


def test_an_index_is_not_pickled() -> None:
    index = CodeIndex().add(codes_like(5), keys_of(5))
    for function in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"save\(path\) writes it"):
            function(index)
