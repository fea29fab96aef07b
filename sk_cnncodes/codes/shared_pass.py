"""What one forward pass computes: the codes that are returned, and others to store.

A pass costs the most; each further output costs little, and a search or a union will
ask for it. Which outputs those are:

- the layers of `cache_layers`;
- in a search, known by `set_params` having set the layer or the pooling: all numbered
  layers, unless `cache_layers` lists those of the search, or all poolings, or both;
- the layers and poolings of the other transformers that are alive and compute codes of
  the same images alike, such as those of a FeatureUnion.

Measured on one core, all numbered layers cost 1.03 of a pass of MobileNetV2 and 1.16 of
one of the bundled small network, so that without any of these signs the returned codes
are computed alone. Nor are others if their codes would not fit into the cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.code_graph import POOLINGS
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.exceptions import LayerError
from sk_cnncodes.codes.parameters import given_layers

# Parameters whose candidates share a pass.
SHARED_PARAMETERS = frozenset({"layer", "pooling"})
# What transformers must have in common to share one.
_COMMON = (
    *("backbone", "preprocessing", "views", "decoder", "precision", "engine"),
    "cache",
)

# All transformers of this process, by `id`.
_living: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def register(transformer: Any) -> None:
    """Make a transformer known to those that could share their passes with it."""
    _living[id(transformer)] = transformer


def siblings(transformer: Any, *, fitting: bool) -> list[Any]:
    """The other transformers that may need the same pass.

    Only those that are in use: fitted, or about to be, as the parts of a FeatureUnion
    are while the first is fitted.
    """
    if transformer.cache is None:
        return []
    living = [reference() for reference in _living.valuerefs()]
    common = _common_parameters(transformer)
    return [
        other
        for other in living
        if other is not None
        and other is not transformer
        and (fitting or hasattr(other, "_fitted_codes"))
        and _common_parameters(other) == common
    ]


def _common_parameters(transformer: Any) -> list[str]:
    return [repr(getattr(transformer, name, None)) for name in _COMMON]


def pass_outputs(
    backbone: Backbone,
    specs: Sequence[CodeSpec],
    *,
    cache_layers: Iterable[int | str],
    pooling: str,
    searched: frozenset[str],
    search_is_over: bool,
    others: Sequence[Mapping[str, Any]],
    max_bytes: float,
) -> list[CodeSpec]:
    """The specs that a forward pass computes, without norm, in a fixed order.

    Parameters
    ----------
    backbone : Backbone
    specs : sequence of CodeSpec
        Of the codes that are returned, one for each layer.
    cache_layers : iterable of int or str
        Layers that are computed in any case.
    pooling : str
        As given: "auto" is resolved for each layer.
    searched : frozenset of str
        Parameters of `SHARED_PARAMETERS` that a search varies.
    search_is_over : bool
        Whether it has seen all of its images: new ones need no other candidate's codes.
    others : sequence of mapping
        Parameters `layer` and `pooling` of other transformers that may need the pass.
    max_bytes : float
        Largest size of the codes of one image, in bytes.
    """
    spec, required = specs[0], {spec.without_norm for spec in specs}
    listed = list(cache_layers)
    if "layer" in searched:
        # A search over backbones lists layers that one of them may lack.
        required |= _fitting(backbone, spec, [(which, pooling) for which in listed])
    else:
        required |= {_spec_of(backbone, spec, which, pooling) for which in listed}
    if search_is_over:
        searched = frozenset()
    layers = [backbone.layer(spec.layer) for spec in specs]
    if "layer" in searched and not listed:
        layers += backbone.layers
    candidates: list[tuple[Any, str]] = [
        (layer, other["pooling"])
        for other in others
        for layer in given_layers(other["layer"])
    ]
    for layer in layers:
        candidates.append((layer.name, pooling))
        if "pooling" in searched:
            names = [name for name in POOLINGS[layer.kind] if name != "flatten"]
            candidates += [(layer.name, name) for name in names]
    useful = required | _fitting(backbone, spec, candidates)
    size = sum(4 * backbone.code_length(each) for each in useful)
    chosen = useful if size <= max_bytes else required
    # The same order for every candidate of a search, so that all share one session.
    return sorted(chosen, key=lambda each: (each.layer, each.pooling))


def _spec_of(backbone: Backbone, like: CodeSpec, layer: Any, pooling: str) -> CodeSpec:
    layer = layer if isinstance(layer, str) else int(layer)
    spec = backbone.spec(layer, pooling, None, like.views)
    return replace(spec, decoder=like.decoder)


def _fitting(
    backbone: Backbone, like: CodeSpec, candidates: Iterable[tuple[Any, str]]
) -> set[CodeSpec]:
    """The specs of layers and poolings; those that the backbone lacks are left out."""
    found = set()
    for layer, pooling in candidates:
        try:
            found.add(_spec_of(backbone, like, layer, pooling))
        except (LayerError, TypeError):
            continue  # `fit` of the other transformer says so
    return found
