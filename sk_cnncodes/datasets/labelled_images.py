"""Labelled images, and what of a folder or table was not taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sk_cnncodes.base.public import public

Task = Literal["classification", "multilabel", "regression"]
TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression")
# What the parts of a data set are called in folders and tables, in lower case.
_PARTS_OF_NAMES = {
    "train": ("train", "training", "trn", "learn", "fit"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout", "held_out", "held-out", "held out"),
}
SPLIT_NAMES = {name: part for part, names in _PARTS_OF_NAMES.items() for name in names}


@public
@dataclass(frozen=True)
class LeftOut:
    """Things of one kind that were not taken.

    Attributes
    ----------
    what : str
        Their kind, such as ``".heic files"`` or ``"rows"``.
    items : tuple of str
        Each of them: a path, or a row of a table by its number.
    reason : str
        Why they were left out.
    cure : str
        What to do, in a sentence; empty where nothing needs to be done.
    """

    what: str
    items: tuple[str, ...]
    reason: str
    cure: str = ""

    def __str__(self) -> str:
        shown = ", ".join(self.items[:3]) + (", ..." if len(self.items) > 3 else "")
        cure = f" {self.cure}" if self.cure else ""
        return f"{len(self.items)} {self.what}: {self.reason} ({shown}).{cure}"


@public
@dataclass(frozen=True)
class LabelledImages:
    """Image files with what is to be learned of them.

    `find_labelled_images` makes them of a folder, `read_labels` of a table.

    Attributes
    ----------
    paths : list of str
    labels : list
        For each path its class, a str; or its value, a float; or its labels, a list of
        str that may be empty.
    groups : list of str or None
        What each image belongs to, such as its burst or its photographed object.
    splits : list of str or None
        ``"train"``, ``"validation"`` or ``"test"`` for each image, where the data says
        so.
    task : {"classification", "regression", "multilabel"}
    classes : tuple of str
        The sorted classes, or labels; empty for a regression.
    left_out : tuple of LeftOut
        What was not taken, why, and what to do.
    notes : tuple of str
        Sentences about what was found out, such as the columns of a table.

    Examples
    --------
    >>> from sk_cnncodes import LabelledImages
    >>> images = LabelledImages(["1.jpg", "2.jpg"], ["cat", "dog"])
    >>> images.classes, images.targets.tolist()
    (('cat', 'dog'), ['cat', 'dog'])
    >>> labels = [["red", "round"], ["red"]]
    >>> images = LabelledImages(["1.jpg", "2.jpg"], labels, task="multilabel")
    >>> images.classes, images.targets.tolist()
    (('red', 'round'), [[1, 1], [1, 0]])
    """

    paths: list[str]
    labels: list[Any]
    groups: list[str] | None = None
    splits: list[str] | None = None
    task: Task = "classification"
    classes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes and self.task != "regression":
            found: Iterable[str] = self.labels
            if self.task == "multilabel":
                found = (label for labels in self.labels for label in labels)
            object.__setattr__(self, "classes", tuple(sorted({*found})))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def targets(self) -> np.ndarray:
        """The labels as `rank_codes` and `CNNCodeClassifier` take them.

        An array of classes or values of shape (n_images,); of several labels, 0 and 1
        in an array of shape (n_images, n_labels), with the columns of `classes`.
        """
        if self.task != "multilabel":
            kind = float if self.task == "regression" else str
            return np.array(self.labels, kind)
        column = {name: number for number, name in enumerate(self.classes)}
        found = np.zeros((len(self.labels), len(column)), int)
        for row, labels in enumerate(self.labels):
            found[row, [column[label] for label in labels]] = 1
        return found

    def take(self, rows: Sequence[int]) -> LabelledImages:
        """Some of the images, in this order.

        Parameters
        ----------
        rows : sequence of int
            Their positions.

        Returns
        -------
        LabelledImages
            With the same `left_out` and `notes`, and of several labels with the same
            `classes`.
        """

        def of(values: list[Any]) -> list[Any]:
            return [values[row] for row in rows]

        return replace(
            self,
            paths=of(self.paths),
            labels=of(self.labels),
            groups=None if self.groups is None else of(self.groups),
            splits=None if self.splits is None else of(self.splits),
            classes=self.classes if self.task == "multilabel" else (),
        )

    def rows_of(self, split: str) -> list[int]:
        """Positions of the images of a split; all are of "train" without splits."""
        splits = self.splits or ["train"] * len(self.paths)
        return [row for row, each in enumerate(splits) if each == split]
