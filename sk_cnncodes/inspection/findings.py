"""What an audit finds: small records that name images by their position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sk_cnncodes.base.public import public


@public
@dataclass(frozen=True)
class DuplicateImages:
    """Images that are the same, or nearly the same, photograph.

    Attributes
    ----------
    images : tuple of int
        Their positions, ascending; at least two.
    exact : bool
        Whether files or pixels are equal; otherwise the images are crops, copies of
        other size or quality, or neighbours in a burst.
    similarity : float
        How well the pixels of the least similar linked images match: the correlation
        of their thumbnails at the best place and size; 1 for exact duplicates.
    labels : tuple
        Their different labels, sorted; several contradict each other.
    """

    images: tuple[int, ...]
    exact: bool
    similarity: float
    labels: tuple[Any, ...]

    @property
    def is_contradiction(self) -> bool:
        """Whether the images have different labels."""
        return len(self.labels) > 1


@public
@dataclass(frozen=True)
class SuspectLabel:
    """A label that models without the image, and its neighbours, disagree with.

    Attributes
    ----------
    image : int
        Position of the image.
    label : object
        As given.
    suggested : object
        The class that the models prefer.
    score : float
        What suspects are ranked by, from 0 to 1: that of being mislabelled.
    probability : float
        Out-of-fold probability of `label`.
    suggested_probability : float
        That of `suggested`.
    neighbours : tuple of int
        The images with the nearest codes, of other groups, the nearest first.
    n_agreeing : int
        How many of `neighbours` have the label.
    """

    image: int
    label: Any
    suggested: Any
    score: float
    probability: float
    suggested_probability: float
    neighbours: tuple[int, ...]
    n_agreeing: int


@public
@dataclass(frozen=True)
class Outlier:
    """An image like no other.

    Attributes
    ----------
    image : int
        Position of the image.
    distance : float
        Mean cosine distance to its nearest neighbours.
    ratio : float
        Over the median of all images.
    neighbours : tuple of int
        The images with the nearest codes, the nearest first.
    """

    image: int
    distance: float
    ratio: float
    neighbours: tuple[int, ...]


@public
@dataclass(frozen=True)
class ClassSize:
    """How many images a class has.

    Attributes
    ----------
    label : object
    images : int
    scenes : int
        Number of different groups or photographs among them: near duplicates count
        once.
    """

    label: Any
    images: int
    scenes: int


@public
@dataclass(frozen=True)
class Bursts:
    """Near duplicates within classes, as of photographs in bursts.

    Attributes
    ----------
    images : int
        Number of images.
    in_bursts : int
        Number of images that have a near duplicate of the same class.
    scenes : int
        Number of different photographs: near duplicates count once.
    largest : int
        Number of images of the largest burst.
    typical : int
        Median number of images of a burst.
    classes : tuple
        Classes of which half of the images or more are in bursts.
    """

    images: int
    in_bursts: int
    scenes: int
    largest: int
    typical: int
    classes: tuple[Any, ...]
