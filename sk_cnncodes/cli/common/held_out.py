"""Figures about held-out images: of classes, of several labels, of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sk_cnncodes.inspection.evaluation import Evaluation

# Wider confusion matrices do not fit a terminal.
_MAX_CLASSES = 20
_MAX_CONFUSIONS = 20


def held_out_figures(
    evaluation: Evaluation,
) -> HeldOutClasses | HeldOutLabels | HeldOutValues:
    """Figures of what a model predicts for images that it was not fitted to.

    Parameters
    ----------
    evaluation : Evaluation
    """
    if evaluation.kind == "regression":
        return HeldOutValues(evaluation)
    if evaluation.kind == "multilabel":
        return HeldOutLabels(evaluation)
    return HeldOutClasses(evaluation)


class HeldOutClasses:
    """Figures of classes. Parameters are those of `held_out_figures`."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._classes = evaluation.classes
        names = np.array(evaluation.classes)
        self._labels = names[evaluation.tested.truth]
        self._predicted = names[evaluation.predicted]
        # Decision values are no probabilities.
        self._certainty = evaluation.certainty if evaluation.has_probabilities else None
        self._matrix = evaluation.confusion_matrix

    def as_dict(self) -> dict[str, Any]:
        """The figures as values for JSON."""
        from sklearn.metrics import classification_report

        from sk_cnncodes.inspection.reliability import calibration_error

        certainty, right = self._certainty, self._predicted == self._labels
        return {
            "images": len(self._labels),
            "accuracy": self._accuracy,
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
        """A sentence."""
        text = f"Held-out accuracy: {100 * self._accuracy:.2f}%"
        if self._certainty is None:
            return f"{text}."
        return (
            f"{text}; mean probability of what is predicted: "
            f"{100 * self._certainty.mean():.2f}%."
        )

    def tables(self) -> list[str]:
        """Tables for a terminal."""
        from sklearn.metrics import classification_report

        of_classes = classification_report(
            self._labels, self._predicted, zero_division=0
        )
        return [of_classes.strip("\n"), confusions(self._classes, self._matrix)]

    @property
    def _accuracy(self) -> float:
        return float(self._matrix.trace() / self._matrix.sum())


class HeldOutLabels:
    """Figures of several labels. Parameters are those of `held_out_figures`."""

    def __init__(self, evaluation: Evaluation) -> None:
        assert evaluation.scores is not None
        self._names = evaluation.classes
        self._truth = evaluation.tested.truth
        self._values = evaluation.scores
        self._predicted = evaluation.predicted

    def as_dict(self) -> dict[str, Any]:
        """The figures as values for JSON."""
        from sklearn.metrics import classification_report

        occurs = self._truth.any(axis=0)
        precisions = self._average_precisions()
        return {
            "images": len(self._truth),
            "average_precision": float(precisions[occurs].mean()),
            "accuracy": self._accuracy,
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
        """A sentence."""
        found = self.as_dict()
        return (
            "Held-out mean average precision of the labels: "
            f"{100 * found['average_precision']:.2f}%; all labels right: "
            f"{100 * self._accuracy:.2f}% of the images."
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
        return [table.strip("\n")]

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

    def __init__(self, evaluation: Evaluation) -> None:
        self._truth = evaluation.tested.truth
        self._predicted = evaluation.predicted

    def as_dict(self) -> dict[str, Any]:
        """The figures as values for JSON."""
        from sklearn.metrics import r2_score

        errors = np.abs(self._predicted - self._truth)
        spread = np.abs(self._truth - np.median(self._truth))
        constant = len(self._truth) < 2 or np.ptp(self._truth) == 0
        return {
            "images": len(self._truth),
            "r2": None if constant else float(r2_score(self._truth, self._predicted)),
            "mean_absolute_error": float(errors.mean()),
            "median_absolute_error": float(np.median(errors)),
            "mean_absolute_error_of_the_median": float(spread.mean()),
        }

    def headline(self) -> str:
        """A sentence."""
        found = self.as_dict()
        r2 = "" if found["r2"] is None else f"R2 {found['r2']:.3f}, "
        return (
            f"Held out: {r2}mean absolute error {found['mean_absolute_error']:.4g}; "
            "that of always predicting their median is "
            f"{found['mean_absolute_error_of_the_median']:.4g}."
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
