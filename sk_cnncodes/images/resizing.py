"""Resize and crop with Pillow, rows first: what a backbone sees of an image.

The pixels are those of resizing the whole image and cropping it then, as the backbones'
own libraries do, but what the crop leaves out is seldom computed.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

# Numbers of PIL.Image.Resampling, which Hugging Face writes to its files.
INTERPOLATIONS = {
    "nearest": 0,
    "lanczos": 1,
    "bilinear": 2,
    "bicubic": 3,
    "box": 4,
    "hamming": 5,
}
# Interpolations that jump: a box inside of the resize would move their pixels.
JUMPING = ("nearest", "box")
# Filters that go beyond the values of an image, where they are cut off after each pass,
# and how many pixels they reach. The order of the passes then matters: first along the
# rows, as in all versions of Pillow before 13, which takes the quicker order.
_OVERSHOOTING = {"bicubic": 2, "lanczos": 3}
# Pixels of an image that may be resized as a whole.
_MOST_RESIZED = 2**24

Size = tuple[int, int]


def resized_crops(
    image: Image.Image,
    full: Size,
    crop: Size,
    corners: list[Size],
    interpolation: str,
) -> np.ndarray:
    """Crops of one size of a resized image.

    Of a single crop, the longer side is cropped inside of the resize, so that pixels
    outside of it are never computed. Pillow keeps such a box in single precision: the
    result is that of resizing first, within one level; seldom two with "bicubic" and
    "lanczos", whose second pass can double what the first rounds. A box along both
    sides would add up to two. With "nearest" and "box", which jump, the image is
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
        Top and left of each; what lies outside of the image is black.
    interpolation : str
        A key of `INTERPOLATIONS`.

    Returns
    -------
    ndarray of uint8, shape (n_crops, height, width, 3)
    """
    height, width = crop
    fits = full[0] * full[1] <= _MOST_RESIZED
    unchanged = full == (image.height, image.width)
    padded = full[0] <= height and full[1] <= width
    whole = interpolation in JUMPING or len(corners) > 1
    if unchanged or padded or (whole and fits):
        if not unchanged:
            method = Image.Resampling(INTERPOLATIONS[interpolation])
            image = image.resize(full[::-1], method)
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


def _resized_crop(
    image: Image.Image, full: Size, crop: Size, corner: Size, interpolation: str
) -> Image.Image:
    """A crop taken inside of the resize, along the side that it shortens more."""
    (height, width), (top, left) = crop, corner
    method = Image.Resampling(INTERPOLATIONS[interpolation])
    overshoots = interpolation in _OVERSHOOTING
    if full[1] - width >= full[0] - height:
        start, end, _ = _box_side(image.width, full[1], left, width)
        box = (start, 0.0, end, float(image.height))
        if overshoots:
            image = image.resize((width, image.height), method, box=box)
            box = (0.0, 0.0, float(width), float(image.height))
        wide = image.resize((width, full[0]), method, box=box)
        return wide.crop((0, top, width, top + height))
    start, end, factor = _box_side(image.height, full[0], top, height)
    box = (0.0, start, float(image.width), end)
    if overshoots:
        # Only the rows that the crop needs, with those that the filter reaches.
        reach = math.ceil(_OVERSHOOTING[interpolation] * max(factor, 1)) + 1
        first = max(math.floor(start) - reach, 0)
        last = min(math.ceil(end) + reach, image.height)
        rows = (0.0, float(first), float(image.width), float(last))
        image = image.resize((full[1], last - first), method, box=rows)
        box = (0.0, start - first, float(full[1]), end - first)
    high = image.resize((full[1], height), method, box=box)
    return high.crop((left, 0, left + width, height))


def _box_side(
    length: int, resized: int, start: int, cropped: int
) -> tuple[float, float, float]:
    """Start and end of a crop along a side before the resize, and pixels per pixel."""
    factor = length / resized
    return start * factor, min((start + cropped) * factor, length), factor
