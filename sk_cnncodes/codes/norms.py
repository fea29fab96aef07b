"""Norms: the last step of a code, computed from what the network gives."""

from __future__ import annotations

import numpy as np

NORMS: tuple[str | None, ...] = ("l2", None)


def apply_norm(codes: np.ndarray, norm: str | None) -> np.ndarray:
    """Normalise codes.

    Parameters
    ----------
    codes : ndarray of float32, shape (n_images, d)
    norm : "l2" or None
        "l2" scales each code to unit Euclidean length; a code of zeros stays one.

    Returns
    -------
    ndarray of float32, shape (n_images, d)
    """
    if norm is None:
        return codes
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    scaled: np.ndarray = codes / np.where(lengths == 0, 1, lengths)
    return scaled
