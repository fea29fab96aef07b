"""Blocks that an optimiser fused with the next normalisation are still layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sk_cnncodes import CNNCodeTransformer, Preprocessing, load_backbone
from tests import networks


def fused(model: onnx.ModelProto, *, biases: bool) -> onnx.ModelProto:
    """Fuse sums into SkipLayerNormalization, as optimisers of transformers do."""
    makers = {node.output[0]: node for node in model.graph.node}
    constants = {tensor.name for tensor in model.graph.initializer}
    removed = []

    def is_biased(node: onnx.NodeProto) -> bool:
        return node.op_type == "Add" and node.input[1] in constants

    for node in model.graph.node:
        total = makers.get(node.input[0])
        if node.op_type != "LayerNormalization" or total is None:
            continue
        if total.op_type != "Add" or not constants.isdisjoint(total.input):
            continue
        skip, product = sorted(total.input, key=lambda n: is_biased(makers[n]))
        inputs = [product, skip, *node.input[1:]]
        removed.append(total.output[0])
        if biases:
            inputs = [makers[product].input[0], *inputs[1:], makers[product].input[1]]
            removed.append(product)
        node.op_type, node.domain = "SkipLayerNormalization", "com.microsoft"
        node.input[:] = inputs
        node.output.extend(["", "", total.output[0]])
        kept = [a for a in node.attribute if a.name == "epsilon"]
        node.ClearField("attribute")
        node.attribute.extend(kept or [helper.make_attribute("epsilon", 1e-5)])
    nodes = [node for node in model.graph.node if node.output[0] not in removed]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize("biases", [False, True])
def test_sums_inside_normalisations_are_layers(
    biases: bool, photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    whole = networks.save(networks.vit(), tmp_path / "whole.onnx")
    model = fused(networks.vit(), biases=biases)
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("SkipLayerNormalization") == 4
    assert "LayerNormalization" not in ops[ops.index("SkipLayerNormalization") :]
    path = networks.save(model, tmp_path / "fused.onnx")
    expected = load_backbone(whole, plain).layers
    layers = load_backbone(path, plain).layers
    assert [layer.name for layer in layers] == [layer.name for layer in expected]
    assert [layer.has_class_token for layer in layers] == [True] * len(expected)
    for position in range(-len(layers), 0):
        codes, others = (
            CNNCodeTransformer(each, layer=position, preprocessing=plain).fit_transform(
                photographs
            )
            for each in (whole, path)
        )
        np.testing.assert_allclose(others, codes, rtol=1e-4, atol=1e-5)
