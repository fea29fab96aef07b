"""CNNCodeClassifier and CNNCodeRegressor: codes and head are chosen in `fit`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn import __version__ as sklearn_version
from sklearn.base import ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.utils import Tags
from sklearn.utils.fixes import parse_version
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted

from sk_cnncodes.base.public import public
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.heads.code_choice import (
    CodeChoice,
    as_splitter,
    as_targets,
    out_of_fold_probabilities,
)
from sk_cnncodes.heads.head_comparison import Splits
from sk_cnncodes.heads.pipeline_models import PipelineRegressor
from sk_cnncodes.ranking.rank_codes import NORMS
from sk_cnncodes.ranking.scoring import SCORINGS, Targets

CALIBRATION = (
    "temperature"
    if parse_version(sklearn_version) >= parse_version("1.8")
    else "sigmoid"
)


def _has_probabilities(estimator: Any) -> bool:
    pipeline = getattr(estimator, "pipeline_", None)
    if pipeline is not None and not hasattr(pipeline, "predict_proba"):
        raise AttributeError(
            "predict_proba: images with several labels have no probabilities; see "
            "decision_function of pipeline_."
        )
    return True


@public
class CNNCodeClassifier(ClassifierMixin, CodeChoice):
    """Image classifier that chooses backbone, layer, norm and head by itself.

    `fit` ranks the codes of all layers of the backbones (`rank_codes`), compares heads
    on the best few by cross-validation, fits the best combination to all images, and
    calibrates its probabilities.

    Parameters
    ----------
    backbones : sequence of str, path-like or CNNCodeTransformer, \
            default=("cnncodes-mini",)
        As in `rank_codes`.
    layers : "all", or sequence of int, str or list of them, default="all"
        As in `rank_codes`.
    heads : "auto", str or sequence of str, default="auto"
        Keys of `HEADS`. ``"auto"`` compares RBF kernel ridge, shrinkage LDA and
        logistic regression, or for more than 3,000 images the first two; for several
        labels RBF kernel ridge and ridge.
    norms : sequence of {"l2", "power"}, default=("l2", "power")
        As in `rank_codes`.
    n_codes : int, default=3
        Number of the best ranked codes that heads are compared on, besides the
        recommended ones.
    cv : int, splitter or iterable, default=5
        Folds of the comparison and of the calibration. A number means stratified,
        shuffled folds, which keep groups together; fewer where the smallest class has
        fewer images.
    scoring : str or None, default=None
        ``"accuracy"``, which is the default, ``"balanced_accuracy"``,
        ``"neg_log_loss"`` or ``"f1_macro"``; for several labels
        ``"average_precision"`` or ``"accuracy"``.
    cache : "memory", str, path-like, CodeCache or None, default="memory"
        As in `CNNCodeTransformer`. With None, `fit` keeps codes until it ends.
    device : str, default="auto"
        As in `CNNCodeTransformer`.
    n_jobs : int or None, default=-1
        As in `CNNCodeTransformer`.
    random_state : int, RandomState instance or None, default=0
        Shuffles the folds.
    verbose : bool, default=False
        Whether to show progress bars on standard error.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, as of scikit-learn's classifiers, in the ranking and in
        all heads: of squared errors in ridge and kernel ridge, whose leave-one-out
        stays exact; of prior probabilities in LDA; of losses in the
        others. Nearest neighbours have none. Probabilities are then calibrated with
        the temperature of all images alike; before scikit-learn 1.8, with a sigmoid,
        which takes a part of the weights back.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
    pipeline_ : Pipeline
        The steps "codes", a `CNNCodeTransformer`, and "head", fitted to all images.
        With scikit-learn 1.8 or later, the head is scaled by a temperature, before by
        a sigmoid, fitted to out-of-fold predictions: a `CalibratedClassifierCV`.
    ranking_ : CodeRanking
    cv_results_ : dict of ndarray
        As of a `GridSearchCV`: each combination with its score.
    best_params_ : dict
        Backbone, layer, norm and head of the best one.
    best_score_ : float
        Its cross-validated score. It is that of the best of several, so slightly
        optimistic; for the last figure of a paper, use images that `fit` did not see.
    best_index_ : int
        Its position in `cv_results_`.
    cv_predictions_ : ndarray, shape (n_images, n_classes)
        Out-of-fold probabilities of the best combination, by one temperature for all;
        for several labels its decision values. NaN for images that no fold tests, such
        as the only one of a class.

    See Also
    --------
    rank_codes : The ranking alone.
    code_search : A plain grid search over backbones, layers and heads.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import CNNCodeClassifier
    >>> digits = load_digits()
    >>> X, y = digits.images[:300] / 16, digits.target[:300]
    >>> model = CNNCodeClassifier(layers=[-1, -3], heads="lda").fit(X[:200], y[:200])
    >>> model.score(X[200:], y[200:]) > 0.9
    True
    >>> model.predict_proba(X[200:]).shape
    (100, 10)
    """

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
        class_weight: Any = None,
    ) -> None:
        super().__init__(
            backbones,
            layers,
            heads,
            norms=norms,
            n_codes=n_codes,
            cv=cv,
            scoring=scoring,
            cache=cache,
            device=device,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Choose codes and head, and fit them.

        Parameters
        ----------
        X : container of images
            As for `CNNCodeTransformer`, without generators.
        y : array-like, shape (n_images,) or (n_images, n_labels)
            A class for each image; or which labels it has, as 0 and 1.
        groups : array-like, shape (n_images,), or None, default=None
            What each image belongs to, such as its photographed object or its burst:
            scores are those on new groups.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If a parameter or `y` is invalid.
        ImageError
            If an image cannot be read.
        """
        y = as_targets(self, y)
        kind = type_of_target(y, input_name="y")
        if kind.startswith("continuous") or kind == "unknown":
            raise ValueError(
                f"Unknown label type: {kind}. Expected a class for each image, or 0 "
                "and 1 for labels. For values to regress, use CNNCodeRegressor."
            )
        if self.scoring in SCORINGS["regression"]:
            valid = SCORINGS["multilabel" if y.ndim == 2 else "classification"]
            raise ValueError(
                f"scoring: expected one of {list(valid)} or None, got {self.scoring!r}."
            )
        targets, best = self.choose(X, y, groups, self.scoring)
        self.classes_ = targets.classes
        self.cv_predictions_ = out_of_fold_probabilities(best.values, targets)
        return self

    def final_head(self, head: Any, targets: Targets, splits: Splits) -> Any:
        if targets.kind == "multilabel":
            return head
        return CalibratedClassifierCV(
            head,
            method=CALIBRATION,
            cv=as_splitter(splits, len(targets.numbers)),
            ensemble=False,
        )

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Calibrated probabilities of the classes.

        Parameters
        ----------
        X : container of images

        Returns
        -------
        ndarray, shape (n_images, n_classes)
        """
        check_is_fitted(self)
        probabilities: np.ndarray = self.pipeline_.predict_proba(X)
        return probabilities

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@public
class CNNCodeRegressor(PipelineRegressor, CodeChoice):
    """Regression on images that chooses backbone, layer, norm and head by itself.

    As `CNNCodeClassifier`, for values.

    Parameters
    ----------
    backbones, layers, norms, n_codes, cv, cache, device, n_jobs, random_state, verbose
        As for `CNNCodeClassifier`; folds are shuffled.
    heads : "auto", str or sequence of str, default="auto"
        Of "rbf" (RBF kernel ridge), "ridge", "knn" and "svr"; ``"auto"`` compares the
        first two.
    scoring : str or None, default=None
        ``"r2"``, which is the default, or ``"neg_mean_absolute_error"``.

    Attributes
    ----------
    pipeline_, ranking_, cv_results_, best_params_, best_score_, best_index_
        As of `CNNCodeClassifier`.
    cv_predictions_ : ndarray, shape (n_images,) or (n_images, n_targets)
        Out-of-fold predictions of the best combination.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import CNNCodeRegressor
    >>> digits = load_digits()
    >>> X, y = digits.images[:150] / 16, digits.images[:150].mean(axis=(1, 2))
    >>> model = CNNCodeRegressor(layers=[-3], heads="ridge").fit(X[:100], y[:100])
    >>> model.score(X[100:], y[100:]) > 0.5
    True
    """

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Choose codes and head, and fit them.

        Parameters
        ----------
        X : container of images
            As for `CNNCodeTransformer`, without generators.
        y : array-like of float, shape (n_images,) or (n_images, n_targets)
        groups : array-like, shape (n_images,), or None, default=None
            As in `CNNCodeClassifier.fit`.

        Returns
        -------
        self
        """
        y = as_targets(self, y)
        y = y.astype(float) if y.dtype.kind == "O" else y
        scoring = "r2" if self.scoring is None else self.scoring
        _, best = self.choose(X, y, groups, scoring)
        self.cv_predictions_ = best.values[:, 0] if np.ndim(y) == 1 else best.values
        return self
