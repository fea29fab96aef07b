"""Codes of a cut graph equal the pooled activations of the whole network."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from sk_cnncodes import (
    BackboneError,
    CNNCodeTransformer,
    LayerError,
    Preprocessing,
    PreprocessingError,
    load_backbone,
)
from sk_cnncodes.engines.devices import Device
from sk_cnncodes.engines.session import open_session
from sk_cnncodes.graphs.view import rename_tensors
from tests import networks
from tests.conftest import prepared, run_tensor


def gem(x: np.ndarray) -> np.ndarray:
    return (np.maximum(x, 1e-6) ** 3).mean((2, 3)) ** (1 / 3)


POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.max((2, 3)),
    "gem": gem,
    "flatten": lambda x: x.reshape(len(x), -1),
}


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("layer", ["stem", "block1", "block3"])
def test_pooling_of_maps(
    pooling: str,
    layer: str,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    model = networks.resnet()
    codes = CNNCodeTransformer(
        networks.save(model, tmp_path / "net.onnx"),
        layer=layer,
        pooling=pooling,
        preprocessing=plain,
    ).fit_transform(photographs)
    whole = run_tensor(model, layer, prepared(photographs, plain), plain)
    np.testing.assert_allclose(codes, POOLED[pooling](whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "pooled"),
    [
        ("cls", lambda x: x[:, 0]),
        ("auto", lambda x: x[:, 0]),
        ("mean", lambda x: x.mean(1)),
        ("max", lambda x: x.max(1)),
        ("flatten", lambda x: x.reshape(len(x), -1)),
    ],
)
@pytest.mark.parametrize("baked", [False, True])
def test_pooling_of_tokens(
    pooling: str,
    pooled: Callable[[np.ndarray], np.ndarray],
    baked: bool,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    """A traced transformer with a fixed batch size of one runs image by image."""
    model = networks.vit(baked)
    transformer = CNNCodeTransformer(
        networks.save(model, tmp_path / "net.onnx"),
        pooling=pooling,
        preprocessing=plain,
    )
    whole = run_tensor(model, "normed", prepared(photographs, plain), plain)
    codes = transformer.fit_transform(photographs)
    np.testing.assert_allclose(codes, pooled(whole), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "pooling", "valid"),
    [
        ("fc7", "avg", r"vector of length 24.*\['flatten'\]"),
        ("pool5", "cls", r"map of shape 16x4x4.*\['avg', 'max', 'gem', 'flatten'\]"),
        ("pool5", "mean", "map of shape 16x4x4"),
    ],
)
def test_pooling_that_does_not_fit(
    layer: str, pooling: str, valid: str, plain: Preprocessing, tmp_path: Path
) -> None:
    path = networks.save(networks.alexnet(), tmp_path / "net.onnx")
    backbone = load_backbone(path, plain)
    with pytest.raises(LayerError, match=f"pooling='{pooling}'.*'{layer}'.*{valid}"):
        backbone.spec(layer, pooling, None)


def test_cls_pooling_needs_a_class_token(plain: Preprocessing, tmp_path: Path) -> None:
    net = networks.Net()
    kernel, bias = net.weight(16, 3, 8, 8), net.weight(16)
    x = net.op("Conv", "data", kernel, bias, kernel_shape=[8, 8], strides=[8, 8])
    x = net.op("Reshape", x, net.constant(np.array([0, 16, 16], np.int64)))
    x = net.op("Transpose", x, perm=[0, 2, 1])
    x = net.op("Relu", net.linear(x, 16, 16), out="tokens")
    x = net.op("ReduceMean", x, axes=[1], keepdims=0)
    path = networks.save(net.model(net.dense(x, 16, 10)), tmp_path / "net.onnx")
    backbone = load_backbone(path, plain)
    assert backbone.layer(-1).name == "tokens"
    assert backbone.spec(-1, "auto", None).pooling == "mean"
    with pytest.raises(LayerError, match="without a class token"):
        backbone.spec(-1, "cls", None)


def test_norm_gives_unit_length(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    path = networks.save(networks.resnet(), tmp_path / "net.onnx")
    plain_codes = CNNCodeTransformer(path, preprocessing=plain).transform(photographs)
    codes = CNNCodeTransformer(path, norm="l2", preprocessing=plain).transform(
        photographs
    )
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
    lengths = np.linalg.norm(plain_codes, axis=1, keepdims=True)
    np.testing.assert_allclose(codes, plain_codes / lengths, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": "BGR", "mean": (104.0, 117.0, 123.0), "std": (58.0, 57.0, 56.0)},
        {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)},
        {"scale": 1 / 255},
    ],
    ids=["bgr", "mean and std", "scale"],
)
def test_normalisation_is_in_the_graph(
    change: dict,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    base = Preprocessing(crop_size=plain.crop_size, resize_size=plain.resize_size)
    preprocessing = replace(base, **change)
    model = networks.resnet()
    codes = CNNCodeTransformer(
        networks.save(model, tmp_path / "net.onnx"), preprocessing=preprocessing
    ).fit_transform(photographs)
    pixels = prepared(photographs, preprocessing)
    whole = run_tensor(model, "pooled", pixels, preprocessing)[:, :, 0, 0]
    np.testing.assert_allclose(codes, whole, rtol=1e-3, atol=1e-4 * whole.max())


@pytest.mark.parametrize(
    ("model", "layout", "tensor"),
    [
        (networks.resnet(batch=1, reshape=True), "NCHW", "pooled"),
        (networks.resnet(batch=3, reshape=True), "NCHW", None),
        (networks.resnet(opset=7), "NCHW", "pooled"),
        (networks.resnet(opset=13), "NCHW", "pooled"),
        (networks.nhwc(), "NHWC", None),
        (networks.with_if(), "NCHW", None),
        (networks.with_function(), "NCHW", None),
        (networks.squeezenet(), "NCHW", None),
        (networks.alexnet(), "NCHW", "fc7"),
    ],
    ids=[
        "baked-1",
        "baked-3",
        "opset-7",
        "opset-13",
        "nhwc",
        "if",
        "function",
        "conv-head",
        "alexnet",
    ],
)
def test_batches_of_any_size_give_the_same_rows(
    model: onnx.ModelProto,
    layout: str,
    tensor: str | None,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    preprocessing = replace(plain, layout=layout)
    path = networks.save(model, tmp_path / "net.onnx")
    codes = [
        CNNCodeTransformer(
            path, preprocessing=preprocessing, batch_size=size
        ).fit_transform(photographs)
        for size in (1, 3, 8)
    ]
    assert codes[0].std(axis=0).max() > 0
    for other in codes[1:]:
        np.testing.assert_allclose(other, codes[0], rtol=1e-4, atol=1e-5)
    if tensor is not None:
        pixels = prepared(photographs, preprocessing)
        whole = run_tensor(model, tensor, pixels, preprocessing)
        whole = whole.reshape(len(whole), -1)
        np.testing.assert_allclose(codes[0], whole, rtol=1e-3, atol=1e-4)


def test_half_precision_file(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    model = networks.resnet(element=TensorProto.FLOAT16)
    for tensor in model.graph.initializer:
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    path = networks.save(model, tmp_path / "half.onnx")
    codes = CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
    assert codes.dtype == np.float32
    whole = run_tensor(model, "pooled", prepared(photographs, plain), plain)
    np.testing.assert_allclose(codes, whole[:, :, 0, 0], rtol=2e-2, atol=2e-2)


def integer_network(element: int, channels: int = 3) -> onnx.ModelProto:
    """A network that casts its integer input to floats."""
    net = networks.Net()
    x = net.op("Cast", "data", to=TensorProto.FLOAT)
    x = net.op("Mul", x, net.constant(np.float32(1 / 255)))
    x = net.op("Relu", net.conv(x, channels, 8, strides=[2, 2]), out="map")
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    model = net.model(net.dense(x, 8, 10), shape=(channels, 32, 32))
    model.graph.input[0].type.tensor_type.elem_type = element
    return model


@pytest.mark.parametrize(
    ("element", "mean"),
    [(TensorProto.UINT8, 0), (TensorProto.INT8, 128), (TensorProto.INT32, 100)],
    ids=["uint8", "int8", "int32"],
)
def test_integer_inputs(
    element: int,
    mean: int,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    model = integer_network(element)
    path = networks.save(model, tmp_path / "net.onnx")
    whole = replace(plain, scale=1, mean=(mean,) * 3)
    codes = CNNCodeTransformer(path, preprocessing=whole).fit_transform(photographs)
    activations = run_tensor(model, "map", prepared(photographs, whole), whole)
    np.testing.assert_allclose(codes, activations.mean(axis=(2, 3)), rtol=1e-4)


@pytest.mark.parametrize(
    ("element", "change", "message"),
    [
        (TensorProto.UINT8, {}, "from -1 to 1 in steps of 0.00784.*takes uint8"),
        (TensorProto.INT8, {"scale": 1, "mean": (0, 0, 0)}, "from 0 to 255.*to 127"),
        (TensorProto.INT32, {"scale": 1, "mean": (0, 0, 0.5)}, "takes int32"),
    ],
)
def test_values_that_an_integer_input_cannot_represent(
    element: int,
    change: dict,
    message: str,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    path = networks.save(integer_network(element), tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, preprocessing=replace(plain, **change))
    with pytest.raises(PreprocessingError, match=f"net.onnx.*{message}"):
        transformer.fit(photographs)


def test_gray_is_rounded_for_integer_inputs(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    model = integer_network(TensorProto.UINT8, channels=1)
    path = networks.save(model, tmp_path / "net.onnx")
    gray = replace(plain, scale=1, mean=(0,), std=(1,), channels="GRAY")
    codes = CNNCodeTransformer(path, preprocessing=gray).fit_transform(photographs)
    pixels = [Image.fromarray(p).convert("L") for p in prepared(photographs, gray)]
    activations = run_tensor(model, "map", np.stack(pixels)[..., None], gray)
    np.testing.assert_allclose(codes, activations.mean(axis=(2, 3)), rtol=1e-4)


def test_external_data(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    inside = networks.save(networks.resnet(), tmp_path / "inside.onnx")
    outside = networks.save(
        networks.resnet(),
        tmp_path / "outside.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    expected, codes = (
        CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
        for path in (inside, outside)
    )
    np.testing.assert_array_equal(codes, expected)


def test_several_layers_in_one_graph(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    path = networks.save(networks.resnet(), tmp_path / "net.onnx")
    backbone = load_backbone(path, plain)
    specs = [backbone.spec(layer, "auto", None) for layer in (-1, -3)]
    session = open_session(backbone.code_graphs(specs), Device(None, True), 1)
    both = session.run(prepared(photographs, plain))
    assert [codes.shape for codes in both] == [(8, 16), (8, 8)]
    for layer, codes in zip((-1, -3), both, strict=True):
        single = CNNCodeTransformer(path, layer=layer, preprocessing=plain)
        np.testing.assert_allclose(codes, single.transform(photographs), rtol=1e-5)


def test_a_code_graph_has_no_weights_after_its_layer(shared: Path) -> None:
    backbone = load_backbone(shared / "backbones" / "squeezenet1.1.onnx")
    second = backbone.layers[1]
    sizes = {}
    for layer in (second.name, -1):
        spec = backbone.spec(layer, "auto", None)
        graph = next(iter(backbone.code_graphs([spec])))
        sizes[layer] = len(graph.model)
        model = onnx.load_from_string(graph.model)
        kept = sum(np.prod(t.dims) for t in model.graph.initializer)
        total = 1_235_496  # parameters of SqueezeNet 1.1
        share = backbone.layer(layer).parameter_share
        assert kept == pytest.approx(share * total, rel=0.01, abs=50)
    assert sizes[second.name] < 0.05 * sizes[-1]


@pytest.mark.parametrize(
    ("old", "new"), [("data", "images"), ("block0", "codes_0"), ("w0", "sk_cnncodes/1")]
)
def test_tensor_names_that_a_code_graph_reserves(
    old: str,
    new: str,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    """Some exporters name the input "images"."""
    model = networks.resnet()
    path = networks.save(model, tmp_path / "before.onnx")
    expected = CNNCodeTransformer(path, layer=-2, preprocessing=plain)
    rename_tensors(model.graph, lambda name: new if name == old else name)
    path = networks.save(model, tmp_path / "after.onnx")
    codes = CNNCodeTransformer(path, layer=-2, preprocessing=plain)
    np.testing.assert_array_equal(
        codes.fit_transform(photographs), expected.fit_transform(photographs)
    )


def test_a_file_that_changes_after_it_was_loaded(tmp_path: Path) -> None:
    """Otherwise its codes would be cached as those of the old file."""
    path = Path(networks.save(networks.resnet(), tmp_path / "net.onnx"))
    backbone = load_backbone(path, Preprocessing(crop_size=(32, 32)))
    spec = backbone.spec(-1, "auto", None)
    networks.save(networks.alexnet(), path)
    with pytest.raises(BackboneError, match="changed after it was loaded"):
        next(backbone.code_graphs([spec]))


def test_another_file_of_the_same_size_and_time(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    """Some archives have the same modification time for all files."""
    models = []
    for factor in (1, 2):
        model = networks.resnet()
        tensor = model.graph.initializer[0]
        values = factor * onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        models.append(model)
    path = tmp_path / "net.onnx"
    found = []
    for model in models:
        networks.save(model, path)
        os.utime(path, (1_600_000_000, 1_600_000_000))
        transformer = CNNCodeTransformer(path, preprocessing=plain, cache=None)
        found.append(transformer.fit_transform(photographs))
    first, second = found
    assert np.abs(first - second).max() > 0.1 * np.abs(first).max()


def test_dynamically_quantised_networks_run_image_by_image(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    """Their scale depends on all images of a batch."""
    from onnxruntime.quantization import quantize_dynamic

    networks.save(networks.resnet(), tmp_path / "floats.onnx")
    path = tmp_path / "net.onnx"
    quantize_dynamic(tmp_path / "floats.onnx", path)
    backbone = load_backbone(path, plain)
    graph = next(backbone.code_graphs([backbone.spec(-1, "auto", None)]))
    assert graph.batch_size == 1
    images = [pixels // 8 if i % 2 else pixels for i, pixels in enumerate(photographs)]
    transformer = CNNCodeTransformer(path, preprocessing=plain, cache=None).fit(images)
    single = np.concatenate([transformer.transform([image]) for image in images])
    np.testing.assert_array_equal(transformer.transform(images), single)


def _by_maximum(net: networks.Net) -> str:
    return net.op("Div", "data", net.op("ReduceMax", "data", keepdims=0))


def _by_branch(net: networks.Net) -> str:
    """Doubles the images if the brightest pixel is bright enough."""
    branches = {}
    for name, op in (("then_branch", "Add"), ("else_branch", "Sub")):
        node = helper.make_node(op, ["data", "data"], [name])
        value = helper.make_tensor_value_info(name, 1, None)
        branches[name] = helper.make_graph([node], name, [], [value])
    largest = net.op("ReduceMax", "data", keepdims=0)
    bound = net.constant(np.float32(-0.7))
    return net.op("If", net.op("Greater", largest, bound), **branches)


@pytest.mark.parametrize("scaled", [_by_maximum, _by_branch])
def test_a_file_for_one_image_never_scales_it_by_another(
    scaled: Callable[[networks.Net], str],
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    net = networks.Net()
    x = net.op("Identity", scaled(net), out="scaled")
    x = net.op("GlobalAveragePool", net.op("Relu", net.conv(x, 3, 8)))
    scores = net.dense(net.op("Flatten", x), 8, 10)
    path = networks.save(net.model(scores, batch=1), tmp_path / "net.onnx")
    images = [pixels // 32 if i % 2 else pixels for i, pixels in enumerate(photographs)]
    transformer = CNNCodeTransformer(
        path, preprocessing=plain, cache=None, batch_size=4
    )
    transformer.fit(images)
    single = np.concatenate([transformer.transform([image]) for image in images])
    np.testing.assert_array_equal(transformer.transform(images), single)


def _normalised(net: networks.Net, x: str) -> str:
    scale, zero = (net.constant(np.full(8, v, np.float32)) for v in (1, 0))
    outputs = ["trained", "mean", "variance"]
    inputs = [x, scale, zero, zero, scale]
    net.nodes.append(
        helper.make_node("BatchNormalization", inputs, outputs, training_mode=1)
    )
    return "trained"


def _dropped(net: networks.Net, x: str) -> str:
    ratio, training = net.constant(np.float32(0.5)), net.constant(np.array(True))
    return net.op("Dropout", x, ratio, training, out="trained")


@pytest.mark.parametrize("trained", [_normalised, _dropped])
def test_a_network_in_training_mode_is_refused(
    trained: Callable[[networks.Net, str], str],
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    net = networks.Net()
    x = net.conv("data", 3, 8, out="stem")
    x = net.op("GlobalAveragePool", net.op("Relu", trained(net, x)))
    model = net.model(net.dense(net.op("Flatten", x), 8, 10))
    path = networks.save(model, tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, preprocessing=plain, cache=None)
    with pytest.raises(BackboneError, match=r"\['trained'\] is in training mode"):
        transformer.fit_transform(photographs)
    transformer.set_params(layer="stem").fit_transform(photographs)


def test_weights_that_are_normalised_are_no_training(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    """Convolutions with standardised weights, as in NFNet, normalise them like this."""
    net = networks.Net()
    weights = net.constant(np.ones((1, 8, 27), np.float32))
    shape = net.constant(np.array([8, 3, 3, 3], np.int64))
    kernel = net.op("Reshape", _normalised(net, weights), shape)
    x = net.op("GlobalAveragePool", net.op("Conv", "data", kernel))
    model = net.model(net.dense(net.op("Flatten", x), 8, 10))
    path = networks.save(model, tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, preprocessing=plain, cache=None)
    assert transformer.fit_transform(photographs).shape == (len(photographs), 8)


def test_fixed_batches_with_dependent_rows_are_refused(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]))
    x = net.op("Reshape", x, net.constant(np.array([4, 8, 16, 16], np.int64)))
    x = net.op("Sub", x, net.op("ReduceMean", x, axes=[0]))
    x = net.op("Reshape", x, net.constant(np.array([4, 2048], np.int64)))
    path = networks.save(
        net.model(net.dense(x, 2048, 10), batch=4), tmp_path / "n.onnx"
    )
    transformer = CNNCodeTransformer(path, preprocessing=plain)
    with pytest.raises(BackboneError, match="depend on the other images of its batch"):
        transformer.fit_transform(photographs)


def test_a_tensor_may_have_any_name(
    tmp_path: Path, plain: Preprocessing, photographs: list[np.ndarray]
) -> None:
    """Shapes are measured where inference stops; no name is in the way of that."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    shape = net.constant(np.array([0, 8, 16, 16], np.int64), "flat/shape")
    x = net.op("Reshape", x, net.op("Abs", shape), out="flat")
    x = net.op("Relu", net.conv(x, 8, 8), out="sk_cnncodes/shape/0")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    path = networks.save(net.model(net.dense(x, 8, 10)), tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, preprocessing=plain, layer=-1)
    assert transformer.transform(photographs).shape == (8, 8)
