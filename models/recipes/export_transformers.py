"""Export an image model of Hugging Face transformers to a self-describing ONNX file.

Needs: transformers, torch, torchvision, onnx, onnxscript.

    python models/recipes/export_transformers.py facebook/dinov2-small dinov2_s.onnx
    python models/recipes/export_transformers.py facebook/dino-vits16 dino_s.onnx
    python models/recipes/export_transformers.py google/vit-base-patch16-224 vit.onnx
    python models/recipes/export_transformers.py google/siglip2-base-patch16-224 s.onnx

NAME is a repository, or a folder with `config.json` and `preprocessor_config.json`. A
model with a classifier outputs its scores; one of images and texts, such as SigLIP 2 or
CLIP, the embedding of the image; others, such as DINOv2, their last hidden state, or
for ConvNeXt what it pools to. The file has a dynamic batch size, keeps module paths
(`vit.layers.3`) as layer names, and contains the preprocessing of the model's image
processor in its metadata. Licences differ: see each model's card.

`--random-weights` reads only the two configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export_common import (
    add_exporter,
    argument_parser,
    check_file,
    export_torch,
    write_metadata,
)

# Indexed by Pillow's resampling numbers, which transformers uses.
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


def preprocessing_of(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a processor's `to_dict()` to parameters of sk_cnncodes.Preprocessing."""
    size, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    crops = bool(processor.get("do_center_crop") and crop)
    shorter = size.get("shortest_edge")
    values: dict[str, Any] = {"resize": "exact", "resize_size": None}
    if not processor.get("do_resize", True):
        values["resize"], target = "none", crop or size
    elif shorter and processor.get("crop_pct"):
        # ConvNeXt's processor crops small images and only resizes large ones.
        target = {"height": shorter, "width": shorter}
        if shorter < 384:
            scaled = int(shorter / processor["crop_pct"])
            values = {"resize": "shorter", "resize_size": scaled}
    elif shorter:
        values = {"resize": "shorter", "resize_size": shorter}
        target = crop if crops else {}
    elif crops:
        sides = (size["height"], size["width"])
        values, target = {"resize": "squash", "resize_size": sides}, crop
    else:
        target = size
    if not target or processor.get("do_pad") or processor.get("rescale_offset"):
        raise SystemExit(
            f"the image processor {dict(processor)} has no counterpart in sk_cnncodes. "
            "Expected a resize and a crop to one size, without padding."
        )
    normalises = processor.get("do_normalize", True)
    rescales = processor.get("do_rescale", True)
    bgr = processor.get("do_flip_channel_order")
    return values | {
        "crop_size": (target["height"], target["width"]),
        "interpolation": INTERPOLATIONS[int(processor.get("resample") or 0)],
        "rounding": "huggingface",
        "mean": list(processor["image_mean"]) if normalises else [0, 0, 0],
        "std": list(processor["image_std"]) if normalises else [1, 1, 1],
        "scale": processor.get("rescale_factor", 1 / 255) if rescales else 1.0,
        "channels": "BGR" if bgr else "RGB",
        "layout": "NCHW",
    }


def build(name: str, random_weights: bool = False) -> tuple[Any, dict[str, Any]]:
    """Build a model in evaluation mode and its preprocessing."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
    )

    config = AutoConfig.from_pretrained(name)
    classifies = any("Classif" in each for each in config.architectures or [])
    kind = AutoModelForImageClassification if classifies else AutoModel
    preprocessing = preprocessing_of(AutoImageProcessor.from_pretrained(name).to_dict())
    model = kind.from_config(config) if random_weights else kind.from_pretrained(name)
    return of_images(model).eval(), preprocessing


def of_images(model: Any) -> Any:
    """A model as one that puts out an image's embedding, where it has one of its own.

    So have models of images and texts, and ConvNeXt, which normalises after it pools.
    """
    kind = model.config.model_type
    if hasattr(model, "get_image_features"):
        embed, model.text_model = model.get_image_features, None
    elif kind.endswith("_vision_model") or "convnext" in kind:
        embed = model.forward
    else:
        return model

    def forward(image: Any) -> Any:
        found = embed(pixel_values=image)
        # A tensor before version 5, or the scores of a classifier.
        return getattr(found, "pooler_output", found)

    model.forward = forward
    return model


def scores_or_features(output: Any) -> Any:
    """The tensor to export: scores, an embedding, or the last hidden state."""
    scores = getattr(output, "logits", None)
    return getattr(output, "last_hidden_state", output) if scores is None else scores


def export(
    model: Any, preprocessing: dict[str, Any], output: Path, exporter: str = "dynamo"
) -> None:
    """Export a transformers model."""
    shape = (3, *preprocessing["crop_size"])
    export_torch(model, shape, output, exporter, scores_or_features)


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    add_exporter(parser)
    given = parser.parse_args(arguments)
    model, preprocessing = build(given.name, given.random_weights)
    export(model, preprocessing, given.output, given.exporter)
    write_metadata(given.output, preprocessing)
    check_file(given.output)


if __name__ == "__main__":
    main()
