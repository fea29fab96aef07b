"""Preprocessing as Hugging Face and timm write it beside their models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sk_cnncodes.base.exceptions import PreprocessingError
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.resizing import INTERPOLATIONS

_HUGGINGFACE = "preprocessor_config.json"
_WRITE_OUT = "Write the preprocessing out as Preprocessing(...)."
# What image processors may do beside resizing, cropping and normalising.
_UNKNOWN_STEPS = (
    *("do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin"),
    *("do_image_splitting", "do_color_quantize", "do_grayscale", "crop_to_patches"),
    *("keep_aspect_ratio", "offset", "rescale_offset"),
)
# ConvNeXT's processor crops below this size, and squeezes the image above.
_CONVNEXT_WHOLE = 384


@dataclass(frozen=True)
class _Processor:
    """How an image processor of transformers reads its configuration.

    Attributes
    ----------
    name : str
        What the names of its classes begin with.
    both_sides : bool or None
        Whether a bare number as size means both sides of the image, or the shorter one;
        None where the processor never has one beside a crop.
    normalises : bool
        Whether it does where the configuration states a mean, and not whether.
    resize_size : callable or None
        The size that the shorter side is resized to, from the size that is stated.
    fault : str
        Why it cannot be expressed here.
    """

    name: str
    both_sides: bool | None = None
    normalises: bool = True
    resize_size: Callable[[int], int] | None = None
    fault: str = ""


# The first whose name fits is taken.
_PROCESSORS = (
    _Processor("ViT", both_sides=True),
    _Processor("DeiT", both_sides=True),
    _Processor("Beit", both_sides=True),
    _Processor("BeiT", both_sides=True),
    _Processor("Siglip", both_sides=True),
    _Processor("Segformer", both_sides=True),
    _Processor("Bit", both_sides=False),
    _Processor("CLIP", both_sides=False),
    _Processor("ConvNext", both_sides=False),
    _Processor("EfficientFormer", both_sides=False),
    _Processor(
        "Levit", both_sides=False, resize_size=lambda size: int(256 / 224 * size)
    ),
    _Processor("MobileNet", both_sides=False),
    _Processor("MobileViT", both_sides=False, normalises=False),
    _Processor("PoolFormer", both_sides=False),
    _Processor("Perceiver", fault="crops before it resizes"),
    _Processor(""),  # all others
)


def read_huggingface(config: Mapping[str, Any]) -> Preprocessing:
    """Read the content of a Hugging Face `preprocessor_config.json`.

    A key that is missing has the default of the processor's class, as far as
    `_PROCESSORS` knows it.

    Raises
    ------
    PreprocessingError
        If it asks for a step that is not known here, or lacks a size.
    """
    class_name = str(
        config.get("image_processor_type") or config.get("feature_extractor_type")
    )
    processor = next(p for p in _PROCESSORS if class_name.startswith(p.name))
    for step in _UNKNOWN_STEPS:
        if config.get(step):
            raise PreprocessingError(
                f"{_HUGGINGFACE} asks for {step}, which has no counterpart here. "
                f"{_WRITE_OUT}"
            )
    if processor.fault:
        raise PreprocessingError(
            f"{_HUGGINGFACE}: the processor {class_name!r} {processor.fault}. "
            f"{_WRITE_OUT}"
        )
    values = {"rounding": "huggingface"}
    values |= _read_resize(config, processor, class_name)
    values |= _read_normalisation(config, processor)
    if "resample" in config:
        names = {number: name for name, number in INTERPOLATIONS.items()}
        values["interpolation"] = names.get(config["resample"], config["resample"])
    if config.get("do_flip_channel_order"):
        values["channels"] = "BGR"
    return Preprocessing.from_dict(values)


def _read_resize(
    config: Mapping[str, Any], processor: _Processor, class_name: str
) -> dict[str, Any]:
    """Resize and crop of a configuration, as parameters of `Preprocessing`."""
    stated = config.get("size")
    size, crop = _read_size(stated), _read_size(config.get("crop_size"))
    crops = config.get("do_center_crop", "crop_size" in config) and crop is not None
    if processor.resize_size is not None and isinstance(size, int):
        size = processor.resize_size(size)
    if not config.get("do_resize", True):
        return {"resize": "none", "crop_size": _required_crop(crop)}
    if size is None:
        raise PreprocessingError(f"{_HUGGINGFACE}: expected a size, got {stated!r}.")
    if isinstance(size, int) and config.get("crop_pct"):
        # ConvNeXT: crop_pct of the shorter side is kept, or all of the image.
        if size < _CONVNEXT_WHOLE:
            return {"resize_size": int(size / config["crop_pct"]), "crop_size": size}
        return {"resize": "exact", "crop_size": size}
    if not crops:
        if isinstance(stated, Mapping) and isinstance(size, int):
            raise PreprocessingError(
                f"{_HUGGINGFACE} resizes the shorter side and does not crop: images "
                "would differ in size. Expected a crop_size, or a size of height and "
                "width."
            )
        return {"resize": "exact", "crop_size": size}
    values: dict[str, Any] = {"resize_size": size, "crop_size": _required_crop(crop)}
    if not isinstance(size, int):
        values["resize"] = "squash"
    elif not isinstance(stated, Mapping):
        if processor.both_sides is None:
            raise PreprocessingError(
                f"{_HUGGINGFACE}: size {stated} with a crop can mean both sides or the "
                f"shorter one, and the processor {class_name!r} is not known. Expected "
                "a size of 'shortest_edge', or of 'height' and 'width'."
            )
        if processor.both_sides:
            values["resize"] = "squash"
    return values


def _required_crop(crop: int | tuple[int, int] | None) -> int | tuple[int, int]:
    if crop is None:
        raise PreprocessingError(f"{_HUGGINGFACE}: crop_size is missing.")
    return crop


def _read_normalisation(
    config: Mapping[str, Any], processor: _Processor
) -> dict[str, Any]:
    """Scale, mean and standard deviation, as parameters of `Preprocessing`."""
    values: dict[str, Any] = {}
    if config.get("do_rescale", True):
        values["scale"] = config.get("rescale_factor", 1 / 255)
    default = "image_mean" in config and processor.normalises
    if config.get("do_normalize", default):
        missing = [k for k in ("image_mean", "image_std") if k not in config]
        if missing:
            raise PreprocessingError(
                f"{_HUGGINGFACE} normalises, but {missing} is missing."
            )
        values |= {"mean": config["image_mean"], "std": config["image_std"]}
        if config.get("include_top"):
            # EfficientNet's processor divides by the deviation twice.
            values["std"] = [value**2 for value in config["image_std"]]
    return values


def _read_size(size: Any) -> int | tuple[int, int] | None:
    """An int for the shorter side (or a square crop), a pair for both sides."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
        if {"height", "width"} <= set(size):
            return int(size["height"]), int(size["width"])
        return None
    return size if isinstance(size, int) else None


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
