"""Quantised networks have the same layers and similar codes as float ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sk_cnncodes import BackboneError, CNNCodeTransformer, Preprocessing, load_backbone
from sk_cnncodes.engines.onnxruntime import import_onnxruntime
from sk_cnncodes.graphs.reading import read_model
from sk_cnncodes.layers.layer import Layer
from tests import networks
from tests.conftest import prepared, run_tensor


@pytest.fixture(scope="module")
def data(photographs: list[np.ndarray], plain: Preprocessing) -> np.ndarray:
    """The photographs as the small networks read them, with slightly more contrast.

    With the same contrast, every pixel would be halfway between two integers, and the
    last bit of its float would decide how it is rounded.
    """
    pixels = prepared(photographs, plain).astype(np.float32)
    return 1.03 * (pixels / 127.5 - 1).transpose(0, 3, 1, 2)


def kind(layer: Layer) -> tuple[object, ...]:
    """All attributes except the name."""
    return layer.kind, layer.shape, layer.channel_axis, layer.has_class_token


@pytest.mark.parametrize("operators", [False, True])
@pytest.mark.parametrize(
    "network", [networks.resnet, networks.squeezenet, networks.alexnet, networks.vit]
)
def test_layers_and_codes_match_the_float_network(
    network: Callable[[], onnx.ModelProto],
    operators: bool,
    data: np.ndarray,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    floats = networks.save(network(), tmp_path / "floats.onnx")
    model = networks.quantised(network(), data, operators=operators)
    ops = {node.op_type for node in model.graph.node}
    assert ("QLinearConv" in ops) == operators
    path = networks.save(model, tmp_path / "integers.onnx")
    expected = load_backbone(floats, plain).layers
    layers = load_backbone(path, plain).layers
    assert [kind(layer) for layer in layers] == [kind(layer) for layer in expected]
    for position in range(-len(layers), 0):
        transformer = CNNCodeTransformer(
            floats, layer=position, norm="l2", preprocessing=plain
        )
        codes = transformer.fit_transform(photographs)
        found = transformer.set_params(backbone=path).fit_transform(photographs)
        assert (codes * found).sum(axis=1).min() > 0.98  # cosines
        assert codes.min() < 0 or found.min() >= 0  # rectified codes stay rectified


@pytest.mark.parametrize("operators", [False, True])
def test_codes_are_the_dequantised_integers(
    operators: bool,
    data: np.ndarray,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    model = networks.quantised(networks.squeezenet(), data, operators=operators)
    path = networks.save(model, tmp_path / "net.onnx")
    layer = load_backbone(path, plain).layers[-1].name
    if operators:
        # An independent check: the integers of the file and their scale.
        makers = {node.output[0]: node for node in model.graph.node}
        name = layer.removesuffix("_dequantized")
        scale, zero = makers[name].input[:2]  # of QLinearConcat
        node = helper.make_node("DequantizeLinear", [name, scale, zero], [layer])
        model.graph.node.append(node)
    activations = run_tensor(model, layer, prepared(photographs, plain), plain)
    codes = CNNCodeTransformer(path, norm=None, preprocessing=plain)
    found = codes.fit_transform(photographs)
    step = float(activations.max()) / 255
    np.testing.assert_allclose(found, activations.mean(axis=(2, 3)), atol=step / 10)


def test_equal_dequantise_nodes_are_merged(
    data: np.ndarray,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    """Optimisers write one node per reader, with constants of its own."""
    model = networks.quantised(networks.resnet(), data)
    path = networks.save(model, tmp_path / "one.onnx")
    expected = load_backbone(path, plain).layers
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    nodes, count = [], 0
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            maker = makers.get(name)
            if maker is None or maker.op_type != "DequantizeLinear":
                continue
            own = onnx.NodeProto()
            own.CopyFrom(maker)
            own.output[0] = node.input[position] = f"own{count}"
            if constants[maker.input[1]].dims == []:
                tensor = model.graph.initializer.add()
                tensor.CopyFrom(constants[maker.input[1]])
                tensor.name = own.input[1] = f"scale{count}"
            nodes.append(own)
            count += 1
        if node.op_type != "DequantizeLinear" or node.output[0] == "scores":
            nodes.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    separate = networks.save(model, tmp_path / "separate.onnx")
    layers = load_backbone(separate, plain).layers
    assert [layer.shape for layer in layers] == [layer.shape for layer in expected]
    one, other = (
        CNNCodeTransformer(each, preprocessing=plain).fit_transform(photographs)
        for each in (path, separate)
    )
    np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize("network", [networks.resnet, networks.squeezenet])
def test_files_optimised_by_onnxruntime(
    network: Callable[[], onnx.ModelProto],
    data: np.ndarray,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    """Their operators are on integers, with channels last."""
    path = networks.save(networks.quantised(network(), data), tmp_path / "net.onnx")
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(options.optimized_model_filepath)
    assert "QLinearConv" in {node.op_type for node in optimised.graph.node}
    for position in range(-len(load_backbone(path, plain).layers), 0):
        codes, others = (
            CNNCodeTransformer(
                each, layer=position, norm="l2", preprocessing=plain
            ).fit_transform(photographs)
            for each in (path, options.optimized_model_filepath)
        )
        assert (codes * others).sum(axis=1).min() > 0.9999  # cosines


def test_float_networks_are_unchanged(tmp_path: Path) -> None:
    path = networks.save(networks.resnet(), tmp_path / "net.onnx")
    assert read_model(Path(path)).graph.node == networks.resnet().graph.node


def test_files_optimised_for_one_processor_are_refused(
    plain: Preprocessing, tmp_path: Path
) -> None:
    model = networks.resnet()
    model.graph.node[0].domain = "com.microsoft.nchwc"
    path = networks.save(model, tmp_path / "net.onnx")
    with pytest.raises(BackboneError, match=r"net.onnx.*com.microsoft.nchwc"):
        load_backbone(path, plain).layers  # noqa: B018
