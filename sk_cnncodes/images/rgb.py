"""Convert what was decoded, or an array, to RGB with 8 bits.

Nothing is scaled by what values happen to occur: 16-bit values keep their high byte,
floats are multiplied by 255, transparency is composited over white. Colours stay as
they are, or are converted from an embedded ICC profile to sRGB by Pillow's LittleCMS.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFile, ImageOps

from sk_cnncodes.base.exceptions import ImageError, PreprocessingError
from sk_cnncodes.images.formats import RefusedError
from sk_cnncodes.images.safe_open import check_size, has_reversed_negative
from sk_cnncodes.images.sources import ACCEPTED, describe_image

COLORS = ("ignore", "srgb")
# Kinds of pixels that a profile can describe: its colour space, and the image modes
# that have it. All others become RGB first.
_MODES = {
    "CMYK": ("CMYK",),
    "GRAY": ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"),
}
_PIXELS_AT_ONCE = 2**20
# Step between gray values after scaling to 8 bits, by Pillow's raw mode.
_GRAY_STEPS = {"L;2": 85, "L;4": 17}
# TIFF tags, and the sample format of signed values.
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_PALETTE, _TIFF_SAMPLE_FORMAT = 258, 262, 320, 339
_SIGNED = 2
# Less than the values of images with more than 12 bits.
_DARK = 4096


class DarkValuesWarning(UserWarning):
    """16-bit values of an image are so small that it becomes nearly black."""


def describe_conversion(image: Image.Image, profile: ColorProfile | None) -> str:
    """What `as_rgb` does to the values of an image, in words."""
    parts = []
    if _is_deep_gray(image):
        parts.append(
            "float gray times 255" if image.mode == "F" else "high 8 bits of gray"
        )
    elif image.has_transparency_data:
        parts.append("composited over white")
    elif image.mode != "RGB":
        parts.append(f"{image.mode} to RGB")
    if profile is not None:
        parts.append(str(profile))
    elif image.info.get("icc_profile"):
        parts.append("ICC profile ignored")
    return ", ".join(parts) or "none"


def describe_array_conversion(pixels: np.ndarray) -> str:
    """What `from_pixels` does to the values of an array, in words."""
    gray = pixels.ndim == 2 or pixels.shape[2] == 1
    parts = ["floats times 255"] if pixels.dtype.kind == "f" else []
    parts += ["gray to RGB"] if gray else []
    parts += ["composited over white"] if not gray and pixels.shape[2] == 4 else []
    return ", ".join(parts) or "none"


def _is_deep_gray(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def as_rgb(
    image: Image.Image, name: str, index: int, profile: ColorProfile | None = None
) -> Image.Image:
    """Convert to mode RGB without transparency; an opaque RGB image is not copied.

    With a profile, the colours are converted from it to sRGB.
    """
    if hasattr(image, "tag_v2"):
        image = _as_tags_say(image, name, index)
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        rgb = image
    elif _is_deep_gray(image):
        rgb = _from_deep_gray(image, name, index)
    elif image.has_transparency_data or image.mode == "La":
        straight = image.convert("LA") if image.mode == "La" else image
        return _over_white(straight, profile)
    elif profile is not None and image.mode == "CMYK":
        rgb = image
    else:
        rgb = image.convert("RGB")
    return rgb if profile is None else profile.to_srgb(rgb)


def _as_tags_say(image: Any, name: str, index: int) -> Any:
    """A TIFF image of 8-bit values, as its tags mean them where Pillow does not."""
    tags = image.tag_v2
    if image.mode in ("P", "PA"):
        palette = tags.get(_TIFF_PALETTE, (0,))
        if 0 < max(palette) <= 255:  # of 8 bits, as old writers have it; not of 16
            image = image.copy()
            image.putpalette(bytes(palette), "RGB;L")
    elif image.mode == "L" and tags.get(_TIFF_SAMPLE_FORMAT) == (_SIGNED,):
        values = np.asarray(image).view(np.int8)
        if (low := int(values.min())) < 0:
            raise ImageError(
                f"{name}: gray values from {low} to {int(values.max())}. Expected "
                "8-bit values, 0 to 255.",
                index,
            )
    elif image.mode == "L" and has_reversed_negative(tags):
        image = ImageOps.invert(image)
    return image


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


def is_deep_color_key(image: ImageFile.ImageFile) -> bool:
    """Whether a PNG file, not yet loaded, has a transparent colour of 16 bits."""
    has_color = isinstance(image.info.get("transparency"), tuple)
    return has_color and image.tile[0][3] == "RGB;16B"


def clear_deep_color(image: Any, other: Any) -> None:
    """Make the transparent colour of a 16-bit PNG file so, by all of its bits.

    `image` is loaded, with the high bytes of the values; `other` is the same file, not
    yet loaded, whose low bytes are read.
    """
    color = image.info.pop("transparency")
    other.tile = [tile._replace(args="RGB;16L") for tile in other.tile]
    mask = Image.new("L", image.size, 255)
    for part, shift in ((image, 8), (other, 0)):
        for channel, value in enumerate(color):
            wanted = value >> shift & 255
            equal = [255 * (level == wanted) for level in range(256)]
            found = part.getchannel(channel).point(equal)
            mask = ImageChops.darker(mask, found)
    image.putalpha(ImageOps.invert(mask))


def _over_white(image: Image.Image, profile: ColorProfile | None = None) -> Image.Image:
    """Composite over white in strips, as copies of the whole can take gigabytes."""
    image.load()  # before the result is allocated, to limit peak memory
    rgb = Image.new("RGB", image.size)
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgba = image.crop(box).convert("RGBA")
        if profile is not None:
            rgba = profile.to_srgb(rgba)
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, rgba).convert("RGB"), box)
    return rgb


def _from_deep_gray(image: Image.Image, name: str, index: int) -> Image.Image:
    """Convert 16-bit, 32-bit or float gray; 16-bit values keep their high byte."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    is_negative = tags.get(_TIFF_PHOTOMETRIC) == 0  # Pillow inverts up to 8 bits
    if image.mode == "F":
        rgb = from_pixels(values, index, None, name)
        return ImageOps.invert(rgb) if is_negative else rgb
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
    if is_negative and image.mode.startswith("I;16"):
        values, low, high = 65535 - values, 65535 - high, 65535 - low
    bits = tags.get(_TIFF_BITS)
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


# -- colour profiles -----------------------------------------------------------


def check_color(color: str) -> None:
    """Check that Pillow can convert colours, if that is wanted.

    Raises
    ------
    PreprocessingError
        If it was built without LittleCMS.
    """
    if color != "srgb":
        return
    from PIL import features

    if not features.check("littlecms2"):
        raise PreprocessingError(
            "preprocessing color: 'srgb' needs Pillow with LittleCMS, but this Pillow "
            "was built without it. Expected 'ignore' here, or Pillow from PyPI."
        )


@dataclass(frozen=True)
class ColorProfile:
    """An embedded profile, and how to convert from it.

    Attributes
    ----------
    content : bytes
    space : str
        Colour space of the pixels that it describes: "RGB", "GRAY" or "CMYK".
    description : str
        Its name in the file.
    is_srgb : bool
        Whether it changes nothing, within one level, as most profiles do.
    """

    content: bytes
    space: str
    description: str
    is_srgb: bool = False

    def __str__(self) -> str:
        what = "is sRGB" if self.is_srgb else "to sRGB"
        return f"ICC profile {self.description!r} {what}"

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Convert an image; transparency is kept, and the image is not changed.

        Parameters
        ----------
        image : PIL.Image.Image
            In mode CMYK for the space "CMYK", otherwise in mode RGB or RGBA.
        """
        if self.is_srgb:
            return image
        if self.space == "GRAY":
            converted = _apply(image.getchannel(0), self.content)
            if image.mode == "RGBA":
                converted.putalpha(image.getchannel("A"))
            return converted
        return _apply(image, self.content)


def embedded_profile(image: Image.Image) -> ColorProfile | None:
    """The profile of an image; None if it has none that fits its pixels and works."""
    content = image.info.get("icc_profile")
    if not isinstance(content, bytes) or not content:
        return None
    profile = _read_profile(content)
    if profile is None:
        return None
    space = next((s for s, modes in _MODES.items() if image.mode in modes), "RGB")
    return profile if profile.space == space else None


@lru_cache(maxsize=8)
def _read_profile(content: bytes) -> ColorProfile | None:
    """Read a profile and build its transform; None if it is damaged."""
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(content))
        space = opened.profile.xcolor_space.strip()
        if space not in ("RGB", *_MODES):
            return None
        description = ImageCms.getProfileDescription(opened)
        printable = "".join(c for c in description if c.isprintable())
        profile = ColorProfile(content, space, printable.strip()[:60])
        return replace(profile, is_srgb=_changes_nothing(profile))
    except MemoryError:
        raise
    except Exception:  # Pillow and LittleCMS raise several kinds
        return None


def _changes_nothing(profile: ColorProfile) -> bool:
    """Whether colours spread over its space stay the same within one level."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    if profile.space == "CMYK":
        profile.to_srgb(Image.new("CMYK", (1, 1)))
        return False
    if profile.space == "GRAY":
        colors = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    else:
        colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    converted = np.asarray(profile.to_srgb(Image.fromarray(colors[None])))[0]
    return bool(np.abs(converted.astype(int) - colors).max() <= 1)


@lru_cache(maxsize=8)
def _transform(content: bytes, mode: str) -> Any:
    """The transform to sRGB of images of a mode."""
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(content))
    return ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGBA" if mode == "RGBA" else "RGB",
        ImageCms.Intent.PERCEPTUAL,
    )


def _apply(image: Image.Image, content: bytes) -> Image.Image:
    from PIL import ImageCms

    converted = ImageCms.applyTransform(image, _transform(content, image.mode))
    assert converted is not None  # only if it is converted in place
    return converted
