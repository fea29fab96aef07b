"""The validation part: which images it has, their scores, and what a gain is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sk_cnncodes.heads.head_comparison import make_splits
from sk_cnncodes.ranking.notes import group_numbers
from sk_cnncodes.ranking.scoring import (
    Targets,
    is_worse,
    numbered,
    sample_scores,
    standard_error,
)

# Images with values to regress, half of them to train: one alone does not vary.
_FEWEST = 4


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
        From 0 on.
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

    def groups_of(self, rows: np.ndarray) -> np.ndarray | None:
        """What is left out together of some images; None where that is all of them."""
        if self.groups is None or len(np.unique(self.groups[rows])) < 2:
            return None
        found: np.ndarray = self.groups[rows]
        return found

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

    def decide(self, frozen: np.ndarray, tuned: np.ndarray) -> Decision:
        """Compare predictions of the validation images, by the score."""
        targets = self.targets.take(self.valid)
        weights, scoring = self.weights[self.valid], "accuracy"
        if targets.kind == "regression":
            weights, scoring = None, "r2"
        groups = None if self.groups is None else numbered(self.groups[self.valid])
        return decide(frozen, tuned, targets, scoring, weights=weights, groups=groups)

    def loss(self, values: np.ndarray) -> float:
        """What chooses the epoch.

        The log-loss of validation images with the temperature that suits it, or their
        squared error over the spread.
        """
        targets = self.targets.take(self.valid)
        if targets.kind == "regression":
            errors = (values - targets.values) / self.spread
            losses = (errors**2).mean(axis=1)
        else:
            losses = -sample_scores(values, targets, "neg_log_loss")
        return float(np.average(losses, weights=self.weights[self.valid]))


@dataclass(frozen=True)
class Decision:
    """Whether the tuned model is taken, and why.

    Attributes
    ----------
    tuned : bool
    frozen_score, tuned_score : float
        Of the validation part.
    error : float
        Standard error of their difference.
    losses : (float, float) or None
        Log-loss of the frozen and of the tuned model, each with the temperature that
        suits it; None for values.
    """

    tuned: bool
    frozen_score: float
    tuned_score: float
    error: float
    losses: tuple[float, float] | None

    @property
    def gain(self) -> float:
        """Difference of the scores."""
        return self.tuned_score - self.frozen_score

    def compared(self, factor: float, unit: str) -> str:
        """The gain in words, with scores multiplied by a factor."""
        text = (
            f"{factor * self.gain:+.2f}{unit}, with a standard error of "
            f"{factor * self.error:.2f}"
        )
        if self.losses is None:
            return text
        frozen, tuned = self.losses
        return f"{text}; log-loss {tuned:.3f} against {frozen:.3f}"

    @property
    def rule(self) -> str:
        """What a tuned model needs, in words."""
        what = "log-loss" if self.losses else "score"
        return (
            f"A tuned model is taken if its score is higher and its {what} better by "
            "more than chance (a paired t test at 5%)."
        )


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
        If a part would be empty, or have only one class or value.
    """
    if groups is not None:
        check_given(
            "groups", groups, "Give images that belong to none one of their own"
        )
        groups = group_numbers(groups, len(y))
    # What has no weight is neither trained on nor counted, and takes no other's place.
    used = np.flatnonzero(weights > 0)
    some = targets.take(used)
    if targets.kind == "classification":
        sizes = np.bincount(some.numbers)
        if sizes.max() < 2:
            raise ValueError(
                f"y: expected at least 2 images of two or more of the {len(sizes)} "
                "classes, one to train and one to validate, got one of each."
            )
    elif len(used) < _FEWEST:
        raise ValueError(
            f"y: expected values of at least {_FEWEST} images, 2 to train and 2 to "
            f"validate, got {len(used)}."
        )
    splits = make_splits(
        round(1 / fraction),
        *(some, y[used], None if groups is None else groups[used], seed),
        all_classes=False,
    )
    train, valid = splits[0]
    valid = np.setdiff1d(valid, train)
    train, valid = used[train], used[valid]
    _check_part("validation", valid, targets, fraction, groups)
    _check_part("training", train, targets, fraction, groups)
    return Parts(train, valid, targets, weights, groups)


def check_given(name: str, values: Any, cure: str) -> None:
    """Refuse None and NaN beside names: they cannot be sorted."""
    values = np.atleast_1d(np.asarray(values))
    if values.dtype != object:
        return
    missing = [
        row
        for row, value in enumerate(values)
        if value is None or (isinstance(value, float) and math.isnan(value))
    ]
    if missing:
        raise ValueError(
            f"{name}: expected one for each image, got {values[missing[0]]} for "
            f"{len(missing)} of {len(values)}, first at position {missing[0]}. {cure}."
        )


def _check_part(
    name: str, rows: np.ndarray, targets: Targets, fraction: float, groups: Any
) -> None:
    """Refuse a part in which there is nothing to tell apart."""
    if targets.kind == "regression":
        values = targets.values[rows]
        if len(rows) and (np.ptp(values, axis=0) > 0).any():
            return
        raise ValueError(
            f"y: the {name} part of {len(rows)} images needs at least 2 different "
            f"values, got fewer with validation_fraction={fraction:g}. Expected more "
            f"images{'' if groups is None else ' or groups'}, or another "
            "validation_fraction (up to 0.5) or random_state."
        )
    found = targets.classes[np.unique(targets.numbers[rows])].tolist()
    if len(found) < 2:
        got = f"only {found[0]!r}" if found else "none"
        cure = "several groups of each class" if groups is not None else ""
        raise ValueError(
            f"y: the {name} part of {len(rows)} images needs at least 2 classes, got "
            f"{got}. Expected {cure or 'at least 2 images of two or more classes'}, or "
            "another validation_fraction or random_state."
        )


def decide(
    frozen: np.ndarray,
    tuned: np.ndarray,
    targets: Targets,
    scoring: str,
    *,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Decision:
    """Take the tuned model if it is better by more than chance on the same images.

    Its score must be higher, and its log-likelihood higher by a paired t test at 5%;
    for values, R2. Hits alone tell too little: a few images more that are right can be
    chance, and a likelihood says of each image how much better it is.

    Parameters
    ----------
    frozen, tuned : ndarray of float, shape (n_images, n_targets)
        Logits, or values, of images that neither was trained on.
    targets : Targets
        Of these images.
    scoring : str
    weights : ndarray of float, shape (n_images,), or None
    groups : ndarray of int, shape (n_images,), or None
        From 0 on; what varies by chance.
    """
    both = np.stack([frozen, tuned])
    scores = evidence = sample_scores(both, targets, scoring)
    classifies = targets.kind == "classification"
    if classifies:
        evidence = sample_scores(both, targets, "neg_log_loss")
    if weights is not None:
        scores, evidence = (
            each * weights / weights.mean() for each in (scores, evidence)
        )
    found, losses = scores.mean(axis=1), -evidence.mean(axis=1)
    return Decision(
        tuned=bool(found[1] > found[0]) and is_worse(evidence[0], evidence[1], groups),
        frozen_score=float(found[0]),
        tuned_score=float(found[1]),
        error=standard_error(scores[1] - scores[0], groups),
        losses=(float(losses[0]), float(losses[1])) if classifies else None,
    )
