"""Resize and crop images with Pillow, rows first.

The pixels are those of resizing the whole image and then cropping it, as the backbones'
own libraries do, but pixels outside of the crop are rarely computed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

# Values of PIL.Image.Resampling, which Hugging Face writes to its files.
INTERPOLATIONS = {
    "nearest": 0,
    "lanczos": 1,
    "bilinear": 2,
    "bicubic": 3,
    "box": 4,
    "hamming": 5,
}
# Discontinuous interpolations: cropping inside of the resize would shift their pixels.
DISCONTINUOUS = ("nearest", "box")
# Filters that overshoot, and their radius in pixels. Values are clipped after each
# pass, so the order of the passes matters: rows first, as in torchvision and in Pillow
# before 13; Pillow 13 uses the faster order.
OVERSHOOTING = {"bicubic": 2, "lanczos": 3}
# Largest image, in pixels, that a pass of a resize computes as a whole.
_MAX_RESIZED_PIXELS = 2**24
# Largest first pass in pixels, in parts, which takes seconds. Only images of more than
# about 300,000 rows pass it, and Pillow chooses their order.
_MAX_FIRST_PASS = 2**26

# Largest matrix of coefficients, in values of 4 bytes.
_MAX_COEFFICIENTS = 2**23

Size = tuple[int, int]


def resized_crops(
    image: Image.Image,
    full: Size,
    crop: Size,
    corners: list[Size],
    interpolation: str,
) -> np.ndarray:
    """Crops of equal size from a resized image.

    A single crop is taken inside of the resize along one side, so that pixels outside
    of it are never computed. Pillow stores such a box in single precision: the
    result equals that of resizing first within one level, rarely two with "bicubic" and
    "lanczos", whose second pass can double the rounding of the first. A box along both
    sides could differ by two. With the discontinuous "nearest" and "box", the image is
    resized first.

    Parameters
    ----------
    image : PIL.Image.Image
        In mode RGB.
    full : (int, int)
        Height and width of the whole image after the resize.
    crop : (int, int)
        Height and width of the crops.
    corners : list of (int, int)
        Top and left of each crop; pixels outside of the image are black.
    interpolation : str
        A key of `INTERPOLATIONS`.

    Returns
    -------
    ndarray of uint8, shape (n_crops, height, width, 3)
    """
    height, width = crop
    fits = full[0] * full[1] <= _MAX_RESIZED_PIXELS
    unchanged = full == (image.height, image.width)
    padded = full[0] <= height and full[1] <= width
    whole = interpolation in DISCONTINUOUS or len(corners) > 1
    if unchanged or padded or (whole and fits):
        if not unchanged:
            image = _resized(image, full, (0, 0), full, interpolation)
        parts = [
            image.crop((left, top, left + width, top + height)) for top, left in corners
        ]
    else:
        parts = [
            _resized_crop(image, full, crop, corner, interpolation)
            for corner in corners
        ]
    arrays = [np.asarray(part) for part in parts]
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def five_corners(full: Size, crop: Size, center: Size) -> list[Size]:
    """Top and left of the crops at the four corners of an image, and the central one.

    Top left, top right, bottom left, bottom right, centre.
    """
    top, left = center
    # Along a side no longer than the crop, all crops have the same position.
    bottom, right = full[0] - crop[0], full[1] - crop[1]
    tops = (0, bottom) if bottom > 0 else (top, top)
    lefts = (0, right) if right > 0 else (left, left)
    return [*((y, x) for y in tops for x in lefts), center]


def _resized_crop(
    image: Image.Image, full: Size, crop: Size, corner: Size, interpolation: str
) -> Image.Image:
    """Take a crop inside of the resize, along the side that it shortens more."""
    (height, width), (top, left) = crop, corner
    if full[1] - width >= full[0] - height:
        wide = _resized(image, full, (0, left), (full[0], width), interpolation)
        return wide.crop((0, top, width, top + height))
    high = _resized(image, full, (top, 0), (height, full[1]), interpolation)
    return high.crop((left, 0, left + width, height))


def _resized(
    image: Image.Image, full: Size, corner: Size, part: Size, interpolation: str
) -> Image.Image:
    """Resize an image, and compute a part of the result that is as long on one side.

    Parameters
    ----------
    image : PIL.Image.Image
    full : (int, int)
        Height and width of the whole image after the resize.
    corner, part : (int, int)
        Top and left, and height and width, of the part.
    interpolation : str
        A key of `INTERPOLATIONS`.
    """
    (top, left), (height, width) = corner, part
    method = Image.Resampling(INTERPOLATIONS[interpolation])
    x_start, x_end, _ = _box_side(image.width, full[1], left, width)
    y_start, y_end, factor = _box_side(image.height, full[0], top, height)
    if interpolation in OVERSHOOTING:
        # Only the rows that the part needs, including the filter's radius.
        reach = math.ceil(OVERSHOOTING[interpolation] * max(factor, 1)) + 1
        first = max(math.floor(y_start) - reach, 0)
        last = min(math.ceil(y_end) + reach, image.height)
        between = width * (last - first)
        if _MAX_RESIZED_PIXELS < between <= _MAX_FIRST_PASS:
            return _in_halves(image, full, corner, part, interpolation)
        if between <= _MAX_RESIZED_PIXELS:
            rows = (x_start, float(first), x_end, float(last))
            image = image.resize((width, last - first), method, box=rows)
            x_start, x_end = 0.0, float(width)
            y_start, y_end = y_start - first, y_end - first
    return image.resize((width, height), method, box=(x_start, y_start, x_end, y_end))


def _in_halves(
    image: Image.Image, full: Size, corner: Size, part: Size, interpolation: str
) -> Image.Image:
    """Do what `_resized` does with half of the memory, for very long images."""
    (top, left), (height, width) = corner, part
    middle = width // 2
    joined = Image.new(image.mode, (width, height))
    for start, columns in ((0, middle), (middle, width - middle)):
        where, size = (top, left + start), (height, columns)
        half = _resized(image, full, where, size, interpolation)
        joined.paste(half, (start, 0))
    return joined


def _box_side(
    length: int, resized: int, start: int, cropped: int
) -> tuple[float, float, float]:
    """Start and end of a crop along a side before the resize, and the scale factor."""
    factor = length / resized
    end = length if start + cropped == resized else (start + cropped) * factor
    return start * factor, float(end), factor


def aspect_ratio_box(height: int, width: int, crop: Size) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest central part shaped like `crop`.

    Rounded to whole pixels as in Keras.
    """
    part_height = max(min(height, width * crop[0] // crop[1]), 1)
    part_width = max(min(width, height * crop[1] // crop[0]), 1)
    top, left = (height - part_height) // 2, (width - part_width) // 2
    return left, top, left + part_width, top + part_height


def resized_part(
    image: Image.Image, box: tuple[int, int, int, int], size: Size, interpolation: str
) -> np.ndarray:
    """Resize a part of an image; the filter sees the pixels around the part too.

    As `Image.resize` with `box` (left, top, right, bottom), rows first.
    """
    method = Image.Resampling(INTERPOLATIONS[interpolation])
    (left, top, right, bottom), (height, width) = box, size
    if interpolation in OVERSHOOTING:
        rows = (left, 0, right, image.height)
        image = image.resize((width, image.height), method, box=rows)
        left, right = 0, width
    return np.asarray(
        image.resize((width, height), method, box=(left, top, right, bottom))
    )


def bilinear_crops(
    image: Image.Image, full: Size, crop: Size, corners: list[Size]
) -> np.ndarray:
    """Crops of equal size from an image resized without antialiasing.

    As TensorFlow's `resize_bilinear` with half-pixel centres, in single precision,
    rounded to whole levels; see `resized_crops` for the parameters.
    """
    pixels = np.asarray(image)
    upper, lower, y_share = _neighbours(image.height, full[0])
    before, after, x_share = _neighbours(image.width, full[1])
    crops = np.zeros((len(corners), *crop, 3), np.uint8)
    for out, (top, left) in zip(crops, corners, strict=True):
        # The part of the crop that is inside of the resized image.
        y = np.arange(max(top, 0), min(top + crop[0], full[0]))
        x = np.arange(max(left, 0), min(left + crop[1], full[1]))
        share = x_share[x][:, None]
        first, last = (
            _blend(pixels[rows][:, before[x]], pixels[rows][:, after[x]], share)
            for rows in (upper[y], lower[y])
        )
        blended = _blend(first, last, y_share[y][:, None, None])
        inside = out[y[0] - top : y[-1] + 1 - top, x[0] - left : x[-1] + 1 - left]
        np.rint(blended, out=inside, casting="unsafe")
    return crops


def _neighbours(length: int, resized: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions before and after each resized one, and the share of the latter."""
    scale = np.float32(length) / np.float32(resized)
    at = (np.arange(resized, dtype=np.float32) + np.float32(0.5)) * scale
    at -= np.float32(0.5)
    floor = np.floor(at)
    before = np.maximum(floor, 0).astype(np.intp)
    after = np.minimum(np.ceil(at), length - 1).astype(np.intp)
    return before, after, at - floor


def _blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Linear interpolation, in single precision."""
    start = first.astype(np.float32)
    blended: np.ndarray = start + (second.astype(np.float32) - start) * share
    return blended


# -- the resize as matrices, for a GPU -----------------------------------------


class Coefficients(NamedTuple):
    """What resizes an image along a side: `matrix` times the pixels from `start` on.

    `matrix` is read-only and of shape (n_resized, n_pixels).
    """

    matrix: np.ndarray
    start: int


@lru_cache(maxsize=8)
def coefficients(
    length: int,
    resized: int,
    first: int,
    count: int,
    interpolation: str,
    box: tuple[int, int] | None = None,
    mirrored: bool = False,
) -> Coefficients | None:
    """Pillow's coefficients for a part of the resized pixels along a side.

    They sum to one in each row. Pillow rounds them to 22 bits, and each pass to whole
    levels.

    Parameters
    ----------
    length, resized : int
        Pixels before and after the resize.
    first, count : int
        The part of the resized pixels.
    interpolation : str
        A key of `INTERPOLATIONS`.
    box : (int, int) or None
        Start and end of what is resized; the whole side by default. The filter sees
        the pixels around it too.
    mirrored : bool
        Whether the pixels before the resize come in reverse order.

    Returns
    -------
    Coefficients or None
        None if the interpolation has none ("nearest"), or they take too much memory.
    """
    if interpolation not in _FILTERS:
        return None
    weight, radius = _FILTERS[interpolation]
    start, end = box or (0, length)
    factor = (end - start) / resized
    stretch = max(factor, 1.0)
    center = start + (np.arange(first, first + count) + 0.5) * factor
    low = np.maximum(np.floor(center - radius * stretch + 0.5), 0).astype(np.intp)
    high = np.minimum(np.floor(center + radius * stretch + 0.5), length).astype(np.intp)
    begin, size = int(low.min()), int(high.max() - low.min())
    if count * size > _MAX_COEFFICIENTS:
        return None
    taps = low[:, None] + np.arange(int((high - low).max()))
    weights = weight((taps - center[:, None] + 0.5) / stretch)
    weights *= taps < high[:, None]
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((count, size), np.float32)
    inside = taps < high[:, None]
    rows = np.broadcast_to(np.arange(count)[:, None], taps.shape)
    matrix[rows[inside], taps[inside] - begin] = weights[inside]
    if mirrored:
        begin = length - begin - size
        matrix = np.ascontiguousarray(matrix[:, ::-1])
    matrix.flags.writeable = False
    return Coefficients(matrix, begin)


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, 1 - np.abs(x), 0)


def _hamming(x: np.ndarray) -> np.ndarray:
    window = 0.54 + 0.46 * np.cos(np.pi * x)
    return np.where(np.abs(x) < 1, np.sinc(x) * window, 0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


# Weight at a distance in pixels, and radius.
_FILTERS = {
    "box": (_box, 0.5),
    "bilinear": (_bilinear, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
