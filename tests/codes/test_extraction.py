"""Extraction: bounded memory, errors stop it, threads end."""

from __future__ import annotations

import gc
import io
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sk_cnncodes import (
    BackboneError,
    CNNCodeTransformer,
    CodeCache,
    ImageError,
    Preprocessing,
)
from sk_cnncodes.codes.elements import Elements
from tests import networks
from tests.forwards import counted_forwards


class Counted(Sequence[Any]):
    """Creates images on demand, and records how far they were requested."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        self.asked = max(self.asked, index + 1)
        return np.full((8, 8), index % 256, np.uint8)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, plain: Preprocessing) -> str:
    model = networks.resnet()
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return networks.save(model, tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_lazy_sequences_are_not_held(net: str, n_jobs: int) -> None:
    images = Counted(600)
    transformer = CNNCodeTransformer(net, n_jobs=n_jobs, batch_size=4)
    codes = transformer.transform(images)
    assert codes.shape == (600, 16)
    np.testing.assert_allclose(
        codes[5], transformer.transform([images[5]])[0], rtol=1e-4
    )


class Fetched(Sequence[Any]):
    """Counts how often each element was fetched, and how many are alive."""

    def __init__(self, make: Any, count: int) -> None:
        self.make, self.count = make, count
        self.fetched = [0] * count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.fetched[index] += 1
        return self.make(index)


def png(index: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), index % 200, np.uint8)).save(stream, "png")
    return stream.getvalue()


FORMS = {
    "array": lambda index: np.full((8, 8), index % 200, np.uint8),
    "bytes": png,
    "pil": lambda index: Image.open(io.BytesIO(png(index))),
    "dict": lambda index: {"bytes": png(index), "path": f"{index}.png"},
}


@pytest.mark.parametrize("n_jobs", [1, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cached", [True, False])
def test_each_element_of_a_lazy_sequence_is_fetched_once(
    net: str, form: str, n_jobs: int, cached: bool
) -> None:
    cache = CodeCache() if cached else None
    transformer = CNNCodeTransformer(net, n_jobs=n_jobs, batch_size=4, cache=cache)
    images = Fetched(FORMS[form], 700)
    codes = transformer.transform(images)
    assert images.fetched == [1] * 700
    held = transformer.set_params(cache=None).transform(
        [images.make(i) for i in (3, 699)]
    )
    np.testing.assert_allclose(codes[[3, 699]], held, rtol=1e-4)
    if cached:
        again = transformer.set_params(cache=cache).transform(images)
        assert images.fetched == [2] * 700
        np.testing.assert_array_equal(again, codes)


def test_paths_of_a_lazy_sequence_are_fetched_once(net: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        path.write_bytes(png(index))
    images = Fetched(paths.__getitem__, 5)
    CNNCodeTransformer(net, cache=CodeCache()).transform(images)
    assert images.fetched == [1] * 5


def test_files_of_other_libraries_are_read_once(net: str) -> None:
    class Remote:
        reads = 0

        def __init__(self, index: int) -> None:
            self.index = index

        def read_bytes(self) -> bytes:
            Remote.reads += 1
            return png(self.index)

    images = [Remote(index) for index in range(600)]
    CNNCodeTransformer(net, cache=CodeCache()).transform(images)
    assert Remote.reads == 600


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_elements_are_released(net: str, n_jobs: int, cached: bool) -> None:
    alive: set[int] = set()
    most = 0

    class Pixels(np.ndarray):
        pass

    def make(index: int) -> Any:
        nonlocal most
        made = np.full((8, 8), index % 200, np.uint8).view(Pixels)
        alive.add(index)
        weakref.finalize(made, alive.discard, index)
        most = max(most, len(alive))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sk_cnncodes.codes.elements._CHUNK_BYTES", 20 * 320)
        cache = CodeCache() if cached else None
        transformer = CNNCodeTransformer(net, n_jobs=n_jobs, batch_size=4, cache=cache)
        images = Fetched(make, 500)
        transformer.transform(images)
    assert most <= 2 * 20 + 2 * n_jobs + 4 * n_jobs * 2
    assert sum(images.fetched) <= 1.1 * 500
    gc.collect()
    assert len(alive) == 0


def test_lists_in_memory_are_not_copied() -> None:
    images = [np.zeros((8, 8), np.uint8)] * 3
    elements = Elements(images)
    assert list(elements.chunks(2, map)) == [range(2), range(2, 3)]
    assert elements.fetch(1) is elements.take(1) is images[1]
    assert not elements._held


def test_a_lazy_sequence_that_fails(net: str) -> None:
    def make(index: int) -> Any:
        if index % 3 == 1:
            raise KeyError("gone")
        return FORMS["array"](index)

    images = Fetched(make, 9)
    transformer = CNNCodeTransformer(net, cache=CodeCache())
    with pytest.raises(ImageError, match="image 1: Fetched does not give it.*gone"):
        transformer.transform(images)
    transformer.set_params(on_error="nan")
    images.fetched = [0] * 9
    with pytest.warns(UserWarning, match="3 of 9 images could not be read"):
        codes = transformer.transform(images)
    assert np.isnan(codes).all(axis=1).tolist() == [False, True, False] * 3
    assert images.fetched == [1] * 9


# -- generators --------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_jobs", [1, 3])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("count", [1, 700])
def test_generators_to_a_file(
    net: str, form: str, n_jobs: int, cached: bool, count: int, tmp_path: Path
) -> None:
    cache = CodeCache() if cached else None
    transformer = CNNCodeTransformer(net, n_jobs=n_jobs, batch_size=4, cache=cache)
    made = (FORMS[form](index) for index in range(count))
    codes = transformer.transform_to(tmp_path / "codes.npy", made)
    expected = transformer.set_params(cache=None).transform(
        [FORMS[form](index) for index in range(count)]
    )
    assert codes.shape == expected.shape
    np.testing.assert_allclose(codes, expected, rtol=1e-4)
    size = (tmp_path / "codes.npy").stat().st_size
    transformer.transform_to(
        tmp_path / "same.npy", [FORMS[form](index) for index in range(count)]
    )
    assert size == (tmp_path / "same.npy").stat().st_size
    assert len(list(tmp_path.iterdir())) == 2


def test_bad_images_of_generators(net: str, tmp_path: Path) -> None:
    def images() -> Iterator[Any]:
        for index in range(600):
            yield b"bad" if index % 100 == 50 else png(index)

    path = tmp_path / "codes.npy"
    transformer = CNNCodeTransformer(net, on_error="nan")
    with pytest.warns(UserWarning, match="6 of 600 images could not") as caught:
        codes = transformer.transform_to(path, images())
    assert len(caught) == 1
    bad = np.isnan(codes).all(axis=1)
    assert np.flatnonzero(bad).tolist() == list(range(50, 600, 100))
    with pytest.raises(ImageError, match=r"image 50 \(3 bytes\)"):
        transformer.set_params(on_error="raise").transform_to(path, images())


def test_generators_that_fail_or_are_empty(net: str, tmp_path: Path) -> None:
    def images() -> Iterator[Any]:
        yield png(0)
        raise KeyError("gone")

    transformer = CNNCodeTransformer(net, on_error="nan")
    for use in (
        transformer.precompute,
        partial(transformer.transform_to, tmp_path / "a"),
    ):
        with pytest.raises(ImageError, match="image 1: the generator X failed.*gone"):
            use(images())
        with pytest.raises(ValueError, match="X: found 0 images"):
            use(iter(()))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="got generator.*transform_to and precompute"):
        transformer.transform(images())


def test_generators_fill_the_cache(net: str) -> None:
    cache = CodeCache()
    transformer = CNNCodeTransformer(net, cache=cache)
    transformer.precompute(png(index) for index in range(30))
    with counted_forwards() as count:
        transformer.transform([png(index) for index in range(30)])
    assert count.images == 0


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_reading_runs_ahead_by_two_batches_at_most(
    net: str, n_jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sk_cnncodes.engines import session as runtime

    images = Counted(200)
    run, furthest, done = runtime.CodeSession.run, [], [0]

    def slow_run(self: runtime.CodeSession, batch: np.ndarray) -> list[np.ndarray]:
        time.sleep(0.02)
        furthest.append(images.asked - done[0])
        done[0] += len(batch)
        return run(self, batch)

    transformer = CNNCodeTransformer(net, n_jobs=n_jobs, batch_size=4, cache=None)
    transformer.transform(images)  # the self-test of a new session runs here
    images.asked, done[0] = 0, 0
    monkeypatch.setattr(runtime.CodeSession, "run", slow_run)
    transformer.transform(images)
    assert max(furthest) <= 4 + 2 * 4 + 1
    if n_jobs > 1:
        assert max(furthest) > 4  # it does read ahead


@pytest.mark.parametrize(
    ("count", "n_concurrent_runs"), [(1, 1), (3, 1), (4, 4), (9, 4)]
)
def test_fewer_images_than_threads_get_all_threads_in_each_run(
    net: str, count: int, n_concurrent_runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sk_cnncodes.codes import sessions

    opened: list[tuple[int, int]] = []
    open_session = sessions.open_session

    def recording(graphs_: Any, execution: Any, threads: int, callers: int, *rest: Any):
        opened.append((threads, callers))
        return open_session(graphs_, execution, threads, callers, *rest)

    monkeypatch.setattr(sessions, "open_session", recording)
    sessions.SESSIONS.clear()
    codes = CNNCodeTransformer(net, n_jobs=4, cache=None)
    assert codes.transform(Counted(count)).shape == (count, 16)
    assert opened == [(4, n_concurrent_runs)]


def test_an_error_ends_the_threads(net: str) -> None:
    images: list[Any] = [np.zeros((8, 8), np.uint8)] * 500
    images[3] = "gone.jpg"
    with pytest.raises(FileNotFoundError, match="image 3"):
        CNNCodeTransformer(net, n_jobs=4).transform(images)
    names = [t.name for t in threading.enumerate() if t.name.startswith("sk_cnncodes")]
    assert not names


def test_codes_that_are_not_finite_are_an_error(
    tmp_path: Path, plain: Preprocessing
) -> None:
    model = networks.Net()
    x = model.op("Relu", model.conv("data", 3, 8, strides=[2, 2]))
    x = model.op("Log", model.op("Sub", x, x), out="endless")
    x = model.op("Relu", model.conv(x, 8, 8))
    x = model.op("Flatten", model.op("GlobalAveragePool", x), axis=1)
    path = networks.save(model.model(model.dense(x, 8, 4)), tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, layer="endless", preprocessing=plain)
    with pytest.raises(BackboneError, match="not finite"):
        transformer.transform(np.zeros((2, 8, 8), np.uint8))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=24),
    batch_size=st.integers(1, 9),
    n_jobs=st.sampled_from([1, 2, 4]),
)
def test_row_i_is_the_code_of_image_i(
    rows: list[int], batch_size: int, n_jobs: int, net: str
) -> None:
    """For any order, duplicates, bad images, batch sizes and numbers of threads."""
    rng = np.random.default_rng(1)
    images: list[Any] = list(rng.integers(0, 256, (8, 12, 12, 3), np.uint8))
    images += ["gone.jpg", b"no image"]
    alone = CNNCodeTransformer(net, n_jobs=1).transform(images[:8])
    transformer = CNNCodeTransformer(
        net, batch_size=batch_size, n_jobs=n_jobs, on_error="nan"
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = transformer.transform([images[row] for row in rows])
    for row, code in zip(rows, codes, strict=True):
        if row < 8:
            np.testing.assert_allclose(code, alone[row], rtol=1e-4, atol=1e-5)
        else:
            assert np.isnan(code).all()


def test_codes_stored_between_look_up_and_claim_are_used(
    net: str, photograph_files: list[Path], tmp_path: Path
) -> None:
    """Regression: another process had finished them meanwhile, and all ran again."""
    path = tmp_path / "codes.sqlite3"

    class Late(CodeCache):
        """A cache whose images another transform computes before they are claimed."""

        def claim(self, *arguments: Any) -> set[bytes]:
            CNNCodeTransformer(net, cache=CodeCache(path)).transform(photograph_files)
            return super().claim(*arguments)

    late = Late(path)
    with counted_forwards() as count:
        codes = CNNCodeTransformer(net, cache=late).transform(photograph_files)
    assert count.images == len(photograph_files)
    expected = CNNCodeTransformer(net, cache=None).transform(photograph_files)
    np.testing.assert_array_equal(codes, expected)
    assert late.info().misses == len(photograph_files)
