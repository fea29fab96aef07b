"""Grids over layers."""

from __future__ import annotations

from typing import Any

import pytest

from sk_cnncodes import layer_grid


def test_a_grid_names_its_layers_for_the_cache() -> None:
    grid = layer_grid(iter([-1, "fire9"]), step="union__codes")
    assert grid == {
        "union__codes__layer": [-1, "fire9"],
        "union__codes__cache_layers": [(-1, "fire9")],
    }


@pytest.mark.parametrize("layers", ["fire9", -1])
def test_a_single_layer_is_refused(layers: Any) -> None:
    with pytest.raises(TypeError, match="layers: expected a list of layers, got"):
        layer_grid(layers)
