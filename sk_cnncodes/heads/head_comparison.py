"""Compare heads on codes by cross-validation, from their out-of-fold predictions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    check_cv,
)
from sklearn.utils.validation import has_fit_parameter

from sk_cnncodes.ranking.scoring import Targets, numbered, sample_scores

Splits = list[tuple[np.ndarray, np.ndarray]]
# Added to the least value, for classes that a fold did not train.
_UNKNOWN_CLASS = -10.0


@dataclass(frozen=True)
class ComparedHead:
    """A head on some codes, and what it predicted out of fold.

    Attributes
    ----------
    codes : int
        Position of the codes.
    head : str
        Name of the head.
    values : ndarray of float, shape (n_samples, n_targets)
        Decision values of each class or label, or predicted values, of the models
        without the sample.
    score : float
    fold_scores : ndarray, shape (n_folds,)
    """

    codes: int
    head: str
    values: np.ndarray
    score: float
    fold_scores: np.ndarray


def make_splits(
    cv: Any,
    targets: Targets,
    y: np.ndarray,
    groups: np.ndarray | None,
    seed: Any,
    *,
    all_classes: bool = True,
) -> Splits:
    """The folds of a cross-validation, stratified by class, groups kept together.

    Parameters
    ----------
    cv : int, splitter or iterable
        A number of folds is lowered to that of the groups, and to the images of the
        smallest class with several. The image of a class that has only one is in all
        training parts, so that all models know the class; likewise the images of a
        class that are all of one group.
    targets : Targets
    y : ndarray, shape (n_samples,) or (n_samples, n_targets)
    groups : ndarray, shape (n_samples,), or None
    seed : int, RandomState instance or None
        Shuffles.
    all_classes : bool, default=True
        Whether each fold tests each class with several images; otherwise a small class
        does not lower the number of folds.
    """
    splitter: Any
    if not isinstance(cv, (int, np.integer)):
        splitter = check_cv(cv, y, classifier=targets.kind == "classification")
        return list(splitter.split(np.zeros(len(y)), y, groups))
    if cv < 2:
        raise ValueError(f"cv: expected at least 2 folds, got {cv}.")
    n_folds = min(int(cv), len(y) if groups is None else len(np.unique(groups)))
    if n_folds < 2:
        raise ValueError("groups: expected at least 2, got 1.")
    shuffled: dict[str, Any] = {"shuffle": True, "random_state": seed}
    if targets.kind != "classification":
        kind = KFold if groups is None else GroupKFold
        splitter = kind(n_folds, **shuffled)
        return list(splitter.split(np.zeros(len(y)), None, groups))
    counts = np.bincount(targets.numbers)
    limit = min if all_classes else max
    n_folds = max(2, min(n_folds, int(limit(counts[counts > 1], default=2))))
    stratified = StratifiedKFold if groups is None else StratifiedGroupKFold
    units = np.arange(len(y)) if groups is None else groups
    pairs = np.unique(np.column_stack([targets.numbers, numbered(units)]), axis=0)
    alone = np.flatnonzero(np.bincount(pairs[:, 0])[targets.numbers] == 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        splitter = stratified(n_folds, **shuffled)
        found = splitter.split(np.zeros(len(y)), targets.numbers, groups)
        return [(np.union1d(train, alone), test) for train, test in found]


def compare_heads(
    codes: np.ndarray,
    position: int,
    heads: dict[str, Any],
    targets: Targets,
    y: np.ndarray,
    scoring: str,
    splits: Splits,
    groups: np.ndarray | None,
    advance: Callable[[], object],
) -> list[ComparedHead]:
    """Cross-validate heads on one matrix of codes.

    Parameters
    ----------
    codes : ndarray, shape (n_samples, n_features)
    position : int
        Of the codes, for the results.
    heads : dict of str to estimator
    targets, scoring
        As for `sample_scores`.
    y : ndarray
        What the heads are fitted to.
    splits : list of (ndarray, ndarray)
    groups : ndarray or None
        For heads that choose their parameters by leave-one-out.
    advance : callable
        Is called after each fit.
    """
    found = []
    for name, head in heads.items():
        values = np.full(targets.values.shape, np.nan)
        for train, test in splits:
            model = clone(head).fit(
                codes[train], y[train], **_fit_params(head, groups, train)
            )
            test = np.setdiff1d(test, train)
            values[test] = decision_values(model, codes[test], targets)
            advance()
        tested = np.isfinite(values).all(axis=1)
        rows = np.flatnonzero(tested)
        samples = sample_scores(values[tested], targets.take(rows), scoring)
        spread = np.full(len(values), np.nan)
        spread[tested] = samples
        folds = np.array([np.nanmean(spread[test]) for _, test in splits])
        found.append(ComparedHead(position, name, values, float(samples.mean()), folds))
    return found


def _fit_params(
    head: Any, groups: np.ndarray | None, rows: np.ndarray
) -> dict[str, np.ndarray]:
    if groups is None or not has_fit_parameter(head, "groups"):
        return {}
    return {"groups": groups[rows]}


def decision_values(model: Any, codes: np.ndarray, targets: Targets) -> np.ndarray:
    """One value for each class or label, or the predicted values.

    Probabilities become their logarithms.
    """
    if targets.kind == "regression":
        predicted: np.ndarray = model.predict(codes).reshape(len(codes), -1)
        return predicted
    if hasattr(model, "decision_function"):
        values: np.ndarray = model.decision_function(codes)
    else:
        values = np.log(np.maximum(model.predict_proba(codes), 1e-3))
    if values.ndim == 1:
        values = (
            values[:, None]
            if targets.kind == "multilabel"
            else np.column_stack([-values, values])
        )
    if targets.kind == "multilabel" or len(model.classes_) == len(targets.classes):
        return values
    every = np.full((len(codes), len(targets.classes)), values.min() + _UNKNOWN_CLASS)
    every[:, np.searchsorted(targets.classes, model.classes_)] = values
    return every


def results_table(
    compared: Sequence[ComparedHead], parameters: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The results as scikit-learn's searches give them, in `cv_results_`."""
    scores = np.array([each.score for each in compared])
    folds = np.array([each.fold_scores for each in compared])
    named = [{**parameters[each.codes], "head": each.head} for each in compared]
    table: dict[str, Any] = {"params": named}
    for key in named[0]:
        values = np.empty(len(named), object)
        values[:] = [row[key] for row in named]  # a list of layers stays one
        table[f"param_{key}"] = values
    for number, column in enumerate(folds.T):
        table[f"split{number}_test_score"] = column
    table["mean_test_score"] = scores
    table["std_test_score"] = folds.std(axis=1)
    better = (scores[:, None] < scores).sum(axis=1)
    table["rank_test_score"] = (better + 1).astype(np.int32)
    return table
