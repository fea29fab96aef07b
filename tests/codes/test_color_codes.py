"""Codes of images with colour profiles: caches, explanations, saved models."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sk_cnncodes import (
    CNNCodeTransformer,
    CodeCache,
    OnnxClassifier,
    Preprocessing,
    to_onnx,
)
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.codes.calibration import preprocessing_json
from tests import networks
from tests.images import profiles

ADOBE = profiles.rgb_profile("Adobe RGB", profiles.ADOBE_RGB, 2.2)
P3 = profiles.rgb_profile("Display P3", profiles.DISPLAY_P3, 2.2)


@pytest.fixture
def net(tmp_path: Path) -> str:
    return str(networks.save(networks.resnet(), tmp_path / "net.onnx"))


def in_srgb(pixels: np.ndarray, colorants: np.ndarray) -> np.ndarray:
    return np.rint(profiles.rgb_in_srgb(pixels, colorants, 2.2)).astype(np.uint8)


def file_of(pixels: np.ndarray, profile: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", icc_profile=profile)
    return file.getvalue()


def test_codes_are_those_of_the_converted_image(
    net: str, plain: Preprocessing, photographs: list[np.ndarray]
) -> None:
    pixels = photographs[5]  # flowers
    file = file_of(pixels, ADOBE)
    converted = replace(plain, color="srgb")
    given = CNNCodeTransformer(net, preprocessing=converted, cache=None)
    expected, ignored = (
        CNNCodeTransformer(net, preprocessing=plain, cache=None).fit_transform([each])
        for each in (in_srgb(pixels, profiles.ADOBE_RGB), pixels)
    )
    found = given.fit_transform([file])
    assert np.abs(found - expected).max() < 0.1 * np.abs(ignored - expected).max()
    explained = given.explain(file)
    assert "ICC profile 'Adobe RGB' to sRGB" in str(explained)
    np.testing.assert_array_equal(explained.code, found[0])
    default = CNNCodeTransformer(net, preprocessing=plain, cache=None).fit([file])
    assert "ICC profile ignored" in str(default.explain(file))
    np.testing.assert_array_equal(default.transform([file]), ignored)


def test_pil_images_of_equal_pixels_keep_their_own_rows(
    net: str, plain: Preprocessing, photographs: list[np.ndarray]
) -> None:
    images = [Image.fromarray(photographs[0]) for _ in range(3)]
    images[0].info["icc_profile"], images[1].info["icc_profile"] = ADOBE, P3
    cache = CodeCache()
    for color in ("ignore", "srgb", "srgb", "ignore"):
        values = replace(plain, color=color)
        cached = CNNCodeTransformer(net, preprocessing=values, cache=cache)
        alone = CNNCodeTransformer(net, preprocessing=values, cache=None)
        rows = cached.fit_transform(images)
        np.testing.assert_array_equal(rows, alone.fit_transform(images))
        assert len(np.unique(rows, axis=0)) == (3 if color == "srgb" else 1)


def test_saved_and_exported_models_convert_too(
    net: str, plain: Preprocessing, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    files = [file_of(pixels, ADOBE) for pixels in photographs]
    y = np.arange(len(files)) % 2
    values = replace(plain, color="srgb")
    pipeline = make_pipeline(
        CNNCodeTransformer(net, preprocessing=values, store_backbone=True),
        LogisticRegression(),
    ).fit(files, y)
    expected = pipeline.predict_proba(files)
    joblib.dump(pipeline, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(files), expected)
    to_onnx(pipeline, tmp_path / "model.onnx")
    exported = OnnxClassifier(tmp_path / "model.onnx")
    assert exported.preprocessing == values
    np.testing.assert_allclose(exported.predict_proba(files), expected, atol=1e-5)


def test_digests_and_files_of_other_specs_stay_the_same() -> None:
    """As they were before there was a choice of colours or antialiasing."""
    imagenet = Preprocessing(
        crop_size=(224, 224),
        resize_size=256,
        scale=1 / 255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    spec = CodeSpec("0" * 64, "fc7", "avg", "l2", imagenet)
    assert spec.digest == (
        "930f6c08388907e6535e86050b1902d8f2f9a0a809dad86d7c6e393c227c730a"
    )
    assert imagenet.to_dict().keys() & {"color", "antialias"} == set()
    assert "color" not in preprocessing_json(imagenet)
    changed = [
        replace(imagenet, color="srgb"),
        replace(imagenet, antialias=False),
        replace(imagenet, resize="crop_to_aspect_ratio", resize_size=None),
    ]
    digests = {replace(spec, preprocessing=values).digest for values in changed}
    assert len(digests | {spec.digest}) == 4
    for values in changed:
        assert Preprocessing.from_dict(values.to_dict()) == values
        assert Preprocessing.from_metadata(values.to_metadata()) == values
