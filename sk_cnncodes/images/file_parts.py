"""The parts that image files consist of: segments, chunks, blocks, strips and tiles."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

# Parts a file may have: each takes microseconds, however small.
MAX_PARTS = 2**16
# Excludes byte stuffing and restart markers inside of a scan, and fill bytes.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# TIFF tags with the offsets of the strips or tiles.
_TIFF_OFFSETS = (273, 324)
# The box with the size of an image: its kind, version and flags.
_ISPE = re.compile(rb"ispe\0\0\0\0(.{8})", re.DOTALL)
# Bytes per value of each type of TIFF tag.
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4}
_TIFF_SIZES |= {12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
START_OF_SCAN, _END_OF_IMAGE, APP1 = 0xDA, 0xD9, 0xE1
# Starts of a frame: the others of these markers are tables and an extension.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)
_PROGRESSIVE_FRAMES = (0xC2, 0xC6, 0xCA, 0xCE)


def read_jpeg_frame(content: bytes) -> tuple[bool, bool]:
    """How the pixels of a JPEG file are coded.

    Returns
    -------
    lossless : bool
        It cannot be decoded at a smaller size.
    several_scans : bool
        It is progressive, or has a scan for each channel.
    """
    frame, n_channels = 0, 0
    for marker, start in jpeg_segments(content):
        if marker == START_OF_SCAN:
            progressive = frame in _PROGRESSIVE_FRAMES
            several = content[start : start + 1] < bytes([n_channels])
            return frame in _LOSSLESS_FRAMES, progressive or several
        if marker in FRAMES:
            frame = marker
            (n_channels,) = content[start + 5 : start + 6] or b"\0"
    return False, False


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and data offset of each segment, up to the end of the image."""
    position = 2
    while match := _JPEG_MARKER.search(content, position):
        marker, position = match[0][1], match.end()
        if marker == _END_OF_IMAGE:
            return
        yield marker, position + 2
        length = int.from_bytes(content[position : position + 2], "big")
        position += max(length, 2)


def png_chunks(content: bytes) -> Iterator[int]:
    """Yield the offset of each chunk of a PNG file."""
    position = 8
    while position + 8 <= len(content):
        yield position
        length = int.from_bytes(content[position : position + 4], "big")
        position += 12 + length


def gif_blocks(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield offset and label of each extension before the first frame of a GIF.

    Their sub-blocks follow with label 0, and after the last one comes the frame.
    """
    flags = content[10] if len(content) > 10 else 0
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while content[position : position + 1] == b"!":
        yield position, int.from_bytes(content[position + 1 : position + 2])
        position += 2
        while length := int.from_bytes(content[position : position + 1]):
            yield position, 0
            position += 1 + length
        position += 1
    yield position, 0


def webp_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, offset and end of each chunk of a WebP file."""
    position = 12
    while position + 8 <= len(content):
        (length,) = struct.unpack_from("<L", content, position + 4)
        end = position + 8 + length + length % 2
        yield content[position : position + 4], position, end
        position = end


def boxes(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, offset and end of each outermost box of an AVIF or HEIF file."""
    position = 0
    while position + 8 <= len(content):
        size, kind = struct.unpack_from(">L4s", content, position)
        if size == 1 and position + 16 <= len(content):
            (size,) = struct.unpack_from(">Q", content, position + 8)
        end = position + max(size, 8) if size else len(content)
        yield kind, position, end
        position = end


def declared_sizes(content: bytes) -> list[tuple[int, int]]:
    """Width and height of all images in an AVIF or HEIF file, before cropping."""
    sizes = []
    for kind, start, end in boxes(content):
        if kind == b"meta":
            found = _ISPE.findall(content[start:end])
            sizes += [struct.unpack(">LL", size) for size in found]
    return [(width, height) for width, height in sizes]


class TiffTag(NamedTuple):
    """An entry of a TIFF directory; its values are `size` bytes from `start`."""

    number: int
    kind: int
    length: int
    start: int
    size: int
    entry: bytes


def tiff_tags(content: bytes) -> list[TiffTag]:
    """The first directory of a TIFF file, or of EXIF data, as far as it is there."""
    order, big = _tiff_layout(content)
    entry = struct.Struct(order + ("HHQ8s" if big else "HHL4s"))
    head, word = ("Q", "Q") if big else ("H", "L")
    try:
        (start,) = struct.unpack_from(order + word, content, 8 if big else 4)
        (count,) = struct.unpack_from(order + head, content, start)
    except struct.error:
        return []  # damaged: Pillow raises the error
    start += struct.calcsize(order + head)
    stop = min(start + entry.size * min(count, MAX_PARTS), len(content))
    tags = []
    for at in range(start, stop - entry.size + 1, entry.size):
        number, kind, length, value = entry.unpack_from(content, at)
        size, where = length * _TIFF_SIZES.get(kind, 0), at + entry.size - len(value)
        if size > len(value):
            (where,) = struct.unpack(order + word, value)
        raw = content[at : at + entry.size]
        tags.append(TiffTag(number, kind, length, where, size, raw))
    return tags


def with_tiff_tags(content: bytes, tags: list[TiffTag]) -> bytes:
    """A TIFF file whose first and only directory has the given ones of its tags."""
    order, big = _tiff_layout(content)
    head, word = ("Q", "Q") if big else ("H", "L")
    pad = bytes(-len(content) % 8)
    start = struct.pack(order + word, len(content) + len(pad))
    at = 8 if big else 4
    entries = b"".join(tag.entry for tag in tags)
    return b"".join(
        [
            *(content[:at], start, content[at + len(start) :], pad),
            *(struct.pack(order + head, len(tags)), entries, bytes(len(start))),
        ]
    )


def _tiff_layout(content: bytes) -> tuple[str, bool]:
    """Byte order, and whether it is a BigTIFF file."""
    return "<" if content[:2] == b"II" else ">", 43 in content[2:4]


def count_tiles(content: bytes) -> int:
    """Count the strips or tiles declared by the first directory of a TIFF file."""
    tags = tiff_tags(content)
    return max((tag.length for tag in tags if tag.number in _TIFF_OFFSETS), default=0)
