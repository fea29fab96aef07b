"""Decode an element of X into an upright RGB image.

`read_rgb` returns a `PIL.Image.Image` of mode RGB; `read_image` also returns the
original format, size and orientation, and the decoding scale.
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
_PIXELS_AT_ONCE = 2**20
# Step between gray values after scaling to 8 bits, by Pillow's raw mode.
_GRAY_STEPS = {"L;2": 85, "L;4": 17}
_TIFF_BITS = 258

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
        as large, which is several times faster. None for the full size.

    Raises
    ------
    ImageError
        If it is not a valid image.
    ImageNotFoundError
        If it is the path of a file that does not exist.
    """
    if isinstance(image, np.ndarray):
        rgb = _from_pixels(image, index, max_pixels)
        kind = f"array of {image.dtype}"
        return DecodedImage(rgb, kind, rgb.size, _array_conversion(image))
    if isinstance(image, Image.Image):
        with open_file_lock:  # a lazy PIL image still reads its file
            return _from_pil(image, index, max_pixels)
    content = read_content(image, index)
    return decode_content(content, image, index, max_pixels, min_decode_size)


def read_rgb(
    image: Any,
    index: int,
    max_pixels: int | None = MAX_PIXELS,
    min_decode_size: MinDecodeSize | None = None,
) -> Image.Image:
    """Decode one element of X into an upright RGB image; see `read_image`."""
    return read_image(image, index, max_pixels, min_decode_size).rgb


def decode_content(
    content: bytes,
    image: Any,
    index: int,
    max_pixels: int | None = MAX_PIXELS,
    min_decode_size: MinDecodeSize | None = None,
) -> DecodedImage:
    """Decode the content of an image file; see `read_image`.

    Parameters
    ----------
    content : bytes
    image : object
        The element of X that the content was read from, for messages.
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
        # Only after loading: Pillow transposes TIFF when it loads, and would load PNG
        # to find EXIF data, which would hide decoding errors.
        orientation = _orientation(opened)
        conversion = _conversion(opened)
        rgb = _as_rgb(opened, name, index)
        del opened  # frees its pixels before the transposed copy is made
        upright = _upright(rgb, orientation)
        return DecodedImage(upright, kind, size, conversion, orientation, scale)
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
        # Pillow's readers raise almost any exception on a damaged file.
        detail = str(error) or type(error).__name__
        raise ImageError(
            f"{name}: the file is damaged or truncated after {len(content)} bytes "
            f"({detail}).",
            index,
        ) from error


def _from_pil(image: Image.Image, index: int, max_pixels: int | None) -> DecodedImage:
    """Convert a PIL image, reading its file if it is lazy."""
    name = describe_image(image, index)
    try:
        check_size(*image.size, max_pixels)
        _load(image)
        orientation = _orientation(image)
        kind, conversion = f"PIL image {image.mode}", _conversion(image)
        upright = _upright(_as_rgb(image, name, index), orientation)
        return DecodedImage(upright, kind, image.size, conversion, orientation)
    except ImageError:
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


def _conversion(image: Image.Image) -> str:
    """What `_as_rgb` does to the values of an image, in words."""
    if _is_deep_gray(image):
        return "float gray times 255" if image.mode == "F" else "high 8 bits of gray"
    if image.has_transparency_data:
        return "composited over white"
    return "none" if image.mode == "RGB" else f"{image.mode} to RGB"


def _array_conversion(pixels: np.ndarray) -> str:
    """What `_from_pixels` does to the values of an array, in words."""
    gray = pixels.ndim == 2 or pixels.shape[2] == 1
    parts = ["floats times 255"] if pixels.dtype.kind == "f" else []
    parts += ["gray to RGB"] if gray else []
    parts += ["composited over white"] if not gray and pixels.shape[2] == 4 else []
    return ", ".join(parts) or "none"


def _is_deep_gray(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _as_rgb(image: Image.Image, name: str, index: int) -> Image.Image:
    """Convert to mode RGB without transparency; an opaque RGB image is not copied."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if _is_deep_gray(image):
        return _from_deep_gray(image, name, index)
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("RGB")


def _scale_transparent_color(image: ImageFile.ImageFile) -> None:
    """Scale the transparent colour of a PNG file to 8 bits.

    Pillow scales pixels of 2, 4 and 16 bits to 8, but not that colour. The bit depth of
    a PIL image that is already loaded is no longer known.
    """
    color, raw_mode = image.info.get("transparency"), image.tile[0][3]
    if isinstance(color, int) and raw_mode in _GRAY_STEPS:
        image.info["transparency"] = color * _GRAY_STEPS[raw_mode]
    elif isinstance(color, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in color)


def _over_white(image: Image.Image) -> Image.Image:
    """Composite over white in strips, as copies of the whole can take gigabytes."""
    image.load()  # before the result is allocated, to limit peak memory
    rgb = Image.new("RGB", image.size)
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgba = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, rgba).convert("RGB"), box)
    return rgb


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (upright) if it is missing or unreadable."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:
        # Damaged EXIF data does not affect the pixels.
        return 1
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


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _from_deep_gray(image: Image.Image, name: str, index: int) -> Image.Image:
    """Convert 16-bit, 32-bit or float gray; 16-bit values keep their high byte."""
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
        # The result of `convert("I")` on an 8-bit image; it would become black.
        raise ImageError(
            f"{name}: gray values from {low} to {high} in mode {image.mode!r}. "
            "Expected 16-bit values, 0 to 65535. Convert 8-bit ones: "
            "image.convert('L').",
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
    """Convert an array (H, W) or (H, W, 1|3|4) of uint8, bool or floats."""
    name = name or describe_image(pixels, index)
    pixels = np.asarray(pixels)  # ignores the mask of a masked array
    if pixels.dtype == object:
        raise ImageError(f"{name}. Expected {ACCEPTED}.", index)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        hint = ""
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
            hint = " Move the channels last: image.transpose(1, 2, 0)."
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
    """Scale pixels of any accepted dtype to uint8."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind != "f":
        raise ImageError(
            f"{name}: wrong dtype. Expected uint8, bool, or floats in [0, 1]. Cast "
            "integers from 0 to 255: image.astype(numpy.uint8).",
            index,
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite(low + high):
        fault = "NaN" if np.isnan(pixels).any() else "infinity"
        raise ImageError(f"{name}: contains {fault}. Expected floats in [0, 1].", index)
    if low < 0 or high > 1:
        raise ImageError(
            f"{name}: float values from {low:g} to {high:g}. Expected floats in [0, "
            "1]. Divide by the largest possible value.",
            index,
        )
    scaled = pixels * pixels.dtype.type(255)
    rounded: np.ndarray = np.rint(scaled, out=scaled).astype(np.uint8)
    return rounded
