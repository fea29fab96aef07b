"""What is broken beside the pixels does not break an image."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import ImageError
from sk_cnncodes.images.decode import read_image, read_rgb
from tests.fuzz.image_seeds import encoded, oriented, photographs
from tests.fuzz.mutations import png_chunk

TURN = 6
PROFILE = b"p" * 300


def photograph() -> Image.Image:
    return photographs()[0]


def webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<L", len(data)) + data + bytes(len(data) % 2)


def segment(marker: int, data: bytes, length: int | None = None) -> bytes:
    length = len(data) + 2 if length is None else length
    return bytes([0xFF, marker]) + length.to_bytes(2, "big") + data


def wrong_crc(kind: bytes, data: bytes) -> bytes:
    chunk = png_chunk(kind, data)
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


LARGE = zlib.compress(bytes(3_000_000))
BROKEN_CHUNKS = {
    "zTXt that unpacks to 3 MB": png_chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "zTXt of an unknown method": png_chunk(b"zTXt", b"Comment\0\x07" + b"abc"),
    "zTXt that does not unpack": png_chunk(b"zTXt", b"Comment\0\0abc"),
    "zTXt without a method": png_chunk(b"zTXt", b"Comment"),
    "iTXt that unpacks to 3 MB": png_chunk(b"iTXt", b"C\0\1\0\0\0" + LARGE),
    "iCCP that unpacks to 3 MB": png_chunk(b"iCCP", b"Profile\0\0" + LARGE),
    "iCCP of an unknown method": png_chunk(b"iCCP", b"Profile\0\x07abc"),
    "iCCP without a name": png_chunk(b"iCCP", b""),
    "tEXt with a wrong CRC": wrong_crc(b"tEXt", b"Comment\0text"),
    "iCCP with a wrong CRC": wrong_crc(b"iCCP", b"Profile\0\0" + LARGE),
    "eXIf with a wrong CRC": wrong_crc(b"eXIf", oriented(TURN).tobytes()[6:]),
    "unknown with a wrong CRC": wrong_crc(b"prVt", b"data"),
    "tIME with a wrong CRC": wrong_crc(b"tIME", bytes(7)),
    "empty sRGB": png_chunk(b"sRGB", b""),
    "empty pHYs": png_chunk(b"pHYs", b""),
    "short cHRM": png_chunk(b"cHRM", bytes(5)),
    "empty gAMA": png_chunk(b"gAMA", b""),
    "empty acTL": png_chunk(b"acTL", b""),
    "70 MB of text": png_chunk(b"tEXt", b"Comment\0" + b"t" * 70_000_000),
}
BROKEN_SEGMENTS = {
    "empty JFIF": segment(0xE0, b"JFIF\0"),
    "short JFIF": segment(0xE0, b"JFIF\0\1"),
    "empty APP0": segment(0xE0, b""),
    "short Adobe": segment(0xEE, b"Adobe"),
    "short ICC profile": segment(0xE2, b"ICC_PROFILE\0"),
    "part 7 of 1 of an ICC profile": segment(0xE2, b"ICC_PROFILE\0\7\1" + PROFILE),
    "MPF that is no directory": segment(0xE2, b"MPF\0" + b"II*\0\xff\xff\xff\xff"),
    "MPF of two images, without them": segment(
        0xE2, b"MPF\0MM\0*" + struct.pack(">LHHHLLL", 8, 1, 0xB001, 4, 1, 2, 0)
    ),
    "MPF of one byte": segment(0xE2, b"MPF\0I"),
    "short Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0"),
    "Photoshop without a resolution": segment(
        0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2\0\0"
    ),
    "XMP that is no text": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "unknown APP11": segment(0xEB, b"\xff\xd8JP\0\1"),
    "empty comment": segment(0xFE, b""),
    "comment with length 0": segment(0xFE, b"", 0),
    "APP3 with length 1": segment(0xE3, b"", 1),
    "70 EXIF segments": segment(0xE1, b"Exif\0\0") * 70,
}


def assert_upright(content: bytes, tolerance: int = 0) -> None:
    """The photograph, which the file stores turned, with the right orientation."""
    found = read_image(content, 0)
    assert found.orientation == TURN
    expected = np.asarray(photograph(), int)
    assert np.abs(np.asarray(found.rgb, int) - expected).max() <= tolerance


def stored() -> Image.Image:
    """The photograph as a camera that is turned stores it."""
    return photograph().transpose(Image.Transpose.ROTATE_90)


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
@pytest.mark.parametrize("where", [b"IDAT", b"IEND"])
@pytest.mark.filterwarnings("ignore:Invalid APNG")
def test_png_with_a_broken_chunk(name: str, where: bytes) -> None:
    content = encoded(stored(), "PNG", exif=oriented(TURN), icc_profile=PROFILE)
    start = content.index(where) - 4
    assert_upright(content[:start] + BROKEN_CHUNKS[name] + content[start:])


def test_png_that_ends_in_a_broken_chunk() -> None:
    content = encoded(stored(), "PNG", exif=oriented(TURN))
    text = png_chunk(b"tEXt", b"Comment\0" + b"text" * 99)
    assert_upright(content[:-12] + text[:100])


def test_orientation_in_the_xmp_of_a_png_with_a_broken_chunk() -> None:
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    content = encoded(stored(), "PNG")
    chunks = png_chunk(b"iTXt", xmp) + wrong_crc(b"tEXt", b"Comment\0text")
    assert_upright(content[:33] + chunks + content[33:])


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_chunks_that_decide_pixels_keep_their_checks(kind: bytes) -> None:
    content = encoded(photograph().quantize(16), "PNG", transparency=3)
    broken = BROKEN_CHUNKS["tEXt with a wrong CRC"]
    start = content.index(kind)
    length = int.from_bytes(content[start - 4 : start], "big")
    # In the data: Pillow does not compare the CRC of IDAT, but the checksum in it.
    at = start + 4 + length - 1
    content = content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
    for damaged in (content, content[:33] + broken + content[33:]):
        with pytest.raises(ImageError, match="damaged or truncated"):
            read_rgb(damaged, 0)


@pytest.mark.parametrize("name", BROKEN_SEGMENTS)
def test_jpeg_with_a_broken_segment(name: str) -> None:
    content = encoded(stored(), "JPEG", quality=100, subsampling=0, exif=oriented(TURN))
    expected = np.asarray(read_rgb(content, 0))
    frame = content.index(b"\xff\xc0")
    for start in (2, frame):
        broken = content[:start] + BROKEN_SEGMENTS[name] + content[start:]
        found = read_image(broken, 0)
        assert found.orientation == TURN
        np.testing.assert_array_equal(np.asarray(found.rgb), expected)
        for min_size in (None, lambda height, width: (8, 8)):
            for damaged in (broken[: len(broken) * 2 // 3],):
                with pytest.raises(ImageError, match="damaged or truncated"):
                    read_rgb(damaged, 0, min_decode_size=min_size)


def test_jpeg_whose_colours_adobe_decides() -> None:
    """A broken segment beside it does not change the colours."""
    content = encoded(photograph().convert("CMYK"), "JPEG")
    assert b"Adobe" in content
    broken = content[:2] + BROKEN_SEGMENTS["short ICC profile"] + content[2:]
    expected = np.asarray(read_rgb(content, 0))
    np.testing.assert_array_equal(np.asarray(read_rgb(broken, 0)), expected)


def exif_with_a_broken_value(turn: int) -> bytes:
    """The maker's name, before the orientation, lies outside of the data."""
    entries = struct.pack(">HHLL", 0x010F, 2, 40, 9999)
    entries += struct.pack(">HHLHH", 0x0112, 3, 1, turn, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">LH", 8, 2) + entries + bytes(4)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_orientation_beside_a_broken_exif_value(format: str) -> None:
    """Regression: the image was read as if it were upright."""
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    exif = exif_with_a_broken_value(TURN)
    content = encoded(stored(), format, exif=exif, **options)
    assert read_image(content, 0).orientation == TURN


@pytest.mark.parametrize(
    "broken",
    [
        webp_chunk(b"EXIF", b"Exif\0\0II*\0\xff\xff\xff\xff"),
        webp_chunk(b"EXIF", b"")[:-1],
        webp_chunk(b"XMP ", b"<x/>" * 99)[:30],
        webp_chunk(b"JUNK", b"data" * 99)[:30],
        b"JU",
    ],
)
@pytest.mark.parametrize("options", [{}, {"icc_profile": PROFILE}])
def test_webp_with_a_broken_chunk(broken: bytes, options: dict[str, Any]) -> None:
    exif = oriented(TURN)
    content = encoded(stored(), "WEBP", lossless=True, exif=exif, **options)
    whole = content + broken
    size = len(whole) - 8
    for length in (size, size + 500):  # also truncated in the chunk
        head = whole[:4] + length.to_bytes(4, "little")
        assert_upright(head + whole[8:])


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
@pytest.mark.parametrize("kind", [b"Exif", b"mime"])
def test_boxes_with_broken_metadata(format: str, kind: bytes) -> None:
    if format == "HEIF":
        pytest.importorskip("pillow_heif", reason="needs the extra heif")
    # As bytes: Pillow would take the orientation, which is a property of the image.
    exif = b"Exif\0\0" + struct.pack(">4sLHHHLLL", b"MM\0*", 8, 1, 0x010F, 2, 9, 26, 0)
    exif += b"a camera\0"
    xmp = b"<x:xmpmeta>text</x:xmpmeta>"
    content = encoded(photograph(), format, exif=exif, xmp=xmp)
    expected = np.asarray(read_rgb(content, 0))
    value = b"MM\0*" if kind == b"Exif" else xmp
    assert kind in content and content.count(value) == 1
    for broken in (
        content.replace(value, bytes(len(value))),
        content.replace(value, b"\xff" * len(value)),
        content.replace(kind, b"\0\0\0\0"),
    ):
        np.testing.assert_array_equal(np.asarray(read_rgb(broken, 0)), expected)


def tiff_variants(content: bytes) -> Iterator[bytes]:
    """The file with one more tag, of all types, whose values lie outside."""
    (start,) = struct.unpack_from("<L", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = content[start + 2 : start + 2 + 12 * count]
    for number in (270, 305, 700, 34665, 65000):
        for kind in (2, 4, 12, 99):
            tags = [entries[i : i + 12] for i in range(0, len(entries), 12)]
            tags.append(struct.pack("<HHLL", number, kind, 9999, len(content) + 50))
            tags.sort(key=lambda tag: struct.unpack("<H", tag[:2]))
            directory = struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
            yield (
                content[:4] + struct.pack("<L", len(content)) + content[8:] + directory
            )


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_with_a_broken_tag(compression: str | None) -> None:
    """Regression: the tags after it were lost, and with them the kind of numbers."""
    real = Image.fromarray(np.asarray(photograph().convert("L")) / np.float32(255))
    for image in (photograph(), real, photograph().convert("RGBA")):
        content = encoded(image, "TIFF", compression=compression)
        expected = np.asarray(read_rgb(content, 0))
        for broken in tiff_variants(content):
            np.testing.assert_array_equal(np.asarray(read_rgb(broken, 0)), expected)
    content = encoded(stored(), "TIFF", exif=oriented(TURN), compression=compression)
    for broken in tiff_variants(content):
        # Pillow itself turns TIFF images.
        found = np.asarray(read_rgb(broken, 0))
        np.testing.assert_array_equal(found, np.asarray(photograph()))


def test_gif_comments_and_extensions() -> None:
    content = encoded(photograph().quantize(32), "GIF", transparency=5)
    expected = np.asarray(read_rgb(content, 0))
    start = 13 + (3 << ((content[10] & 7) + 1))
    for extension in (
        b"!\xfe\0",
        b"!\xfe" + b"\xff" + b"\xfe" * 255 + b"\0",
        b"!\xff\x0bNETSCAPE2.0\0",
        b"!\xff\x0bNETSCAPE2.0\1\1\0",
        b"!\xff\3abc\2\1\1\0",
        b"!\x01\0",
        b"!\x77\4data\0",
    ):
        broken = content[:start] + extension + content[start:]
        np.testing.assert_array_equal(np.asarray(read_rgb(broken, 0)), expected)


def test_ppm_comments() -> None:
    pixels = np.asarray(photograph())
    for comment in (b"#\n", b"# " + b"c" * 100_000 + b"\n", b"# \xff\xfe\0\n", b"#\r"):
        content = b"P6\n" + comment + b"56 " + comment + b"40\n" + comment + b"255\n"
        found = read_rgb(content + pixels.tobytes(), 0)
        np.testing.assert_array_equal(np.asarray(found), pixels)


def test_bmp_fields_that_decide_nothing() -> None:
    file = io.BytesIO()
    photograph().save(file, "BMP")
    content = bytearray(file.getvalue())
    for start, stop in ((2, 6), (6, 10), (34, 38), (38, 46), (50, 54)):
        for value in (b"\0", b"\xff"):
            broken = bytes(content[:start]) + value * (stop - start) + content[stop:]
            np.testing.assert_array_equal(
                np.asarray(read_rgb(bytes(broken), 0)), np.asarray(photograph())
            )
