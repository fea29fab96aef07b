"""Labels that models and neighbours disagree with, and images like no other."""

from __future__ import annotations

from typing import Any

import numpy as np

from sk_cnncodes.inspection.findings import Outlier, SuspectLabel


def find_suspect_labels(
    codes: np.ndarray,
    labels: Any,
    groups: Any = None,
    *,
    probabilities: np.ndarray | None = None,
) -> list[SuspectLabel]:
    """Rank labels by how sure models without the image are that they are wrong.

    Parameters
    ----------
    codes : ndarray of float32, shape (n_images, n_features)
    labels : array-like, shape (n_images,)
    groups : array-like, shape (n_images,), or None, default=None
        Images of a group are no witnesses of each other.
    probabilities : ndarray, shape (n_images, n_classes), or None, default=None
        Out-of-fold probabilities of the sorted classes, as
        `CNNCodeClassifier.cv_predictions_`; None computes them.

    Returns
    -------
    list of SuspectLabel
        The most suspect first; only images of which another class is more probable.
    """
    raise NotImplementedError


def find_outliers(codes: np.ndarray, groups: Any = None) -> list[Outlier]:
    """Find images whose nearest neighbours are unusually far, the farthest first."""
    raise NotImplementedError
