"""What all pages have: classes, layers, findings, the learning curve, the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sk_cnncodes.inspection.audited import Audit
from sk_cnncodes.inspection.codes_map import project
from sk_cnncodes.inspection.evaluation import Evaluation
from sk_cnncodes.inspection.layer_displays import LayerHeadDisplay, LayerRankingDisplay
from sk_cnncodes.inspection.page.figures import Figure, draw_learning_curve, figure
from sk_cnncodes.inspection.page.kinds import MAX_MATRIX, percent
from sk_cnncodes.inspection.page.thumbnails import Thumbnails
from sk_cnncodes.inspection.page.tiles import (
    MAX_LISTED,
    MAX_SAMPLES,
    Table,
    Tile,
    Tiles,
)
from sk_cnncodes.ranking.code_ranking import CodeRanking
from sk_cnncodes.ranking.ranked_codes import SHARES

# Points of a map.
MAX_POINTS = 1000
# Rows of the table of classes that have thumbnails.
_FEWEST_TESTED = 30


@dataclass(frozen=True)
class ClassRow:
    """A class in the table of classes.

    Attributes
    ----------
    name : str
    cells : list of str
    samples : list of Tile
    """

    name: str
    cells: list[str]
    samples: list[Tile]


@dataclass(frozen=True)
class Listed:
    """Something found about images.

    Attributes
    ----------
    text : str
    tiles : list of Tile
    """

    text: str
    tiles: list[Tile]


@dataclass(frozen=True)
class Point:
    """An image on the map.

    Attributes
    ----------
    x, y : float
        In percent of the map.
    color : int
        Number of its colour.
    kind : str
        "wrong", "right" or "train".
    href : str
        Id of what it leads to; empty for none.
    tile : Tile
    """

    x: float
    y: float
    color: int
    kind: str
    href: str
    tile: Tile


def own_warnings(evaluation: Evaluation) -> list[str]:
    """What makes the figures of an evaluation less than they seem."""
    found = []
    count = len(evaluation.tested)
    if count < _FEWEST_TESTED:
        found.append(
            f"Only {count} images were tested: the figures can be far off by chance. "
            f"Expected {_FEWEST_TESTED} or more."
        )
    if evaluation.n_seen:
        found.append(
            f"{evaluation.n_seen} of the {count} tested files are also among the "
            "training images: the figures are too good. Test with other images."
        )
    if evaluation.kind == "classification":
        new = evaluation.classes[evaluation.n_known :]
        if new:
            found.append(
                f"The model does not know {', '.join(map(repr, new[:9]))}: all images "
                "of these classes count as mistakes."
            )
    return found


def class_rows(
    evaluation: Evaluation, tiles: Tiles
) -> tuple[list[str], list[ClassRow]]:
    """Header and rows of the table of classes or labels."""
    several = evaluation.kind == "multilabel"
    tested, train = evaluation.tested, evaluation.train
    own = train is tested
    header = ["label" if several else "class"]
    header += ["images"] if own else ["tested"]
    header += [] if own or train is None else ["training"]
    header += [] if several else ["right"]

    def members(truth: np.ndarray, number: int) -> np.ndarray:
        return np.flatnonzero(truth[:, number] if several else truth == number)

    rows = []
    for number, name in enumerate(evaluation.classes):
        mine = members(tested.truth, number)
        cells = [str(len(mine))]
        samples = [tiles.tested(int(row)) for row in mine[:MAX_SAMPLES]]
        if train is not None and not own:
            seen = members(train.truth, number)
            cells.append(str(len(seen)))
            more = seen[: MAX_SAMPLES - len(samples)]
            samples += [tiles.train(int(row)) for row in more]
        if not several:
            share = evaluation.right[mine].mean() if len(mine) else np.nan
            cells.append("-" if np.isnan(share) else percent(share))
        rows.append(ClassRow(name, cells, samples))
    return header, rows


def value_samples(evaluation: Evaluation, tiles: Tiles) -> list[Tile]:
    """Images from the lowest to the highest value."""
    order = np.argsort(evaluation.tested.truth[:, 0], kind="stable")
    chosen = np.unique(np.linspace(0, len(order) - 1, 12).round().astype(int))
    return [
        tiles.tested(int(row), evaluation.label(evaluation.tested.truth[row]))
        for row in order[chosen]
    ]


# -- layers ------------------------------------------------------------------------


def layer_figures(model: Any) -> tuple[list[Figure], Table | None]:
    """The ranking of layers, and the layer x head table, where a model has them."""
    figures, table = list[Figure](), None
    ranking = getattr(model, "ranking_", None)
    if isinstance(ranking, CodeRanking):
        chosen, best = ranking.recommended, ranking.best
        figures.append(
            figure(
                LayerRankingDisplay.from_ranking(ranking).plot,
                "ranking",
                (8, 3.8),
                f"{ranking.scoring} of {len(ranking.rows)} codes over their "
                f"multiply-adds. The best, {_row(best)}, has {best.score:.4g}; "
                f"recommended is {_row(chosen)} with {chosen.score:.4g}.",
                "Each image is predicted by a ridge model of all others, on the codes "
                "of each layer. Bars: standard errors. The circle is the cheapest "
                "layer that chance cannot tell from the best.",
            )
        )
    if getattr(model, "cv_results_", None) is not None:
        display = LayerHeadDisplay.from_search(model)
        n_rows, n_heads = display.means.shape
        table = head_table(display)
        figures.append(
            figure(
                display.plot,
                "heads",
                (8, min(1.2 + 0.2 * n_rows * (n_heads + 1), 9)),
                "Cross-validated scores of heads by layer; the table has the values.",
                "Classifiers on the best codes. Each bar goes from the worst to the "
                "best fold.",
            )
        )
    return figures, table


def _row(row: Any) -> str:
    return f"{row.backbone.rpartition('/')[2]}, layer {row.layer}, {row.norm}"


def head_table(display: LayerHeadDisplay) -> Table:
    """The layer x head table."""
    share = not display.scoring.startswith("neg_") and display.scoring != "r2"
    factor, digits = (100, 1) if share else (1, 3)
    rows = []
    for number, codes in enumerate(display.codes):
        cells = [
            "-"
            if np.isnan(mean)
            else f"{factor * mean:.{digits}f} "
            f"({factor * low:.{digits}f} to {factor * high:.{digits}f})"
            for mean, low, high in zip(
                display.means[number],
                display.lows[number],
                display.highs[number],
                strict=True,
            )
        ]
        rows.append([codes, *cells])
    unit = ", in %" if share else ""
    return Table(
        f"Cross-validated {display.scoring}{unit}: mean, and worst to best fold.",
        ["codes", *display.heads],
        rows,
    )


def learning_curve(ranking: Any) -> tuple[Figure | None, str]:
    """Scores with fewer images, and what more would bring."""
    if not isinstance(ranking, CodeRanking):
        return None, ""
    findings = {each.name: each for each in ranking.advice().findings}
    if "images" not in findings:  # codes that tell nothing
        return None, ""
    finding = findings["images"]
    points = finding.figures["curve"]
    if len(points) < 2:
        return None, finding.sentence
    counts = [point["n_images"] for point in points]
    scores = [point["score"] for point in points]
    listed = "; ".join(
        f"{n} images {s:.4g}" for n, s in zip(counts, scores, strict=True)
    )
    plot = figure(
        draw_learning_curve(counts, scores, ranking.scoring, ranking.scoring in SHARES),
        "curve",
        (6, 3.6),
        f"Learning curve: {listed}.",
    )
    return plot, finding.sentence


# -- findings ----------------------------------------------------------------------


class Findings:
    """Lists of what an audit found.

    Parameters
    ----------
    audit : Audit
    thumbnails : Thumbnails
    folder : str
        What all paths begin with, and is not shown.
    """

    def __init__(self, audit: Audit, thumbnails: Thumbnails, folder: str) -> None:
        self._audit = audit
        self._thumbnails = thumbnails
        self._folder = folder

    def as_dict(self) -> dict[str, Any]:
        """What the template of findings takes."""
        return {
            "suspects": self.suspects(),
            "n_suspects": len(self._audit.suspects),
            "duplicates": self.duplicates(),
            "n_duplicates": len(self._audit.duplicates),
            "outliers": self.outliers(),
            "n_outliers": len(self._audit.outliers),
        }

    def class_rows(self) -> list[ClassRow]:
        """Rows of the table of classes."""
        labels = self._audit.labels or []
        found = []
        for each in self._audit.class_sizes:
            mine = [i for i, label in enumerate(labels) if _has(label, each.label)]
            samples = [self._tile(image) for image in mine[:MAX_SAMPLES]]
            cells = [str(each.images), str(each.scenes)]
            found.append(ClassRow(str(each.label), cells, samples))
        return found

    def _tile(self, index: int) -> Tile:
        labels = self._audit.labels
        name = self._audit.name(index).removeprefix(self._folder)
        label = "image" if labels is None else _words(labels[index])
        css = self._thumbnails.add(self._audit.images, index)
        return Tile(css, f"{label}: {name}", name, (label,))

    def suspects(self) -> list[Listed]:
        """Labels that are probably wrong."""
        return [
            Listed(
                f"labelled {each.label} ({percent(each.probability)}), more like "
                f"{each.suggested} ({percent(each.suggested_probability)}); "
                f"{each.n_agreeing} of {len(each.neighbours)} similar images are "
                f"{each.label}.",
                [
                    self._tile(each.image),
                    *(self._tile(other) for other in each.neighbours[:3]),
                ],
            )
            for each in self._audit.suspects[:MAX_LISTED]
        ]

    def duplicates(self) -> list[Listed]:
        """Images that are the same, or nearly so."""
        return [
            Listed(
                f"{len(each.images)} "
                + (
                    "equal images"
                    if each.exact
                    else f"nearly equal images, similarity {each.similarity:.3f}"
                )
                + (
                    f", labelled {_words(each.labels)}: a contradiction."
                    if each.is_contradiction
                    else "."
                ),
                [self._tile(image) for image in each.images[:MAX_SAMPLES]],
            )
            for each in self._audit.duplicates[:MAX_LISTED]
        ]

    def outliers(self) -> list[Listed]:
        """Images like no other."""
        return [
            Listed(
                f"{each.ratio:.1f} times as far from similar images as is usual.",
                [
                    self._tile(each.image),
                    *(self._tile(other) for other in each.neighbours[:3]),
                ],
            )
            for each in self._audit.outliers[:MAX_LISTED]
        ]


def _has(labels: Any, label: Any) -> bool:
    """Whether an image is of a class, or has a label."""
    return bool(
        label in labels if isinstance(labels, (list, tuple)) else label == labels
    )


def _words(label: Any) -> str:
    """A class, several labels, or a value as text."""
    if isinstance(label, (list, tuple)):
        return ", ".join(map(str, label)) or "none"
    return f"{label:.4g}" if isinstance(label, float) else str(label)


# -- the map -----------------------------------------------------------------------


def map_points(
    evaluation: Evaluation, tiles: Tiles, method: str
) -> tuple[list[Point], list[tuple[float, float, int, str]], str]:
    """Images, names of classes where most of their images are, and the method."""
    tested, train = evaluation.tested, evaluation.train
    sets = [(tested, True)]
    if train is not None and train is not tested:
        sets.append((train, False))
    chosen = []
    left = MAX_POINTS
    for images, is_tested in sets:
        taken = _some(len(images), left, evaluation.worst_first if is_tested else [])
        chosen.append((images, is_tested, taken))
        left -= len(taken)
    codes = np.concatenate([images.codes[taken] for images, _, taken in chosen])
    positions, method = project(codes, method)
    low, high = positions.min(axis=0), positions.max(axis=0)
    places = 2 + 96 * (positions - low) / np.where(high > low, high - low, 1)
    places[:, 1] = 100 - places[:, 1]
    truth = np.concatenate([images.truth[taken] for images, _, taken in chosen])
    colors = _colors(evaluation, truth)
    points, position = list[Point](), 0
    for images, is_tested, taken in chosen:
        for row in map(int, taken):
            x, y = places[position].round(2).tolist()
            label = evaluation.label(images.truth[row])
            kind, href = "train", ""
            if is_tested:
                kind, href = _lead(evaluation, row)
                predicted = evaluation.label(evaluation.predicted[row])
                words = f"{label}, taken for {predicted}" if kind == "wrong" else label
                if evaluation.kind == "regression":
                    words = f"{label}, predicted {predicted}"
                tile = tiles.tested(row, words)
            else:
                tile = tiles.train(row, f"{label}, training image")
            points.append(Point(x, y, int(colors[position]), kind, href, tile))
            position += 1
    names = []
    few = len(evaluation.classes) <= MAX_MATRIX  # more names cover each other
    if evaluation.kind == "classification" and few:
        for number, name in enumerate(evaluation.classes):
            mine = places[truth == number]
            if len(mine):
                x, y = np.median(mine, axis=0).round(1).tolist()
                names.append((x, y, number % N_COLORS, name))
    return points, names, method


N_COLORS = 12


def _colors(evaluation: Evaluation, truth: np.ndarray) -> np.ndarray:
    """Numbers of colours: of classes, or of ten ranges of values."""
    if evaluation.kind == "classification":
        numbers: np.ndarray = truth % N_COLORS
        return numbers
    if evaluation.kind == "multilabel":
        first: np.ndarray = np.where(truth.any(axis=1), truth.argmax(axis=1), 0)
        return first % N_COLORS
    edges = np.quantile(truth[:, 0], np.linspace(0, 1, 6)[1:-1])
    ranges: np.ndarray = np.searchsorted(edges, truth[:, 0])
    return ranges


def _lead(evaluation: Evaluation, row: int) -> tuple[str, str]:
    if evaluation.kind == "regression":
        return "right", ""
    kind = "right" if evaluation.right[row] else "wrong"
    if evaluation.kind == "multilabel":
        return kind, ""
    return kind, f"cell-{evaluation.tested.truth[row]}-{evaluation.predicted[row]}"


def _some(count: int, most: int, first: Sequence[int] | np.ndarray) -> np.ndarray:
    """Positions of all images, or of some, the given ones among them."""
    if count <= most:
        return np.arange(count)
    chosen = [int(each) for each in first][:most]
    rest = np.setdiff1d(np.arange(count), chosen)
    drawn = np.random.default_rng(0).permutation(rest)[: most - len(chosen)]
    return np.sort(np.concatenate([np.array(chosen, int), drawn]))
