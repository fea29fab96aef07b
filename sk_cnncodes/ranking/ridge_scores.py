"""The best ridge classifier or regression on codes, by its leave-one-out score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sk_cnncodes.backbones.norms import apply_norm
from sk_cnncodes.ranking.leave_one_out import ridge_decompositions
from sk_cnncodes.ranking.scoring import ALPHAS, Targets, alpha_losses, sample_scores

# Bytes of the predictions of several alphas that are scored at once.
_PREDICTION_BYTES = 2**26
# Bytes of the codes that are read at once.
_CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class RidgeScore:
    """Leave-one-out score of ridge with one kernel and one alpha.

    Attributes
    ----------
    gamma : float or None
        None is the linear kernel, a number the kernel ``exp(-gamma * |a - b|**2)``.
    alpha : float
    score : float
    samples : ndarray, shape (n_samples,)
        What each sample adds to the score, which is their mean.
    predictions : ndarray, shape (n_samples, n_targets), or None
        Of the models without the sample, or its group; None if they were not kept.
    """

    gamma: float | None
    alpha: float
    score: float
    samples: np.ndarray
    predictions: np.ndarray | None


def best_ridge(
    codes: Any,
    targets: Targets,
    scoring: str,
    gammas: Sequence[float | None] = (None,),
    *,
    groups: np.ndarray | None = None,
) -> RidgeScore:
    """Choose a kernel and an alpha by leave-one-out predictions.

    Parameters
    ----------
    codes : ndarray, memmap or NormedCodes, shape (n_samples, n_features)
    targets : Targets
    scoring : str
        As for `sample_scores`.
    gammas : sequence of float or None, default=(None,)
        None is the linear kernel, a number the kernel
        ``exp(-gamma * |a - b|**2 / spread(codes))``.
    groups : ndarray, shape (n_samples,), or None, default=None
        None leaves out one sample at a time.

    Returns
    -------
    RidgeScore
        Of the kernel with the best score, with the alpha of the least `alpha_losses`.
    """
    best: RidgeScore | None = None
    found: RidgeScore | None
    scale = spread(codes)
    wanted = [None if gamma is None else gamma / scale for gamma in gammas]
    step = max(1, _PREDICTION_BYTES // (8 * targets.values.size))
    ridges = ridge_decompositions(codes, wanted, weights=targets.weights)
    for gamma, ridge in zip(wanted, ridges, strict=True):
        alphas = ALPHAS * (scale if gamma is None else 1)
        found, least = None, np.inf
        for start in range(0, len(alphas), step):
            part = alphas[start : start + step]
            predictions = ridge.predictions(targets.values, part, groups)
            samples = sample_scores(predictions, targets, scoring)
            losses = alpha_losses(predictions, targets, scoring, samples)
            position = int(np.argmin(losses))
            if losses[position] < least:
                least = losses[position]
                found = RidgeScore(
                    gamma,
                    float(part[position]),
                    float(samples[position].mean()),
                    samples[position].copy(),
                    predictions[position].copy(),
                )
        assert found is not None
        if best is None or found.score > best.score:
            best = found
    assert best is not None
    return best


def spread(codes: Any) -> float:
    """Mean squared distance of codes from their mean; 1 if all are equal.

    Codes of an early layer are close to each other. In units of it, the same
    regularisations and kernels suit all layers.
    """
    n_samples, n_features = codes.shape
    total, squares = np.zeros(n_features), 0.0
    step = max(1, _CHUNK_BYTES // (8 * n_features))
    for start in range(0, n_samples, step):
        part = codes[start : start + step].astype(float)
        total += part.sum(axis=0)
        squares += float((part**2).sum())
    mean = total / n_samples
    found = squares / n_samples - float(mean @ mean)
    return found if found > 1e-12 * squares / n_samples else 1.0


class NormedCodes:
    """Codes that are normalised when rows of them are read.

    Parameters
    ----------
    parts : list of ndarray or memmap, shape (n_samples, n_part_features)
        Codes of layers, side by side, without norm.
    norm : str or None
        As for `apply_norm`; of each part.
    rows : ndarray of int, shape (n_rows,), or None, default=None
        The samples that are meant; None are all.
    """

    ndim = 2

    def __init__(
        self,
        parts: list[np.ndarray],
        norm: str | None,
        rows: np.ndarray | None = None,
    ) -> None:
        self._parts = parts
        self.norm = norm
        self._rows = rows
        n_rows = len(parts[0]) if rows is None else len(rows)
        self.shape = n_rows, sum(part.shape[1] for part in parts)

    def take(self, rows: np.ndarray) -> NormedCodes:
        """The codes of some samples, which are not read yet."""
        rows = rows if self._rows is None else self._rows[rows]
        return NormedCodes(self._parts, self.norm, rows)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The codes of some samples."""
        rows = rows if self._rows is None else self._rows[rows]
        normed = [apply_norm(np.asarray(part[rows]), self.norm) for part in self._parts]
        return normed[0] if len(normed) == 1 else np.hstack(normed)
