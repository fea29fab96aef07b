"""The parts that image files consist of: segments, chunks, blocks, strips and tiles."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

# Parts a file may have: each takes microseconds, however small.
MAX_PARTS = 2**16
# Excludes byte stuffing and restart markers inside of a scan, and fill bytes.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# TIFF tags with the offsets of the strips or tiles.
_TIFF_OFFSETS = (273, 324)
START_OF_SCAN, _END_OF_IMAGE, APP1 = 0xDA, 0xD9, 0xE1
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)


def is_lossless_jpeg(content: bytes) -> bool:
    """Whether a JPEG file is lossless, and so cannot be decoded at a smaller size."""
    for marker, _ in jpeg_segments(content):
        if marker == START_OF_SCAN:
            break
        if marker in _LOSSLESS_FRAMES:
            return True
    return False


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


def gif_blocks(content: bytes) -> Iterator[int]:
    """Yield the offset of each block and sub-block before the first frame of a GIF."""
    flags = content[10] if len(content) > 10 else 0
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while content[position : position + 1] == b"!":
        yield position
        position += 2
        while length := int.from_bytes(content[position : position + 1], "big"):
            yield position
            position += 1 + length
        position += 1


def count_tiles(content: bytes) -> int:
    """Count the strips or tiles declared by the first directory of a TIFF file."""
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
        entries = content[start : start + size * min(count, MAX_PARTS)]
        entries = entries[: len(entries) // size * size]
        tags = struct.iter_unpack(order + entry, entries)
        return max((n for tag, _, n, _ in tags if tag in _TIFF_OFFSETS), default=0)
    except struct.error:
        return 0  # damaged: Pillow raises the error
