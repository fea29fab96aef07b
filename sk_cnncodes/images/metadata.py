"""What lies beside the pixels of an image file, and the file without it.

Pillow reads comments, EXIF data, profiles and the like while it opens a file, and gives
up if they are damaged, unusually large or of an unknown kind. None of this makes an
image bad.
"""

from __future__ import annotations

import re
import struct
import zlib
from itertools import islice, pairwise

from sk_cnncodes.images.file_parts import (
    APP1,
    MAX_PARTS,
    START_OF_SCAN,
    boxes,
    gif_blocks,
    jpeg_segments,
    png_chunks,
    tiff_tags,
    webp_chunks,
    with_tiff_tags,
)

_ORIENTATION, _SHORT = 0x0112, 3
_EXIF = b"Exif\0\0"
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_JPEG_XMP, _PNG_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"XML:com.adobe.xmp\0"
# Decompressed, in bytes; Pillow does not read larger profiles of PNG files.
_MAX_PROFILE = 2**20
_APP0, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE2, 0xEE, 0xEF, 0xFE
# Start and least length of the segments that decide colours, with what libjpeg reads.
_JPEG_KEPT = {_APP0: (b"JFIF\0", 14), _APP14: (b"Adobe", 12)}
_JPEG_KEPT |= {_APP2: (b"ICC_PROFILE\0", 15)}
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
_WEBP_FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
_GIF_CONTROL = 0xF9
# The entries of AVIF and HEIF files for EXIF data and XMP: box, version, flags, number
# of the item (2 bytes or 4), its protection, and its type.
_BOXED_METADATA = re.compile(rb"(infe[\2\3].{7}(?:..)?)(?:Exif|mime)", re.DOTALL)
# TIFF tags that decide pixels: sizes, strips and tiles, compression, colours, sample
# formats, JPEG tables and YCbCr; then the profile.
TIFF_PIXELS = {*range(254, 260), 262, 266, 273, 274, *range(277, 282), 284, 292, 293}
TIFF_PIXELS |= {317, 320, *range(322, 326), 332, 333, 334, *range(336, 342), 347}
TIFF_PIXELS |= {*range(512, 522), *range(529, 533), *range(32995, 32999), 50674}
TIFF_PIXELS |= {34675}


def without_metadata(content: bytes, format: str) -> bytes | None:
    """An image file without what does not decide its pixels.

    Its orientation is kept, as the only EXIF value, and its colour profile, where they
    are intact.

    Parameters
    ----------
    content : bytes
    format : str
        Pillow's name of its format.

    Returns
    -------
    bare : bytes or None
        None if there is nothing to leave out.
    """
    strip = {"JPEG": _bare_jpeg, "PNG": _bare_png, "WEBP": _bare_webp}
    strip |= {"GIF": _bare_gif, "TIFF": _bare_tiff}
    strip |= {"AVIF": _bare_boxes, "HEIF": _bare_boxes}
    bare = strip[format](content) if format in strip else content
    return None if bare == content else bare


def exif_orientation(exif: bytes) -> int:
    """Orientation in EXIF data, whatever else is damaged there; 1 if there is none."""
    exif = exif.removeprefix(_EXIF)
    for tag in tiff_tags(exif):
        if (tag.number, tag.kind, tag.length) == (_ORIENTATION, _SHORT, 1):
            order = "<" if exif[:2] == b"II" else ">"
            (value,) = struct.unpack_from(order + "H", exif, tag.start)
            return value if 1 <= value <= 8 else 1
    return 1


def has_damaged_tags(content: bytes) -> bool:
    """Whether values of a TIFF directory lie outside of the file.

    Pillow leaves out all tags after such a one, also those that decide pixels.
    """
    return any(tag.start + tag.size > len(content) for tag in tiff_tags(content))


def _oriented(exif: bytes, xmp: bytes) -> bytes:
    """EXIF data with nothing but the orientation; empty if upright."""
    orientation = exif_orientation(exif)
    if orientation == 1 and (match := _XMP.search(xmp)):
        orientation = int(match[1])
    tags = struct.pack(">HHHLHHL", 1, _ORIENTATION, _SHORT, 1, orientation, 0, 0)
    return b"MM\0*\0\0\0\x08" + tags if orientation != 1 else b""


def _bare_jpeg(content: bytes) -> bytes:
    kept, exif, xmp = [content[:2]], b"", b""
    for marker, start in jpeg_segments(content):
        if marker == START_OF_SCAN:
            kept.append(content[start - 4 :])
            break
        length = int.from_bytes(content[start - 2 : start], "big")
        end = start + max(length, 2) - 2
        data = content[start:end]
        if marker == APP1 and data.startswith(_EXIF):
            exif = exif if exif_orientation(exif) != 1 else data
        elif marker == APP1 and data.startswith(_JPEG_XMP):
            xmp = data
        elif marker in _JPEG_KEPT:
            first, least = _JPEG_KEPT[marker]
            if data.startswith(first) and len(data) >= least:
                kept.append(content[start - 4 : end])
        elif not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            kept.append(content[start - 4 : end])
    if data := _oriented(exif, xmp):
        data = _EXIF + data
        kept.insert(1, b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data)
    return b"".join(kept)


def _bare_png(content: bytes) -> bytes:
    kept, exif, xmp = [content[:8]], b"", b""
    for start in png_chunks(content):
        length = int.from_bytes(content[start : start + 4], "big")
        chunk = content[start : start + 12 + length]
        kind, data = chunk[4:8], chunk[8 : 8 + length]
        is_critical = kind[0] & 0x20 == 0
        if is_critical or kind == b"tRNS":
            kept.append(chunk)
        elif zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            continue
        elif kind == b"iCCP" and _is_readable(data):
            kept.append(chunk)
        elif kind == b"eXIf":
            exif = data
        elif kind == b"iTXt" and data.startswith(_PNG_XMP):
            xmp = data
    if data := _oriented(exif, xmp):
        crc = zlib.crc32(b"eXIf" + data).to_bytes(4, "big")
        kept.insert(2, len(data).to_bytes(4, "big") + b"eXIf" + data + crc)
    return b"".join(kept)


def _is_readable(data: bytes) -> bool:
    """Whether an iCCP chunk can be decompressed, within the limit."""
    _, _, rest = data.partition(b"\0")
    unpack = zlib.decompressobj()
    try:
        unpack.decompress(rest[1:], _MAX_PROFILE)
    except zlib.error:
        return False
    return rest[:1] == b"\0" and not unpack.unconsumed_tail


def _bare_webp(content: bytes) -> bytes:
    parts = dict[bytes, bytes]()
    kept, flags = list[bytes](), 0
    for kind, start, end in webp_chunks(content):
        chunk = content[start:end]
        if kind in _WEBP_PIXELS:
            kept.append(chunk)
        elif end <= len(content) + 1:
            parts.setdefault(kind, chunk)
    if kept and kept[0].startswith(b"VP8X"):
        exif = _oriented(parts.get(b"EXIF", b"")[8:], parts.get(b"XMP ", b""))
        if b"ICCP" in parts:
            kept.insert(1, parts[b"ICCP"])
            flags |= _WEBP_FLAGS[b"ICCP"]
        if exif:
            kept.append(b"EXIF" + len(exif).to_bytes(4, "little") + exif)
            flags |= _WEBP_FLAGS[b"EXIF"]
        others = 0xFF - sum(_WEBP_FLAGS.values())
        head = kept[0]
        kept[0] = head[:8] + bytes([head[8] & others | flags]) + head[9:]
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _bare_gif(content: bytes) -> bytes:
    blocks = list(gif_blocks(content))
    starts = [start for start, label in blocks if label] + [blocks[-1][0]]
    kept = [content[: starts[0]]]
    for start, end in pairwise(starts):
        # Start, label, length and four bytes: transparency.
        if content[start + 1] == _GIF_CONTROL and end - start >= 8:
            kept.append(content[start:end])
    return b"".join(kept) + content[starts[-1] :]


def _bare_boxes(content: bytes) -> bytes:
    """With metadata of a type that no reader knows; the orientation is a property."""
    parts = []
    for kind, start, end in islice(boxes(content), MAX_PARTS):
        part = content[start:end]
        if kind == b"meta":
            part = _BOXED_METADATA.sub(rb"\1free", part)
        parts.append(part)
    return b"".join(parts)


def _bare_tiff(content: bytes) -> bytes:
    tags = tiff_tags(content)
    kept = [tag for tag in tags if tag.number in TIFF_PIXELS]
    return with_tiff_tags(content, kept) if len(kept) < len(tags) else content
