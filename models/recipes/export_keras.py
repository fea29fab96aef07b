"""Export a pretrained model of Keras applications to a self-describing ONNX file.

Needs: keras, tensorflow (or tensorflow-cpu), tf2onnx, onnx.

    python models/recipes/export_keras.py MobileNet mobilenet.onnx
    python models/recipes/export_keras.py NASNetMobile nasnet_mobile.onnx
    python models/recipes/export_keras.py InceptionResNetV2 inception_resnet_v2.onnx

NAME is a function of `keras.applications`. The file has a dynamic batch size and a
channels-last input, keeps the names of Keras layers (`conv4_block6_out`) as layer
names, and contains the equivalent of the model's `preprocess_input` in its metadata.
The whole image is resized to the input size, as in the examples of Keras, but with
antialiasing. Keras itself does not antialias: `image_dataset_from_directory` and the
layer `Resizing` take the four nearest pixels, `load_img(target_size=...)` takes the
nearest one. --resize states one of these instead, for networks trained with it.

With KERAS_BACKEND=torch tensorflow and tf2onnx are not needed, but torch's exporter
does not see Keras layers, so that tensors have numbers as names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from export_common import argument_parser, check_file, write_metadata

# For networks that take images of any size.
DEFAULT_SIZE = (224, 224)
RESIZES = {
    "antialiased": {"interpolation": "bilinear"},
    "image_dataset_from_directory": {"interpolation": "bilinear", "antialias": False},
    "load_img": {"interpolation": "nearest"},
}


def preprocessing_of(
    name: str, size: tuple[int, int], resize: str = "antialiased"
) -> dict[str, Any]:
    """The equivalent of `preprocess_input`, measured with black and pure colours.

    It scales and shifts each channel (mode "tf" or "torch"), reverses the channels and
    shifts them (mode "caffe"), or leaves normalisation to the model.
    """
    import keras
    import numpy as np

    function = getattr(keras.applications, name)
    module = sys.modules[function.__module__]
    pixels = np.zeros((1, 2, 2, 3))
    pixels[0, 0, 1, 0] = pixels[0, 1, 0, 1] = pixels[0, 1, 1, 2] = 255
    black, *colours = np.asarray(
        module.preprocess_input(pixels.copy(), data_format="channels_last"), np.float64
    ).reshape(4, 3)
    slopes = (np.array(colours) - black) / 255
    flipped = slopes[0, 0] == 0
    std = 1 / (np.fliplr(slopes) if flipped else slopes).diagonal()
    std = std[::-1] if flipped else std
    return {
        "crop_size": size,
        "resize": "exact",
        "resize_size": None,
        **RESIZES[resize],
        "rounding": "torchvision",
        "mean": [round(float(value), 4) for value in -black * std],
        "std": [round(float(value), 4) for value in std],
        "scale": 1.0,
        "channels": "BGR" if flipped else "RGB",
        "layout": "NHWC",
    }


def build(
    name: str,
    random_weights: bool = False,
    resize: str = "antialiased",
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Build a model and its preprocessing; `options` go to the Keras function."""
    import keras

    if keras.config.image_data_format() != "channels_last":
        raise SystemExit("Keras' image_data_format: expected 'channels_last'.")
    weights = None if random_weights else "imagenet"
    function = getattr(keras.applications, name)
    model = function(weights=weights, **options)
    if None in model.input_shape[1:]:
        model = function(weights=weights, input_shape=(*DEFAULT_SIZE, 3), **options)
    return model, preprocessing_of(name, tuple(model.input_shape[1:3]), resize)


def export(model: Any, output: Path) -> None:
    """Export a Keras model, with layer names in the tensor names."""
    import keras
    import numpy as np
    import onnx

    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            # As tensors, these would become inputs of the exported network.
            layer.mean, layer.variance = map(np.asarray, (layer.mean, layer.variance))
    model(np.zeros((1, *model.input_shape[1:]), np.float32))  # build it for export
    model.export(output, format="onnx", verbose=False)
    if keras.backend.backend() == "tensorflow":
        exported = onnx.load(output)
        _name_by_layers(exported, {layer.name for layer in model.layers})
        onnx.save(exported, output)


def _name_by_layers(model: Any, layers: set[str]) -> None:
    """Turn `network_1/layer_1/Relu:0` into `/layer/Relu:0`.

    TensorFlow appends numbers to names that repeat, as they do in an export.
    """
    scopes = {}
    for node in model.graph.node:
        for name in node.output:
            _, _, within = name.partition("/")
            scope, _, rest = within.partition("/")
            if rest:
                scopes[name] = (scope, rest)
    numbered = all(s.rpartition("_")[0] in layers for s, _ in scopes.values())
    new = {}
    for name, (scope, rest) in scopes.items():
        layer = scope.rpartition("_")[0] if numbered else scope
        if layer in layers:
            new[name] = f"/{layer}/{rest.replace('/', '_')}"
    clashes = len(set(new.values())) < len(new)
    outputs = {value.name for value in model.graph.output}
    if clashes:
        return
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [n if n in outputs else new.get(n, n) for n in field]
    for value in model.graph.value_info:
        value.name = new.get(value.name, value.name)


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--resize", choices=RESIZES, default="antialiased")
    given = parser.parse_args(arguments)
    model, preprocessing = build(given.name, given.random_weights, given.resize)
    export(model, given.output)
    write_metadata(given.output, preprocessing)
    check_file(given.output)


if __name__ == "__main__":
    main()
