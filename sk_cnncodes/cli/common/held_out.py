"""Figures about held-out images: of classes, of several labels, of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sk_cnncodes.inspection.evaluation import Evaluation

# Of more classes, the worst and the most frequent confusions: all should fit a screen.
_MAX_CLASSES = 10
_MAX_CONFUSIONS = 10


def held_out_figures(
    evaluation: Evaluation, groups: Sequence[str] | None = None
) -> HeldOutClasses | HeldOutLabels | HeldOutValues:
    """Figures of what a model predicts for images that it was not fitted to.

    Parameters
    ----------
    evaluation : Evaluation
        Baselines are what its training images say, or without those its own.
    groups : sequence of str or None, default=None
        Of its images: those of a group are right or wrong together.
    """
    units = None
    if groups is not None and len({*groups}) < len(groups):
        units = np.asarray(groups)
    if evaluation.kind == "regression":
        return HeldOutValues(evaluation, units)
    if evaluation.kind == "multilabel":
        return HeldOutLabels(evaluation, units)
    return HeldOutClasses(evaluation, units)


def shown_interval(interval: tuple[float, float]) -> str:
    """An interval of shares, in percent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _known(evaluation: Evaluation) -> np.ndarray:
    """The truth of the training images, or without those of the images."""
    return (evaluation.train or evaluation.tested).truth


class HeldOutClasses:
    """Figures of classes. Parameters are those of `held_out_figures`."""

    def __init__(self, evaluation: Evaluation, groups: np.ndarray | None) -> None:
        from sk_cnncodes.inspection.intervals import (
            accuracy_interval,
            balanced_interval,
        )

        self._classes = evaluation.classes
        names = np.array(evaluation.classes)
        self._labels = names[evaluation.tested.truth]
        self._predicted = names[evaluation.predicted]
        # Decision values are no probabilities.
        self._certainty = evaluation.certainty if evaluation.has_probabilities else None
        self._matrix = evaluation.confusion_matrix
        self._most_frequent = str(names[np.bincount(_known(evaluation)).argmax()])
        self._baseline = float((self._labels == self._most_frequent).mean())
        self._interval = accuracy_interval(evaluation.right, groups)
        self._balanced_interval = balanced_interval(
            evaluation.right, evaluation.tested.truth, groups
        )

    def as_dict(self) -> dict[str, Any]:
        """The figures as values for JSON."""
        from sklearn.metrics import classification_report

        from sk_cnncodes.inspection.reliability import calibration_error

        certainty, right = self._certainty, self._predicted == self._labels
        return {
            "images": len(self._labels),
            "accuracy": self._accuracy,
            "accuracy_interval": list(self._interval),
            "balanced_accuracy": self._balanced,
            "balanced_accuracy_interval": list(self._balanced_interval),
            "baseline": {"label": self._most_frequent, "accuracy": self._baseline},
            "mean_probability": None if certainty is None else float(certainty.mean()),
            "expected_calibration_error": (
                None if certainty is None else calibration_error(certainty, right)
            ),
            "classes": classification_report(
                self._labels, self._predicted, output_dict=True, zero_division=0
            ),
            "confusion_matrix": self._matrix.tolist(),
        }

    def headline(self) -> str:
        """Sentences, a line each."""
        always = f"always {self._most_frequent!r}"
        chance = (self._baseline > 0) / len({*self._labels})
        text = (
            f"Held-out accuracy: {100 * self._accuracy:.2f}% (95% interval "
            f"{shown_interval(self._interval)}); {always}: "
            f"{100 * self._baseline:.2f}%.\n"
            f"Balanced, each class alike: {100 * self._balanced:.2f}% "
            f"({shown_interval(self._balanced_interval)}); {always}: "
            f"{100 * chance:.2f}%."
        )
        if self._certainty is None:
            return text
        return (
            f"{text}\nMean probability of what is predicted: "
            f"{100 * self._certainty.mean():.2f}%."
        )

    def tables(self) -> list[str]:
        """Tables for a terminal."""
        from sklearn.metrics import classification_report

        figures = (self._labels, self._predicted)
        table = classification_report(*figures, zero_division=0).strip("\n")
        of_classes = classification_report(*figures, zero_division=0, output_dict=True)
        names = sorted({*self._labels, *self._predicted})
        scores = [of_classes[name]["f1-score"] for name in names]
        return [_worst_classes(table, scores), confusions(self._classes, self._matrix)]

    @property
    def _balanced(self) -> float:
        occurs = self._matrix.any(axis=1)
        hits = self._matrix.diagonal()[occurs]
        return float((hits / self._matrix[occurs].sum(axis=1)).mean())

    @property
    def _accuracy(self) -> float:
        return float(self._matrix.trace() / self._matrix.sum())


def _worst_classes(table: str, scores: list[float]) -> str:
    """A classification report with the worst classes alone if there are many."""
    if len(scores) <= _MAX_CLASSES:
        return table
    header, lines = table.splitlines()[:2], table.splitlines()[2:]
    worst = sorted(range(len(scores)), key=lambda row: scores[row])[:_MAX_CLASSES]
    return "\n".join(
        [
            *header,
            *(lines[row] for row in worst),
            f"... {len(scores) - len(worst)} better ones (--json prints all)",
            *lines[len(scores) :],
        ]
    )


class HeldOutLabels:
    """Figures of several labels. Parameters are those of `held_out_figures`."""

    def __init__(self, evaluation: Evaluation, groups: np.ndarray | None) -> None:
        from sk_cnncodes.inspection.intervals import accuracy_interval

        assert evaluation.scores is not None
        self._names = evaluation.classes
        self._truth = evaluation.tested.truth
        self._values = evaluation.scores
        self._predicted = evaluation.predicted
        kinds, counts = np.unique(_known(evaluation), axis=0, return_counts=True)
        self._baseline = float((self._truth == kinds[counts.argmax()]).all(1).mean())
        self._interval = accuracy_interval(evaluation.right, groups)

    def as_dict(self) -> dict[str, Any]:
        """The figures as values for JSON."""
        from sklearn.metrics import classification_report

        occurs = self._truth.any(axis=0)
        precisions = self._average_precisions()
        return {
            "images": len(self._truth),
            "average_precision": float(precisions[occurs].mean()),
            "accuracy": self._accuracy,
            "accuracy_interval": list(self._interval),
            # By chance, a ranking reaches how frequent the labels are.
            "baseline": {
                "average_precision": float(self._truth[:, occurs].mean()),
                "accuracy": self._baseline,
            },
            "labels": {
                name: figures | {"average_precision": float(precision)}
                for name, precision, figures in zip(
                    self._names,
                    precisions,
                    classification_report(
                        self._truth,
                        self._predicted,
                        target_names=self._names,
                        labels=range(len(self._names)),
                        output_dict=True,
                        zero_division=0,
                    ).values(),
                    strict=False,
                )
            },
        }

    def headline(self) -> str:
        """Sentences, a line each."""
        found = self.as_dict()
        chance = found["baseline"]["average_precision"]
        return (
            "Held-out mean average precision of the labels: "
            f"{100 * found['average_precision']:.2f}%; by chance: {100 * chance:.2f}%."
            f"\nAll labels right: {100 * self._accuracy:.2f}% of the images (95% "
            f"interval {shown_interval(self._interval)}); always the most frequent "
            f"ones: {100 * self._baseline:.2f}%."
        )

    def tables(self) -> list[str]:
        """Tables for a terminal."""
        from sklearn.metrics import classification_report

        table = classification_report(
            self._truth,
            self._predicted,
            target_names=self._names,
            labels=range(len(self._names)),
            zero_division=0,
        )
        width = max(map(len, ("label", *self._names)))
        lines = [f"{'label':<{width}}  average precision, in %"] + [
            f"{name:<{width}}  {100 * precision:21.2f}"
            for name, precision in zip(
                self._names, self._average_precisions(), strict=True
            )
        ]
        return [table.strip("\n"), "\n".join(lines)]

    @property
    def _accuracy(self) -> float:
        return float((self._predicted == self._truth).all(axis=1).mean())

    def _average_precisions(self) -> np.ndarray:
        """Of each label; 0 for one that no image has."""
        from sklearn.metrics import average_precision_score

        return np.array(
            [
                average_precision_score(truth, values) if truth.any() else 0.0
                for truth, values in zip(self._truth.T, self._values.T, strict=True)
            ]
        )


class HeldOutValues:
    """Figures of a regression. Parameters are those of `held_out_figures`."""

    def __init__(self, evaluation: Evaluation, groups: np.ndarray | None) -> None:
        self._truth = evaluation.tested.truth
        self._predicted = evaluation.predicted
        self._mean = _known(evaluation).mean(axis=0)
        self._groups = groups

    def as_dict(self) -> dict[str, Any]:
        """The figures as values for JSON."""
        from sklearn.metrics import r2_score

        from sk_cnncodes.inspection.intervals import mean_interval

        errors = np.abs(self._predicted - self._truth)
        each = errors.reshape(len(errors), -1).mean(axis=1)
        constant = len(self._truth) < 2 or np.ptp(self._truth) == 0
        return {
            "images": len(self._truth),
            "r2": None if constant else float(r2_score(self._truth, self._predicted)),
            "mean_absolute_error": float(errors.mean()),
            "mean_absolute_error_interval": list(mean_interval(each, self._groups)),
            "median_absolute_error": float(np.median(errors)),
            # The mean of the training images, whose R2 is about 0.
            "baseline": {
                "value": np.asarray(self._mean).tolist(),
                "mean_absolute_error": float(np.abs(self._truth - self._mean).mean()),
            },
        }

    def headline(self) -> str:
        """A sentence."""
        found = self.as_dict()
        r2 = "" if found["r2"] is None else f"R2 {found['r2']:.3f}, "
        low, high = found["mean_absolute_error_interval"]
        baseline = found["baseline"]["mean_absolute_error"]
        return (
            f"Held out: {r2}mean absolute error {found['mean_absolute_error']:.4g} "
            f"(95% interval {low:.4g} to {high:.4g}); always the mean of the training "
            f"images: {baseline:.4g}."
        )

    def tables(self) -> list[str]:
        """Tables for a terminal: none."""
        return []


def confusions(classes: list[str], matrix: np.ndarray) -> str:
    """Format the confusion matrix; for many classes, the most frequent confusions.

    Parameters
    ----------
    classes : list of str
    matrix : ndarray of int, shape (n_classes, n_classes)
        Rows are true classes, columns are predicted classes.
    """
    if len(classes) <= _MAX_CLASSES:
        cell = max(len(str(matrix.max())), len(str(len(classes)))) + 1
        name = max(map(len, classes))
        numbers = "".join(f"{i:{cell}}" for i in range(1, len(classes) + 1))
        lines = ["Confusion matrix; rows: truth, columns: prediction, dots: 0", ""]
        lines.append(" " * (name + 4) + numbers)
        for i, (label, row) in enumerate(zip(classes, matrix, strict=True), 1):
            cells = "".join(f"{count or '.':>{cell}}" for count in row)
            lines.append(f"{label:<{name}}  {i:2}{cells}")
        return "\n".join(lines)
    wrong = matrix - np.diag(matrix.diagonal())
    positions = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    pairs = zip(*np.unravel_index(positions, wrong.shape), strict=True)
    listed = [
        f"{wrong[row, column]:5}  {classes[row]} predicted as {classes[column]}"
        for row, column in pairs
        if wrong[row, column]
    ]
    head = "Most frequent confusions (--json prints the whole confusion matrix):"
    return "\n".join([head, "", *(listed or ["none"])])
