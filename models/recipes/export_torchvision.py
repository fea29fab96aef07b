"""Export a pretrained classifier of torchvision to a self-describing ONNX file.

Needs: torch, torchvision, onnx, onnxscript.

    python models/recipes/export_torchvision.py inception_v3 inception_v3.onnx
    python models/recipes/export_torchvision.py convnext_tiny convnext_tiny.onnx
    python models/recipes/export_torchvision.py vit_b_16 vit_b_16.onnx \\
        --weights IMAGENET1K_SWAG_LINEAR_V1

`--list` shows all names. The file has a dynamic batch size, keeps module paths
(`layer3.5`) as layer names, and contains the preprocessing of the weights in its
metadata. The weights have their own licences: see torchvision's page on each of them.
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


def preprocessing_of(weights: Any) -> dict[str, Any]:
    """Convert `weights.transforms()` to parameters of sk_cnncodes.Preprocessing."""
    preset = weights.transforms()
    (crop,), (resized,) = preset.crop_size, preset.resize_size
    return {
        "crop_size": (crop, crop),
        "resize": "shorter",
        "resize_size": resized,
        "interpolation": preset.interpolation.value,
        "rounding": "torchvision",
        "mean": list(preset.mean),
        "std": list(preset.std),
        "scale": 1 / 255,
        "channels": "RGB",
        "layout": "NCHW",
    }


def build(
    name: str, weights_name: str = "DEFAULT", random_weights: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Build a classifier in evaluation mode and its preprocessing."""
    from torchvision import models

    weights = models.get_model_weights(name)[weights_name]
    preprocessing = preprocessing_of(weights)
    if not random_weights:
        return models.get_model(name, weights=weights).eval(), preprocessing
    options: dict[str, Any] = {}
    if name.startswith("vit"):
        options["image_size"] = preprocessing["crop_size"][0]
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True, "aux_logits": False}
    return models.get_model(name, weights=None, **options).eval(), preprocessing


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--weights", default="DEFAULT", help="name of the weights")
    parser.add_argument("--list", action="store_true", help="show all names")
    add_exporter(parser)
    if "--list" in (sys.argv[1:] if arguments is None else arguments):
        from torchvision import models

        print("\n".join(models.list_models(module=models)))
        return
    given = parser.parse_args(arguments)
    model, preprocessing = build(given.name, given.weights, given.random_weights)
    shape = (3, *preprocessing["crop_size"])
    export_torch(model, shape, given.output, given.exporter)
    write_metadata(given.output, preprocessing)
    check_file(given.output)


if __name__ == "__main__":
    main()
