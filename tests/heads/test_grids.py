"""Grids over layers, and unions of backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, Preprocessing, code_union, layer_grid
from tests import networks


def test_a_grid_names_its_layers_for_the_cache() -> None:
    grid = layer_grid(iter([-1, "fire9"]), step="union__codes")
    assert grid == {
        "union__codes__layer": [-1, "fire9"],
        "union__codes__cache_layers": [(-1, "fire9")],
    }


def test_lists_are_candidates_of_single_layers() -> None:
    grid = layer_grid([-1, [-1, "fire9"], (-3,)], step="codes")
    assert grid["codes__layer"] == [-1, [-1, "fire9"], (-3,)]
    assert grid["codes__cache_layers"] == [(-1, "fire9", -3)]


@pytest.mark.parametrize("layers", ["fire9", -1])
def test_a_single_layer_is_refused(layers: Any) -> None:
    with pytest.raises(TypeError, match="layers: expected a list of layers, got"):
        layer_grid(layers)


def test_a_union_of_backbones(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    networks.save(networks.squeezenet(), tmp_path / "my__net.onnx")
    backbones = [tmp_path / "my__net.onnx", str(tmp_path / "other.v2.onnx")]
    networks.save(networks.resnet(), tmp_path / "other.v2.onnx")
    given: dict[str, Any] = {"preprocessing": plain, "norm": "power"}
    union = code_union(backbones, layer=[-1, -2], **given)
    assert [name for name, _ in union.transformer_list] == ["my_net", "other.v2"]
    codes = union.set_output(transform="pandas").fit_transform(photographs)
    parts = [
        CNNCodeTransformer(each, layer=[-1, -2], **given).fit_transform(photographs)
        for each in backbones
    ]
    np.testing.assert_array_equal(codes, np.concatenate(parts, axis=1))
    assert codes.columns[0] == "my_net__cnncodetransformer_-1_0"
    assert codes.columns[-1].startswith("other.v2__cnncodetransformer_-2_")
    union.set_params(my_net__layer=-1).set_output(transform="default")
    assert union.fit_transform(photographs).shape[1] < codes.shape[1]


def test_backbones_of_one_name_are_refused() -> None:
    for backbones in ([], ["a/net.onnx", "b/net.onnx"]):
        with pytest.raises(ValueError, match="backbones: expected at least one, and"):
            code_union(backbones)
    with pytest.raises(TypeError, match="backbones: expected a list of them, got 'a'"):
        code_union("a")
