"""Preprocessing: resize, crop and normalisation of a backbone's input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sk_cnncodes.base.exceptions import PreprocessingError
from sk_cnncodes.base.public import public
from sk_cnncodes.images.resizing import (
    DISCONTINUOUS,
    INTERPOLATIONS,
    aspect_ratio_box,
    bilinear_crops,
    five_corners,
    resized_crops,
    resized_part,
)
from sk_cnncodes.images.rgb import COLORS, check_color

if TYPE_CHECKING:
    from PIL import Image

METADATA_KEY = "sk_cnncodes.preprocessing"

RESIZES = ("shorter", "squash", "exact", "crop_to_aspect_ratio", "none")
ROUNDINGS = ("torchvision", "huggingface", "nearest")
# In pixels; a file could demand an input size that exhausts memory.
_MAX_SIDE = 8192
CHANNELS = ("RGB", "BGR", "GRAY")
LAYOUTS = ("NCHW", "NHWC")
# Parameters that came later. Their defaults are left out of files and digests, so that
# those of before stay the same.
_LATER = {"antialias": True, "color": "ignore"}


@public
@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation of a backbone's input.

    The image is resized and cropped at its centre, and then each channel becomes
    ``(value * scale - mean) / std``, where `value` is in [0, 255].

    Parameters
    ----------
    crop_size : (int, int)
        Height and width of the network's input, in pixels.
    resize : {"shorter", "squash", "exact", "crop_to_aspect_ratio", "none"}, \
            default="shorter"
        - ``"shorter"``: the shorter side becomes `resize_size`, the other keeps the
          aspect ratio;
        - ``"squash"``: both sides become `resize_size`, whatever the aspect ratio;
        - ``"exact"``: the whole image becomes `crop_size`, without cropping;
        - ``"crop_to_aspect_ratio"``: the largest central part with the aspect ratio of
          `crop_size` becomes `crop_size`, as with this parameter of Keras;
        - ``"none"``: the image is only cropped.
    resize_size : int or (int, int) or None, default=None
        Size to resize to, in pixels: an int for ``"shorter"``, an int or (height,
        width) for ``"squash"``; None means the size of the crop.
    interpolation : str, default="bilinear"
        ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or
        ``"hamming"``, as Pillow computes them, with antialiasing except for
        ``"nearest"``.
    rounding : {"torchvision", "huggingface", "nearest"}, default="torchvision"
        How the longer side with ``"shorter"`` and the corner of the crop are rounded to
        whole pixels. It changes codes slightly, as the crop moves by half a pixel.

        - ``"torchvision"`` (also timm): the side is rounded down, the corner to the
          nearest, halves to even;
        - ``"huggingface"``: both are rounded down;
        - ``"nearest"``: the side is rounded to the nearest, the corner down.
    mean, std : tuple of float, default=(0, 0, 0) and (1, 1, 1)
        In units of the scaled values, in the order of `channels`. `std` must not
        contain zero.
    scale : float, default=1.0
        Factor applied before the mean is subtracted, such as 1/255; not zero.
    channels : {"RGB", "BGR", "GRAY"}, default="RGB"
        Channel order that the network expects; ``"GRAY"`` is one channel of luma
        (ITU-R BT.601, as in Pillow's mode L, but not rounded for float inputs).
    layout : {"NCHW", "NHWC"}, default="NCHW"
        Layout of the network's input.
    antialias : bool, default=True
        False interpolates between the four nearest pixels only, at half-pixel centres,
        however much the image shrinks. It needs ``interpolation="bilinear"``. So resize
        `tf.image.resize`, Keras's `image_dataset_from_directory` and `Resizing`, OpenCV
        (`INTER_LINEAR`), and torchvision's tensors with ``antialias=False``.
    color : {"ignore", "srgb"}, default="ignore"
        What an embedded colour profile (ICC) does.

        - ``"ignore"``: nothing, as in torchvision, timm, transformers and Keras;
        - ``"srgb"``: the colours are converted to sRGB (LittleCMS, perceptual intent),
          as image viewers do. Use it if images with other profiles, such as Adobe RGB,
          Display P3 or CMYK, are mixed with ordinary ones. Damaged profiles, and those
          of another kind than the pixels, are ignored.

    Raises
    ------
    PreprocessingError
        If a parameter is invalid.

    Examples
    --------
    The preprocessing of torchvision's classification weights:

    >>> from sk_cnncodes import Preprocessing
    >>> imagenet = Preprocessing(
    ...     crop_size=(224, 224),
    ...     resize_size=256,
    ...     scale=1 / 255,
    ...     mean=(0.485, 0.456, 0.406),
    ...     std=(0.229, 0.224, 0.225),
    ... )
    >>> imagenet.crop_size
    (224, 224)

    That of Keras's `image_dataset_from_directory`, for a network that normalises by
    itself; `load_img` has ``interpolation="nearest"`` instead, unless it is told
    otherwise:

    >>> keras = Preprocessing(
    ...     crop_size=(224, 224), resize="exact", antialias=False, layout="NHWC"
    ... )
    """

    crop_size: tuple[int, int]
    resize: Literal["shorter", "squash", "exact", "crop_to_aspect_ratio", "none"] = (
        "shorter"
    )
    resize_size: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    rounding: Literal["torchvision", "huggingface", "nearest"] = "torchvision"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    channels: Literal["RGB", "BGR", "GRAY"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    antialias: bool = True
    color: Literal["ignore", "srgb"] = "ignore"

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen
        if isinstance(self.crop_size, Integral):
            put(self, "crop_size", (self.crop_size, self.crop_size))
        put(self, "crop_size", _sides("crop_size", self.crop_size))
        _check_choice("resize", self.resize, RESIZES)
        _check_choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        _check_choice("rounding", self.rounding, ROUNDINGS)
        _check_choice("channels", self.channels, CHANNELS)
        _check_choice("layout", self.layout, LAYOUTS)
        _check_choice("color", self.color, COLORS)
        check_color(self.color)
        self._check_antialias()
        put(self, "resize_size", self._checked_resize_size())
        if not _is_number(self.scale) or self.scale == 0:
            raise PreprocessingError(
                f"preprocessing scale: expected a number other than 0, got "
                f"{self.scale!r}."
            )
        put(self, "scale", float(self.scale))
        for name in ("mean", "std"):
            put(self, name, _channel_values(name, getattr(self, name), self.n_channels))
        if 0.0 in self.std:
            raise PreprocessingError(
                f"preprocessing std: expected no zero, got {self.std}."
            )

    def _check_antialias(self) -> None:
        if not isinstance(self.antialias, bool):
            raise PreprocessingError(
                f"preprocessing antialias: expected True or False, got "
                f"{self.antialias!r}."
            )
        if not self.antialias and self.interpolation != "bilinear":
            raise PreprocessingError(
                "preprocessing antialias: expected True with interpolation="
                f"{self.interpolation!r}, got False. Without antialiasing there is "
                "interpolation='bilinear', and 'nearest' never has any."
            )

    def _checked_resize_size(self) -> int | tuple[int, int] | None:
        """Check `resize_size` against `resize`, and replace None by its default."""
        size = self.resize_size
        if self.resize in ("exact", "crop_to_aspect_ratio", "none"):
            if size is not None:
                raise PreprocessingError(
                    f"preprocessing resize_size: expected None with resize="
                    f"{self.resize!r}, got {size!r}."
                )
            return None
        if size is None:
            return min(self.crop_size) if self.resize == "shorter" else self.crop_size
        if isinstance(size, Integral):
            if not 1 <= int(size) <= _MAX_SIDE:
                raise PreprocessingError(
                    "preprocessing resize_size: expected an int from 1 to "
                    f"{_MAX_SIDE}, got {size}."
                )
            return int(size)
        if self.resize == "shorter":
            raise PreprocessingError(
                "preprocessing resize_size: expected an int, the length of the shorter "
                f"side, got {size!r}."
            )
        return _sides("resize_size", size)

    @property
    def n_channels(self) -> int:
        """Number of channels of the network's input: 1 for "GRAY", otherwise 3."""
        return 1 if self.channels == "GRAY" else 3

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the network's input for one image."""
        height, width = self.crop_size
        if self.layout == "NCHW":
            return (1, self.n_channels, height, width)
        return (1, height, width, self.n_channels)

    # -- pixels --------------------------------------------------------------

    def apply(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an upright RGB image.

        Parameters
        ----------
        image : PIL.Image.Image
            In mode RGB.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
            Height and width are `crop_size`.
        """
        corner = self.crop_corner(*self.resized_size(image.height, image.width))
        central: np.ndarray = self._crops(image, [corner])[0]
        return central

    def apply_five(self, image: Image.Image) -> np.ndarray:
        """Resize an upright RGB image, and crop its four corners and its centre.

        Parameters
        ----------
        image : PIL.Image.Image
            In mode RGB.

        Returns
        -------
        ndarray of uint8, shape (5, height, width, 3)
            Top left, top right, bottom left, bottom right, centre.
        """
        full = self.resized_size(image.height, image.width)
        corners = five_corners(full, self.crop_size, self.crop_corner(*full))
        return self._crops(image, corners)

    def _crops(self, image: Image.Image, corners: list[tuple[int, int]]) -> np.ndarray:
        """Resize an image, and take crops with these corners (top, left)."""
        full, crop = self.resized_size(image.height, image.width), self.crop_size
        if self.resize == "crop_to_aspect_ratio":
            box = aspect_ratio_box(image.height, image.width, crop)
            if self.antialias:
                return resized_part(image, box, crop, self.interpolation)[None]
            image = image.crop(box)
        if not self.antialias:
            return bilinear_crops(image, full, crop, corners)
        return resized_crops(image, full, crop, corners, self.interpolation)

    def crop_corner(self, height: int, width: int) -> tuple[int, int]:
        """Top and left of the central crop of a resized image.

        Negative where the image is smaller than the crop and is padded with black.

        Parameters
        ----------
        height, width : int
            Of the resized image, in pixels.
        """
        return (
            self._corner(height - self.crop_size[0]),
            self._corner(width - self.crop_size[1]),
        )

    def _corner(self, excess: int) -> int:
        """Start of the central crop along a side that exceeds it by `excess` pixels."""
        if self.rounding != "torchvision":
            return excess // 2
        return -(-excess // 2) if excess < 0 else round(excess / 2)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after the resize, in pixels."""
        if self.resize == "none":
            return height, width
        if self.resize in ("exact", "crop_to_aspect_ratio"):
            return self.crop_size
        size = self.resize_size
        assert size is not None
        if self.resize == "squash":
            return size if isinstance(size, tuple) else (size, size)
        assert isinstance(size, int)
        longer = size * max(height, width) / min(height, width)
        whole = round(longer) if self.rounding == "nearest" else int(longer)
        return (size, whole) if height <= width else (whole, size)

    def min_decode_size(self, height: int, width: int) -> tuple[int, int]:
        """Smallest height and width that an image may be decoded at.

        A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size. Twice the size after the
        resize makes no visible difference, except to halftones
        (`sk_cnncodes.images.halftones`), with the discontinuous "nearest" and "box",
        without antialiasing, and where a part is cut out in whole pixels first: these
        need the full size.
        """
        needs_pixels = self.interpolation in DISCONTINUOUS or not self.antialias
        if needs_pixels or self.resize in ("crop_to_aspect_ratio", "none"):
            return height, width
        full_height, full_width = self.resized_size(height, width)
        return 2 * full_height, 2 * full_width

    # -- plain values --------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as plain numbers, strings and tuples.

        `antialias` and `color` are left out if they have their defaults.
        """
        values = asdict(self)
        return {k: v for k, v in values.items() if k not in _LATER or v != _LATER[k]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Create a Preprocessing from the output of `to_dict` or parsed ONNX metadata.

        Raises
        ------
        PreprocessingError
            If a key is unknown, `crop_size` is missing, or a value is invalid.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown or "crop_size" not in values:
            fault = f"unknown {unknown}" if unknown else "crop_size is missing"
            raise PreprocessingError(
                f"preprocessing: {fault}. Expected crop_size and any of {known[1:]}."
            )
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)

    # -- ONNX metadata -------------------------------------------------------

    def to_metadata(self) -> dict[str, str]:
        """Return the entry for the `metadata_props` of an ONNX model."""
        return {METADATA_KEY: json.dumps(self.to_dict())}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Preprocessing | None:
        """Read the entry written by `to_metadata`; None if it is missing.

        Raises
        ------
        PreprocessingError
            If the entry is not a JSON object or has an invalid value.
        """
        if METADATA_KEY not in metadata:
            return None
        return cls.from_dict(json_object(metadata[METADATA_KEY], METADATA_KEY))


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; errors begin with `where`.

    Raises
    ------
    PreprocessingError
        If it is not JSON, or not an object.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PreprocessingError(f"{where}: not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise PreprocessingError(
            f"{where}: expected a JSON object, got {values!r:.200}."
        )
    return values


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return bool(np.isfinite(float(value)))
    except OverflowError:
        return False


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise PreprocessingError(
            f"preprocessing {name}: expected one of {list(choices)}, got {value!r}."
        )


def _sides(name: str, value: Any) -> tuple[int, int]:
    """Check a parameter (height, width), in pixels."""
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    if not is_pair or not all(isinstance(v, Integral) and int(v) >= 1 for v in value):
        raise PreprocessingError(
            f"preprocessing {name}: expected (height, width) of at least one pixel, "
            f"got {value!r}."
        )
    if max(value) > _MAX_SIDE:
        raise PreprocessingError(
            f"preprocessing {name}: expected at most {_MAX_SIDE} pixels per side, "
            f"got {value!r}."
        )
    return int(value[0]), int(value[1])


def _channel_values(name: str, values: Any, n_channels: int) -> tuple[float, ...]:
    """Check a parameter with one value per channel; a number is repeated."""
    if _is_number(values):
        values = (values,) * n_channels
    is_sequence = isinstance(values, (tuple, list, np.ndarray))
    # A single gray channel also accepts the default of three equal values.
    valid = is_sequence and all(map(_is_number, values))
    if valid and n_channels == 1 and len(set(values)) == 1:
        values = (values[0],)
    if not valid or len(values) != n_channels:
        raise PreprocessingError(
            f"preprocessing {name}: expected {n_channels} finite numbers, got "
            f"{values!r}."
        )
    return tuple(float(value) for value in values)
