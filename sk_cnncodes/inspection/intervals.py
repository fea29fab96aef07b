"""95% intervals of accuracies: Wilson's, with fewer images where these are grouped."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from sk_cnncodes.ranking.scoring import standard_error

Interval = tuple[float, float]


def accuracy_interval(right: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """95% interval of the share of right predictions.

    Parameters
    ----------
    right : ndarray of bool, shape (n_images,)
    groups : array-like, shape (n_images,), or None, default=None
        Images of a group are right or wrong together.

    Returns
    -------
    (low, high) : tuple of float
        Wilson's score interval. With groups, it is that of as many independent images
        as have the cluster-robust variance: at most the images, and the groups where
        all images are right, or wrong; with Student's quantile for that many groups.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_cnncodes.inspection.intervals import accuracy_interval
    >>> right = np.arange(100) < 90
    >>> [round(each, 3) for each in accuracy_interval(right)]
    [0.826, 0.945]
    >>> [round(each, 3) for each in accuracy_interval(right, np.arange(100) // 10)]
    [0.523, 0.987]
    """
    right = np.asarray(right, float)
    if groups is None:
        return _wilson(float(right.mean()), len(right), 1.96)
    return _of_samples(right, np.asarray(groups), len(right))


def balanced_interval(
    right: np.ndarray, numbers: np.ndarray, groups: np.ndarray | None = None
) -> Interval:
    """95% interval of the balanced accuracy.

    Parameters
    ----------
    right : ndarray of bool, shape (n_images,)
    numbers : ndarray, shape (n_images,)
        The true class of each image.
    groups : array-like, shape (n_images,), or None, default=None

    Returns
    -------
    (low, high) : tuple of float
        As of `accuracy_interval`, for the variance of a mean over classes. Classes of
        few images, which may be right by luck, count as uncertain as all together.
    """
    numbers = np.unique(numbers, return_inverse=True)[1]
    counts = np.bincount(numbers)
    hits = np.asarray(right, float)
    means = np.bincount(numbers, hits) / counts
    # What each image adds to the score, whose mean is the score.
    samples = means.mean() + (hits - means[numbers]) * len(hits) / (
        counts[numbers] * len(counts)
    )
    most = len(counts) ** 2 / (1 / counts).sum()
    return _of_samples(samples, None if groups is None else np.asarray(groups), most)


def mean_interval(values: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """95% interval of a mean, such as that of absolute errors, by Student's t.

    Parameters
    ----------
    values : ndarray of float, shape (n_images,)
        Not negative.
    groups : array-like, shape (n_images,), or None, default=None

    Returns
    -------
    (low, high) : tuple of float
        With groups, by the cluster-robust standard error.
    """
    units = None if groups is None else np.unique(groups, return_inverse=True)[1]
    n_units = len(values) if units is None else int(units.max()) + 1
    half = _quantile(n_units) * standard_error(values, units)
    mean = float(values.mean())
    return max(0.0, mean - half), mean + half


def _quantile(n_units: int) -> float:
    """Student's quantile 0.975; without a degree of freedom that of one."""
    return float(stdtrit(max(n_units - 1, 1), 0.975))


def _of_samples(
    samples: np.ndarray, groups: np.ndarray | None, most: float
) -> Interval:
    """Wilson's interval of a mean with the standard error of samples."""
    units = None if groups is None else np.unique(groups, return_inverse=True)[1]
    n_units = len(samples) if units is None else int(units.max()) + 1
    mean = min(max(float(samples.mean()), 0.0), 1.0)
    variance = standard_error(samples, units) ** 2
    count = min(most, float(n_units))
    if variance > 0 and 0 < mean < 1:
        count = min(most, mean * (1 - mean) / variance)
    return _wilson(mean, count, _quantile(n_units))


def _wilson(mean: float, count: float, quantile: float) -> Interval:
    share = quantile**2 / count
    centre = (mean + share / 2) / (1 + share)
    half = math.sqrt(mean * (1 - mean) * share + share**2 / 4) / (1 + share)
    return max(0.0, centre - half), min(1.0, centre + half)
