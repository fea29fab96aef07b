"""Whether two images show the same pixels: one may be cropped, scaled or recompressed.

The middle of a thumbnail is looked for in the other one, in all places and at several
sizes, by normalised cross-correlation. Thumbnails are gray and band-passed, so that
neither brightness nor compression matters; a mirrored image is found too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from PIL import Image
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter

from sk_cnncodes.base.threads import OrderedThreadPool
from sk_cnncodes.images.containers import fetch_element
from sk_cnncodes.images.decode import read_rgb

# Sides of a thumbnail. With 32, copies at the same size were missed; with 64, which
# takes twice as long, hardly more was found.
_SIDE = 48
# Standard deviations of the band-pass, in pixels of the thumbnail.
_FINE, _COARSE = 0.8, 3.0
# The part of a thumbnail that is looked for, and the sizes at which it is: a smaller
# one in the other, in both directions.
_MIDDLE = 0.7
_SCALES = np.exp(np.arange(np.log(0.6), np.log(1.05), 0.075))
# Less contrast than this, in gray values, is no evidence.
_LEAST_CONTRAST = 1.0
# Pairs that are compared at once: 10 MB each of several arrays.
_CHUNK = 512


def thumbnails(
    images: Sequence[Any], rows: Sequence[int], n_jobs: int | None = -1
) -> np.ndarray:
    """Gray thumbnails of some images, shape (n_rows, 48, 48), uint8.

    Raises
    ------
    ImageError
        If an image cannot be read.
    """
    found = np.zeros((len(rows), _SIDE, _SIDE), np.uint8)

    def read(position: int) -> None:
        row = int(rows[position])
        rgb = read_rgb(fetch_element(images, row), row, None, _decode_size)
        small = min(rgb.size) < 2 * _SIDE
        kernel = Image.Resampling.BILINEAR if small else Image.Resampling.BOX
        found[position] = np.asarray(rgb.convert("L").resize((_SIDE, _SIDE), kernel))

    n_threads = effective_n_jobs(n_jobs)
    with OrderedThreadPool(n_threads, "thumbnails") as pool:
        for _ in pool.in_order(read, range(len(rows)), 4 * n_threads):
            pass
    return found


def _decode_size(height: int, width: int) -> tuple[int, int]:
    return min(height, 2 * _SIDE), min(width, 2 * _SIDE)


def pixel_similarity(
    first: np.ndarray, second: np.ndarray, mirrored: bool = False
) -> np.ndarray:
    """How well the middle of one thumbnail is found in the other, for each pair.

    Parameters
    ----------
    first, second : ndarray of uint8, shape (n_pairs, 48, 48)
    mirrored : bool, default=False
        Whether the second ones are mirrored.

    Returns
    -------
    ndarray of float, shape (n_pairs,)
        The largest correlation, at most 1; 0 or less without contrast.
    """
    parts = []
    for start in range(0, len(first), _CHUNK):
        a = _band_passed(first[start : start + _CHUNK])
        b = _band_passed(second[start : start + _CHUNK])
        b = np.ascontiguousarray(b[:, :, ::-1]) if mirrored else b
        parts.append(np.maximum(_best_match(a, b), _best_match(b, a)))
    return np.concatenate(parts) if parts else np.zeros(0)


def _band_passed(thumbs: np.ndarray) -> np.ndarray:
    pixels = thumbs.astype(np.float32)
    fine = gaussian_filter(pixels, (0, _FINE, _FINE))
    passed: np.ndarray = fine - gaussian_filter(pixels, (0, _COARSE, _COARSE))
    return passed


def _best_match(fields: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Largest correlation of the middle of each pattern within its field."""
    best = np.full(len(fields), -1.0)
    spectra = rfft2(fields)
    pad = ((0, 0), (1, 0), (1, 0))
    sums = np.pad(fields.astype(float), pad).cumsum(axis=1).cumsum(axis=2)
    squares = np.pad(fields.astype(float) ** 2, pad).cumsum(axis=1).cumsum(axis=2)
    # A place without contrast correlates with anything.
    least = 0.1 * (fields**2).mean(axis=(1, 2))[:, None, None] + _LEAST_CONTRAST**2
    for resample in _RESAMPLERS:
        size = len(resample)
        middle = resample @ patterns @ resample.T
        middle -= middle.mean(axis=(1, 2), keepdims=True)
        norms = np.sqrt((middle**2).sum(axis=(1, 2)) + (_LEAST_CONTRAST * size) ** 2)
        shape = (_SIDE, _SIDE)
        products = irfft2(spectra * rfft2(middle, shape).conj(), shape)
        valid = products[:, : _SIDE - size + 1, : _SIDE - size + 1]
        variances = _boxes(squares, size) - _boxes(sums, size) ** 2 / size**2
        np.maximum(variances, least * size**2, out=variances)
        matches = valid / np.sqrt(variances) / norms[:, None, None]
        best = np.maximum(best, matches.max(axis=(1, 2)))
    return best


def _boxes(sums: np.ndarray, size: int) -> np.ndarray:
    """Sums over all squares of a size, from cumulated sums."""
    right = sums[:, :, size:] - sums[:, :, :-size]
    boxes: np.ndarray = right[:, size:] - right[:, :-size]
    return boxes


def _resampler(size: int) -> np.ndarray:
    """Matrix that resizes the middle of a side linearly."""
    margin = (1 - _MIDDLE) / 2 * _SIDE
    step = (_SIDE - 2 * margin) / size
    places = margin + (np.arange(size)[:, None] + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(_SIDE) - places) / max(1, step))
    matrix: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return matrix.astype(np.float32)


_RESAMPLERS = [
    _resampler(size)
    for size in dict.fromkeys(round(_MIDDLE * _SIDE * float(each)) for each in _SCALES)
]
