"""Conversion from embedded colour profiles to sRGB."""

from __future__ import annotations

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from sk_cnncodes import Preprocessing, PreprocessingError
from sk_cnncodes.images.decode import DecodedImage, read_image
from tests.images import profiles

ADOBE = profiles.rgb_profile("Adobe RGB", profiles.ADOBE_RGB, 2.2)
P3 = profiles.rgb_profile("Display P3", profiles.DISPLAY_P3, 2.2)
GRAY = profiles.gray_profile("Gray gamma 1.8", 1.8)
CMYK = profiles.cmyk_profile("Three inks and black")
# All combinations of five values, and smooth, so that lossy formats keep them.
LEVELS = np.array(list(product((0, 64, 128, 192, 255), repeat=3)), np.uint8)
PIXELS = LEVELS.reshape(5, 25, 3).repeat(8, axis=0).repeat(8, axis=1)
STEPS = np.linspace(0, 1, 1024)


def saved(image: Image.Image, format: str, profile: bytes | None) -> bytes:
    file = io.BytesIO()
    lossless = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    lossless |= {"lossless": True} if format == "WEBP" else {}
    image.save(file, format, icc_profile=profile, **lossless)
    return file.getvalue()


def decoded(content: object, color: str = "srgb") -> DecodedImage:
    return read_image(content, 0, color=color)


def levels_off(found: DecodedImage, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found.rgb) - expected).max())


AVIF = pytest.param(
    "AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF")
)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", AVIF])
@pytest.mark.parametrize(
    ("profile", "colorants"), [(ADOBE, profiles.ADOBE_RGB), (P3, profiles.DISPLAY_P3)]
)
def test_rgb_profiles(format: str, profile: bytes, colorants: np.ndarray) -> None:
    image = Image.fromarray(PIXELS)
    content = saved(image, format, profile)
    stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    expected = profiles.rgb_in_srgb(stored, colorants, 2.2)
    assert np.abs(expected - stored).max() > 30  # far more than the tolerance
    assert levels_off(decoded(content), expected) <= 1.5
    np.testing.assert_array_equal(np.asarray(decoded(content, "ignore").rgb), stored)
    np.testing.assert_array_equal(np.asarray(read_image(content, 0).rgb), stored)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_gray_profiles(mode: str) -> None:
    values = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)
    if mode == "1":
        values = np.where(values > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    elif mode == "LA":
        image.putalpha(Image.new("L", image.size, 255))
    else:
        image = image.convert(mode)
    found = decoded(saved(image, "PNG", GRAY))
    assert levels_off(found, profiles.gray_in_srgb(values, 1.8)) <= 1.5
    assert "ICC profile 'Gray gamma 1.8' to sRGB" in found.conversion


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_profiles(format: str) -> None:
    inks = list(product((0, 1), repeat=4))
    pixels = np.array(inks, np.uint8).reshape(2, 8, 4) * 255
    image = Image.fromarray(pixels.repeat(16, 0).repeat(16, 1), mode="CMYK")
    found = decoded(saved(image, format, CMYK))
    colours = np.asarray(found.rgb)[8::16, 8::16].reshape(-1, 3)
    expected = [profiles.lab_in_srgb(profiles.cmyk_lab(each)) for each in inks]
    assert np.abs(colours - np.array(expected)).max() <= 3
    assert found.conversion == "CMYK to RGB, ICC profile 'Three inks and black' to sRGB"
    plain = decoded(saved(image, format, CMYK), "ignore")
    assert levels_off(plain, np.asarray(image.convert("RGB"))) == 0
    assert plain.conversion == "CMYK to RGB, ICC profile ignored"


def test_transparency_is_composited_after_the_conversion() -> None:
    image = Image.new("RGBA", (3, 1), (0, 255, 0, 255))
    image.putpixel((1, 0), (0, 255, 0, 0))
    image.putpixel((2, 0), (0, 255, 0, 128))
    pixels = np.asarray(decoded(saved(image, "PNG", ADOBE)).rgb)[0].astype(int)
    opaque = profiles.rgb_in_srgb(np.array([0, 255, 0]), profiles.ADOBE_RGB, 2.2)
    half = 255 + (opaque - 255) * 128 / 255
    assert np.abs(pixels - [opaque, [255] * 3, half]).max() <= 2


def test_palettes_are_converted() -> None:
    image = Image.fromarray(PIXELS).quantize(125)
    stored = np.asarray(image.convert("RGB"))
    expected = profiles.rgb_in_srgb(stored, profiles.DISPLAY_P3, 2.2)
    assert levels_off(decoded(saved(image, "PNG", P3)), expected) <= 1.5


def test_profiles_that_are_srgb_change_nothing() -> None:
    """Most photographs have one: their codes stay those of `color="ignore"`."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    curve = [((v + 0.055) / 1.055) ** 2.4 if v > 0.04045 else v / 12.92 for v in STEPS]
    gray = profiles.gray_profile("Gray of sRGB", curve)
    for mode, profile in (("RGB", srgb), ("L", gray)):
        image = Image.fromarray(PIXELS).convert(mode)
        found = decoded(saved(image, "PNG", profile))
        assert levels_off(found, np.asarray(image.convert("RGB"))) == 0
        assert found.conversion.endswith("is sRGB")


def test_jpegs_that_are_decoded_smaller_are_converted() -> None:
    image = Image.new("RGB", (512, 512), (0, 200, 0))
    content = saved(image, "JPEG", ADOBE)
    preprocessing = Preprocessing(crop_size=(32, 32), color="srgb")
    found = read_image(content, 0, None, preprocessing.min_decode_size, "srgb")
    assert found.scale == 8
    expected = profiles.rgb_in_srgb(np.array([0, 200, 0]), profiles.ADOBE_RGB, 2.2)
    assert levels_off(found, expected) <= 2


def test_pil_images_bring_their_profile() -> None:
    image = Image.fromarray(PIXELS)
    image.info["icc_profile"] = P3
    found = decoded(image)
    expected = profiles.rgb_in_srgb(PIXELS, profiles.DISPLAY_P3, 2.2)
    assert levels_off(found, expected) <= 1.5
    np.testing.assert_array_equal(np.asarray(image), PIXELS)  # it is not changed
    np.testing.assert_array_equal(np.asarray(decoded(PIXELS).rgb), PIXELS)


@pytest.mark.parametrize(
    "profile",
    [
        *(b"x", bytes(200), ADOBE[:100], ADOBE[:200], P3[:-60] + bytes(60)),
        *(
            ADOBE[:16] + b"7CLR" + ADOBE[20:],
            GRAY,
            CMYK,
        ),  # another kind than the pixels
    ],
    ids=["byte", "zeros", "header", "tags", "curves", "space", "gray", "cmyk"],
)
def test_damaged_and_unfitting_profiles_are_ignored(profile: bytes) -> None:
    content = saved(Image.fromarray(PIXELS), "PNG", profile)
    found = decoded(content)
    np.testing.assert_array_equal(np.asarray(found.rgb), PIXELS)
    assert found.conversion == "ICC profile ignored"


def test_random_damage_never_damages_the_image() -> None:
    rng = np.random.default_rng(0)
    for profile in (ADOBE, CMYK, GRAY):
        mode = {ADOBE: "RGB", CMYK: "CMYK", GRAY: "L"}[profile]
        image = Image.fromarray(PIXELS).convert(mode)
        for _ in range(100):
            damaged = bytearray(profile)
            for position in rng.integers(0, len(damaged), 4):
                damaged[position] = rng.integers(256)
            assert decoded(saved(image, "TIFF", bytes(damaged))).rgb.mode == "RGB"


def test_without_littlecms_it_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: feature != "littlecms2")
    assert Preprocessing(crop_size=32).color == "ignore"
    with pytest.raises(PreprocessingError, match="color: 'srgb' needs Pillow with"):
        Preprocessing(crop_size=32, color="srgb")
