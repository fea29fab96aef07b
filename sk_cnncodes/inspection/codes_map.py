"""A map of codes: similar images are near each other on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from sk_cnncodes.base.public import public
from sk_cnncodes.inspection.plots import axes_for, shortened

METHODS = ("auto", "pca", "tsne", "umap")
# t-SNE of so many images takes about two seconds, and its time grows faster than they.
_TSNE_IMAGES, _TSNE_ITERATIONS = 1000, 500
# Dimensions that t-SNE and UMAP start from, and their seed.
_DIMENSIONS, _SEED = 50, 0
# Neighbours that t-SNE looks at; it needs more than three times as many images.
_PERPLEXITY = 30
# Colors of classes; more classes begin anew. Dark enough to be seen on white.
MAP_COLORS = (
    *("#0072b2", "#d55e00", "#00795a", "#b5478f", "#2b7bba", "#a66f00", "#333333"),
    *("#7b3294", "#c0392b", "#1b7837", "#5b5b9c", "#8c510a"),
)


def project(codes: np.ndarray, method: str = "auto") -> tuple[np.ndarray, str]:
    """Codes in two dimensions.

    Parameters
    ----------
    codes : ndarray of float, shape (n_images, n_features)
    method : {"auto", "pca", "tsne", "umap"}, default="auto"

    Returns
    -------
    positions : ndarray of float, shape (n_images, 2)
    method : str
        What "auto" is.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}.")
    if method == "auto":
        method = "tsne" if _PERPLEXITY < len(codes) <= _TSNE_IMAGES else "pca"
    # More threads wait for each other: they made t-SNE of 600 images slower.
    with threadpool_limits(1):
        return _project(codes, method), method


def _project(codes: np.ndarray, method: str) -> np.ndarray:
    count, length = codes.shape
    if count < 3 or length < 2:
        return np.column_stack([np.arange(count), np.zeros(count)]).astype(float)
    n_components = 2 if method == "pca" else min(_DIMENSIONS, count - 1, length)
    reduced = PCA(
        max(n_components, 2), svd_solver="randomized", random_state=_SEED
    ).fit_transform(codes.astype(np.float32))
    if method == "pca" or count < 5:
        return np.asarray(reduced[:, :2], float)
    if method == "tsne":
        found = TSNE(
            perplexity=min(_PERPLEXITY, (count - 1) / 3),
            init="pca",
            max_iter=_TSNE_ITERATIONS,
            random_state=_SEED,
        ).fit_transform(reduced)
        return np.asarray(found, float)
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError(
            "method='umap' needs umap-learn, which is not installed: pip install "
            "umap-learn."
        ) from error
    neighbours = min(15, count - 1)
    found = UMAP(n_neighbors=neighbours, random_state=_SEED).fit_transform(reduced)
    return np.asarray(found, float)


@public
class CodesMapDisplay:
    """Codes of images in two dimensions; similar images are near each other.

    Make it with `from_estimator` or `from_codes`.

    Parameters
    ----------
    positions : ndarray of float, shape (n_images, 2)
    labels : sequence or None
        Class, or value, of each image.
    method : {"pca", "tsne", "umap"}
        How positions were found.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import CNNCodeTransformer, CodesMapDisplay
    >>> digits = load_digits()
    >>> codes = CNNCodeTransformer().fit_transform(digits.images[:100] / 16)
    >>> display = CodesMapDisplay.from_codes(codes, digits.target[:100])
    >>> display.positions.shape
    (100, 2)
    """

    def __init__(
        self, positions: np.ndarray, labels: Sequence[Any] | None, method: str
    ) -> None:
        self.positions = positions
        self.labels = labels
        self.method = method

    @classmethod
    def from_codes(
        cls, codes: Any, labels: Any = None, *, method: str = "auto"
    ) -> Self:
        """Show codes.

        Parameters
        ----------
        codes : array-like of float, shape (n_images, n_features)
        labels : array-like, shape (n_images,), or None, default=None
            Classes, or values as floats.
        method : {"auto", "pca", "tsne", "umap"}, default="auto"
            PCA is the fastest; t-SNE and UMAP, which needs umap-learn, show groups
            better, but distances between groups mean nothing. "auto" is t-SNE for up to
            1,000 images, and PCA for more.

        Returns
        -------
        CodesMapDisplay
        """
        table = np.asarray(codes)
        if table.ndim != 2 or (labels is not None and len(labels) != len(table)):
            got = "" if labels is None else f", and {len(labels)} labels"
            raise ValueError(
                "codes: expected a row for each image, and as many labels; got an "
                f"array of shape {table.shape}{got}."
            )
        positions, method = project(table, method)
        return cls(positions, labels, method)

    @classmethod
    def from_estimator(
        cls, model: Any, images: Any, labels: Any = None, *, method: str = "auto"
    ) -> Self:
        """Show the codes that a model reads.

        Parameters
        ----------
        model : estimator
            A fitted `CNNCodeTransformer`, `CNNCodeClassifier` or Pipeline, whose last
            step is left out.
        images : container of images
        labels : array-like, shape (n_images,), or None, default=None
        method : {"auto", "pca", "tsne", "umap"}, default="auto"
            As in `from_codes`.

        Returns
        -------
        CodesMapDisplay
        """
        pipeline = getattr(model, "pipeline_", model)
        reads: Any = pipeline if hasattr(pipeline, "transform") else pipeline[:-1]
        return cls.from_codes(reads.transform(images), labels, method=method)

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
        ax = axes_for("CodesMapDisplay", ax, (8, 6))
        x, y = self.positions.T
        labels = None if self.labels is None else np.asarray(self.labels)
        if labels is None:
            ax.scatter(x, y, s=12, color=MAP_COLORS[0])
        elif labels.dtype.kind == "f":
            points = ax.scatter(x, y, s=12, c=labels)
            ax.figure.colorbar(points, ax=ax, label="value")
        else:
            names = sorted({*labels.tolist()}, key=str)
            for number, name in enumerate(names):
                rows = labels == name
                color = MAP_COLORS[number % len(MAP_COLORS)]
                ax.scatter(x[rows], y[rows], s=12, color=color)
                ax.text(
                    np.median(x[rows]),
                    np.median(y[rows]),
                    shortened(str(name), 20),
                    color=color,
                    ha="center",
                    fontsize="small",
                    bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},
                )
        ax.set_xticks([])
        ax.set_yticks([])
        names_of = {"pca": "principal components", "tsne": "t-SNE", "umap": "UMAP"}
        ax.set_xlabel(f"codes in two dimensions, by {names_of[self.method]}")
        self.ax_, self.figure_ = ax, ax.figure
        return self
