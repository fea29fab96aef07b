"""Defaults of the image processors of Hugging Face transformers, class by class.

Read from the slow and the fast classes of transformers 4.20 to 5.24. A file that leaves
a key out has its class's default; where releases disagree about a default, the file
does not say what the network was trained with, and `CHANGED` stands in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# A default that is not the same in all releases.
CHANGED = object()

_BILINEAR, _BICUBIC = 2, 3  # values of PIL.Image.Resampling
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


@dataclass(frozen=True)
class ImageProcessor:
    """How a class of image processors completes and reads its configuration.

    Attributes
    ----------
    defaults : dict
        Default of each key that a file may leave out.
    model_types : tuple of str
        Values of `model_type` in a `config.json` that mean this class, for files that
        do not name their class.
    fault : str
        Why `Preprocessing` cannot express it; empty if it can.
    """

    defaults: dict[str, Any]
    model_types: tuple[str, ...] = ()
    fault: str = ""

    @property
    def is_square(self) -> bool:
        """Whether a bare number as size is that of both sides, not of the shorter."""
        size = self.defaults["size"]
        shorter = isinstance(size, dict) and "shortest_edge" in size
        return not shorter and "crop_pct" not in self.defaults


def _whole(side: Any, resample: Any) -> dict[str, Any]:
    """Defaults of a class that resizes the whole image."""
    return {
        "do_resize": True,
        "size": side if side is CHANGED else {"height": side, "width": side},
        "resample": resample,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }


def _crop(side: int) -> dict[str, Any]:
    return {"do_center_crop": True, "crop_size": {"height": side, "width": side}}


def _shorter(side: int, resample: Any, crop: int = 224) -> dict[str, Any]:
    """Defaults of a class that resizes the shorter side and crops."""
    size = {"size": {"shortest_edge": side}}
    return _whole(side, resample) | size | _crop(crop)


def _unsupported(fault: str) -> ImageProcessor:
    return ImageProcessor({}, fault=fault)


# By the name of the class without "ImageProcessor" or "FeatureExtractor".
_PROCESSORS = {
    # The whole image at 224 x 224, or at 256 x 256 with a crop.
    "Beit": ImageProcessor(
        _whole(CHANGED, _BICUBIC) | _HALF | _crop(224) | {"do_center_crop": CHANGED},
        ("beit", "data2vec-vision"),
    ),
    "Bit": ImageProcessor(
        _shorter(224, _BICUBIC) | _CLIP, ("bit", "dinov2", "focalnet", "hiera", "pixio")
    ),
    "Blip": ImageProcessor(
        _whole(384, _BICUBIC) | {"image_mean": CHANGED, "image_std": CHANGED},
        ("blip", "blip-2", "instructblip"),
    ),
    "CLIP": ImageProcessor(
        _shorter(224, _BICUBIC) | _CLIP,
        (
            *("aimv2", "aimv2_vision_model", "altclip", "clip", "git", "groupvit"),
            *("kosmos-2", "metaclip_2", "mlcd", "vipllava", "xclip"),
        ),
    ),
    "ChineseCLIP": ImageProcessor(_shorter(224, _BICUBIC) | _CLIP, ("chinese_clip",)),
    # It crops what `crop_pct` says, and knows neither `do_center_crop` nor `crop_size`.
    "ConvNext": ImageProcessor(
        _whole(CHANGED, CHANGED)
        | {"image_mean": CHANGED, "image_std": CHANGED, "crop_pct": 224 / 256},
        ("convnext", "convnextv2", "cvt", "regnet", "resnet", "van"),
    ),
    "DINOv3ViT": ImageProcessor(_whole(224, _BILINEAR) | _IMAGENET, ("dinov3_vit",)),
    "DPT": ImageProcessor(_whole(384, CHANGED) | _HALF, ("dpt", "depth_anything")),
    "DeiT": ImageProcessor(
        _whole(256, _BICUBIC)
        | _crop(224)
        | {"image_mean": CHANGED, "image_std": CHANGED},
        ("deit",),
    ),
    "EfficientFormer": ImageProcessor(
        _whole(224, _BICUBIC) | _crop(224) | _IMAGENET, ("efficientformer",)
    ),
    "EfficientNet": ImageProcessor(
        _whole(346, CHANGED)
        | _crop(289)
        | {"do_center_crop": False, "include_top": True}
        | _HALF,
        ("align", "efficientnet"),
    ),
    "Flava": ImageProcessor(_whole(224, _BICUBIC) | _crop(224) | _CLIP, ("flava",)),
    "LayoutLMv2": ImageProcessor(
        _whole(224, _BILINEAR)
        | {"do_rescale": False, "do_normalize": False, "do_flip_channel_order": True},
        ("layoutlmv2", "layoutxlm"),
    ),
    "LayoutLMv3": ImageProcessor(
        _whole(224, _BILINEAR) | _HALF, ("layoutlmv3", "udop")
    ),
    "Levit": ImageProcessor(_shorter(224, _BICUBIC) | _IMAGENET, ("levit",)),
    "Llava": ImageProcessor(_shorter(224, _BICUBIC) | _CLIP, ("llava",)),
    "MobileNetV1": ImageProcessor(_shorter(256, _BILINEAR) | _HALF, ("mobilenet_v1",)),
    "MobileNetV2": ImageProcessor(_shorter(256, _BILINEAR) | _HALF, ("mobilenet_v2",)),
    "MobileViT": ImageProcessor(
        _shorter(224, CHANGED, 256)
        | {"do_normalize": False, "do_flip_channel_order": True},
        ("mobilevit", "mobilevitv2"),
    ),
    "PoolFormer": ImageProcessor(
        _shorter(224, _BICUBIC) | {"crop_pct": 0.9} | _IMAGENET, ("poolformer",)
    ),
    "Pvt": ImageProcessor(_whole(224, CHANGED) | _IMAGENET, ("pvt", "pvt_v2")),
    "Segformer": ImageProcessor(
        _whole(512, _BILINEAR) | _IMAGENET, ("segformer", "upernet")
    ),
    "Siglip": ImageProcessor(
        _whole(224, _BICUBIC) | _HALF, ("gemma3n", "paligemma", "siglip")
    ),
    "ViT": ImageProcessor(
        _whole(224, _BILINEAR) | _HALF,
        (
            *("clipseg", "dinat", "ijepa", "mgp-str", "nat", "swiftformer", "swin"),
            *("swinv2", "vit", "vit_mae", "vit_msn"),
        ),
    ),
    "ViTHybrid": ImageProcessor(_shorter(224, _BICUBIC) | _CLIP, ("vit_hybrid",)),
    "VideoMAE": ImageProcessor(
        _shorter(224, _BILINEAR) | _HALF, ("timesformer", "videomae")
    ),
    # What they do without a key that says so.
    "BridgeTower": _unsupported("pads the image"),
    "DeepseekVL": _unsupported("pads the image"),
    "DeepseekVLHybrid": _unsupported("pads the image"),
    "ImageGPT": _unsupported("quantises the colours"),
    "Janus": _unsupported("pads the image"),
    "Owlv2": _unsupported("pads the image"),
    "Perceiver": _unsupported("crops before it resizes"),
    "Siglip2": _unsupported("makes a variable number of patches"),
    "TextNet": _unsupported("rounds the sides to multiples of 32"),
    "Vilt": _unsupported("rounds the sides to multiples of 32"),
    "Vivit": _unsupported("scales to values from -1 to 1"),
}
_SUFFIXES = ("Fast", "Pil", "ImageProcessor", "FeatureExtractor")


def find_processor(
    class_name: str | None, model_type: str | None
) -> tuple[str | None, ImageProcessor | None]:
    """Find a class by its name; without a name, by the kind of model.

    Returns
    -------
    (str or None, ImageProcessor or None)
        Name without suffixes; and its row, None if it is not known.
    """
    if class_name is None:
        for name, processor in _PROCESSORS.items():
            if model_type in processor.model_types:
                return name, processor
        return None, None
    name = class_name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name, _PROCESSORS.get(name)
