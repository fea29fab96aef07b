"""Displays of images: what a model gets wrong, and which images it finds similar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from sk_cnncodes.base.public import public
from sk_cnncodes.images.containers import as_image_sequence
from sk_cnncodes.inspection.evaluation import Evaluation, ImageSet, most_similar
from sk_cnncodes.inspection.plots import COLORS, grid_for, shortened, show_image
from sk_cnncodes.inspection.predicting import evaluate

# Classes beside a mistake.
N_TOP = 5


@public
class MistakesDisplay:
    """Images that a classifier gets wrong, the worst first.

    Each with its class, the five most probable classes, and the most similar training
    images, where they are known.

    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    evaluation : object
        What was predicted.

    Attributes
    ----------
    mistakes : ndarray of int, shape (n_mistakes,)
        Positions of the images, the worst first: those whose predicted class is ahead
        of the true one by the most.
    axes_ : ndarray of matplotlib.axes.Axes, shape (n_shown, n_columns)
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_cnncodes import MistakesDisplay
    >>> images = list(np.zeros((3, 8, 8, 3), np.uint8))
    >>> probabilities = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    >>> display = MistakesDisplay.from_predictions(
    ...     images, ["cat", "cat", "dog"], probabilities, ["cat", "dog"]
    ... )
    >>> display.mistakes
    array([1, 2])
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.mistakes = evaluation.worst_first

    @classmethod
    def from_estimator(
        cls,
        model: Any,
        images: Any,
        labels: Any,
        *,
        train_images: Any = None,
        train_labels: Any = None,
    ) -> Self:
        """Predict images.

        Parameters
        ----------
        model : estimator or OnnxClassifier
            Fitted classifier.
        images : container of images
            That the model was not fitted to.
        labels : array-like, shape (n_images,)
        train_images, train_labels : container of images, array-like, or None, \
                default=None
            What the model was fitted to, for the similar ones.

        Returns
        -------
        MistakesDisplay
        """
        found = evaluate(
            model, images, labels, train_images=train_images, train_labels=train_labels
        )
        if found.kind != "classification":
            raise ValueError(
                "model: expected a classifier of one class for each image."
            )
        return cls(found)

    @classmethod
    def from_predictions(
        cls, images: Any, y_true: Any, probabilities: Any, classes: Any = None
    ) -> Self:
        """Show predictions, without similar images.

        Parameters
        ----------
        images : container of images
        y_true : array-like, shape (n_images,)
        probabilities : array-like, shape (n_images, n_classes)
            Or decision values.
        classes : array-like, shape (n_classes,), or None, default=None
            Of the columns; None takes the sorted ones of `y_true`.

        Returns
        -------
        MistakesDisplay
        """
        sequence, y_true = as_image_sequence(images), np.asarray(y_true)
        table = np.asarray(probabilities, float)
        names = np.unique(y_true) if classes is None else np.asarray(classes)
        if table.shape != (len(sequence), len(names)) or len(y_true) != len(table):
            raise ValueError(
                f"probabilities: expected the shape ({len(sequence)}, {len(names)}), "
                f"images and classes, got {table.shape}, with {len(y_true)} of y_true."
            )
        known = {name: number for number, name in enumerate(names.tolist())}
        more = sorted({*y_true.tolist()} - {*known})
        known |= {name: len(names) + number for number, name in enumerate(more)}
        truth = np.array([known[label] for label in y_true.tolist()], int)
        codes = np.zeros((len(sequence), 1), np.float32)
        return cls(
            Evaluation(
                kind="classification",
                classes=[str(name) for name in known],
                n_known=len(names),
                tested=ImageSet(sequence, truth, codes),
                train=None,
                predicted=table.argmax(axis=1),
                scores=table,
                has_probabilities=True,
                out_of_fold=False,
                similar_by="",
            )
        )

    def plot(self, ax: Any = None, *, n_images: int = 5) -> Self:
        """Plot.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Whose place to take; None makes a new figure.
        n_images : int, default=5
            Number of mistakes, one a row.

        Returns
        -------
        self
        """
        shown = self.mistakes[:n_images]
        evaluation, train = self.evaluation, self.evaluation.train
        found = evaluation.neighbours
        n_similar = 0 if found is None else found[0].shape[1]
        shape = (max(len(shown), 1), 2 + n_similar)
        size = (2 + 2.2 * shape[1], 0.3 + 2.1 * shape[0])
        ratios = {"width_ratios": [1, 1.3, *[1] * n_similar], "hspace": 0.4}
        figure, axes = grid_for("MistakesDisplay", ax, shape, size, **ratios)
        if not len(shown):
            for each in axes.ravel():
                each.set_axis_off()
            axes[0, 0].text(0, 0.5, "No mistakes.")
        for row, index in enumerate(shown):
            truth = evaluation.label(evaluation.tested.truth[index])
            show_image(axes[row, 0], evaluation.tested.images, index, f"is {truth}")
            self._bars(axes[row, 1], index)
            for rank in range(n_similar):
                assert train is not None and found is not None
                other = found[0][index, rank]
                label = evaluation.label(train.truth[other])
                title = f"{label}, {found[1][index, rank]:.2f}"
                show_image(axes[row, 2 + rank], train.images, other, title)
        self.axes_, self.figure_ = axes, figure
        return self

    def _bars(self, ax: Any, index: int) -> None:
        top = top_classes(self.evaluation, index)
        names = [shortened(self.evaluation.classes[number], 18) for number, _ in top]
        truth = self.evaluation.tested.truth[index]
        colors = [COLORS[2] if number == truth else COLORS[0] for number, _ in top]
        ax.barh(range(len(top)), [score for _, score in top], color=colors)
        ax.set_yticks(range(len(top)), names, fontsize="small")
        ax.invert_yaxis()
        if self.evaluation.has_probabilities:
            ax.set_xlim(0, 1)
        name = self.evaluation.label(self.evaluation.predicted[index])
        ax.set_title(f"taken for {shortened(name, 18)}", fontsize="small")
        ax.spines[["top", "right"]].set_visible(False)


def top_classes(evaluation: Evaluation, index: int) -> list[tuple[int, float]]:
    """The most probable classes of an image, by their numbers, and their scores."""
    if evaluation.scores is None:
        return []
    scores = evaluation.scores[index]
    order = np.argsort(-scores, kind="stable")[:N_TOP]
    return [(int(number), float(scores[number])) for number in order]


@public
class NeighboursDisplay:
    """Images, and those of others that are the most similar by their codes.

    Make it with `from_estimator` or `from_codes`.

    Parameters
    ----------
    images, others : sequence
        Images that are asked for, and those that are searched.
    positions : ndarray of int, shape (n_images, n_neighbours)
        Of the nearest of `others`, the nearest first.
    distances : ndarray of float, shape (n_images, n_neighbours)
        Their cosine distances, from 0 to 2.
    labels, other_labels : sequence or None
        Shown with the images.

    Attributes
    ----------
    axes_ : ndarray of matplotlib.axes.Axes, shape (n_shown, 1 + n_neighbours)
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import CNNCodeTransformer, NeighboursDisplay
    >>> digits = load_digits()
    >>> X, y = digits.images[:100] / 16, digits.target[:100]
    >>> codes = CNNCodeTransformer().fit_transform(X)
    >>> display = NeighboursDisplay.from_codes(
    ...     X[:5], codes[:5], X[5:], codes[5:], labels=y[:5], other_labels=y[5:]
    ... )
    >>> display.positions.shape
    (5, 5)
    """

    def __init__(
        self,
        images: Sequence[Any],
        others: Sequence[Any],
        positions: np.ndarray,
        distances: np.ndarray,
        labels: Sequence[Any] | None = None,
        other_labels: Sequence[Any] | None = None,
    ) -> None:
        self.images = images
        self.others = others
        self.positions = positions
        self.distances = distances
        self.labels = labels
        self.other_labels = other_labels

    @classmethod
    def from_estimator(
        cls,
        model: Any,
        images: Any,
        others: Any,
        *,
        labels: Any = None,
        other_labels: Any = None,
        n_neighbors: int = 5,
    ) -> Self:
        """Compare images by the codes that a model reads.

        Parameters
        ----------
        model : estimator
            A fitted `CNNCodeTransformer`, `CNNCodeClassifier`, or Pipeline, whose last
            step is left out.
        images, others : container of images
        labels, other_labels : array-like or None, default=None
        n_neighbors : int, default=5

        Returns
        -------
        NeighboursDisplay
        """
        if hasattr(model, "transform"):
            reads: Any = model.transform
        else:
            from_pipeline = getattr(model, "pipeline_", model)
            if not hasattr(from_pipeline, "steps"):
                raise TypeError(
                    "model: expected a CNNCodeTransformer or a Pipeline that begins "
                    f"with one, got {type(model).__name__}."
                )
            reads = from_pipeline[:-1].transform
        return cls.from_codes(
            images,
            reads(images),
            others,
            reads(others),
            labels=labels,
            other_labels=other_labels,
            n_neighbors=n_neighbors,
        )

    @classmethod
    def from_codes(
        cls,
        images: Any,
        codes: Any,
        others: Any,
        other_codes: Any,
        *,
        labels: Any = None,
        other_labels: Any = None,
        n_neighbors: int = 5,
    ) -> Self:
        """Compare codes.

        Parameters
        ----------
        images, others : container of images
        codes, other_codes : array-like of float, shape (n, n_features)
        labels, other_labels : array-like or None, default=None
        n_neighbors : int, default=5

        Returns
        -------
        NeighboursDisplay
        """
        asked, searched = as_image_sequence(images), as_image_sequence(others)
        a, b = np.asarray(codes), np.asarray(other_codes)
        for name, given, of in (("codes", a, asked), ("other_codes", b, searched)):
            if given.ndim != 2 or len(given) != len(of):
                raise ValueError(
                    f"{name}: expected one row for each of {len(of)} images, got an "
                    f"array of shape {given.shape}."
                )
        positions, distances = most_similar(a, b, n_neighbors)
        return cls(asked, searched, positions, distances, labels, other_labels)

    def plot(self, ax: Any = None, *, n_images: int = 5) -> Self:
        """Plot.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Whose place to take; None makes a new figure.
        n_images : int, default=5
            Number of images, one a row.

        Returns
        -------
        self
        """
        count = min(n_images, len(self.images))
        shape = (max(count, 1), 1 + self.positions.shape[1])
        size = (2.0 * shape[1], 0.3 + 2.1 * shape[0])
        figure, axes = grid_for("NeighboursDisplay", ax, shape, size, hspace=0.35)
        for row in range(count):
            title = "" if self.labels is None else str(self.labels[row])
            show_image(axes[row, 0], self.images, row, title or "image", COLORS[1])
            for rank, other in enumerate(self.positions[row], 1):
                label = "" if self.other_labels is None else self.other_labels[other]
                title = f"{label} {self.distances[row, rank - 1]:.2f}".strip()
                show_image(axes[row, rank], self.others, other, title)
        self.axes_, self.figure_ = axes, figure
        return self
