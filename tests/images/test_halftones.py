"""Halftones, engravings and screenshots are decoded in full; photographs are not."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from sk_cnncodes import Preprocessing
from sk_cnncodes.codes.digests import image_digest
from sk_cnncodes.images.decode import read_image, read_rgb

RECORD = Preprocessing(crop_size=(96, 96), resize_size=104)
SIZE = (1280, 960)  # decoded at 1/4, and by box filters at 320 x 240


def jpeg(image: Image.Image, quality: int = 75) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    from sklearn.datasets import load_sample_images

    pixels = load_sample_images().images[0]
    return Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC)


def screen(channel: np.ndarray, period: float, angle: float) -> np.ndarray:
    """Black and white dots in a square grid, whose areas have the mean of the gray."""
    y, x = np.indices(channel.shape)
    turn = np.deg2rad(angle)
    across = (x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period
    down = (y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / period
    threshold = 127.5 + 63.75 * (np.cos(across) + np.cos(down))
    return np.where(channel > threshold, 255, 0).astype(np.uint8)


def halftone(image: Image.Image, period: float = 8) -> Image.Image:
    return Image.fromarray(screen(np.asarray(image.convert("L")), period, 45))


def coarse_halftone(image: Image.Image) -> Image.Image:
    return halftone(image, 20)


def coarse_dots(image: Image.Image) -> Image.Image:
    """Few edges, but only black and white."""
    return halftone(image, 32)


def scanned_halftone(image: Image.Image) -> Image.Image:
    """Not bilevel: blurred by the optics of the scanner."""
    return halftone(image).filter(ImageFilter.GaussianBlur(1))


def gray_in_colour(image: Image.Image) -> Image.Image:
    return coarse_halftone(image).convert("RGB")


def colour_halftone(image: Image.Image) -> Image.Image:
    channels, angles = np.moveaxis(np.asarray(image), 2, 0), (15, 75, 45)
    screens = [screen(c, 9, a) for c, a in zip(channels, angles, strict=True)]
    return Image.fromarray(np.stack(screens, axis=2))


def dithered(image: Image.Image) -> Image.Image:
    return image.convert("1").convert("L")


def engraving(image: Image.Image) -> Image.Image:
    """Lines whose width has the mean of the gray."""
    gray = np.asarray(image.convert("L"))
    phase = (np.arange(gray.shape[0])[:, None] % 16) * 16
    return Image.fromarray(np.where(gray > phase, 255, 0).astype(np.uint8))


def screenshot(image: Image.Image) -> Image.Image:
    page = Image.new("RGB", image.size, "white")
    page.paste(image.resize((320, 240)), (900, 60))
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, image.width, 40), fill=(45, 90, 160))
    for top in range(60, 940, 16):
        draw.text((20, top), "def apply(self, image: Image.Image) -> np.ndarray", 0)
    return page


SCANS = [
    halftone,
    coarse_halftone,
    coarse_dots,
    scanned_halftone,
    gray_in_colour,
    colour_halftone,
    dithered,
    engraving,
    screenshot,
]


@pytest.mark.parametrize("quality", [60, 90])
@pytest.mark.parametrize("make", SCANS)
def test_hard_edges_are_decoded_in_full(
    photograph: Image.Image, make: Callable[[Image.Image], Image.Image], quality: int
) -> None:
    """Regression: the cosine of their codes went down to 0.95."""
    content = jpeg(make(photograph), quality)
    read = read_image(content, 0, min_decode_size=RECORD.min_decode_size)
    assert read.scale == 1
    np.testing.assert_array_equal(read.rgb, read_rgb(content, 0))


def drafted(content: bytes, factor: int) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.draft(None, (image.width // factor, image.height // factor))
    return image.convert("RGB")


@pytest.mark.parametrize("mode", ["RGB", "L", "gray RGB", "CMYK"])
@pytest.mark.parametrize("quality", [60, 90, 97])
def test_photographs_are_decoded_smaller(
    photograph: Image.Image, mode: str, quality: int
) -> None:
    """By the same pixels as without the hints, whether or not they are gray."""
    image = photograph.convert("L") if "gray" in mode else photograph
    image = image.convert(mode.removeprefix("gray "))
    content = jpeg(image, quality)
    read = read_image(content, 0, min_decode_size=RECORD.min_decode_size)
    assert read.scale == 4
    np.testing.assert_array_equal(read.rgb, drafted(content, 4))


def test_a_sharp_and_noisy_photograph_is_decoded_smaller(
    photograph: Image.Image,
) -> None:
    noise = np.random.default_rng(0).normal(0, 12, (*SIZE[::-1], 3))
    pixels = np.clip(np.asarray(photograph) + noise, 0, 255).astype(np.uint8)
    for quality in (60, 97):
        for mode in ("RGB", "L"):
            content = jpeg(Image.fromarray(pixels).convert(mode), quality)
            read = read_image(content, 0, min_decode_size=RECORD.min_decode_size)
            assert read.scale == 4


def test_a_bright_or_dark_photograph_is_decoded_smaller(
    photograph: Image.Image,
) -> None:
    """Nearly all of its pixels are black or white, as of a bilevel image."""
    for gray in (0, 255):
        sky = Image.new("L", SIZE, gray)
        sky.paste(photograph.convert("L").resize((320, 200)), (800, 700))
        read = read_image(jpeg(sky), 0, min_decode_size=RECORD.min_decode_size)
        assert read.scale == 4


def test_what_does_not_fit_in_full_is_decoded_smaller(photograph: Image.Image) -> None:
    content, limit = jpeg(halftone(photograph)), 1280 * 960 // 2
    least = RECORD.min_decode_size
    assert read_image(content, 0, limit, least).scale == 1
    assert read_image(content, 0, limit - 1, least).scale == 4


def test_cached_codes_of_possible_halftones_are_not_used(
    photograph: Image.Image,
) -> None:
    """Caches may hold codes of a smaller decode; those of photographs stay valid."""

    def before(content: bytes) -> bytes:
        return hashlib.sha256(b"file\n" + content).digest()

    for make in (halftone, colour_halftone, engraving):
        content = jpeg(make(photograph))
        assert image_digest(content, 0) != before(content)
    for quality in (50, 75, 95):
        content = jpeg(photograph, quality)
        assert image_digest(content, 0) == before(content)
        film = content + bytes(9_000_000)  # as phones append it
        assert image_digest(film, 0) == before(film)
