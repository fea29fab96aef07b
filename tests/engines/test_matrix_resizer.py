"""The resize by matrices has the pixels of Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sk_cnncodes import Preprocessing
from sk_cnncodes.engines.matrix_resizer import MatrixResizer
from sk_cnncodes.images.decode import upright
from sk_cnncodes.images.preprocessing import RESIZES, ROUNDINGS
from sk_cnncodes.images.views import take_views, view_resize

FILTERS = ["bilinear", "bicubic", "lanczos", "box", "hamming"]


@pytest.fixture(scope="module")
def resizer() -> MatrixResizer:
    return MatrixResizer(None)


def largest_difference(
    resizer: MatrixResizer,
    pixels: np.ndarray,
    values: Preprocessing,
    views: str = "center",
    orientation: int = 1,
) -> int:
    """From Pillow's views, in levels."""
    image = upright(Image.fromarray(pixels), orientation)
    expected = take_views(image, values, views)
    how = view_resize(values, views, pixels.shape[:2], orientation)
    assert how is not None
    part = resizer.resize(pixels, how.rows, how.columns, turned=how.turned)
    got = how.take(part)
    assert got.shape == expected.shape
    assert got.dtype == np.uint8
    return int(np.abs(got.astype(int) - expected).max())


def an_image(seed: int, height: int, width: int, smooth: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if not smooth:
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    coarse = rng.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), 3))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    crop=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    resize=st.sampled_from(RESIZES),
    target=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    interpolation=st.sampled_from(FILTERS),
    rounding=st.sampled_from(ROUNDINGS),
    views=st.sampled_from(["center", "flip", "five_crop", "ten_crop"]),
    orientation=st.integers(1, 8),
    smooth=st.booleans(),
)
def test_any_resize_is_pillows_within_two_levels(
    resizer: MatrixResizer,
    seed: int,
    size: tuple[int, int],
    crop: tuple[int, int],
    resize: str,
    target: tuple[int, int],
    interpolation: str,
    rounding: str,
    views: str,
    orientation: int,
    smooth: bool,
) -> None:
    sizes = {"shorter": target[0], "squash": target}
    values = Preprocessing(
        crop,
        resize=resize,  # type: ignore[arg-type]
        resize_size=sizes.get(resize),
        interpolation=interpolation,
        rounding=rounding,  # type: ignore[arg-type]
    )
    if resize not in ("shorter", "squash", "none"):
        views = {"five_crop": "center", "ten_crop": "flip"}.get(views, views)
    pixels = an_image(seed, *size, smooth)
    assert largest_difference(resizer, pixels, values, views, orientation) <= 2


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("height", "width"), [(1500, 2000), (1501, 999), (97, 4001)])
def test_a_large_image(
    resizer: MatrixResizer, interpolation: str, height: int, width: int
) -> None:
    pixels = an_image(0, height, width, smooth=False)
    values = Preprocessing((224, 224), resize_size=256, interpolation=interpolation)
    for orientation in (1, 6):
        assert largest_difference(resizer, pixels, values, "flip", orientation) <= 1


def test_what_only_pillow_computes() -> None:
    size = (1000, 1000)
    nearest = Preprocessing((224, 224), interpolation="nearest")
    assert view_resize(nearest, "center", size) is None
    keras = Preprocessing((224, 224), resize="exact", antialias=False)
    assert view_resize(keras, "center", size) is None
    # All of a very long image, for crops at its ends.
    long = Preprocessing((224, 224), resize_size=256)
    assert view_resize(long, "five_crop", (20, 60_000)) is None
    assert view_resize(long, "center", (20, 60_000)) is not None
