"""The training report: ranked codes, compared heads, held-out images, confusions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.cli.common.frame import format_table

if TYPE_CHECKING:
    from sk_cnncodes.heads.code_estimators import CNNCodeClassifier

_WIDTH = 80
# Best codes that the text shows, besides the recommended ones.
_MAX_RANKED = 5
# Wider confusion matrices do not fit a terminal.
_MAX_CLASSES = 20
_MAX_CONFUSIONS = 20
# Bins of the expected calibration error, of equal width.
_N_BINS = 10


class Report:
    """What a fitted classifier chose, and its accuracy on held-out images.

    Parameters
    ----------
    model : CNNCodeClassifier
        Fitted.
    n_train : int
        Number of images that it was fitted on.
    held_out : sequence of str
        Paths of held-out images; may be empty.
    labels : sequence of str
        Classes of the held-out images.
    refitted : bool
        Whether the saved model is fitted to all images.
    """

    def __init__(
        self,
        model: CNNCodeClassifier,
        n_train: int,
        held_out: Sequence[str],
        labels: Sequence[str],
        refitted: bool,
    ) -> None:
        from sklearn.metrics import confusion_matrix

        self._model = model
        self._n_train = n_train
        self._refitted = refitted
        self._labels = np.array(labels)
        self._classes = [str(name) for name in model.classes_]
        self._predicted = np.zeros(0, str)
        self._certainty = np.zeros(0)
        self._matrix = np.zeros((0, 0), int)
        if held_out:
            probabilities = model.predict_proba(list(held_out))
            self._predicted = model.classes_[probabilities.argmax(axis=1)]
            self._certainty = probabilities.max(axis=1)
            self._matrix = confusion_matrix(
                self._labels, self._predicted, labels=model.classes_
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values for JSON.

        The keys are

        - ``images``, ``classes``: their number, and the names;
        - ``ranking``: the attributes of `RankedCodes` for each layer and norm, the best
          first; ``ranking_notes``: what a reader of its scores should know;
        - ``folds``, ``search``: the compared combinations, with mean and standard
          deviation of their accuracy over that many folds; ``chosen``: the best;
        - ``held_out``: null, or the number of held-out ``images``, the ``accuracy`` of
          a model that did not see them, its ``mean_probability`` for what it predicts,
          and its ``expected_calibration_error`` in 10 bins; the scores of ``classes``;
          the ``confusion_matrix``, with a row for each true class;
        - ``fitted_images``: the number of images that the saved model was fitted to.
        """
        from sklearn.metrics import classification_report

        held_out = None
        if len(self._labels):
            held_out = {
                "images": len(self._labels),
                "accuracy": self._accuracy,
                "mean_probability": float(self._certainty.mean()),
                "expected_calibration_error": calibration_error(
                    self._certainty, self._predicted == self._labels
                ),
                "classes": classification_report(
                    self._labels, self._predicted, output_dict=True, zero_division=0
                ),
                "confusion_matrix": self._matrix.tolist(),
            }
        search = self._combinations()
        return {
            "images": self._n_train + len(self._labels),
            "classes": self._classes,
            "ranking": [asdict(row) for row in self._model.ranking_.rows],
            "ranking_notes": list(self._model.ranking_.notes),
            "folds": self._n_folds,
            "search": search,
            "chosen": search[self._model.best_index_],
            "held_out": held_out,
            "fitted_images": self._n_fitted,
        }

    def as_text(self) -> str:
        """Return the report as text for a terminal."""
        from sklearn.metrics import classification_report

        total = self._n_train + len(self._labels)
        parts = [
            f"{total} images of {len(self._classes)} classes; {len(self._labels)} held "
            "out.",
            "The best codes, by exact leave-one-out accuracy of ridge, in %:",
            self._ranked(),
            *map(_wrapped, self._model.ranking_.notes),
            f"Mean accuracy in {self._n_folds}-fold cross-validation, in %:",
            self._compared(),
            self._verdict(),
        ]
        if len(self._labels):
            parts[-1] += "\n" + _wrapped(
                f"Held-out accuracy: {100 * self._accuracy:.2f}%; mean probability of "
                f"what is predicted: {100 * self._certainty.mean():.2f}%."
            )
            parts.append(
                classification_report(
                    self._labels, self._predicted, zero_division=0
                ).strip("\n")
            )
            parts.append(confusions(self._classes, self._matrix))
        parts.append(self._what_is_saved())
        return "\n\n".join(parts)

    # -- parts of the text -----------------------------------------------------

    def _ranked(self) -> str:
        """The table of the best codes, and what its marks mean."""
        rows = self._model.ranking_.rows
        recommended = self._model.ranking_.recommended
        shown = list(rows[:_MAX_RANKED])
        shown += [recommended] if recommended not in shown else []
        header = ["", "score", "+-", *_CODES, "kernel", "length", "compute"]
        table = [header] + [
            [
                "*" if row.recommended else "=" if row.indistinguishable else "",
                f"{100 * row.score:.2f}",
                f"{100 * row.error:.2f}",
                *_codes(row.backbone, row.layer, row.norm),
                row.kernel,
                f"{row.code_length}",
                f"{row.compute_share:.0%}",
            ]
            for row in shown
        ]
        right = {"score", "+-", "layer", "length", "compute"}
        legend = (
            "=: chance can explain the difference from the best; *: the cheapest of "
            "these."
        )
        more = len(rows) - len(shown)
        if more:
            legend += f" {more} more with --json."
        return f"{_fitting(table, right)}\n\n{_wrapped(legend)}"

    def _compared(self) -> str:
        """The table of heads by codes."""
        found = self._combinations()
        heads = list(dict.fromkeys(each["head"] for each in found))
        lines: dict[tuple[str, ...], list[str]] = {}
        for each in found:
            codes = _codes(each["backbone"], each["layer"], each["norm"])
            lines.setdefault(tuple(codes), []).append(f"{100 * each['mean']:.2f}")
        table = [[*_CODES, *heads], *([*codes, *row] for codes, row in lines.items())]
        return _fitting(table, {"layer", *heads})

    def _verdict(self) -> str:
        from sk_cnncodes.heads.presets import HEADS

        best = self._combinations()[self._model.best_index_]
        backbone, layer, norm = _codes(best["backbone"], best["layer"], best["norm"])
        head = HEADS[best["head"]][0]
        return _wrapped(
            f"Chosen: {backbone}, layer {layer}, {norm} norm, {head}: "
            f"{100 * best['mean']:.2f}% in cross-validation."
        )

    def _what_is_saved(self) -> str:
        if not len(self._labels):
            return "The model is fitted to all images."
        if not self._refitted:
            return "The model is fitted to the images that are not held out."
        return _wrapped(
            f"The saved model is this combination, fitted anew to all {self._n_fitted} "
            "images; the model of the figures above did not see the held-out ones."
        )

    # -- values ----------------------------------------------------------------

    @property
    def _accuracy(self) -> float:
        return float(self._matrix.trace() / self._matrix.sum())

    @property
    def _n_fitted(self) -> int:
        return self._n_train + (len(self._labels) if self._refitted else 0)

    @property
    def _n_folds(self) -> int:
        keys = self._model.cv_results_
        return sum(key.startswith("split") for key in keys)

    def _combinations(self) -> list[dict[str, Any]]:
        """The compared combinations with their scores."""
        results = self._model.cv_results_
        return [
            {**parameters, "mean": float(mean), "std": float(std)}
            for parameters, mean, std in zip(
                results["params"],
                results["mean_test_score"],
                results["std_test_score"],
                strict=True,
            )
        ]


_CODES = ("backbone", "layer", "norm")


def _codes(backbone: str, layer: Any, norm: str) -> list[str]:
    """What stands in the columns `_CODES`."""
    from sk_cnncodes.ranking.ranked_codes import layer_text, short_name

    layers = layer if isinstance(layer, list) else [layer]
    return [short_name(backbone), layer_text(layers), norm]


def _fitting(table: list[list[str]], right: set[str]) -> str:
    """Lay out a table, with names cut so that its lines fit a terminal."""
    for column in ("backbone", "layer"):
        position = table[0].index(column)
        excess = max(map(len, format_table(table, right).splitlines())) - _WIDTH
        longest = max(len(row[position]) for row in table)
        if excess > 0:
            limit = max(longest - excess, len(column), 8)
            for row in table[1:]:
                row[position] = _cut(row[position], limit)
    return format_table(table, right)


def _cut(text: str, limit: int) -> str:
    """A text without its middle if it is longer than a limit."""
    if len(text) <= limit:
        return text
    start = (limit - 2) // 2
    return f"{text[:start]}..{text[len(text) - (limit - 2 - start) :]}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False, break_long_words=False)


def calibration_error(certainty: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: how far probabilities are from the accuracy.

    Parameters
    ----------
    certainty : ndarray of float, shape (n_images,)
        Probability of the predicted class.
    right : ndarray of bool, shape (n_images,)
        Whether it is the true one.
    """
    bins = np.minimum((certainty * _N_BINS).astype(int), _N_BINS - 1)
    gaps = np.bincount(bins, certainty - right)
    return float(np.abs(gaps).sum() / len(certainty))


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
