"""Files that lack a tensor, an input or an operator say which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sk_cnncodes import BackboneError, CNNCodeTransformer, Preprocessing, load_backbone
from tests import networks


def reads_an_unknown_tensor() -> onnx.ModelProto:
    model = networks.resnet()
    (node,) = (node for node in model.graph.node if node.op_type == "Flatten")
    node.input[0] = "nowhere"
    return model


def function_reads_an_unknown_tensor() -> onnx.ModelProto:
    model = networks.with_function()
    model.functions[0].node[0].input[1] = "nowhere"
    return model


def call_without_an_input() -> onnx.ModelProto:
    """The function has two inputs; the call gives one."""
    model = networks.with_function()
    model.functions[0].input.append("offset")
    model.functions[0].node[0].input[1] = "offset"
    return model


def operator_of_a_company() -> onnx.ModelProto:
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    x = net.op("Special", x, domain="company", out="special")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1, out="pooled")
    return net.model(net.dense(x, 8, 10))


def operator_of_a_company_in_a_function() -> onnx.ModelProto:
    model = networks.with_function()
    node, imports = model.functions[0].node[0], model.functions[0].opset_import
    node.op_type, node.domain = "Special", "company"
    imports.append(helper.make_opsetid("company", 1))
    return model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (reads_an_unknown_tensor, r"Flatten \['flatten_\d+'\] reads 'nowhere'"),
        (function_reads_an_unknown_tensor, r"'Doubled', the Add \['y'\] reads 'nowh"),
        (call_without_an_input, r"Add \['doubled'\] lacks the input 'B'"),
        (operator_of_a_company, r"Special \['special'\] .* domain 'company'"),
        (operator_of_a_company_in_a_function, r"Special \['doubled'\] .* 'company'"),
    ],
)
def test_the_error_names_what_is_missing(
    make, expected: str, plain: Preprocessing, tmp_path: Path
) -> None:
    path = networks.save(make(), tmp_path / "net.onnx")
    with pytest.raises(BackboneError, match=rf"net\.onnx.*{expected}.*Expected"):
        load_backbone(path, plain).layers  # noqa: B018


def test_layers_before_an_unknown_operator(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    path = networks.save(operator_of_a_company(), tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, layer="stem", preprocessing=plain)
    assert transformer.fit_transform(photographs).shape == (8, 8)
    with pytest.raises(BackboneError, match="layer='pooled'.*domain 'company'"):
        load_backbone(path, plain).layer("pooled")


def test_domains_that_only_a_function_imports(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    model = networks.with_function()
    function = model.functions[0]
    function.node[0].CopyFrom(
        helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    )
    function.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path = networks.save(model, tmp_path / "net.onnx")
    codes = CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
    assert codes.shape == (8, 8)
    assert codes.std(axis=0).max() > 0


def test_a_function_of_another_opset(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    """ReduceMean has its axes as an attribute in opset 13, as an input in 18."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    x = net.op("Pool", x, domain="local", out="pooled")
    model = net.model(net.dense(x, 8, 10), opset=18)
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    imports = [helper.make_opsetid("", 13)]
    function = helper.make_function("local", "Pool", ["x"], ["y"], [node], imports)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    path = networks.save(model, tmp_path / "net.onnx")
    codes = [
        CNNCodeTransformer(path, layer=layer, preprocessing=plain).fit_transform(
            photographs
        )
        for layer in (-1, "stem")
    ]
    np.testing.assert_allclose(*codes, rtol=1e-5, atol=1e-5)
