"""Resize and crop images with Pillow, rows first.

The pixels are those of resizing the whole image and then cropping it, as the backbones'
own libraries do, but pixels outside of the crop are rarely computed.
"""

from __future__ import annotations

import math

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
# pass, so the order of the passes matters: rows first, as in Pillow before 13; Pillow
# 13 uses the faster order.
_OVERSHOOTING = {"bicubic": 2, "lanczos": 3}
# Largest resized image, in pixels, that is computed as a whole.
_MAX_RESIZED_PIXELS = 2**24

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
    """Take a crop inside of the resize, along the side that it shortens more."""
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
        # Only the rows that the crop needs, including the filter's radius.
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
    """Start and end of a crop along a side before the resize, and the scale factor."""
    factor = length / resized
    return start * factor, min((start + cropped) * factor, length), factor
