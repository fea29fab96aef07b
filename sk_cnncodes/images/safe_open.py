"""Open image files that may be damaged or hostile.

Only a few of Pillow's formats are opened, and only files whose decoding cost is in
proportion to their pixels: small files with few pixels can keep a decoder busy for
minutes or exhaust memory.
"""

from __future__ import annotations

import io
import math
import struct
import sys
from functools import lru_cache
from itertools import islice
from numbers import Integral
from typing import Any, Literal

from PIL import Image, ImageFile

from sk_cnncodes.images.file_parts import (
    APP1,
    FRAMES,
    MAX_PARTS,
    START_OF_SCAN,
    TiffTag,
    as_classic_tiff,
    av1_sizes,
    count_tiles,
    declared_sizes,
    gif_blocks,
    jpeg_segments,
    jxl_codestream,
    jxl_header,
    png_chunks,
    tiff_tags,
    with_tiff_tags,
)
from sk_cnncodes.images.formats import (
    MAX_SLOW_PIXELS,
    RefusedError,
    format_of,
    open_format,
)
from sk_cnncodes.images.metadata import (
    TIFF_PIXELS,
    has_damaged_tags,
    without_metadata,
)

# The most expensive format, WebP, takes 16 bytes per pixel to decode: 0.83 GB.
MAX_PIXELS = 52_000_000
_PIXEL_BYTES = 16
# A pixel of a JPEG file takes 4 bytes, and as many in another mode or orientation.
_JPEG_PIXEL_BYTES = 8
# In pixels; a resize takes up to 48 bytes per pixel along a side.
_MAX_SIDE = 1_000_000
# In bytes; the whole file is held in memory.
LARGEST_FILE = 2**29
# EXIF segments: files have one, and Pillow copies all previous ones for each.
_MAX_EXIF_SEGMENTS = 64
# Scans of a progressive JPEG: encoders write about ten; small images may have more.
_USUAL_SCANS = 16
_MAX_SCANNED_PIXELS = 2**30
# Of JPEG XL: alpha, depth and the like, each with the memory of a colour.
_MAX_EXTRA_CHANNELS = 2
# TIFF tags: bits per sample, planar configuration (one plane per channel), and others
# that are named by the standard.
_BITS, _PLANAR, _SAMPLES, _SAMPLE_FORMAT, _PHOTOMETRIC = 258, 284, 277, 339, 262
_YCBCR_SAMPLING = 530
_SUBFILE, _SUB_DIRECTORIES, _COMPRESSION, _FILL_ORDER = 254, 330, 259, 266
_SAMPLE_FORMATS = {2: "signed ", 3: "float ", 5: "complex ", 6: "complex "}
_PHOTOMETRICS = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}
_PHOTOMETRICS |= {8: "Lab", 9: "Lab", 32803: "raw sensor data", 34892: "raw data"}
# Compressions that Pillow does not know, and those that its libtiff may lack.
_COMPRESSIONS = {9: "JBIG", 10: "JBIG", 34661: "JBIG", 33003: "JPEG 2000"}
_COMPRESSIONS |= {33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"}
_COMPRESSIONS |= {34713: "NEF", 34887: "LERC", 34892: "JPEG of DNG", 34933: "PNG"}
_COMPRESSIONS |= {34934: "JPEG XR", 22610: "JPEG XR", 50002: "JPEG XL"}
_COMPRESSIONS |= {52546: "JPEG XL"}
_OPTIONAL_COMPRESSIONS = {34925: "LZMA", 50000: "Zstd", 50001: "WebP"}
_UNDEFINED_FORMAT = 4
# In bytes; more than the headers of a BMP file.
_BMP_SLACK = 2**12
# What Pillow says of samples that it does not know.
_UNKNOWN_SAMPLES = ("unknown pixel mode", "Invalid value for samples per pixel")
# Pillow's raw modes of big-endian values, other than unsigned 16-bit ones.
_BIG_ENDIAN = ("I;16BS", "I;32BS", "F;32BF")
_LITTLE_ENDIAN = sys.byteorder == "little"
# Decoders that Pillow implements in Python.
_SLOW_DECODERS = ("ppm", "ppm_plain", "bmp_rle")


def open_image(content: bytes, max_pixels: int | None) -> ImageFile.ImageFile:
    """Open the content of an image file without decoding its pixels.

    Like `PIL.Image.open`, but the limit on pixels is per call, not global. For JPEG
    files, which can be decoded at a smaller size, `check_jpeg_size` applies it.

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
        Pillow's readers raise almost any exception on a damaged file.
    """
    name = format_of(content)
    scans = 1
    if name == "JPEG":
        scans = _check_jpeg(content)
    elif name in ("PNG", "GIF"):
        parts = png_chunks(content) if name == "PNG" else gif_blocks(content)
        _check_count(sum(1 for _ in islice(parts, MAX_PARTS + 1)), "parts")
    elif name == "TIFF":
        _check_count(count_tiles(content), "strips or tiles")
        _check_raw(content)
        content = _readable_tiff(content)
        if content.startswith(b"MM\0+"):  # BigTIFF, which Pillow reads in "II" only
            content = as_classic_tiff(content, TIFF_PIXELS)
        if has_damaged_tags(content):
            content = without_metadata(content, name) or content
    elif name == "BMP" and content[14] >= 40 and len(content) >= 26:
        width, height = struct.unpack_from("<ll", content, 18)
        check_size(width, abs(height), max_pixels)
        # Runs that write nothing would keep Pillow busy for minutes.
        (start,) = struct.unpack_from("<L", content, 10)
        content = content[: start + 4 * (width + 1) * abs(height) + _BMP_SLACK]
    elif name in ("AVIF", "HEIF"):
        # A cropped image is decoded as a whole; coders pad it to blocks.
        streams = av1_sizes(content) if name == "AVIF" else []
        for width, height in declared_sizes(content) + streams:
            if max_pixels is not None and (width - 63) * (height - 63) > max_pixels:
                check_size(width, height, max_pixels)
    elif name == "JXL":
        # Its reader decodes the image as it opens it.
        sizes, channels = jxl_header(jxl_codestream(content))
        for width, height in sizes:
            check_size(width, height, max_pixels)
        if channels > _MAX_EXTRA_CHANNELS:
            raise RefusedError(
                f"not supported: a JPEG XL image with {channels} extra channels. "
                f"Expected at most {_MAX_EXTRA_CHANNELS}."
            )
    try:
        image = open_format(name, content)
    except SyntaxError as error:
        if name == "TIFF" and (kind := _unsupported_tiff(content, error)):
            raise RefusedError(f"not supported: {kind}.") from error
        raise
    check_size(*image.size, None if name == "JPEG" else max_pixels)
    _check_work(image, scans)
    if name == "TIFF":
        _check_tiff(image)
    return image


def check_max_pixels(value: Any) -> None:
    """Check a `max_pixels` parameter.

    Raises
    ------
    ValueError
        If it is neither None nor a positive int.
    """
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    if value is not None and not (is_int and value >= 1):
        raise ValueError(
            f"max_pixels: expected None or an int of at least 1, got {value!r}."
        )


def check_size(width: int, height: int, max_pixels: int | None) -> None:
    """Check width and height of an image, in pixels.

    Raises
    ------
    RefusedError
        If it has no pixels, too many pixels, or too long a side.
    """
    if width < 1 or height < 1:
        raise RefusedError(f"no pixels: {width} x {height}. Expected at least 1.")
    if max_pixels is not None and width * height > max_pixels:
        raise RefusedError(f"{width} x {height} pixels. {_expected_pixels(max_pixels)}")
    if max(width, height) > _MAX_SIDE:
        raise RefusedError(
            f"{width} x {height} pixels. Expected sides of at most {_MAX_SIDE}."
        )


def check_jpeg_size(
    image: Any, size: tuple[int, int], several_scans: bool, max_pixels: int | None
) -> None:
    """Check the memory that decoding a JPEG file takes.

    Parameters
    ----------
    image : PIL.JpegImagePlugin.JpegImageFile
        Its size is the one that it will be decoded at.
    size : (int, int)
        Width and height of the file.
    several_scans : bool
        Whether libjpeg holds the coefficients of the whole file, at whatever size it is
        decoded: two bytes for each sample of a channel.
    max_pixels : int or None
        Limit in pixels of 16 bytes; None for no limit.

    Raises
    ------
    RefusedError
        If it takes more.
    """
    if max_pixels is None:
        return
    taken = _JPEG_PIXEL_BYTES * image.width * image.height
    if several_scans:
        factors = [(across, down) for _, across, down, _ in image.layer]
        (widest, tallest) = map(max, zip(*factors, strict=True))
        samples = sum(across * down for across, down in factors) / (widest * tallest)
        taken += math.ceil(2 * samples * size[0] * size[1])
    if taken > max_pixels * _PIXEL_BYTES:
        scaled = f", decoded at {image.width} x {image.height}" * (image.size != size)
        scans = ", progressive" * several_scans
        raise RefusedError(
            f"{size[0]} x {size[1]} pixels{scaled}{scans}, which takes "
            f"{taken / 1e6:.1f} MB. {_expected_pixels(max_pixels)}"
        )


def _expected_pixels(max_pixels: int) -> str:
    return (
        f"Expected at most max_pixels={max_pixels}, each of {_PIXEL_BYTES} bytes. For "
        "files that you trust, raise max_pixels (--max-pixels of a command)."
    )


def _check_work(image: ImageFile.ImageFile, scans: int) -> None:
    """Refuse a file that is too slow to decode for its number of pixels."""
    size, pixels = f"{image.width} x {image.height}", image.width * image.height
    max_scans = max(_USUAL_SCANS, _MAX_SCANNED_PIXELS // pixels)
    if scans > max_scans:
        raise RefusedError(
            f"{size} pixels in {scans} progressive scans. Expected at most {max_scans} "
            "scans at this size."
        )
    slow = any(tile[0] in _SLOW_DECODERS for tile in image.tile)
    if slow and pixels > MAX_SLOW_PIXELS:
        raise RefusedError(
            f"{size} pixels in a slow variant of {image.format}. Expected at most "
            f"{MAX_SLOW_PIXELS} pixels, or another format, such as PNG."
        )


def _check_raw(content: bytes) -> None:
    """Refuse raw photographs, whose first image in the file is a small preview."""
    tags = {tag.number: tag for tag in tiff_tags(content)}
    reduced = _first_value(content, tags.get(_SUBFILE)) & 1
    if content[8:10] == b"CR" or (reduced and _SUB_DIRECTORIES in tags):
        raise RefusedError(
            "not supported: a raw photograph (TIFF with a preview, such as CR2, NEF, "
            "ARW or DNG). Convert it to JPEG, PNG or TIFF."
        )


def _readable_tiff(content: bytes) -> bytes:
    """A TIFF file without what says nothing, but stops Pillow.

    Raises
    ------
    RefusedError
        If the libtiff of Pillow was built without its compression.
    """
    tags = tiff_tags(content)
    by_number = {tag.number: tag for tag in tags}
    packing = _first_value(content, by_number.get(_COMPRESSION), 1)
    name = _OPTIONAL_COMPRESSIONS.get(packing)
    if name is not None and not _can_unpack(name.lower()):
        raise RefusedError(f"not supported here: {_packed_tiff(name, packing)}.")
    if _first_value(content, by_number.get(_SAMPLE_FORMAT)) == _UNDEFINED_FORMAT:
        kept = [tag for tag in tags if tag.number != _SAMPLE_FORMAT]
        return with_tiff_tags(content, kept)
    return content


@lru_cache
def _can_unpack(compression: str) -> bool:
    """Whether the libtiff of Pillow has a compression: it packs what it unpacks."""
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), "TIFF", compression=compression)
    except (OSError, RuntimeError, ValueError):
        return False
    return True


def _packed_tiff(name: str, packing: int) -> str:
    return (
        f"a TIFF compressed as {name} (compression {packing}). Expected a common "
        "compression, such as LZW or deflate"
    )


def _unsupported_tiff(content: bytes, error: SyntaxError) -> str:
    """What of a TIFF file Pillow does not read; empty if it may be damaged."""
    tags = {tag.number: tag for tag in tiff_tags(content)}
    packing = _first_value(content, tags.get(_COMPRESSION), 1)
    cause = error.__cause__
    if isinstance(cause, KeyError) and cause.args == (packing,):
        return _packed_tiff(_COMPRESSIONS.get(packing, "another kind"), packing)
    if str(error) in _UNKNOWN_SAMPLES:
        return _tiff_kind(content)
    in_planes = _first_value(content, tags.get(_PLANAR), 1) == 2
    if in_planes and isinstance(cause, IndexError):
        return f"{_tiff_kind(content)} in separate planes"
    return ""


def _tiff_kind(content: bytes) -> str:
    """Describe the values of a TIFF file, such as 32-bit float."""
    tags = {tag.number: tag for tag in tiff_tags(content)}
    bits = _first_value(content, tags.get(_BITS), 1)
    kind = _SAMPLE_FORMATS.get(_first_value(content, tags.get(_SAMPLE_FORMAT), 1), "")
    samples = _first_value(content, tags.get(_SAMPLES), 1)
    photometric = _first_value(content, tags.get(_PHOTOMETRIC), -1)
    colors = _PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric}")
    channels = f", {samples} channels" * (samples > 1)
    article = "an" if bits in (8, 11, 18) else "a"
    return f"{article} {bits}-bit {kind}TIFF ({colors}{channels})"


def _first_value(content: bytes, tag: TiffTag | None, default: int = 0) -> int:
    """First value of a TIFF tag of one of the integer types."""
    if tag is None or tag.kind not in (3, 4) or tag.length < 1:
        return default
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    size = 2 if tag.kind == 3 else 4
    return int.from_bytes(content[tag.start : tag.start + size], order)


def has_reversed_negative(tags: Any) -> bool:
    """Whether a TIFF file has 8-bit values whose bits are reversed, and 0 is white.

    Pillow does either, not both.
    """
    found = (tags.get(number) for number in (_FILL_ORDER, _BITS))
    usual = (tags.get(_PHOTOMETRIC, 0), tags.get(_COMPRESSION, 1))
    return (*found,) == (2, (8,)) and usual == (0, 1)


def _check_tiff(image: Any) -> None:
    """Refuse TIFF files that Pillow opens but decodes to wrong pixels."""
    decoder, _, _, (raw_mode, *_) = image.tile[0]
    if has_reversed_negative(image.tag_v2) and raw_mode == "L;IR":
        # Pillow has no such raw mode; `as_rgb` inverts.
        image.tile = [t._replace(args=("L;R", *t.args[1:])) for t in image.tile]
    deep = max(image.tag_v2.get(_BITS, (1,))) > 8
    planes = image.tag_v2.get(_PLANAR) == 2
    raw = decoder == "raw"
    mixed = planes and (image.mode == "LA" or (deep and raw))
    is_plain_ycbcr = raw and image.mode == "YCbCr"
    mixed |= planes and is_plain_ycbcr
    sampling = image.tag_v2.get(_YCBCR_SAMPLING, (1, 1))
    subsampled = is_plain_ycbcr and sampling != (1, 1)
    # libtiff has already converted them to native byte order.
    swapped = decoder == "libtiff" and raw_mode in _BIG_ENDIAN and _LITTLE_ENDIAN
    if mixed or swapped or subsampled:
        layout = "compressed big-endian" if swapped else "uncompressed subsampled"
        layout = "separate planes" if mixed else f"{layout} values"
        raise RefusedError(
            f"an unsupported variant of TIFF, {image.mode} in {layout}. Expected "
            "another variant or format, such as PNG."
        )


def _check_count(count: int, what: str) -> None:
    if count > MAX_PARTS:
        raise RefusedError(f"too many {what}. Expected at most {MAX_PARTS}.")


def unsupported_jpeg(content: bytes) -> str:
    """What of a JPEG file libjpeg does not read; empty if it may be damaged."""
    is_jpeg = content.startswith(b"\xff\xd8")
    for marker, start in islice(jpeg_segments(content), MAX_PARTS * is_jpeg):
        if marker == START_OF_SCAN:
            break
        if marker in FRAMES and start + 6 <= len(content):
            height, n_channels = content[start + 1 : start + 3], content[start + 5]
            if height == b"\0\0":
                return "a JPEG file whose height follows its pixels (DNL)"
            factors = content[start + 7 : start + 6 + 3 * n_channels : 3]
            for sides in ([f >> 4 for f in factors], [f & 15 for f in factors]):
                if any(side and max(sides) % side for side in sides):
                    return "a JPEG file with a fractional sampling of its channels"
    return ""


def _check_jpeg(content: bytes) -> int:
    """Count the scans of a JPEG file; refuse one with too many segments."""
    scans = exif = 0
    for count, (marker, start) in enumerate(jpeg_segments(content), 1):
        _check_count(count, "segments")
        scans += marker == START_OF_SCAN
        exif += marker == APP1 and content.startswith(b"Exif\0\0", start)
        if exif > _MAX_EXIF_SEGMENTS:
            raise ValueError(f"more than {_MAX_EXIF_SEGMENTS} EXIF segments")
    return scans
