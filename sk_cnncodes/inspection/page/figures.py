"""Plots of the HTML report, as SVG that stands in its page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from sk_cnncodes.inspection.plots import COLORS, shortened

_POINTS_PER_INCH = 72


class Figure(NamedTuple):
    """A plot in a page.

    Attributes
    ----------
    svg : str
    caption : str
    """

    svg: str
    caption: str


def figure(
    draw: Callable[[Any], Any],
    name: str,
    size: tuple[float, float],
    alt: str,
    caption: str = "",
) -> Figure:
    """Draw into axes, and return what stands in a page.

    Parameters
    ----------
    draw : callable
        Takes matplotlib axes.
    name : str
        Begins all ids of the plot, so that those of several differ.
    size : (float, float)
        Width and height in inches.
    alt : str
        What the plot shows, for those who do not see it.
    caption : str, default=""
    """
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "figure.dpi": 72}
    with matplotlib.rc_context(style), io.StringIO() as buffer:
        drawing = Drawing(figsize=size, layout="constrained")
        draw(drawing.subplots())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.savefig(buffer, format="svg", metadata=nothing)
        text = buffer.getvalue()
    return Figure(_inline(text, name, size[0], alt), caption)


def _inline(text: str, name: str, width: float, alt: str) -> str:
    """An SVG file as an element of HTML: no addresses, and ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    head = (
        f'<svg role="img" aria-label="{escape(alt)}" {view[0]} '
        f'style="width:{width * _POINTS_PER_INCH * 4 / 3:.0f}px">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1).strip()


# -- what no display draws ---------------------------------------------------------


def draw_coverage(
    points: Sequence[tuple[float, float, float]], chosen: float | None
) -> Callable[[Any], None]:
    """Accuracy of the images above a threshold, by their share of all.

    Parameters
    ----------
    points : sequence of (threshold, accuracy, coverage)
    chosen : float or None
        The suggested threshold.
    """

    def draw(ax: Any) -> None:
        threshold, accuracy, coverage = np.array(points).T
        ax.plot(100 * coverage, 100 * accuracy, color=COLORS[0], marker=".")
        at = None if chosen is None else int(np.argmin(np.abs(threshold - chosen)))
        if at is not None:
            ax.plot(
                100 * coverage[at],
                100 * accuracy[at],
                color=COLORS[1],
                marker="o",
                markersize=10,
                fillstyle="none",
                linestyle="none",
                label=f"from {threshold[at]:.2f} on",
            )
            ax.legend(fontsize="small", loc="lower left")
        ax.set_xlabel("images at or above a threshold, in %")
        ax.set_ylabel("of them right, in %")
        ax.grid(alpha=0.3)

    return draw


def draw_learning_curve(
    counts: Sequence[int], scores: Sequence[float], name: str, percent: bool
) -> Callable[[Any], None]:
    """Scores over the number of images."""

    def draw(ax: Any) -> None:
        factor = 100 if percent else 1
        ax.plot(counts, factor * np.array(scores), color=COLORS[0], marker="o")
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()
        ax.set_xlabel("images to learn from")
        ax.set_ylabel(f"{name}, in %" if percent else name)
        ax.grid(alpha=0.3)

    return draw


def draw_truth_and_prediction(
    truth: np.ndarray, predicted: np.ndarray, name: str
) -> Callable[[Any], None]:
    """Predicted values over true ones."""

    def draw(ax: Any) -> None:
        both = np.concatenate([truth, predicted])
        ends = both.min(), both.max()
        ax.plot(ends, ends, color="black", linestyle="--", linewidth=1)
        ax.scatter(truth, predicted, s=14, color=COLORS[0], alpha=0.6, linewidth=0)
        ax.set_xlabel(f"true {name}")
        ax.set_ylabel(f"predicted {name}")
        ax.grid(alpha=0.3)

    return draw


def draw_residuals(
    truth: np.ndarray, predicted: np.ndarray, name: str
) -> Callable[[Any], None]:
    """Errors over predicted values."""

    def draw(ax: Any) -> None:
        ax.axhline(0, color="black", linestyle="--", linewidth=1)
        ax.scatter(
            predicted, predicted - truth, s=14, color=COLORS[0], alpha=0.6, linewidth=0
        )
        ax.set_xlabel(f"predicted {name}")
        ax.set_ylabel("prediction - truth")
        ax.grid(alpha=0.3)

    return draw


def draw_histogram(values: np.ndarray, name: str) -> Callable[[Any], None]:
    """How often values occur."""

    def draw(ax: Any) -> None:
        ax.hist(values, bins=min(30, max(5, len(values) // 5)), color=COLORS[0])
        ax.set_xlabel(name)
        ax.set_ylabel("images")

    return draw


def draw_label_precisions(
    names: Sequence[str], precisions: np.ndarray, shares: np.ndarray
) -> Callable[[Any], None]:
    """Average precision of each label, and what chance gives."""

    def draw(ax: Any) -> None:
        y = np.arange(len(names))
        ax.barh(y, 100 * precisions, color=COLORS[0], label="model")
        ax.plot(
            100 * shares,
            y,
            color=COLORS[1],
            marker="|",
            markersize=12,
            markeredgewidth=3,
            linestyle="none",
            label="by chance",
        )
        ax.set_yticks(y, [shortened(name, 24) for name in names])
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.set_xlabel("average precision, in %")
        ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))

    return draw


def draw_thresholds(
    thresholds: np.ndarray, curves: dict[str, np.ndarray], at: float
) -> Callable[[Any], None]:
    """Shares over a threshold of the scores."""

    def draw(ax: Any) -> None:
        for number, (name, values) in enumerate(curves.items()):
            ax.plot(thresholds, 100 * values, color=COLORS[number], label=name)
        ax.axvline(at, color="black", linestyle="--", linewidth=1, label="used")
        ax.set_xlabel("threshold")
        ax.set_ylabel("in %")
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")

    return draw
