"""Parameter grids for model selection, and codes of several backbones side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from sklearn.pipeline import FeatureUnion

from sk_cnncodes.base.public import public
from sk_cnncodes.codes.parameters import given_layers
from sk_cnncodes.codes.transformer import CNNCodeTransformer

# A value of the parameter `layer`: one layer, or several side by side.
LayerChoice = int | str | Sequence[int | str]


@public
def layer_grid(
    layers: Iterable[LayerChoice], step: str = "cnncodetransformer"
) -> dict[str, list[Any]]:
    """Parameter grid over layers that share one forward pass per image.

    Parameters
    ----------
    layers : iterable of int, str or list of them
        Candidates for the parameter `layer` of `CNNCodeTransformer`. A list is one
        candidate: the codes of its layers side by side.
    step : str, default="cnncodetransformer"
        Name of the transformer's step in the pipeline. The default is the name given
        by `make_pipeline`. Nested steps are written as in scikit-learn:
        ``"union__codes"``.

    Returns
    -------
    grid : dict
        Grid over `layer` and `cache_layers`, to be merged with other parameters:
        ``layer_grid([-1, -2]) | {"svc__C": [1, 10]}``.

    Raises
    ------
    TypeError
        If `layers` is a single layer.

    Notes
    -----
    A plain grid over `layer` needs one forward pass per image too, without a helper's
    parameter in `best_params_` and `cv_results_`: a search stores the codes of all
    numbered layers. `layer_grid` stores these layers alone, and serves tensors that are
    given by name.

    Examples
    --------
    >>> from sk_cnncodes import layer_grid
    >>> layer_grid([-1, -3], step="codes")
    {'codes__layer': [-1, -3], 'codes__cache_layers': [(-1, -3)]}
    >>> layer_grid([-1, [-1, -3]], step="codes")
    {'codes__layer': [-1, [-1, -3]], 'codes__cache_layers': [(-1, -3)]}
    """
    if isinstance(layers, (str, Integral)):
        raise TypeError(f"layers: expected a list of layers, got {layers!r}.")
    layers = list(layers)
    single = dict.fromkeys(each for layer in layers for each in given_layers(layer))
    return {f"{step}__layer": layers, f"{step}__cache_layers": [tuple(single)]}


@public
def code_union(
    backbones: Iterable[str | os.PathLike[str]], **parameters: Any
) -> FeatureUnion:
    """Codes of several backbones side by side.

    Parameters
    ----------
    backbones : iterable of str or path-like
        Names or paths, as the parameter `backbone` of `CNNCodeTransformer`.
    **parameters
        Other parameters, which all transformers get. With ``norm="l2"`` or ``"power"``
        all backbones have the same weight.

    Returns
    -------
    union : FeatureUnion
        One `CNNCodeTransformer` for each backbone, under its name, or the name of its
        file without the suffix.

    Raises
    ------
    ValueError
        If there are no backbones, or two have the same name.
    TypeError
        If `backbones` is a single one, or a parameter is unknown.

    Notes
    -----
    `to_onnx` exports such a union; backbones that resize and crop alike share an input.

    Examples
    --------
    >>> from sk_cnncodes import code_union
    >>> union = code_union(["cnncodes-mini", "squeezenet1.1"], norm="power")
    >>> [name for name, _ in union.transformer_list]
    ['cnncodes-mini', 'squeezenet1.1']

    A member has its parameters under its name, here for codes of two layers:

    >>> union = union.set_params(**{"cnncodes-mini__layer": [-1, -3]})
    """
    if isinstance(backbones, (str, os.PathLike)):
        raise TypeError(f"backbones: expected a list of them, got {backbones!r}.")
    given = list(backbones)
    # scikit-learn reserves two underscores for nested parameters.
    names = [Path(each).name.removesuffix(".onnx").replace("__", "_") for each in given]
    if not given or len(set(names)) < len(names):
        raise ValueError(
            f"backbones: expected at least one, and different names, got {names}. "
            "Name those of equal names yourself, in a FeatureUnion."
        )
    members = [
        (name, CNNCodeTransformer(backbone, **parameters))
        for name, backbone in zip(names, given, strict=True)
    ]
    return FeatureUnion(members)
