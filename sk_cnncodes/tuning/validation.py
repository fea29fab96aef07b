"""The validation part: which images it has, their scores, and what a gain is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sk_cnncodes.heads.head_comparison import make_splits, numbered
from sk_cnncodes.ranking.scoring import (
    Targets,
    log_likelihoods,
    sample_scores,
    standard_error,
)


@dataclass(frozen=True)
class Parts:
    """Images that weights are trained on, and those that choose among them.

    Attributes
    ----------
    train, valid : ndarray of int
        Positions of images; no image, and no group, is in both.
    targets : Targets
        Of all images.
    weights : ndarray of float, shape (n_images,)
        Of the images, those of their classes included.
    groups : ndarray of int, shape (n_images,), or None
    """

    train: np.ndarray
    valid: np.ndarray
    targets: Targets
    weights: np.ndarray
    groups: np.ndarray | None

    @property
    def spread(self) -> np.ndarray:
        """The standard deviations of the targets, in the training part."""
        found: np.ndarray = self.targets.values[self.train].astype(float).std(axis=0)
        return np.where(found > 0, found, 1.0)

    def samples(self, values: np.ndarray) -> np.ndarray:
        """What each validation image adds to the score, which is their mean.

        The score is the accuracy, with the weights, or R2.
        """
        targets = self.targets.take(self.valid)
        if targets.kind == "regression":
            return sample_scores(values, targets, "r2")
        hits = sample_scores(values, targets, "accuracy")
        weights = self.weights[self.valid]
        weighted: np.ndarray = hits * weights / weights.mean()
        return weighted

    def loss(self, values: np.ndarray) -> float:
        """The log-loss of validation images, or their squared error over the spread."""
        targets = self.targets.take(self.valid)
        if targets.kind == "regression":
            errors = (values - targets.values) / self.spread
            losses = (errors**2).mean(axis=1)
        else:
            losses = -log_likelihoods(values, targets.numbers)
        return float(np.average(losses, weights=self.weights[self.valid]))


@dataclass(frozen=True)
class Decision:
    """Whether the tuned model is taken, and why.

    Attributes
    ----------
    tuned : bool
    gain, noise : float
        Difference of the validation scores, and its standard error.
    """

    tuned: bool
    gain: float
    noise: float


def make_parts(
    fraction: float,
    targets: Targets,
    y: np.ndarray,
    weights: np.ndarray,
    groups: Any,
    seed: Any,
) -> Parts:
    """Divide images, stratified by class, with groups kept together.

    Raises
    ------
    ValueError
        If the validation part would be empty, or have one class only.
    """
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != (len(y),):
            raise ValueError(
                f"groups: expected one for each of the {len(y)} images, got the shape "
                f"{groups.shape}."
            )
        groups = numbered(groups)
    if targets.kind == "classification":
        sizes = np.bincount(targets.numbers[weights > 0])
        if sizes.max() < 2:
            raise ValueError(
                f"y: expected at least 2 images of two or more of the {len(sizes)} "
                "classes, one to train and one to validate, got one of each."
            )
    splits = make_splits(
        round(1 / fraction), targets, y, groups, seed, all_classes=False
    )
    train, valid = splits[0]
    valid = np.setdiff1d(valid, train)
    # What has no weight is neither trained on nor counted.
    train, valid = (rows[weights[rows] > 0] for rows in (train, valid))
    if targets.kind == "classification":
        found = targets.classes[np.unique(targets.numbers[valid])].tolist()
        if len(found) < 2:
            got = f"only {found[0]!r}" if found else "none"
            cure = "several groups of each class" if groups is not None else ""
            raise ValueError(
                f"y: the validation part of {len(valid)} images needs at least 2 "
                f"classes, got {got}. Expected "
                f"{cure or 'at least 2 images of two or more classes'}, or another "
                "validation_fraction or random_state."
            )
    return Parts(train, valid, targets, weights, groups)


def decide(parts: Parts, frozen: np.ndarray, tuned: np.ndarray) -> Decision:
    """Take the tuned model if its gain is larger than its noise.

    The noise is the standard error of the mean difference on the same images, or of
    their groups: the rule of one standard error [1]_, with the frozen model as the
    simpler one.

    References
    ----------
    .. [1] L. Breiman, J. Friedman, R. Olshen, C. Stone, "Classification and Regression
       Trees", 1984, section 3.4.3.
    """
    differences = tuned - frozen
    groups = None if parts.groups is None else numbered(parts.groups[parts.valid])
    gain, noise = float(differences.mean()), standard_error(differences, groups)
    return Decision(gain > max(noise, 0.0), gain, noise)
