"""Read the preprocessing configurations that Hugging Face and timm publish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sk_cnncodes.base.exceptions import PreprocessingError
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.resizing import INTERPOLATIONS

_HUGGINGFACE = "preprocessor_config.json"
_CURE = "Specify the preprocessing as Preprocessing(...)."
# Steps of image processors that `Preprocessing` cannot express.
_UNSUPPORTED_STEPS = (
    *("do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin"),
    *("do_image_splitting", "do_color_quantize", "do_grayscale", "crop_to_patches"),
    *("keep_aspect_ratio", "offset", "rescale_offset"),
)
# From this size on, ConvNeXT's processor resizes the whole image without cropping.
_CONVNEXT_SQUASH_SIZE = 384


@dataclass(frozen=True)
class _Processor:
    """How an image processor of transformers interprets its configuration.

    Attributes
    ----------
    name : str
        Prefix of its class names.
    both_sides : bool or None
        Whether a size that is a bare number is that of both sides of the image, or of
        the shorter one; None if the processor never combines it with a crop.
    normalises : bool
        Whether it normalises if the configuration has a mean but no `do_normalize`.
    resize_size : callable or None
        Maps the configured size to the size that the shorter side is resized to.
    fault : str
        Why `Preprocessing` cannot express it; empty if it can.
    """

    name: str
    both_sides: bool | None = None
    normalises: bool = True
    resize_size: Callable[[int], int] | None = None
    fault: str = ""


# The first whose name is a prefix of the class name is used.
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

    Missing keys have the defaults of the processor's class, as far as `_PROCESSORS`
    lists them.

    Raises
    ------
    PreprocessingError
        If it has an unsupported step or processor, or lacks a value.
    """
    class_name = str(
        config.get("image_processor_type") or config.get("feature_extractor_type")
    )
    processor = next(p for p in _PROCESSORS if class_name.startswith(p.name))
    for step in _UNSUPPORTED_STEPS:
        if config.get(step):
            raise PreprocessingError(
                f"{_HUGGINGFACE}: the step {step} is not supported. {_CURE}"
            )
    if processor.fault:
        raise PreprocessingError(
            f"{_HUGGINGFACE}: the processor {class_name!r} {processor.fault}. {_CURE}"
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
    raw_size = config.get("size")
    size, crop = _read_size(raw_size), _read_size(config.get("crop_size"))
    crops = config.get("do_center_crop", "crop_size" in config) and crop is not None
    if processor.resize_size is not None and isinstance(size, int):
        size = processor.resize_size(size)
    if not config.get("do_resize", True):
        return {"resize": "none", "crop_size": _required_crop(crop)}
    if size is None:
        raise PreprocessingError(f"{_HUGGINGFACE}: expected a size, got {raw_size!r}.")
    if isinstance(size, int) and config.get("crop_pct"):
        # ConvNeXT: crop_pct is the fraction kept of the shorter side.
        if size < _CONVNEXT_SQUASH_SIZE:
            return {"resize_size": int(size / config["crop_pct"]), "crop_size": size}
        return {"resize": "exact", "crop_size": size}
    if not crops:
        if isinstance(raw_size, Mapping) and isinstance(size, int):
            raise PreprocessingError(
                f"{_HUGGINGFACE}: resizes the shorter side and does not crop, so "
                "images would differ in size. Expected a crop_size, or a size of "
                "'height' and 'width'."
            )
        return {"resize": "exact", "crop_size": size}
    values: dict[str, Any] = {"resize_size": size, "crop_size": _required_crop(crop)}
    if not isinstance(size, int):
        values["resize"] = "squash"
    elif not isinstance(raw_size, Mapping):
        if processor.both_sides is None:
            raise PreprocessingError(
                f"{_HUGGINGFACE}: size {raw_size} with a crop can mean both sides or "
                f"the shorter one, and the processor {class_name!r} is unknown. "
                "Expected a size of 'shortest_edge', or of 'height' and 'width'."
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
                f"{_HUGGINGFACE}: normalises, but {missing} is missing."
            )
        values |= {"mean": config["image_mean"], "std": config["image_std"]}
        if config.get("include_top"):
            # EfficientNet's processor divides by the standard deviation twice.
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
        If the crop mode is not "center" or "squash", a value is missing or invalid, or
        the input of a central crop is not square.
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
    crop_fraction = config.get("crop_pct") or 0.875  # timm's default
    resized = (int(height / crop_fraction), int(width / crop_fraction))
    if mode == "center" and height != width:
        raise PreprocessingError(
            "timm config.json input_size: expected a square with crop_mode "
            f"'center', got {height} x {width}."
        )
    return Preprocessing.from_dict(
        {
            "crop_size": (height, width),
            "resize": "shorter" if mode == "center" else "squash",
            "resize_size": resized[0] if mode == "center" else resized,
            "interpolation": config.get("interpolation", "bilinear"),
            "scale": 1 / 255,
            "mean": config["mean"],
            "std": config["std"],
            "channels": "GRAY" if channels == 1 else "RGB",
        }
    )
