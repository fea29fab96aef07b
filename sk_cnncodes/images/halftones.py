"""Recognise JPEG files with hard edges all over: halftones, line art, screenshots.

Decoded at a fraction of its size, a dot screen or a hatching becomes a smooth gray, and
after the resize it has another gray and other moire patterns than the full size; the
cosine of the codes goes down to 0.95. Photographs do not have such edges: they are
blurred by the lens, or by the interpolation of the sensor's colours.

The edges can be seen at full size only, whose decoding takes twice as long. So cheap
hints, which few photographs give, come first.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from PIL import Image

from sk_cnncodes.images.file_parts import FRAMES, START_OF_SCAN, jpeg_segments

_LEAST_SIDE = 128
_QUANTISATION_TABLE, _END_OF_IMAGE = 0xDB, b"\xff\xd9"
# In levels of 255, of any channel. 1 of 135 photographs has such a step between so many
# neighbouring pixels, and no hint leads to it; all halftones, line art and screenshots
# with a cosine below 0.999 have.
_HARD_STEP, _HARD_SHARE = 64, 0.023
# Values near black and white: 93% of a bilevel image with strong compression, rarely so
# many of a photograph, and then of a clear or a dark sky.
_BLACK, _WHITE, _BILEVEL_SHARE = 32, 223, 0.9
# Differences between channels of a gray pixel, which the compression leaves.
_GRAY_LEVELS, _COLOURED_SHARE = 8, 0.01
# Of screenshots and pages, the most common value has half of the pixels, and 6% differ
# strongly from their neighbour; of objects before a white wall, 2%.
_BACKGROUND_SHARE, _CONTOUR_STEP, _CONTOUR_SHARE = 0.4, 32, 0.04
# So many rows are looked at of a smaller decode; at full size each 29th row or column,
# as dot screens have other periods.
_DRAFT_ROWS, _SAMPLING = 24, 29


def header_hints_at_halftone(content: bytes) -> bool:
    """Whether a JPEG file has one channel, or more bits than photographs have.

    Only of files that can be decoded at half their size, for a network whose input has
    at least 32 x 32 pixels.

    Parameters
    ----------
    content : bytes
        Of a JPEG file, maybe damaged.
    """
    step, height, width, n_channels = 1.0, 0, 0, 0
    for marker, start in jpeg_segments(content):
        if marker == _QUANTISATION_TABLE and step == 1.0:
            table = content[start + 1 : start + 65]
            step = math.exp(sum(math.log(max(q, 1)) for q in table) / 64)
        elif marker in FRAMES:
            frame = content[start : start + 6].ljust(6, b"\0")
            height, width, n_channels = struct.unpack_from(">HHB", frame, 1)
        elif marker == START_OF_SCAN:
            if height % 2 or width % 2 or min(height, width) < _LEAST_SIDE:
                return False
            if n_channels == 1:
                return True
            # Above all photographs: 7.2 bits per pixel where the quantisation is in
            # steps of 1, 1.3 bits less for each doubling.
            many = height * width / 8 * max(7.2 - 1.3 * math.log2(step), 2.2)
            # Other images, or a film, may follow after the end of the image.
            return (
                len(content) - start > many
                and content.find(_END_OF_IMAGE, start) - start > many
            )
    return False


def pixels_hint_at_halftone(draft: Image.Image) -> bool:
    """Whether an image decoded at a fraction of its size is gray, or like a page.

    A page has a background, a value of many of its pixels, and many contours.
    """
    size = (draft.width, min(draft.height, _DRAFT_ROWS))
    rows = np.asarray(draft.resize(size, Image.Resampling.NEAREST).convert("RGB"))
    red, green, blue = np.moveaxis(rows.astype(np.int16), 2, 0)
    spread = np.maximum(np.abs(red - green), np.abs(blue - green))
    is_gray = (spread > _GRAY_LEVELS).mean() < _COLOURED_SHARE
    counts = np.convolve(np.bincount(green.ravel()), np.ones(3))
    if is_gray or counts.max() < _BACKGROUND_SHARE * green.size:
        return bool(is_gray)
    contours = np.abs(np.diff(green, axis=1)) > _CONTOUR_STEP
    return bool(contours.mean() > _CONTOUR_SHARE)


def has_hard_edges(image: Image.Image) -> bool:
    """Whether many neighbouring pixels of an image at full size differ strongly.

    Half as many are enough if nearly all pixels are black or white.
    """
    width, height = image.size
    rows, columns = max(1, height // _SAMPLING), max(1, width // _SAMPLING)
    for axis, size in ((1, (width, rows)), (0, (columns, height))):
        lines = image.resize(size, Image.Resampling.NEAREST)
        pixels = np.asarray(lines if lines.mode == "L" else lines.convert("RGB"))
        pixels = pixels.reshape(*size[::-1], -1).astype(np.int16)
        steps = np.abs(np.diff(pixels, axis=axis)).max(axis=2)
        extreme = (pixels < _BLACK) | (pixels > _WHITE)
        is_bilevel = extreme.mean() > _BILEVEL_SHARE
        enough = _HARD_SHARE / 2 if is_bilevel else _HARD_SHARE
        if (steps > _HARD_STEP).mean() > enough:
            return True
    return False
