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


def normalised(net: networks.Net, x: str, width: int, out: str | None = None) -> str:
    """Batch normalisation, with statistics that change what is first and last."""
    vectors = [net.weight(width) for _ in range(3)]
    variance = net.constant(net.rng.uniform(0.5, 2, width).astype(np.float32))
    return net.op("BatchNormalization", x, *vectors, variance, out=out)


def normalised_scores(net: networks.Net) -> Outputs:
    return normalised(net, net.dense(pooled(net), 8, 10), 10)


def normalised_before_softmax(net: networks.Net) -> Outputs:
    """Softmax says that 32 numbers are scores."""
    x = normalised(net, net.dense(pooled(net), 8, 32), 32)
    return net.op("Softmax", x, axis=1)


def one_minus_probability(net: networks.Net) -> Outputs:
    x = net.op("Sigmoid", net.dense(pooled(net), 8, 1))
    return net.op("Sub", net.constant(np.float32(1)), x)


def both_probabilities(net: networks.Net) -> Outputs:
    x = net.op("Sigmoid", net.dense(pooled(net), 8, 1))
    other = net.op("Sub", net.constant(np.float32(1)), x)
    return net.op("Concat", other, x, axis=1)


def negated(net: networks.Net) -> Outputs:
    return net.op("Neg", net.dense(pooled(net), 8, 10))


def offset(net: networks.Net) -> Outputs:
    x = net.dense(pooled(net), 8, 10)
    return net.op("Sub", x, net.weight(10))


def hyperbolic(net: networks.Net) -> Outputs:
    return net.op("Tanh", net.dense(pooled(net), 8, 2))


def hard_sigmoid(net: networks.Net) -> Outputs:
    return net.op("HardSigmoid", net.dense(pooled(net), 8, 64))


def positive(net: networks.Net) -> Outputs:
    return net.op("Softplus", net.dense(pooled(net), 8, 1))


def root(net: networks.Net) -> Outputs:
    return net.op("Sqrt", net.op("Softplus", net.dense(pooled(net), 8, 10)))


def masked(net: networks.Net) -> Outputs:
    """Scores of which those that are not numbers are replaced."""
    x = net.dense(pooled(net), 8, 10)
    return net.op("Where", net.op("IsNaN", x), net.constant(np.float32(0)), x)


def thresholded(net: networks.Net) -> Outputs:
    x = net.op("Sigmoid", net.dense(pooled(net), 8, 10))
    x = net.op("Greater", x, net.constant(np.float32(0.5)))
    return net.op("Cast", x, to=TensorProto.FLOAT)


def label_by_threshold(net: networks.Net) -> Outputs:
    """Binary classification: 0 or 1."""
    x = net.op("Sigmoid", net.dense(pooled(net), 8, 1))
    x = net.op("Greater", x, net.constant(np.float32(0.5)))
    zero, one = (net.constant(np.float32(each)) for each in (0, 1))
    return net.op("Where", x, one, zero)


def probit(net: networks.Net) -> Outputs:
    x = net.op("Erf", net.dense(pooled(net), 8, 10))
    return net.op("Add", x, net.constant(np.float32(1)))


def divided_by_sum(net: networks.Net) -> Outputs:
    """Evidential classification: the mean of a Dirichlet distribution."""
    x = net.op("Softplus", net.dense(pooled(net), 8, 10))
    x = net.op("Add", x, net.constant(np.float32(1)))
    total = net.op("ReduceSum", x, integers(net, 1), keepdims=1)
    return net.op("Div", x, total)


def entropy(net: networks.Net) -> Outputs:
    x = net.op("Softmax", net.dense(pooled(net), 8, 10), axis=1)
    x = net.op("Mul", x, net.op("Log", x))
    return net.op("Neg", net.op("ReduceSum", x, integers(net, 1), keepdims=1))


def branch(net: networks.Net, op_type: str, *inputs: str) -> onnx.GraphProto:
    """A branch of an If that holds one node."""
    out = f"branch_{len(net.weights)}_{op_type}"
    value = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    node = helper.make_node(op_type, list(inputs), [out])
    return helper.make_graph([node], out, [], [value])


def squeezed_if_possible(net: networks.Net) -> Outputs:
    """torch.squeeze where the size is unknown: here because classes are chosen."""
    x = net.dense(pooled(net), 8, 10)
    x = net.op("Compress", x, net.constant(np.arange(10) != 3), axis=1)
    size = net.op("Gather", net.op("Shape", x), integers(net, 1))
    test = net.op("Equal", size, integers(net, 1))
    branches = {
        "then_branch": branch(net, "Squeeze", x, integers(net, 1)),
        "else_branch": branch(net, "Identity", x),
    }
    return net.op("If", test, **branches)


def classifier_in_branches(net: networks.Net) -> Outputs:
    x = pooled(net)
    branches = {
        f"{name}_branch": branch(net, "Gemm", x, net.weight(8, 10), net.weight(10))
        for name in ("then", "else")
    }
    return net.op("If", net.constant(np.array(True)), **branches)


def early_exit(net: networks.Net) -> Outputs:
    """A second classifier runs unless the first one is sure."""
    read_early = pooled(net, out="early")
    early = net.op("Softmax", net.dense(read_early, 8, 10))
    largest = net.op("ReduceMax", early, axes=[1], keepdims=0)
    sure = net.op("Greater", largest, net.constant(np.float32([0.9])))
    x = net.op("Relu", net.dense(read_early, 8, 8), out="code")
    last = branch(net, "Gemm", x, net.weight(8, 10), net.weight(10))
    return net.op(
        "If", sure, then_branch=branch(net, "Identity", early), else_branch=last
    )


def divided_embedding(net: networks.Net) -> Outputs:
    """No classifier: 64 features divided by their sum."""
    x = net.op("Softplus", net.dense(pooled(net, out="mean"), 8, 64))
    total = net.op("ReduceSum", x, integers(net, 1), keepdims=1)
    return net.op("Div", x, total, out="code")


def highest_of_two_classifiers(net: networks.Net) -> Outputs:
    x = pooled(net)
    return net.op("Max", net.dense(x, 8, 10), net.dense(x, 8, 10))


def expected_value(net: networks.Net) -> Outputs:
    """An age: the sum of ages by probability."""
    x = net.op("Softmax", net.dense(pooled(net), 8, 10), axis=1)
    ages = net.constant(np.arange(10, dtype=np.float32))
    x = net.op("Mul", x, ages)
    return net.op("ReduceSum", x, integers(net, 1), keepdims=1)


def expected_value_by_product(net: networks.Net) -> Outputs:
    x = net.op("Softmax", net.dense(pooled(net), 8, 10), axis=1)
    ages = net.constant(np.arange(10, dtype=np.float32)[:, None])
    return net.op("MatMul", x, ages)


def distances_to_prototypes(net: networks.Net) -> Outputs:
    """Each class has a prototype; the nearest wins."""
    x = net.op("Unsqueeze", pooled(net), integers(net, 1))
    x = net.op("Sub", x, net.weight(1, 10, 8))
    return net.op("Neg", net.op("ReduceL2", x, axes=[2], keepdims=0))


def squared_distances_to_prototypes(net: networks.Net) -> Outputs:
    """|x - p|^2 = |x|^2 - 2 x p + |p|^2."""
    x, prototypes = pooled(net), net.weight(8, 10)
    length = net.op("ReduceSum", net.op("Mul", x, x), integers(net, 1), keepdims=1)
    product = net.op("MatMul", x, prototypes)
    product = net.op("Mul", product, net.constant(np.float32(2)))
    x = net.op("Add", net.op("Sub", length, product), net.weight(1, 10))
    return net.op("Sqrt", net.op("Relu", x))


def repeated_for_each_prototype(net: networks.Net) -> Outputs:
    """As torch.cdist is exported."""
    x = net.op("Unsqueeze", pooled(net), integers(net, 1))
    x = net.op("Expand", x, integers(net, 1, 10, 8))
    x = net.op("Sub", x, net.weight(1, 10, 8))
    x = net.op("Pow", x, net.constant(np.float32(2)))
    return net.op("ReduceSum", x, integers(net, 2), keepdims=0)


def normalised_code(net: networks.Net) -> Outputs:
    """RepViT and EfficientViT: the classifier begins with a batch normalisation."""
    return net.dense(normalised(net, pooled(net), 8), 8, 10)


def normalised_by_two_classifiers(net: networks.Net) -> Outputs:
    """LeViT: the average of two classifiers, each with its own normalisation."""
    x = pooled(net)
    scores = [net.dense(normalised(net, x, 8), 8, 10) for _ in range(2)]
    return net.op("Div", net.op("Add", *scores), net.constant(np.float32(2)))


def normalised_hidden_layer(net: networks.Net) -> Outputs:
    """The normalisation belongs to the hidden layer before it."""
    x = net.dense(pooled(net, out="mean"), 8, 12)
    return net.dense(normalised(net, x, 12, out="code"), 12, 10)


def normalised_embedding_of_a_face(net: networks.Net) -> Outputs:
    """ArcFace: no classifier; its output is as wide as features."""
    return normalised(net, net.dense(pooled(net, out="mean"), 8, 64), 64, out="code")


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
    normalised_scores,
    normalised_before_softmax,
    one_minus_probability,
    both_probabilities,
    negated,
    offset,
    hyperbolic,
    hard_sigmoid,
    positive,
    root,
    masked,
    thresholded,
    label_by_threshold,
    probit,
    divided_by_sum,
    entropy,
    squeezed_if_possible,
    classifier_in_branches,
    early_exit,
    divided_embedding,
    highest_of_two_classifiers,
    expected_value,
    expected_value_by_product,
    distances_to_prototypes,
    squared_distances_to_prototypes,
    repeated_for_each_prototype,
    normalised_code,
    normalised_by_two_classifiers,
    normalised_hidden_layer,
    normalised_embedding_of_a_face,
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


@pytest.mark.parametrize("rectified_first", [True, False])
@pytest.mark.parametrize("probabilities", [True, False])
def test_each_head_is_judged_by_what_follows_it(
    probabilities: bool, rectified_first: bool
) -> None:
    """A ReLU after one head makes no features of the other, whatever their order."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 16, strides=[2, 2]), out="stem")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1, out="features")
    heads = [net.op("Relu", net.linear(x, 16, 10)), net.linear(x, 16, 64)]
    if probabilities:  # do not make scores of what is rectified, as wide as features
        heads[0] = net.op("Relu", net.linear(x, 16, 64), out="rectified")
        heads[1] = net.op("Softmax", heads[1], axis=1)
    heads = heads[:: 1 if rectified_first else -1]
    model = net.model(net.op("Concat", *heads, axis=1, out="both"))
    value, shape = image_input(model), (1, 3, networks.SIDE, networks.SIDE)
    graph = LayerGraph(model, value.name, shape, lambda known: {})
    expected = "both" if probabilities else "features"
    assert ClassifierWalk(graph).tensor == expected
