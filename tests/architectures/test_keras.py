"""Keras applications: codes equal those of `include_top=False, pooling="avg"`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.architectures.helpers import (
    averaged,
    check_codes,
    network_input,
    recipe,
    whole,
)

pytestmark = [
    pytest.mark.slow,
    # Keras and tf2onnx use parts of numpy and TensorFlow that these deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning"),
]


@pytest.fixture(scope="module")
def keras() -> Any:
    """Keras on TensorFlow, whose exporter keeps the names of layers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    pytest.importorskip("tensorflow")
    pytest.importorskip("tf2onnx")
    return pytest.importorskip("keras")


def numbered(pattern: str, *numbers: int) -> list[str]:
    return [pattern.format(number) for number in numbers]


def residual(stages: list[int]) -> list[str]:
    """ResNet's blocks, but for the last."""
    names = [
        f"conv{stage}_block{block}_out"
        for stage, count in enumerate(stages, 2)
        for block in range(1, count + 1)
    ]
    return names[:-1]


# Title and the Keras layers at the boundaries before layer -1; of those whose names
# depend on what was built before, the type and the number among its type. With ``<``
# any label will do: TensorFlow's exporter keeps one of two equal activations, and may
# fold a normalisation into the convolution before it, which has no name.
NETWORKS: dict[str, tuple[str, list[str]]] = {
    "MobileNet": ("MobileNet v1", numbered("conv_pw_{}_relu", 1, 3, 5, 11)),
    "ResNet50": ("ResNet-50", ["pool1_pool", *residual([3, 4, 6, 3])]),
    "DenseNet121": ("DenseNet-121", ["pool1", *numbered("pool{}_pool", 2, 3, 4)]),
    "NASNetMobile": (
        "NASNet-Mobile",
        [
            *("<Activation 0", "reduction_concat_stem_1", "reduction_concat_stem_2"),
            *numbered("normal_concat_{}", 0, 1, 2, 3),
            "reduction_concat_reduce_4",
            *numbered("normal_concat_{}", 5, 6, 7, 8),
            "reduction_concat_reduce_8",
            *numbered("normal_concat_{}", 9, 10, 11),
        ],
    ),
    "EfficientNetB0": (
        "EfficientNet-B0",
        [
            *("<block1a_project_bn", "<block2a_project_bn", "block2b_add"),
            *("<block3a_project_bn", "block3b_add"),
            *("<block4a_project_bn", "block4b_add", "block4c_add"),
            *("<block5a_project_bn", "block5b_add", "block5c_add"),
            *("<block6a_project_bn", "block6b_add", "block6c_add", "block6d_add"),
        ],
    ),
    "InceptionResNetV2": (
        "Inception-ResNet-v2",
        [
            *("Activation 0", "MaxPooling2D 0", "MaxPooling2D 1", "mixed_5b"),
            *numbered("block35_{}_ac", *range(1, 11)),
            "mixed_6a",
            *numbered("block17_{}_ac", *range(1, 21)),
            "mixed_7a",
            *numbered("block8_{}_ac", *range(1, 10)),
            "CustomScaleLayer -1",
        ],
    ),
}


def calibrate(model: Any, images: np.ndarray, keras: Any) -> None:
    """Give batch normalisations the statistics of images, so that nothing vanishes."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)


def resolved(name: str, model: Any) -> str:
    """The name of a Keras layer that is given by its type and number."""
    kind, _, number = name.removeprefix("<").partition(" ")
    if not number:
        return kind
    return [each.name for each in model.layers if type(each).__name__ == kind][
        int(number)
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, keras: Any, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    export = recipe("export_keras")
    title, blocks = NETWORKS[name]
    model, preprocessing = export.build(name, random_weights=True)
    exact = whole(preprocessing)
    images = network_input(exact)
    calibrate(model, images, keras)
    names = [resolved(each, model) for each in blocks]
    outputs = [model.get_layer(each).output for each in names]
    references = keras.Model(model.input, outputs)(images) if outputs else []
    codes = [averaged(np.asarray(r), channels_last=True) for r in references]
    headless = getattr(keras.applications, name)(
        weights=None, include_top=False, pooling="avg", input_shape=images.shape[1:]
    )
    weights = model.get_weights()[: len(headless.get_weights())]
    headless.set_weights(weights)
    codes.append(np.asarray(headless(images)))
    path = tmp_path / f"{name}.onnx"
    export.export(model, path)
    recipe("export_common").write_metadata(path, preprocessing)
    recipe("export_common").check_file(path)
    labels = [
        None if block.startswith("<") else layer
        for block, layer in zip(blocks, names, strict=True)
    ]
    check_codes(path, exact, [*codes], [*labels, None], (title, "Keras, tf2onnx"))
