"""Rare modes: read where Pillow or a few lines can, else named, never "damaged"."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import ImageError
from sk_cnncodes.images import safe_open
from sk_cnncodes.images.decode import read_rgb
from sk_cnncodes.images.rgb import DarkValuesWarning
from tests.fuzz.image_bombs import tiff, tiff_tags
from tests.fuzz.image_seeds import encoded, photographs
from tests.fuzz.mutations import png_chunk
from tests.images import test_safe_open as tiffs
from tests.images.test_safe_open import lossless_jpeg, png


def rgb(image: object) -> np.ndarray:
    return np.asarray(read_rgb(image, 0))


def test_gray_with_premultiplied_alpha() -> None:
    """Regression: Pillow converts mode La to LA only."""
    straight = Image.fromarray(
        np.dstack([np.full((4, 4), 200, np.uint8), np.full((4, 4), 128, np.uint8)]),
        "LA",
    )
    premultiplied = straight.convert("La")
    difference = rgb(premultiplied).astype(int) - rgb(straight)
    assert np.abs(difference).max() <= 1


# -- BMP ---------------------------------------------------------------------


def bmp(bits: int, masks: list[int], pixels: np.ndarray, height: int) -> bytes:
    """A BMP file of bit fields; a negative height is one from the top down."""
    masks = [*masks, 0, 0][:4]
    rows = pixels if height < 0 else pixels[::-1]
    width = pixels.shape[1]
    pad = bytes(-(width * bits // 8) % 4)
    data = b"".join(row.astype(f"<u{bits // 8}").tobytes() + pad for row in rows)
    head = struct.pack("<LllHHLLLLLL", 56, width, height, 1, bits, 3, 0, 0, 0, 0, 0)
    head += struct.pack("<4L", *masks)
    return b"BM" + struct.pack("<LLL", 70 + len(data), 0, 70) + head + data


@pytest.mark.parametrize("height", [2, -2])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (32, [0xFF0000, 0xFF00, 0xFF]),  # the usual ones, which Pillow reads
        (32, [0xFF, 0xFF00, 0xFF0000]),
        (32, [0xFF00, 0xFF0000, 0xFF]),
        (32, [0x3FF00000, 0xFFC00, 0x3FF]),
        (32, [0xF80000, 0x7E00, 0x1F]),
        (32, [0xFF, 0xFF00, 0xFF0000, 0xFF000000]),
        (32, [0x3FF, 0xFFC00, 0x3FF00000, 0xC0000000]),
        (16, [0xF800, 0x7E0, 0x1F]),
        (16, [0xF00, 0xF0, 0xF]),
        (16, [0xF00, 0xF0, 0xF, 0xF000]),
        (16, [0x1F, 0x7E0, 0xF800]),
    ],
)
def test_bmp_bit_fields(bits: int, masks: list[int], height: int) -> None:
    """Regression: some were reported as damaged."""
    random = np.random.default_rng(0)
    colors = random.random((2, 5, 3))
    pixels = np.zeros((2, 5), np.uint64)
    for mask, values in zip(masks, [*np.moveaxis(colors, 2, 0), 1], strict=False):
        shift = (mask & -mask).bit_length() - 1
        pixels |= np.rint(values * (mask >> shift)).astype(np.uint64) << np.uint64(
            shift
        )
    found = rgb(bmp(bits, masks, pixels, height))
    steps = [255 / max(mask >> ((mask & -mask).bit_length() - 1), 1) for mask in masks]
    # Half a step of the file's values, and one of the result's.
    assert np.abs(found - 255 * colors).max() <= max(steps) / 2 + 1.01


def test_bmp_bit_fields_keep_their_checks() -> None:
    pixels = np.zeros((2, 5), np.uint64)
    content = bmp(32, [0x3FF00000, 0xFFC00, 0x3FF], pixels, 2)
    with pytest.raises(ImageError, match="damaged or truncated"):
        rgb(content[:-4])
    with pytest.raises(ImageError, match="50000 x 2 pixels.*max_pixels=5000"):
        read_rgb(content[:18] + struct.pack("<l", 50_000) + content[22:], 0, 5000)


def rle_bmp(bits: int, data: bytes) -> bytes:
    """A BMP file of 5 x 3 pixels, compressed by run lengths; its palette is gray."""
    packing = 1 if bits == 8 else 2
    colors = b"".join(bytes([i, i, i, 0]) for i in range(2**bits))
    head = struct.pack("<LllHHLLLLLL", 40, 5, 3, 1, bits, packing, 0, 0, 0, 0, 0)
    start = 54 + len(colors)
    size = start + len(data)
    return b"BM" + struct.pack("<LLL", size, 0, start) + head + colors + data


@pytest.mark.parametrize(
    ("bits", "codes", "rows"),
    [
        # A run, what follows as it is, an end of line; two runs; the end.
        (8, "0207 000309080700 0000 0506 0000 0505 0001", "77987 66666 55555"),
        (8, "0507 0000 0506 0000 0505", "77777 66666 55555"),
        (8, "0207 0000 0000 0306 0001", "77000 00000 66600"),
        (8, "0507 0000 0001", "77777 00000 00000"),
        (8, "0107 00020102 0103 0001", "70000 00000 00300"),
        (8, "0000 0000 0509", "00000 00000 99999"),
        (8, "0907 0000 0000 0001", "77777 00000 00000"),
        (4, "0598 0000 00047654 0122 0000 0001", "98989 76542 00000"),
        (4, "0000 0398 0001", "00000 98900 00000"),
    ],
)
def test_bmp_of_run_lengths(bits: int, codes: str, rows: str) -> None:
    """Regression: those with short lines, skips or an early end were "damaged"."""
    expected = [[int(value) for value in row] for row in rows.split()[::-1]]
    content = rle_bmp(bits, bytes.fromhex(codes))
    np.testing.assert_array_equal(rgb(content)[:, :, 0], expected)


@pytest.mark.parametrize(
    "codes",
    [
        "",
        "0507",
        "0507 0000 05",
        "0000 000201",
        "0000 000401",
        "0000 00060102",
        "0000" * 2,
    ],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_truncated_bmp_of_run_lengths(bits: int, codes: str) -> None:
    data = bytes.fromhex(codes)
    with pytest.raises(ImageError, match="damaged or truncated.*not enough image data"):
        rgb(rle_bmp(bits, data))


def test_bmp_of_many_skips_is_quick() -> None:
    with pytest.raises(ImageError, match="damaged or truncated.*more skips than"):
        rgb(rle_bmp(8, bytes.fromhex("00020000") * 1000))


def test_bmp_of_other_kinds_is_not_damaged() -> None:
    content = bytearray(encoded(photographs()[0], "BMP"))
    content[30] = 5  # compressed as PNG
    with pytest.raises(
        ImageError, match="image 0 .*not supported.*compression"
    ) as error:
        rgb(bytes(content))
    assert "damaged" not in str(error.value)


# -- TIFF --------------------------------------------------------------------


def big_endian_bigtiff(pixels: np.ndarray, packed: bytes, packing: int) -> bytes:
    """An image of one strip, whose places are numbers of 64 bits."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    bits = 8 * pixels.itemsize
    tags = [(256, 3, width), (257, 3, height), (259, 3, packing), (277, 3, channels)]
    tags += [(262, 3, 2 if channels == 3 else 1), (273, 16, 16), (278, 3, height)]
    tags += [(279, 16, len(packed))]
    entries = [
        struct.pack(">HHQ", tag, kind, 1)
        + struct.pack({3: ">H", 16: ">Q"}[kind], value).ljust(8, b"\0")
        for tag, kind, value in tags
    ]
    depth = struct.pack(f">{channels}H", *[bits] * channels).ljust(8, b"\0")
    entries.append(struct.pack(">HHQ", 258, 3, channels) + depth)
    entries.sort()
    start = 16 + len(packed)
    directory = struct.pack(">Q", len(entries)) + b"".join(entries) + bytes(8)
    return b"MM\0+\0\x08\0\0" + struct.pack(">Q", start) + packed + directory


@pytest.mark.parametrize("packing", [1, 8])
def test_big_endian_bigtiff(packing: int) -> None:
    """Regression: it was reported as damaged."""
    photograph = np.asarray(photographs()[0])
    for pixels in (photograph, photograph[:, :, 0], photograph[:, :, 0].astype(">u2")):
        if pixels.itemsize == 2:
            pixels = (pixels * np.uint16(257)).astype(">u2")
        data = pixels.tobytes()
        packed = zlib.compress(data) if packing == 8 else data
        found = rgb(big_endian_bigtiff(pixels, packed, packing))
        expected = photograph if pixels.ndim == 3 else photograph[:, :, :1]
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


@pytest.mark.parametrize(
    ("bits", "samples", "form", "photometric", "what"),
    [
        (8, 1, 3, 1, r"an 8-bit float TIFF \(gray\)"),
        (8, 4, 3, 2, r"an 8-bit float TIFF \(RGB, 4 channels\)"),
        (64, 1, 3, 1, r"a 64-bit float TIFF \(gray\)"),
        (16, 1, 3, 1, r"a 16-bit float TIFF \(gray\)"),
        (32, 3, 3, 2, r"a 32-bit float TIFF \(RGB, 3 channels\)"),
        (10, 1, 1, 1, r"a 10-bit TIFF \(gray\)"),
        (14, 1, 1, 1, r"a 14-bit TIFF \(gray\)"),
        (14, 1, 1, 32803, r"a 14-bit TIFF \(raw sensor data\)"),
    ],
)
def test_tiff_of_other_kinds_is_named(
    bits: int, samples: int, form: int, photometric: int, what: str
) -> None:
    size = 8 * 8 * samples * bits // 8
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (259, 3, 1, 1), (262, 3, 1, photometric)]
    tags += [(277, 3, 1, samples), (278, 3, 1, 8), (339, 3, 1, form)]
    tags += [(273, 4, 1, 16), (279, 4, 1, size)]
    depths = struct.pack("<4H", *[bits] * samples, *[0] * (4 - samples))
    tags.append((258, 3, samples, 8 if samples > 2 else bits))
    with pytest.raises(ImageError, match=f"image 0 .*not supported: {what}") as error:
        rgb(tiff(tags, depths + bytes(size)))
    assert "damaged" not in str(error.value)


def test_previews_of_raw_photographs_are_not_taken() -> None:
    """Regression: a NEF file became the thumbnail that it begins with."""
    strips = [(273, 4, 1, 8), (278, 3, 1, 8), (279, 4, 1, 64)]
    plain = [*tiff_tags(8, 8), *strips]
    preview = [*plain, (254, 4, 1, 1)]
    raw = [*preview, (330, 4, 1, 8)]
    for tags in (plain, preview):
        assert rgb(tiff(tags, bytes(64))).shape == (8, 8, 3)
    with pytest.raises(ImageError, match="not supported: a raw photograph.*NEF"):
        rgb(tiff(raw, bytes(64)))


GRAY = np.array([[0, 100, 127, 128], [200, 255, 1, 2]], np.uint8)


def gray_tiff(pixels: np.ndarray, **tags: list[int]) -> bytes:
    numbers = {name: getattr(tiffs, name, None) for name in tags}
    numbers |= {"FILL_ORDER": 266, "PALETTE": 320, "YCBCR": 530}
    usual = {tiffs.BITS: [8 * pixels.itemsize], tiffs.PHOTO: [1]}
    given = {numbers[name]: values for name, values in tags.items()}
    return tiffs.tiff("<", [pixels.tobytes()], usual | given)


def test_white_is_zero() -> None:
    """Regression: 16-bit and float values were shown as a negative."""
    values = GRAY.astype(np.uint16) * 257
    floats = GRAY.astype(np.float32) / 255
    negative = {"PHOTO": [0]}
    for content in (
        gray_tiff(GRAY),
        gray_tiff(255 - GRAY, **negative),
        gray_tiff(65535 - values, **negative),
        gray_tiff(1 - floats, FORMAT=[3], **negative),
    ):
        np.testing.assert_array_equal(rgb(content)[:, :, 0], GRAY)
    lazy = Image.open(io.BytesIO(gray_tiff(65535 - values, **negative)))
    np.testing.assert_array_equal(rgb(lazy)[:, :, 0], GRAY)


@pytest.mark.parametrize("photometric", [0, 1])
def test_reversed_bits(photometric: int) -> None:
    """Regression: those where white is zero were reported as damaged."""
    stored = GRAY if photometric else 255 - GRAY
    bits = np.unpackbits(stored[:, :, None], axis=2)[:, :, ::-1]
    content = gray_tiff(np.packbits(bits, axis=2), PHOTO=[photometric], FILL_ORDER=[2])
    np.testing.assert_array_equal(rgb(content)[:, :, 0], GRAY)


@pytest.mark.parametrize("step", [1, 256, 257])
def test_palettes_of_8_bits(step: int) -> None:
    """Regression: a palette of values up to 255, not 65535, was nearly black."""
    colors = np.random.default_rng(0).integers(0, 256, (3, 256))
    palette = [int(value) * step for value in colors.ravel()]
    content = gray_tiff(GRAY, PHOTO=[3], PALETTE=palette)
    expected = np.moveaxis(colors[:, GRAY], 0, 2)
    np.testing.assert_array_equal(rgb(content), expected)
    lazy = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(rgb(lazy), expected)
    lazy.seek(0)
    assert (np.asarray(lazy.convert("RGB")).max() <= 1) == (step == 1)  # left alone


def test_signed_values_are_not_wrapped_around() -> None:
    """Regression: negative 8-bit values became bright ones."""
    values = np.array([[0, 100, 127, 5]] * 2, np.int8)
    for pixels in (values, values.astype(np.int16) * 256):
        content = gray_tiff(pixels, FORMAT=[2])
        np.testing.assert_array_equal(rgb(content)[:, :, 0], values)
    for pixels, message in (
        (-values, "from -127 to 0. Expected 8-bit values, 0 to 255"),
        (-values.astype(np.int16), "from -127 to 0. Expected 16-bit values"),
    ):
        with pytest.raises(ImageError, match=f"image 0 .*gray values {message}"):
            rgb(gray_tiff(pixels, FORMAT=[2]))


@pytest.mark.parametrize(
    ("tags", "what"),
    [
        ({"PACKING": [34712]}, "not supported: a TIFF compressed as JPEG 2000 .*34712"),
        ({"PACKING": [34887]}, "not supported: a TIFF compressed as LERC .*LZW"),
        ({"PACKING": [12345]}, "not supported: a TIFF compressed as another kind"),
        ({"BITS": [8] * 8}, r"not supported: an 8-bit TIFF \(gray, 8 channels\)"),
        (
            {"BITS": [8] * 4, "PLANAR": [2], "PHOTO": [1], "STRIPS": [8] * 4},
            r"not supported: an 8-bit TIFF \(gray, 4 channels\)",
        ),
        (
            {"BITS": [8] * 3, "PLANAR": [2], "PHOTO": [2], "STRIPS": [8] * 6},
            r"an 8-bit TIFF \(RGB, 3 channels\) in separate planes",
        ),
        ({"YCBCR": [2, 2]}, "unsupported .*YCbCr in uncompressed subsampled values"),
        ({"YCBCR": [1, 1], "PLANAR": [2]}, "unsupported .*YCbCr in separate planes"),
    ],
)
def test_other_kinds_of_tiff_are_not_damaged(
    tags: dict[str, list[int]], what: str
) -> None:
    usual = {"PHOTO": [6], "BITS": [8] * 3} if "YCBCR" in tags else {}
    content = gray_tiff(np.zeros((24, 4), np.uint8), **usual, **tags)
    with pytest.raises(ImageError, match=f"image 0 .*{what}") as error:
        rgb(content)
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("name", ["LZMA", "Zstd", "WebP"])
def test_compressions_that_libtiff_may_lack(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph = photographs()[0]
    packing = {"LZMA": 34925, "Zstd": 50000, "WebP": 50001}[name]
    if safe_open._can_unpack(name.lower()):
        content = encoded(photograph, "TIFF", compression=name.lower())
        found = rgb(content).astype(int)
        assert np.abs(found - np.asarray(photograph)).mean() < 6
        monkeypatch.setattr(safe_open, "_can_unpack", lambda name: False)
    with pytest.raises(ImageError, match=f"not supported here: .*as {name}"):
        rgb(gray_tiff(GRAY, PACKING=[packing]))


def test_undefined_sample_format() -> None:
    """It says as much as none."""
    np.testing.assert_array_equal(rgb(gray_tiff(GRAY, FORMAT=[4]))[:, :, 0], GRAY)


@pytest.mark.parametrize("source", [bytes, bytearray])
def test_transparent_colour_of_16_bits(source: type) -> None:
    """Regression: its neighbours with the same high bytes were transparent too."""
    colors = [0x1234, 0x5678, 0x9ABC, 0x1234, 0x5678, 0x9ABD, 0x1235, 0x5678, 0x9ABC]
    for interlaced in (0, 1):
        head = struct.pack(">LLBBBBB", 3, 1, 16, 2, 0, 0, interlaced)
        data = struct.pack(">9H", *colors)
        if interlaced:  # the passes of a row of three pixels
            data = data[:6] + b"\0" + data[12:] + b"\0" + data[6:12]
        content = b"".join(
            [
                b"\x89PNG\r\n\x1a\n",
                png_chunk(b"IHDR", head),
                png_chunk(b"tRNS", struct.pack(">3H", *colors[:3])),
                png_chunk(b"IDAT", zlib.compress(b"\0" + data)),
                png_chunk(b"IEND", b""),
            ]
        )
        opaque = [0x12, 0x56, 0x9A]
        np.testing.assert_array_equal(
            rgb(source(content)), [[[255] * 3, opaque, opaque]]
        )


def test_jpeg_of_12_bits_is_not_damaged() -> None:
    content = lossless_jpeg(8).replace(b"\xff\xc3\x00\x0b\x08", b"\xff\xc1\x00\x0b\x0c")
    with pytest.raises(ImageError, match="image 0 .*not supported.*12-bit") as error:
        rgb(content)
    assert "damaged" not in str(error.value)


def test_jpeg_of_other_kinds_is_not_damaged() -> None:
    content = encoded(photographs()[0], "JPEG")
    frame = content.index(b"\xff\xc0") + 4
    assert content[frame + 7 : frame + 14 : 3] == b"\x22\x11\x11"
    for place, value, what in (
        (frame + 1, b"\0\0", "height follows its pixels"),
        (frame + 7, b"\x33\0\2\x22\1", "fractional sampling"),
    ):
        other = content[:place] + value + content[place + len(value) :]
        with pytest.raises(ImageError, match=f"not supported: a JPEG.*{what}") as error:
            rgb(other)
        assert "damaged" not in str(error.value)


# -- 12 bits in 16 -----------------------------------------------------------


def test_values_of_12_bits_are_said_once() -> None:
    gray = np.asarray(photographs()[0].convert("L"))
    dark = Image.fromarray(gray.astype(np.uint16) * 16)
    bright = Image.fromarray(gray.astype(np.uint16) * 257)
    black = Image.fromarray(np.zeros((8, 8), np.uint16))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for image in (bright, black):
            for source in (image, encoded(image, "PNG"), encoded(image, "TIFF")):
                rgb(source)
        assert caught == []
        for format in ("PNG", "TIFF"):
            assert rgb(encoded(dark, format)).max() < 16
        rgb(dark)
    (warning,) = caught
    assert "nearly black" in str(warning.message)
    assert "values / 4095" in str(warning.message)
    with pytest.warns(DarkValuesWarning):
        rgb(dark)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_colours_of_12_bits(format: str) -> None:
    colors = [4095, 2000, 300, 17, 900, 0]
    content = png(16, 2, colors, [1, 1, 1])
    if format == "TIFF":
        content = tiff(
            [
                *((256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 3, 8), (259, 3, 1, 1)),
                *((262, 3, 1, 2), (273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, 1)),
                (279, 4, 1, 12),
            ],
            struct.pack("<3H", 16, 16, 16) + struct.pack("<6H", *colors),
        )
    with pytest.warns(DarkValuesWarning, match="below 4096"):
        assert rgb(content).max() == 15


def test_the_warning_is_no_fault_of_the_image() -> None:
    """As an error, which a user asked for, it is not an ImageError."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 900, np.uint16)).save(file, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (file.getvalue(), Image.open(file)):
            with pytest.raises(DarkValuesWarning):
                rgb(source)
