"""Checks of the parameters of `CNNCodeTransformer` that do not need a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from sk_cnncodes.backbones.norms import NORMS
from sk_cnncodes.cache.code_cache import resolve_cache
from sk_cnncodes.engines.devices import check_n_jobs
from sk_cnncodes.engines.execution import check_execution
from sk_cnncodes.images.safe_open import check_max_pixels
from sk_cnncodes.images.views import VIEWS

DECODERS = ("auto", "pillow", "gpu")
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "pooling": ("auto", "avg", "max", "gem", "cls", "mean", "flatten"),
    "norm": NORMS,
    "views": tuple(VIEWS),
    "on_error": ("raise", "nan"),
    "decoder": DECODERS,
}


def given_layers(layer: Any) -> Sequence[Any]:
    """The parameter `layer`, one or several, as a sequence."""
    return layer if isinstance(layer, (list, tuple)) else [layer]


def layer_list(layer: Any) -> list[int | str]:
    """The parameter `layer` as a list of built-in types."""
    return [
        each if isinstance(each, str) else int(each) for each in given_layers(layer)
    ]


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse values that are invalid for any backbone.

    Raises
    ------
    TypeError, ValueError
        If a value is invalid. The message names the parameter, what was expected and
        what was got.
    """
    layer, cache_layers = parameters["layer"], parameters["cache_layers"]
    for each in given_layers(layer):
        if isinstance(each, bool) or not isinstance(each, (Integral, str)):
            raise TypeError(
                "layer: expected a negative int, a name, or a list of them, got "
                f"{layer!r}."
            )
    if not given_layers(layer):
        raise ValueError(f"layer: expected at least one layer, got {layer!r}.")
    if isinstance(cache_layers, (str, Integral)):
        raise TypeError(
            f"cache_layers: expected a list of layers or None, got {cache_layers!r}."
        )
    resolve_cache(parameters["cache"])
    check_execution(parameters["device"], parameters["engine"], parameters["precision"])
    for name, choices in _CHOICES.items():
        if parameters[name] not in choices:
            raise ValueError(
                f"{name}: expected one of {list(choices)}, got {parameters[name]!r}."
            )
    check_max_pixels(parameters["max_pixels"])
    batch_size = parameters["batch_size"]
    is_int = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    if batch_size != "auto" and not (is_int and batch_size >= 1):
        raise ValueError(
            f"batch_size: expected 'auto' or an int of at least 1, got {batch_size!r}."
        )
    check_n_jobs(parameters["n_jobs"])
    store_backbone = parameters["store_backbone"]
    if not isinstance(store_backbone, (bool, np.bool_)):
        raise TypeError(
            f"store_backbone: expected True or False, got {store_backbone!r}."
        )
