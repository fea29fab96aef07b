"""Displays of what was compared: layers by their ranking, and heads on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np

from sk_cnncodes.base.public import public
from sk_cnncodes.inspection.plots import COLORS, axes_for, shortened
from sk_cnncodes.ranking.code_ranking import CodeRanking

# Endings of the parameters of a search that say which codes were used, and with what.
_BACKBONE, _LAYER, _NORM, _HEAD = "backbone", "layer", "norm", "head"
# What results of scores are in percent.
_PERCENT = 100


@public
class LayerRankingDisplay:
    """Scores of layers over the multiply-adds that their codes take.

    Parameters
    ----------
    ranking : CodeRanking

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.

    See Also
    --------
    CodeRanking.plot : The same plot.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import LayerRankingDisplay, rank_codes
    >>> digits = load_digits()
    >>> X, y = digits.images[:60] / 16, digits.target[:60]
    >>> ranking = rank_codes(X, y, ["cnncodes-mini"], [-1, -2])
    >>> display = LayerRankingDisplay.from_ranking(ranking)
    >>> len(display.ranking.rows)
    4
    """

    def __init__(self, ranking: CodeRanking) -> None:
        self.ranking = ranking

    @classmethod
    def from_ranking(cls, ranking: CodeRanking) -> Self:
        """Show a ranking.

        Parameters
        ----------
        ranking : CodeRanking

        Returns
        -------
        LayerRankingDisplay
        """
        if not isinstance(ranking, CodeRanking):
            raise TypeError(
                "ranking: expected a CodeRanking of rank_codes, got "
                f"{type(ranking).__name__}."
            )
        return cls(ranking)

    @classmethod
    def from_estimator(cls, model: Any) -> Self:
        """Show the `ranking_` of a fitted `CNNCodeClassifier` or `CNNCodeRegressor`.

        Parameters
        ----------
        model : CNNCodeClassifier or CNNCodeRegressor

        Returns
        -------
        LayerRankingDisplay
        """
        return cls.from_ranking(getattr(model, "ranking_", None))  # type: ignore[arg-type]

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
        self.ax_ = self.ranking.plot(axes_for("LayerRankingDisplay", ax, (9, 4.5)))
        self.figure_ = self.ax_.figure
        return self


@public
class LayerHeadDisplay:
    """Cross-validated scores by codes and head, with those of the folds.

    Parameters
    ----------
    codes : list of str
        Backbone, layer and norm, the rows of the table.
    heads : list of str
        Its columns.
    means, lows, highs : ndarray of float, shape (n_codes, n_heads)
        Mean score, and those of the worst and the best fold; NaN for what was not
        compared.
    scoring : str
        What the scores are.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import CNNCodeClassifier, LayerHeadDisplay
    >>> digits = load_digits()
    >>> model = CNNCodeClassifier(layers=[-1, -2], heads=["lda", "ridge"], n_codes=1)
    >>> model = model.fit(digits.images[:60] / 16, digits.target[:60])
    >>> display = LayerHeadDisplay.from_search(model)
    >>> display.heads
    ['lda', 'ridge']
    """

    def __init__(
        self,
        codes: list[str],
        heads: list[str],
        means: np.ndarray,
        lows: np.ndarray,
        highs: np.ndarray,
        scoring: str,
    ) -> None:
        self.codes = codes
        self.heads = heads
        self.means = means
        self.lows = lows
        self.highs = highs
        self.scoring = scoring

    @classmethod
    def from_search(cls, search: Any) -> Self:
        """Show what was compared.

        Parameters
        ----------
        search : CNNCodeClassifier, CNNCodeRegressor, or search of scikit-learn
            Fitted, such as a `GridSearchCV` or a `code_search`. Of its parameters,
            those that end in "backbone", "layer" and "norm" are rows, and all others
            are columns.

        Returns
        -------
        LayerHeadDisplay
        """
        results = getattr(search, "cv_results_", None)
        if results is None:
            raise TypeError(
                "search: expected a fitted search with cv_results_, got "
                f"{type(search).__name__}."
            )
        key = "mean_test_score"
        if key not in results:
            key = f"mean_test_{search.refit}"
        name = key.removeprefix("mean_")
        folds = [k for k in results if k.startswith("split") and k.endswith(name)]
        folds = [k for k in folds if k.removesuffix(name)[5:-1].isdigit()]
        scores = np.array([results[fold] for fold in folds], float).T
        rows, columns = list[str](), list[str]()
        places = list[tuple[str, str]]()
        for parameters in results["params"]:
            place = _codes_text(parameters), _head_text(parameters)
            rows += [place[0]] if place[0] not in rows else []
            columns += [place[1]] if place[1] not in columns else []
            places.append(place)
        means = np.full((len(rows), len(columns)), np.nan)
        lows, highs = means.copy(), means.copy()
        for (row, column), mean, found in zip(
            places, results[key], scores, strict=True
        ):
            at = rows.index(row), columns.index(column)
            # Of other parameters, such as C, the best.
            if not means[at] >= mean:
                means[at], lows[at], highs[at] = mean, found.min(), found.max()
        ranking = getattr(search, "ranking_", None)
        scoring = str(getattr(search, "scoring", None) or "score")
        if ranking is not None:
            scoring = ranking.scoring
        return cls(rows, columns, means, lows, highs, scoring)

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
        n_rows, n_heads = self.means.shape
        height = 1.2 + 0.18 * n_rows * (n_heads + 1)
        ax = axes_for("LayerHeadDisplay", ax, (8, min(height, 12)))
        share = not self.scoring.startswith("neg_") and self.scoring != "r2"
        factor = _PERCENT if share else 1
        width = 0.8 / n_heads
        for number, head in enumerate(self.heads):
            y = np.arange(n_rows) + (number - (n_heads - 1) / 2) * width
            mean = factor * self.means[:, number]
            low, high = factor * self.lows[:, number], factor * self.highs[:, number]
            ax.errorbar(
                mean,
                y,
                xerr=[mean - low, high - mean],
                color=COLORS[number % len(COLORS)],
                marker="os^Dv<>"[number % 7],
                linestyle="none",
                capsize=2,
                label=shortened(head, 40),
            )
        ax.set_yticks(range(n_rows), [shortened(text, 44) for text in self.codes])
        ax.invert_yaxis()
        ax.grid(axis="x", alpha=0.3)
        unit = ", in %" if share else ""
        ax.set_xlabel(
            f"cross-validated {self.scoring}{unit}; bars: worst and best fold"
        )
        ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _parameter(parameters: dict[str, Any], ending: str) -> Any:
    """The value of a parameter, at any depth; None if there is none."""
    for name, value in parameters.items():
        if name.rpartition("__")[2] == ending and value is not None:
            return value
    return None


def _codes_text(parameters: dict[str, Any]) -> str:
    backbone = _parameter(parameters, _BACKBONE)
    layer, norm = _parameter(parameters, _LAYER), _parameter(parameters, _NORM)
    if isinstance(layer, (list, tuple)):
        layer = ", ".join(map(str, layer))
    words = [] if backbone is None else [Path(str(backbone)).name]
    words += [] if layer is None else [f"layer {layer}"]
    words += [] if norm is None else [str(norm)]
    return ", ".join(words) or "codes"


def _head_text(parameters: dict[str, Any]) -> str:
    head = _parameter(parameters, _HEAD)
    if head is not None:
        return head if isinstance(head, str) else type(head).__name__
    estimators = [
        type(value).__name__ for value in parameters.values() if hasattr(value, "fit")
    ]
    return ", ".join(estimators) or "head"
