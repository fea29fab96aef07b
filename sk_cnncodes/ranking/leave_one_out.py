"""Exact leave-one-out predictions of ridge regression, for many alphas at once.

Ridge regression with an intercept, linear or with a kernel, is linear in its targets Y:
its predictions are H Y, and I - H is zero on the constant vector. What a model without
the samples of a group G predicts for them follows without fitting it:

    Y_G - inverse((I - H)_GG) ((I - H) Y)_G

For a group of one sample this is its residual over 1 - h_ii. H is the same for all
targets, and one eigendecomposition gives it for all alphas. With centred codes X and
columns V, eigenvectors of X'X with the eigenvalues l,

    I - H = I - 11'/n - X V diag(1 / (l + alpha)) (X V)'

and with the eigenvectors Q of the centred kernel matrix, orthogonal to the constant
vector,

    I - H = alpha Q diag(1 / (l + alpha)) Q'

The first is used for the linear kernel and fewer features than samples, the second
otherwise. For samples of weights W, a diagonal matrix, the same holds of sqrt(W) X,
sqrt(W) K sqrt(W), sqrt(W) Y and sqrt(W) 1, centred by weighted means. All is computed
in float64 and equal to refits within rounding: for each left out group the intercept,
or the centre of the kernel, is that of the other samples.

References: R. M. Rifkin, R. A. Lippert, "Notes on Regularized Least Squares",
MIT-CSAIL-TR-2007-025; for groups, S. An, W. Liu, S. Venkatesh, "Fast cross-validation
algorithms for least squares support vector machine and kernel ridge regression",
Pattern Recognition 40, 2007.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_CHUNK_BYTES = 2**26  # of the rows that are computed at once
# Bound of the memory of these matrices: 6,192 samples, or features.
MAX_BYTES = 2**31
# Bytes for each pair of samples or features: to decompose a float64 matrix takes four
# times its size, and the products, the matrix and the result before are kept.
_PAIR_BYTES = 56

Rows = slice | np.ndarray
# Rows of a block, and their predictions, shape (n_alphas, n_rows, n_targets).
Block = tuple[Rows, np.ndarray]


def ridge_decompositions(
    codes: np.ndarray,
    gammas: Sequence[float | None] = (None,),
    *,
    weights: np.ndarray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Iterator[RidgeDecomposition]:
    """Yield one eigendecomposition for each kernel, from which all else follows.

    Parameters
    ----------
    codes : ndarray or memmap, shape (n_samples, n_features)
        Read in chunks; it must not change while a decomposition is used.
    gammas : sequence of float or None, default=(None,)
        None is the linear kernel, a number the kernel ``exp(-gamma * |a - b|**2)``.
    weights : ndarray of float, shape (n_samples,), or None, default=None
        Positive weights of the squared errors, as `sample_weight` of `Ridge`.
    max_bytes : int, default=2**31
        Bound of the memory of a decomposition, which is 56 * m**2 bytes, with m the
        number of samples, or of the features if they are fewer and the kernel is
        linear: 92 MB for any number of codes of length 1,280, and 2 GiB for 6,192
        samples with an RBF kernel. The chunks take about 100 MB more; with groups,
        also three float64 copies of the codes of the largest group.

    Yields
    ------
    RidgeDecomposition
        In the order of `gammas`. All kernels share the products of the codes.

    Raises
    ------
    ValueError
        If the codes are no finite matrix of at least 2 rows, a gamma is not positive,
        or more than `max_bytes` are needed.
    """
    if codes.ndim != 2 or len(codes) < 2 or codes.shape[1] < 1:
        raise ValueError(
            f"codes: expected a matrix of at least 2 rows, got the shape {codes.shape}."
        )
    for gamma in gammas:
        if gamma is not None and not (np.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gammas: expected positive numbers or None, got {gamma}.")
    gram: np.ndarray | None = None
    for gamma in gammas:
        if gamma is None and codes.shape[1] < len(codes):
            _check_memory(codes.shape[1], max_bytes, "features")
            yield _OfFeatures(codes, weights)
            continue
        _check_memory(len(codes), max_bytes, "samples")
        gram = _gram_of_samples(codes) if gram is None else gram
        kernel = gram.copy() if gamma is None else _rbf(gram, gamma)
        yield _OfSamples(kernel, weights)


class RidgeDecomposition(ABC):
    """The eigendecomposition of a ridge regression, for all targets and alphas.

    Attributes
    ----------
    n_samples : int
    """

    n_samples: int
    _values: np.ndarray
    _weights: np.ndarray | None

    def predictions(
        self,
        targets: np.ndarray,
        alphas: Sequence[float] | np.ndarray,
        groups: np.ndarray | None = None,
    ) -> np.ndarray:
        """What the models without a sample, or its group, predict for it.

        Parameters
        ----------
        targets : ndarray, shape (n_samples,) or (n_samples, n_targets)
            Values to regress, or `signed_targets`.
        alphas : sequence of float, shape (n_alphas,)
            Regularisations, as `alpha` of scikit-learn's `Ridge` and `KernelRidge`.
        groups : ndarray of shape (n_samples,), or None, default=None
            The group of each sample; None leaves out one sample at a time.

        Returns
        -------
        ndarray of float64, shape (n_alphas, n_samples, n_targets)
            Equal to the predictions of models that are fitted again and again.

        Raises
        ------
        ValueError
            If the lengths differ, an alpha is not positive, or there is one group only.
        """
        n_targets = 1 if np.ndim(targets) == 1 else targets.shape[1]
        found = np.empty((len(alphas), self.n_samples, n_targets))
        for rows, block in self.blocks(targets, alphas, groups):
            found[:, rows] = block
        return found

    def blocks(
        self,
        targets: np.ndarray,
        alphas: Sequence[float] | np.ndarray,
        groups: np.ndarray | None = None,
    ) -> Iterator[Block]:
        """Yield the predictions of some samples after the other, in bounded memory.

        Parameters are those of `predictions`.

        Yields
        ------
        rows : slice or ndarray of int
            Positions of the samples: a chunk, or a group.
        predictions : ndarray of float64, shape (n_alphas, n_rows, n_targets)
        """
        targets = _as_matrix(targets, self.n_samples)
        alphas = np.asarray(alphas, float)
        if alphas.ndim != 1 or not (np.isfinite(alphas) & (alphas > 0)).all():
            raise ValueError(f"alphas: expected positive numbers, got {alphas}.")
        shrunk = 1 / (self._values[:, None] + alphas)
        mean = _mean(targets, self._weights)
        projected = self._project(targets, mean)
        # Of all alphas side by side: one product for each chunk.
        weights = np.einsum("va,vt->vat", shrunk, projected).reshape(len(shrunk), -1)
        row_bytes = 8 * (2 * len(shrunk) + 3 * weights.shape[1])
        for rows, is_group in _rows_of(groups, targets, _CHUNK_BYTES // row_bytes):
            z = self._coordinates(rows)
            y = targets[rows].astype(float)
            shape = (len(z), len(alphas), y.shape[1])
            fitted = (z @ weights).reshape(shape).transpose(1, 0, 2)
            residuals = self._residuals(self._weighted(y - mean, rows, 0.5), fitted)
            if is_group:
                residuals = self._solve(z, shrunk.T, residuals, rows)
            else:
                residuals /= self._diagonal((z**2) @ shrunk, rows).T[:, :, None]
            yield rows, y - self._weighted(residuals, rows, -0.5)

    def fitted(self, targets: np.ndarray, alpha: float) -> np.ndarray:
        """What the model of all samples predicts for them.

        Parameters
        ----------
        targets : ndarray, shape (n_samples,) or (n_samples, n_targets)
        alpha : float

        Returns
        -------
        ndarray of float64, shape (n_samples, n_targets)
        """
        targets = _as_matrix(targets, self.n_samples)
        mean = _mean(targets, self._weights)
        projected = self._project(targets, mean)
        weights = self._shrinkage(alpha)[:, None] * projected
        found = np.empty((self.n_samples, targets.shape[1]))
        for rows in _slices(self.n_samples, _CHUNK_BYTES // (16 * len(weights))):
            fitted = self._coordinates(rows) @ weights
            found[rows] = mean + self._weighted(fitted, rows, -0.5)
        return found

    def _weighted(self, values: np.ndarray, rows: Rows, power: float) -> np.ndarray:
        """Values of samples, times a power of their weights."""
        if self._weights is None:
            return values
        return values * self._weights[rows][:, None] ** power

    def _shares(self, rows: Rows) -> np.ndarray | float:
        """The part of samples in the sum of weights, as a column; or one for all."""
        if self._weights is None:
            return 1 / self.n_samples
        shares: np.ndarray = self._weights[rows, None] / self._weights.sum()
        return shares

    @abstractmethod
    def _shrinkage(self, alpha: float) -> np.ndarray:
        """What turns projected targets into coordinates of fitted ones."""

    @abstractmethod
    def _coordinates(self, rows: Rows) -> np.ndarray:
        """Samples in the basis of the eigenvectors, shape (n_rows, n_values)."""

    @abstractmethod
    def _project(self, targets: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """The centred targets in that basis, shape (n_values, n_targets)."""

    @abstractmethod
    def _residuals(self, y: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        """(I - H) Y of some rows, up to a factor that `_solve` has too."""

    @abstractmethod
    def _diagonal(self, diagonal: np.ndarray, rows: Rows) -> np.ndarray:
        """The diagonal of I - H, from that of Z diag(1 / (l + alpha)) Z'."""

    @abstractmethod
    def _solve(
        self, z: np.ndarray, shrunk: np.ndarray, residuals: np.ndarray, rows: Rows
    ) -> np.ndarray:
        """The inverse of a block of I - H, that of a group, times residuals."""


class _OfSamples(RidgeDecomposition):
    """Of the centred kernel matrix of the samples, which is overwritten."""

    def __init__(self, kernel: np.ndarray, weights: np.ndarray | None = None) -> None:
        self.n_samples = len(kernel)
        self._weights = weights
        centre = _mean(kernel, weights)
        kernel -= centre
        kernel -= (centre - _mean(centre, weights))[:, None]
        # The constant vector becomes that of the largest eigenvalue, so that it can be
        # left out: that of 0 would be mixed with others of 0.
        if weights is None:
            kernel += (1 + 2 * np.trace(kernel)) / len(kernel)
        else:
            root = np.sqrt(weights)
            kernel *= root * root[:, None]
            scale = (1 + 2 * np.trace(kernel)) / weights.sum()
            kernel += scale * root * root[:, None]
        values, vectors = np.linalg.eigh(kernel)
        self._values = np.maximum(values[:-1], 0)
        self._vectors = vectors[:, :-1]

    def _shrinkage(self, alpha: float) -> np.ndarray:
        return self._values / (self._values + alpha)

    def _coordinates(self, rows: Rows) -> np.ndarray:
        return self._vectors[rows]

    def _project(self, targets: np.ndarray, mean: np.ndarray) -> np.ndarray:
        rows = slice(0, self.n_samples)
        centred = self._weighted(targets - mean, rows, 0.5)
        projected: np.ndarray = self._vectors.T @ centred
        return projected

    # The factor alpha of I - H is left out: it cancels, and no digits with it.

    def _residuals(self, y: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        return fitted

    def _diagonal(self, diagonal: np.ndarray, rows: Rows) -> np.ndarray:
        return diagonal

    def _solve(
        self, z: np.ndarray, shrunk: np.ndarray, residuals: np.ndarray, rows: Rows
    ) -> np.ndarray:
        solved = np.empty_like(residuals)
        for part in _slices(len(shrunk), _CHUNK_BYTES // (8 * z.size)):
            blocks = (z * shrunk[part, None, :]) @ z.T
            solved[part] = np.linalg.solve(blocks, residuals[part])
        return solved


class _OfFeatures(RidgeDecomposition):
    """Of the d x d matrix of centred codes, which are read again in chunks."""

    def __init__(self, codes: np.ndarray, weights: np.ndarray | None = None) -> None:
        self.n_samples, n_features = codes.shape
        self._codes = codes
        self._weights = weights
        self._chunks = list(_slices(self.n_samples, _CHUNK_BYTES // (16 * n_features)))
        self._mean = np.zeros(n_features)
        total = self.n_samples if weights is None else weights.sum()
        for rows in self._chunks:
            part = _finite(codes[rows], rows)
            self._mean += self._weighted(part, rows, 1).sum(axis=0, dtype=float) / total
        gram = np.zeros((n_features, n_features))
        for rows in self._chunks:
            part = self._weighted(codes[rows] - self._mean, rows, 0.5)
            gram += part.T @ part
        values, self._vectors = np.linalg.eigh(gram)
        self._values = np.maximum(values, 0)

    def _shrinkage(self, alpha: float) -> np.ndarray:
        return 1 / (self._values + alpha)

    def _coordinates(self, rows: Rows) -> np.ndarray:
        centred = self._weighted(self._codes[rows] - self._mean, rows, 0.5)
        coordinates: np.ndarray = centred @ self._vectors
        return coordinates

    def _project(self, targets: np.ndarray, mean: np.ndarray) -> np.ndarray:
        products = np.zeros((len(self._values), targets.shape[1]))
        for rows in self._chunks:
            part = self._weighted(self._codes[rows] - self._mean, rows, 1)
            products += part.T @ (targets[rows] - mean)
        projected: np.ndarray = self._vectors.T @ products
        return projected

    def _residuals(self, y: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        residuals: np.ndarray = y - fitted
        return residuals

    def _diagonal(self, diagonal: np.ndarray, rows: Rows) -> np.ndarray:
        return 1 - self._shares(rows) - diagonal

    def _solve(
        self, z: np.ndarray, shrunk: np.ndarray, residuals: np.ndarray, rows: Rows
    ) -> np.ndarray:
        # With the constant vector as a column, I - H is I - A diag(w) A'.
        a = np.column_stack(
            [np.broadcast_to(self._shares(rows) ** 0.5, (len(z), 1)), z]
        )
        w = np.column_stack([np.ones(len(shrunk)), shrunk])
        solved = np.empty_like(residuals)
        gram = a.T @ a if len(a) > a.shape[1] else None
        for number, (weights, right) in enumerate(zip(w, residuals, strict=True)):
            if gram is None:
                block = np.eye(len(a)) - (a * weights) @ a.T
                solved[number] = np.linalg.solve(block, right)
                continue
            # Woodbury's identity: a smaller system for a group of many samples.
            root = np.sqrt(weights)
            inner = np.eye(len(gram)) - root[:, None] * gram * root
            middle = np.linalg.solve(inner, root[:, None] * (a.T @ right))
            solved[number] = right + a @ (root[:, None] * middle)
        return solved


# -- kernels and chunks --------------------------------------------------------


def _gram_of_samples(codes: np.ndarray) -> np.ndarray:
    """Products of all pairs of centred codes, computed by chunks of features."""
    gram = np.zeros((len(codes), len(codes)))
    for columns in _slices(codes.shape[1], _CHUNK_BYTES // (16 * len(codes))):
        part = _finite(codes[:, columns], slice(0, len(codes))).astype(float)
        part -= part.mean(axis=0)
        gram += part @ part.T
    return gram


def _mean(values: np.ndarray, weights: np.ndarray | None) -> Any:
    """The mean of rows."""
    if weights is None:
        return values.mean(axis=0, dtype=float)
    return weights @ values / weights.sum()


def _rbf(gram: np.ndarray, gamma: float) -> np.ndarray:
    """The kernel exp(-gamma |a - b|^2) of all pairs, from their products."""
    squares = np.diag(gram)
    kernel = gram * -2
    kernel += squares
    kernel += squares[:, None]
    np.maximum(kernel, 0, out=kernel)
    kernel *= -gamma
    exponential: np.ndarray = np.exp(kernel, out=kernel)
    return exponential


def _finite(codes: np.ndarray, rows: slice) -> np.ndarray:
    """The codes of some rows, if they are finite."""
    good = np.isfinite(codes).all(axis=1)
    if not good.all():
        raise ValueError(
            f"codes: expected finite numbers, got others in row "
            f"{rows.start + int(np.argmin(good))}."
        )
    return codes


def _as_matrix(targets: np.ndarray, n_samples: int) -> np.ndarray:
    targets = np.asarray(targets)
    if len(targets) != n_samples or targets.ndim not in (1, 2):
        raise ValueError(
            f"targets: expected one row for each of the {n_samples} samples, got the "
            f"shape {targets.shape}."
        )
    return targets.reshape(n_samples, -1)


def _rows_of(groups: Any, y: np.ndarray, size: int) -> Iterator[tuple[Rows, bool]]:
    """Chunks of rows that are alone, and then the rows of each group."""
    groups = np.arange(len(y)) if groups is None else groups
    if np.shape(groups) != y.shape[:1]:
        raise ValueError(
            f"groups: expected one for each of the {len(y)} samples, got the shape "
            f"{np.shape(groups)}."
        )
    found, numbers, counts = np.unique(groups, False, True, True)
    if len(found) < 2:
        raise ValueError(f"groups: expected at least 2, got {found}.")
    alone = np.flatnonzero(counts[numbers] == 1)
    yield from ((alone[rows], False) for rows in _slices(len(alone), size))
    parts = np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])
    yield from ((rows, True) for rows in parts if len(rows) > 1)


def _slices(total: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, total, size))


def _check_memory(order: int, max_bytes: int, what: str) -> None:
    if (needed := _PAIR_BYTES * order**2) > max_bytes:
        raise ValueError(
            f"{order} {what} need {needed / 2**30:.1f} GiB for their eigenvectors, "
            f"more than max_bytes={max_bytes} allows. Expected fewer samples, shorter "
            "codes, or a larger max_bytes."
        )
