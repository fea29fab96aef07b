"""Blocks end after the convolution that fuses their branches, and after their MLP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import networks
from tests.layers.test_blocks import found_layers


def classifier(net: networks.Net, x: str, width: int) -> onnx.ModelProto:
    """Add a convolution, global pooling and a classifier."""
    x = net.op("Relu", net.conv(x, width, 24, strides=[2, 2]), out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    return net.model(net.dense(x, 24, 10))


def names(model: onnx.ModelProto, folder: Path) -> list[str]:
    return [layer.name for layer in found_layers(model, folder)]


def halves(net: networks.Net, x: str) -> list[str]:
    parts = [f"{x}/{part}" for part in range(2)]
    net.nodes.append(onnx.helper.make_node("Split", [x], parts, axis=1))
    return parts


def conv(net: networks.Net, x: str, c_in: int, c_out: int, kernel: int = 3, **attrs):
    """Convolution and activation."""
    out = attrs.pop("out", None)
    return net.op("Relu", net.conv(x, c_in, c_out, kernel, **attrs), out=out)


def depthwise(net: networks.Net, x: str, channels: int, kernel: int = 3) -> str:
    """Depthwise convolution that keeps the size."""
    attrs = {"pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2}
    weight, bias = net.weight(channels, 1, kernel, kernel), net.weight(channels)
    return net.op("Conv", x, weight, bias, group=channels, **attrs)


def mlp(net: networks.Net, x: str, width: int, mixing: bool = False) -> str:
    """Channel MLP of 1x1 convolutions, with a depthwise convolution first or not."""
    y = depthwise(net, x, width, 7) if mixing else x
    y = net.op("Relu", net.conv(y, width, 3 * width, 1))
    return net.conv(y, 3 * width, width, 1)


@pytest.mark.parametrize("fused", [12, 20])
def test_a_csp_block_ends_after_its_last_convolution(
    fused: int, tmp_path: Path
) -> None:
    """YOLO: half of the channels go through bottlenecks, and all of them are joined.

    YOLO 11 fuses them to more channels than were concatenated.
    """
    net = networks.Net()
    x = conv(net, "data", 3, 8, strides=[2, 2], out="stem")
    for number, width in enumerate([8, fused]):
        first, second = halves(net, conv(net, x, width, 8, 1))
        deep = conv(net, conv(net, second, 4, 4), 4, 4)
        x = net.op("Concat", first, second, net.op("Add", deep, second), axis=1)
        x = conv(net, x, 12, fused, 1, out=f"block{number}")
        if number == 0:
            x = conv(net, x, fused, fused, strides=[2, 2])
    assert names(classifier(net, x, fused), tmp_path) == ["block0", "block1", "last"]


def test_the_first_convolution_of_a_csp_block_is_not_a_block(tmp_path: Path) -> None:
    """CSPDarknet: as many channels as are concatenated, and a gate before the end."""
    net = networks.Net()
    x = conv(net, "data", 3, 8, strides=[2, 2], out="stem")
    x = conv(net, conv(net, x, 8, 8, strides=[2, 2]), 8, 16, 1, out="first")
    one, other = halves(net, x)
    other = net.op("Add", conv(net, conv(net, other, 8, 4, 1), 4, 8), other)
    x = net.op("Concat", one, conv(net, other, 8, 8, 1), axis=1, out="joined")
    gate = net.conv(net.op("GlobalAveragePool", x), 16, 16, 1)
    x = net.op("Mul", x, net.op("HardSigmoid", gate))
    x = conv(net, x, 16, 16, 1, out="stage")
    assert names(classifier(net, x, 16), tmp_path) == ["stem", "stage", "last"]


def test_spatial_pyramid_pooling_ends_after_its_convolution(tmp_path: Path) -> None:
    """Branches without weights, in YOLO and CSPNeXt."""
    net = networks.Net()
    x = conv(net, "data", 3, 16, strides=[2, 2], out="stem")
    x = conv(net, x, 16, 16, strides=[2, 2])
    parts = [conv(net, x, 16, 8, 1, out="narrow")]
    for _ in range(3):
        attrs = {"kernel_shape": [5, 5], "pads": [2] * 4}
        parts.append(net.op("MaxPool", parts[-1], **attrs))
    x = conv(net, net.op("Concat", *parts, axis=1), 32, 16, 1, out="pyramid")
    assert names(classifier(net, x, 16), tmp_path) == ["stem", "pyramid", "last"]


def test_a_tree_ends_after_its_root(tmp_path: Path) -> None:
    """DLA: two residual blocks are concatenated and fused for the next tree."""
    net = networks.Net()
    x = conv(net, "data", 3, 8, strides=[2, 2], out="stem")
    for number in range(2):
        trees = []
        for each in range(2):
            y = net.conv(conv(net, x, 8, 8), 8, 8)
            x = net.op("Relu", net.op("Add", y, x), out=f"tree{number}.{each}")
            trees.append(x)
        joined = net.op("Concat", *reversed(trees), axis=1)
        x = conv(net, joined, 16, 8, 1, out=f"root{number}")
    assert names(classifier(net, x, 8), tmp_path) == [
        *("stem", "tree0.0", "root0", "tree1.0", "root1", "last")
    ]


@pytest.mark.parametrize("squeezed", [False, True], ids=["vovnet", "hgnet"])
def test_one_shot_aggregation_ends_after_its_last_convolution(
    squeezed: bool, tmp_path: Path
) -> None:
    """HGNet and VoVNet concatenate the input and what each convolution gives."""
    net = networks.Net()
    x = conv(net, "data", 3, 16, strides=[2, 2], out="stem")
    for number in range(2):
        parts = [x]
        for _ in range(3):
            parts.append(conv(net, parts[-1], 16 if len(parts) == 1 else 8, 8))
        x = net.op("Concat", *parts, axis=1)
        if squeezed:
            x = conv(net, conv(net, x, 40, 8, 1), 8, 16, 1, out=f"block{number}")
        else:
            x = conv(net, x, 40, 16, 1, out=f"block{number}")
        if number == 0:
            x = net.op("Relu", net.conv_depthwise(x, 16), out="down")
    assert names(classifier(net, x, 16), tmp_path) == [
        *("stem", "block0", "down", "block1", "last")
    ]


def test_the_last_convolution_of_a_network_is_not_a_fusion(tmp_path: Path) -> None:
    """ShuffleNet and YOLO: a 1x1 convolution to many channels before the pooling."""
    net = networks.Net()
    x = conv(net, "data", 3, 8, strides=[2, 2], out="stem")
    branches = [conv(net, x, 8, 8), conv(net, x, 8, 8, 1)]
    x = net.op("Concat", *branches, axis=1, out="joined")
    x = conv(net, x, 16, 40, 1, out="wide")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    assert names(net.model(net.dense(x, 40, 10)), tmp_path) == ["joined", "wide"]


@pytest.mark.parametrize("fused", [False, True], ids=["trained", "fused"])
def test_a_mixer_before_an_mlp_that_mixes_too_is_not_a_block(
    fused: bool, tmp_path: Path
) -> None:
    """FastViT: its mixer is a sum, or one convolution once the sum is folded in."""
    net = networks.Net()
    x = conv(net, "data", 3, 8, strides=[2, 2], out="stem")
    for number in range(3):
        y = depthwise(net, x, 8)
        x = y if fused else net.op("Add", x, y)
        x = net.op("Add", x, mlp(net, x, 8, mixing=True), out=f"block{number}")
    assert names(classifier(net, x, 8), tmp_path) == [
        *("stem", "block0", "block1", "block2", "last")
    ]


def test_a_convolution_between_attention_and_mlp_is_not_a_block(tmp_path: Path) -> None:
    """TinyViT: neither the sum after attention nor the convolution after it."""
    net = networks.Net()
    x = conv(net, "data", 3, 8, strides=[2, 2], out="stem")
    for number in range(2):
        x = depthwise(net, net.op("Add", x, linear_attention(net, x)), 8)
        x = net.op("Add", x, mlp(net, x, 8), out=f"block{number}")
    assert names(classifier(net, x, 8), tmp_path) == [
        *("stem", "block0", "block1", "last")
    ]


def test_inverted_residuals_are_blocks(tmp_path: Path) -> None:
    """MobileNet v2 has a depthwise convolution in each block, but no half blocks."""
    net = networks.Net()
    x = conv(net, "data", 3, 8, strides=[2, 2], out="stem")
    for number in range(3):
        y = depthwise(net, conv(net, x, 8, 24, 1), 24)
        y = net.conv(net.op("Relu", y), 24, 8, 1)
        x = net.op("Add", x, y, out=f"block{number}")
    assert names(classifier(net, x, 8), tmp_path) == [
        *("stem", "block0", "block1", "block2", "last")
    ]


def test_a_bottleneck_that_starts_with_a_depthwise_convolution(tmp_path: Path) -> None:
    """MobileNet v4: the layer at a resolution is the block before, not its inside."""
    net = networks.Net()
    x = conv(net, "data", 3, 16, strides=[2, 2])
    x = net.conv(x, 16, 8, 1, out="narrow")
    x = conv(net, depthwise(net, x, 8), 8, 32, 1)
    x = net.conv(net.op("Relu", net.conv_depthwise(x, 32)), 32, 16, 1, out="next")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    layers = found_layers(net.model(net.dense(x, 16, 10)), tmp_path)
    assert [layer.name for layer in layers] == ["narrow", "next"]


def as_tokens(net: networks.Net, x: str) -> str:
    shape = net.constant(np.array([0, 8, -1], np.int64))
    return net.op("Transpose", net.op("Reshape", x, shape), perm=[0, 2, 1])


def as_map(net: networks.Net, x: str) -> str:
    side = networks.SIDE // 2
    shape = net.constant(np.array([0, 8, side, side], np.int64))
    return net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1]), shape)


def additive_attention(net: networks.Net, x: str) -> str:
    """SwiftFormer: queries, weighted by a vector, are summed over the tokens."""
    y = as_tokens(net, x)
    query, key = net.linear(y, 8, 8), net.linear(y, 8, 8)
    weights = net.op("MatMul", query, net.weight(8, 1))
    axis = net.constant(np.array([1], np.int64))
    total = net.op("ReduceSum", net.op("Mul", weights, query), axis, keepdims=1)
    return as_map(net, net.linear(net.op("Mul", total, key), 8, 8))


def linear_attention(net: networks.Net, x: str) -> str:
    """EfficientViT: the product of keys and values first, without a softmax."""
    y = as_tokens(net, x)
    query, key = (net.op("Relu", net.linear(y, 8, 8)) for _ in range(2))
    key = net.op("Transpose", key, perm=[0, 2, 1])
    context = net.op("MatMul", key, net.linear(y, 8, 8))
    return as_map(net, net.op("MatMul", query, context))


@pytest.mark.parametrize(
    ("attention", "mixing"), [(additive_attention, False), (linear_attention, True)]
)
def test_attention_without_a_softmax_is_half_of_a_block(
    attention, mixing: bool, tmp_path: Path
) -> None:
    net = networks.Net()
    x = conv(net, "data", 3, 8, strides=[2, 2], out="stem")
    for number in range(2):
        x = net.op("Add", x, attention(net, x))
        x = net.op("Add", x, mlp(net, x, 8, mixing), out=f"block{number}")
    assert names(classifier(net, x, 8), tmp_path) == [
        *("stem", "block0", "block1", "last")
    ]
