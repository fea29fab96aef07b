"""Parameter grids for model selection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sk_cnncodes.base.public import public


@public
def layer_grid(
    layers: Iterable[int | str], step: str = "cnncodetransformer"
) -> dict[str, list[Any]]:
    """A grid over layers in which each image takes one forward pass for all of them.

    Parameters
    ----------
    layers : iterable of int or str
        The candidates, as the `layer` of `CNNCodeTransformer`.
    step : str, default="cnncodetransformer"
        Name of the transformer's step in the pipeline; `make_pipeline` gives the
        default. Nested steps are written as in scikit-learn: ``"union__codes"``.

    Returns
    -------
    dict
        Grid with the parameters `layer` and `cache_layers`, to be joined with others:
        ``layer_grid([-1, -2]) | {"svc__C": [1, 10]}``.

    Raises
    ------
    TypeError
        If `layers` is a single layer.

    Examples
    --------
    >>> from sk_cnncodes import layer_grid
    >>> layer_grid([-1, -3], step="codes")
    {'codes__layer': [-1, -3], 'codes__cache_layers': [(-1, -3)]}
    """
    if isinstance(layers, (str, int)):
        raise TypeError(f"layers: expected a list of layers, got {layers!r}.")
    layers = list(layers)
    return {f"{step}__layer": layers, f"{step}__cache_layers": [tuple(layers)]}
