"""Nearest neighbours of codes, in bounded memory, for all findings."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

from sk_cnncodes.backbones.norms import apply_norm

# Rows that are normalised at once.
_CHUNK = 4096


def unit_codes(codes: np.ndarray) -> np.ndarray:
    """Codes of unit length after signed roots and without their mean.

    Without the mean, which all images share, products tell more: of cnncodes-mini's
    codes, those of different photographs spread from 0.9 and more to 0.

    Parameters
    ----------
    codes : ndarray or memmap, shape (n_images, n_features)

    Returns
    -------
    ndarray of float32, shape (n_images, n_features)
        Their products are cosines.
    """
    units = np.empty(codes.shape, np.float32)
    for start in range(0, len(codes), _CHUNK):
        part = slice(start, start + _CHUNK)
        units[part] = apply_norm(np.asarray(codes[part], np.float32), "power")
    mean = units.mean(axis=0, dtype=float).astype(np.float32)
    for start in range(0, len(codes), _CHUNK):
        part = slice(start, start + _CHUNK)
        units[part] = apply_norm(units[part] - mean, "l2")
    return units


def nearest(units: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other rows of each row, and their cosines.

    Parameters
    ----------
    units : ndarray of float32, shape (n_images, n_features)
        As of `unit_codes`.
    count : int
        At most n_images - 1 are found.

    Returns
    -------
    rows : ndarray of int, shape (n_images, n_found)
        The nearest first.
    cosines : ndarray of float, shape (n_images, n_found)

    Notes
    -----
    Takes the products of all pairs, a chunk of them at a time.
    """
    count = min(count, len(units) - 1)
    if count < 1:
        return np.zeros((len(units), 0), int), np.zeros((len(units), 0))
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(units)
    distances, rows = search.kneighbors()  # of the rows themselves, without themselves
    return rows, 1 - distances**2 / 2
