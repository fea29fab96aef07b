"""One image of X -> an upright RGB image.

`read_rgb` turns an element of X, whatever it is, into a `PIL.Image.Image` of mode RGB;
`read_image` says beside that what was done to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.images.safe_open import (
    MAX_PIXELS,
    RefusedError,
    check_size,
    is_lossless_jpeg,
    open_image,
)
from sk_cnncodes.images.sources import (
    ACCEPTED,
    describe_image,
    is_scarcity,
    open_file_lock,
    read_content,
)

_EXIF_ORIENTATION = 0x0112
# What turns an image of an orientation upright.
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
_PIXELS_AT_ONCE = 2**20
# Levels from one gray value to the next, of Pillow's names for 2 and 4 bits.
_GRAY_STEPS = {"L;2": 85, "L;4": 17}
_TIFF_BITS = 258

# Height and width that an image must keep, from those that it has.
MinDecodeSize = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True)
class DecodedImage:
    """An upright RGB image, and what it was before.

    Attributes
    ----------
    rgb : PIL.Image.Image
    format : str
        Format of the file and mode of its pixels; or "array" or "PIL image".
    size : (int, int)
        Width and height as stored, in pixels.
    orientation : int
        EXIF orientation that was undone; 1 is upright.
    scale : int
        1, or 2, 4 or 8 where it was decoded at that fraction of its size.
    """

    rgb: Image.Image
    format: str
    size: tuple[int, int]
    orientation: int = 1
    scale: int = 1


def read_image(
    image: Any,
    index: int,
    max_pixels: int | None = MAX_PIXELS,
    min_decode_size: MinDecodeSize | None = None,
) -> DecodedImage:
    """One element of X as an upright image of mode RGB, and what was done to it.

    EXIF orientation is applied; transparency is laid over white; of an animation,
    the first frame is taken.

    Parameters
    ----------
    image : object
    index : int
        Its position in X, for messages.
    max_pixels : int or None
        More pixels are an error; None for no limit.
    min_decode_size : callable or None
        Gives height and width that must be kept of an upright image. JPEG files are
        decoded at 1/2, 1/4 or 1/8 of their size where that keeps more, which is
        several times faster; None for the full size.

    Raises
    ------
    ImageError
        If it is not an image; ImageNotFoundError if it is a path without a file.
    """
    if isinstance(image, np.ndarray):
        rgb = _from_pixels(image, index, max_pixels)
        return DecodedImage(rgb, f"array of {image.dtype}", rgb.size)
    if isinstance(image, Image.Image):
        with open_file_lock:  # it may still have to read its file
            return _from_pil(image, index, max_pixels)
    content = read_content(image, index)
    return decode_content(content, image, index, max_pixels, min_decode_size)


def read_rgb(
    image: Any,
    index: int,
    max_pixels: int | None = MAX_PIXELS,
    min_decode_size: MinDecodeSize | None = None,
) -> Image.Image:
    """The upright RGB image of `read_image`."""
    return read_image(image, index, max_pixels, min_decode_size).rgb


def decode_content(
    content: bytes,
    image: Any,
    index: int,
    max_pixels: int | None = MAX_PIXELS,
    min_decode_size: MinDecodeSize | None = None,
) -> DecodedImage:
    """The content of an image file as `read_image` gives it.

    Parameters
    ----------
    content : bytes
    image : object
        The element of X that it is the content of; messages name it.
    index, max_pixels, min_decode_size
        As in `read_image`.
    """
    name = describe_image(image, index)
    try:
        opened = open_image(content, max_pixels)
        kind, size, scale = f"{opened.format} {opened.mode}", opened.size, 1
        is_jpeg = opened.format in ("JPEG", "MPO")
        if min_decode_size is not None and is_jpeg and not is_lossless_jpeg(content):
            scale = _shrink(opened, _orientation(opened), min_decode_size)
        if opened.format == "PNG":
            _scale_transparent_color(opened)
        opened.load()
        # Not before: Pillow turns TIFF while it loads, and loads PNG to find EXIF data,
        # whose faults would be forgotten.
        orientation = _orientation(opened)
        rgb = _as_rgb(opened, name, index)
        del opened  # its pixels make room for those of the turned image
        upright = _upright(rgb, orientation)
        return DecodedImage(upright, kind, size, orientation, scale)
    except ImageError:
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
        # Pillow's readers raise nearly anything on a broken file.
        detail = str(error) or type(error).__name__
        raise ImageError(
            f"{name}: the file is damaged or truncated after {len(content)} bytes "
            f"({detail}).",
            index,
        ) from error


def _from_pil(image: Image.Image, index: int, max_pixels: int | None) -> DecodedImage:
    name = describe_image(image, index)
    try:
        check_size(*image.size, max_pixels)
        _load(image)
        orientation = _orientation(image)
        upright = _upright(_as_rgb(image, name, index), orientation)
        return DecodedImage(upright, f"PIL image {image.mode}", image.size, orientation)
    except ImageError:
        raise
    except RefusedError as error:
        raise ImageError(f"{name}: {error}", index) from error
    except Exception as error:
        if is_scarcity(error, name):
            raise
        raise ImageError(f"{name}: cannot be decoded ({error}).", index) from error


def _load(image: Image.Image) -> None:
    """Read the pixels of a PIL image; where that fails, so it does the next time.

    Pillow would then give what it has read so far.
    """
    tiles = list(getattr(image, "tile", ()))
    try:
        image.load()
    except Exception:
        if isinstance(image, ImageFile.ImageFile):
            image.tile = tiles
        raise


def _as_rgb(image: Image.Image, name: str, index: int) -> Image.Image:
    """In mode RGB, without transparency; not a copy of what is so already."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _from_deep_gray(image, name, index)
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("RGB")


def _scale_transparent_color(image: ImageFile.ImageFile) -> None:
    """Give the colour that a PNG calls transparent in the units of its pixels.

    Pillow scales pixels of 2, 4 and 16 bits to 8, but not that colour. Of a PIL image
    that was loaded before, its bits are not known any more.
    """
    color, values = image.info.get("transparency"), image.tile[0][3]
    if isinstance(color, int) and values in _GRAY_STEPS:
        image.info["transparency"] = color * _GRAY_STEPS[values]
    elif isinstance(color, tuple) and values == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in color)


def _over_white(image: Image.Image) -> Image.Image:
    """Laid over white, some rows at a time: copies of the whole take gigabytes."""
    image.load()  # before there are pixels of the result beside its buffers
    rgb = Image.new("RGB", image.size)
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgba = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, rgba).convert("RGB"), box)
    return rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or it is unreadable."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:
        # Damaged EXIF does not damage the pixels.
        return 1
    return orientation if orientation in _TURNS else 1


def _shrink(
    image: ImageFile.ImageFile, orientation: int, min_decode_size: MinDecodeSize
) -> int:
    """Have a JPEG decoded smaller, by a factor that divides both of its sides.

    Another factor would move the edges by parts of a pixel. The factor is returned.
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


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _from_deep_gray(image: Image.Image, name: str, index: int) -> Image.Image:
    """16-bit, 32-bit and float gray: 16 bits become 8 by their high byte."""
    values = np.asarray(image)
    if image.mode == "F":
        return _from_pixels(values, index, None, name)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: gray values from {low} to {high}. Expected 16-bit values, 0 to "
            "65535.",
            index,
        )
    if (
        image.mode == "I"
        and 0 < high <= 255
        and not isinstance(image, ImageFile.ImageFile)
    ):
        # What `convert("I")` makes of 8 bits, and would be black.
        raise ImageError(
            f"{name}: gray values from {low} to {high} in mode {image.mode!r}. "
            "Expected 16-bit values, 0 to 65535; those of 8 bits: image.convert('L').",
            index,
        )
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS)
    gray = (values >> (4 if bits == (12,) else 8)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _from_pixels(
    pixels: np.ndarray, index: int, max_pixels: int | None, name: str = ""
) -> Image.Image:
    """An image from an array (H, W) or (H, W, 1|3|4) of uint8, bool or floats."""
    name = name or describe_image(pixels, index)
    pixels = np.asarray(pixels)  # a masked array's pixels are those below its mask
    if pixels.dtype == object:
        raise ImageError(f"{name}. Expected {ACCEPTED}.", index)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        hint = ""
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
            hint = " The channels come last: image.transpose(1, 2, 0)."
        raise ImageError(
            f"{name}: wrong shape. Expected (height, width), (height, width, 1), "
            f"(height, width, 3) or (height, width, 4).{hint}",
            index,
        )
    try:
        check_size(pixels.shape[1], pixels.shape[0], max_pixels)
    except RefusedError as error:
        raise ImageError(f"{name}: {error}", index) from error
    pixels = np.ascontiguousarray(_as_uint8(pixels, name, index))
    image = Image.fromarray(pixels)
    return _over_white(image) if image.mode == "RGBA" else image.convert("RGB")


def _as_uint8(pixels: np.ndarray, name: str, index: int) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind != "f":
        raise ImageError(
            f"{name}: wrong dtype. Expected uint8, bool, or floats in [0, 1]; integers "
            "from 0 to 255 can be cast: image.astype(numpy.uint8).",
            index,
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite(low + high):
        kinds = "NaN" if np.isnan(pixels).any() else "infinity"
        raise ImageError(f"{name}: {kinds} among its values. Expected [0, 1].", index)
    if low < 0 or high > 1:
        raise ImageError(
            f"{name}: float values from {low:g} to {high:g}. Expected floats in [0, "
            "1]; divide by the largest possible value.",
            index,
        )
    scaled = pixels * pixels.dtype.type(255)
    rounded: np.ndarray = np.rint(scaled, out=scaled).astype(np.uint8)
    return rounded
