"""Evaluation: what a model says of labelled images, computed once for all that show it.

Displays, text and the HTML report read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from sk_cnncodes.images.sources import describe_source

N_NEIGHBOURS = 3
# Values of a part of a product of codes.
_CHUNK_VALUES = 2**22


@dataclass(frozen=True, repr=False, eq=False)
class ImageSet:
    """Images with what is known of them.

    Attributes
    ----------
    images : sequence
        As `as_image_sequence` gives it.
    truth : ndarray
        For classes their numbers in `Evaluation.classes`, shape (n_images,); for
        several labels 0 and 1, shape (n_images, n_labels); for values floats, shape
        (n_images, n_targets).
    codes : ndarray of float32, shape (n_images, n_features)
    """

    images: Sequence[Any]
    truth: np.ndarray
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def paths(self) -> list[str | None]:
        """The paths of the images; None for those in memory."""
        return [_path(image) for image in self.images]

    @cached_property
    def names(self) -> list[str]:
        """Paths, and numbers of images in memory."""
        return [path or f"image {i}" for i, path in enumerate(self.paths)]


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation:
    """What a model predicts for images whose labels are known.

    Attributes
    ----------
    kind : {"classification", "multilabel", "regression"}
    classes : list of str
        Names of the classes, those that only the images have at the end; of labels; of
        the columns of values.
    n_known : int
        Number of classes that the model knows.
    tested : ImageSet
        The images that are predicted.
    train : ImageSet or None
        What the model was fitted to; `tested` itself if predictions are out of fold.
    predicted : ndarray
        As `tested.truth`.
    scores : ndarray, shape (n_images, n_known), or None
        Probabilities, or decision values. None for values.
    has_probabilities : bool
    out_of_fold : bool
        Whether each image was predicted by a model that was fitted to others of
        `tested`.
    similar_by : str
        Whose codes say which images are similar, if they are not those of the model.
    groups : ndarray of int, shape (n_images,), or None, default=None
        What each tested image belongs to; None if that is nothing in common.
    """

    kind: str
    classes: list[str]
    n_known: int
    tested: ImageSet
    train: ImageSet | None
    predicted: np.ndarray
    scores: np.ndarray | None
    has_probabilities: bool
    out_of_fold: bool
    similar_by: str
    groups: np.ndarray | None = None

    # -- how right ---------------------------------------------------------------

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each image is predicted right; of several labels, all of them."""
        if self.kind == "regression":
            raise ValueError("values to regress are not right or wrong.")
        same = np.equal(self.predicted, self.tested.truth).reshape(len(self.tested), -1)
        right: np.ndarray = same.all(axis=1)
        return right

    @cached_property
    def certainty(self) -> np.ndarray:
        """Probability, or decision value, of the predicted class."""
        assert self.scores is not None
        rows = np.arange(len(self.tested))
        certain: np.ndarray = self.scores[rows, self.predicted]
        return certain

    @cached_property
    def badness(self) -> np.ndarray:
        """How wrong each prediction is; the mistakes of classes are above 0.

        Of classes, what the predicted one has more than the true one; of several
        labels, the largest margin on the wrong side; of values, the largest absolute
        error in standard deviations.
        """
        truth = self.tested.truth
        if self.kind == "regression":
            spread = truth.std(axis=0)
            spread = np.where(spread > 0, spread, 1)
            worst: np.ndarray = (np.abs(self.predicted - truth) / spread).max(axis=1)
            return worst
        if self.kind == "multilabel":
            assert self.scores is not None
            middle = 0.5 if self.has_probabilities else 0.0
            sides = np.where(truth > 0, middle - self.scores, self.scores - middle)
            wrong: np.ndarray = np.where(self.right, 0, sides.max(axis=1))
            return wrong
        if self.scores is None:
            return (~self.right).astype(float)
        # A class that the model does not know has nothing.
        floor = self.scores.min(axis=1, keepdims=True) - 1e-12
        floor = np.zeros_like(floor) if self.has_probabilities else floor
        unknown = np.repeat(floor, len(self.classes) - self.n_known, axis=1)
        padded = np.hstack([self.scores, unknown])
        rows = np.arange(len(self.tested))
        ahead = padded[rows, self.predicted] - padded[rows, truth]
        # A prediction can be another class than the most probable one.
        return np.where(self.right, 0, np.maximum(ahead, 1e-12))

    @cached_property
    def worst_first(self) -> np.ndarray:
        """Positions of the mistakes, or for values of all images."""
        order = np.argsort(-self.badness, kind="stable")
        return order if self.kind == "regression" else order[~self.right[order]]

    @cached_property
    def confusion_matrix(self) -> np.ndarray:
        """Number of images by true and by predicted class."""
        count = len(self.classes)
        cells = self.tested.truth * count + self.predicted
        matrix: np.ndarray = np.bincount(cells, minlength=count**2)
        return matrix.reshape(count, count)

    # -- similar images ----------------------------------------------------------

    @cached_property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The nearest images of `train`, and their cosine distances.

        Arrays of shape (n_images, k). An image is no neighbour of itself.
        """
        if self.train is None:
            return None
        return most_similar(
            self.tested.codes, self.train.codes, N_NEIGHBOURS, self.out_of_fold
        )

    @cached_property
    def n_seen(self) -> int:
        """Number of tested files that are also among the training images."""
        if self.train is None or self.out_of_fold:
            return 0
        known = {*self.train.paths} - {None}
        return sum(path in known for path in self.tested.paths)

    def label(self, truth: Any) -> str:
        """A row of `truth` or `predicted` as text."""
        if self.kind == "classification":
            return self.classes[int(truth)]
        if self.kind == "multilabel":
            return ", ".join(self.classes[i] for i in np.flatnonzero(truth)) or "none"
        return ", ".join(f"{value:.4g}" for value in truth)


def most_similar(
    codes: np.ndarray, others: np.ndarray, count: int, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar codes, the nearest first, and their cosine distances.

    Parameters
    ----------
    codes, others : ndarray of float, shape (n, n_features), (m, n_features)
    count : int
        How many of `others` for each of `codes`; fewer if there are fewer.
    same : bool, default=False
        Whether both are the same, so that none is its own neighbour.

    Returns
    -------
    positions, distances : ndarray, shape (n, count)
    """
    a, b = _of_unit_length(codes), _of_unit_length(others)
    count = min(count, len(b) - same)
    positions = np.zeros((len(a), max(count, 0)), int)
    distances = np.zeros(positions.shape)
    step = max(1, _CHUNK_VALUES // max(len(b), 1))
    for start in range(0, len(a) if count > 0 else 0, step):
        chunk = np.arange(start, min(start + step, len(a)))
        similarity = a[chunk] @ b.T
        if same:
            similarity[chunk - start, chunk] = -np.inf
        first = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(similarity, first, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        positions[chunk] = np.take_along_axis(first, order, axis=1)
        distances[chunk] = 1 - np.take_along_axis(found, order, axis=1)
    return positions, distances.clip(min=0)


def _of_unit_length(codes: np.ndarray) -> np.ndarray:
    codes = np.asarray(codes, np.float32)
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    unit: np.ndarray = codes / np.where(lengths > 0, lengths, 1)
    return unit


def _path(image: Any) -> str | None:
    """The path, or the name of the file, of an image; None for one in memory."""
    if isinstance(image, (str, PurePath)):
        return str(image)
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "")) or None
    text = describe_source(image)
    is_quoted = text[:1] in ("'", '"')  # a path, not what kind of thing it is
    return text.strip("'\"") if is_quoted else None
