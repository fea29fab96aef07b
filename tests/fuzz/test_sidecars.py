"""Invalid values in the JSON files beside a backbone and in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from sk_cnncodes import PreprocessingError, load_backbone
from sk_cnncodes.images.preprocessing import METADATA_KEY
from tests import networks

ODD: list[Any] = [None, True, -1, 0, 1e308, float("nan"), 10**30, "x", [], [[]], {}]
ODD += [[1, 2], [0.5] * 3, ["a"] * 3, {"a": {}}, {"shortest_edge": "x"}]
ODD += [{"height": 10**9, "width": 1}, [10**9, 10**9], "é" * 10_000]
GOOD: dict[str, dict[str, Any]] = {
    "preprocessor_config.json": {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
        "do_resize": True,
        "do_center_crop": True,
        "crop_pct": None,
        "rescale_factor": 1 / 255,
        "image_processor_type": "ViTImageProcessor",
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": False,
    },
    "processor_config.json": {
        "image_processor": {
            "size": {"shortest_edge": 36},
            "image_processor_type": "CLIPImageProcessor",
        },
    },
    "config.json": {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_mode": "center",
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    },
    METADATA_KEY: {
        "crop_size": [32, 32],
        "resize": "shorter",
        "resize_size": 36,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "scale": 1.0,
        "channels": "RGB",
        "layout": "NCHW",
        "interpolation": "bilinear",
        "rounding": "nearest",
        "antialias": True,
        "color": "srgb",
    },
}


def write(folder: Path, where: str, text: str) -> Path:
    path = folder / "net.onnx"
    model = networks.resnet()
    if where == METADATA_KEY:
        onnx.helper.set_model_props(model, {METADATA_KEY: text})
    else:
        (folder / where).write_text(text)
    networks.save(model, path)
    return path


@pytest.mark.parametrize("where", GOOD)
def test_every_wrong_value_is_reported(where: str, tmp_path: Path) -> None:
    good = GOOD[where]
    assert load_backbone(write(tmp_path, where, json.dumps(good))).preprocessing
    refused = 0
    for key in good:
        for value in ODD:
            path = write(tmp_path, where, json.dumps(good | {key: value}))
            try:
                preprocessing = load_backbone(path).preprocessing
            except PreprocessingError as error:
                refused += 1
                assert str(tmp_path) in str(error) or METADATA_KEY in str(error)
            else:
                assert max(preprocessing.crop_size) < 10_000
    assert refused > len(good)


@pytest.mark.parametrize("where", GOOD)
@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "3", "null", '{"a": '])
def test_invalid_json_objects(where: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(PreprocessingError):
        load_backbone(write(tmp_path, where, text))
