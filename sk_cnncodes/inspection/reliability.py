"""How far probabilities can be trusted: calibration, and accuracy over coverage."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from sk_cnncodes.base.public import public
from sk_cnncodes.inspection.evaluation import Evaluation
from sk_cnncodes.inspection.plots import COLORS, axes_for
from sk_cnncodes.inspection.predicting import evaluate

N_BINS = 10


def calibration_error(
    certainty: np.ndarray, right: np.ndarray, n_bins: int = N_BINS
) -> float:
    """Expected calibration error: how far probabilities are from the accuracy.

    Parameters
    ----------
    certainty : ndarray of float, shape (n_images,)
        Probability of the predicted class.
    right : ndarray of bool, shape (n_images,)
        Whether it is the true one.
    n_bins : int, default=10
        Bins of equal width.
    """
    gaps = np.bincount(_bins(certainty, n_bins), certainty - right)
    return float(np.abs(gaps).sum() / len(certainty))


def _bins(certainty: np.ndarray, n_bins: int) -> np.ndarray:
    bins: np.ndarray = np.minimum((certainty * n_bins).astype(int), n_bins - 1)
    return bins


@public
class ReliabilityDisplay:
    """How often a classifier is right, by how sure it is of it.

    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    confidence, accuracy : ndarray of float, shape (n_bins,)
        Mean probability of the predicted class, and share of right predictions, of each
        bin; NaN where it is empty.
    counts : ndarray of int, shape (n_bins,)
        Number of images.
    expected_calibration_error : float
        Mean of the distance of both, weighted by `counts`.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_cnncodes import ReliabilityDisplay
    >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    >>> display = ReliabilityDisplay.from_predictions(
    ...     ["cat", "dog", "dog", "dog"], probabilities, ["cat", "dog"]
    ... )
    >>> round(display.expected_calibration_error, 3)
    0.4
    """

    def __init__(
        self,
        confidence: np.ndarray,
        accuracy: np.ndarray,
        counts: np.ndarray,
        expected_calibration_error: float,
    ) -> None:
        self.confidence = confidence
        self.accuracy = accuracy
        self.counts = counts
        self.expected_calibration_error = expected_calibration_error

    @classmethod
    def from_estimator(
        cls, model: Any, images: Any, labels: Any, *, n_bins: int = N_BINS
    ) -> Self:
        """Predict images.

        Parameters
        ----------
        model : estimator or OnnxClassifier
            Fitted, with probabilities.
        images : container of images
            That the model was not fitted to.
        labels : array-like, shape (n_images,)
        n_bins : int, default=10

        Returns
        -------
        ReliabilityDisplay
        """
        return cls.from_evaluation(evaluate(model, images, labels), n_bins)

    @classmethod
    def from_evaluation(cls, evaluation: Evaluation, n_bins: int = N_BINS) -> Self:
        """Show what was predicted."""
        if evaluation.kind != "classification" or not evaluation.has_probabilities:
            raise ValueError("model: expected a classifier with probabilities.")
        return cls._of(evaluation.certainty, evaluation.right, n_bins)

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        probabilities: Any,
        classes: Any = None,
        *,
        n_bins: int = N_BINS,
    ) -> Self:
        """Show predictions.

        Parameters
        ----------
        y_true : array-like, shape (n_images,)
        probabilities : array-like, shape (n_images, n_classes)
        classes : array-like, shape (n_classes,), or None, default=None
            Of the columns; None takes the sorted ones of `y_true`.
        n_bins : int, default=10

        Returns
        -------
        ReliabilityDisplay
        """
        y_true, table = np.asarray(y_true), np.asarray(probabilities, float)
        names = np.unique(y_true) if classes is None else np.asarray(classes)
        if table.shape != (len(y_true), len(names)):
            raise ValueError(
                f"probabilities: expected the shape ({len(y_true)}, {len(names)}), "
                f"images and classes, got {table.shape}."
            )
        return cls._of(table.max(axis=1), names[table.argmax(axis=1)] == y_true, n_bins)

    @classmethod
    def _of(cls, certainty: np.ndarray, right: np.ndarray, n_bins: int) -> Self:
        bins = _bins(certainty, n_bins)
        counts = np.bincount(bins, minlength=n_bins)
        filled = np.where(counts, counts, np.nan)
        return cls(
            np.bincount(bins, certainty, n_bins) / filled,
            np.bincount(bins, right, n_bins) / filled,
            counts,
            calibration_error(certainty, right, n_bins),
        )

    def plot(self, ax: Any = None) -> Self:
        """Plot.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to plot; None makes a new figure.

        Returns
        -------
        self
        """
        ax = axes_for("ReliabilityDisplay", ax, (5, 4.5))
        width = 1 / len(self.counts)
        left = np.arange(len(self.counts)) * width
        ax.bar(
            left,
            self.accuracy,
            width,
            align="edge",
            color=COLORS[0],
            edgecolor="white",
            label="share that is right",
        )
        ax.plot([0, 1], [0, 1], color="black", linestyle="--", label="as it should be")
        ax.plot(
            self.confidence,
            self.accuracy,
            color=COLORS[1],
            marker="o",
            linestyle="none",
            label="mean probability",
        )
        for x, height, count in zip(left, self.accuracy, self.counts, strict=True):
            if count:
                inside = height > 0.15
                ax.text(
                    x + width / 2,
                    height - 0.02 if inside else height + 0.02,
                    str(count),
                    ha="center",
                    va="top" if inside else "bottom",
                    fontsize="small",
                    color="white" if inside else "black",
                )
        ax.set(
            xlim=(0, 1),
            ylim=(0, 1.02),
            xlabel="probability of the predicted class",
            ylabel="share of right predictions",
            title="Expected calibration error "
            f"{100 * self.expected_calibration_error:.1f}%; images in the bars",
        )
        ax.title.set_fontsize("medium")
        ax.legend(fontsize="small", loc="upper left")
        self.ax_, self.figure_ = ax, ax.figure
        return self
