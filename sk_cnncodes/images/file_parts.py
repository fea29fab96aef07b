"""The parts of image files: segments, chunks, blocks, tags, strips, tiles and boxes."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

# Parts a file may have: each takes microseconds, however small.
MAX_PARTS = 2**16
# Excludes byte stuffing and restart markers inside of a scan, and fill bytes.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# TIFF tags with the offsets of the strips or tiles.
_TIFF_OFFSETS = (273, 324)
# Bytes per value of each type of TIFF tag.
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4}
_TIFF_SIZES |= {12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
START_OF_SCAN, _END_OF_IMAGE, APP1, BASELINE_FRAME = 0xDA, 0xD9, 0xE1, 0xC0
# Starts of a frame: the others of these markers are tables and an extension.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)
_PROGRESSIVE_FRAMES = (0xC2, 0xC6, 0xCA, 0xCE)
# The boxes with the size of an image, with the place of a video's first samples, and
# with the number and type of an item: kind, version, flags, and what is in them.
_ISPE = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)
_STCO = re.compile(rb"stco\0{4}.{4}(.{4})|co64\0{4}.{4}(.{8})", re.DOTALL)
_AV1_ITEM = re.compile(rb"infe(?:\x02...(.{2})|\x03...(.{4}))..av01", re.DOTALL)
# Units of an AV1 stream.
_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
# Units of all streams before their first frames, of which files have about two, and the
# bytes of a stream in which they lie.
_MAX_UNITS, _STREAM_START = 2**12, 2**16


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


def as_classic_tiff(content: bytes, numbers: set[int]) -> bytes:
    """A BigTIFF file as a TIFF file, with those of its tags that have these numbers.

    Its offsets fit into 32 bits, as larger files are refused.
    """
    order, _ = _tiff_layout(content)
    entries, later = list[bytes](), bytearray()
    for tag in tiff_tags(content):
        if tag.number not in numbers or tag.length > MAX_PARTS:
            continue
        kind, data = tag.kind, content[tag.start : tag.start + tag.size]
        value = struct.pack(order + "L", tag.start)
        if kind in (16, 18):  # of 64 bits
            kind, count = 4, len(data) // 8
            numbers64 = struct.unpack(f"{order}{count}Q", data[: 8 * count])
            data = struct.pack(f"{order}{count}L", *numbers64)
            value = struct.pack(order + "L", len(content) + len(later))
            later += data
        if len(data) <= 4:
            value = data.ljust(4, b"\0")
        entries.append(struct.pack(order + "HHL", tag.number, kind, tag.length) + value)
    later += bytes((len(content) + len(later)) % 2)
    head = struct.pack(order + "HL", 42, len(content) + len(later))
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return b"".join([content[:2], head, content[8:], later, directory])


def _tiff_layout(content: bytes) -> tuple[str, bool]:
    """Byte order, and whether it is a BigTIFF file."""
    return "<" if content[:2] == b"II" else ">", 43 in content[2:4]


def count_tiles(content: bytes) -> int:
    """Count the strips or tiles declared by the first directory of a TIFF file."""
    tags = tiff_tags(content)
    return max((tag.length for tag in tags if tag.number in _TIFF_OFFSETS), default=0)


# -- AVIF and HEIF ------------------------------------------------------------


def boxes(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, offset and end of each outermost box."""
    position = 0
    while position + 8 <= len(content):
        size, kind = struct.unpack_from(">L4s", content, position)
        if size == 1 and position + 16 <= len(content):
            (size,) = struct.unpack_from(">Q", content, position + 8)
        end = position + max(size, 8) if size else len(content)
        yield kind, position, end
        position = end


def declared_sizes(content: bytes) -> list[tuple[int, int]]:
    """Width and height of all images that a file describes, before cropping."""
    found: list[tuple[int, int]] = []
    for kind, start, end in boxes(content):
        if kind == b"meta":
            sizes = _ISPE.findall(content[start:end])
            found += [struct.unpack(">LL", size) for size in sizes]
    return found


def av1_sizes(content: bytes) -> list[tuple[int, int]]:
    """Largest width and height of each AV1 stream of an AVIF file, by the stream.

    Decoders reserve memory by these, whatever the file says elsewhere.

    Raises
    ------
    ValueError
        If they cannot be found within limits.
    """
    sizes, units = list[tuple[int, int]](), 0
    for stream in _streams(content):
        for kind, data in _units(stream):
            if kind == _SEQUENCE_HEADER:
                sizes.append(_sequence_size(_Bits(data)))
            units += 1
            if units > _MAX_UNITS:
                raise ValueError("too many units in its AV1 streams")
    return sizes


def _streams(content: bytes) -> Iterator[bytes]:
    """Yield the start of each AV1 stream: of images, and of a video's first frame."""
    for kind, start, end in boxes(content):
        if kind == b"meta":
            yield from _items(content, content[start + 12 : end])
        elif kind == b"moov":
            movie = content[start + 8 : end]
            for part, first, last in boxes(movie):
                track = movie[first:last]
                if part == b"trak" and b"av01" in track and (at := _STCO.search(track)):
                    place = int.from_bytes(at[1] or at[2], "big")
                    yield content[place : place + _STREAM_START]


def _items(content: bytes, meta: bytes) -> Iterator[bytes]:
    """Yield the start of each AV1 image: its extents, in the file or in box `idat`."""
    parts = {kind: meta[start + 8 : end] for kind, start, end in boxes(meta)}
    types = parts.get(b"iinf", b"")
    items = {int.from_bytes(a or b, "big") for a, b in _AV1_ITEM.findall(types)}
    bits = _Bits(parts.get(b"iloc", b""))
    version = bits.read(8)
    bits.read(24)
    offset_size, length_size, base_size, index_size = (bits.read(4) for _ in range(4))
    for _ in range(bits.read(16 if version < 2 else 32)):
        item = bits.read(16 if version < 2 else 32)
        method = bits.read(16) & 15 if version else 0
        bits.read(16)
        base, data = bits.read(8 * base_size), bytearray()
        whole = parts.get(b"idat", b"") if method == 1 else content
        for _ in range(bits.read(16)):
            bits.read(8 * index_size if version else 0)
            start = base + bits.read(8 * offset_size)
            length = bits.read(8 * length_size) or len(whole)
            length = min(length, _STREAM_START - len(data))
            data += whole[start : start + length]
        if item in items:
            yield bytes(data)


def _units(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and data of the units of an AV1 stream, up to its first frame."""
    position = 0
    while position < len(stream):
        head = stream[position]
        kind, position = head >> 3 & 15, position + 1 + (head >> 2 & 1)
        if kind in (_FRAME_HEADER, _FRAME):
            return
        length, shift = 0, 0
        while head & 2 and shift < 56 and position < len(stream):
            length |= (stream[position] & 127) << shift
            position, shift = position + 1, shift + 7
            if stream[position - 1] < 128:
                break
        end = position + length if head & 2 else len(stream)
        yield kind, stream[position:end]
        position = end
    if len(stream) == _STREAM_START:
        raise ValueError(f"no frame in the first {_STREAM_START} bytes of an image")


class _Bits:
    """Numbers of any count of bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def read(self, count: int) -> int:
        start, stop = self._position, self._position + count
        if stop > 8 * len(self._data):
            raise ValueError("damaged within its boxes")
        self._position = stop
        part = int.from_bytes(self._data[start // 8 : -(-stop // 8)], "big")
        return part >> (-stop % 8) & ((1 << count) - 1)


def _sequence_size(bits: _Bits) -> tuple[int, int]:
    """Width and height in an AV1 sequence header; names are those of the standard."""
    bits.read(4)  # seq_profile, still_picture
    if bits.read(1):  # reduced_still_picture_header
        bits.read(5)
    else:
        delay_length = 0
        if bits.read(1):  # timing_info_present_flag
            bits.read(64)
            if bits.read(1):  # equal_picture_interval
                zeros = 0
                while not bits.read(1):
                    zeros += 1
                bits.read(zeros if zeros < 32 else 0)
            if bits.read(1):  # decoder_model_info_present_flag
                delay_length = bits.read(5) + 1
                bits.read(42)
        has_display_delay = bits.read(1)
        for _ in range(bits.read(5) + 1):  # operating points
            bits.read(12)
            bits.read(1 if bits.read(5) > 7 else 0)  # seq_tier
            if delay_length and bits.read(1):
                bits.read(2 * delay_length + 1)
            if has_display_delay and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


# -- JPEG XL -----------------------------------------------------------------

_JXL_BOXES = b"\0\0\0\x0cJXL \r\n\x87\n"
# Width by height, for each ratio that a header names.
_JXL_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4)}
_JXL_RATIOS[7] = (2, 1)
_JXL_SIDE = ((1, 9), (1, 13), (1, 18), (1, 30))
_JXL_PREVIEW = ((1, 6), (65, 8), (321, 10), (1345, 12))
_JXL_PREVIEW_BLOCKS = ((16, 0), (32, 0), (1, 5), (33, 9))


def jxl_codestream(content: bytes) -> bytes:
    """The pixels of a JPEG XL file, without the boxes of its metadata."""
    if not content.startswith(_JXL_BOXES):
        return content
    parts = []
    for kind, start, end in islice(boxes(content), MAX_PARTS):
        if kind in (b"jxlc", b"jxlp"):
            is_long = content[start : start + 4] == b"\0\0\0\1"  # a size of 64 bits
            start += (16 if is_long else 8) + (4 if kind == b"jxlp" else 0)
            parts.append(content[start:end])
    return b"".join(parts)


def jxl_header(codestream: bytes) -> tuple[list[tuple[int, int]], int]:
    """Sizes of the image and its preview, and the number of its extra channels.

    Names are those of the standard.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    # Fields begin with the lowest bit.
    start = codestream[2:66]
    bits = _Bits(bytes(int(f"{byte:08b}"[::-1], 2) for byte in start))

    def read(count: int) -> int:
        return sum(bits.read(1) << i for i in range(count))

    def read_one_of(choices: tuple[tuple[int, int], ...]) -> int:
        least, count = choices[read(2)]
        return least + read(count)

    def read_size(preview: bool = False) -> tuple[int, int]:
        is_div8 = read(1)

        def read_side() -> int:
            if preview:
                choices = _JXL_PREVIEW_BLOCKS if is_div8 else _JXL_PREVIEW
                return read_one_of(choices) * (8 if is_div8 else 1)
            return 8 * (read(5) + 1) if is_div8 else read_one_of(_JXL_SIDE)

        height = read_side()
        if ratio := read(3):
            across, down = _JXL_RATIOS[ratio]
            return height * across // down, height
        return read_side(), height

    sizes = [read_size()]
    if read(1):  # all_default
        return sizes, 0
    if read(1):  # extra_fields
        read(3)  # orientation
        if read(1):  # have_intrinsic_size
            read_size()
        if read(1):  # have_preview
            sizes.append(read_size(preview=True))
        if read(1):  # have_animation
            read_one_of(((100, 0), (1000, 0), (1, 10), (1, 30)))
            read_one_of(((1, 0), (1001, 0), (1, 8), (1, 10)))
            read_one_of(((0, 0), (0, 3), (0, 16), (0, 32)))
            read(1)
    if read(1):  # float_sample
        read_one_of(((32, 0), (16, 0), (24, 0), (1, 6)))
        read(4)
    else:
        read_one_of(((8, 0), (10, 0), (12, 0), (1, 6)))
    read(1)  # modular_16bit_buffers
    return sizes, read_one_of(((0, 0), (1, 0), (2, 4), (1, 12)))
