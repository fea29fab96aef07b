"""File variants that Pillow does not write and does not always read correctly."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from sk_cnncodes import ImageError
from sk_cnncodes.images.decode import read_rgb
from tests.fuzz.mutations import png_chunk


def rgb(content: bytes) -> np.ndarray:
    return np.asarray(read_rgb(content, 0))


# -- PNG ---------------------------------------------------------------------


def png(bits: int, kind: int, values: list[int], transparent: list[int]) -> bytes:
    """A PNG file of one gray (kind 0) or RGB (kind 2) row with a transparent value."""
    width = len(values) // (1 if kind == 0 else 3)
    text = "".join(format(value, f"0{bits}b") for value in values)
    text = text.ljust(-(-len(text) // 8) * 8, "0")
    row = b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", struct.pack(">LLBBBBB", width, 1, bits, kind, 0, 0, 0)),
            png_chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
            png_chunk(b"IDAT", zlib.compress(row)),
            png_chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_gray_of_any_depth_is_white(bits: int) -> None:
    largest = 2**bits - 1
    values = sorted({largest * i // 15 for i in range(16)})
    for transparent in values:
        gray = [255 * v // largest if bits < 16 else v >> 8 for v in values]
        gray[values.index(transparent)] = 255
        found = rgb(png(bits, 0, values, [transparent]))
        np.testing.assert_array_equal(found[0, :, 0], gray)


def test_transparent_16_bit_colour_is_white() -> None:
    # Pillow compares the low byte of the colour with the high byte of the pixels.
    colors = [0x1234, 0x1234, 0x1234, 0x3456, 0x3456, 0x3456]
    found = rgb(png(16, 2, colors, [0x1234] * 3))
    np.testing.assert_array_equal(found[0, :, 0], [255, 0x34])


# -- JPEG --------------------------------------------------------------------


def lossless_jpeg(side: int) -> bytes:
    """A uniformly gray image: each pixel's difference to the previous is 0, one bit."""
    frame = struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0)
    table = bytes([0, 1, *[0] * 15, 0])  # one code, of length 1, for 0
    scan = bytes([1, 1, 0, 1, 0, 0])
    parts = [(0xC3, frame), (0xC4, table), (0xDA, scan)]
    segments = [
        bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data
        for marker, data in parts
    ]
    return b"\xff\xd8" + b"".join(segments) + bytes(side * side // 8) + b"\xff\xd9"


def test_lossless_jpeg_is_never_decoded_smaller() -> None:
    """Regression: libjpeg cannot, and large files were reported as damaged."""
    image = read_rgb(lossless_jpeg(64), 0, min_decode_size=lambda height, width: (8, 8))
    assert image.size == (64, 64)
    assert (np.asarray(image) == 128).all()


# -- TIFF --------------------------------------------------------------------

WIDTH, HEIGHT, BITS, PACKING, PHOTO, STRIPS = 256, 257, 258, 259, 262, 273
SAMPLES, ROWS, LENGTHS, PLANAR, EXTRA, FORMAT = 277, 278, 279, 284, 338, 339


def tiff(order: str, strips: list[bytes], tags: dict[int, list[int]]) -> bytes:
    """A TIFF file of 4 x 2 pixels with the given strips and extra tags."""
    offsets = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    tags = {WIDTH: [4], HEIGHT: [2], ROWS: [2], STRIPS: offsets, PACKING: [1]} | tags
    tags |= {SAMPLES: [len(tags[BITS])], LENGTHS: [len(strip) for strip in strips]}
    start = 8 + sum(map(len, strips))
    entries, later = struct.pack(order + "H", len(tags)), b""
    for tag, values in sorted(tags.items()):
        value = struct.pack(f"{order}{len(values)}H", *values).ljust(4, b"\0")
        if len(value) > 4:
            offset = start + 2 + 12 * len(tags) + 4 + len(later)
            later += value
            value = struct.pack(order + "L", offset)
        entries += struct.pack(order + "HHL", tag, 3, len(values)) + value
    first = b"II*\0" if order == "<" else b"MM\0*"
    head = first + struct.pack(order + "L", start)
    return head + b"".join(strips) + entries + bytes(4) + later


def packed(data: bytes) -> bytes:
    """Encode with PackBits as a single literal run."""
    return bytes([len(data) - 1]) + data


VALUES = np.arange(8, dtype=np.uint16).reshape(2, 4) * 0x1F1F


def test_12_bit_tiff_keeps_its_high_byte() -> None:
    text = "".join(format(value >> 4, "012b") for value in VALUES.ravel())
    data = int(text, 2).to_bytes(12, "big")
    found = rgb(tiff("<", [data], {BITS: [12], PHOTO: [1]}))
    np.testing.assert_array_equal(found[:, :, 0], VALUES >> 8)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff(order: str) -> None:
    data = VALUES.astype(order + "u2").tobytes()
    for packing, strip in ((1, data), (32773, packed(data))):
        found = rgb(tiff(order, [strip], {BITS: [16], PHOTO: [1], PACKING: [packing]}))
        np.testing.assert_array_equal(found[:, :, 0], VALUES >> 8)


def test_tiff_that_pillow_would_misread_is_refused() -> None:
    """Regression: it was decoded to wrong pixels."""
    deep = VALUES.tobytes()
    planes = {BITS: [16] * 3, PHOTO: [2], PLANAR: [2]}
    gray = packed((VALUES >> 8).astype(np.uint8).tobytes())
    alpha = {BITS: [8] * 2, PHOTO: [1], PLANAR: [2], EXTRA: [2], PACKING: [32773]}
    swapped = packed((VALUES >> 8).astype(">i2").tobytes())
    signed = {BITS: [16], PHOTO: [1], FORMAT: [2], PACKING: [32773]}
    for content in (
        tiff("<", [deep] * 3, planes),
        tiff("<", [gray] * 2, alpha),
        tiff(">", [swapped], signed),
    ):
        with pytest.raises(ImageError, match="image 0.*unsupported variant of TIFF"):
            rgb(content)
    signed[PACKING] = [1]
    plain = tiff(">", [(VALUES >> 1).astype(">i2").tobytes()], signed)
    np.testing.assert_array_equal(rgb(plain)[:, :, 0], VALUES >> 9)
