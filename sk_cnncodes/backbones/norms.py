"""Norms: the last step of a code, computed from what the network gives."""

from __future__ import annotations

import numpy as np

NORMS: tuple[str | None, ...] = ("l2", "power", None)


def apply_norm(codes: np.ndarray, norm: str | None) -> np.ndarray:
    """Normalise codes.

    Parameters
    ----------
    codes : ndarray of float32, shape (n_images, d)
    norm : "l2", "power" or None
        "l2" scales each code to unit Euclidean length, "power" the signed square roots
        of its values; a code of zeros stays one.

    Returns
    -------
    ndarray of float32, shape (n_images, d)
    """
    if norm is None:
        return codes
    if norm == "power":
        codes = signed_roots(codes)
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    scaled: np.ndarray = codes / np.where(lengths == 0, 1, lengths)
    return scaled


def side_by_side(parts: list[np.ndarray], norm: str | None) -> np.ndarray:
    """Codes of one or several layers, each normalised by itself, in one matrix."""
    normalised = [apply_norm(part, norm) for part in parts]
    return normalised[0] if len(parts) == 1 else np.concatenate(normalised, axis=1)


def signed_roots(codes: np.ndarray) -> np.ndarray:
    """The square roots of the magnitudes of values, with the signs of the values."""
    roots: np.ndarray = np.copysign(np.sqrt(np.abs(codes)), codes)
    return roots
