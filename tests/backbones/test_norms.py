"""Norms of codes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import normalize

from sk_cnncodes import CNNCodeTransformer, CodeCache
from sk_cnncodes.backbones.norms import apply_norm
from tests.forwards import counted_forwards


def test_power_is_a_signed_root_of_unit_length() -> None:
    codes = np.array([[4, -9, 0], [0, 0, 0], [1e-30, 0, 0]], np.float32)
    found = apply_norm(codes, "power")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], np.array([2, -3, 0]) / 13**0.5, rtol=1e-6)
    np.testing.assert_array_equal(found[1:], [[0, 0, 0], [1, 0, 0]])
    assert codes[0, 0] == 4  # the given codes are those of the cache


@pytest.mark.parametrize("norm", ["l2", None])
def test_other_norms(norm: str | None) -> None:
    codes = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    codes[2] = 0
    found = apply_norm(codes, norm)
    np.testing.assert_array_equal(found, normalize(codes) if norm else codes)


def test_norms_are_computed_from_the_same_cached_codes(
    photographs: list[np.ndarray],
) -> None:
    cache = CodeCache()
    with counted_forwards() as count:
        codes = {
            norm: CNNCodeTransformer(norm=norm, cache=cache).fit_transform(photographs)
            for norm in ("power", None, "l2")
        }
    assert count.images == len(photographs)
    raw = codes[None]
    np.testing.assert_allclose(
        codes["power"], normalize(np.sign(raw) * np.sqrt(np.abs(raw))), atol=1e-7
    )
    alone = CNNCodeTransformer(norm="power", cache=None).fit_transform(photographs)
    np.testing.assert_array_equal(codes["power"], alone)
