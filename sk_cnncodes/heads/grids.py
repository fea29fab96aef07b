"""Parameter grids for model selection."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from sk_cnncodes.base.public import public


@public
def layer_grid(
    layers: Iterable[int | str], step: str = "cnncodetransformer"
) -> dict[str, list[Any]]:
    """Parameter grid over layers that share one forward pass per image.

    Parameters
    ----------
    layers : iterable of int or str
        Candidates for the parameter `layer` of `CNNCodeTransformer`.
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
    """
    if isinstance(layers, (str, Integral)):
        raise TypeError(f"layers: expected a list of layers, got {layers!r}.")
    layers = list(layers)
    return {f"{step}__layer": layers, f"{step}__cache_layers": [tuple(layers)]}
