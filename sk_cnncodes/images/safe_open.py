"""Opening image files that may be damaged or hostile.

Pillow is asked for a few formats only, and only for files that cost little more to
decode than their pixels do: small files exist that keep a decoder busy for minutes,
or fill the memory, without many pixels.
"""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Iterator
from itertools import islice
from numbers import Integral
from typing import Any

from PIL import Image, ImageFile

from sk_cnncodes.base.forks import fork_lock

# Formats that are opened, MPO as JPEG; Pillow's rarer readers are left closed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# The costliest format, WebP, takes 16 bytes a pixel while it is decoded: 0.83 GB.
MAX_PIXELS = 52_000_000
# A resize takes up to 48 bytes for each pixel along a side.
_LONGEST_SIDE = 1_000_000
# In bytes; the file is held in memory as a whole.
LARGEST_FILE = 2**29
# Segments, chunks, blocks, strips or tiles: each costs microseconds, however small.
_MOST_PARTS = 2**16
# Segments of EXIF data: a file has one, and Pillow copies all before it for each.
_MOST_EXIF_SEGMENTS = 64
# Scans of a progressive JPEG: encoders write about ten; more, of small images only.
_USUAL_SCANS = 16
_MOST_SCANNED_PIXELS = 2**30
# Tags of TIFF: bits of each sample, and whether channels lie in planes of their own.
_BITS, _PLANAR = 258, 284
# Pillow's names of big-endian values, other than unsigned ones of 16 bits.
_BIG_ENDIAN = ("I;16BS", "I;32BS", "F;32BF")
_LITTLE_ENDIAN = sys.byteorder == "little"
# Decoders that Pillow has in Python only, and their pixels: a microsecond for each.
_SLOW_DECODERS = ("ppm", "ppm_plain", "bmp_rle")
_MOST_SLOW_PIXELS = 2**21


class RefusedError(ValueError):
    """Why the content of an image file is not decoded."""


def open_image(content: bytes, max_pixels: int | None) -> ImageFile.ImageFile:
    """Open the content of an image file; its pixels are not decoded yet.

    Like `PIL.Image.open`, but the limit on pixels is the caller's, where Pillow's is
    one for the process.

    Parameters
    ----------
    content : bytes
    max_pixels : int or None
        None for no limit.

    Raises
    ------
    RefusedError
        If the format is not one of `FORMATS`, or decoding would cost too much.
    Exception
        Pillow's readers raise nearly anything on a damaged file.
    """
    if not content:
        raise RefusedError(
            f"the file is empty. Expected an image file ({', '.join(FORMATS)})."
        )
    if not all(name in Image.OPEN for name in FORMATS):
        with fork_lock:  # it imports the readers
            Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        # `accept` gives a text where Pillow was built without the format.
        if factory is not None and accept is not None and accept(content[:16]) is True:
            break
    else:
        raise RefusedError(
            f"not an image file. Expected one of {', '.join(FORMATS)}, got "
            f"{len(content)} bytes of none."
        )
    scans = 1
    if name == "JPEG":
        scans = _check_jpeg(content)
    elif name in ("PNG", "GIF"):
        parts = _png_chunks(content) if name == "PNG" else _gif_blocks(content)
        _check_count(sum(1 for _ in islice(parts, _MOST_PARTS + 1)), "parts")
    elif name == "TIFF":
        _check_count(_count_tiles(content), "strips or tiles")
    image: ImageFile.ImageFile = factory(io.BytesIO(content), "")
    check_size(*image.size, max_pixels)
    _check_work(image, scans)
    if name == "TIFF":
        _check_tiff(image)
    return image


def check_max_pixels(value: Any) -> None:
    """Refuse what is no limit.

    Raises
    ------
    ValueError
    """
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    if value is not None and not (is_int and value >= 1):
        raise ValueError(
            f"max_pixels: expected None or an int of at least 1, got {value!r}."
        )


def check_size(width: int, height: int, max_pixels: int | None) -> None:
    """Refuse an image without pixels, or with too many.

    Raises
    ------
    RefusedError
    """
    if width < 1 or height < 1:
        raise RefusedError(f"no pixels: {width} x {height}. Expected at least 1.")
    if max_pixels is not None and width * height > max_pixels:
        raise RefusedError(
            f"{width} x {height} pixels. Expected at most max_pixels={max_pixels}."
        )
    if max(width, height) > _LONGEST_SIDE:
        raise RefusedError(
            f"{width} x {height} pixels. Expected sides of at most {_LONGEST_SIDE}."
        )


def _check_work(image: ImageFile.ImageFile, scans: int) -> None:
    """Refuse a file whose decoding takes far longer than its pixels let expect."""
    size, pixels = f"{image.width} x {image.height}", image.width * image.height
    most = max(_USUAL_SCANS, _MOST_SCANNED_PIXELS // pixels)
    if scans > most:
        raise RefusedError(
            f"{size} pixels in {scans} progressive scans. Expected at most {most} "
            "scans at this size."
        )
    slow = any(tile[0] in _SLOW_DECODERS for tile in image.tile)
    if slow and pixels > _MOST_SLOW_PIXELS:
        raise RefusedError(
            f"{size} pixels in a rare variety of {image.format}. Expected at most "
            f"{_MOST_SLOW_PIXELS} pixels, or another format, such as PNG."
        )


def _check_tiff(image: Any) -> None:
    """Refuse what Pillow opens, but decodes to other pixels than the file holds."""
    decoder, _, _, (values, *_) = image.tile[0]
    deep = max(image.tag_v2.get(_BITS, (1,))) > 8
    planes = image.tag_v2.get(_PLANAR) == 2
    mixed = planes and (image.mode == "LA" or (deep and decoder == "raw"))
    # libtiff has put them into the order of bytes of this machine.
    swapped = decoder == "libtiff" and values in _BIG_ENDIAN and _LITTLE_ENDIAN
    if mixed or swapped:
        what = "planes" if mixed else "compressed big-endian values"
        raise RefusedError(
            f"a rare variety of TIFF, {image.mode} in {what}. Expected another, or "
            "another format, such as PNG."
        )


def _check_count(count: int, what: str) -> None:
    if count > _MOST_PARTS:
        raise RefusedError(f"damaged: expected at most {_MOST_PARTS} {what}.")


# -- the parts of a file -----------------------------------------------------

# Not the stuffing and the restart markers inside of a scan, nor fill bytes.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# Tags that hold where the strips or the tiles of a TIFF file are.
_TIFF_OFFSETS = (273, 324)
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)


def _check_jpeg(content: bytes) -> int:
    """Count the scans of a JPEG file; refuse one with too many segments."""
    scans = exif = 0
    for count, (marker, start) in enumerate(_jpeg_segments(content), 1):
        _check_count(count, "segments")
        scans += marker == _START_OF_SCAN
        exif += marker == _APP1 and content.startswith(b"Exif\0\0", start)
        if exif > _MOST_EXIF_SEGMENTS:
            raise RefusedError(
                f"damaged: expected at most {_MOST_EXIF_SEGMENTS} segments of EXIF "
                "data."
            )
    return scans


def is_lossless_jpeg(content: bytes) -> bool:
    """Whether a JPEG file is one of those that cannot be decoded smaller."""
    for marker, _ in _jpeg_segments(content):
        if marker == _START_OF_SCAN:
            break
        if marker in _LOSSLESS_FRAMES:
            return True
    return False


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Marker and start of the data of each segment, up to the end of the image."""
    position = 2
    while match := _JPEG_MARKER.search(content, position):
        marker, position = match[0][1], match.end()
        if marker == _END_OF_IMAGE:
            return
        yield marker, position + 2
        length = int.from_bytes(content[position : position + 2], "big")
        position += max(length, 2)


def _png_chunks(content: bytes) -> Iterator[int]:
    """Start of each chunk of a PNG file."""
    position = 8
    while position + 8 <= len(content):
        yield position
        length = int.from_bytes(content[position : position + 4], "big")
        position += 12 + length


def _gif_blocks(content: bytes) -> Iterator[int]:
    """Start of each block, and of its sub-blocks, before the first frame of a GIF."""
    flags = content[10] if len(content) > 10 else 0
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while content[position : position + 1] == b"!":
        yield position
        position += 2
        while length := int.from_bytes(content[position : position + 1], "big"):
            yield position
            position += 1 + length
        position += 1


def _count_tiles(content: bytes) -> int:
    """Strips or tiles that the first directory of a TIFF file states."""
    order = "<" if content[:2] == b"II" else ">"
    big = 43 in content[2:4]
    head, entry = ("Q", "HHQQ") if big else ("H", "HHLL")
    try:
        (start,) = struct.unpack_from(
            order + ("Q" if big else "L"), content, 4 + 4 * big
        )
        (count,) = struct.unpack_from(order + head, content, start)
        start += struct.calcsize(order + head)
        size = struct.calcsize(order + entry)
        entries = content[start : start + size * min(count, _MOST_PARTS)]
        entries = entries[: len(entries) // size * size]
        tags = struct.iter_unpack(order + entry, entries)
        return max((n for tag, _, n, _ in tags if tag in _TIFF_OFFSETS), default=0)
    except struct.error:
        return 0  # damaged: that is for Pillow to say
