"""A tensor that is named is a layer, whatever the rest of the network is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.utils import Extractor

from sk_cnncodes import (
    BackboneError,
    CNNCodeTransformer,
    LayerError,
    Preprocessing,
    PreprocessingError,
    load_backbone,
)
from sk_cnncodes.backbones.loading import load_network
from tests import networks
from tests.conftest import prepared, run_tensor

SIDE = networks.SIDE


def trunk(net: networks.Net, image: str = "data", prefix: str = "") -> str:
    x = net.op("Relu", net.conv(image, 3, 8, strides=[2, 2]), out=f"{prefix}stem")
    x = net.op("Relu", net.conv(x, 8, 12, strides=[2, 2]), out=f"{prefix}stage")
    return net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)


def text_reader() -> onnx.ModelProto:
    """OCR: the columns of a map are read in turn; positions come before the batch."""
    net = networks.Net()
    trunk(net)
    x = net.op("ReduceMean", "stage", axes=[2], keepdims=0)
    x = net.op("Transpose", x, perm=[2, 0, 1])
    weights = [net.weight(1, 40, 12), net.weight(1, 40, 10)]
    net.nodes.append(helper.make_node("LSTM", [x, *weights], ["read"], hidden_size=10))
    x = net.op("Squeeze", "read", net.constant(np.array([1], np.int64)))
    return net.model(net.op("Softmax", x, axis=-1, out="letters"))


def boxes() -> onnx.ModelProto:
    """A detector that ends in non-maximum suppression: numbers of boxes."""
    net = networks.Net()
    trunk(net)
    x = net.op(
        "Reshape", net.conv("stage", 12, 5, 1), net.constant(np.array([0, 5, -1]))
    )
    first, last = (net.constant(np.array([each], np.int64)) for each in (0, 4))
    end, axis = (net.constant(np.array([each], np.int64)) for each in (5, 1))
    corners = net.op("Slice", x, first, last, axis)
    corners = net.op("Transpose", corners, perm=[0, 2, 1])
    scores = net.op("Slice", x, last, end, axis)
    most = net.constant(np.array([3], np.int64))
    return net.model(net.op("NonMaxSuppression", corners, scores, most, out="chosen"))


def mask() -> onnx.ModelProto:
    """Segmentation: the class of each pixel, a whole number."""
    net = networks.Net()
    trunk(net)
    x = net.conv("stage", 12, 5, 1)
    return net.model(net.op("ArgMax", x, axis=1, keepdims=0, out="classes"))


def prompted() -> onnx.ModelProto:
    """The output needs a second input, the layers before do not."""
    net = networks.Net()
    x = net.op("Mul", trunk(net), "prompt", out="prompted")
    model = net.model(net.dense(x, 12, 10))
    prompt = helper.make_tensor_value_info("prompt", TensorProto.FLOAT, ["N", 12])
    model.graph.input.append(prompt)
    return model


def part(model: onnx.ModelProto, image: str, layer: str) -> onnx.ModelProto:
    """The nodes up to a layer, by onnx; its image input is called "data"."""
    inferred = onnx.shape_inference.infer_shapes(model)
    alone = Extractor(inferred).extract_model([image], [layer])
    alone.graph.input[0].name = "data"
    for node in alone.graph.node:
        node.input[:] = ["data" if name == image else name for name in node.input]
    return alone


@pytest.mark.parametrize("make", [text_reader, boxes, mask, prompted])
@pytest.mark.parametrize("layer", ["stem", "stage"])
def test_a_named_tensor_needs_no_numbered_layers(
    make: Callable[[], onnx.ModelProto],
    layer: str,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    model = make()
    for output in model.graph.output:  # whatever its type is
        output.ClearField("type")
        if output.name in ("chosen", "classes"):
            output.type.tensor_type.elem_type = TensorProto.INT64
        else:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    path = networks.save(model, tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, layer=layer, preprocessing=plain)
    codes = transformer.fit_transform(photographs)
    alone = part(model, "data", layer)
    expected = run_tensor(alone, layer, prepared(photographs, plain), plain)
    np.testing.assert_allclose(codes, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_other_inputs_that_a_named_tensor_needs(
    plain: Preprocessing, tmp_path: Path
) -> None:
    backbone = load_backbone(networks.save(prompted(), tmp_path / "net.onnx"), plain)
    expected = r"layer='prompted': .*net.onnx.*needs the inputs \['prompt'\]"
    with pytest.raises(LayerError, match=expected):
        backbone.layer("prompted")
    with pytest.raises(BackboneError, match=r"net.onnx.*\['prompt'\] besides"):
        backbone.layer(-1)


def test_a_wrong_name_where_layers_have_no_numbers(
    plain: Preprocessing, tmp_path: Path
) -> None:
    backbone = load_backbone(networks.save(prompted(), tmp_path / "net.onnx"), plain)
    with pytest.raises(LayerError, match="have no numbers: .*Did you mean 'stage'"):
        backbone.layer("stagee")


# -- several images -----------------------------------------------------------


def twins(*sides: int) -> onnx.ModelProto:
    """A siamese network: the distance between the embeddings of two images."""
    net, parts = networks.Net(), []
    for name in ("left", "right"):
        parts.append(net.dense(trunk(net, name, f"{name}_"), 12, 6, out=f"{name}_code"))
    x = net.op("ReduceL2", net.op("Sub", *parts), axes=[1], keepdims=1, out="distance")
    model = net.model(x)
    model.graph.ClearField("input")
    for name, side in zip(("left", "right"), sides, strict=True):
        value = helper.make_tensor_value_info(
            name, TensorProto.FLOAT, ["N", 3, side, side]
        )
        model.graph.input.append(value)
    return model


@pytest.mark.parametrize("name", ["left", "right"])
@pytest.mark.parametrize("layer", ["stage", "code"])
def test_a_layer_chooses_the_branch_of_a_siamese_network(
    name: str,
    layer: str,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    model = twins(SIDE, SIDE)
    path = networks.save(model, tmp_path / "net.onnx")
    layer = f"{name}_{layer}"
    transformer = CNNCodeTransformer(path, layer=layer, preprocessing=plain)
    codes = transformer.fit_transform(photographs)
    alone = part(model, name, layer)
    expected = run_tensor(alone, layer, prepared(photographs, plain), plain)
    if expected.ndim == 4:
        expected = expected.mean((2, 3))
    np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-5)


def test_several_images_and_no_name(plain: Preprocessing, tmp_path: Path) -> None:
    path = networks.save(twins(SIDE, SIDE), tmp_path / "net.onnx")
    backbone = load_backbone(path, plain)
    expected = "net.onnx.* 2 image inputs: 'left' .*'left' alone is 'left_code'"
    with pytest.raises(BackboneError, match=expected):
        backbone.layer(-1)
    with pytest.raises(LayerError, match="needs the inputs .'right'. besides"):
        backbone.layer("distance")
    with pytest.raises(BackboneError, match=expected):  # also without preprocessing
        load_network(path)


def test_only_the_input_that_a_layer_needs_must_fit(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    path = networks.save(twins(SIDE, 2 * SIDE), tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, layer="left_code", preprocessing=plain)
    assert transformer.fit_transform(photographs).shape == (8, 6)
    with pytest.raises(PreprocessingError, match=r"net.onnx.*input 'right' has the sh"):
        load_backbone(path, plain).layer("right_code")


# -- sequences, maps and texts ----------------------------------------------


LABELS = [f"class {number}" for number in range(10)]
ML = "ai.onnx.ml"
SCORES = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
ONE_SCORE = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
TEXT = helper.make_tensor_type_proto(TensorProto.STRING, None)
TEXT_MAPS = helper.make_sequence_type_proto(
    helper.make_map_type_proto(TensorProto.STRING, ONE_SCORE)
)
Types = dict[str, onnx.TypeProto]


def custom_vision(net: networks.Net) -> Types:
    """Azure Custom Vision: a label, and a map from label to probability."""
    x = net.op("Softmax", net.dense(trunk(net), 12, 10), axis=1)
    best = net.op("ArgMax", x, axis=1, keepdims=1)
    labels = net.constant(np.array(LABELS, object))
    net.op("ArrayFeatureExtractor", labels, best, domain=ML, out="label")
    net.op("ZipMap", x, domain=ML, classlabels_strings=LABELS, out="loss")
    return {"label": TEXT, "loss": TEXT_MAPS}


def scikit_learn(net: networks.Net) -> Types:
    """skl2onnx: StandardScaler and LogisticRegression on the code."""
    scale = {"offset": [0.5] * 12, "scale": [2.0] * 12}
    x = net.op("Scaler", trunk(net), domain=ML, **scale)
    classifier = helper.make_node(
        "LinearClassifier",
        [x],
        ["label", "scores"],
        domain=ML,
        classlabels_strings=LABELS[:3],
        coefficients=net.rng.normal(size=36).tolist(),
        intercepts=[0.0] * 3,
        post_transform="SOFTMAX",
    )
    net.nodes.append(classifier)
    x = net.op("Normalizer", "scores", norm="L1", domain=ML)
    net.op("ZipMap", x, domain=ML, classlabels_strings=LABELS[:3], out="probabilities")
    return {"label": TEXT, "probabilities": TEXT_MAPS}


def ml_net(net: networks.Net) -> Types:
    """ML.NET puts out its input and features too, and a label as text."""
    x = trunk(net)
    net.op("Identity", x, out="Features.output")
    x = net.op("Softmax", net.dense(x, 12, 10), axis=1, out="Score.output")
    x = net.op("ArgMax", x, axis=1, keepdims=1)
    table = {"keys_int64s": list(range(10)), "values_strings": LABELS}
    net.op("LabelEncoder", x, domain=ML, out="PredictedLabel.output", **table)
    net.op("Identity", "data", out="Image.output")
    outputs = ("Image.output", "Features.output", "Score.output")
    return dict.fromkeys(outputs, SCORES) | {"PredictedLabel.output": TEXT}


def split_scores(net: networks.Net) -> Types:
    x, sizes = net.dense(trunk(net), 12, 10), net.constant(np.array([4, 6]))
    net.op("SplitToSequence", x, sizes, axis=1, out="parts")
    return {"parts": helper.make_sequence_type_proto(SCORES)}


def sequence_of_maps(net: networks.Net) -> Types:
    """A feature pyramid in a sequence: the deepest map is the code."""
    trunk(net)
    net.op("SequenceConstruct", "stem", "stage", out="maps")
    return {"maps": helper.make_sequence_type_proto(SCORES)}


def sequence_inside(net: networks.Net) -> Types:
    """As torch.split with an unknown size is exported."""
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    parts = net.op("SplitToSequence", x, net.constant(np.array([4, 4])), axis=1)
    first, second = (
        net.op("SequenceAt", parts, net.constant(np.array(i))) for i in range(2)
    )
    x = net.op("Concat", net.conv(first, 4, 8), second, axis=1)
    x = net.op("Relu", net.conv(x, 12, 12, strides=[2, 2]), out="stage")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    net.dense(x, 12, 10, out="scores")
    return {"scores": SCORES}


@pytest.mark.parametrize(
    "make",
    [
        custom_vision,
        scikit_learn,
        ml_net,
        split_scores,
        sequence_of_maps,
        sequence_inside,
    ],
)
def test_outputs_that_are_no_tensors_of_scores(
    make: Callable[[networks.Net], Types],
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    net = networks.Net()
    types = make(net)
    model = net.model(list(types))
    model.opset_import.append(helper.make_opsetid(ML, 2))
    for output in model.graph.output:
        output.type.CopyFrom(types[output.name])
    path = networks.save(model, tmp_path / "net.onnx")
    codes = CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
    for output in list(model.graph.output):
        output.CopyFrom(helper.make_tensor_value_info("stage", TensorProto.FLOAT, None))
    del model.graph.output[1:]
    expected = run_tensor(model, "stage", prepared(photographs, plain), plain)
    np.testing.assert_allclose(codes, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("size", "does not depend on an image"),
        ("bias", "does not depend on an image"),
        ("inner", "lies inside of a branch or a loop"),
        ("unknown", "is not a layer"),
        ("parts", "without a shape, such as a sequence or a map, cannot be a layer"),
        ("rows", r"of shape \(256, 8\) \(256 rows for a batch of 1\)"),
    ],
)
def test_a_tensor_that_has_no_codes_is_told_from_one_that_is_not_there(
    name: str, reason: str, plain: Preprocessing, tmp_path: Path
) -> None:
    net = networks.Net()
    x = trunk(net)
    net.op("Shape", x, out="size")
    net.op("SplitToSequence", "stem", out="parts")
    rows = net.op("Transpose", "stem", perm=[0, 2, 3, 1])
    net.op("Reshape", rows, net.constant(np.array([-1, 8])), out="rows")
    x = net.op("Add", x, net.constant(np.zeros(12, np.float32), "bias"))
    branch = helper.make_graph(
        [helper.make_node("Relu", [x], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    yes = net.constant(np.array(True))
    x = net.op("If", yes, then_branch=branch, else_branch=branch)
    path = networks.save(net.model(net.dense(x, 12, 10)), tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, layer=name, preprocessing=plain)
    with pytest.raises(LayerError, match=f"{name!r} {reason}"):
        transformer.fit([np.zeros((SIDE, SIDE, 3), np.uint8)])
