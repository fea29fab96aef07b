"""The numbered layers are the blocks of common architectures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from sk_cnncodes.backbones.shape_probe import measured_types
from sk_cnncodes.graphs.reading import read_model
from sk_cnncodes.graphs.view import TensorType
from sk_cnncodes.layers.blocks import BlockFinder
from sk_cnncodes.layers.layer import Layer, LayerGraph
from sk_cnncodes.layers.typed_graph import image_input
from tests import networks


def no_measure(names: list[str]) -> dict[str, TensorType]:
    """Stand-in for a run of the network, which must not be needed."""
    raise AssertionError(f"shape inference did not find {names}")


def found_layers(model: onnx.ModelProto, folder: Path) -> list[Layer]:
    model = read_model(Path(networks.save(model, folder / "net.onnx")))
    value = image_input(model)
    shape = tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
    graph = LayerGraph(model, value.name, shape, no_measure)
    return BlockFinder(graph).layers()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (networks.alexnet(), ["pool1", "pool2", "pool5", "fc6", "fc7"]),
        (networks.resnet(), ["stem", "block0", "block1", "block2", "block3"]),
        (networks.resnet(batch=1, reshape=True), None),
        (networks.squeezenet(), ["pool1", "fire0", "fire1"]),
        (networks.vit(), ["embedded", "block0", "normed"]),
    ],
    ids=["alexnet", "resnet", "resnet-baked", "squeezenet", "vit"],
)
def test_numbered_layers(
    model: onnx.ModelProto, expected: list[str] | None, tmp_path: Path
) -> None:
    layers = found_layers(model, tmp_path)
    names = [layer.name for layer in layers]
    assert names == (expected or ["stem", "block0", "block1", "block2", "block3"])
    assert [layer.position for layer in layers] == list(range(-len(names), 0))
    shares = [layer.parameter_share for layer in layers]
    assert shares == sorted(shares)
    assert 0 < shares[-1] < 1


def test_kinds_and_shapes(tmp_path: Path) -> None:
    pool5, fc6, fc7 = found_layers(networks.alexnet(), tmp_path)[-3:]
    assert (pool5.kind, pool5.shape, pool5.n_channels) == ("map", (16, 4, 4), 16)
    assert (fc6.kind, fc6.shape) == ("vector", (40,))
    assert (fc7.kind, fc7.shape) == ("vector", (24,))
    last = found_layers(networks.vit(), tmp_path)[-1]
    assert (last.kind, last.shape, last.has_class_token) == ("tokens", (17, 16), True)


def test_registers_after_the_class_token(tmp_path: Path) -> None:
    for layer in found_layers(networks.vit(registers=4), tmp_path)[-2:]:
        assert (layer.kind, layer.shape) == ("tokens", (21, 16))
        assert layer.has_class_token


def test_channels_last_is_detected(tmp_path: Path) -> None:
    last = found_layers(networks.nhwc(), tmp_path)[-1]
    assert last.kind == "map"
    assert last.n_channels == 8


def test_headless_network_gives_its_output(tmp_path: Path) -> None:
    model = networks.resnet()
    model.graph.output[0].name = "block3"
    assert found_layers(model, tmp_path)[-1].name == "block3"
    model = networks.vit()
    model.graph.output[0].name = "normed"
    assert found_layers(model, tmp_path)[-1].name == "normed"


def test_last_of_several_classifiers_is_used(tmp_path: Path) -> None:
    """An auxiliary classifier for training comes before the main one."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]))
    early = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    auxiliary = net.dense(early, 8, 10, out="auxiliary")
    x = net.op("Relu", net.conv(x, 8, 16, strides=[2, 2]), out="deep")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    scores = net.dense(x, 16, 10, out="scores")
    layers = found_layers(net.model([auxiliary, scores]), tmp_path)
    assert layers[-1].name == "deep"


def test_penultimate_is_the_common_input_of_two_heads(tmp_path: Path) -> None:
    """A distilled transformer averages two classifiers on one trunk."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]))
    x = net.op("Relu", net.conv(x, 8, 16, strides=[2, 2]), out="trunk")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1, out="code")
    both = net.op("Add", net.dense(x, 16, 10), net.dense(x, 16, 10))
    half = net.constant(networks.np.array(0.5, networks.np.float32))
    layers = found_layers(net.model(net.op("Mul", both, half)), tmp_path)
    assert layers[-1].name == "trunk"


def test_flattened_map_is_the_code_of_a_network_without_pooling(tmp_path: Path) -> None:
    """LeNet's classifier reads every position of its last map."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 6, strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[4, 4], strides=[4, 4], out="pool")
    x = net.op("Flatten", x, axis=1, out="flat")
    layers = found_layers(net.model(net.dense(x, 96, 10)), tmp_path)
    assert (layers[-1].name, layers[-1].shape) == ("flat", (96,))


def test_rows_that_the_classifier_reads_flattened_are_not_pooled(
    tmp_path: Path,
) -> None:
    """A bilinear CNN: products of all pairs of channels."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 6, strides=[2, 2]))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    column = net.op("Reshape", x, net.constant(np.array([0, 6, 1])))
    row = net.op("Reshape", x, net.constant(np.array([0, 1, 6])))
    x = net.op("Flatten", net.op("MatMul", column, row, out="pairs"), out="flat")
    layers = found_layers(net.model(net.dense(x, 36, 10)), tmp_path)
    assert (layers[-1].name, layers[-1].shape) == ("flat", (36,))


def test_swish_is_not_a_block(tmp_path: Path) -> None:
    net = networks.Net()
    x, width = "data", 3
    for out in (8, 16):
        x = net.conv(x, width, out, strides=[2, 2])
        x = net.op("Mul", x, net.op("Sigmoid", x), out=f"swish{out}")
        width = out
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 16, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["swish8", "swish16"]


def test_inside_of_an_inverted_bottleneck_is_not_a_block(tmp_path: Path) -> None:
    """The wide map before a depthwise convolution is not; the narrow one is."""
    net = networks.Net()
    x = net.conv("data", 3, 8, strides=[2, 2], out="narrow")
    x = net.op("Relu", net.conv(x, 8, 32, 1), out="wide")
    x = net.conv_depthwise(x, 32)
    x = net.op("Relu", net.conv(x, 32, 16, 1), out="next")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 16, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["narrow", "next"]


def test_padding_and_the_image_are_not_blocks(tmp_path: Path) -> None:
    """Keras exports transpose the image and separate paddings from convolutions."""
    net = networks.Net()
    pads = net.constant(networks.np.array([0, 0, 0, 0, 0, 0, 1, 1], networks.np.int64))
    x = net.op("Transpose", "data", perm=[0, 3, 1, 2], out="image")
    x = net.op("Relu", net.conv(x, 3, 8, strides=[2, 2]), out="first")
    x = net.op("Pad", x, pads, out="padded")
    x = net.op("Relu", net.conv(x, 8, 16, strides=[2, 2]), out="second")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    model = net.model(net.dense(x, 16, 10), shape=(networks.SIDE, networks.SIDE, 3))
    layers = found_layers(model, tmp_path)
    assert [layer.name for layer in layers] == ["first", "second"]


def test_cells_that_read_the_two_before_them(tmp_path: Path) -> None:
    """NASNet: no dominator between the stem and the last activation."""
    net = networks.Net()
    before = x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    width, width_before = 8, 8
    for number in range(4):
        here = [net.conv(x, width, 8), net.conv(x, width, 8, 1)]
        there = net.conv(before, width_before, 8, 1)
        before, width_before = x, width
        x, width = net.op("Concat", *here, there, axis=1, out=f"cell{number}"), 24
    x = net.op("Relu", x, out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 24, 10)), tmp_path)
    assert [layer.name for layer in layers] == [
        *("stem", "cell0", "cell1", "cell2", "last")
    ]


def test_steps_of_a_dense_block_are_not_blocks(tmp_path: Path) -> None:
    """DenseNet: each step concatenates new channels, until a transition."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], out="pool0")
    width = 8
    for block in range(2):
        for _ in range(3):
            added = net.op("Relu", net.conv(x, width, 4))
            x, width = net.op("Concat", x, added, axis=1), width + 4
        if block == 0:
            x = net.op("Relu", net.conv(x, width, 8, 1))
            width = 8
            x = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], out="t1")
    x = net.op("Relu", x, out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, width, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["pool0", "t1", "last"]


def test_a_block_ends_after_its_channel_shuffle(tmp_path: Path) -> None:
    """ShuffleNet: codes have the channel order of the module's output."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]))
    x = net.op("Concat", net.conv(x, 8, 8), net.conv(x, 8, 8, 1), axis=1)
    side = networks.SIDE // 2
    groups = net.constant(networks.np.array([0, 2, 8, side, side], networks.np.int64))
    merged = net.constant(networks.np.array([0, 16, side, side], networks.np.int64))
    x = net.op("Reshape", x, groups)
    x = net.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    x = net.op("Reshape", x, merged, out="shuffled")
    x = net.op("Relu", net.conv(x, 16, 16, strides=[2, 2]), out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 16, 10)), tmp_path)
    assert [layer.name for layer in layers][-2:] == ["shuffled", "last"]


def test_the_map_before_a_hidden_fully_connected_layer(tmp_path: Path) -> None:
    """MobileNet v3: pooling, fully connected layer, activation, classifier."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    y = net.op("Relu", net.conv(x, 8, 8))
    x = net.op("Add", x, net.conv(y, 8, 8), out="block")
    x = net.op("Relu", net.conv(x, 8, 24, 1), out="wide")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    x = net.op("HardSwish", net.dense(x, 24, 32), out="hidden")
    layers = found_layers(net.model(net.dense(x, 32, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["stem", "block", "wide", "hidden"]


def test_tokens_that_are_averaged_as_a_map(tmp_path: Path) -> None:
    """Swin in transformers pools (batch, channels, tokens) to (batch, channels, 1)."""
    net = networks.Net()
    kernel, bias = net.weight(16, 3, 8, 8), net.weight(16)
    x = net.op("Conv", "data", kernel, bias, kernel_shape=[8, 8], strides=[8, 8])
    x = net.op("Reshape", x, net.constant(networks.np.array([0, 16, 16])))
    x = net.op("Transpose", x, perm=[0, 2, 1])
    x = net.op("Relu", net.linear(x, 16, 24), out="tokens")
    x = net.op("Transpose", x, perm=[0, 2, 1])
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 24, 10)), tmp_path)
    assert (layers[-1].name, layers[-1].shape) == ("tokens", (16, 24))


def test_patch_merging_is_not_a_block(tmp_path: Path) -> None:
    """Swin concatenates every second position, then a matrix reduces the channels."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]))
    y = net.op("Relu", net.conv(x, 8, 8))
    x = net.op("Add", x, net.conv(y, 8, 8), out="block")

    def numbers(*values: int) -> str:
        return net.constant(networks.np.array(values, networks.np.int64))

    end = numbers(networks.SIDE, networks.SIDE)
    axes, steps = numbers(2, 3), numbers(2, 2)
    pieces = [
        net.op("Slice", x, numbers(top, left), end, axes, steps)
        for top in (0, 1)
        for left in (0, 1)
    ]
    x = net.op("Concat", *pieces, axis=1, out="pieces")
    x = net.op("Relu", net.conv(x, 32, 16, 1, strides=[2, 2]), out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 16, 10)), tmp_path)
    assert "pieces" not in [layer.name for layer in layers]


def test_the_output_of_the_file_has_a_label(tmp_path: Path) -> None:
    """The output tensor is renamed; the name of its node contains the path."""
    model = networks.vit()
    model.graph.output[0].name = "normed"
    (node,) = [n for n in model.graph.node if "normed" in n.output]
    node.name = "/norm/LayerNormalization"
    assert found_layers(model, tmp_path)[-1].label == "norm"


def test_module_paths_become_labels(tmp_path: Path) -> None:
    model = networks.resnet()
    new = {f"block{i}": f"/layer1/layer1.{i}/relu_1/Relu_output_0" for i in range(4)}
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [new.get(name, name) for name in field]
    labels = [layer.label for layer in found_layers(model, tmp_path)]
    assert labels == ["stem", "layer1.0", "layer1.1", "layer1.2", "layer1.3"]


def test_the_inside_of_branches_is_not_a_cell(tmp_path: Path) -> None:
    """Res2Net blocks in a branch: each concatenation of three has one reader."""
    net = networks.Net()
    stem = x = net.op("Relu", net.conv("data", 3, 12, strides=[2, 2]), out="stem")
    for _ in range(4):
        parts = [net.conv(x, 12, 4, kernel) for kernel in (1, 3, 3)]
        joined = net.op("Concat", *parts, axis=1)
        x = net.op("Relu", net.op("Add", x, net.conv(joined, 12, 12, 1)))
    x = net.op("Concat", stem, x, axis=1, out="tree")
    x = net.op("Relu", net.conv(x, 24, 16, strides=[2, 2]), out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 16, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["stem", "last"]


def swish(net: networks.Net, x: str, out: str | None = None) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x), out=out)


def test_activations_before_a_block_are_not_blocks(tmp_path: Path) -> None:
    """RegNetV: all branches read the output of a normalisation and a swish."""
    net = networks.Net()
    x = net.conv("data", 3, 8, strides=[2, 2])
    for number in range(3):
        scale = [net.weight(8) for _ in range(3)]
        ones = net.constant(networks.np.ones(8, networks.np.float32))
        y = net.op("BatchNormalization", x, *scale, ones)
        y = swish(net, y, out=f"before{number}")
        branch = net.conv(swish(net, net.conv(y, 8, 8)), 8, 8)
        x = net.op("Add", branch, y, out=f"block{number}")
    x = net.op("Relu", net.conv(x, 8, 16, strides=[2, 2]), out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 16, 10)), tmp_path)
    assert [layer.name for layer in layers] == [
        *("before0", "block0", "block1", "block2", "last")
    ]


def test_a_block_ends_after_its_squeeze_excite_gate(tmp_path: Path) -> None:
    """FastViT: parallel convolutions, their sum, squeeze-excite, activation."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    for number in range(2):
        x = net.op("Add", net.conv(x, 8, 8), net.conv(x, 8, 8, 1))
        gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), 8, 4, 1))
        gate = net.op("Sigmoid", net.conv(gate, 4, 8, 1))
        x = net.op("Relu", net.op("Mul", x, gate), out=f"block{number}")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 8, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["stem", "block0", "block1"]


def test_a_spatial_gate_is_not_a_block(tmp_path: Path) -> None:
    """Attention pooling: the map multiplied by a weight per position."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], out="map")
    flat = net.constant(networks.np.array([0, 0, -1], networks.np.int64))
    y = net.op("Reshape", net.conv(x, 8, 1, 1), flat)
    x = net.op("Mul", net.op("Reshape", x, flat), net.op("Softmax", y, axis=-1))
    axis = net.constant(networks.np.array([2], networks.np.int64))
    x = net.op("ReduceSum", x, axis, keepdims=0, out="code")
    layers = found_layers(net.model(net.dense(x, 8, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["map", "code"]


def test_groups_of_a_convolution_are_not_a_block(tmp_path: Path) -> None:
    """MixNet splits, convolves and concatenates channels in inverted bottlenecks."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="narrow")
    for number in range(2):
        x = net.op("Relu", net.conv(x, 8, 32, 1))
        halves = [f"{number}/{half}" for half in range(2)]
        split = onnx.helper.make_node("Split", [x], halves, axis=1)
        net.nodes.append(split)
        halves = [net.conv_depthwise(half, 16) for half in halves]
        x = net.op("Relu", net.op("Concat", *halves, axis=1))
        x = net.conv(x, 32, 8, 1, out=f"block{number}")
    x = net.op("Relu", net.conv(x, 8, 24, 1), out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 24, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["narrow", "block0", "last"]


def tokens(net: networks.Net, width: int = 8) -> str:
    """Add patch embedding to 16 tokens: (batch, tokens, channels)."""
    kernel, bias = net.weight(width, 3, 8, 8), net.weight(width)
    x = net.op("Conv", "data", kernel, bias, strides=[8, 8], out="patches")
    shape = net.constant(networks.np.array([0, width, 16], networks.np.int64))
    return net.op("Transpose", net.op("Reshape", x, shape), perm=[0, 2, 1])


def norm(net: networks.Net, x: str, width: int = 8) -> str:
    ones = net.constant(networks.np.ones(width, networks.np.float32))
    return net.op("LayerNormalization", x, ones, net.weight(width), axis=-1)


def test_half_blocks_of_a_mixer_are_not_blocks(tmp_path: Path) -> None:
    """Alternating residual sums of token mixing and channel mixing."""
    net = networks.Net()
    x = tokens(net)
    for number in range(3):
        y = net.op("Transpose", norm(net, x), perm=[0, 2, 1])
        y = net.linear(net.op("Relu", net.linear(y, 16, 24)), 24, 16)
        x = net.op("Add", x, net.op("Transpose", y, perm=[0, 2, 1]))
        y = net.linear(net.op("Relu", net.linear(norm(net, x), 8, 24)), 24, 8)
        x = net.op("Add", x, y, out=f"block{number}")
    x = net.op("ReduceMean", x, axes=[1], keepdims=0)
    layers = found_layers(net.model(net.dense(x, 8, 10)), tmp_path)
    assert [layer.name for layer in layers] == [
        *("patches", "block0", "block1", "block2")
    ]


def test_half_blocks_of_a_poolformer_are_not_blocks(tmp_path: Path) -> None:
    """A pooling without weights instead of attention."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[4, 4]), out="stem")
    pool = {"kernel_shape": [3, 3], "pads": [1] * 4}
    for number in range(2):
        y = net.op("Sub", net.op("AveragePool", x, **pool), x)
        x = net.op("Add", x, y)
        y = net.conv(net.op("Relu", net.conv(x, 8, 32, 1)), 32, 8, 1)
        x = net.op("Add", x, y, out=f"block{number}")
    x = net.op("Relu", net.conv(x, 8, 16, strides=[2, 2]), out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 16, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["stem", "block0", "block1", "last"]


def test_each_residual_block_with_activation_is_a_block(tmp_path: Path) -> None:
    """ResNet, including a block with 1x1 convolutions only."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    for number in range(3):
        y = net.op("Relu", net.conv(x, 8, 16, 1))
        y = net.conv(y, 16, 8, 3 if number != 1 else 1)
        x = net.op("Relu", net.op("Add", x, y), out=f"block{number}")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 8, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["stem", "block0", "block1", "block2"]


def test_the_inside_of_attention_pooling_is_not_a_block(tmp_path: Path) -> None:
    """SigLIP: a learned query; one product computes keys and values."""
    net = networks.Net()
    x = tokens(net)
    y = net.linear(net.op("Relu", net.linear(norm(net, x), 8, 24)), 24, 8)
    x = net.op("Add", x, y, out="block")
    y = net.linear(x, 8, 16)
    shape = net.constant(networks.np.array([0, 16, 2, 8], networks.np.int64))
    both = [
        net.op(
            "Gather",
            net.op("Reshape", y, shape),
            net.constant(networks.np.array(index, networks.np.int64)),
            axis=2,
        )
        for index in (0, 1)
    ]
    product = net.op(
        "MatMul", net.weight(1, 1, 8), net.op("Transpose", both[0], perm=[0, 2, 1])
    )
    x = net.op("MatMul", net.op("Softmax", product, axis=-1), both[1])
    x = net.op("Squeeze", x, net.constant(networks.np.array([1], networks.np.int64)))
    x = net.op("Relu", net.dense(x, 8, 12), out="hidden")
    layers = found_layers(net.model(net.dense(x, 12, 10)), tmp_path)
    names = [layer.name for layer in layers]
    assert names[:2] == ["patches", "block"]
    assert names[-1] == "hidden"
    assert all(layer.n_channels in (8, 12) for layer in layers)


def test_no_label_from_a_module_with_another_output(tmp_path: Path) -> None:
    """A concatenation inside a stage that ends in a convolution."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]))
    joined = "/stages/stages.0/Concat_output_0"
    x = net.op("Concat", net.conv(x, 8, 8), net.conv(x, 8, 8, 1), axis=1, out=joined)
    out = "/stages/stages.0/transition/Conv_output_0"
    x = net.conv(x, 16, 8, 1, strides=[2, 2], out=out)
    x = net.op("Relu", net.conv(x, 8, 16, strides=[2, 2]), out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 16, 10)), tmp_path)
    labels = {layer.name: layer.label for layer in layers}
    assert labels[joined] == joined


def test_unknown_shapes_are_measured_together(tmp_path: Path) -> None:
    """Normalisations whose shapes only a run shows: one run for all of them."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    shape = net.constant(networks.np.array([0, 8, 16, 16], networks.np.int64))
    for number in range(4):
        y = net.op("Reshape", x, net.op("Abs", shape))  # shape inference stops here
        y = net.op("Sub", y, net.op("ReduceMean", y, axes=[2, 3], keepdims=1))
        x = net.op("Add", x, net.conv(y, 8, 8), out=f"block{number}")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    path = Path(networks.save(net.model(net.dense(x, 8, 10)), tmp_path / "net.onnx"))
    model, calls = read_model(path), []
    value, image = image_input(model), (1, 3, networks.SIDE, networks.SIDE)

    def measure(known: Mapping[str, TensorType | None]) -> dict[str, TensorType]:
        calls.append(list(known))
        return measured_types(path, known, value, image)

    layers = BlockFinder(LayerGraph(model, value.name, image, measure)).layers()
    assert [layer.name for layer in layers] == [
        *("stem", "block0", "block1", "block2", "block3")
    ]
    assert len(calls) == 1


def test_kernels_whose_shape_is_measured(tmp_path: Path) -> None:
    """NFNet computes its weights: measuring them needs no image."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    shape = net.constant(networks.np.array([8, 8, 1, 1], networks.np.int64))
    for number in range(2):
        y = net.op("Relu", net.conv(x, 8, 8))
        x = net.op("Add", x, net.conv(y, 8, 8))
        kernel = net.op("Reshape", net.weight(64), net.op("Abs", shape))
        x = net.op("Add", x, net.op("Conv", x, kernel), out=f"block{number}")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    path = Path(networks.save(net.model(net.dense(x, 8, 10)), tmp_path / "net.onnx"))
    model = read_model(path)
    value, image = image_input(model), (1, 3, networks.SIDE, networks.SIDE)

    def measure(names: list[str]) -> dict[str, TensorType]:
        return measured_types(path, names, value, image)

    layers = BlockFinder(LayerGraph(model, value.name, image, measure)).layers()
    assert [layer.name for layer in layers] == ["stem", "block0", "block1"]


def test_real_backbones(shared: Path) -> None:
    def layers(name: str) -> list[str]:
        model = read_model(shared / "backbones" / name)
        graph = LayerGraph(model, "data", (1, 3, 224, 224), no_measure)
        return [layer.name for layer in BlockFinder(graph).layers()]

    assert layers("squeezenet1.1.onnx") == [
        "squeezenet0_pool0_fwd",
        *(f"squeezenet0_concat{i}" for i in range(8)),
    ]
    sums = [n for n in layers("mobilenet_v2.onnx") if n.endswith("_sum")]
    assert len(sums) == 10  # the residual blocks
    assert layers("mobilenet_v2.onnx")[-1] == "conv6_4_relu"
