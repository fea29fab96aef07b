"""CodeRanking: what `rank_codes` found, as a table, a frame and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import numpy as np

from sk_cnncodes.base.public import public
from sk_cnncodes.ranking.advice import Advice, advise
from sk_cnncodes.ranking.ranked_codes import (
    SHARES,
    CodeFigures,
    RankedCodes,
    layer_text,
    layers_of,
    short_name,
)

# Rows of a table; `to_frame` has all.
_MAX_ROWS = 20
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


@public
@dataclass(frozen=True, repr=False, eq=False)
class CodeRanking:
    """Backbones, layers and norms by their leave-one-out score; see `rank_codes`.

    Attributes
    ----------
    rows : tuple of RankedCodes
        The best first. Of equal scores, that of the cheaper layer.
    scoring : str
        Name of the score.
    kind : {"classification", "multilabel", "regression"}
        Kind of the targets.
    classes : ndarray, shape (n_classes,)
        The sorted classes; the numbers of labels, or of values to regress.
    n_images : int
        Number of images.
    n_groups : int or None
        Number of groups, if they were given.
    notes : tuple of str
        What a reader of the scores should know.
    """

    rows: tuple[RankedCodes, ...]
    scoring: str
    kind: str
    classes: np.ndarray
    n_images: int
    n_groups: int | None
    notes: tuple[str, ...]
    _predictions: tuple[np.ndarray | None, ...] = field(repr=False)
    _figures: CodeFigures = field(repr=False)

    @property
    def best(self) -> RankedCodes:
        """The codes with the best score."""
        return self.rows[0]

    @property
    def recommended(self) -> RankedCodes:
        """The cheapest codes that chance cannot tell from the best.

        Those with the fewest multiply-adds; of several norms, that of the better score.
        """
        return next(row for row in self.rows if row.recommended)

    def predictions(self, row: RankedCodes | int) -> np.ndarray | None:
        """What the models without an image, or its group, predict for it.

        Parameters
        ----------
        row : RankedCodes or int
            One of `rows`, or its position.

        Returns
        -------
        ndarray of float, shape (n_images, n_classes), or None
            The decision values of each class, which is 1 if it is that of the image and
            otherwise -1; those of each label; or the values. None if they were not
            kept: the best 256 MiB are.
        """
        position = row if isinstance(row, int) else self.rows.index(row)
        return self._predictions[position]

    def advice(
        self,
        folder: str = "DIR",
        options: Sequence[str] = (),
    ) -> Advice:
        """Say what the figures say about images, backbone and what to do next.

        Parameters
        ----------
        folder : str, default="DIR"
            The folder of the images in the next command.
        options : sequence of str, default=()
            Other words of that command, such as ``["--cache", "codes.sqlite3"]``.

        Returns
        -------
        advice : Advice
            It prints as sentences.

        Notes
        -----
        `rank_codes` measures what it takes, in 7% of its time for 600 images, and in
        that of several layers for thousands, where it tries no RBF kernels:

        - Whether the images are like those of the backbone: the best score of an
          earlier layer against that of layer -1, since a network's last layers suit
          what it was trained for; and how many images have one of their own class as
          the nearest neighbour at layer -1.
        - Whether several layers, or two backbones, help: the penultimate and the best
          earlier layer side by side, and the best of two backbones, unless such codes
          were ranked.
        - Whether more images help: scores on disjoint parts of an eighth, a quarter and
          half of the images, for as many parts as take 2,000 images. With fewer than 50
          images of a class in a part, one of each class is left out at a time: without
          a single one, a model would know its class less than the others. Twice as many
          images are expected to lower the loss, such as the share of wrong predictions,
          by the power of their number by which the last doubling lowered it. For 4 to 8
          images of each of 81 classes and two backbones, this foresaw 5 to 40% more
          than what twice as many brought. The standard error is that over images, for
          this rule.
        - Whether fine-tuning may: the score of the recommended ridge on the images that
          it is fitted to. It is called worth a try for at least 1,000 images, and 50 of
          a class, if their loss is at most half of that of new images. This is a rule
          of thumb: nothing is fine-tuned to find out.

        A gain is clear if it is three standard errors or more (as improbable, for few
        images): the best of several rows is two ahead by luck. For twice as many images
        two are enough, since nothing is chosen.
        """
        return advise(
            self.rows,
            self._figures,
            self.kind,
            self.scoring,
            self.n_images,
            self._title(),
            folder,
            options,
        )

    def to_frame(self) -> Any:
        """Return the rows as a pandas frame.

        Returns
        -------
        frame : pandas.DataFrame
            One column for each attribute of `RankedCodes`.
        """
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def __repr__(self) -> str:
        header, *cells = self._table()
        shown = _shown(self.rows, self.recommended)
        table = [header, *(cells[position] for position in shown)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        left = [name in ("", "backbone", "norm", "kernel") for name in header]
        lines = []
        for number, row in enumerate(table):
            padded = [
                cell.ljust(width) if is_left else cell.rjust(width)
                for cell, width, is_left in zip(row, widths, left, strict=True)
            ]
            if number > 1 and shown[number - 1] > shown[number - 2] + 1:
                lines.append("...")
            lines.append("  ".join(padded).rstrip())
        more = len(self.rows) - len(shown)
        if more:
            lines.append(f"{more} more in .rows")
        text = [self._title(), "\n".join(lines), "\n".join(self._legend())]
        return "\n\n".join(text)

    def _repr_html_(self) -> str:
        header, *cells = self._table()
        shown = _shown(self.rows, self.recommended)
        head = "".join(f"<th>{escape(name)}</th>" for name in header)
        body = ""
        for position in shown:
            style = (
                ' style="font-weight: bold"' if self.rows[position].recommended else ""
            )
            columns = "".join(f"<td>{escape(cell)}</td>" for cell in cells[position])
            body += f"<tr{style}>{columns}</tr>\n"
        legend = "".join(f"<p>{escape(line)}</p>\n" for line in self._legend())
        return (
            f"<p>{escape(self._title())}</p>\n<table>\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}</tbody>\n</table>\n{legend}"
        )

    def plot(self, ax: Any = None) -> Any:
        """Plot the scores over the multiply-adds that the codes take.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to plot; None makes a new figure.

        Returns
        -------
        ax : matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed: ``pip install 'sk-cnncodes[plot]'``.
        """
        try:
            from matplotlib import pyplot, ticker
        except ImportError as error:
            raise ImportError(
                "plot needs matplotlib, which is not installed: pip install "
                "'sk-cnncodes[plot]'."
            ) from error
        if ax is None:
            _, ax = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
        factor = 100 if self.scoring in SHARES else 1
        backbones = list(dict.fromkeys(row.backbone for row in self.rows))
        norms = sorted({row.norm for row in self.rows})
        for number, backbone in enumerate(sorted(backbones)):
            for norm in norms:
                rows = [
                    r for r in self.rows if (r.backbone, r.norm) == (backbone, norm)
                ]
                rows.sort(key=lambda row: row.multiply_adds)
                ax.errorbar(
                    [row.multiply_adds / 1e6 for row in rows],
                    [factor * row.score for row in rows],
                    [factor * row.error for row in rows],
                    color=_COLORS[number % len(_COLORS)],
                    linestyle="-" if norm == norms[0] else "--",
                    marker="o" if norm == norms[0] else "s",
                    markersize=4,
                    linewidth=1,
                    elinewidth=0.7,
                    label=f"{short_name(backbone)}, {norm}",
                )
        chosen = self.recommended
        ax.plot(
            chosen.multiply_adds / 1e6,
            factor * chosen.score,
            marker="o",
            markersize=13,
            fillstyle="none",
            color="black",
            linestyle="none",
            label=f"recommended: {short_name(chosen.backbone)}, {chosen.layer}, "
            f"{chosen.norm}",
        )
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        ax.set_xlabel("million multiply-adds an image")
        ax.set_ylabel(self._score_name)
        ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
        ax.grid(alpha=0.3)
        return ax

    # -- text ------------------------------------------------------------------

    @property
    def _score_name(self) -> str:
        left_out = "leave-one-out" if self.n_groups is None else "leave-one-group-out"
        unit = ", in %" if self.scoring in SHARES else ""
        return f"{left_out} {self.scoring}{unit}"

    def _title(self) -> str:
        what = {
            "classification": f" of {len(self.classes)} classes",
            "multilabel": f" with {len(self.classes)} labels",
            "regression": "",
        }[self.kind]
        groups = "" if self.n_groups is None else f" in {self.n_groups} groups"
        name = self._score_name
        return f"{self.n_images} images{what}{groups}; {name}:"

    def _legend(self) -> list[str]:
        chosen = self.recommended
        layer = layer_text(layers_of(chosen))
        return [
            "=: chance can explain the difference from the best; *: the cheapest of "
            "these.",
            f"Recommended: {short_name(chosen.backbone)}, layer {layer}, norm "
            f'"{chosen.norm}", {chosen.kernel} kernel: {self._score(chosen)} +- '
            f"{self._error(chosen)}.",
            *self.notes,
        ]

    def _score(self, row: RankedCodes) -> str:
        if self.scoring in SHARES:
            return f"{100 * row.score:.2f}"
        return f"{row.score:.4g}"

    def _error(self, row: RankedCodes) -> str:
        if self.scoring in SHARES:
            return f"{100 * row.error:.2f}"
        return f"{row.error:.2g}"

    def _table(self) -> list[list[str]]:
        """Cells of all rows, below a header."""
        timed = any(row.images_per_second is not None for row in self.rows)
        header = ["", "score", "+-", "backbone", "layer", "norm", "kernel", "alpha"]
        header += ["code", "MACs", "compute", *(["images/s"] if timed else [])]
        table = [header]
        for row in self.rows:
            mark = "*" if row.recommended else "=" if row.indistinguishable else ""
            kernel = (
                row.kernel if row.gamma is None else f"{row.kernel} {row.gamma:.2g}"
            )
            speed = row.images_per_second
            cells = [mark, self._score(row), self._error(row), short_name(row.backbone)]
            cells += [layer_text(layers_of(row)), row.norm, kernel, f"{row.alpha:.2g}"]
            cells += [f"{row.code_length}", f"{row.multiply_adds / 1e6:.0f}M"]
            cells += [f"{row.compute_share:.0%}"]
            cells += [("" if speed is None else f"{speed:.0f}")] if timed else []
            table.append(cells)
        return table


def _shown(rows: tuple[RankedCodes, ...], recommended: RankedCodes) -> list[int]:
    """Positions of the rows of a table, that of the recommended codes among them."""
    shown = list(range(min(_MAX_ROWS, len(rows))))
    position = rows.index(recommended)
    return shown if position in shown else [*shown, position]
