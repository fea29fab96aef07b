"""Preprocessing: how an image becomes the numbers that a backbone was trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sk_cnncodes.exceptions import PreprocessingError

if TYPE_CHECKING:
    from PIL import Image

METADATA_KEY = "sk_cnncodes.preprocessing"

RESIZES = ("shorter", "squash", "exact", "none")
# Pixels of an image as a whole, of which several crops are taken.
_MOST_RESIZED = 2**24
# Filters that go beyond the values of an image, where they are cut off after each pass,
# and how many pixels they reach. The order of the passes then matters: first along the
# rows, as in all versions of Pillow before 13, which takes the quicker order.
_OVERSHOOTING = {"bicubic": 2, "lanczos": 3}
# Numbers of PIL.Image.Resampling, which Hugging Face writes to its files.
INTERPOLATIONS = {
    "nearest": 0,
    "lanczos": 1,
    "bilinear": 2,
    "bicubic": 3,
    "box": 4,
    "hamming": 5,
}
ROUNDINGS = ("torchvision", "huggingface", "nearest")
# Of a network's input, in pixels: a file could ask for sizes that fill the memory.
_LONGEST_SIDE = 8192
CHANNELS = ("RGB", "BGR", "GRAY")
LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation that belong to a backbone.

    The image is resized, cropped at its centre, and then each channel becomes
    ``(value * scale - mean) / std``, where `value` lies in [0, 255].

    Parameters
    ----------
    crop_size : (int, int)
        Height and width of the network's input, in pixels.
    resize : {"shorter", "squash", "exact", "none"}, default="shorter"
        - ``"shorter"``: the shorter side becomes `resize_size`, the other keeps the
          aspect ratio;
        - ``"squash"``: both sides become `resize_size`, whatever the aspect ratio;
        - ``"exact"``: the image becomes `crop_size` as a whole, nothing is cropped;
        - ``"none"``: only cropped.
    resize_size : int or (int, int) or None, default=None
        Size to resize to, in pixels: an int for ``"shorter"``, an int or (height,
        width) for ``"squash"``; None stands for the size of the crop.
    interpolation : str, default="bilinear"
        ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or
        ``"hamming"``, all as Pillow computes them: with antialiasing.
    rounding : {"torchvision", "huggingface", "nearest"}, default="torchvision"
        How the longer side with ``"shorter"``, and the corner of the crop, become
        whole pixels. It moves codes a little, since the crop moves by half a pixel.

        - ``"torchvision"``, and timm: the side down, the corner to the nearest, halves
          to even;
        - ``"huggingface"``: both down;
        - ``"nearest"``: the side to the nearest, the corner down.
    mean, std : tuple of float, default=(0, 0, 0) and (1, 1, 1)
        In the units of the scaled values, in the order of `channels`. `std` must not
        be zero.
    scale : float, default=1.0
        Factor before the mean is subtracted, such as 1/255.
    channels : {"RGB", "BGR", "GRAY"}, default="RGB"
        Order of the channels that the network expects; ``"GRAY"`` is one channel of
        luma (ITU-R BT.601, as Pillow's mode L).
    layout : {"NCHW", "NHWC"}, default="NCHW"
        Layout of the network's input.

    Raises
    ------
    PreprocessingError
        If a value is not one of those described.

    Examples
    --------
    What torchvision's classification weights were trained with:

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
    """

    crop_size: tuple[int, int]
    resize: Literal["shorter", "squash", "exact", "none"] = "shorter"
    resize_size: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    rounding: Literal["torchvision", "huggingface", "nearest"] = "torchvision"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    channels: Literal["RGB", "BGR", "GRAY"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    def __post_init__(self) -> None:
        put = object.__setattr__  # the record is frozen for everyone else
        if isinstance(self.crop_size, Integral):
            put(self, "crop_size", (self.crop_size, self.crop_size))
        put(self, "crop_size", _sides("crop_size", self.crop_size))
        _check_choice("resize", self.resize, RESIZES)
        _check_choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        _check_choice("rounding", self.rounding, ROUNDINGS)
        _check_choice("channels", self.channels, CHANNELS)
        _check_choice("layout", self.layout, LAYOUTS)
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

    def _checked_resize_size(self) -> int | tuple[int, int] | None:
        size = self.resize_size
        if self.resize in ("exact", "none"):
            if size is not None:
                raise PreprocessingError(
                    f"preprocessing resize_size: expected None with resize="
                    f"{self.resize!r}, got {size!r}."
                )
            return None
        if size is None:
            return min(self.crop_size) if self.resize == "shorter" else self.crop_size
        if isinstance(size, Integral):
            if not 1 <= int(size) <= _LONGEST_SIDE:
                raise PreprocessingError(
                    "preprocessing resize_size: expected an int from 1 to "
                    f"{_LONGEST_SIDE}, got {size}."
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
        """Number of channels of the network's input: 3, or 1 for "GRAY"."""
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

        Along the longer side the crop is taken inside of the resize, so that pixels
        outside of it are never computed. Pillow keeps such a box in single precision:
        the result is that of resizing first, within one level; seldom two with
        "bicubic" and "lanczos", whose second pass can double what the first rounds. A
        box along both sides would add up to two. With "nearest" and "box", which jump,
        the image is resized first.

        Parameters
        ----------
        image : PIL.Image.Image
            In mode RGB.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
            Of the size `crop_size`.
        """
        from PIL import Image

        height, width = self.crop_size
        full_height, full_width = self.resized_size(image.height, image.width)
        top = self._corner(full_height - height)
        left = self._corner(full_width - width)
        method = Image.Resampling(INTERPOLATIONS[self.interpolation])
        if (full_height, full_width) == (image.height, image.width):
            cropped = image.crop((left, top, left + width, top + height))
        elif full_height <= height and full_width <= width:
            # Smaller than the crop: surrounded by black, as torchvision does.
            resized = image.resize((full_width, full_height), method)
            cropped = resized.crop((left, top, left + width, top + height))
        elif (
            self.interpolation in ("nearest", "box")
            and full_height * full_width <= _MOST_RESIZED
        ):
            resized = image.resize((full_width, full_height), method)
            cropped = resized.crop((left, top, left + width, top + height))
        else:
            cropped = self._resized_and_cropped(
                image, full_height, full_width, method, (top, left)
            )
        return np.asarray(cropped)

    def apply_five(self, image: Image.Image) -> np.ndarray:
        """The four corners and the centre of the resized image.

        Parameters
        ----------
        image : PIL.Image.Image
            In mode RGB.

        Returns
        -------
        ndarray of uint8, shape (5, height, width, 3)
            Top left, top right, bottom left, bottom right, centre.
        """
        from PIL import Image

        height, width = self.crop_size
        full_height, full_width = self.resized_size(image.height, image.width)
        method = Image.Resampling(INTERPOLATIONS[self.interpolation])
        padded = full_height <= height and full_width <= width
        if full_height * full_width > _MOST_RESIZED and not padded:
            return self._five_of_long(image, full_height, full_width, method)
        resized = image.resize((full_width, full_height), method)
        # Smaller than the crop: surrounded by black, as in `apply`.
        top = min(self._corner(full_height - height), 0)
        left = min(self._corner(full_width - width), 0)
        bottom = max(full_height, top + height)
        right = max(full_width, left + width)
        whole = np.asarray(resized.crop((left, top, right, bottom)))
        spare = (whole.shape[0] - height, whole.shape[1] - width)
        corners = [(y, x) for y in (0, spare[0]) for x in (0, spare[1])]
        corners.append((self._corner(spare[0]), self._corner(spare[1])))
        return np.stack([whole[y : y + height, x : x + width] for y, x in corners])

    def _five_of_long(
        self, image: Image.Image, full_height: int, full_width: int, method: int
    ) -> np.ndarray:
        """As `apply_five`, without the whole of an image that is long and narrow."""
        spare_y = full_height - self.crop_size[0]
        spare_x = full_width - self.crop_size[1]
        middle = (self._corner(spare_y), self._corner(spare_x))
        # Along a side that is smaller than the crop, there is one place.
        tops = (0, spare_y) if spare_y > 0 else (middle[0],) * 2
        lefts = (0, spare_x) if spare_x > 0 else (middle[1],) * 2
        corners = [(top, left) for top in tops for left in lefts]
        parts = [
            self._resized_and_cropped(image, full_height, full_width, method, corner)
            for corner in (*corners, middle)
        ]
        return np.stack([np.asarray(part) for part in parts])

    def _resized_and_cropped(
        self,
        image: Image.Image,
        full_height: int,
        full_width: int,
        method: int,
        corner: tuple[int, int],
    ) -> Image.Image:
        height, width = self.crop_size
        top, left = corner
        if full_width - width >= full_height - height:
            factor = image.width / full_width
            right = min((left + width) * factor, image.width)
            box = (left * factor, 0.0, right, float(image.height))
            if self.interpolation in _OVERSHOOTING:
                image = image.resize((width, image.height), method, box=box)
                box = (0.0, 0.0, float(width), float(image.height))
            wide = image.resize((width, full_height), method, box=box)
            return wide.crop((0, top, width, top + height))
        factor = image.height / full_height
        bottom = min((top + height) * factor, image.height)
        if self.interpolation in _OVERSHOOTING:
            # Only the rows that the crop needs, with those that the filter reaches.
            reach = math.ceil(_OVERSHOOTING[self.interpolation] * max(factor, 1)) + 1
            first = max(math.floor(top * factor) - reach, 0)
            last = min(math.ceil(bottom) + reach, image.height)
            rows = (0.0, float(first), float(image.width), float(last))
            image = image.resize((full_width, last - first), method, box=rows)
            box = (0.0, top * factor - first, float(full_width), bottom - first)
        else:
            box = (0.0, top * factor, float(image.width), bottom)
        high = image.resize((full_width, height), method, box=box)
        return high.crop((left, 0, left + width, height))

    def _corner(self, excess: int) -> int:
        """Where the crop starts along a side that is longer by `excess` pixels."""
        if self.rounding != "torchvision":
            return excess // 2
        return -(-excess // 2) if excess < 0 else round(excess / 2)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a whole image after the resize, in pixels."""
        if self.resize == "none":
            return height, width
        if self.resize == "exact":
            return self.crop_size
        size = self.resize_size
        assert size is not None
        if self.resize == "squash":
            return size if isinstance(size, tuple) else (size, size)
        assert isinstance(size, int)
        longer = size * max(height, width) / min(height, width)
        whole = round(longer) if self.rounding == "nearest" else int(longer)
        return (size, whole) if height <= width else (whole, size)

    def least_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image must keep where it is decoded smaller.

        A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size. With twice the size
        after the resize there is no visible difference, but with "nearest" and "box",
        which jump.
        """
        if self.resize == "none" or self.interpolation in ("nearest", "box"):
            return height, width
        full_height, full_width = self.resized_size(height, width)
        return 2 * full_height, 2 * full_width

    # -- as plain values -----------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All values as plain numbers, strings and tuples."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_dict` or the ONNX metadata hold.

        Raises
        ------
        PreprocessingError
            If a key is unknown, `crop_size` is missing, or a value is wrong.
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
        """Entry for the `metadata_props` of an ONNX model."""
        return {METADATA_KEY: json.dumps(self.to_dict())}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Preprocessing | None:
        """Read the entry that `to_metadata` writes; None where there is none."""
        if METADATA_KEY not in metadata:
            return None
        return cls.from_dict(_json_object(metadata[METADATA_KEY], METADATA_KEY))


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PreprocessingError(f"{where}: not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise PreprocessingError(f"{where}: expected a JSON object, got {values!r}.")
    return values


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and bool(np.isfinite(float(value)))
    )


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise PreprocessingError(
            f"preprocessing {name}: expected one of {list(choices)}, got {value!r}."
        )


def _sides(name: str, value: Any) -> tuple[int, int]:
    good = isinstance(value, (tuple, list)) and len(value) == 2
    if not good or not all(isinstance(v, Integral) and int(v) >= 1 for v in value):
        raise PreprocessingError(
            f"preprocessing {name}: expected (height, width) of at least one pixel, "
            f"got {value!r}."
        )
    if max(value) > _LONGEST_SIDE:
        raise PreprocessingError(
            f"preprocessing {name}: expected at most {_LONGEST_SIDE} pixels a side, "
            f"got {value!r}."
        )
    return int(value[0]), int(value[1])


def _channel_values(name: str, values: Any, n_channels: int) -> tuple[float, ...]:
    if _is_number(values):
        values = (values,) * n_channels
    listed = isinstance(values, (tuple, list, np.ndarray))
    # One grey channel takes the default of three equal values too.
    if listed and n_channels == 1 and len(set(values)) == 1:
        values = (values[0],)
    if not listed or len(values) != n_channels or not all(map(_is_number, values)):
        raise PreprocessingError(
            f"preprocessing {name}: expected {n_channels} finite numbers, got "
            f"{values!r}."
        )
    return tuple(float(value) for value in values)
