"""Candidates for numbered layers, and which rule decided on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerDecision:
    """Whether a candidate became a numbered layer, and why.

    Attributes
    ----------
    tensor : str
        Name of the tensor.
    shape : tuple of int
        Shape with the batch dimension; () if unknown.
    is_layer : bool
        Whether it is a numbered layer.
    rule : str
        The rule that decided.
    """

    tensor: str
    shape: tuple[int, ...]
    is_layer: bool
    rule: str


class Candidates:
    """Dominators that are block outputs, and those that are not, by index.

    Each maps to the rule that decided last.
    """

    def __init__(self) -> None:
        self.kept: dict[int, str] = {}
        self.dropped: dict[int, str] = {}

    def add(self, index: int, rule: str) -> None:
        """Mark a dominator as a block output, unless it already is one."""
        if index not in self.kept:
            self.kept[index] = rule
            self.dropped.pop(index, None)

    def drop(self, index: int, rule: str) -> None:
        """Mark a dominator as not a block output."""
        self.kept.pop(index, None)
        self.dropped[index] = rule

    def drop_where(self, is_dropped: Callable[[int], bool], rule: str) -> None:
        """Drop all that match a predicate, which is evaluated before any drop."""
        for index in [i for i in self.in_order if is_dropped(i)]:
            self.drop(index, rule)

    @property
    def in_order(self) -> list[int]:
        """Indices of the block outputs, in order from the image."""
        return sorted(self.kept)
