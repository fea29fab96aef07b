"""RankedCodes, the rows of a ranking, and figures about them, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sk_cnncodes.base.public import public

# Scores that are shares, shown in percent.
SHARES = {"accuracy", "balanced_accuracy", "f1_macro", "average_precision"}


@public
@dataclass(frozen=True)
class RankedCodes:
    """Codes of one layer with one norm, and the best ridge classifier on them.

    Attributes
    ----------
    score : float
        Leave-one-out score; greater is better.
    error : float
        Its standard error.
    backbone : str
        As given to `rank_codes`.
    layer : int, str or list of them
        As the parameter `layer` of `CNNCodeTransformer` takes it.
    label : str
        Label of the layer.
    norm : str
        As the parameter `norm` of `CNNCodeTransformer`.
    kernel : {"linear", "rbf"}
        Of the best ridge classifier, or regression.
    gamma : float or None
        Of an RBF kernel ``exp(-gamma * |a - b|**2)``.
    alpha : float
        Its regularisation.
    code_length : int
        Number of features.
    multiply_adds : int
        Multiply-adds of the network up to the layer, for one image.
    compute_share : float
        Their share of those of the whole network, in [0, 1].
    images_per_second : float or None
        Speed of the pass through the backbone, with decoding, that computed these codes
        together with those of its other layers; None if some were in the cache, or they
        were too few to tell.
    indistinguishable : bool
        Whether the score is worse than the best by no more than chance explains.
    recommended : bool
        Whether these are the cheapest of those.
    """

    score: float
    error: float
    backbone: str
    layer: int | str | list[int | str]
    label: str
    norm: str
    kernel: str
    gamma: float | None
    alpha: float
    code_length: int
    multiply_adds: int
    compute_share: float
    images_per_second: float | None
    indistinguishable: bool
    recommended: bool


def layers_of(row: RankedCodes) -> list[int | str]:
    """The layers of a row."""
    return row.layer if isinstance(row.layer, list) else [row.layer]


def layer_text(layers: list[int | str]) -> str:
    """Layers with commas."""
    return ", ".join(map(str, layers))


# -- figures -------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How much better some predictions are than others of the same images.

    Attributes
    ----------
    value : float
        Of their scores.
    error : float
        Its standard error.
    clear : bool
        Whether it is positive by more than chance explains.
    """

    value: float
    error: float
    clear: bool


@dataclass(frozen=True)
class Compared:
    """Two rows, of which one may be better.

    Attributes
    ----------
    better, other : RankedCodes
        By their scores.
    difference : Difference
    """

    better: RankedCodes
    other: RankedCodes
    difference: Difference

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "backbone": self.better.backbone,
            "layer": self.better.layer,
            "score": self.better.score,
            "other_backbone": self.other.backbone,
            "other_layer": self.other.layer,
            "other_score": self.other.score,
            "difference": asdict(self.difference),
        }


@dataclass(frozen=True)
class Joined:
    """Codes of several rows side by side, against those of the best of them.

    Attributes
    ----------
    rows : tuple of RankedCodes
        One, if codes of several layers were ranked.
    score : float
    difference : Difference
        From the best of the rows, or from the best single layer.
    n_images : int
        Number of images that both were scored on.
    """

    rows: tuple[RankedCodes, ...]
    score: float
    difference: Difference
    n_images: int

    @property
    def layers(self) -> list[int | str]:
        """All their layers."""
        return [each for row in self.rows for each in layers_of(row)]

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "backbones": list(dict.fromkeys(row.backbone for row in self.rows)),
            "layers": self.layers,
            "score": self.score,
            "difference": asdict(self.difference),
            "images": self.n_images,
        }


@dataclass(frozen=True)
class CurvePoint:
    """The score with fewer images: the mean over parts of them.

    Attributes
    ----------
    n_parts : int
        A part is one of so many; 1 for all images.
    n_images : int
        Number of images in a part.
    score : float
    one_of_each_class : bool
        Whether one image, or group, of each class is left out at a time.
    """

    n_parts: int
    n_images: int
    score: float
    one_of_each_class: bool


@dataclass(frozen=True)
class Neighbours:
    """Images whose nearest neighbour is of the same class.

    Attributes
    ----------
    row : RankedCodes
        The codes.
    share : float
    chance : float
        The share of pairs of images that are of the same class.
    """

    row: RankedCodes
    share: float
    chance: float


@dataclass(frozen=True)
class CodeFigures:
    """What `CodeRanking.advice` knows.

    Attributes
    ----------
    signal : Difference
        Of the best codes from a prediction that is the same for all images.
    layers : Compared or None
        The best of the penultimate and of the earlier layers of the recommended
        backbone, one layer at a time.
    backbones : list of Compared
        The best backbone, and each other one.
    joined_layers, joined_backbones : Joined or None
        The penultimate and the best earlier layer; the best two backbones.
    neighbours : Neighbours or None
        Only for classes.
    curve : list of CurvePoint
        Of the recommended codes, from few to all images.
    last_doubling : Difference or None
        What the second half of the images added; None if the curve has one point.
    next_doubling : Difference or None
        What as many images again would add, if the loss fell by the same factor.
    training_score : float
        Of the same ridge classifier or regression on the images that it is fitted to.
    norm_left : str or None
        The norm that the recommended codes do not have yet; None if they were stored
        with it.
    least_per_class, mean_per_class : float or None
        Number of images of the smallest class, and of a class on average.
    """

    signal: Difference
    layers: Compared | None
    backbones: list[Compared]
    joined_layers: Joined | None
    joined_backbones: Joined | None
    neighbours: Neighbours | None
    curve: list[CurvePoint]
    last_doubling: Difference | None
    next_doubling: Difference | None
    training_score: float
    norm_left: str | None
    least_per_class: float | None
    mean_per_class: float | None


def short_name(backbone: str) -> str:
    """Name of a backbone, or the file name of its path."""
    return Path(backbone).name
