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


def tasks(*, hidden: bool, activation: str | None = None) -> onnx.ModelProto:
    """Age, gender and race from a common trunk, through hidden layers of their own."""
    net, outputs = networks.Net(), []
    x = trunk(net, 8, "shared")
    for number, (task, width) in enumerate([("age", 10), ("gender", 2), ("race", 7)]):
        head, read = x, 8
        if hidden:
            head = net.dense(x, 8, 6 + number)
            head = net.op("Relu", head, out=f"hidden{number}")
            read = 6 + number
        elif activation:
            head = net.op(activation, x, out=f"activated{number}")
        outputs.append(net.dense(head, read, width, out=task))
    return net.model(outputs)


def test_the_code_joins_the_hidden_layers_of_several_outputs(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    model = tasks(hidden=True)
    path = networks.save(model, tmp_path / "net.onnx")
    codes = CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
    pixels = prepared(photographs, plain)
    each = [run_tensor(model, f"hidden{i}", pixels, plain) for i in range(3)]
    np.testing.assert_allclose(codes, np.hstack(each), rtol=1e-4, atol=1e-5)
    shared, last = load_backbone(path, plain).layers[-2:]
    assert shared.shape == (8, 16, 16)  # the map whose mean is shared
    assert "inputs of 3 classifiers of the outputs 'age', 'gender', 'race'" in last.rule


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_the_outputs_is_no_matter(
    reverse: bool, plain: Preprocessing, tmp_path: Path
) -> None:
    model = tasks(hidden=True)
    outputs = list(model.graph.output)[:: -1 if reverse else 1]
    model.graph.ClearField("output")
    model.graph.output.extend(outputs)
    path = networks.save(model, tmp_path / "net.onnx")
    assert load_backbone(path, plain).layers[-1].shape == (6 + 7 + 8,)


@pytest.mark.parametrize("activation", [None, "Relu"])
def test_the_code_is_what_several_outputs_share(
    activation: str | None,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    """Even if each classifier has an activation of its own before it."""
    model = tasks(hidden=False, activation=activation)
    path = networks.save(model, tmp_path / "net.onnx")
    codes = CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
    name = "activated2" if activation else "shared"
    expected = run_tensor(model, name, prepared(photographs, plain), plain)
    np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-5)
    rule = load_backbone(path, plain).layers[-1].rule
    assert rule.startswith("common input of all 3 classifiers")


def with_auxiliary_classifier(*, last: bool = False) -> onnx.ModelProto:
    """An early classifier with a hidden layer, for training, and the main one."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stage0")
    y = net.op("Relu", net.conv(x, 8, 12, strides=[2, 2]), out="stage1")
    y = net.op("Flatten", net.op("GlobalAveragePool", y), axis=1)
    main = net.dense(y, 12, 10, out="scores")
    nodes = net.nodes[1 + net.nodes.index(maker_of(net, x)) :]
    z = net.op("GlobalAveragePool", x)
    z = net.op("Relu", net.dense(net.op("Flatten", z, axis=1), 8, 6), out="early")
    auxiliary = net.dense(z, 6, 10, out="auxiliary")
    if not last:
        net.nodes = [n for n in net.nodes if n not in nodes] + nodes
    return net.model([main, auxiliary] if last else [auxiliary, main])


def maker_of(net: networks.Net, name: str) -> onnx.NodeProto:
    return next(node for node in net.nodes if name in node.output)


def with_late_auxiliary_classifier() -> onnx.ModelProto:
    """The nodes of the early classifier come last, as an exporter may write them."""
    return with_auxiliary_classifier(last=True)


def with_classified_embedding() -> onnx.ModelProto:
    """An embedding, and the scores that a classifier gives it."""
    net = networks.Net()
    x = net.dense(trunk(net, 8, "shared"), 8, 12, out="embedding")
    return net.model([x, net.dense(x, 12, 10, out="scores")])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (with_auxiliary_classifier, "stage1"),
        (with_late_auxiliary_classifier, "stage1"),
        (with_classified_embedding, "embedding"),
    ],
)
def test_other_outputs_that_are_no_tasks(
    make, expected: str, plain: Preprocessing, tmp_path: Path
) -> None:
    path = networks.save(make(), tmp_path / "net.onnx")
    assert load_backbone(path, plain).layers[-1].name == expected


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
