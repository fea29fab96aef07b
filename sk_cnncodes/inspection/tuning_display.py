"""FineTuningDisplay: a training by epoch, against the frozen model."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sk_cnncodes.base.public import public
from sk_cnncodes.inspection.plots import COLORS, grid_for
from sk_cnncodes.ranking.ranked_codes import SHARES
from sk_cnncodes.tuning.fitting import FineTuning


@public
class FineTuningDisplay:
    """A fine-tuning by epoch: scores against the frozen model, losses, learning rates.

    Parameters
    ----------
    history : dict of str to list
        See `FineTunedClassifier`.
    scoring : str
        Name of the validation score, such as "accuracy".
    frozen_score : float
        Of the frozen model, on the same images.
    gain_error : float
        Standard error of the difference to the frozen model.
    best_epoch : int
    is_tuned : bool
        Whether the tuned model was taken.
    decision : str, default=""
        Why, in words.

    Attributes
    ----------
    axes_ : ndarray of matplotlib.axes.Axes, shape (3,)
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.

    Examples
    --------
    >>> from sk_cnncodes import FineTunedClassifier, FineTuningDisplay
    >>> model = FineTunedClassifier().fit(X, y)  # doctest: +SKIP
    >>> FineTuningDisplay.from_estimator(model).plot()  # doctest: +SKIP
    """

    def __init__(
        self,
        history: dict[str, list[float]],
        scoring: str,
        frozen_score: float,
        gain_error: float,
        best_epoch: int,
        is_tuned: bool,
        decision: str = "",
    ) -> None:
        self.history = history
        self.scoring = scoring
        self.frozen_score = frozen_score
        self.gain_error = gain_error
        self.best_epoch = best_epoch
        self.is_tuned = is_tuned
        self.decision = decision

    @classmethod
    def from_estimator(cls, model: Any) -> Self:
        """Show how a model was fine-tuned.

        Parameters
        ----------
        model : FineTunedClassifier or FineTunedRegressor
            Fitted.

        Returns
        -------
        FineTuningDisplay
        """
        if not isinstance(model, FineTuning):
            raise TypeError(
                "model: expected a FineTunedClassifier or FineTunedRegressor, got "
                f"{type(model).__name__}."
            )
        check_is_fitted(model)
        return cls(
            model.history_,
            "accuracy" if hasattr(model, "classes_") else "r2",
            model.frozen_score_,
            model.gain_error_,
            model.best_epoch_,
            model.is_tuned_,
            model.decision_,
        )

    @property
    def in_percent(self) -> bool:
        """Whether scores are shown in percent."""
        return self.scoring in SHARES

    def plot(self, ax: Any = None) -> Self:
        """Plot.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Whose place to take; None makes a new figure.

        Returns
        -------
        self
        """
        ratios = {"height_ratios": [1.4, 1, 0.8], "hspace": 0.1}
        figure, axes = grid_for("FineTuningDisplay", ax, (3, 1), (6, 7), **ratios)
        score, loss, rates = axes[:, 0]
        epochs, tuned = self.history["epoch"], self.history["validation_score"]
        factor, unit = (100, ", in %") if self.in_percent else (1, "")
        ahead = factor * (self.frozen_score + self.gain_error)
        frozen = factor * self.frozen_score
        score.axhspan(
            2 * frozen - ahead, ahead, color="#dddddd", label="+- 1 standard error"
        )
        score.axhline(frozen, color="black", linestyle="--", label="frozen")
        score.plot(
            epochs, factor * np.array(tuned), color=COLORS[0], marker=".", label="tuned"
        )
        score.plot(
            self.best_epoch,
            factor * tuned[epochs.index(self.best_epoch)],
            color=COLORS[1],
            marker="o",
            markersize=11,
            fillstyle="none",
            linestyle="none",
            label="best: taken" if self.is_tuned else "best: not taken",
        )
        score.set_ylabel(f"validation {self.scoring}{unit}")
        loss.plot(
            epochs,
            self.history["validation_loss"],
            color=COLORS[0],
            marker=".",
            label="validation",
        )
        loss.plot(
            epochs,
            self.history["loss"],
            color=COLORS[2],
            marker="x",
            linestyle=":",
            label="training",
        )
        loss.set_ylabel("loss")
        for name, color, style, label in (
            ("head_learning_rate", COLORS[1], "--", "head"),
            ("learning_rate", COLORS[0], "-", "blocks, largest"),
        ):
            rates.plot(
                epochs[1:],
                self.history[name][1:],
                color=color,
                linestyle=style,
                marker=".",
                label=label,
            )
        rates.set_ylabel("learning rate")
        rates.set_xlabel("epoch; 0 is before training")
        for each in axes[:, 0]:
            each.set_xlim(-0.3, max(epochs) + 0.3)
            each.xaxis.get_major_locator().set_params(integer=True)
            each.grid(alpha=0.3)
            each.legend(fontsize="small", framealpha=0.6)
        self.axes_, self.figure_ = axes[:, 0], figure
        return self
