"""Read the preprocessing configurations that Hugging Face and timm publish."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, TypeVar

from sk_cnncodes.base.exceptions import PreprocessingError
from sk_cnncodes.images.image_processors import CHANGED, find_processor
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.resizing import INTERPOLATIONS

# In the order in which they are read.
CONFIGURATION_FILES = (
    *("processor_config.json", "preprocessor_config.json"),
    "config.json",
)
_HUGGINGFACE = "image processor"
_CURE = "Specify the preprocessing as Preprocessing(...)."
# Steps of image processors that `Preprocessing` cannot express.
_UNSUPPORTED_STEPS = (
    *("do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin"),
    *("do_image_splitting", "do_color_quantize", "do_grayscale", "crop_to_patches"),
    *("keep_aspect_ratio", "offset", "rescale_offset", "do_affine_transform"),
    *("do_pan_and_scan", "image_grid_pinpoints", "max_num_patches"),
)
# From this size on, ConvNeXT's processor resizes the whole image without cropping.
_CONVNEXT_SQUASH_SIZE = 384
# What timm's `resolve_data_config` takes for missing keys.
_TIMM: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


AnyPath = TypeVar("AnyPath", bound=PurePath)


def configuration_folders(folder: AnyPath) -> list[AnyPath]:
    """The folders in which the configuration of a network in a folder may be.

    Exports for the web keep the networks in a folder of their own, "onnx".
    """
    return [folder, folder.parent] if folder.name == "onnx" else [folder]


class _Configuration:
    """A configuration, completed by the defaults of its class.

    Attributes
    ----------
    name : str or None
        Of the class, without "ImageProcessor".
    processor : ImageProcessor or None
        None for an unknown class.
    """

    def __init__(self, config: Mapping[str, Any], model_type: str | None) -> None:
        # transformers too takes null for a key that is left out.
        self._config = {k: v for k, v in config.items() if v is not None}
        class_name = self._config.get(
            "image_processor_type", self._config.get("feature_extractor_type")
        )
        self._class_name = None if class_name is None else str(class_name)
        self.name, self.processor = find_processor(self._class_name, model_type)

    def optional(self, key: str) -> Any:
        """The value in the file, or the class's default; None if there is none."""
        if key in self._config or self.processor is None:
            return self._config.get(key)
        default = self.processor.defaults.get(key)
        return self.required(key) if default is CHANGED else default

    def required(self, key: str) -> Any:
        """The value in the file, or the class's default, which must be known."""
        defaults = self.processor.defaults if self.processor is not None else {}
        value = self._config.get(key, defaults.get(key))
        if value is not None and value is not CHANGED:
            return value
        if value is CHANGED:
            reason = f"its default in {self._class_name} depends on the release"
        elif self.processor is not None:
            reason = f"{self.name}ImageProcessor has no default"
        elif self._class_name is None:
            reason = "image_processor_type, which decides its default, is missing too"
        else:
            reason = f"the default of {self._class_name!r} is not known"
        raise PreprocessingError(
            f"{_HUGGINGFACE}: {key} is missing, and {reason}. Add it as the network "
            f"was trained, or specify the preprocessing as Preprocessing(...)."
        )


def read_huggingface(
    config: Mapping[str, Any], model_type: str | None = None
) -> Preprocessing:
    """Read the configuration of a Hugging Face image processor.

    Missing keys have the defaults of the processor's class.

    Parameters
    ----------
    config : dict
        Content of `preprocessor_config.json`, or the entry `image_processor` of a
        `processor_config.json`.
    model_type : str or None, default=None
        Decides the class if the configuration does not name one: `model_type` of the
        model's `config.json`.

    Raises
    ------
    PreprocessingError
        If it has an unsupported step or processor, or lacks a value that decides the
        preprocessing.
    """
    if isinstance(config.get("pretrained_cfg"), Mapping):
        return read_timm(config)  # as TimmWrapperImageProcessor saves it
    found = _Configuration(config, model_type)
    for step in _UNSUPPORTED_STEPS:
        if config.get(step):
            raise PreprocessingError(
                f"{_HUGGINGFACE}: the step {step} is not supported. {_CURE}"
            )
    if found.processor is not None and found.processor.fault:
        raise PreprocessingError(
            f"{_HUGGINGFACE}: the processor {found.name}ImageProcessor "
            f"{found.processor.fault}. {_CURE}"
        )
    values = {"rounding": "huggingface"}
    values |= _read_resize(found)
    values |= _read_normalisation(found)
    if found.optional("do_flip_channel_order"):
        values["channels"] = "BGR"
    return Preprocessing.from_dict(values)


def _read_resize(config: _Configuration) -> dict[str, Any]:
    """Resize and crop of a configuration, as parameters of `Preprocessing`."""
    crops = config.name != "ConvNext" and config.required("do_center_crop")
    crop = _read_size("crop_size", config.required("crop_size")) if crops else None
    if not config.required("do_resize"):
        if crop is None:
            raise PreprocessingError(
                f"{_HUGGINGFACE}: neither resizes nor crops, so images would differ in "
                f"size. {_CURE}"
            )
        return {"resize": "none", "crop_size": crop}
    resample = config.required("resample")
    names = {number: name for name, number in INTERPOLATIONS.items()}
    values = {"interpolation": names.get(resample, resample)}
    size = _resized_size(config, bool(crops))
    if config.name == "ConvNext":
        # It crops to the size that it starts from.
        crop = _read_size("size", config.required("size"))
        if isinstance(crop, int) and crop >= _CONVNEXT_SQUASH_SIZE:
            return values | {"resize": "exact", "crop_size": crop}
    if crop is not None:
        resize = "shorter" if isinstance(size, int) else "squash"
        if resize == "squash" and isinstance(config.required("size"), int):
            size = config.required("size")  # a number as before, for caches of codes
        return values | {"resize": resize, "resize_size": size, "crop_size": crop}
    if isinstance(size, int):
        raise PreprocessingError(
            f"{_HUGGINGFACE}: resizes the shorter side and does not crop, so images "
            "would differ in size. Expected a crop_size, or a size of 'height' and "
            "'width'."
        )
    return values | {"resize": "exact", "crop_size": size}


def _resized_size(config: _Configuration, crops: bool) -> int | tuple[int, int]:
    """Size that the shorter side (an int) or both sides (a pair) are resized to."""
    raw_size = config.required("size")
    if isinstance(raw_size, int):
        if crops and config.processor is None:
            raise PreprocessingError(
                f"{_HUGGINGFACE}: size {raw_size} with a crop can mean both sides or "
                f"the shorter one, and the processor {config.name!r} is unknown. "
                "Expected a size of 'shortest_edge', or of 'height' and 'width'."
            )
        if config.processor is None or config.processor.is_square:
            raw_size = {"height": raw_size, "width": raw_size}
    size = _read_size("size", raw_size)
    fraction = config.optional("crop_pct")
    if config.name == "Levit" and isinstance(size, int):
        return int(256 / 224 * size)
    if config.name == "PoolFormer":
        if not isinstance(size, int) and size[0] != size[1]:
            return int(size[0] / fraction), int(size[1] / fraction)
        return int((size if isinstance(size, int) else size[0]) / fraction)
    if config.name == "ConvNext":
        if not isinstance(size, int):
            raise PreprocessingError(
                f"{_HUGGINGFACE}: expected a size of 'shortest_edge' for "
                f"ConvNextImageProcessor, got {raw_size!r}."
            )
        return int(size / fraction)
    if fraction:
        raise PreprocessingError(
            f"{_HUGGINGFACE}: crop_pct is not supported in the processor "
            f"{config.name!r}. {_CURE}"
        )
    return size


def _read_normalisation(config: _Configuration) -> dict[str, Any]:
    """Scale, mean and standard deviation, as parameters of `Preprocessing`."""
    values: dict[str, Any] = {}
    if config.required("do_rescale"):
        values["scale"] = config.required("rescale_factor")
    normalises = config.required("do_normalize")
    if normalises:
        values["mean"] = config.required("image_mean")
        values["std"] = config.required("image_std")
    if config.optional("include_top"):
        # EfficientNet's processor divides by the standard deviation once more.
        std = config.required("image_std")
        values["std"] = [value**2 for value in std] if normalises else std
    return values


def _read_size(key: str, size: Any) -> int | tuple[int, int]:
    """An int for the shorter side (or a square crop), a pair for both sides."""
    if isinstance(size, Mapping):
        sides = {k: v for k, v in size.items() if v is not None}
        if set(sides) == {"shortest_edge"}:
            return int(size["shortest_edge"])
        if set(sides) == {"height", "width"}:
            return int(size["height"]), int(size["width"])
    elif isinstance(size, int):
        return size
    raise PreprocessingError(
        f"{_HUGGINGFACE}: expected a {key} of 'shortest_edge', or of 'height' and "
        f"'width', got {size!r:.200}."
    )


def read_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Read the content of a timm `config.json`, or its `pretrained_cfg`.

    Missing keys have the defaults of timm's `resolve_data_config`.

    Raises
    ------
    PreprocessingError
        If the crop mode is not "center" or "squash", a value is invalid, or the input
        of a central crop is not square.
    """
    config = config.get("pretrained_cfg", config)
    if not isinstance(config, Mapping):
        raise PreprocessingError(
            f"timm config.json pretrained_cfg: expected an object, got {config!r:.200}."
        )
    # timm too takes null and empty values for keys that are left out.
    config = _TIMM | {key: value for key, value in config.items() if value}
    channels, height, width = config["input_size"]
    mode = config["crop_mode"]
    if mode not in ("center", "squash"):
        raise PreprocessingError(
            f"timm config.json crop_mode: expected 'center' or 'squash', got {mode!r}."
        )
    resized = (int(height / config["crop_pct"]), int(width / config["crop_pct"]))
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
            "interpolation": config["interpolation"],
            "scale": 1 / 255,
            "mean": config["mean"],
            "std": config["std"],
            "channels": "GRAY" if channels == 1 else "RGB",
        }
    )
