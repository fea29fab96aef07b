"""What sections of a page are made of: thumbnails with words, and lists of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sk_cnncodes.inspection.evaluation import Evaluation, ImageSet
from sk_cnncodes.inspection.image_displays import top_classes
from sk_cnncodes.inspection.page.thumbnails import LARGE, SMALL, Thumbnails

# Images of one cell of a confusion matrix, of a class, and of a list.
MAX_TILES, MAX_SAMPLES, MAX_LISTED = 24, 6, 30


@dataclass(frozen=True)
class Tile:
    """An image in a page.

    Attributes
    ----------
    css : str
        Class of its thumbnail; empty if the page has none of it.
    alt : str
        What it is, for those who do not see it.
    name : str
        Its path.
    words : tuple of str
        Below it.
    """

    css: str
    alt: str
    name: str
    words: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The last part of the path."""
        return Path(self.name).name or self.name


@dataclass(frozen=True)
class Bar:
    """A class and its score in a list of the most probable ones.

    Attributes
    ----------
    name : str
    value : str
        The score as text.
    width : float
        Of its bar, from 0 to 100.
    is_truth : bool
    """

    name: str
    value: str
    width: float
    is_truth: bool


@dataclass(frozen=True)
class Mistake:
    """An image, what it is, what it was taken for, and similar training images.

    Attributes
    ----------
    tile : Tile
    truth, predicted : str
    bars : list of Bar
    similar : list of Tile
    """

    tile: Tile
    truth: str
    predicted: str
    bars: list[Bar] = field(default_factory=list)
    similar: list[Tile] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes
    ----------
    caption : str
    header : list of str
    rows : list of list of str
        The first cell of each is its header.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]


class Tiles:
    """Makes tiles of an evaluation.

    Parameters
    ----------
    evaluation : Evaluation
    thumbnails : Thumbnails

    Attributes
    ----------
    folder : str
        What all paths begin with.
    """

    def __init__(self, evaluation: Evaluation, thumbnails: Thumbnails) -> None:
        self.evaluation = evaluation
        self.thumbnails = thumbnails
        names = list(evaluation.tested.names)
        names += [] if evaluation.train is None else evaluation.train.names
        self.folder = common_folder(names)

    def tested(self, index: int, *words: str, side: int = SMALL) -> Tile:
        """A tested image."""
        evaluation = self.evaluation
        truth = evaluation.label(evaluation.tested.truth[index])
        return self._of(evaluation.tested, index, f"{truth}", words, side)

    def train(self, index: int, *words: str, side: int = SMALL) -> Tile:
        """A training image."""
        train = self.evaluation.train
        assert train is not None
        truth = self.evaluation.label(train.truth[index])
        return self._of(train, index, f"training image, {truth}", words, side)

    def _of(
        self, found: ImageSet, index: int, what: str, words: tuple[str, ...], side: int
    ) -> Tile:
        css = self.thumbnails.add(found.images, index, side)
        name = found.names[index].removeprefix(self.folder)
        return Tile(css, f"{what}: {name}", name, words)

    def mistakes(self, positions: Iterable[int]) -> list[Mistake]:
        """What there is to see of some tested images."""
        return [self._mistake(int(index)) for index in positions]

    def _mistake(self, index: int) -> Mistake:
        evaluation = self.evaluation
        found, similar = evaluation.neighbours, list[Tile]()
        if found is not None:
            for other, distance in zip(found[0][index], found[1][index], strict=True):
                assert evaluation.train is not None
                words = evaluation.label(evaluation.train.truth[other])
                similar.append(self.train(int(other), words, f"{distance:.2f} away"))
        return Mistake(
            self.tested(index, side=LARGE),
            evaluation.label(evaluation.tested.truth[index]),
            evaluation.label(evaluation.predicted[index]),
            self._bars(index),
            similar,
        )

    def _bars(self, index: int) -> list[Bar]:
        evaluation = self.evaluation
        if evaluation.scores is None:
            return []
        top = top_classes(evaluation, index)
        truth = evaluation.tested.truth[index]
        if evaluation.has_probabilities:
            low, high = 0.0, 1.0
        else:
            low, high = float(evaluation.scores.min()), float(evaluation.scores.max())
        return [
            Bar(
                evaluation.classes[number],
                f"{100 * score:.1f}%"
                if evaluation.has_probabilities
                else f"{score:.2f}",
                100 * (score - low) / max(high - low, 1e-12),
                bool(truth[number]) if np.ndim(truth) else number == truth,
            )
            for number, score in top
        ]


def common_folder(names: Sequence[str]) -> str:
    """What all paths begin with, up to a separator; a page tells no more folders."""
    first, last = min(names), max(names)
    pairs = enumerate(zip(first, last, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))
    return first[: max(first.rfind("/", 0, same), first.rfind("\\", 0, same)) + 1]
