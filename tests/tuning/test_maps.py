"""Maps: what the file keeps, and when it is float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, load_backbone
from sk_cnncodes.tuning.maps import Maps, computed_maps, size_text

IMAGES = list(np.random.default_rng(0).integers(0, 256, (9, 20, 20, 3), np.uint8))


def transformer(**options: Any) -> CNNCodeTransformer:
    return CNNCodeTransformer(layer=-2, pooling="flatten", cache=None, **options)


def test_they_are_the_activations_of_each_view() -> None:
    shape = load_backbone("cnncodes-mini").layer(-2).shape
    with computed_maps(
        IMAGES, transformer(), shape, views="flip", dtype="float16", verbose=False
    ) as maps:
        assert maps.n_bytes == 9 * 2 * np.prod(shape) * 2
        assert maps.path.stat().st_size == maps.n_bytes
        for view, name in enumerate(("center", "mirror")):
            wanted = transformer(views=name).transform(IMAGES).reshape(9, *shape)
            got = maps.read(np.arange(9), view)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, wanted, atol=1e-3 * wanted.max())
        some = maps.read(np.array([4, 2]), np.array([1, 0]))
        np.testing.assert_array_equal(some[0], maps.read(np.array([4]), 1)[0])
        path = maps.path
    assert not path.exists()


def test_the_mirror_view_is_that_of_the_mirrored_image() -> None:
    square = list(np.random.default_rng(1).integers(0, 256, (3, 116, 116, 3), np.uint8))
    mirrored = [image[:, ::-1] for image in square]
    mirror = CNNCodeTransformer(views="mirror", cache=None).transform(square)
    center = CNNCodeTransformer(cache=None).transform(mirrored)
    np.testing.assert_array_equal(mirror, center)
    both = CNNCodeTransformer(views="flip", cache=None).transform(square)
    plain = CNNCodeTransformer(cache=None).transform(square)
    np.testing.assert_allclose(both, (plain + mirror) / 2, atol=1e-5)


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_values_that_float16_loses_are_kept_as_float32(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = load_backbone("cnncodes-mini").layer(-2).shape
    iter_codes = CNNCodeTransformer.iter_codes

    def scaled(self: Any, source: Any, *, batch: int) -> Any:
        for found in iter_codes(self, source, batch=4):
            if found.keys[0] >= 4:  # the first batch fits
                found.codes[:] *= factor
            yield found

    monkeypatch.setattr(CNNCodeTransformer, "iter_codes", scaled)
    with computed_maps(
        IMAGES, transformer(), shape, views="center", dtype="float16", verbose=False
    ) as maps:
        assert maps.dtype == np.float32
        got = maps.read(np.arange(9))
        folder = list(maps.path.parent.glob("*.maps"))
        assert folder == [maps.path]
    monkeypatch.undo()
    wanted = transformer().transform(IMAGES).reshape(got.shape)
    np.testing.assert_allclose(got[:4], wanted[:4], atol=1e-3 * wanted.max())
    np.testing.assert_allclose(got[4:], wanted[4:] * factor, rtol=1e-5)


def test_a_file_is_removed_when_it_is_closed(tmp_path: Path) -> None:
    maps = Maps(tmp_path / "x.maps", 3, 2, (4, 5), "float16")
    assert len(maps) == 3
    maps.write(1, 1, np.ones((2, 20), np.float32))
    assert maps.read(np.array([2]), 1).sum() == 20
    maps.close()
    maps.close()
    assert not list(tmp_path.iterdir())


def test_sizes_are_told_to_people() -> None:
    assert size_text(999) == "999 B"
    assert size_text(15_680) == "15.7 KB"
    assert size_text(1_881_600_000) == "1.88 GB"
