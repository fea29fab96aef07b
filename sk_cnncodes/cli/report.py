"""The training report: search table, held-out images, confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sklearn.model_selection import GridSearchCV

# Wider confusion matrices do not fit a terminal.
_MAX_CLASSES = 20
_MAX_CONFUSIONS = 20


class Report:
    """Results of a fitted search, and its accuracy on held-out images.

    Parameters
    ----------
    search : GridSearchCV
        A fitted `code_search`.
    n_train : int
        Number of images that the search was fitted on.
    held_out : sequence of str
        Paths of held-out images; may be empty.
    labels : sequence of str
        Classes of the held-out images.
    """

    def __init__(
        self,
        search: GridSearchCV,
        n_train: int,
        held_out: Sequence[str],
        labels: Sequence[str],
    ) -> None:
        from sklearn.metrics import confusion_matrix

        self._search = search
        self._n_train = n_train
        self._labels = list(labels)
        self._classes = [str(name) for name in search.classes_]
        self._predicted = list(search.predict(list(held_out))) if held_out else []
        self._matrix = (
            confusion_matrix(self._labels, self._predicted, labels=search.classes_)
            if held_out
            else np.zeros((0, 0), int)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values for JSON."""
        from sklearn.metrics import classification_report

        from sk_cnncodes.heads.selection import chosen, scores

        held_out = None
        if self._labels:
            held_out = {
                "images": len(self._labels),
                "accuracy": self._accuracy,
                "classes": classification_report(
                    self._labels, self._predicted, output_dict=True, zero_division=0
                ),
                "confusion_matrix": self._matrix.tolist(),
            }
        return {
            "images": self._n_train + len(self._labels),
            "classes": self._classes,
            "search": [asdict(candidate) for candidate in scores(self._search)],
            "chosen": asdict(chosen(self._search)),
            "held_out": held_out,
        }

    def as_text(self) -> str:
        """Return the report as text for a terminal."""
        from sklearn.metrics import classification_report

        from sk_cnncodes.heads.selection import score_table, verdict

        total = self._n_train + len(self._labels)
        parts = [
            f"{total} images of {len(self._classes)} classes; {len(self._labels)} held "
            "out.",
            f"Mean accuracy in {self._search.n_splits_}-fold cross-validation, in %:",
            score_table(self._search),
            verdict(self._search),
        ]
        if self._labels:
            parts[-1] += f"\nHeld-out accuracy: {100 * self._accuracy:.2f}%"
            parts.append(
                classification_report(
                    self._labels, self._predicted, zero_division=0
                ).strip("\n")
            )
            parts.append(confusions(self._classes, self._matrix))
        return "\n\n".join(parts)

    @property
    def _accuracy(self) -> float:
        return float(self._matrix.trace() / self._matrix.sum())


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
