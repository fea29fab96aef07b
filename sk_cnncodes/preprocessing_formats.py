"""Preprocessing as Hugging Face and timm write it beside their models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sk_cnncodes.exceptions import PreprocessingError
from sk_cnncodes.preprocessing import INTERPOLATIONS, Preprocessing

# What processors may do beside resizing, cropping and normalising.
_UNKNOWN_STEPS = (
    *("do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin"),
    *("do_image_splitting", "do_color_quantize", "do_grayscale", "crop_to_patches"),
    *("keep_aspect_ratio", "offset", "rescale_offset"),
)


def read_huggingface(config: Mapping[str, Any]) -> Preprocessing:
    """Read the content of a Hugging Face `preprocessor_config.json`.

    Raises
    ------
    PreprocessingError
        If it asks for a step that is not known here, or lacks a size.
    """
    processor = _processor(config)
    for step in _UNKNOWN_STEPS:
        if config.get(step):
            raise PreprocessingError(
                f"preprocessor_config.json asks for {step}, which has no "
                "counterpart here. Write the preprocessing out as "
                "Preprocessing(...)."
            )
    if processor.startswith("Perceiver"):
        raise PreprocessingError(
            f"preprocessor_config.json: the processor {processor!r} crops before it "
            "resizes. Write the preprocessing out as Preprocessing(...)."
        )
    values: dict[str, Any] = {}
    size = _huggingface_size(config.get("size"))
    if processor.startswith("Levit") and isinstance(size, int):
        size = int(256 / 224 * size)
    crop = _huggingface_size(config.get("crop_size"))
    values["rounding"] = "huggingface"
    crops = config.get("do_center_crop", "crop_size" in config) and crop is not None
    if not config.get("do_resize", True):
        values |= {"resize": "none"}
    elif size is None:
        raise PreprocessingError(
            f"preprocessor_config.json: expected a size, got {config.get('size')!r}."
        )
    elif config.get("crop_pct") and isinstance(size, int) and size < 384:
        # ConvNeXT's processor: crop_pct of the shorter side is kept.
        values |= {"resize_size": int(size / config["crop_pct"])}
        crop, crops = (size, size), True
    elif isinstance(size, int) and config.get("crop_pct"):
        values |= {"resize": "exact"}
        crop, crops = (size, size), True
    elif isinstance(size, int) and not crops:
        if isinstance(config.get("size"), Mapping):
            raise PreprocessingError(
                "preprocessor_config.json resizes the shorter side and does not "
                "crop: images would differ in size. Expected a crop_size, or a "
                "size of height and width."
            )
        values |= {"resize": "exact"}
        crop = (size, size)
    elif isinstance(size, int):
        squash = not isinstance(config.get("size"), Mapping) and _squares(config)
        values |= {"resize": "squash"} if squash else {}
        values |= {"resize_size": size}
    elif crops:
        values |= {"resize": "squash", "resize_size": size}
    else:
        values |= {"resize": "exact"}
        crop = size
    if crop is None:
        raise PreprocessingError("preprocessor_config.json: crop_size is missing.")
    values["crop_size"] = (crop, crop) if isinstance(crop, int) else crop
    if "resample" in config:
        names = {number: name for name, number in INTERPOLATIONS.items()}
        values["interpolation"] = names.get(config["resample"], config["resample"])
    if config.get("do_rescale", True):
        values["scale"] = config.get("rescale_factor", 1 / 255)
    normalises = "image_mean" in config and not processor.startswith("MobileViT")
    if config.get("do_normalize", normalises):
        missing = [k for k in ("image_mean", "image_std") if k not in config]
        if missing:
            raise PreprocessingError(
                f"preprocessor_config.json normalises, but {missing} is missing."
            )
        values |= {"mean": config["image_mean"], "std": config["image_std"]}
        if config.get("include_top"):
            # EfficientNet's processor divides by the deviation twice.
            values["std"] = [value**2 for value in config["image_std"]]
    if config.get("do_flip_channel_order"):
        values["channels"] = "BGR"
    return Preprocessing.from_dict(values)


def write_huggingface(preprocessing: Preprocessing) -> dict[str, Any]:
    """Content for a Hugging Face `preprocessor_config.json`."""
    if preprocessing.channels == "GRAY":
        raise PreprocessingError(
            "a preprocessor_config.json cannot express channels='GRAY'."
        )
    height, width = preprocessing.crop_size
    crop = {"height": height, "width": width}
    size: dict[str, Any] = crop
    if preprocessing.resize == "shorter":
        size = {"shortest_edge": preprocessing.resize_size}
    elif preprocessing.resize == "squash":
        down, across = preprocessing.resized_size(1, 1)
        size = {"height": down, "width": across}
    return {
        "do_resize": preprocessing.resize != "none",
        "size": size,
        "resample": INTERPOLATIONS[preprocessing.interpolation],
        "do_center_crop": preprocessing.resize != "exact",
        "crop_size": crop,
        "do_rescale": True,
        "rescale_factor": preprocessing.scale,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_flip_channel_order": preprocessing.channels == "BGR",
    }


def read_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Read the content of a timm `config.json`, or its `pretrained_cfg`.

    Raises
    ------
    PreprocessingError
        If the crop mode is not "center" or "squash", or a value is missing.
    """
    config = config.get("pretrained_cfg", config)
    missing = [k for k in ("input_size", "mean", "std") if k not in config]
    if missing:
        raise PreprocessingError(f"timm config.json: {missing} is missing.")
    channels, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise PreprocessingError(
            f"timm config.json crop_mode: expected 'center' or 'squash', got {mode!r}."
        )
    share = config.get("crop_pct") or 0.875  # timm's own default
    scaled = (int(height / share), int(width / share))
    if mode == "center" and height != width:
        raise PreprocessingError(
            "timm config.json input_size: expected a square with crop_mode "
            f"'center', got {height} x {width}."
        )
    return Preprocessing.from_dict(
        {
            "crop_size": (height, width),
            "resize": "shorter" if mode == "center" else "squash",
            "resize_size": scaled[0] if mode == "center" else scaled,
            "interpolation": config.get("interpolation", "bilinear"),
            "scale": 1 / 255,
            "mean": config["mean"],
            "std": config["std"],
            "channels": "GRAY" if channels == 1 else "RGB",
        }
    )


def write_timm(preprocessing: Preprocessing) -> dict[str, Any]:
    """The `pretrained_cfg` for a timm `config.json`."""
    height, width = preprocessing.crop_size
    resized = preprocessing.resized_size(height, width)
    share = height / resized[0]
    if int(height / share) != resized[0]:  # the reader rounds down
        share = height / (resized[0] + 1e-6)
    plain = replace(preprocessing, scale=1 / 255)
    config: dict[str, Any] = {
        "input_size": [preprocessing.n_channels, height, width],
        "interpolation": preprocessing.interpolation,
        "crop_pct": share,
        "crop_mode": "squash"
        if preprocessing.resize in ("squash", "exact")
        else "center",
        "mean": [m / (255 * preprocessing.scale) for m in preprocessing.mean],
        "std": [s / (255 * preprocessing.scale) for s in preprocessing.std],
    }
    wanted = replace(
        plain, mean=tuple(config["mean"]), std=tuple(config["std"]), layout="NCHW"
    )
    read = None
    if preprocessing.resize != "none" and preprocessing.channels != "BGR":
        read = read_timm(config)
    if read is None or read.resized_size(480, 640) != wanted.resized_size(480, 640):
        raise PreprocessingError(f"a timm config.json cannot express {preprocessing}.")
    return config


def _huggingface_size(size: Any) -> int | tuple[int, int] | None:
    """An int for the shorter side (or a square crop), a pair for both sides."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
        if {"height", "width"} <= set(size):
            return int(size["height"]), int(size["width"])
        return None
    return size if isinstance(size, int) else None


def _processor(config: Mapping[str, Any]) -> str:
    """Name of the processor's class."""
    return str(
        config.get("image_processor_type") or config.get("feature_extractor_type")
    )


def _squares(config: Mapping[str, Any]) -> bool:
    """Whether a processor reads a bare number as both sides, or as the shorter one."""
    processor = _processor(config)
    if processor.startswith(("ViT", "DeiT", "Beit", "BeiT", "Siglip", "Segformer")):
        return True
    if processor.startswith(
        (
            "Bit",
            "CLIP",
            "ConvNext",
            "EfficientFormer",
            "Levit",
            "MobileNet",
            "MobileViT",
            "PoolFormer",
        )
    ):
        return False
    raise PreprocessingError(
        f"preprocessor_config.json: size {config['size']} with a crop can mean both "
        f"sides or the shorter one, and the processor {processor!r} is not known. "
        "Expected a size of 'shortest_edge', or of 'height' and 'width'."
    )
