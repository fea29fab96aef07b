"""Audit labelled images: duplicates, suspect labels, outliers, class sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sk_cnncodes.base.public import public
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.inspection.findings import (
    Bursts,
    ClassSize,
    DuplicateImages,
    Outlier,
    SuspectLabel,
)


@public
@dataclass(frozen=True, repr=False, eq=False)
class Audit:
    """What is noteworthy about labelled images; see `audit`.

    Attributes
    ----------
    images : sequence
        As given; findings name them by position.
    labels : ndarray or None
    groups : ndarray or None
        As given.
    duplicates : tuple of DuplicateImages
        Exact and near ones; those under several labels first.
    suspects : tuple of SuspectLabel
        The most suspect first.
    outliers : tuple of Outlier
        The farthest first.
    class_sizes : tuple of ClassSize
        The largest first.
    bursts : Bursts or None
        None if groups were given, or few images are near duplicates.
    warnings : tuple of str
        Sentences, the most important first.
    scenes : ndarray of int, shape (n_images,)
        Group numbers that keep duplicates and given groups together.
    """

    images: Sequence[Any]
    labels: np.ndarray | None
    groups: np.ndarray | None
    duplicates: tuple[DuplicateImages, ...]
    suspects: tuple[SuspectLabel, ...]
    outliers: tuple[Outlier, ...]
    class_sizes: tuple[ClassSize, ...]
    bursts: Bursts | None
    warnings: tuple[str, ...]
    scenes: np.ndarray


@public
def audit(
    images: Any,
    labels: Any = None,
    groups: Any = None,
    *,
    backbone: Any = "cnncodes-mini",
    layer: Any = -1,
    cache: str | os.PathLike[str] | CodeCache | None = "memory",
    device: str = "auto",
    n_jobs: int | None = -1,
    verbose: bool = False,
) -> Audit:
    """Find duplicates, suspect labels and outliers among images."""
    raise NotImplementedError


def audit_codes(
    images: Sequence[Any],
    codes: np.ndarray,
    labels: Any = None,
    groups: Any = None,
    *,
    digests: Sequence[bytes] | None = None,
    probabilities: np.ndarray | None = None,
) -> Audit:
    """Audit images whose codes are known."""
    raise NotImplementedError
