"""Files without a classifier: feature pyramids, dense predictors, embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sk_cnncodes import CNNCodeTransformer, Preprocessing, load_backbone
from sk_cnncodes.backbones.backbone import Backbone
from tests import networks
from tests.conftest import prepared, run_tensor
from tests.layers.test_blocks import norm, tokens


def load(
    net: networks.Net, outputs: str | list[str], folder: Path, plain: Preprocessing
) -> Backbone:
    return load_backbone(networks.save(net.model(outputs), folder / "net.onnx"), plain)


def names(backbone: Backbone) -> list[str]:
    return [layer.name for layer in backbone.layers]


def integers(net: networks.Net, *values: int) -> str:
    return net.constant(np.array(values, np.int64))


def block(net: networks.Net, x: str, c_in: int, c_out: int, out: str) -> str:
    """A residual block that halves the resolution."""
    y = net.op("Relu", net.conv(x, c_in, c_out, strides=[2, 2]))
    short = net.conv(x, c_in, c_out, 1, strides=[2, 2])
    y = net.op("Add", net.conv(y, c_out, c_out), short)
    return net.op("Relu", y, out=out)


def backbone_maps(net: networks.Net) -> list[str]:
    """A stem and three stages: 16 x 16, 8 x 8, 4 x 4, 2 x 2."""
    stem = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    maps = [block(net, stem, 8, 16, "c3")]
    maps.append(block(net, maps[-1], 16, 32, "c4"))
    maps.append(block(net, maps[-1], 32, 64, "c5"))
    return maps


def upsampled(net: networks.Net, x: str, factor: int = 2) -> str:
    scales = net.constant(np.array([1, 1, factor, factor], np.float32))
    return net.op("Resize", x, "", scales, mode="nearest")


def top_down(net: networks.Net, maps: list[str], width: int) -> list[str]:
    """The lateral convolutions and sums of a feature pyramid network, coarsest last."""
    lateral = [
        net.conv(x, c_in, width, 1) for x, c_in in zip(maps, (16, 32, 64), strict=True)
    ]
    found = [lateral[-1]]
    for x in reversed(lateral[:-1]):
        found.insert(0, net.op("Add", x, upsampled(net, found[0])))
    return found


# -- features ------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_the_deepest_map_of_a_pyramid(
    order: int, tmp_path: Path, plain: Preprocessing
) -> None:
    """All outputs are numbered, and the blocks between them, in any order."""
    net = networks.Net()
    c3, _, c5 = backbone_maps(net)
    assert names(load(net, [c3, c5][::order], tmp_path, plain)) == [
        *("stem", "c3", "c4", "c5")
    ]


def test_codes_of_a_pyramid(
    photographs: list[np.ndarray], tmp_path: Path, plain: Preprocessing
) -> None:
    net = networks.Net()
    model = net.model(backbone_maps(net))
    path = networks.save(model, tmp_path / "net.onnx")
    codes = CNNCodeTransformer(path, preprocessing=plain).fit_transform(photographs)
    expected = run_tensor(model, "c5", prepared(photographs, plain), plain)
    np.testing.assert_allclose(codes, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_real_pyramid(shared: Path, tmp_path: Path) -> None:
    """On Caltech-20, concat7 gives 96.8% and the first output 67.2%."""
    model = onnx.load(shared / "backbones" / "squeezenet1.1.onnx")
    model.graph.ClearField("output")
    wanted = [f"squeezenet0_concat{number}" for number in (1, 3, 7)]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    path = networks.save(model, tmp_path / "net.onnx")
    assert names(load_backbone(path, Preprocessing(crop_size=224)))[1:] == [
        f"squeezenet0_concat{number}" for number in range(8)
    ]


def test_outputs_that_are_not_on_the_way_to_the_deepest(
    tmp_path: Path, plain: Preprocessing
) -> None:
    """A feature pyramid network, whose coarsest output is computed first."""
    net = networks.Net()
    pyramid = top_down(net, backbone_maps(net), 32)
    outputs = [
        net.conv(x, 32, 32, out=f"p{number}") for number, x in enumerate(pyramid, 3)
    ]
    found = names(load(net, outputs, tmp_path, plain))
    assert found[-1] == "p5"
    assert {"p3", "p4", "c3", "c4", "c5"} < set(found)


def test_features_of_a_network_that_upsamples_inside(
    tmp_path: Path, plain: Preprocessing
) -> None:
    """HRNet exchanges resolutions, and ends with the coarsest."""
    net = networks.Net()
    c3, c4, _ = backbone_maps(net)
    fine = net.op("Add", c3, upsampled(net, net.conv(c4, 32, 16, 1)))
    coarse = net.op("Add", c4, net.conv(fine, 16, 32, strides=[2, 2]))
    out = net.op("Relu", net.conv(coarse, 32, 64), out="out")
    assert names(load(net, out, tmp_path, plain))[-1] == "out"


def test_hidden_states(tmp_path: Path, plain: Preprocessing) -> None:
    """A transformer that also gives the output of each block."""
    net = networks.Net()
    x, states = tokens(net), []
    for number in range(3):
        y = net.linear(net.op("Relu", net.linear(norm(net, x), 8, 24)), 24, 8)
        x = net.op("Add", x, y, out=f"hidden_states.{number}")
        states.append(x)
    last = net.op("Identity", norm(net, x), out="last_hidden_state")
    states.append(net.op("Identity", states[-1], out="copy"))
    found = names(load(net, [last, *states], tmp_path, plain))
    assert load_backbone(tmp_path / "net.onnx", plain).layers[-1].kind == "tokens"
    assert found[-3:-1] == ["hidden_states.0", "hidden_states.1"]


# -- predictions at many positions -----------------------------------------------


def detector(net: networks.Net, reshape: bool) -> list[str]:
    """A pyramid with one class and one box head per resolution, as NanoDet."""
    outputs = []
    for x in top_down(net, backbone_maps(net), 12):
        for width in (10, 4):
            head = net.conv(x, 12, width, 1)
            if reshape:
                head = net.op("Reshape", head, integers(net, 0, width, -1))
                head = net.op("Transpose", head, perm=[0, 2, 1])
            outputs.append(head)
    return outputs


def joined_detector(net: networks.Net) -> list[str]:
    """All positions of all resolutions in one output, as YOLO."""
    outputs = detector(net, reshape=True)
    scores, boxes = (net.op("Concat", *outputs[start::2], axis=1) for start in (0, 1))
    return [net.op("Concat", boxes, net.op("Sigmoid", scores), axis=2)]


def one_head_per_resolution(net: networks.Net) -> list[str]:
    """Raw maps of boxes and classes in one tensor, as YOLOv3."""
    pyramid = top_down(net, backbone_maps(net), 12)
    return [net.conv(x, 12, 40, 1) for x in pyramid]


def segmenter(net: networks.Net) -> list[str]:
    """A decoder that reads all stages, as U-Net."""
    c3, c4, c5 = backbone_maps(net)
    x = net.op("Concat", upsampled(net, c5), c4, axis=1)
    x = net.op("Relu", net.conv(x, 96, 32))
    x = net.op("Concat", upsampled(net, x), c3, axis=1)
    return [upsampled(net, net.conv(net.op("Relu", net.conv(x, 48, 16)), 16, 8, 1))]


def labels_of_pixels(net: networks.Net) -> list[str]:
    x = net.conv(backbone_maps(net)[-1], 64, 21, 1)
    return [net.op("ArgMax", upsampled(net, x, 16), axis=1, keepdims=0, out="labels")]


def detector_without_batch(net: networks.Net) -> list[str]:
    """Rows are positions: a batch of one image has been squeezed away."""
    x = net.conv(upsampled(net, net.conv(backbone_maps(net)[-1], 64, 12, 1)), 12, 10)
    x = net.op("Reshape", x, integers(net, 10, -1))
    return [net.op("Transpose", x, perm=[1, 0])]


def selected_boxes(net: networks.Net) -> list[str]:
    boxes, scores = detector(net, reshape=True)[1::-1]
    best = net.op("ReduceMax", net.op("Sigmoid", scores), axes=[2], keepdims=0)
    net.nodes.append(
        helper.make_node("TopK", [best, integers(net, 5)], ["highest", "which"])
    )
    which = net.op("Unsqueeze", "which", integers(net, 2))
    which = net.op("Expand", which, integers(net, 1, 5, 4))
    return [net.op("GatherElements", boxes, which, axis=1), "highest"]


def scores_of_positions(net: networks.Net) -> list[str]:
    """One score for each position looks like one score for each class."""
    pyramid = top_down(net, backbone_maps(net), 12)
    heads = [net.conv(x, 12, 1, 1) for x in pyramid]
    return [net.op("Flatten", net.op("Sigmoid", x), axis=1) for x in heads]


DENSE = [
    lambda net: detector(net, reshape=False),
    lambda net: detector(net, reshape=True),
    joined_detector,
    one_head_per_resolution,
    segmenter,
    labels_of_pixels,
    detector_without_batch,
    selected_boxes,
    scores_of_positions,
]


@pytest.mark.parametrize("number", range(len(DENSE)))
def test_dense_predictors_are_cut_where_their_backbone_ends(
    number: int, tmp_path: Path, plain: Preprocessing
) -> None:
    net = networks.Net()
    model = net.model(DENSE[number](net))
    for value in model.graph.output:
        if value.name == "labels":
            value.type.tensor_type.elem_type = TensorProto.INT64
    backbone = load_backbone(networks.save(model, tmp_path / "net.onnx"), plain)
    assert names(backbone) == ["stem", "c3", "c4", "c5"]
    assert "widest" in backbone.layers[-1].rule


@pytest.mark.parametrize("probabilities", [True, False])
def test_the_last_head_of_a_detector_without_a_neck(
    probabilities: bool, tmp_path: Path, plain: Preprocessing
) -> None:
    """SSD: heads at each resolution of the backbone."""
    net = networks.Net()
    heads = []
    for x, width in zip(backbone_maps(net), (16, 32, 64), strict=True):
        head = net.op("Transpose", net.conv(x, width, 16), perm=[0, 2, 3, 1])
        heads.append(net.op("Reshape", head, integers(net, 0, -1, 8)))
    scores = net.op("Concat", *heads, axis=1)
    if probabilities:
        scores = net.op("Softmax", scores, axis=2)
    found = names(load(net, scores, tmp_path, plain))
    assert found == ["stem", "c3", "c4", "c5"]


def test_what_the_head_of_a_text_recogniser_reads(
    tmp_path: Path, plain: Preprocessing
) -> None:
    """Characters along a line: the head reads the columns of the last map."""
    net = networks.Net()
    x = net.op("ReduceMean", backbone_maps(net)[-1], axes=[2], keepdims=0)
    x = net.op("Transpose", x, perm=[0, 2, 1], out="columns")
    characters = net.op("Softmax", net.linear(x, 64, 96), axis=-1)
    backbone = load(net, characters, tmp_path, plain)
    assert names(backbone)[-2:] == ["c4", "columns"]
    assert backbone.layers[-1].shape == (2, 64)


def test_a_neck_after_a_plain_chain(tmp_path: Path, plain: Preprocessing) -> None:
    """Nothing but convolutions: the widest map, before the lateral convolution."""
    net = networks.Net()
    fine = net.op("Relu", net.conv("data", 3, 16, strides=[4, 4]), out="fine")
    x = net.op("Relu", net.conv(fine, 16, 32, strides=[2, 2]))
    x = net.op("Relu", net.conv(x, 32, 32), out="wide")
    lateral = [net.conv(x, 32, 12, 1), net.conv(fine, 16, 12, 1)]
    x = net.op("Add", upsampled(net, lateral[0]), lateral[1])
    out = net.op("Sigmoid", net.conv(upsampled(net, x), 12, 1))
    assert names(load(net, out, tmp_path, plain))[-1] == "wide"


def test_a_neck_after_an_inverted_bottleneck(
    tmp_path: Path, plain: Preprocessing
) -> None:
    """The narrow end of the last bottleneck; a lateral convolution is no such end."""
    net = networks.Net()
    fine = net.op("Relu", net.conv("data", 3, 8, strides=[4, 4]), out="fine")
    x = net.op("Relu", net.conv(fine, 8, 32, 1))
    narrow = net.conv(net.conv_depthwise(x, 32), 32, 16, 1, out="narrow")
    wide = net.op("Relu", net.conv(narrow, 16, 64, 1), out="wide")
    for number, (x, width) in enumerate([(narrow, 16), (wide, 64)]):
        out = upsampled(net, net.conv(x, width, 12, 1))
        out = net.op("Sigmoid", net.op("Add", out, net.conv(fine, 8, 12, 1)))
        found = names(load(net, out, tmp_path, plain))
        assert found[-1] == ("narrow", "wide")[number]


def test_outputs_of_a_dense_predictor_by_name(
    photographs: list[np.ndarray], tmp_path: Path, plain: Preprocessing
) -> None:
    net = networks.Net()
    model = net.model(net.op("Identity", segmenter(net)[0], out="mask"))
    path = networks.save(model, tmp_path / "net.onnx")
    transformer = CNNCodeTransformer(path, layer="mask", preprocessing=plain)
    assert transformer.fit_transform(photographs).shape == (8, 8)


# -- embeddings -------------------------------------------------------------------


def vision_tower(net: networks.Net) -> str:
    """Tokens after two blocks and a normalisation: last_hidden_state."""
    x = tokens(net)
    for number in range(2):
        y = net.linear(net.op("Relu", net.linear(norm(net, x), 8, 24)), 24, 8)
        x = net.op("Add", x, y, out=f"block{number}")
    ones = net.constant(np.ones(8, np.float32))
    return net.op("LayerNormalization", x, ones, axis=-1, out="last_hidden_state")


def first_token(net: networks.Net, x: str, out: str | None = None) -> str:
    return net.op("Gather", x, net.constant(np.array(0, np.int64)), axis=1, out=out)


def attention_pool(net: networks.Net, x: str, out: str) -> str:
    """SigLIP's head: a learned query, and a residual MLP."""
    key, value = net.linear(x, 8, 8), net.linear(x, 8, 8)
    product = net.op(
        "MatMul", net.weight(1, 1, 8), net.op("Transpose", key, perm=[0, 2, 1])
    )
    x = net.op("MatMul", net.op("Softmax", product, axis=-1), value)
    x = net.linear(x, 8, 8)
    y = net.linear(net.op("Gelu", net.linear(norm(net, x), 8, 24)), 24, 8)
    return first_token(net, net.op("Add", x, y), out)


def test_pooled_embedding_of_a_vision_tower(
    photographs: list[np.ndarray], tmp_path: Path, plain: Preprocessing
) -> None:
    """SigLIP: pooler_output is what get_image_features returns."""
    net = networks.Net()
    x = vision_tower(net)
    pooled = attention_pool(net, x, "pooler_output")
    model = net.model([x, pooled], opset=20)
    path = networks.save(model, tmp_path / "net.onnx")
    assert "last_hidden_state" in names(load_backbone(path, plain))
    pixels = prepared(photographs, plain)
    transformer = CNNCodeTransformer(path, norm=None, preprocessing=plain)
    expected = run_tensor(model, "pooler_output", pixels, plain)
    np.testing.assert_allclose(
        transformer.fit_transform(photographs), expected, rtol=1e-4, atol=1e-5
    )
    means = transformer.set_params(layer="last_hidden_state", pooling="mean")
    expected = run_tensor(model, "last_hidden_state", pixels, plain).mean(1)
    np.testing.assert_allclose(
        means.fit_transform(photographs), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "width", "bias", "expected"),
    [
        ("image_embeds", 12, True, "image_embeds"),
        ("output", 32, False, "output"),
        ("output", 32, True, "pooler_output"),
        ("output", 10, False, "pooler_output"),
    ],
)
def test_a_projection_is_not_a_classifier(
    name: str,
    width: int,
    bias: bool,
    expected: str,
    tmp_path: Path,
    plain: Preprocessing,
) -> None:
    """CLIP projects the class token: by its name, or without a bias to 32 n values."""
    net = networks.Net()
    x = first_token(net, vision_tower(net), "pooler_output")
    inputs = [x, net.weight(8, width), *([net.weight(width)] if bias else [])]
    output = net.op("Gemm", *inputs, out=name)
    backbone = load(net, [output, "last_hidden_state"], tmp_path, plain)
    is_classifier = expected == "pooler_output"
    assert ("input of the classifier" in backbone.layers[-1].rule) == is_classifier
    if not is_classifier:
        assert names(backbone)[-1] == expected
        assert "last_hidden_state" in names(backbone)


def test_the_pooler_of_bert_is_not_an_embedding(
    tmp_path: Path, plain: Preprocessing
) -> None:
    """ViTModel: classifiers read the class token before it."""
    net = networks.Net()
    x = vision_tower(net)
    pooled = net.dense(first_token(net, x), 8, 32)
    pooled = net.op("Tanh", pooled, out="pooler_output")
    layers = load(net, [x, pooled], tmp_path, plain).layers
    assert layers[-1].kind == "tokens"
    assert layers[-1].shape == (16, 8)
    assert "pooler_output" not in [layer.name for layer in layers]


def image_text_model(net: networks.Net, inputs: str) -> onnx.ModelProto:
    """Scores alone of images against texts; the image features are transposed."""
    x = net.dense(first_token(net, vision_tower(net)), 8, 6)
    length = net.op("ReduceL2", x, axes=[1], keepdims=1)
    x = net.op("Div", x, length, out="embeds")
    shape = net.op("Cast", inputs, to=TensorProto.INT64)
    words = net.op("Reshape", net.op("Gather", net.weight(50, 6), inputs), shape)
    scores = net.op("MatMul", words, net.op("Transpose", x, perm=[1, 0]))
    scores = net.op("Transpose", net.op("Exp", scores), perm=[1, 0])
    model = net.model(scores)
    value = helper.make_tensor_value_info(inputs, TensorProto.INT64, [2])
    model.graph.input.append(value)
    return model


def test_scores_of_images_against_texts(tmp_path: Path, plain: Preprocessing) -> None:
    """No output depends on the image alone, and no run shows the shape of any."""
    model = image_text_model(networks.Net(), "words")
    path = networks.save(model, tmp_path / "net.onnx")
    layers = load_backbone(path, plain).layers
    assert [layer.name for layer in layers][-1] == "embeds"
    # The projection before the division by its length gives the same code.
    assert layers[-2].n_channels == 8


def test_a_subsampled_copy_is_not_the_deepest_output(
    tmp_path: Path, plain: Preprocessing
) -> None:
    """torchvision's pyramids end with every second position of their last map."""
    net = networks.Net()
    c3, c4, _ = backbone_maps(net)
    pool = net.op("MaxPool", c4, kernel_shape=[1, 1], strides=[2, 2], out="pool")
    assert names(load(net, [c3, c4, pool], tmp_path, plain))[-1] == "c4"


def test_outputs_are_ordered_by_what_they_are_computed_from(
    tmp_path: Path, plain: Preprocessing
) -> None:
    """timm rearranges tokens to maps after the last block."""
    net = networks.Net()
    x, states = tokens(net), []
    for number in range(3):
        y = net.linear(net.op("Relu", net.linear(norm(net, x), 8, 24)), 24, 8)
        x = net.op("Add", x, y, out=f"block{number}")
        states.append(x)
    for number, state in enumerate(states):
        x = net.op("Transpose", norm(net, state), perm=[0, 2, 1])
        net.op("Reshape", x, integers(net, 0, 8, 4, 4), out=f"map{number}")
    found = names(load(net, ["map0", "map1", "map2"], tmp_path, plain))
    assert [name for name in found if name[:3] in ("blo", "map")] == [
        *("block0", "map0", "block1", "map1")
    ]
    assert load_backbone(tmp_path / "net.onnx", plain).layers[-1].shape == (16, 8)
