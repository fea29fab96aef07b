"""Networks with several classifiers, each with its own features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sk_cnncodes import CNNCodeTransformer, Preprocessing, load_backbone
from tests import networks
from tests.conftest import prepared, run_tensor


def trunk(net: networks.Net, width: int, out: str) -> str:
    x = net.op("Relu", net.conv("data", 3, width, strides=[2, 2]))
    x = net.op("GlobalAveragePool", x)
    return net.op("Flatten", x, axis=1, out=out)


def ensemble() -> onnx.ModelProto:
    """The average of the stacked scores of two networks."""
    net, scores = networks.Net(), []
    for number, width in enumerate((8, 6)):
        x = net.dense(trunk(net, width, f"features{number}"), width, 10)
        axis = net.constant(np.array([0], np.int64))
        scores.append(net.op("Unsqueeze", net.op("Softmax", x, axis=-1), axis))
    stack = net.op("Concat", *scores, axis=0)
    return net.model(net.op("ReduceMean", stack, axes=[0], keepdims=0, out="scores"))


def fused_stages() -> onnx.ModelProto:
    """The weighted sum of classifiers of two stages, as in EfficientViM."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stage0")
    y = net.op("Relu", net.conv(x, 8, 6, strides=[2, 2]), out="stage1")
    shares = net.op("Softmax", net.weight(2), axis=0)
    scores = []
    for number, (stage, width) in enumerate([(x, 8), (y, 6)]):
        out = f"features{number}"
        pooled = net.op("ReduceMean", stage, axes=[2, 3], keepdims=0, out=out)
        share = net.op("Gather", shares, net.constant(np.array(number)))
        scores.append(net.op("Mul", share, net.dense(pooled, width, 10)))
    return net.model(net.op("Add", *scores, out="scores"))


@pytest.mark.parametrize("make", [ensemble, fused_stages])
def test_the_code_joins_the_inputs_of_all_classifiers(
    make, photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    model = make()
    path = networks.save(model, tmp_path / "net.onnx")
    codes = CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
    pixels = prepared(photographs, plain)
    both = [run_tensor(model, f"features{i}", pixels, plain) for i in range(2)]
    np.testing.assert_allclose(codes, np.hstack(both), rtol=1e-4, atol=1e-5)


def test_earlier_layers_are_kept(plain: Preprocessing, tmp_path: Path) -> None:
    path = networks.save(fused_stages(), tmp_path / "net.onnx")
    layers = load_backbone(path, plain).layers
    assert [layer.name for layer in layers] == [
        *("stage0", "scores/read_by_classifiers")
    ]
    assert layers[-1].parameter_share < 1


def test_branches_of_a_block_are_not_classifiers(
    plain: Preprocessing, tmp_path: Path
) -> None:
    """Attention pooling ends in a sum; without a classifier the sum is the code."""
    net = networks.Net()
    x = net.dense(trunk(net, 8, "pooled"), 8, 12, out="projected")
    y = net.op("Relu", net.dense(x, 12, 24))
    model = net.model(net.op("Add", x, net.dense(y, 24, 12), out="features"))
    path = networks.save(model, tmp_path / "net.onnx")
    assert load_backbone(path, plain).layers[-1].name == "features"
