"""Export a pretrained model of timm to a self-describing ONNX file.

Needs: timm (which brings torch and torchvision), onnx, onnxscript.

    python models/recipes/export_timm.py inception_v4 inception_v4.onnx
    python models/recipes/export_timm.py inception_resnet_v2 inception_resnet_v2.onnx
    python models/recipes/export_timm.py vit_small_patch14_dinov2.lvd142m dinov2_s.onnx
    python models/recipes/export_timm.py vit_small_patch16_224.dino dino_s.onnx

`--list` shows the names that match NAME, such as `'*dinov2*'`. Models without a
classifier, such as DINO, output their features. The file has a dynamic batch size,
keeps module paths (`blocks.3`) as layer names, and contains the preprocessing of the
model's `pretrained_cfg` in its metadata. Licences differ: see each model's card.
"""

from __future__ import annotations

import sys
from typing import Any

from export_common import (
    add_exporter,
    argument_parser,
    check_file,
    export_torch,
    write_metadata,
)


def preprocessing_of(config: dict[str, Any]) -> dict[str, Any]:
    """Convert timm's data configuration to parameters of sk_cnncodes.Preprocessing."""
    channels, height, width = config["input_size"]
    mode, interpolation = config["crop_mode"], config["interpolation"]
    if mode not in ("center", "squash") or interpolation == "random":
        raise SystemExit(
            f"timm's crop_mode={mode!r} with interpolation={interpolation!r} has no "
            "counterpart in sk_cnncodes. Expected crop_mode 'center' or 'squash'."
        )
    scaled = [int(side / config["crop_pct"]) for side in (height, width)]
    return {
        "crop_size": (height, width),
        "resize": "shorter" if mode == "center" else "squash",
        "resize_size": min(scaled) if mode == "center" else scaled,
        "interpolation": interpolation,
        "rounding": "torchvision",
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "scale": 1 / 255,
        "channels": "GRAY" if channels == 1 else "RGB",
        "layout": "NCHW",
    }


def build(
    name: str, random_weights: bool = False, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Build a model in evaluation mode and its preprocessing.

    `options` go to `timm.create_model`, such as `img_size=224`.
    """
    import timm

    model = timm.create_model(
        name, pretrained=not random_weights, exportable=True, **options
    )
    config = timm.data.resolve_model_data_config(model)
    if "img_size" in options:  # not part of timm's data configuration
        channels, side = config["input_size"][0], options["img_size"]
        config = config | {"input_size": (channels, side, side)}
    return model.eval(), preprocessing_of(config)


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--list", action="store_true", help="show names that match NAME"
    )
    parser.add_argument("--image-size", type=int, help="side of the input, in pixels")
    parser.add_argument(
        "--global-pool",
        help="what the features are made of: token, avg and others, instead of the "
        "model's own; DINOv3's authors take the class token, timm the average",
    )
    add_exporter(parser)
    listed = sys.argv[1:] if arguments is None else arguments
    if "--list" in listed:
        import timm

        names = [name for name in listed if name != "--list"] or ["*"]
        print("\n".join(timm.list_models(names[0], pretrained=True)))
        return
    given = parser.parse_args(arguments)
    options: dict[str, Any] = {}
    if given.image_size:
        options["img_size"] = given.image_size
    if given.global_pool:
        options["global_pool"] = given.global_pool
    model, preprocessing = build(given.name, given.random_weights, **options)
    channels = 1 if preprocessing["channels"] == "GRAY" else 3
    shape = (channels, *preprocessing["crop_size"])
    export_torch(model, shape, given.output, given.exporter)
    write_metadata(given.output, preprocessing)
    check_file(given.output)


if __name__ == "__main__":
    main()
