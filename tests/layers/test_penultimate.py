"""Codes of layer -1 are the input of the classifier, for any exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sk_cnncodes import BackboneError, CNNCodeTransformer, Preprocessing, load_backbone
from sk_cnncodes.layers.layer import LayerGraph
from sk_cnncodes.layers.penultimate import ClassifierWalk
from sk_cnncodes.layers.typed_graph import image_input
from tests import networks
from tests.conftest import prepared, run_tensor

Outputs = str | list[str]


def trunk(net: networks.Net) -> str:
    """Add a stem and a residual block; returns a map of 8 channels, 8 x 8."""
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", net.conv(x, 8, 8))
    return net.op("Relu", net.op("Add", x, net.conv(y, 8, 8)), out="map")


def integers(net: networks.Net, *values: int) -> str:
    return net.constant(np.array(values, np.int64))


def pooled(net: networks.Net, out: str = "code") -> str:
    x = net.op("GlobalAveragePool", trunk(net), out=out)
    return net.op("Flatten", x, axis=1)


def int8_weights(net: networks.Net) -> str:
    """Add int8 weights of a classifier, as quantisers write them."""
    return net.constant(net.rng.integers(-60, 60, (8, 10)).astype(np.int8))


# -- heads: each names the expected penultimate tensor "code" -----------------


def gemm(net: networks.Net) -> Outputs:
    return net.op("Gemm", pooled(net), net.weight(8, 10), net.weight(10), transB=0)


def gemm_transposed(net: networks.Net) -> Outputs:
    return net.op("Gemm", pooled(net), net.weight(10, 8), net.weight(10), transB=1)


def matmul_and_mean(net: networks.Net) -> Outputs:
    x = net.op("ReduceMean", trunk(net), axes=[-2, -1], keepdims=0, out="code")
    return net.op("Softmax", net.linear(x, 8, 10), axis=-1)


def bias_first_and_transposed_weights(net: networks.Net) -> Outputs:
    weights = net.op("Transpose", net.weight(10, 8), perm=[1, 0])
    return net.op("Add", net.weight(10), net.op("MatMul", pooled(net), weights))


def global_max_pooling(net: networks.Net) -> Outputs:
    x = net.op("GlobalMaxPool", trunk(net), out="code")
    return net.dense(net.op("Flatten", x, axis=1), 8, 10)


def convolution_then_flatten(net: networks.Net) -> Outputs:
    x = net.op("GlobalAveragePool", trunk(net), out="code")
    x = net.op("Conv", x, net.weight(10, 8, 1, 1), net.weight(10))
    return net.op("LogSoftmax", net.op("Flatten", x, axis=1), axis=1)


def convolution_over_all_positions(net: networks.Net) -> Outputs:
    x = net.op("Identity", trunk(net), out="code")
    x = net.op("Conv", x, net.weight(10, 8, 8, 8), net.weight(10))
    return net.op("Softmax", net.op("Flatten", x, axis=1), axis=1)


def hidden_layer_as_convolution(net: networks.Net) -> Outputs:
    x = net.op("Conv", trunk(net), net.weight(24, 8, 8, 8), net.weight(24))
    x = net.op("Conv", net.op("Relu", x, out="code"), net.weight(10, 24, 1, 1))
    return net.op("Squeeze", x, integers(net, 2, 3))


def identities_everywhere(net: networks.Net) -> Outputs:
    x = net.op("Identity", net.op("Identity", pooled(net)))
    return net.op("Identity", net.op("Identity", net.dense(x, 8, 10)))


def computed_batch_size(net: networks.Net) -> Outputs:
    x = net.op("GlobalAveragePool", trunk(net), out="code")
    batch = net.op("Gather", net.op("Shape", "data"), integers(net, 0))
    x = net.op("Reshape", x, net.op("Concat", batch, integers(net, -1), axis=0))
    return net.dense(x, 8, 10)


def softmax_by_hand(net: networks.Net) -> Outputs:
    x = net.dense(pooled(net), 8, 10)
    x = net.op("Sub", x, net.op("ReduceMax", x, axes=[1], keepdims=1))
    x = net.op("Exp", x)
    total = net.op("ReduceSum", x, integers(net, 1), keepdims=1)
    return net.op("Div", x, total)


def logarithm_of_softmax(net: networks.Net) -> Outputs:
    x = net.op("Softmax", net.dense(pooled(net), 8, 10), axis=1)
    return net.op("Log", net.op("Add", x, net.constant(np.float32(1e-9))))


def background_class_dropped(net: networks.Net) -> Outputs:
    """TensorFlow's 1,001 classes without the background class."""
    x = net.dense(pooled(net), 8, 11)
    return net.op("Slice", x, integers(net, 1), integers(net, 11), integers(net, 1))


def scores_of_positions_added(net: networks.Net) -> Outputs:
    """VOLO: scores of the mean, plus the maximum of the scores at all positions."""
    x = net.op("ReduceMean", trunk(net), axes=[2, 3], keepdims=0, out="code")
    positions = net.op("Reshape", "map", integers(net, 0, 8, 64))
    positions = net.linear(net.op("Transpose", positions, perm=[0, 2, 1]), 8, 10)
    highest = net.op("ReduceMax", positions, axes=[1], keepdims=0)
    return net.op("Add", net.dense(x, 8, 10), highest)


def dequantised_weights(net: networks.Net) -> Outputs:
    scale, zero = net.constant(np.float32(0.01)), net.constant(np.int8(0))
    weights = net.op("DequantizeLinear", int8_weights(net), scale, zero)
    return net.op("Add", net.op("MatMul", pooled(net), weights), net.weight(10))


def dynamically_quantised(net: networks.Net) -> Outputs:
    """A product as written by `onnxruntime.quantization.quantize_dynamic`."""
    outputs = ["quantised", "scale", "zero"]
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", [pooled(net)], outputs))
    zero = net.constant(np.int8(0))
    x = net.op("MatMulInteger", "quantised", int8_weights(net), "zero", zero)
    x = net.op("Cast", x, to=TensorProto.FLOAT)
    scale = net.op("Mul", "scale", net.constant(np.float32(0.01)))
    return net.op("Add", net.op("Mul", x, scale), net.weight(10))


def scores_and_features(net: networks.Net) -> Outputs:
    x = pooled(net)
    return [net.dense(x, 8, 10), x]


def features_and_scores(net: networks.Net) -> Outputs:
    return scores_and_features(net)[::-1]


def top_five(net: networks.Net) -> Outputs:
    x = net.op("Softmax", net.dense(pooled(net), 8, 10), axis=1)
    net.nodes.append(
        helper.make_node("TopK", [x, integers(net, 5)], ["highest", "which"])
    )
    return ["which", "highest"]


def label_only(net: networks.Net) -> Outputs:
    return net.op("ArgMax", net.dense(pooled(net), 8, 10), axis=1, keepdims=0)


def normalised_embedding(net: networks.Net) -> Outputs:
    """No classifier: the output of the file is the code."""
    x = net.dense(pooled(net, out="mean"), 8, 12)
    length = net.op("ReduceL2", x, axes=[1], keepdims=1)
    return net.op("Div", x, length, out="code")


HEADS: list[Callable[[networks.Net], Outputs]] = [
    gemm,
    gemm_transposed,
    matmul_and_mean,
    bias_first_and_transposed_weights,
    global_max_pooling,
    convolution_then_flatten,
    convolution_over_all_positions,
    hidden_layer_as_convolution,
    identities_everywhere,
    computed_batch_size,
    softmax_by_hand,
    logarithm_of_softmax,
    background_class_dropped,
    scores_of_positions_added,
    dequantised_weights,
    dynamically_quantised,
    scores_and_features,
    features_and_scores,
    top_five,
    label_only,
    normalised_embedding,
]


def build_model(net: networks.Net, outputs: Outputs) -> onnx.ModelProto:
    """Build the model; declare the types of integer outputs."""
    model = net.model(outputs)
    makers = {name: node.op_type for node in net.nodes for name in node.output}
    for value in model.graph.output:
        if value.name == "which" or makers[value.name] == "ArgMax":
            value.type.tensor_type.elem_type = TensorProto.INT64
    return model


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_code_is_what_the_classifier_reads(
    head: Callable[[networks.Net], Outputs],
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    net = networks.Net()
    model = build_model(net, head(net))
    path = networks.save(model, tmp_path / "net.onnx")
    codes = CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
    expected = run_tensor(model, "code", prepared(photographs, plain), plain)
    if expected.ndim == 4:
        expected = expected.mean((2, 3))
    assert expected.std(axis=0).max() > 0
    np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-5)


def clip_model() -> onnx.ModelProto:
    """CLIP: scores of images against texts, and the features of both."""
    net = networks.Net()
    x = net.op("MatMul", pooled(net), net.weight(8, 6))
    length = net.op("ReduceL2", x, axes=[1], keepdims=1)
    x = net.op("Div", x, length, out="image_features")
    words = net.op("Gather", net.weight(50, 6), "words")
    text = net.op("ReduceMean", words, axes=[1], keepdims=0, out="text_features")
    scores = net.op("MatMul", x, net.op("Transpose", text, perm=[1, 0]), out="scores")
    model = net.model([scores, text, x])
    words = helper.make_tensor_value_info("words", TensorProto.INT64, ["T", "W"])
    model.graph.input.append(words)
    return model


def test_image_features_of_a_model_with_a_text_input(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    path = networks.save(clip_model(), tmp_path / "clip.onnx")
    assert load_backbone(path, plain).layers[-1].name == "image_features"
    codes = CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
    assert codes.shape == (8, 6)
    np.testing.assert_allclose((codes**2).sum(axis=1), 1, rtol=1e-5)


def test_an_input_that_all_layers_need_is_named(
    plain: Preprocessing, tmp_path: Path
) -> None:
    model = networks.resnet()
    model.graph.node[0].input[0] = "scaled"
    scaling = helper.make_node("Mul", ["data", "factor"], ["scaled"])
    model.graph.node.insert(0, scaling)
    factor = helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1])
    model.graph.input.append(factor)
    path = networks.save(model, tmp_path / "net.onnx")
    with pytest.raises(BackboneError, match=r"net.onnx.*inputs \['factor'\] besides"):
        load_backbone(path, plain).layers  # noqa: B018


def test_integers_before_a_quantised_classifier_are_dequantised(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    net = networks.Net()
    scale, zero = net.constant(np.float32(0.125)), net.constant(np.int8(0))
    x = net.op("QuantizeLinear", pooled(net), scale, zero)
    x = net.op("Flatten", net.op("Relu", x), axis=1)
    product = [x, scale, zero, int8_weights(net), scale, zero, scale, zero]
    x = net.op("QLinearMatMul", *product)
    model = net.model(net.op("DequantizeLinear", x, scale, zero))
    path = networks.save(model, tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, norm=None, preprocessing=plain)
    codes = transformer.fit_transform(photographs)
    floats = run_tensor(model, "code", prepared(photographs, plain), plain)
    assert 1 < floats.max() < 127 * 0.125
    np.testing.assert_allclose(codes, floats.reshape(8, 8).clip(0), atol=0.0626)


def test_two_heads_one_of_which_is_rectified() -> None:
    """A ReLU of one head does not make features of the scores of the other."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 16, strides=[2, 2]), out="stem")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1, out="features")
    rectified = net.op("Relu", net.linear(x, 16, 10))
    model = net.model(net.op("Concat", rectified, net.linear(x, 16, 64), axis=1))
    value, shape = image_input(model), (1, 3, networks.SIDE, networks.SIDE)
    graph = LayerGraph(model, value.name, shape, lambda known: {})
    assert ClassifierWalk(graph).tensor == "features"
