"""The limit on memory: large photographs pass, files that take too much do not."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import CNNCodeTransformer, ImageError, Preprocessing
from sk_cnncodes.images.decode import read_image, read_rgb
from tests.fuzz.image_bombs import blank_jpeg

IMAGENET = Preprocessing(crop_size=(224, 224), resize_size=256)


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [
        (9248, 6936, 8),  # 64 megapixels
        (12000, 9000, 8),  # 108
        (16320, 12240, 8),  # 200
        (11656, 8742, 2),  # 102, whose height is no multiple of 4
        (9249, 6937, 1),  # 64, whose sides are odd
    ],
)
@pytest.mark.filterwarnings("error")
def test_large_photographs_pass_by_default(width: int, height: int, scale: int) -> None:
    """Regression: the limit was on the pixels that the header states."""
    content = blank_jpeg(width, height)
    read = read_image(content, 0, min_decode_size=IMAGENET.min_decode_size)
    assert (read.size, read.scale) == ((width, height), scale)
    assert read.rgb.size == (width // scale, height // scale)
    assert (np.asarray(read.rgb.resize((9, 9))) == 128).all()


def test_what_takes_too_much_is_refused_with_the_cure() -> None:
    content = blank_jpeg(16321, 12241)  # decoded in full
    for least in (None, IMAGENET.min_decode_size):
        with pytest.raises(ImageError) as caught:
            read_rgb(content, 4, min_decode_size=least)
        message = str(caught.value)
        assert message.startswith("image 4 ")
        assert "16321 x 12241 pixels, which takes 1598.3 MB. Expected at" in message
        assert "max_pixels=52000000, each of 16 bytes." in message
        assert "raise max_pixels (--max-pixels of a command)" in message
    assert read_rgb(content, 4, 100_000_000).size == (16321, 12241)


def noise_jpeg(mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def least_size(height: int, width: int) -> tuple[int, int]:
    return 60, 80


@pytest.mark.parametrize(
    ("mode", "options", "bytes_per_pixel"),
    [
        ("RGB", {}, 0),
        ("RGB", {"progressive": True, "subsampling": "4:2:0"}, 3),
        ("RGB", {"progressive": True, "subsampling": "4:2:2"}, 4),
        ("RGB", {"progressive": True, "subsampling": "4:4:4"}, 6),
        ("L", {"progressive": True}, 2),
        ("CMYK", {"progressive": True, "subsampling": "4:4:4"}, 8),
    ],
)
def test_decoded_pixels_and_coefficients_count(
    mode: str, options: dict[str, object], bytes_per_pixel: int
) -> None:
    content, pixels = noise_jpeg(mode, **options), 640 * 480
    for least, factor in ((least_size, 8), (None, 1)):
        taken = 8 * pixels // factor**2 + bytes_per_pixel * pixels
        limit = taken // 16
        assert taken % 16 == 0
        size = (640 // factor, 480 // factor)
        assert read_rgb(content, 0, limit, least).size == size
        with pytest.raises(ImageError, match=rf"640 x 480.*max_pixels={limit - 1},"):
            read_rgb(content, 0, limit - 1, least)


def test_a_scan_for_each_channel_counts_as_progressive() -> None:
    """libjpeg holds the coefficients of such a file too."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", subsampling="4:4:4")
    content = file.getvalue()
    scan = content.index(b"\xff\xda")
    first = b"\xff\xda" + struct.pack(">H", 8) + b"\1\1\0\0\x3f\0"
    length = int.from_bytes(content[scan + 2 : scan + 4], "big")
    separate = content[:scan] + first + content[scan + 2 + length :]
    with pytest.raises(ImageError, match="64 x 64 pixels, progressive.*=3583,"):
        read_rgb(separate, 0, (8 + 6) * 64 * 64 // 16 - 1)


def test_transform_takes_a_large_photograph() -> None:
    content = blank_jpeg(12000, 9000)
    codes = CNNCodeTransformer(cache=None).transform([content])
    gray = np.full((300, 400, 3), 128, np.uint8)
    expected = CNNCodeTransformer(cache=None).transform([gray])
    np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ImageError, match="decoded at 1500 x 1125, which takes 13.5 MB"):
        CNNCodeTransformer(cache=None, max_pixels=10_000).transform([content])
