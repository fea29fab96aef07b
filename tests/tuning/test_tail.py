"""Parts of small networks as torch modules, and their weights back in ONNX files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sk_cnncodes import (
    Backbone,
    BackboneError,
    CNNCodeTransformer,
    LayerError,
    Preprocessing,
    load_backbone,
)
from tests import networks
from tests.networks import Net

torch = pytest.importorskip("torch")

from sk_cnncodes.tuning.tail import Tail, read_tail, tuned_model  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(4)]
SIZE = (networks.SIDE, networks.SIDE)
PLAIN = Preprocessing(resize_size=None, crop_size=SIZE)
LAST = Preprocessing(resize_size=None, crop_size=SIZE, layout="NHWC")


def saved(model: onnx.ModelProto, folder: Path, how: Preprocessing = PLAIN) -> Backbone:
    path = folder / "net.onnx"
    onnx.save(model, path)
    return load_backbone(path, how)


def codes(backbone: Backbone, layer: int | str, pooling: str = "auto") -> np.ndarray:
    transformer = CNNCodeTransformer(
        backbone.path,
        layer=layer,
        pooling=pooling,
        preprocessing=backbone.preprocessing,
        cache=None,
    )
    return transformer.fit_transform(IMAGES)


def maps(backbone: Backbone, tail: Tail) -> torch.Tensor:
    found = codes(backbone, tail.input_name, "flatten")
    return torch.from_numpy(found).reshape(-1, *tail.input_shape)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def change(tail: Tail, by: float = 0.05) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in tail.module.parameters():
            weight += by * weight.abs().mean() * torch.randn(weight.shape)


def written(backbone: Backbone, tail: Tail, folder: Path) -> Backbone:
    path = folder / "tuned.onnx"
    path.write_bytes(tuned_model(backbone, tail, {"n_images": 4}))
    return load_backbone(path)


def normalised(eps: float = 1e-5, shared: bool = False) -> onnx.ModelProto:
    """Convolutions with normalisations, one of them before its convolution."""
    net = Net()
    x, width = "data", 3
    ones = net.constant(np.ones(8, np.float32), "ones")
    for number in range(4):
        if number != 2:
            kernel = net.weight(8, width, 3, 3, name=f"kernel{number}")
            x = net.op("Conv", x, kernel, pads=[1] * 4, strides=[1 + number % 2] * 2)
        scale = (
            ones
            if shared
            else net.constant(
                net.rng.uniform(0.5, 2, 8).astype(np.float32), f"scale{number}"
            )
        )
        bias = ones if shared else net.weight(8, name=f"bias{number}")
        mean = net.constant(net.rng.normal(0, 0.1, 8).astype(np.float32))
        var = net.constant(net.rng.uniform(0.5, 2, 8).astype(np.float32))
        x = net.op("BatchNormalization", x, scale, bias, mean, var, epsilon=eps)
        x = net.op("Relu", x, out=f"block{number}")
        width = 8
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    return net.model(net.dense(x, 8, 10, out="scores"))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "alexnet": networks.alexnet,
    "resnet": networks.resnet,
    "resnet_fixed_batch": lambda: networks.resnet(batch=2, reshape=True),
    "squeezenet": networks.squeezenet,
    "vit": networks.vit,
    "nhwc": networks.nhwc,
    "normalised": normalised,
    "normalised_shared": lambda: normalised(shared=True),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("start", [-1, -2, -3, "all"])
def test_codes_before_and_after(name: str, start: int | str, tmp_path: Path) -> None:
    how = LAST if name == "nhwc" else PLAIN
    backbone = saved(NETWORKS[name](), tmp_path, how)
    if start != "all" and -start > len(backbone.layers):
        start = -len(backbone.layers)
    tail = read_tail(backbone, start)
    given = maps(backbone, tail)
    found = tail.module(given)
    assert relative(found.detach().numpy(), codes(backbone, -1)) < 1e-5
    weights = dict(tail.module.named_parameters())
    assert set(tail.blocks) == set(weights)
    if start == -1:
        assert weights == {}
        return
    (found * torch.randn(found.shape)).sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in weights.values())
    change(tail)
    after = tail.module(given).detach().numpy()
    tuned = written(backbone, tail, tmp_path)
    assert relative(after, codes(tuned, -1)) < 1e-5
    assert relative(after, codes(backbone, -1)) > 1e-3
    for layer in backbone.layers:
        same = np.array_equal(codes(tuned, layer.name), codes(backbone, layer.name))
        assert same == (start != "all" and layer.position <= start)
    for before, layer in zip(backbone.layers, tuned.layers, strict=True):
        assert replace(layer, parameter_share=before.parameter_share) == before
    assert tuned.preprocessing == backbone.preprocessing


@pytest.mark.parametrize("pooling", ["avg", "max", "gem", "flatten"])
@pytest.mark.parametrize("name", ["resnet", "nhwc"])
def test_poolings_of_maps(name: str, pooling: str, tmp_path: Path) -> None:
    how = LAST if name == "nhwc" else PLAIN
    backbone = saved(NETWORKS[name](), tmp_path, how)
    end = "features" if name == "nhwc" else "block3"
    tail = read_tail(backbone, "all", end, pooling)
    found = tail.module(maps(backbone, tail)).detach().numpy()
    assert relative(found, codes(backbone, end, pooling)) < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "flatten"])
def test_poolings_of_tokens(pooling: str, tmp_path: Path) -> None:
    backbone = saved(networks.vit(), tmp_path)
    tail = read_tail(backbone, "embedded", "block1", pooling)
    found = tail.module(maps(backbone, tail)).detach().numpy()
    assert relative(found, codes(backbone, "block1", pooling)) < 1e-5


def test_gradients_by_finite_differences(tmp_path: Path) -> None:
    backbone = saved(normalised(), tmp_path)
    tail = read_tail(backbone, "block0")
    module, given = tail.module.double(), maps(backbone, tail).double()
    names = [name for name, _ in module.named_parameters()]
    values = [
        weight.detach().clone().requires_grad_() for weight in module.parameters()
    ]

    def compute(*changed: torch.Tensor) -> torch.Tensor:
        attributes = dict(zip(module._attributes.values(), changed, strict=True))
        return torch.func.functional_call(module, attributes, (given,))

    assert names == [*tail.blocks]
    assert torch.autograd.gradcheck(compute, values, fast_mode=True)


def test_blocks_are_counted_from_the_frozen_part(tmp_path: Path) -> None:
    backbone = saved(networks.resnet(), tmp_path)
    tail = read_tail(backbone, "stem")
    assert sorted({*tail.blocks.values()}) == [0, 1, 2, 3]
    assert [*tail.blocks.values()] == sorted(tail.blocks.values())
    assert {*read_tail(backbone, "block2").blocks.values()} == {0}


# -- normalisations ----------------------------------------------------------


def test_untrained_weights_are_not_written(tmp_path: Path) -> None:
    backbone = saved(normalised(), tmp_path)
    tuned = written(backbone, read_tail(backbone, "block0"), tmp_path)
    np.testing.assert_array_equal(codes(tuned, -1), codes(backbone, -1))
    before, after = (onnx.load(b.path).graph for b in (backbone, tuned))
    assert [*before.initializer] == [*after.initializer]


def with_dead_channel() -> onnx.ModelProto:
    """The kernel of a channel sees nothing but what a tiny variance multiplies."""
    model = normalised(eps=1e-7)
    arrays = {t.name: t for t in model.graph.initializer}
    # As in files of Caffe: statistics of a channel whose inputs were always zero.
    nodes = [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    for name, value in zip(nodes[1].input[3:5], (0.0, 1e-8), strict=True):
        array = numpy_helper.to_array(arrays[name]).copy()
        array[3] = value
        arrays[name].CopyFrom(numpy_helper.from_array(array, name))
    kernel = numpy_helper.to_array(arrays["kernel1"]).copy()
    kernel[3], kernel[3, 0] = 0, 1
    arrays["kernel1"].CopyFrom(numpy_helper.from_array(kernel, "kernel1"))
    # The only input of the dead channel is zero: its own channel is shut.
    scale = numpy_helper.to_array(arrays["scale0"]).copy()
    bias = numpy_helper.to_array(arrays["bias0"]).copy()
    scale[0], bias[0] = 0, -1
    arrays["scale0"].CopyFrom(numpy_helper.from_array(scale, "scale0"))
    arrays["bias0"].CopyFrom(numpy_helper.from_array(bias, "bias0"))
    return model


def test_dead_channels_are_tamed_without_another_code(tmp_path: Path) -> None:
    backbone = saved(with_dead_channel(), tmp_path)
    tail = read_tail(backbone, "block0")
    assert tail.n_dead_channels == 1
    kernel = dict(tail.module.named_parameters())["kernel1"]
    rows = kernel.detach().flatten(1).norm(dim=1)
    assert rows[3] <= rows[[0, 1, 2, 4, 5, 6, 7]].max() * 1.001
    found = tail.module(maps(backbone, tail)).detach().numpy()
    assert relative(found, codes(backbone, -1)) < 1e-5
    change(tail)
    after = tail.module(maps(backbone, tail)).detach().numpy()
    assert relative(after, codes(written(backbone, tail, tmp_path), -1)) < 1e-5


# -- writing -----------------------------------------------------------------


def test_a_merged_weight_gets_a_copy_of_its_own(tmp_path: Path) -> None:
    net = Net()
    kernel, bias = net.weight(3, 3, 3, 3, name="kernel"), net.weight(3, name="bias")
    x = "data"
    for number in range(3):
        x = net.op("Conv", x, kernel, bias, pads=[1] * 4)
        x = net.op("Relu", x, out=f"block{number}")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    backbone = saved(net.model(net.dense(x, 3, 10, out="scores")), tmp_path)
    tail = read_tail(backbone, "block1", "block2")
    assert [*dict(tail.module.named_parameters())] == ["kernel", "bias"]
    change(tail)
    tuned = written(backbone, tail, tmp_path)
    for layer in ("block0", "block1"):
        np.testing.assert_array_equal(codes(tuned, layer), codes(backbone, layer))
    names = {t.name for t in onnx.load(tuned.path).graph.initializer}
    assert {"kernel", "bias", "kernel_tuned", "bias_tuned"} <= names
    found = tail.module(maps(backbone, tail)).detach().numpy()
    assert relative(found, codes(tuned, "block2")) < 1e-5
    # Trained once more, the copies are trained in place.
    again = read_tail(tuned, "block1", "block2")
    change(again)
    twice = written(tuned, again, tmp_path)
    assert {t.name for t in onnx.load(twice.path).graph.initializer} == names


def test_a_weight_computed_for_both_parts_is_not_trained(tmp_path: Path) -> None:
    net = Net()
    turned = net.op("Transpose", net.weight(3, 3, name="matrix"), perm=[1, 0])
    x = net.op("Transpose", "data", perm=[0, 2, 3, 1])
    x = net.op("Relu", net.op("MatMul", x, turned), out="block0")
    own = net.weight(3, 3, name="own")
    x = net.op("MatMul", net.op("MatMul", x, turned), own)
    x = net.op("Relu", x, out="block1")
    backbone = saved(net.model(x), tmp_path)
    tail = read_tail(backbone, "block0", "block1")
    assert [*dict(tail.module.named_parameters())] == ["own"]


def test_provenance_is_in_the_metadata(tmp_path: Path) -> None:
    backbone = saved(networks.resnet(), tmp_path)
    tail = read_tail(backbone, "block1")
    change(tail)
    tuned = written(backbone, tail, tmp_path)
    metadata = {e.key: e.value for e in onnx.load(tuned.path).metadata_props}
    first = json.loads(metadata["sk_cnncodes.tuning"])
    assert first == {
        "backbone_sha256": backbone.sha256,
        "trained_after": "block1",
        "layer": tail.output_name,
        "n_images": 4,
    }
    tail = read_tail(tuned, "block2")
    change(tail)
    again = written(tuned, tail, tmp_path / ".")
    metadata = {e.key: e.value for e in onnx.load(again.path).metadata_props}
    second = json.loads(metadata["sk_cnncodes.tuning"])
    assert second["backbone_sha256"] == tuned.sha256
    assert second["before"] == first


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    model = networks.resnet(element=TensorProto.FLOAT16)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            half = numpy_helper.from_array(array.astype(np.float16), tensor.name)
            tensor.CopyFrom(half)
    backbone = saved(model, tmp_path)
    tail = read_tail(backbone, "block2")
    assert all(w.dtype == torch.float32 for w in tail.module.parameters())
    change(tail)
    found = tail.module(maps(backbone, tail)).detach().numpy()
    tuned = written(backbone, tail, tmp_path)
    kinds = {t.data_type for t in onnx.load(tuned.path).graph.initializer}
    assert kinds == {t.data_type for t in model.graph.initializer}
    assert relative(found, codes(tuned, -1)) < 5e-3
    with torch.no_grad():
        next(tail.module.parameters()).fill_(1e6)
    with pytest.raises(BackboneError, match=r"float16 cannot represent"):
        tuned_model(backbone, tail, {})


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    backbone = saved(networks.resnet(), tmp_path)
    tail = read_tail(backbone, "block2")
    with torch.no_grad():
        next(tail.module.parameters()).fill_(np.nan)
    with pytest.raises(BackboneError, match="not finite"):
        tuned_model(backbone, tail, {})


# -- refusals ----------------------------------------------------------------


def test_layers_in_the_wrong_order(tmp_path: Path) -> None:
    backbone = saved(networks.resnet(), tmp_path)
    with pytest.raises(LayerError, match=r"train_from=-1 is not before layer=-2"):
        read_tail(backbone, -1, -2)


def test_a_branch_is_no_start(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv("data", 3, 3), out="stem")
    y = net.op("Relu", net.conv(x, 3, 3), out="branch")
    x = net.op("Add", x, net.conv(y, 3, 3), out="sum")
    backbone = saved(net.model(x), tmp_path)
    with pytest.raises(LayerError, match=r"'branch'.*also depends on.*'stem'"):
        read_tail(backbone, "branch", "sum")


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv("data", 3, 8), out="stem")
    x = net.op("Relu", net.conv(x, 8, 8), out="block")
    x = net.op("Hardmax", x, axis=1, out="odd")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    backbone = saved(net.model(net.dense(x, 8, 10, out="scores")), tmp_path)
    with pytest.raises(BackboneError, match=r"Hardmax \('odd'\), after"):
        read_tail(backbone, "stem", "odd")


def test_quantised_networks_are_refused_in_plain_words(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv("data", 3, 8), out="stem")
    scale = net.constant(np.array(0.1, np.float32))
    zero = net.constant(np.array(0, np.uint8))
    x = net.op(
        "DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero
    )
    x = net.op("Relu", net.conv(x, 8, 8), out="block")
    backbone = saved(net.model(x), tmp_path)
    with pytest.raises(BackboneError, match=r"the network is quantised.*floats"):
        read_tail(backbone, "stem", "block")
    assert read_tail(backbone, "block", "block").blocks == {}


def test_what_torch_cannot_compute_names_the_node(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv("data", 3, 8), out="stem")
    kernel = {"kernel_shape": [2, 2], "strides": [2, 2]}
    net.nodes.append(helper.make_node("MaxPool", [x], ["pooled", "places"], **kernel))
    x = net.op("Relu", net.conv("pooled", 8, 8), out="block")
    places = net.op("Cast", "places", to=TensorProto.FLOAT)
    x = net.op("Add", x, places, out="sum")
    backbone = saved(net.model(x), tmp_path)
    with pytest.raises(BackboneError, match=r"MaxPool \('pooled'\).*indices"):
        read_tail(backbone, "stem", "sum")
