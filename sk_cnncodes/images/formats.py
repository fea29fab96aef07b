"""The formats that are opened: how they are recognised, and what reads them."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, BmpImagePlugin, Image, ImageFile, JpegImagePlugin

from sk_cnncodes.base.forks import fork_lock, fork_safe_lock, import_fork_safe
from sk_cnncodes.images.file_parts import jxl_codestream

# Formats that are opened, MPO as JPEG; Pillow's other readers are not used. HEIF (HEIC)
# needs pillow-heif, and JXL (JPEG XL) pillow-jxl-plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JXL")
_READERS = {
    "HEIF": ("pillow_heif", "heif"),
    "JXL": ("pillow_jxl.JpegXLImagePlugin", "jxl"),
}
_KINDS = {"AVIF": "an AVIF", "HEIF": "a HEIC (HEIF)", "JXL": "a JPEG XL"}
# AVIF and HEIF files share a container, and may both call themselves mif1.
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_SHARED_BRANDS = {b"mif1", b"msf1", b"miaf"}
_AVIF_SUFFIXES = (".avif", ".avifs")
_HEIF_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")
_JXL_SUFFIXES = (".jxl",)
# Photographs that are not read, whatever is installed: raw ones, JPEG 2000.
_RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw"),
    ".x3f",
)
_OTHER_SUFFIXES = (".jp2", ".j2k")
_CONVERT = "Convert them to JPEG, PNG or TIFF"
# What files that are no image of `FORMATS` begin with.
_CONVERT_IT = "Convert it to JPEG, PNG or TIFF"
_PAGES = "Save its pages as PNG or JPEG"
_AGAIN = "A server may have sent it instead of the image: download it again"
_VIDEO = ("a video (MP4 or MOV)", "Save its frames as JPEG or PNG")
_OTHERS = (
    (b"FUJIFILMCCD-RAW", "a raw photograph (RAF)", _CONVERT_IT),
    (b"IIRO", "a raw photograph (ORF)", _CONVERT_IT),
    (b"IIRS", "a raw photograph (ORF)", _CONVERT_IT),
    (b"IIU\0", "a raw photograph (RW2)", _CONVERT_IT),
    (b"FOVb", "a raw photograph (X3F)", _CONVERT_IT),
    (b"%PDF", "a PDF document", _PAGES),
    (b"%!PS", "a PostScript file", _PAGES),
    (b"8BPS", "a Photoshop file", _CONVERT_IT),
    (b"PK\3\4", "a ZIP archive or an office document", "Unpack the images in it"),
    (b"<svg", "an SVG drawing", "Save it as PNG"),
    (b"<?xml", "an XML or SVG file", "Save it as PNG if it is a drawing"),
    (b"<html", "a web page", _AGAIN),
    (b"<!doctype", "a web page", _AGAIN),
)
# What a container of boxes says that is no image.
_BOXES = {
    b"crx ": ("a raw photograph (CR3)", _CONVERT_IT),
    **dict.fromkeys((b"isom", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V "), _VIDEO),
}
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_HEX_DIGITS = bytes.maketrans(b"0123456789abcdef", bytes(range(16)))
# For decoders in Python, which take a microsecond per pixel.
MAX_SLOW_PIXELS = 2**21
# Number of threads of a decoder: a setting of the process, as its parameter.
_setting_lock = fork_safe_lock()


class RefusedError(ValueError):
    """The content of an image file is refused; the message is the reason."""


def format_of(content: bytes) -> str:
    """Pillow's name of the format of an image file: one of `FORMATS`.

    Raises
    ------
    RefusedError
        If it is not one of them, or nothing is installed that reads it.
    """
    if not content:
        raise RefusedError(
            f"the file is empty. Expected an image file ({', '.join(FORMATS)})."
        )
    if content[4:8] == b"ftyp":
        name = _format_of_boxes(content)
    elif content.startswith(_JXL_STARTS):
        name = "JXL"
    else:
        name = _format_of_start(content[:16])
    if not name:
        raise RefusedError(f"not an image file{_what_else(content)}")
    if name in _KINDS and (cure := _cure(name)):
        raise RefusedError(
            f"not supported here: {_KINDS[name]} file, whatever its name. {cure}; or "
            "convert it to JPEG or PNG."
        )
    return name


def _what_else(content: bytes) -> str:
    """What a file is that is no image, and what to do; the end of a message."""
    start = content[:32].lstrip(b"\xef\xbb\xbf \t\r\n")
    known = [
        (what, cure)
        for begin, what, cure in _OTHERS
        if begin in (start[: len(begin)], start[: len(begin)].lower())
    ]
    if content[4:8] == b"ftyp" and content[8:12] in _BOXES:
        known = [_BOXES[content[8:12]]]
    if known:
        what, cure = known[0]
        return f", but {what}. {cure}."
    return (
        f". Expected one of {', '.join(FORMATS)}, got {len(content)} bytes of an "
        "unknown format."
    )


def _format_of_start(start: bytes) -> str:
    """Ask the readers of Pillow."""
    _import_readers()
    for name in FORMATS:
        if name in _KINDS:
            continue
        factory, accept = Image.OPEN.get(name, (None, None))
        # `accept` returns a string if Pillow was built without the format.
        if factory is not None and accept is not None and accept(start) is True:
            return name
    return ""


def _import_readers() -> None:
    if "WEBP" not in Image.OPEN or "TIFF" not in Image.OPEN:
        with fork_lock:  # init imports the readers
            Image.init()


def _format_of_boxes(content: bytes) -> str:
    """AVIF, HEIF, or neither, by the brands of the file, then by its codec."""
    stop = min(int.from_bytes(content[:4], "big"), 256)
    listed = {content[i : i + 4] for i in range(16, stop, 4)}
    for brands in ({content[8:12]}, listed):
        is_avif, is_heif = brands & _AVIF_BRANDS, brands & _HEIF_BRANDS
        if bool(is_avif) != bool(is_heif):
            return "AVIF" if is_avif else "HEIF"
    if (listed | {content[8:12]}) & (_SHARED_BRANDS | _AVIF_BRANDS):
        return "AVIF" if b"av01" in content[: 2**16] else "HEIF"
    return ""


def open_format(name: str, content: bytes) -> ImageFile.ImageFile:
    """Open a file of one of `FORMATS`, with one thread at most."""
    file = io.BytesIO(content)
    if name == "JPEG":
        # Not its factory, which would read the index of an MPO file, damaged or not.
        return JpegImagePlugin.JpegImageFile(file, "")
    if name == "AVIF":
        with _set(AvifImagePlugin, "DEFAULT_MAX_THREADS", 1):
            return AvifImagePlugin.AvifImageFile(file, "")
    if name == "HEIF":
        heif: Any = _reader(_READERS[name][0])
        with _set(heif.options, "DECODE_THREADS", 1):
            return heif.HeifImageFile(file, "")  # type: ignore[no-any-return]
    if name == "JXL":
        jxl: Any = _reader(_READERS[name][0])
        with _set(jxl, "DECODE_THREADS", 0):
            # Without metadata: the orientation is a property of the pixels.
            return jxl.JXLImageFile(io.BytesIO(jxl_codestream(content)), "")  # type: ignore[no-any-return]
    if name == "BMP":
        return _open_bmp(file)
    _import_readers()
    return Image.OPEN[name][0](file, "")


def _open_bmp(file: io.BytesIO) -> ImageFile.ImageFile:
    """Open a BMP file, whatever bits its channels have."""
    try:
        return BmpImagePlugin.BmpImageFile(file, "")
    except OSError as error:
        if "bitfields" not in str(error):
            raise
    return BmpImagePlugin.BmpImageFile(io.BytesIO(_usual_bmp(file.getvalue())), "")


def _usual_bmp(content: bytes) -> bytes:
    """A BMP file of bit fields as one with 8 bits for each channel."""
    start, size, width, height, _, bits = struct.unpack_from("<LLllHH", content, 10)
    if bits not in (16, 32):
        raise RefusedError(f"not supported: a BMP file of {bits}-bit fields.")
    masks = struct.unpack_from("<4L", content, 54)
    if size < 56:  # only V3 and later headers have an alpha mask
        masks = (*masks[:3], 0)
    rows, words = abs(height), -(-width * bits // 32) * 32 // bits
    n_bytes = rows * words * bits // 8
    if width < 1 or len(content) - start < n_bytes:
        raise ValueError("fewer pixels than its size")
    pixels = np.frombuffer(content, f"<u{bits // 8}", rows * words, start)
    pixels = pixels.reshape(rows, words)[:, :width]
    usual = np.zeros((rows, width, 4), np.uint8)
    for channel, mask in zip((2, 1, 0, 3), masks, strict=True):
        usual[:, :, channel] = _field(pixels, mask)
    head = struct.pack("<LllHHLLLLLL", 56, width, height, 1, 32, 3, 0, 0, 0, 0, 0)
    alpha = 0xFF000000 if masks[3] else 0
    head += struct.pack("<LLLL", 0xFF0000, 0xFF00, 0xFF, alpha)
    return b"BM" + struct.pack("<LLL", 0, 0, 14 + len(head)) + head + usual.tobytes()


def unpacked_bmp(content: bytes) -> bytes | None:
    """A BMP file compressed by run lengths as an uncompressed one; None for others.

    Pixels that it skips, by short lines, deltas or an early end, are entry 0 of the
    palette. Pillow takes these for missing ones.

    Raises
    ------
    ValueError
        If it is truncated.
    """
    if len(content) < 54 or content[14] < 40:
        return None
    (start,) = struct.unpack_from("<L", content, 10)
    width, height, _, bits, packing = struct.unpack_from("<llHHL", content, 18)
    is_small = width > 0 and width * abs(height) <= MAX_SLOW_PIXELS
    if (bits, packing) not in ((8, 1), (4, 2)) or not is_small:
        return None
    n_rows, stride = abs(height), -(-width // 4) * 4
    pixels = bytearray(n_rows * stride)
    at, x, y = start, 0, 0
    # Each step is a run of pixels, a line or a skip; files have far fewer.
    for _ in range(len(pixels) + 2 * n_rows):
        if y >= n_rows or (at >= len(content) and (x, y) == (width, n_rows - 1)):
            break
        count, value = content[at : at + 2].ljust(2, b"\0")
        first, length = at + 1, 1
        if count == 0 and value >= 2:
            first, length = at + 2, 2
            if value > 2:  # pixels as they are, padded to words
                count, length = value, value if bits == 8 else (value + 1) // 2
        data = content[first : first + length]
        at = first + length + (first + length - at) % 2
        if len(data) < length:
            raise ValueError("not enough image data")
        if count:
            if bits == 4:
                data = data.hex().encode().translate(_HEX_DIGITS)
            row = (data * (count // len(data) + 1))[: min(count, max(width - x, 0))]
            pixels[y * stride + x : y * stride + x + len(row)] = row
            x += count
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            break
        else:
            x, y = x + data[0], y + data[-1]
    else:
        raise ValueError("more skips than pixels")
    head = bytearray(content[:start])
    struct.pack_into("<HLL", head, 28, 8, 0, 0)
    colors = struct.unpack_from("<L", head, 46)[0] or 1 << bits
    struct.pack_into("<L", head, 46, colors)
    return bytes(head + pixels)


def _field(pixels: np.ndarray, mask: int) -> np.ndarray:
    """The bits of a mask, scaled to 8."""
    shift = (mask & -mask).bit_length() - 1 if mask else 0
    largest = mask >> shift
    values = pixels.astype(np.uint32) >> shift & largest
    if largest > 255:
        values >>= largest.bit_length() - 8
        return values.astype(np.uint8)
    steps = np.rint(np.arange(largest + 1) * (255 / max(largest, 1)))
    scaled: np.ndarray = steps.astype(np.uint8)[values]
    return scaled


@contextmanager
def _set(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Set a setting of the process, which a decoder reads as it is opened."""
    with _setting_lock:
        before = getattr(module, name)
        setattr(module, name, value)
        try:
            yield
        finally:
            setattr(module, name, before)


@lru_cache
def _reader(package: str) -> ModuleType | None:
    """A package that reads a format that Pillow does not, if it is installed."""
    try:
        return import_fork_safe(package)
    except ImportError:
        return None


def _cure(name: str) -> str:
    """What to install to read AVIF, HEIF or JXL; empty if it can be read."""
    if name == "AVIF":
        build = (
            "This Pillow was built without AVIF. Install a wheel that has it: python "
            "-m pip install --force-reinstall --only-binary :all: pillow"
        )
        return "" if AvifImagePlugin.SUPPORTED else build
    package, extra = _READERS[name]
    install = f"Install its reader: python -m pip install 'sk-cnncodes[{extra}]'"
    return "" if _reader(package) else install


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with the dot, of the formats that can be read."""
    known = Image.registered_extensions()
    read = {*FORMATS, "MPO"}
    suffixes = {suffix for suffix, name in known.items() if name in read}
    suffixes |= {*_AVIF_SUFFIXES, *_HEIF_SUFFIXES, *_JXL_SUFFIXES}
    return frozenset(suffixes - unreadable_suffixes().keys())


@lru_cache(maxsize=1)
def unreadable_suffixes() -> dict[str, str]:
    """Lower-case suffixes of photographs that cannot be read, and what to do."""
    found = dict.fromkeys((*_RAW_SUFFIXES, *_OTHER_SUFFIXES), _CONVERT)
    groups = {"AVIF": _AVIF_SUFFIXES, "HEIF": _HEIF_SUFFIXES, "JXL": _JXL_SUFFIXES}
    for name, group in groups.items():
        if cure := _cure(name):
            found |= dict.fromkeys(group, cure)
    return found
