"""What is special to classes, to several labels, and to values in a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, r2_score

from sk_cnncodes.inspection.evaluation import Evaluation
from sk_cnncodes.inspection.intervals import (
    accuracy_interval,
    balanced_interval,
    mean_interval,
)
from sk_cnncodes.inspection.page.figures import (
    Figure,
    draw_coverage,
    draw_histogram,
    draw_label_precisions,
    draw_residuals,
    draw_thresholds,
    draw_truth_and_prediction,
    figure,
)
from sk_cnncodes.inspection.page.tiles import MAX_TILES, Table, Tile, Tiles
from sk_cnncodes.inspection.plots import shortened
from sk_cnncodes.inspection.reliability import ReliabilityDisplay

# More classes make a matrix that no screen holds.
MAX_MATRIX = 30
# Its cells that are listed in its place.
_MAX_CELLS = 300
# Values to regress, and labels, that have plots of their own.
_MAX_PLOTTED = 4
_MAX_LABELS = 40


@dataclass(frozen=True)
class Number:
    """A figure at the top of a page.

    Attributes
    ----------
    name, value, note : str
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix.

    Attributes
    ----------
    truth, predicted : int
    count : int
    level : int
        From 0 for none to 5 for all images of the class.
    tiles : list of Tile
        Some of its images.
    """

    truth: int
    predicted: int
    count: int
    level: int
    tiles: list[Tile]

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return f"cell-{self.truth}-{self.predicted}"


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.1f}%"


def _interval(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}%"


# -- classes -----------------------------------------------------------------------


def class_numbers(evaluation: Evaluation) -> list[Number]:
    """Accuracies of a classifier."""
    count = len(evaluation.tested)
    right = int(evaluation.right.sum())
    truth, groups = evaluation.tested.truth, evaluation.groups
    matrix = evaluation.confusion_matrix
    sizes = matrix.sum(axis=1)
    known = (evaluation.train or evaluation.tested).truth
    most = int(np.bincount(known).argmax())
    recalls = matrix.diagonal()[sizes > 0] / sizes[sizes > 0]
    found = [
        Number(
            "Accuracy",
            percent(right / count),
            f"{right} of {count} images; 95% interval "
            f"{_interval(accuracy_interval(evaluation.right, groups))}",
        ),
        Number(
            "Balanced accuracy",
            percent(recalls.mean()),
            "each class alike; 95% interval "
            f"{_interval(balanced_interval(evaluation.right, truth, groups))}",
        ),
        Number(
            "Majority baseline",
            percent(sizes[most] / count),
            f"always guessing {evaluation.classes[most]!r}",
        ),
    ]
    if evaluation.has_probabilities:
        display = ReliabilityDisplay.from_evaluation(evaluation)
        found.append(
            Number(
                "Calibration error",
                percent(display.expected_calibration_error),
                f"probabilities say {percent(evaluation.certainty.mean())} on average",
            )
        )
    return found


def confusion_cells(evaluation: Evaluation, tiles: Tiles) -> list[Cell]:
    """Cells with images: first mistakes, the most frequent first, then the others."""
    matrix = evaluation.confusion_matrix
    sizes = np.maximum(matrix.sum(axis=1), 1)
    pairs = [(int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True)]
    pairs.sort(key=lambda pair: (pair[0] == pair[1], -matrix[pair]))
    if len(evaluation.classes) > MAX_MATRIX:
        wrong = [pair for pair in pairs if pair[0] != pair[1]]
        pairs = wrong[:_MAX_CELLS] + pairs[len(wrong) :]
    badness = evaluation.badness
    cells = []
    for truth, predicted in pairs:
        inside = (evaluation.tested.truth == truth) & (
            evaluation.predicted == predicted
        )
        rows = np.flatnonzero(inside)
        rows = rows[np.argsort(-badness[rows], kind="stable")][:MAX_TILES]
        count = int(matrix[truth, predicted])
        level = int(np.ceil(5 * count / sizes[truth]))
        shown = [
            tiles.tested(row, *_certainty(evaluation, row)) for row in rows.tolist()
        ]
        cells.append(Cell(truth, predicted, count, level, shown))
    return cells


def _certainty(evaluation: Evaluation, row: int) -> list[str]:
    if not evaluation.has_probabilities:
        return []
    return [percent(float(evaluation.certainty[row]))]


def trust(
    evaluation: Evaluation, points: list[tuple[float, float, float]], chosen: Any
) -> list[Figure]:
    """How far probabilities can be trusted.

    Parameters
    ----------
    evaluation : Evaluation
    points : list of (threshold, accuracy, coverage)
    chosen : float or None
        The suggested threshold.
    """
    display = ReliabilityDisplay.from_evaluation(evaluation)
    filled = np.flatnonzero(display.counts)
    bins = "; ".join(
        f"{percent(display.confidence[i])} sure, {percent(display.accuracy[i])} right, "
        f"{display.counts[i]} images"
        for i in filled
    )
    figures = [
        figure(
            display.plot,
            "reliability",
            (5, 4.2),
            f"Reliability diagram. {bins}.",
            "Bars at the dashed line: an image called 80% sure is right in 80% of all "
            "cases. Numbers are images.",
        )
    ]
    if points:
        some = points[:: max(1, len(points) // 8)]
        listed = "; ".join(f"from {t:.2f} on: {percent(a)} right" for t, a, _ in some)
        figures.append(
            figure(
                draw_coverage(points, chosen),
                "coverage",
                (5, 4.2),
                f"Accuracy over coverage. {listed}.",
                "Leaving out the images that the model is unsure of makes the others "
                "more often right.",
            )
        )
    return figures


# -- several labels ----------------------------------------------------------------


def label_numbers(evaluation: Evaluation) -> list[Number]:
    """Scores of a classifier of several labels."""
    truth, predicted = evaluation.tested.truth, evaluation.predicted
    precisions = _precisions(evaluation)
    f1 = f1_score(truth, predicted, average="micro", zero_division=0)
    right = int(evaluation.right.sum())
    return [
        Number(
            "Mean average precision",
            percent(np.nanmean(precisions)) if np.isfinite(precisions).any() else "-",
            f"of the labels; by chance {percent(truth.mean())}",
        ),
        Number("F1", percent(f1), "of all labels of all images together"),
        Number(
            "All labels right",
            percent(right / len(truth)),
            f"{right} of {len(truth)} images; 95% interval "
            f"{_interval(accuracy_interval(evaluation.right, evaluation.groups))}",
        ),
    ]


def _precisions(evaluation: Evaluation) -> np.ndarray:
    assert evaluation.scores is not None
    truth = evaluation.tested.truth
    return np.array(
        [
            average_precision_score(column, scores) if column.sum() > 0 else np.nan
            for column, scores in zip(truth.T, evaluation.scores.T, strict=True)
        ]
    )


def label_table(evaluation: Evaluation) -> Table:
    """Scores of each label, and the threshold that would be the best for its F1."""
    assert evaluation.scores is not None
    truth, predicted = evaluation.tested.truth, evaluation.predicted
    precisions = _precisions(evaluation)
    rows = []
    for number, name in enumerate(evaluation.classes):
        is_so, said = truth[:, number] > 0, predicted[:, number] > 0
        both = int((is_so & said).sum())
        best, at = _best_f1(is_so, evaluation.scores[:, number])
        rows.append(
            [
                name,
                f"{is_so.sum()}",
                "-" if np.isnan(precisions[number]) else percent(precisions[number]),
                percent(both / said.sum()) if said.any() else "-",
                percent(both / is_so.sum()) if is_so.any() else "-",
                percent(2 * both / (is_so.sum() + said.sum()))
                if is_so.any() or said.any()
                else "-",
                "-" if best is None else f"{percent(best)} from {at:.2f} on",
            ]
        )
    header = ["label", "images", "average precision", "precision", "recall", "F1"]
    return Table(
        "Labels. The last column is the best F1 that another threshold would give on "
        "these images.",
        [*header, "best F1"],
        rows,
    )


def _best_f1(truth: np.ndarray, scores: np.ndarray) -> tuple[float | None, float]:
    if not truth.any():
        return None, 0.0
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (truth.sum() + np.arange(1, len(truth) + 1))
    last = np.append(np.diff(scores[order]) != 0, True)
    best = int(np.argmax(np.where(last, f1, -1)))
    return float(f1[best]), float(scores[order][best])


def label_figures(evaluation: Evaluation) -> list[Figure]:
    """Average precisions, and precision and recall over the threshold."""
    assert evaluation.scores is not None
    truth, scores = evaluation.tested.truth, evaluation.scores
    precisions = _precisions(evaluation)
    shown = np.flatnonzero(np.isfinite(precisions))
    shown = shown[np.argsort(-precisions[shown], kind="stable")][:_MAX_LABELS]
    figures = []
    if len(shown):
        names = [evaluation.classes[number] for number in shown]
        listed = "; ".join(
            f"{evaluation.classes[n]} {percent(precisions[n])}" for n in shown
        )
        figures.append(
            figure(
                draw_label_precisions(
                    names, precisions[shown], truth.mean(axis=0)[shown]
                ),
                "precisions",
                (6.4, 1.2 + 0.3 * len(shown)),
                f"Average precision by label: {listed}.",
                "Average precision: how well a score sorts images with the label "
                "before the others.",
            )
        )
    middle = 0.5 if evaluation.has_probabilities else 0.0
    low, high = np.quantile(scores, [0.01, 0.99])
    thresholds = np.linspace(min(low, middle), max(high, middle), 60)
    said = scores[:, :, None] >= thresholds
    hits = (said & (truth[:, :, None] > 0)).sum(axis=(0, 1))
    n_said = said.sum(axis=(0, 1))
    curves = {
        "precision": hits / np.maximum(n_said, 1),
        "recall": hits / max(truth.sum(), 1),
        "F1": 2 * hits / np.maximum(n_said + truth.sum(), 1),
    }
    curves["precision"][n_said == 0] = np.nan
    best = int(np.argmax(curves["F1"]))
    figures.append(
        figure(
            draw_thresholds(thresholds, curves, middle),
            "thresholds",
            (6, 4),
            f"Precision, recall and F1 of all labels over the threshold; F1 is best, "
            f"{percent(curves['F1'][best])}, at {thresholds[best]:.2f}.",
            "A higher threshold gives fewer labels that are more often right.",
        )
    )
    return figures


# -- values ------------------------------------------------------------------------


def value_numbers(evaluation: Evaluation) -> list[Number]:
    """Errors of a regression."""
    truth, predicted = evaluation.tested.truth, evaluation.predicted
    found = []
    error = np.abs(predicted - truth)
    naive = np.abs(truth - np.median(truth, axis=0))
    if len(truth) > 1:
        found.append(
            Number(
                "R²",
                f"{r2_score(truth, predicted):.3f}",
                "explained share of the variance; 0 is always guessing the mean",
            )
        )
    for number, name in enumerate(evaluation.classes):
        of = f" of {name}" * (len(evaluation.classes) > 1)
        low, high = mean_interval(error[:, number], evaluation.groups)
        root = np.sqrt((error[:, number] ** 2).mean())
        found.append(
            Number(
                f"Mean absolute error{of}",
                f"{error[:, number].mean():.4g}",
                f"95% interval {low:.4g} to {high:.4g}; root mean square "
                f"{root:.4g}; always guessing the median: "
                f"{naive[:, number].mean():.4g}",
            )
        )
    return found[: 1 + _MAX_PLOTTED]


def value_figures(evaluation: Evaluation) -> list[Figure]:
    """Truth against prediction, residuals, and how often values occur."""
    figures = []
    truth, predicted = evaluation.tested.truth, evaluation.predicted
    for number in range(min(truth.shape[1], _MAX_PLOTTED)):
        several = truth.shape[1] > 1
        name = shortened(evaluation.classes[number], 30) if several else "value"
        x, y = truth[:, number], predicted[:, number]
        related = (
            ""
            if len(x) < 3 or not x.std() or not y.std()
            else (f" Their correlation is {np.corrcoef(x, y)[0, 1]:.3f}.")
        )
        figures += [
            figure(
                draw_truth_and_prediction(x, y, name),
                f"truth{number}",
                (5, 4.2),
                f"Predicted over true values of {len(x)} images, from {x.min():.4g} to "
                f"{x.max():.4g}.{related}",
                "On the dashed line, prediction and truth are the same.",
            ),
            figure(
                draw_residuals(x, y, name),
                f"residuals{number}",
                (5, 4.2),
                f"Prediction minus truth over predicted values; mean "
                f"{(y - x).mean():.4g}, standard deviation {(y - x).std():.4g}.",
                "A slope or a bend here is something that the model has not learned.",
            ),
        ]
    return figures


def value_histogram(values: np.ndarray, what: str) -> Figure:
    """How often values occur."""
    return figure(
        draw_histogram(values, "value"),
        "values",
        (6.4, 2.6),
        f"Histogram of the values of {len(values)} {what}, from {values.min():.4g} to "
        f"{values.max():.4g}, median {np.median(values):.4g}.",
    )
