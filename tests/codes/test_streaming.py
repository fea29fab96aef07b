"""iter_codes: keys and codes in order, in bounded memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, CodeCache, ImageError, Preprocessing
from sk_cnncodes.codes import streaming
from tests import networks
from tests.forwards import counted_forwards


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, plain: Preprocessing) -> str:
    model = networks.resnet()
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return networks.save(model, tmp_path_factory.mktemp("net") / "net.onnx")


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)


@pytest.mark.parametrize("n_jobs", [1, 3])
@pytest.mark.parametrize("cached", [None, "empty", "half", "full"])
def test_rows_keys_and_errors(
    net: str, n_jobs: int, cached: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_ROUND", 600)
    monkeypatch.setattr(streaming, "_ROWS", 16)
    images: list[Any] = [image(number % 1000) for number in range(1300)]
    images[40] = images[1200] = b"no image"
    plain = CNNCodeTransformer(net, cache=None, on_error="nan")
    with pytest.warns(UserWarning, match="2 of 1300 images"):
        expected = plain.transform(images)
    cache = CodeCache() if cached else None
    transformer = CNNCodeTransformer(
        net, cache=cache, n_jobs=n_jobs, batch_size=4, on_error="nan"
    )
    if cached in ("half", "full"):
        part = images[::2] if cached == "half" else images
        with pytest.warns(UserWarning, match="images could not be read"):
            transformer.precompute(part)
    pairs = ((f"key {number}", each) for number, each in enumerate(images))
    batches = list(transformer.iter_codes(pairs, batch=150))
    assert [len(batch) for batch in batches] == [150] * 8 + [100]
    codes = np.concatenate([batch.codes for batch in batches])
    np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-6)
    keys = list(itertools.chain.from_iterable(batch.keys for batch in batches))
    assert keys == [f"key {number}" for number in range(1300)]
    errors = list(itertools.chain.from_iterable(batch.errors for batch in batches))
    bad = {number: str(error) for number, error in enumerate(errors) if error}
    assert list(bad) == [40, 1200]
    assert bad[1200].startswith("image 1200 (8 bytes): not an image file.")


@pytest.mark.parametrize("cached", [False, True])
def test_images_are_taken_as_they_are_needed(net: str, cached: bool) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield image(number)

    cache = CodeCache() if cached else None
    transformer = CNNCodeTransformer(net, cache=cache, n_jobs=2, batch_size=4)
    threads = threading.active_count()
    stream = transformer.iter_codes(endless(), batch=8)
    assert [next(stream).keys[0] for _ in range(3)] == [0, 8, 16]
    assert taken <= 2 * 512  # what is looked up at once
    stream.close()
    assert threading.active_count() == threads


def test_bounded_rows_where_most_are_cached(
    net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One missing image in each look-up does not hold back the rows of all others."""
    monkeypatch.setattr(streaming, "_ROUND", 1024)
    cache = CodeCache()
    transformer = CNNCodeTransformer(net, cache=cache, n_jobs=2, batch_size=64)
    transformer.precompute([image(0)])
    images = (image(number if number % 500 == 250 else 0) for number in range(6000))
    lengths = list[int]()
    grow = streaming._Window.grow

    def counting_grow(self: Any, count: int) -> Any:
        grow(self, count)
        lengths.append(len(self._rows))
        return self

    monkeypatch.setattr(streaming._Window, "grow", counting_grow)
    assert sum(map(len, transformer.iter_codes(images, batch=100))) == 6000
    assert max(lengths) <= 3 * 1024 + streaming._ROWS


def test_the_cache_saves_forwards(net: str) -> None:
    images = [image(number) for number in range(20)]
    transformer = CNNCodeTransformer(net, cache=CodeCache())
    codes = transformer.transform(images)
    with counted_forwards() as count:
        (batch,) = transformer.iter_codes(images)
    assert count.images == 0
    np.testing.assert_array_equal(batch.codes, codes)
    assert batch.keys == list(range(20))


def test_a_bad_image_stops_a_strict_transformer(net: str, tmp_path: Path) -> None:
    stream = CNNCodeTransformer(net).iter_codes([image(0), str(tmp_path / "gone.jpg")])
    with pytest.raises(ImageError, match=r"image 1 .*gone.jpg'\): no such file"):
        list(stream)


def test_wrong_arguments_are_refused_at_once(net: str) -> None:
    transformer = CNNCodeTransformer(net)
    with pytest.raises(ValueError, match="batch=0: expected a number of images"):
        transformer.iter_codes([image(0)], batch=0)
    with pytest.raises(TypeError, match="X: got int"):
        transformer.iter_codes(3)
    assert list(transformer.iter_codes(iter(()))) == []
