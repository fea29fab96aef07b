"""Configurations published with well-known models."""

from __future__ import annotations

import pytest

from sk_cnncodes import Preprocessing, PreprocessingError
from sk_cnncodes.images.preprocessing_formats import (
    read_huggingface,
    read_timm,
)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
VIT = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": 224,
}
DINOV2 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "BitImageProcessor",
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
CONVNEXT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": 224,
}
MOBILEVIT = {
    "crop_size": {"height": 256, "width": 256},
    "do_center_crop": True,
    "do_flip_channel_order": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 288},
}
DEIT = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DeiTFeatureExtractor",
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": 256,
}
LEVIT = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "LevitFeatureExtractor",
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": {"shortest_edge": 224},
}


def hf(**values) -> Preprocessing:
    base = {"crop_size": (224, 224), "rounding": "huggingface", "scale": 1 / 255}
    return Preprocessing(**(base | values))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (VIT, hf(resize="exact", mean=(0.5,) * 3, std=(0.5,) * 3)),
        (
            DINOV2,
            hf(
                resize_size=256,
                interpolation="bicubic",
                mean=tuple(MEAN),
                std=tuple(STD),
            ),
        ),
        (
            CONVNEXT,
            hf(
                resize_size=256,
                interpolation="bicubic",
                mean=tuple(MEAN),
                std=tuple(STD),
            ),
        ),
        (MOBILEVIT, hf(crop_size=(256, 256), resize_size=288, channels="BGR")),
        (
            # As written by transformers 5, with a mean that it does not use.
            MOBILEVIT
            | {"image_mean": MEAN, "image_std": STD}
            | {"image_processor_type": "MobileViTImageProcessor"},
            hf(crop_size=(256, 256), resize_size=288, channels="BGR"),
        ),
        (
            LEVIT,
            hf(
                resize_size=256,  # 224 * 256 / 224
                interpolation="bicubic",
                mean=tuple(MEAN),
                std=tuple(STD),
            ),
        ),
        (
            DEIT,
            hf(
                resize="squash",
                resize_size=256,
                interpolation="bicubic",
                mean=tuple(MEAN),
                std=tuple(STD),
            ),
        ),
    ],
    ids=["vit", "dinov2", "convnext", "mobilevit", "mobilevit 5", "levit", "deit"],
)
def test_huggingface(config: dict, expected: Preprocessing) -> None:
    assert read_huggingface(config) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"do_grayscale": True}, "do_grayscale"),
        ({"keep_aspect_ratio": True}, "keep_aspect_ratio"),
        ({"offset": True}, "offset"),  # ViViT: scales to [-1, 1]
        ({"image_processor_type": "PerceiverImageProcessor"}, "crops before"),
        ({"size": {"longest_edge": 4}}, "expected a size"),
        ({"image_processor_type": "Other", "size": 256}, "'Other' is unknown"),
        ({"do_center_crop": False}, "does not crop"),
        ({"image_std": STD[:1]}, "std: expected 3"),
    ],
)
def test_unsupported_huggingface(change: dict, message: str) -> None:
    with pytest.raises(PreprocessingError, match=message):
        read_huggingface(DINOV2 | change)


TIMM = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": MEAN,
        "std": STD,
        "num_classes": 1000,
    },
}


def test_timm() -> None:
    record = read_timm(TIMM)
    assert record == Preprocessing(
        crop_size=(224, 224),
        resize_size=235,  # floor(224 / 0.95), as timm computes it
        interpolation="bicubic",
        scale=1 / 255,
        mean=tuple(MEAN),
        std=tuple(STD),
    )
    squash = TIMM["pretrained_cfg"] | {"crop_mode": "squash", "crop_pct": 1.0}
    assert read_timm(squash).resized_size(480, 640) == (224, 224)


def test_unsupported_timm() -> None:
    with pytest.raises(PreprocessingError, match="crop_mode.*'border'"):
        read_timm(TIMM["pretrained_cfg"] | {"crop_mode": "border"})
    with pytest.raises(PreprocessingError, match="'std'"):
        read_timm({"input_size": [3, 4, 4], "mean": MEAN})
