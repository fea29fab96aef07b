"""Backbones with the layers that are compared, whose codes one pass computes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from sklearn.base import clone

from sk_cnncodes.backbones.loading import load_backbone
from sk_cnncodes.base.exceptions import LayerError
from sk_cnncodes.cache.code_cache import resolve_cache
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.layers.layer import Layer
from sk_cnncodes.layers.multiply_adds import layer_multiply_adds

Which = int | str | list[int | str]
# A pass of fewer images measures its start.
_MIN_TIMED = 64


@dataclass(frozen=True)
class ComparedLayer:
    """A layer of a backbone, or several side by side.

    Attributes
    ----------
    which : int, str or list of them
        As `CNNCodeTransformer` takes it.
    labels : list of str
        Of each of them.
    multiply_adds : int
        Of the network up to the deepest of them, for one image.
    compute_share : float
        Their share of those of the whole network.
    """

    which: Which
    labels: list[str]
    multiply_adds: int
    compute_share: float


class ComparedBackbone:
    """A backbone, and the layers of it that are compared.

    Parameters
    ----------
    transformer : CNNCodeTransformer

    Attributes
    ----------
    name : str
        Name or path.
    transformer : CNNCodeTransformer
        Computes the codes, without norm.
    layers : list of ComparedLayer
    images_per_second : float or None
        Speed of the pass that computed the codes; None if some were in the cache.
    """

    def __init__(self, transformer: CNNCodeTransformer) -> None:
        self.transformer = transformer.set_params(norm=None)
        self.name = str(self.transformer.backbone)
        self._backbone = load_backbone(
            self.transformer.backbone, self.transformer.preprocessing
        )
        self.layers: list[ComparedLayer] = []
        self.images_per_second: float | None = None

    def configure(self, **parameters: Any) -> None:
        """Set parameters of the transformer."""
        self.transformer.set_params(**parameters)

    def norms(self, norms: list[str]) -> list[str]:
        """Those of the norms that are possible: all."""
        return norms

    def applied(self, norm: str) -> str | None:
        """The norm that is left to apply to what `compute` returns."""
        return norm

    def numbered(self) -> list[Which]:
        """Positions of all numbered layers, from the last."""
        return list(range(-1, -1 - len(self._backbone.layers), -1))

    @property
    def single_layers(self) -> list[int | str]:
        """The layers, and the parts of those that are several."""
        which = [part for layer in self.layers for part in parts_of(layer.which)]
        return list(dict.fromkeys(which))

    def take(self, wanted: Sequence[Which]) -> list[LayerError]:
        """Compare these layers; return an error for each that the backbone lacks."""
        known = dict[int | str, Any]()
        errors = list[LayerError]()
        taken = list[Which]()
        for which in wanted:
            try:
                known |= {each: self._layer(each) for each in parts_of(which)}
            except LayerError as error:
                errors.append(error)
            else:
                taken.append(which)
        names = list(dict.fromkeys(layer.name for layer in known.values()))
        costs, total = layer_multiply_adds(self._backbone.graph, names)
        for which in taken:
            layers = [known[each] for each in parts_of(which)]
            cost = max(costs[layer.name] for layer in layers)
            labels = [layer.label for layer in layers]
            self.layers.append(ComparedLayer(which, labels, cost, cost / max(total, 1)))
        self.transformer.set_params(cache_layers=list(known))
        return errors

    def _layer(self, which: int | str) -> Layer:
        """A layer that the pooling of the transformer fits."""
        pooling, views = self.transformer.pooling, self.transformer.views
        return self._backbone.layer(
            self._backbone.spec(which, pooling, None, views).layer
        )

    def compute(
        self, layer: ComparedLayer, images: Sequence[Any], folder: str | None
    ) -> list[np.ndarray]:
        """Codes of a layer, or of each of several, without norm.

        With a folder, they are mapped from files in it.
        """
        found = []
        for part in parts_of(layer.which):
            self.transformer.set_params(layer=part).fit(images)
            before, start = self._n_missed(), time.perf_counter()
            if folder is None:
                found.append(self.transformer.transform(images))
            else:
                path = Path(folder, f"{uuid4().hex}.npy")
                found.append(self.transformer.transform_to(path, images))
            self.transformer.set_params(verbose=False)  # the others are in the cache
            if self._n_missed() - before == len(images) >= _MIN_TIMED:
                seconds = time.perf_counter() - start
                self.images_per_second = len(images) / seconds
        return found

    def _n_missed(self) -> int:
        cache = resolve_cache(self.transformer.cache)
        return 0 if cache is None else cache.info().misses


def transformers_of(backbones: Any) -> list[CNNCodeTransformer]:
    """New transformers for the parameter `backbones` of `rank_codes`.

    Raises
    ------
    ValueError
        If there is none.
    """
    single = isinstance(backbones, (str, os.PathLike, CNNCodeTransformer))
    found = [
        clone(each)
        if isinstance(each, CNNCodeTransformer)
        else CNNCodeTransformer(each)
        for each in ([backbones] if single else backbones)
    ]
    if not found:
        raise ValueError("backbones: expected at least one, got none.")
    return found


def compared_backbones(backbones: Any, layers: Any) -> list[ComparedBackbone]:
    """The backbones, with those of the layers that they have.

    Parameters are those of `rank_codes`.

    Raises
    ------
    LayerError
        If no backbone has one of the layers.
    ValueError
        If there is no layer, or as `transformers_of`.
    """
    found = [ComparedBackbone(each) for each in transformers_of(backbones)]
    if isinstance(layers, str) and layers == "all":
        for backbone in found:
            for error in backbone.take(backbone.numbered()):
                raise error
        return found
    single = isinstance(layers, (str, Integral))
    wanted = [_read_layer(each) for each in ([layers] if single else layers)]
    if not wanted:
        raise ValueError("layers: expected 'all' or at least one layer, got none.")
    errors = [error for backbone in found for error in backbone.take(wanted)]
    taken = [layer.which for backbone in found for layer in backbone.layers]
    if any(which not in taken for which in wanted):
        raise errors[0]
    return [backbone for backbone in found if backbone.layers]


def parts_of(which: Which) -> list[int | str]:
    """A layer, or several, as a list."""
    return which if isinstance(which, list) else [which]


def _read_layer(given: Any) -> Which:
    if isinstance(given, (list, tuple)):
        return [each if isinstance(each, str) else int(each) for each in given]
    return given if isinstance(given, str) else int(given)
