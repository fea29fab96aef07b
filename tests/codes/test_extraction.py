"""Extraction: bounded memory, errors stop it, threads end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_cnncodes import BackboneError, CNNCodeTransformer, Preprocessing
from tests import networks


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
