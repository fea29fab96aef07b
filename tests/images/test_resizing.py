"""Resizing in Pillow's arithmetic, written out in numpy: rows first, then columns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import Preprocessing
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.images import resizing
from sk_cnncodes.images.views import take_views


def bicubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def lanczos(x: float) -> float:
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0.0


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


FILTERS = {"bilinear": (triangle, 1), "bicubic": (bicubic, 2), "lanczos": (lanczos, 3)}


def one_pass(pixels: np.ndarray, length: int, interpolation: str) -> np.ndarray:
    """Resize the first axis, with antialiasing, weights of 22 bits, and 8-bit results.

    This is what Pillow and torchvision compute for uint8.
    """
    kernel, radius = FILTERS[interpolation]
    scale = len(pixels) / length
    stretch = max(scale, 1.0)
    rows = []
    for i in range(length):
        center = (i + 0.5) * scale
        start = max(int(center - radius * stretch + 0.5), 0)
        end = min(int(center + radius * stretch + 0.5), len(pixels))
        weights = [kernel((x - center + 0.5) / stretch) for x in range(start, end)]
        weights = np.array(weights) / math.fsum(weights) * 2**22
        fixed = np.where(weights < 0, np.ceil(weights - 0.5), np.floor(weights + 0.5))
        total = np.tensordot(fixed.astype(np.int64), pixels[start:end], 1) + 2**21
        rows.append(np.clip(total >> 22, 0, 255))
    return np.array(rows, np.int64)


def rows_first(pixels: np.ndarray, full: tuple[int, int], method: str) -> np.ndarray:
    """Shorten or lengthen each row, then each column."""
    wide = one_pass(pixels.astype(np.int64).swapaxes(0, 1), full[1], method)
    return one_pass(wide.swapaxes(0, 1), full[0], method)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# Wider and taller than the result, by factors for which Pillow 13 takes either order.
SIZES = [(90, 61), (61, 90), (200, 50), (50, 200), (30, 100), (100, 30), (20, 25)]


@pytest.mark.parametrize("method", ["bicubic", "lanczos"])
@pytest.mark.parametrize("size", SIZES)
def test_whole_images_are_resized_rows_first(
    size: tuple[int, int], method: str
) -> None:
    """Regression: Pillow's own order was taken, up to 19 levels away on noise."""
    pixels = noise(*size)
    image = Image.fromarray(pixels)
    reference = rows_first(pixels, (40, 44), method)
    for record in (
        Preprocessing((40, 44), resize="exact", interpolation=method),
        Preprocessing((40, 44), resize="squash", interpolation=method),
    ):
        np.testing.assert_array_equal(record.apply(image), reference)
    larger = Preprocessing(
        (30, 32), resize="squash", resize_size=(40, 44), interpolation=method
    )
    five = take_views(image, larger, "five_crop")
    corners = [(0, 0), (0, 12), (10, 0), (10, 12), (5, 6)]
    for crop, (top, left) in zip(five, corners, strict=True):
        expected = reference[top : top + 30, left : left + 32]
        np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("method", ["bicubic", "lanczos"])
def test_five_crops_with_an_aspect_ratio_are_resized_rows_first(method: str) -> None:
    pixels = noise(120, 96)
    record = Preprocessing((32, 32), resize_size=40, interpolation=method)
    reference = rows_first(pixels, (50, 40), method)
    five = take_views(Image.fromarray(pixels), record, "ten_crop")[:5]
    corners = [(0, 0), (0, 8), (18, 0), (18, 8), (9, 4)]
    for crop, (top, left) in zip(five, corners, strict=True):
        expected = reference[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(crop, expected)


def test_square_images_are_resized_rows_first() -> None:
    """A square image is the crop itself, where others are longer than it."""
    pixels = noise(101, 101)
    record = Preprocessing((40, 40), resize_size=40, interpolation="bicubic")
    reference = rows_first(pixels, (40, 40), "bicubic")
    np.testing.assert_array_equal(record.apply(Image.fromarray(pixels)), reference)


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_does_not_depend_on_the_order_by_more_than_a_level(
    size: tuple[int, int],
) -> None:
    pixels = noise(*size)
    record = Preprocessing((40, 44), resize="exact")
    difference = record.apply(Image.fromarray(pixels)).astype(int) - rows_first(
        pixels, (40, 44), "bilinear"
    )
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("method", ["bicubic", "lanczos"])
def test_very_long_images_are_resized_in_parts(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(300, 20)
    image = Image.fromarray(pixels)
    record = Preprocessing((16, 24), resize="exact", interpolation=method)
    whole = record.apply(image)
    np.testing.assert_array_equal(whole, rows_first(pixels, (16, 24), method))
    monkeypatch.setattr(resizing, "_MAX_RESIZED_PIXELS", 1000)
    difference = record.apply(image).astype(int) - whole
    assert np.abs(difference).max() <= 2


def spec(views: str = "center", **values: object) -> CodeSpec:
    record = Preprocessing(crop_size=(224, 224), **values)
    return CodeSpec("0" * 64, "layer", "avg", None, record, views)


def test_only_specs_whose_codes_changed_have_new_digests() -> None:
    """Codes in caches are of Pillow's own order; the digests are from then."""
    same = {
        spec(resize_size=256): "b8d5030362522f1c62ce6c1cfcb645a35a1b9704e5fe4642fcc8",
        spec("five_crop", resize_size=256): "89dee294b97a1a857e0a76d5992724dcfffdb3a8",
        spec(
            resize_size=256, interpolation="bicubic"
        ): "e989fa0c52cbf276e08a454d179ba7b2b7f7c5c569f54a3eb7950eac0790aaa8",
    }
    for unchanged, digest in same.items():
        assert unchanged.digest.startswith(digest)
    exact = spec(resize="exact", interpolation="bicubic")
    assert not exact.digest.startswith("ecabfdc47a84b663")
    square = spec(resize_size=224, interpolation="bicubic")
    assert not square.digest.startswith("cd5f6c2f9424a65f")
