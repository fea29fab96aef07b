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
    "feature_extractor_type": "ViTFeatureExtractor",
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
    "feature_extractor_type": "MobileViTFeatureExtractor",
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


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
IMAGENET = {"mean": tuple(MEAN), "std": tuple(STD)}
CLIP = {"resize_size": 224, "interpolation": "bicubic"} | {
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("CLIPImageProcessor", {}, hf(**CLIP)),
        ("CLIPImageProcessorFast", {"resample": None}, hf(**CLIP)),
        ("CLIPFeatureExtractor", {"size": 256}, hf(**(CLIP | {"resize_size": 256}))),
        ("BitImageProcessor", {}, hf(**CLIP)),
        ("ChineseCLIPImageProcessor", {}, hf(**CLIP)),
        ("LlavaImageProcessorFast", {}, hf(**CLIP)),
        ("ViTHybridImageProcessor", {}, hf(**CLIP)),
        (
            "CLIPImageProcessor",
            {"do_center_crop": False, "size": {"height": 336, "width": 336}},
            hf(
                crop_size=(336, 336),
                resize="exact",
                interpolation="bicubic",
                mean=CLIP_MEAN,
                std=CLIP_STD,
            ),
        ),
        ("ViTImageProcessor", {}, hf(resize="exact", **HALF)),
        (
            "ViTFeatureExtractor",
            {"size": 384},
            hf(crop_size=384, resize="exact", **HALF),
        ),
        (
            "SiglipImageProcessorPil",
            {},
            hf(resize="exact", interpolation="bicubic", **HALF),
        ),
        ("DINOv3ViTImageProcessorFast", {}, hf(resize="exact", **IMAGENET)),
        (
            "DeiTImageProcessor",
            {"image_mean": MEAN, "image_std": STD},
            hf(
                resize="squash",
                resize_size=(256, 256),
                interpolation="bicubic",
                **IMAGENET,
            ),
        ),
        (
            "EfficientFormerImageProcessor",
            {"size": 240},
            hf(
                resize="squash",
                resize_size=240,
                interpolation="bicubic",
                **IMAGENET,
            ),
        ),
        (
            "EfficientNetImageProcessor",
            {"resample": 3, "size": 300},
            hf(  # divides by the standard deviation twice
                crop_size=300,
                resize="exact",
                interpolation="bicubic",
                mean=(0.5,) * 3,
                std=(0.25,) * 3,
            ),
        ),
        (
            "EfficientNetImageProcessor",
            {"resample": 3, "size": 300, "include_top": False},
            hf(crop_size=300, resize="exact", interpolation="bicubic", **HALF),
        ),
        (
            "LevitFeatureExtractor",
            {},
            hf(resize_size=256, interpolation="bicubic", **IMAGENET),
        ),
        (
            "PoolFormerImageProcessor",  # 224 / 0.9
            {},
            hf(resize_size=248, interpolation="bicubic", **IMAGENET),
        ),
        (
            "PoolFormerImageProcessor",
            {"size": {"height": 384, "width": 384}, "crop_size": 384},
            hf(crop_size=384, resize_size=426, interpolation="bicubic", **IMAGENET),
        ),
        ("MobileNetV2ImageProcessor", {}, hf(resize_size=256, **HALF)),
        (
            "MobileViTImageProcessor",
            {"resample": 2},
            hf(crop_size=256, resize_size=224, channels="BGR"),
        ),
        (
            "BlipImageProcessor",
            {"image_mean": CLIP_MEAN, "image_std": CLIP_STD},
            hf(
                crop_size=384,
                resize="exact",
                interpolation="bicubic",
                mean=CLIP_MEAN,
                std=CLIP_STD,
            ),
        ),
        (
            "PvtImageProcessor",
            {"resample": 2},
            hf(resize="exact", **IMAGENET),
        ),
        (
            "SegformerImageProcessor",
            {},
            hf(crop_size=512, resize="exact", **IMAGENET),
        ),
        (
            "LayoutLMv2FeatureExtractor",
            {},
            Preprocessing(
                crop_size=224, resize="exact", rounding="huggingface", channels="BGR"
            ),
        ),
        (
            "ConvNextFeatureExtractor",  # crops although it has no crop_size
            {"size": 224, "resample": 3, "image_mean": MEAN, "image_std": STD},
            hf(resize_size=256, interpolation="bicubic", **IMAGENET),
        ),
        (
            "ConvNextImageProcessor",
            CONVNEXT | {"size": {"shortest_edge": 384}},
            hf(crop_size=384, resize="exact", interpolation="bicubic", **IMAGENET),
        ),
    ],
)
def test_missing_keys_have_the_defaults_of_their_class(
    name: str, given: dict, expected: Preprocessing
) -> None:
    config = {k: v for k, v in given.items() if k != "feature_extractor_type"}
    assert read_huggingface(config | {"image_processor_type": name}) == expected


def test_the_kind_of_model_stands_in_for_the_class() -> None:
    """As in the first files of Google's vision transformers."""
    bare = {k: v for k, v in VIT.items() if k != "feature_extractor_type"}
    assert read_huggingface(bare, "vit") == read_huggingface(VIT)
    assert read_huggingface(bare, "dinov2").interpolation == "bicubic"
    with pytest.raises(PreprocessingError, match="image_processor_type.*is missing"):
        read_huggingface(bare)
    with pytest.raises(PreprocessingError, match="image_processor_type.*is missing"):
        read_huggingface(bare, "other")


COMPLETE = DINOV2 | {"image_processor_type": "OtherImageProcessor"}


@pytest.mark.parametrize(
    "key",
    [
        *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
        *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    ],
)
def test_an_unknown_class_needs_every_key_that_decides(key: str) -> None:
    assert read_huggingface(COMPLETE) == read_huggingface(DINOV2)
    for left_out in (None, "absent"):
        config = COMPLETE | {key: None}
        if left_out:
            del config[key]
        with pytest.raises(
            PreprocessingError, match=f"{key} is missing.*'OtherImageProcessor' is not"
        ):
            read_huggingface(config)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("BeitImageProcessor", "do_center_crop"),
        ("BlipImageProcessor", "image_mean"),
        ("ConvNextImageProcessor", "resample"),
        ("DPTImageProcessor", "resample"),
        ("DeiTFeatureExtractor", "image_mean"),
        ("EfficientNetImageProcessor", "resample"),
        ("MobileViTImageProcessor", "resample"),
        ("PvtImageProcessor", "resample"),
    ],
)
def test_a_default_that_releases_disagree_about_is_not_guessed(
    name: str, key: str
) -> None:
    with pytest.raises(PreprocessingError, match=f"{key} is missing.*on the release"):
        read_huggingface({"image_processor_type": name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"do_grayscale": True}, "do_grayscale"),
        ({"keep_aspect_ratio": True}, "keep_aspect_ratio"),
        ({"offset": True}, "offset"),  # ViViT: scales to [-1, 1]
        ({"image_processor_type": "PerceiverImageProcessor"}, "crops before"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "patches"),
        ({"image_processor_type": "Owlv2ImageProcessorFast"}, "pads"),
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"size": {"longest_edge": 4}}, "expected a size"),
        ({"size": {"shortest_edge": 4, "longest_edge": 5}}, "expected a size"),
        ({"image_processor_type": "Other", "size": 256}, "'Other' is unknown"),
        ({"do_center_crop": False}, "does not crop"),
        ({"do_center_crop": False, "do_resize": False}, "neither resizes nor crops"),
        ({"image_std": STD[:1]}, "std: expected 3"),
        (CONVNEXT | {"image_processor_type": "ConvNextImageProcessor"}, None),
    ],
)
def test_unsupported_huggingface(change: dict, message: str | None) -> None:
    if message is None:
        change = change | {"size": {"height": 224, "width": 224}}
        message = "shortest_edge.*ConvNext"
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


def test_missing_timm_keys_have_the_defaults_of_timm() -> None:
    """Of `timm.data.resolve_data_config`."""
    expected = Preprocessing(
        crop_size=(224, 224),
        resize_size=256,  # floor(224 / 0.875)
        interpolation="bicubic",
        scale=1 / 255,
        mean=tuple(MEAN),
        std=tuple(STD),
    )
    assert read_timm({"pretrained_cfg": {}}) == expected
    nothing = {"interpolation": "", "crop_pct": None, "mean": None, "crop_mode": None}
    assert read_timm({"pretrained_cfg": nothing}) == expected
    wrapped = {"image_processor_type": "TimmWrapperImageProcessor"} | TIMM
    assert read_huggingface(wrapped) == read_timm(TIMM)


def test_unsupported_timm() -> None:
    with pytest.raises(PreprocessingError, match="crop_mode.*'border'"):
        read_timm(TIMM["pretrained_cfg"] | {"crop_mode": "border"})
    with pytest.raises(PreprocessingError, match="std: expected 3"):
        read_timm({"input_size": [3, 4, 4], "std": [0.5, 0.5]})
    with pytest.raises(PreprocessingError, match="pretrained_cfg.*'resnet50.tag'"):
        read_timm({"pretrained_cfg": "resnet50.tag"})
