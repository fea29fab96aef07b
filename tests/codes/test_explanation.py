"""`CNNCodeTransformer.explain` and the `Explanation` that it returns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.exceptions import NotFittedError

from sk_cnncodes import (
    CNNCodeTransformer,
    ImageError,
    ImageNotFoundError,
    Preprocessing,
    load_backbone,
)
from tests import networks


def turned_photograph(photographs: list[np.ndarray], path: Path) -> Image.Image:
    """Save a 12-megapixel JPEG with orientation 6; return the upright image."""
    upright = Image.fromarray(photographs[0]).resize((3000, 4000))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=90)
    return upright


def test_a_turned_photograph_of_12_megapixels(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "IMG_0001.jpg"
    upright = turned_photograph(photographs, path)
    transformer = CNNCodeTransformer(cache=None)
    found = transformer.explain(path)
    assert found.source == repr(str(path))
    assert (found.format, found.size) == ("JPEG RGB", (3000, 4000))
    assert (found.orientation, found.decode_scale) == (6, 8)
    assert found.decoded_size == (500, 375)
    assert found.resized_size == (154, 116)
    assert found.crop_corner == (19, 0)
    expected = load_backbone("cnncodes-mini").preprocessing.apply(upright)
    assert found.crop.shape == (116, 116, 3)
    assert np.abs(found.crop.astype(int) - expected).mean() < 3  # the same picture
    np.testing.assert_array_equal(found.code, transformer.transform([path])[0])
    assert found.from_cache is None
    text = repr(found)
    for part in (
        str(path),
        "JPEG RGB, 4000 x 3000 pixels",
        "turned by 90 degrees clockwise (EXIF orientation 6), at 1/8 of its size: "
        "375 x 500",
        "shorter side to 116 (torchvision rounding): 116 x 154, bilinear",
        "116 x 116 at left 0, top 19; values ",
        "the file's metadata 'sk_cnncodes.preprocessing'",
        "cnncodes-mini, ",
        load_backbone("cnncodes-mini").sha256,
        "layer      -1, '/codes/Concat_output_0' (800,), codes: ",
        "pooled     flatten, norm None",
        "in float32 by onnxruntime on cpu (CPUExecutionProvider); no cache",
        "800 values from ",
    ):
        assert part in text, text


def test_the_input_of_the_network_can_be_saved(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    found = CNNCodeTransformer(views="flip").explain(photographs[0])
    assert found.crops.shape == (2, 116, 116, 3)
    np.testing.assert_array_equal(found.crops[1], found.crop[:, ::-1])
    assert "; 2 views (flip)" in repr(found)
    assert "flatten, average of 2 views, norm None" in repr(found)
    found.save(tmp_path / "seen.png")
    saved = np.asarray(Image.open(tmp_path / "seen.png"))
    np.testing.assert_array_equal(saved, np.concatenate(found.crops, axis=1))


def test_a_16_bit_png(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    found = CNNCodeTransformer().explain(tmp_path / "deep.png")
    assert (found.format, found.size) == ("PNG I;16", (40, 60))
    assert (found.orientation, found.decode_scale) == (1, 1)
    assert (found.crop.min(), found.crop.max()) >= (0, 128)  # the high bytes
    assert "PNG I;16, 60 x 40 pixels" in repr(found)
    assert "60 x 40, high 8 bits of gray" in repr(found)


def test_an_array_and_bytes_and_a_pil_image(photographs: list[np.ndarray]) -> None:
    transformer = CNNCodeTransformer()
    found = transformer.explain(photographs[0])
    height, width, _ = photographs[0].shape
    assert (found.format, found.size) == ("array of uint8", (height, width))
    assert found.source.startswith("array of shape")
    file = io.BytesIO()
    Image.fromarray(photographs[0]).save(file, "PNG")
    assert transformer.explain(file.getvalue()).source == f"{file.tell()} bytes"
    pil = transformer.explain(Image.fromarray(photographs[0]))
    assert (pil.format, pil.size) == ("PIL image RGB", (height, width))
    np.testing.assert_array_equal(pil.code, found.code)


def test_a_url_is_not_fetched() -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        CNNCodeTransformer().explain("https://example.org/photo.jpg")
    message = str(caught.value)
    assert message.startswith("image 0 ('https://example.org/photo.jpg'): a URL")
    assert "which is not downloaded" in message
    assert "Expected the path of an image" in message


def test_a_bad_image_is_an_error_regardless_of_on_error() -> None:
    with pytest.raises(ImageError, match="image 0"):
        CNNCodeTransformer(on_error="nan").explain(b"no image")


def test_whether_the_code_was_in_the_cache(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    transformer = CNNCodeTransformer(cache=tmp_path / "codes.sqlite3")
    first, second = (transformer.explain(photographs[0]) for _ in range(2))
    assert (first.from_cache, second.from_cache) == (False, True)
    np.testing.assert_array_equal(first.code, second.code)
    assert "was not in the cache" in repr(first)
    assert "before; from the cache. Here it would be in float32 by" in repr(second)
    assert (first.provider, second.provider) == ("CPUExecutionProvider", None)
    assert first.image_sha256 == second.image_sha256


def test_where_the_preprocessing_and_the_layer_came_from(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    net = networks.save(networks.resnet(), tmp_path / "net.onnx")
    given = CNNCodeTransformer(net, preprocessing=plain, layer="stem")
    found = given.fit(photographs).explain(photographs[0])
    assert found.preprocessing_origin == "the parameter preprocessing"
    assert (found.layer, found.layer_shape) == ("stem", (8, 16, 16))
    assert given.fitted_backbone_["preprocessing_origin"] == found.preprocessing_origin
    assert given.fitted_backbone_["layer"] == "stem"
    assert given.fitted_backbone_["layer_rule"] == found.layer_rule
    config = tmp_path / "preprocessor_config.json"
    config.write_text('{"size": 32, "image_processor_type": "ViTImageProcessor"}')
    beside = load_backbone(net)
    assert beside.preprocessing_origin == repr(str(config))
    assert load_backbone("cnncodes-mini").preprocessing_origin == (
        "the file's metadata 'sk_cnncodes.preprocessing'"
    )


def test_a_catalogue_row_states_the_preprocessing(shared: Path) -> None:
    backbone = load_backbone(shared / "backbones" / "squeezenet1.1.onnx")
    assert backbone.preprocessing_origin == "the catalogue's row 'squeezenet1.1'"


def test_explain_with_a_stored_backbone(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    net = Path(networks.save(networks.resnet(), tmp_path / "net.onnx"))
    fitted = CNNCodeTransformer(net, preprocessing=plain, store_backbone=True)
    before = fitted.fit(photographs).explain(photographs[0])
    joblib.dump(fitted, tmp_path / "codes.joblib")
    net.unlink()
    found = joblib.load(tmp_path / "codes.joblib").explain(photographs[0])
    np.testing.assert_array_equal(found.code, before.code)
    assert found.preprocessing_origin == before.preprocessing_origin
    assert found.layer_rule == before.layer_rule
    assert "saved model" in repr(found)


def test_names_of_features_need_no_file_after_fit(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    net = Path(networks.save(networks.resnet(), tmp_path / "net.onnx"))
    fitted = CNNCodeTransformer(net, preprocessing=plain).fit(photographs)
    names = fitted.get_feature_names_out()
    assert names[[0, -1]].tolist() == ["cnncodetransformer0", "cnncodetransformer15"]
    net.unlink()
    np.testing.assert_array_equal(fitted.get_feature_names_out(), names)
    saved = joblib.hash(fitted)  # pickles, without the file
    assert saved
    # Another layer may have another length.
    with pytest.raises(NotFittedError, match="its current parameters"):
        fitted.set_params(layer="stem").get_feature_names_out()


@pytest.mark.parametrize(
    ("image", "conversion"),
    [
        (np.zeros((9, 9), np.float32), "floats times 255, gray to RGB"),
        (np.zeros((9, 9, 4), np.uint8), "composited over white"),
        (Image.new("CMYK", (9, 9)), "CMYK to RGB"),
        (Image.new("RGBA", (9, 9)), "composited over white"),
        (Image.new("RGB", (9, 9)), "none"),
    ],
)
def test_how_values_became_rgb(image: Any, conversion: str) -> None:
    found = CNNCodeTransformer().explain(image)
    assert found.conversion == conversion
    assert (conversion in repr(found)) == (conversion != "none")


@pytest.mark.parametrize(
    ("values", "resized", "cropped"),
    [
        ({"resize": "exact"}, "as a whole, to 64 x 32, bilinear", "64 x 32; values"),
        (
            {"resize": "none"},
            "not at all: 9 x 5",
            "64 x 32 at left -27, top -13, padded",
        ),
        (
            {"resize": "squash", "resize_size": 99, "interpolation": "bicubic"},
            "both sides, to 99 x 99, bicubic",
            "64 x 32 at left 18, top 34; values",
        ),
        (
            {"resize_size": 40, "rounding": "huggingface"},
            "shorter side to 40 (huggingface rounding): 72 x 40, bilinear",
            "64 x 32 at left 4, top 4; values",
        ),
    ],
)
def test_how_it_was_resized(
    values: dict[str, Any], resized: str, cropped: str, tmp_path: Path
) -> None:
    net = networks.save(networks.resnet(), tmp_path / "net.onnx")
    model = onnx.load(net)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    onnx.save(model, net)
    preprocessing = Preprocessing(crop_size=(32, 64), **values)
    transformer = CNNCodeTransformer(net, preprocessing=preprocessing)
    text = repr(transformer.explain(np.zeros((5, 9, 3), np.uint8)))
    assert f"resized    {resized}\n" in text
    assert f"cropped    {cropped}" in text


def test_a_fitted_transformer_keeps_its_tensor(
    photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    """A newer version may give a number to another tensor."""
    net = networks.save(networks.resnet(), tmp_path / "net.onnx")
    fitted = CNNCodeTransformer(net, preprocessing=plain, layer=-2).fit(photographs)
    (layer,) = [
        each for each in load_backbone(net, plain).layers if each.position == -3
    ]
    fitted.fitted_backbone_["layer"] = layer.name  # what an older one called -2
    expected = CNNCodeTransformer(net, preprocessing=plain, layer=-3)
    np.testing.assert_array_equal(
        fitted.transform(photographs), expected.transform(photographs)
    )
    # A parameter that is set counts.
    fitted.set_params(layer=-1)
    assert fitted.explain(photographs[0]).layer_position == -1
