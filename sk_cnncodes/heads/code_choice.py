"""Choose codes by their ranking, and a head on them by cross-validation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import Pipeline
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import check_is_fitted, column_or_1d
from threadpoolctl import threadpool_limits

from sk_cnncodes.base.progress import progress_bar
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.heads.head_comparison import (
    ComparedHead,
    Splits,
    compare_heads,
    make_splits,
    results_table,
)
from sk_cnncodes.heads.pipeline_models import PipelineModel
from sk_cnncodes.heads.presets import HEADS, REGRESSORS, weighted_head
from sk_cnncodes.images.containers import as_image_sequence
from sk_cnncodes.ranking.layer_codes import transformers_of
from sk_cnncodes.ranking.rank_codes import NORMS, rank_codes
from sk_cnncodes.ranking.ranked_codes import RankedCodes
from sk_cnncodes.ranking.scoring import (
    Targets,
    read_targets,
    softmax,
    temperature_factors,
)

# Heads that are compared for up to so many images; and for more, those whose time grows
# slowly. Others were not better by more than chance (see `HEADS`).
_MANY_IMAGES = 3000
_HEADS = ("rbf", "lda", "logistic")
_HEADS_FOR_MANY = ("rbf", "lda")
_HEADS_FOR_LABELS = ("rbf", "ridge")
_REGRESSORS = ("rbf", "ridge")


class CodeChoice(PipelineModel):
    """Base class of `CNNCodeClassifier` and `CNNCodeRegressor`.

    Attributes are those of `CNNCodeClassifier`.
    """

    class_weight: Any = None  # only classifiers have it

    def __init__(
        self,
        backbones: Any = ("cnncodes-mini",),
        layers: Any = "all",
        heads: str | Sequence[str] = "auto",
        *,
        norms: Sequence[str] | str = NORMS,
        n_codes: int = 3,
        cv: Any = 5,
        scoring: str | None = None,
        cache: str | os.PathLike[str] | CodeCache | None = "memory",
        device: str = "auto",
        n_jobs: int | None = -1,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.backbones = backbones
        self.layers = layers
        self.heads = heads
        self.norms = norms
        self.n_codes = n_codes
        self.cv = cv
        self.scoring = scoring
        self.cache = cache
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def choose(
        self, X: Any, y: Any, groups: Any, scoring: str | None
    ) -> tuple[Targets, ComparedHead]:
        """Rank the codes, compare heads on the best, and fit the best pipeline.

        Returns
        -------
        targets : Targets
        best : ComparedHead
        """
        if self.n_codes < 1:
            raise ValueError(f"n_codes: expected at least 1, got {self.n_codes!r}.")
        names = [str(each.backbone) for each in transformers_of(self.backbones)]
        if len(set(names)) < len(names):
            raise ValueError(
                f"backbones: expected different ones, got {names}. Compare one with "
                "other parameters by another estimator."
            )
        images = at_least_two(X)
        targets, scoring = read_targets(y, scoring, self.class_weight)
        heads = self._heads(targets, len(images))
        # Without a cache of the user's, the codes are kept until the end of this call.
        cache = CodeCache() if self.cache is None else self.cache
        self.ranking_ = rank_codes(
            images,
            y,
            self.backbones,
            self.layers,
            self.norms,
            groups=groups,
            scoring=scoring,
            class_weight=self.class_weight,
            cache=cache,
            n_jobs=self.n_jobs,
            device=self.device,
            verbose=self.verbose,
        )
        labels = _fitted_to(y, targets)
        groups = None if groups is None else np.asarray(groups)
        splits = make_splits(self.cv, targets, labels, groups, self.random_state)
        rows = _shortlist(self.ranking_.rows, self.n_codes)
        compared: list[ComparedHead] = []
        total = len(rows) * len(heads) * len(splits)
        with (
            threadpool_limits(1, user_api="blas"),
            progress_bar(
                total=total, desc="Compare", unit="fit", disable=not self.verbose
            ) as bar,
        ):
            for position, row in enumerate(rows):
                codes = self._transformer(row, cache).fit_transform(images)
                compared += compare_heads(
                    codes,
                    position,
                    heads,
                    targets,
                    labels,
                    scoring,
                    splits,
                    groups,
                    lambda: bar.update(1),
                )
        self.cv_results_ = results_table(
            compared,
            [
                {"backbone": row.backbone, "layer": row.layer, "norm": row.norm}
                for row in rows
            ],
        )
        best = max(compared, key=lambda each: each.score)
        self.best_index_ = compared.index(best)
        self.best_params_ = self.cv_results_["params"][self.best_index_]
        self.best_score_ = best.score
        codes = self._transformer(rows[best.codes], cache)
        head = heads[best.head]
        self.pipeline_ = self._fitted(codes, head, images, labels, targets, splits)
        return targets, best

    def _fitted(
        self,
        codes: CNNCodeTransformer,
        head: Any,
        images: Any,
        labels: np.ndarray,
        targets: Targets,
        splits: Splits,
    ) -> Pipeline:
        """The pipeline of codes and a head, fitted to all images."""
        head = self.final_head(clone(head), targets, splits)
        pipeline = Pipeline([("codes", codes), ("head", head)])
        with threadpool_limits(1, user_api="blas"):
            pipeline.fit(images, labels)
        pipeline["codes"].set_params(cache=self.cache)
        return pipeline

    def refit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Fit the chosen codes and head to other images, without choosing again.

        For a last fit to all images, after the accuracy was measured on some that `fit`
        did not get. `pipeline_` is then fitted to these images alone, and calibrated by
        folds of them; all other attributes stay those of `fit`.

        Parameters
        ----------
        X, y, groups
            As for `fit`, with the same classes.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the classes are others.
        """
        check_is_fitted(self)
        images, y = as_image_sequence(X), as_targets(self, y)
        targets, _ = read_targets(y, self.ranking_.scoring)
        if not np.array_equal(targets.classes, self.ranking_.classes):
            raise ValueError(
                f"y: expected the classes of fit, {self.ranking_.classes.tolist()[:9]},"
                f" got {targets.classes.tolist()[:9]}."
            )
        labels = _fitted_to(y, targets)
        groups = None if groups is None else np.asarray(groups)
        splits = make_splits(self.cv, targets, labels, groups, self.random_state)
        known = REGRESSORS if targets.kind == "regression" else HEADS
        name = self.best_params_["head"]
        head = weighted_head(name, known[name][1], self.class_weight)
        codes = clone(self.pipeline_["codes"])
        self.pipeline_ = self._fitted(codes, head, images, labels, targets, splits)
        return self

    def _heads(self, targets: Targets, n_images: int) -> dict[str, Any]:
        """The heads to compare, by name."""
        known = REGRESSORS if targets.kind == "regression" else HEADS
        names = self.heads
        if isinstance(names, str) and names == "auto":
            names = {
                "regression": _REGRESSORS,
                "multilabel": _HEADS_FOR_LABELS,
                "classification": (
                    _HEADS if n_images <= _MANY_IMAGES else _HEADS_FOR_MANY
                ),
            }[targets.kind]
        names = [names] if isinstance(names, str) else list(names)
        usable = list(_HEADS_FOR_LABELS) if targets.kind == "multilabel" else [*known]
        if not names or not {*names} <= {*usable}:
            raise ValueError(
                f"heads: expected 'auto' or some of {usable} for the {targets.kind} "
                f"that y asks for, got {names}."
            )
        return {
            name: weighted_head(name, known[name][1], self.class_weight)
            for name in dict.fromkeys(names)
        }

    def _transformer(
        self, row: RankedCodes, cache: str | os.PathLike[str] | CodeCache
    ) -> CNNCodeTransformer:
        """What computes the codes of a row."""
        given = transformers_of(self.backbones)
        found = next(each for each in given if str(each.backbone) == row.backbone)
        found.set_params(
            layer=row.layer,
            norm=row.norm,
            cache=cache,
            device=self.device,
            n_jobs=self.n_jobs,
        )
        return found

    def final_head(self, head: Any, targets: Targets, splits: Splits) -> Any:
        """The head that is fitted to all images; a classifier calibrates it."""
        return head


def _shortlist(rows: Sequence[RankedCodes], count: int) -> list[RankedCodes]:
    """The best codes, and the recommended ones."""
    chosen = list(rows[:count])
    return chosen + [row for row in rows[count:] if row.recommended]


def at_least_two(X: Any) -> Sequence[Any]:
    """X as a sequence of images, some to train and some to validate."""
    images = as_image_sequence(X)
    if len(images) < 2:
        raise ValueError(f"X: expected at least 2 images, got {len(images)} sample.")
    return images


def as_targets(estimator: BaseEstimator, y: Any) -> np.ndarray:
    """Targets as an array; a column becomes a vector, with scikit-learn's warning."""
    if y is None:
        name = type(estimator).__name__
        raise ValueError(
            f"This {name} estimator requires y to be passed, but the target y is None."
        )
    targets: np.ndarray = y.toarray() if hasattr(y, "toarray") else np.asarray(y)
    assert_all_finite(targets, input_name="y")
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = column_or_1d(targets, warn=True)
    return targets


def _fitted_to(y: Any, targets: Targets) -> np.ndarray:
    """Labels or values as heads take them."""
    if targets.kind == "classification":
        classes: np.ndarray = targets.classes[targets.numbers]
        return classes
    if targets.kind == "multilabel":
        return (targets.values > 0).astype(int)
    return targets.values[:, 0] if np.ndim(y) == 1 else targets.values


def as_splitter(splits: Splits, n_samples: int) -> Any:
    """The same folds, as a small object if each sample is tested once."""
    folds = np.full(n_samples, -1)
    for number, (_, test) in enumerate(splits):
        folds[test] = number
    tested = np.concatenate([test for _, test in splits])
    whole = all(len(train) + len(test) == n_samples for train, test in splits)
    if whole and len(tested) == len(np.unique(tested)) == n_samples:
        return PredefinedSplit(folds)
    return splits


def out_of_fold_probabilities(values: np.ndarray, targets: Targets) -> np.ndarray:
    """Probabilities from decision values, by one temperature for all."""
    if targets.kind == "multilabel":
        return values
    tested = np.isfinite(values).all(axis=1)
    factor = temperature_factors(values[tested], targets.numbers[tested])
    return softmax(values * factor)
