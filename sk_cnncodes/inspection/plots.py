"""What displays share: axes to draw on, and images in them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.images.containers import fetch_element
from sk_cnncodes.images.decode import read_rgb

# Okabe and Ito's colors, which are told apart by everybody, but without yellow.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
# Pixels of the longer side of an image in a plot.
_SIDE = 224


def check_matplotlib(who: str) -> None:
    """Raise an ImportError that says what to install.

    Parameters
    ----------
    who : str
        What needs matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{who} needs matplotlib, which is not installed: pip install "
            "'sk-cnncodes[report]'."
        ) from error


def axes_for(who: str, ax: Any, size: tuple[float, float]) -> Any:
    """The given axes, or those of a new figure.

    Parameters
    ----------
    who : str
    ax : matplotlib.axes.Axes or None
    size : (float, float)
        Of a new figure, in inches.
    """
    check_matplotlib(who)
    if ax is not None:
        return ax
    from matplotlib import pyplot

    _, ax = pyplot.subplots(figsize=size, layout="constrained")
    return ax


def grid_for(
    who: str, ax: Any, shape: tuple[int, int], size: tuple[float, float], **ratios: Any
) -> tuple[Any, np.ndarray]:
    """A figure and a grid of axes: in a new figure, or in the place of given axes."""
    outer = axes_for(who, ax, size)
    outer.set_axis_off()
    grid = outer.get_subplotspec().subgridspec(*shape, **ratios)
    axes = np.empty(shape, object)
    for row, column in np.ndindex(shape):
        axes[row, column] = outer.figure.add_subplot(grid[row, column])
    return outer.figure, axes


def show_image(
    ax: Any, images: Sequence[Any], index: int, title: str, color: str = "black"
) -> None:
    """Draw an image with a title; what cannot be read becomes a gap that says so."""

    def least(height: int, width: int) -> tuple[int, int]:
        factor = min(1, _SIDE / max(height, width))
        return max(1, round(factor * height)), max(1, round(factor * width))

    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(shortened(title, 24), fontsize="small", color=color)
    try:
        image = read_rgb(fetch_element(images, index), index, None, least)
    except (ImageError, OSError):
        ax.text(0.5, 0.5, "cannot be read", ha="center", transform=ax.transAxes)
        return
    image.thumbnail((_SIDE, _SIDE))
    ax.imshow(np.asarray(image))


def shortened(text: str, width: int) -> str:
    """A text without its middle if it is longer than a width; `$` is no formula."""
    if len(text) > width:
        keep = width // 2 - 1
        text = f"{text[:keep]}..{text[-keep:]}"
    return text.replace("$", r"\$")


def wrapped(text: str, width: int) -> str:
    """A text in several lines."""
    return "\n".join(textwrap.wrap(text.replace("$", r"\$"), width))
