"""Convert what was decoded, or an array, to RGB with 8 bits.

Nothing is scaled by what values happen to occur: 16-bit values keep their high byte,
floats are multiplied by 255, transparency is composited over white.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.images.formats import RefusedError
from sk_cnncodes.images.safe_open import check_size
from sk_cnncodes.images.sources import ACCEPTED, describe_image

_PIXELS_AT_ONCE = 2**20
# Step between gray values after scaling to 8 bits, by Pillow's raw mode.
_GRAY_STEPS = {"L;2": 85, "L;4": 17}
_TIFF_BITS = 258
# Less than the values of images with more than 12 bits.
_DARK = 4096


class DarkValuesWarning(UserWarning):
    """16-bit values of an image are so small that it becomes nearly black."""


def describe_conversion(image: Image.Image) -> str:
    """What `as_rgb` does to the values of an image, in words."""
    if _is_deep_gray(image):
        return "float gray times 255" if image.mode == "F" else "high 8 bits of gray"
    if image.has_transparency_data:
        return "composited over white"
    return "none" if image.mode == "RGB" else f"{image.mode} to RGB"


def describe_array_conversion(pixels: np.ndarray) -> str:
    """What `from_pixels` does to the values of an array, in words."""
    gray = pixels.ndim == 2 or pixels.shape[2] == 1
    parts = ["floats times 255"] if pixels.dtype.kind == "f" else []
    parts += ["gray to RGB"] if gray else []
    parts += ["composited over white"] if not gray and pixels.shape[2] == 4 else []
    return ", ".join(parts) or "none"


def _is_deep_gray(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def as_rgb(image: Image.Image, name: str, index: int) -> Image.Image:
    """Convert to mode RGB without transparency; an opaque RGB image is not copied."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if _is_deep_gray(image):
        return _from_deep_gray(image, name, index)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("RGB")


def warn_if_dark(image: Any, tiles: list[Any]) -> None:
    """Warn if the colours of an image had 16 bits, of which hardly any was used.

    `tiles` is what Pillow said of its values before it loaded them.
    """
    if image.mode.startswith("RGB") and any(";16" in str(tile[3]) for tile in tiles):
        brightest = max(high for _, high in image.getextrema()[:3])
        if 0 < brightest < _DARK >> 8:
            _warn_of_dark_values()


def _warn_of_dark_values() -> None:
    """Python shows this warning once."""
    warnings.warn(
        "an image has 16-bit values that are all below 4096, as cameras with 12 bits "
        "write them, and becomes nearly black: the high 8 of 16 bits are used. If they "
        "have 12 bits, pass arrays: values / 4095. Said once for all images.",
        DarkValuesWarning,
        stacklevel=2,
    )


def scale_transparent_color(image: ImageFile.ImageFile) -> None:
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


def _from_deep_gray(image: Image.Image, name: str, index: int) -> Image.Image:
    """Convert 16-bit, 32-bit or float gray; 16-bit values keep their high byte."""
    values = np.asarray(image)
    if image.mode == "F":
        return from_pixels(values, index, None, name)
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
    if bits != (12,) and 0 < high < _DARK:
        _warn_of_dark_values()
    gray = (values >> (4 if bits == (12,) else 8)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def from_pixels(
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
