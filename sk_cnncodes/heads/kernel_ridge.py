"""Ridge classification and regression with an RBF kernel, tuned by leave-one-out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from sk_cnncodes.base.logs import logger
from sk_cnncodes.base.public import public
from sk_cnncodes.ranking.leave_one_out import ridge_decompositions
from sk_cnncodes.ranking.scoring import SCORINGS, Targets, read_targets, sample_scores

# For codes of unit length; also those of linear ridge.
ALPHAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Bytes of the kernel values that are computed at once.
_CHUNK_BYTES = 2**26
# Relative to the mean of the diagonal: keeps equations of a sample's kernel regular.
_JITTER = 1e-9


class _KernelRidge(BaseEstimator):
    """What the classifier and the regressor share."""

    def __init__(
        self,
        gammas: Sequence[float] = (0.125, 0.25, 0.5),
        alphas: Sequence[float] = ALPHAS,
        *,
        max_loo_samples: int = 2000,
        max_kernel_samples: int = 6000,
        random_state: Any = 0,
    ) -> None:
        self.gammas = gammas
        self.alphas = alphas
        self.max_loo_samples = max_loo_samples
        self.max_kernel_samples = max_kernel_samples
        self.random_state = random_state

    def _fit(self, X: np.ndarray, targets: Targets, groups: Any) -> None:
        """Choose gamma and alpha, and fit the kernel to the values of the targets."""
        for name in ("max_loo_samples", "max_kernel_samples"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name}: expected at least 2, got {getattr(self, name)!r}."
                )
        # Which samples are drawn does not depend on the other number.
        order = check_random_state(self.random_state).permutation(len(X))
        self._choose(X, targets, groups, np.sort(order[: self.max_loo_samples]))
        basis = np.sort(order[: self.max_kernel_samples])
        if len(basis) < len(X):
            logger.info(
                "%s: the kernel is that to %d of %d samples (max_kernel_samples)",
                *(type(self).__name__, len(basis), len(X)),
            )
        self.X_fit_ = X[basis]
        values = targets.values.astype(float)
        weights = np.ones(len(X)) if targets.weights is None else targets.weights
        mean = np.average(values, axis=0, weights=targets.weights)
        solve = self._solve_all if len(basis) == len(X) else self._solve_basis
        kernel_means = solve(X, values - mean, weights)
        self.intercept_ = mean - kernel_means @ self.dual_coef_

    def _choose(
        self, X: np.ndarray, targets: Targets, groups: Any, rows: np.ndarray
    ) -> None:
        """Set gamma and alpha by leave-one-out predictions of some samples."""
        if groups is not None:
            groups = column_or_1d(groups)
            if len(groups) != len(X):
                raise ValueError(
                    f"groups: expected one for each of the {len(X)} samples, got "
                    f"{len(groups)}."
                )
            groups = groups[rows]
        gammas, alphas = (np.asarray(v, float) for v in (self.gammas, self.alphas))
        if not gammas.size or not alphas.size:
            raise ValueError(
                "gammas and alphas: expected at least one of each, got "
                f"{self.gammas!r} and {self.alphas!r}."
            )
        codes = X[rows]
        spread = float(codes.var(axis=0, dtype=float).sum()) or 1.0
        chosen = targets.take(rows)
        best = -np.inf
        with_gammas = ridge_decompositions(
            codes,
            list(gammas / spread),
            weights=chosen.weights,
            max_bytes=sys.maxsize,
        )
        for gamma, ridge in zip(gammas, with_gammas, strict=True):
            found = ridge.predictions(chosen.values, alphas, groups)
            squares = ((found - chosen.values) ** 2).mean(axis=2)
            errors = np.average(squares, axis=1, weights=chosen.weights)
            position = int(np.argmin(errors))
            score = -float(errors[position])
            if targets.kind == "classification":
                parts = sample_scores(found[position], chosen, "neg_log_loss")
                score = float(np.average(parts, weights=chosen.weights))
            if score > best:
                best = score
                self.gamma_ = float(gamma / spread)
                self.alpha_ = float(alphas[position])
                scoring = SCORINGS[targets.kind][0]
                parts = sample_scores(found[position], chosen, scoring)
                self.best_score_ = float(parts.mean())

    def _solve_all(
        self, X: np.ndarray, values: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Set the coefficients of all samples; return the means of the kernel.

        `values` are centred, with the weights.
        """
        kernel = np.empty((len(X), len(X)))
        for rows, block in self._kernel(X):
            kernel[rows] = block
        means: np.ndarray = weights @ kernel / weights.sum()
        kernel -= means
        kernel -= (means - weights @ means / weights.sum())[:, None]
        root = np.sqrt(weights)[:, None]
        kernel *= root
        kernel *= root.T
        kernel[np.diag_indices(len(X))] += self.alpha_
        factor = cho_factor(kernel.T, lower=True, overwrite_a=True, check_finite=False)
        self.dual_coef_ = root * cho_solve(factor, root * values, check_finite=False)
        return means

    def _solve_basis(
        self, X: np.ndarray, values: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """The same for coefficients of some samples, fitted to all samples."""
        size = len(self.X_fit_)
        means, products = np.zeros(size), np.zeros((size, size))
        right = np.zeros((size, values.shape[1]))
        for rows, block in self._kernel(X):
            weighted = (block * weights[rows, None]).T
            means += weighted.sum(axis=1) / weights.sum()
            products += weighted @ block
            right += weighted @ values[rows]
        products -= weights.sum() * np.outer(means, means)
        for rows, block in self._kernel(self.X_fit_):
            products[rows] += self.alpha_ * block
        diagonal = np.diag_indices(size)
        products[diagonal] += _JITTER * products[diagonal].mean()
        factor = cho_factor(products.T, lower=True, overwrite_a=True)
        self.dual_coef_ = cho_solve(factor, right)
        return means

    def _kernel(self, X: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the kernel of samples and `X_fit_`, some rows after the other."""
        # Distances do not change; closer to zero, fewer digits of the squares cancel.
        centre = self.X_fit_.mean(axis=0, dtype=float)
        basis = self.X_fit_ - centre
        squares = (basis**2).sum(axis=1)
        step = max(1, _CHUNK_BYTES // (8 * max(basis.shape)))
        for start in range(0, len(X), step):
            rows = slice(start, start + step)
            part = X[rows] - centre
            block = part @ basis.T
            block *= -2
            block += squares
            block += (part**2).sum(axis=1)[:, None]
            np.maximum(block, 0, out=block)
            block *= -self.gamma_
            yield rows, np.exp(block, out=block)

    def _predict_values(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        found = np.empty((len(X), self.dual_coef_.shape[1]))
        for rows, block in self._kernel(X):
            found[rows] = block @ self.dual_coef_
        found += self.intercept_
        return found


@public
class KernelRidgeClassifierCV(ClassifierMixin, _KernelRidge):
    """Ridge classifier with an RBF kernel; gamma and alpha by exact leave-one-out.

    Each class is regressed to 1 for its samples and -1 for the others, and the largest
    value wins, as in scikit-learn's `RidgeClassifierCV`, which this is with a kernel
    instead of the codes themselves. On codes of photographs it was the best head of
    those in `HEADS` for nearly all layers, norms and numbers of images, or within
    0.3% of it.

    The kernel of codes a and b is ``exp(-gamma_ * |a - b|**2)``, centred. One
    eigendecomposition gives what models without each sample predict for it, for all
    alphas: nothing is fitted again.

    Parameters
    ----------
    gammas : sequence of float, default=(0.125, 0.25, 0.5)
        Tried widths of the kernel, in units of 1 / variance of the codes: they suit
        codes of any length. Small ones approach a linear kernel.
    alphas : sequence of float, default=(0.001, 0.003, 0.01, ..., 3.0, 10.0)
        Tried regularisations, as in `RidgeClassifierCV`. One alpha serves all classes.
    max_loo_samples : int, default=2000
        Gamma and alpha are chosen on a random sample of that many images if there are
        more. The time grows with its cube: 1 to 4 s for each gamma and 2,000 images on
        one core, and 0.1 s for 600. The memory is 56 times its square, in bytes.
    max_kernel_samples : int, default=6000
        If there are more images, the kernel is that to a random sample of so many
        (Nystroem's approximation), and fitted to all images; this is logged. A
        prediction takes as many distances. 8 times its square is the memory in bytes,
        288 MB, and three times that with more images. 6,000 images of 10 classes took
        4 to 10 s on one core.
    random_state : int, RandomState instance or None, default=0
        Draws these samples.
    class_weight : dict, "balanced" or None, default=None
        Weights of the squared errors of each class, as in `RidgeClassifierCV`;
        leave-one-out is exact with them too.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        The classes, or the numbers of the labels if `y` has several for each image.
    gamma_, alpha_ : float
        What was chosen; `gamma_` is not relative.
    best_score_ : float
        Leave-one-out accuracy with these; of labels, their mean average precision.
    X_fit_ : ndarray, shape (n_kernel_samples, n_features)
        The codes that predictions are compared with.
    dual_coef_ : ndarray of float64, shape (n_kernel_samples, n_classes)
    intercept_ : ndarray of float64, shape (n_classes,)
    n_features_in_ : int

    See Also
    --------
    KernelRidgeCV : The same for values to regress.
    HEADS : All heads that are compared.

    Notes
    -----
    Within a gamma, alpha has the smallest squared error, which is smooth. Between
    gammas, whose kernels differ in how closely they can fit, the log-loss decides,
    after one temperature for all; for several labels also the squared error. Accuracy
    itself is coarse: for few images, many candidates are equal.

    References
    ----------
    R. M. Rifkin, R. A. Lippert, "Notes on Regularized Least Squares",
    MIT-CSAIL-TR-2007-025.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import KernelRidgeClassifierCV
    >>> X, y = load_digits(return_X_y=True)
    >>> head = KernelRidgeClassifierCV().fit(X[:300], y[:300])
    >>> bool(head.score(X[300:], y[300:]) > 0.9)
    True
    """

    class_weight: Any = None  # of classifiers that were saved before there was one

    def __init__(
        self,
        gammas: Sequence[float] = (0.125, 0.25, 0.5),
        alphas: Sequence[float] = ALPHAS,
        *,
        max_loo_samples: int = 2000,
        max_kernel_samples: int = 6000,
        random_state: Any = 0,
        class_weight: Any = None,
    ) -> None:
        super().__init__(
            gammas,
            alphas,
            max_loo_samples=max_loo_samples,
            max_kernel_samples=max_kernel_samples,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Choose gamma and alpha, and fit.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : array-like, shape (n_samples,) or (n_samples, n_labels)
            A class for each sample; or which labels it has, as 0 and 1.
        groups : array-like, shape (n_samples,), or None, default=None
            Samples of a group, such as crops of one photograph, are left out together
            when gamma and alpha are chosen.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there is only one class, one group, or a parameter is invalid.
        """
        X, y = validate_data(
            self, X, y, **_CODES, multi_output=True, ensure_min_samples=2
        )
        check_classification_targets(y)
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        targets, _ = read_targets(y, class_weight=self.class_weight)
        self.classes_ = targets.classes
        self._multilabel = targets.kind == "multilabel"
        self._fit(X, targets, groups)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Values near 1 for what a sample is, and near -1 for what it is not.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)

        Returns
        -------
        ndarray of float64, shape (n_samples,) or (n_samples, n_classes)
            With two classes, that of the second.
        """
        values = self._predict_values(X)
        binary = len(self.classes_) == 2 and not self._multilabel
        return values[:, 1] if binary else values

    def predict(self, X: Any) -> np.ndarray:
        """The class with the largest value, or the labels whose value is positive.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)

        Returns
        -------
        ndarray, shape (n_samples,) or (n_samples, n_labels)
        """
        values = self._predict_values(X)
        if self._multilabel:
            return (values > 0).astype(int)
        found: np.ndarray = self.classes_[values.argmax(axis=1)]
        return found

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@public
class KernelRidgeCV(RegressorMixin, _KernelRidge):
    """Ridge regression with an RBF kernel; gamma and alpha by exact leave-one-out.

    As scikit-learn's `KernelRidge`, with an intercept, and both chosen as in
    `KernelRidgeClassifierCV`, by the squared error.

    Parameters
    ----------
    gammas, alphas, max_loo_samples, max_kernel_samples, random_state
        As for `KernelRidgeClassifierCV`.

    Attributes
    ----------
    gamma_, alpha_ : float
        What was chosen; `gamma_` is not relative.
    best_score_ : float
        Leave-one-out R2 with these, the mean over targets.
    X_fit_ : ndarray, shape (n_kernel_samples, n_features)
    dual_coef_ : ndarray of float64, shape (n_kernel_samples, n_targets)
    intercept_ : ndarray of float64, shape (n_targets,)
    n_features_in_ : int

    See Also
    --------
    KernelRidgeClassifierCV : The same for classes and labels.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.preprocessing import scale
    >>> from sk_cnncodes import KernelRidgeCV
    >>> X, y = load_diabetes(return_X_y=True)
    >>> head = KernelRidgeCV().fit(scale(X[:300]), y[:300])
    >>> bool(head.best_score_ > 0.4)
    True
    """

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Choose gamma and alpha, and fit.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : array-like of float, shape (n_samples,) or (n_samples, n_targets)
        groups : array-like, shape (n_samples,), or None, default=None
            As for `KernelRidgeClassifierCV.fit`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If all values of a target are equal, there is one group, or a parameter is
            invalid.
        """
        X, y = validate_data(
            *(self, X, y),
            **_CODES,
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=2,
        )
        targets, _ = read_targets(y, "r2")
        self._one_dimension = y.ndim == 1
        self._fit(X, targets, groups)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict the values of samples.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)

        Returns
        -------
        ndarray of float64, shape (n_samples,) or (n_samples, n_targets)
        """
        values = self._predict_values(X)
        return values[:, 0] if self._one_dimension else values

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


# Codes are float32, and need no copy as float64.
_CODES: dict[str, Any] = {"dtype": [np.float64, np.float32]}
