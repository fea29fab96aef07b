"""Decode an element of X into an upright RGB image.

`read_rgb` returns a `PIL.Image.Image` of mode RGB; `read_image` also returns the
original format, size and orientation, and the decoding scale.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin

from sk_cnncodes.base.exceptions import ImageError, is_scarcity
from sk_cnncodes.images.file_parts import (
    BASELINE_FRAME,
    FRAMES,
    START_OF_SCAN,
    jpeg_segments,
    read_jpeg_frame,
)
from sk_cnncodes.images.formats import RefusedError, format_of, unpacked_bmp
from sk_cnncodes.images.halftones import (
    has_hard_edges,
    header_hints_at_halftone,
    pixels_hint_at_halftone,
)
from sk_cnncodes.images.metadata import exif_orientation, without_metadata
from sk_cnncodes.images.rgb import (
    DarkValuesWarning,
    as_rgb,
    clear_deep_color,
    describe_array_conversion,
    describe_conversion,
    embedded_profile,
    from_pixels,
    is_deep_color_key,
    scale_transparent_color,
    warn_if_dark,
)
from sk_cnncodes.images.safe_open import (
    MAX_PIXELS,
    check_jpeg_size,
    check_size,
    open_image,
    unsupported_jpeg,
)
from sk_cnncodes.images.sources import (
    describe_image,
    open_file_lock,
    read_content,
)

_EXIF_ORIENTATION = 0x0112
# Transposition that turns an image of each EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

# Pillow's messages for what it does not read.
_UNSUPPORTED = re.compile("unsupported|cannot handle|not supported", re.IGNORECASE)

# What GPUs decode: files of a megapixel, below which they are no faster than a CPU, and
# the samplings of the channels that their decoders know, horizontal and vertical.
_LARGE = 2**20
_SAMPLINGS = [
    [(1, 1)],
    *([luma, (1, 1), (1, 1)] for luma in ((1, 1), (2, 1), (1, 2), (2, 2))),
]
# Segments before the pixels of a photograph, with much metadata.
_MOST_SEGMENTS, _END_OF_IMAGE = 1000, b"\xff\xd9"

# Maps height and width of an image to the smallest ones it may be decoded at.
MinDecodeSize = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True)
class DecodedImage:
    """An upright RGB image and a description of its source.

    Attributes
    ----------
    rgb : PIL.Image.Image
    format : str
        File format and mode of the pixels; or "array of" and the dtype, or "PIL image"
        and the mode.
    size : (int, int)
        Width and height as stored, in pixels.
    conversion : str
        How its values became RGB with 8 bits.
    orientation : int
        EXIF orientation that was undone; 1 is upright.
    scale : int
        1 for full size; 2, 4 or 8 if decoded at 1/2, 1/4 or 1/8 of it.
    """

    rgb: Image.Image
    format: str
    size: tuple[int, int]
    conversion: str
    orientation: int = 1
    scale: int = 1


def read_image(
    image: Any,
    index: int,
    max_pixels: int | None = MAX_PIXELS,
    min_decode_size: MinDecodeSize | None = None,
    color: str = "ignore",
) -> DecodedImage:
    """Decode one element of X into an upright RGB image, and describe its source.

    EXIF orientation is applied, transparency is composited over white, and the first
    frame of an animation is taken.

    Parameters
    ----------
    image : object
    index : int
        Its position in X, for messages.
    max_pixels : int or None
        Images with more pixels are an error; None for no limit.
    min_decode_size : callable or None
        Maps height and width of an upright image to the smallest ones to decode it at.
        JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where that is at least
        as large, which is several times faster, unless they have the hard edges of
        halftones. None for the full size.
    color : {"ignore", "srgb"}
        Whether colours are converted from an embedded profile to sRGB.

    Raises
    ------
    ImageError
        If it is not a valid image.
    ImageNotFoundError
        If it is the path of a file that does not exist.
    """
    if isinstance(image, np.ndarray):
        rgb = from_pixels(image, index, max_pixels)
        kind = f"array of {image.dtype}"
        return DecodedImage(rgb, kind, rgb.size, describe_array_conversion(image))
    if isinstance(image, Image.Image):
        with open_file_lock:  # a lazy PIL image still reads its file
            return _from_pil(image, index, max_pixels, color)
    content = read_content(image, index)
    return decode_content(content, image, index, max_pixels, min_decode_size, color)


def read_rgb(
    image: Any,
    index: int,
    max_pixels: int | None = MAX_PIXELS,
    min_decode_size: MinDecodeSize | None = None,
    color: str = "ignore",
) -> Image.Image:
    """Decode one element of X into an upright RGB image; see `read_image`."""
    return read_image(image, index, max_pixels, min_decode_size, color).rgb


def decode_content(
    content: bytes,
    image: Any,
    index: int,
    max_pixels: int | None = MAX_PIXELS,
    min_decode_size: MinDecodeSize | None = None,
    color: str = "ignore",
) -> DecodedImage:
    """Decode the content of an image file; see `read_image`.

    Parameters
    ----------
    content : bytes
    image : object
        The element of X that the content was read from, for messages.
    index, max_pixels, min_decode_size, color
        As in `read_image`.
    """
    name = describe_image(image, index)
    try:
        try:
            return _decode(content, name, index, max_pixels, min_decode_size, color)
        except (
            *(ImageError, RefusedError, DarkValuesWarning),
            Image.DecompressionBombError,
        ):
            raise
        except Exception as error:
            if is_scarcity(error, name):
                raise
            format = format_of(content)
            if format == "BMP":
                bare = unpacked_bmp(content)
            else:
                bare = without_metadata(content, format)
            if bare is None:
                raise
        return _decode(bare, name, index, max_pixels, min_decode_size, color)
    except (ImageError, DarkValuesWarning):
        raise
    except RefusedError as error:
        raise ImageError(f"{name}: {error}", index) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: {error} This limit is Pillow's own, PIL.Image.MAX_IMAGE_PIXELS.",
            index,
        ) from error
    except Exception as error:
        if is_scarcity(error, name):
            raise
        # Pillow's readers raise almost any exception on a damaged file.
        detail = str(error) or type(error).__name__
        if _UNSUPPORTED.search(detail):
            raise ImageError(f"{name}: not supported ({detail}).", index) from error
        if what := unsupported_jpeg(content):
            raise ImageError(f"{name}: not supported: {what}.", index) from error
        raise ImageError(
            f"{name}: the file is damaged or truncated after {len(content)} bytes "
            f"({detail}).",
            index,
        ) from error


def _decode(
    content: bytes,
    name: str,
    index: int,
    max_pixels: int | None,
    min_decode_size: MinDecodeSize | None,
    color: str,
) -> DecodedImage:
    opened = open_image(content, max_pixels)
    kind, size, scale = f"{opened.format} {opened.mode}", opened.size, 1
    if opened.format == "JPEG":
        lossless, several_scans = read_jpeg_frame(content)
        if min_decode_size is not None and not lossless:
            scale = _shrink(opened, _orientation(opened), min_decode_size)
        check_jpeg_size(opened, size, several_scans, max_pixels)
    if scale > 1:
        opened, scale = _load_draft(opened, scale, content, several_scans, max_pixels)
    is_deep = False
    if opened.format == "PNG":
        scale_transparent_color(opened)
        is_deep = is_deep_color_key(opened)
    tiles = list(opened.tile)
    opened.load()
    warn_if_dark(opened, tiles)
    if is_deep:
        clear_deep_color(opened, open_image(content, max_pixels))
    # Only after loading: Pillow transposes TIFF when it loads, and would load PNG to
    # find EXIF data, which would hide decoding errors.
    orientation = _orientation(opened)
    profile = embedded_profile(opened) if color == "srgb" else None
    conversion = describe_conversion(opened, profile)
    rgb = as_rgb(opened, name, index, profile)
    del opened  # frees its pixels before the transposed copy is made
    rgb = upright(rgb, orientation)
    return DecodedImage(rgb, kind, size, conversion, orientation, scale)


def _from_pil(
    image: Image.Image, index: int, max_pixels: int | None, color: str
) -> DecodedImage:
    """Convert a PIL image, reading its file if it is lazy."""
    name = describe_image(image, index)
    try:
        check_size(*image.size, max_pixels)
        _load(image)
        orientation = _orientation(image)
        profile = embedded_profile(image) if color == "srgb" else None
        kind, conversion = (
            f"PIL image {image.mode}",
            describe_conversion(image, profile),
        )
        rgb = upright(as_rgb(image, name, index, profile), orientation)
        return DecodedImage(rgb, kind, image.size, conversion, orientation)
    except (ImageError, DarkValuesWarning):
        raise
    except RefusedError as error:
        raise ImageError(f"{name}: {error}", index) from error
    except Exception as error:
        if is_scarcity(error, name):
            raise
        raise ImageError(f"{name}: cannot be decoded ({error}).", index) from error


def _load(image: Image.Image) -> None:
    """Load the pixels of a PIL image so that a failed load fails again if repeated.

    Pillow would return the partly decoded pixels the second time.
    """
    tiles = list(getattr(image, "tile", ()))
    try:
        image.load()
    except Exception:
        if isinstance(image, ImageFile.ImageFile):
            image.tile = tiles
        raise


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (upright) if it is missing or unreadable."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except MemoryError:
        raise
    except Exception:
        # Damaged EXIF data does not affect the pixels.
        orientation = None
    if orientation is None and isinstance(exif := image.info.get("exif"), bytes):
        # Pillow reads no further than the first damaged value.
        orientation = exif_orientation(exif)
    return orientation if orientation in _TURNS else 1


def _shrink(
    image: ImageFile.ImageFile, orientation: int, min_decode_size: MinDecodeSize
) -> int:
    """Set a JPEG to be decoded smaller, and return the factor.

    It divides both sides; any other would shift the edges by fractions of a pixel.
    """
    width, height = image.size
    if orientation in _SIDEWAYS:
        least_width, least_height = min_decode_size(width, height)
    else:
        least_height, least_width = min_decode_size(height, width)
    for factor in (8, 4, 2):
        fits = width >= factor * least_width and height >= factor * least_height
        if fits and width % factor == 0 and height % factor == 0:
            image.draft(None, (width // factor, height // factor))
            return factor
    return 1


def _load_draft(
    draft: ImageFile.ImageFile,
    scale: int,
    content: bytes,
    several_scans: bool,
    max_pixels: int | None,
) -> tuple[ImageFile.ImageFile, int]:
    """Load a JPEG that is decoded smaller; at full size if it has hard edges.

    A file that does not fit in the limit at full size is decoded smaller all the same.
    """
    if not header_hints_at_halftone(content):
        draft.load()
        if not pixels_hint_at_halftone(draft):
            return draft, scale
    full = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
    try:
        check_jpeg_size(full, full.size, several_scans, max_pixels)
    except RefusedError:
        return draft, scale
    full.load()
    return (full, 1) if has_hard_edges(full) else (draft, scale)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


# -- JPEG files for a GPU ------------------------------------------------------


class PlainJpeg(NamedTuple):
    """A JPEG file as most cameras write it; height and width are those stored."""

    content: bytes
    size: tuple[int, int]
    orientation: int


def plain_jpeg(
    content: bytes, max_pixels: int | None, color: str = "ignore"
) -> PlainJpeg | None:
    """Read the header of a large JPEG file that GPUs decode; None for other files.

    Such a file has at least a megapixel, in one scan of Huffman-coded 8-bit values
    (baseline), gray or YCbCr with a common sampling; it has its end, and no colour
    profile that is to be applied. The machine plays no part: how an image is decoded,
    and so its code, depends on the file and the parameters alone.

    Parameters
    ----------
    content : bytes
    max_pixels : int or None
        Larger files are None, whatever smaller size they can be decoded at.
    color : {"ignore", "srgb"}
        Whether colours are converted from an embedded profile to sRGB.
    """
    if not _is_baseline(content):
        return None
    try:
        opened = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
        check_jpeg_size(opened, opened.size, False, max_pixels)
    except Exception:  # decoding by Pillow says what it is
        return None
    width, height = opened.size
    if width * height < _LARGE or width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    sampling = [(across, down) for _, across, down, _ in opened.layer]
    # As in libjpeg, channels with these names, or that Adobe says are so, are RGB.
    is_rgb = [channel for channel, *_ in opened.layer] == [*b"RGB"]
    is_rgb |= opened.info.get("adobe_transform", 1) != 1
    has_profile = color == "srgb" and "icc_profile" in opened.info
    if sampling not in _SAMPLINGS or is_rgb or has_profile:
        return None
    return PlainJpeg(content, (height, width), _orientation(opened))


def _is_baseline(content: bytes) -> bool:
    """Whether a JPEG file has the end of an image, and one scan of 8-bit values."""
    if not content.startswith(b"\xff\xd8\xff"):
        return False
    n_channels = 0
    for marker, start in islice(jpeg_segments(content), _MOST_SEGMENTS):
        if marker == START_OF_SCAN:
            has_end = content.rfind(_END_OF_IMAGE, start) >= 0
            return has_end and content[start : start + 1] == bytes([n_channels])
        if marker in FRAMES:
            if marker != BASELINE_FRAME or content[start : start + 1] != b"\x08":
                return False
            (n_channels,) = content[start + 5 : start + 6] or b"\0"
    return False
