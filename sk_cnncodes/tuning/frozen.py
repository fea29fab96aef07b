"""The frozen model: the best head on codes of layers that are not trained.

It is what a tuned model must beat, and what is kept if that does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from threadpoolctl import threadpool_limits

from sk_cnncodes.heads.code_choice import as_splitter
from sk_cnncodes.heads.code_estimators import CALIBRATION
from sk_cnncodes.heads.head_comparison import decision_values, make_splits
from sk_cnncodes.heads.kernel_ridge import KernelRidgeClassifierCV, KernelRidgeCV
from sk_cnncodes.tuning.head_weights import HeadWeights, ridge_start
from sk_cnncodes.tuning.validation import Parts

# Folds that calibrate RBF kernel ridge: it is fitted once more for each.
_FOLDS = 3
# What messages call them.
FROZEN_HEADS = {"ridge": "ridge", "rbf": "RBF kernel ridge"}


@dataclass(frozen=True)
class FrozenHeads:
    """Heads on frozen codes, fitted to the training part.

    Attributes
    ----------
    start : HeadWeights
        Ridge: the tuned head starts from it.
    name : {"ridge", "rbf"}
        The head with the best validation score.
    values : ndarray of float, shape (n_valid, n_targets)
        What it predicts for the validation part.
    """

    start: HeadWeights
    name: str
    values: np.ndarray


def compare_frozen(
    codes: np.ndarray, parts: Parts, y: np.ndarray, class_weight: Any, *, kernel: bool
) -> FrozenHeads:
    """Fit ridge and RBF kernel ridge to the training part, and compare them.

    Parameters
    ----------
    codes : ndarray of float32, shape (n_images, n_features)
        Power-normalised.
    parts : Parts
    y : ndarray
        Classes or values, as heads take them.
    class_weight : dict, "balanced" or None
    kernel : bool
        Whether to try the kernel: it takes no weights of single images.
    """
    train, valid = parts.train, parts.valid
    groups = parts.groups_of(train)
    # A product of several BLAS threads may differ from run to run.
    with threadpool_limits(1, user_api="blas"):
        start = fit_ridge(codes, parts, train)
        weights, bias = start.layers[0]
        found = FrozenHeads(start, "ridge", codes[valid] @ weights + bias)
        if not kernel:
            return found
        head = _kernel_head(parts.targets.kind, class_weight)
        head.fit(codes[train], y[train], groups)
        values = decision_values(head, codes[valid], parts.targets)
    if parts.samples(values).mean() > parts.samples(found.values).mean():
        return FrozenHeads(start, "rbf", values)
    return found


def fit_ridge(codes: np.ndarray, parts: Parts, rows: np.ndarray) -> HeadWeights:
    """The closed-form ridge head of some images, with their weights and groups."""
    targets = replace(parts.targets, weights=parts.weights).take(rows)
    return ridge_start(codes[rows], targets, parts.groups_of(rows))


def fit_frozen(
    name: str,
    codes: np.ndarray,
    parts: Parts,
    y: np.ndarray,
    class_weight: Any,
    seed: Any,
) -> Any:
    """Fit a frozen head to all images; a classifier has calibrated probabilities."""
    used = np.flatnonzero(parts.weights > 0)
    regresses, groups = parts.targets.kind == "regression", parts.groups_of(used)
    with threadpool_limits(1, user_api="blas"):
        if name == "ridge":
            ridge = fit_ridge(codes, parts, used)
            if regresses:
                return ridge.regressor(y.ndim == 1)
            return ridge.classifier(parts.targets.classes)
        codes, y = codes[used], y[used]
        head = _kernel_head(parts.targets.kind, class_weight)
        if regresses:
            return head.fit(codes, y, groups)
        splits = make_splits(_FOLDS, parts.targets.take(used), y, groups, seed)
        folds = as_splitter(splits, len(y))
        head = CalibratedClassifierCV(
            head, method=CALIBRATION, cv=folds, ensemble=False
        )
        return head.fit(codes, y)


def _kernel_head(kind: str, class_weight: Any) -> Any:
    if kind == "regression":
        return KernelRidgeCV()
    return KernelRidgeClassifierCV(class_weight=class_weight)
