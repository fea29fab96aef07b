"""Copies of images: exact ones by digest, near ones by code and pixels; and bursts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sk_cnncodes.inspection.findings import Bursts, DuplicateImages


def find_duplicates(
    images: Sequence[Any],
    codes: np.ndarray,
    labels: Any = None,
    *,
    digests: Sequence[bytes] | None = None,
) -> list[DuplicateImages]:
    """Find images that are the same, or nearly the same, photograph.

    Parameters
    ----------
    images : sequence
        Paths, arrays or other elements of X; opened only where codes are near.
    codes : ndarray of float32, shape (n_images, n_features)
        Of layer -1, or another layer, without norm.
    labels : array-like, shape (n_images,), or None, default=None
    digests : sequence of bytes or None, default=None
        Of the images, as of `image_digests`; None compares codes alone.

    Returns
    -------
    list of DuplicateImages
        Contradictions first, then exact ones, then the largest.
    """
    raise NotImplementedError


def duplicate_groups(
    duplicates: Sequence[DuplicateImages], n_images: int, groups: Any = None
) -> np.ndarray:
    """Numbers of groups that keep duplicates, and given groups, on one side of a split.

    Parameters
    ----------
    duplicates : sequence of DuplicateImages
    n_images : int
    groups : array-like, shape (n_images,), or None, default=None
        Groups that share a duplicate become one.

    Returns
    -------
    ndarray of int, shape (n_images,)
    """
    raise NotImplementedError


def find_bursts(duplicates: Sequence[DuplicateImages], labels: Any) -> Bursts | None:
    """Tell whether many images have a near duplicate of the same class."""
    raise NotImplementedError
