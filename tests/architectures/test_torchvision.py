"""Networks of torchvision, and LeNet-5: codes equal what forward hooks see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.architectures.helpers import Network, averaged, check_torch, recipe

pytestmark = [
    pytest.mark.slow,
    # The exporters call parts of torch that torch deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
EXPORTERS = ("torchscript", "dynamo")


def stages(pattern: str, counts: list[int], first: int = 1) -> list[str]:
    """Names such as layer1.0, layer1.1, layer2.0 for counts of blocks."""
    return [
        pattern.format(stage, block)
        for stage, count in enumerate(counts, first)
        for block in range(count)
    ]


def features(*numbers: int) -> list[str]:
    return [f"features.{number}" for number in numbers]


NETWORKS: dict[str, Network] = {
    "alexnet": ("AlexNet", [*features(2, 5, 12), "classifier.2"], "<classifier.6"),
    "vgg16": ("VGG-16", [*features(4, 9, 16, 23, 30), "classifier.1"], "<classifier.6"),
    "googlenet": (
        "GoogLeNet",
        [
            *("maxpool1", "maxpool2", "inception3a", "inception3b"),
            *(f"inception4{letter}" for letter in "abcde"),
            "inception5a",
        ],
        "<fc",
    ),
    "inception_v3": (
        "Inception v3",
        [
            *("Conv2d_1a_3x3", "maxpool1", "maxpool2"),
            *(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c")),
            *(f"Mixed_{name}" for name in ("6d", "6e", "7a", "7b")),
        ],
        "<fc",
    ),
    "resnet18": (
        "ResNet-18",
        ["maxpool", *stages("layer{}.{}", [2, 2, 2, 1])],
        "<fc",
    ),
    "resnet50": (
        "ResNet-50",
        ["maxpool", *stages("layer{}.{}", [3, 4, 6, 2])],
        "<fc",
    ),
    "densenet121": (
        "DenseNet-121",
        ["features.pool0", *(f"features.transition{n}" for n in (1, 2, 3))],
        "<classifier",
    ),
    "mobilenet_v2": ("MobileNet v2", features(*range(1, 17)), "<classifier.1"),
    "mobilenet_v3_large": (
        "MobileNet v3 large",
        features(*range(17)),
        "<classifier.3",
    ),
    "efficientnet_b0": (
        "EfficientNet-B0",
        ["features.1.0", *stages("features.{}.{}", [2, 2, 3, 3, 4], first=2)],
        "<classifier.1",
    ),
    "squeezenet1_1": (
        "SqueezeNet 1.1",
        features(2, 3, 4, 6, 7, 9, 10, 11),
        "<classifier.1",
    ),
    "shufflenet_v2_x1_0": (
        "ShuffleNet v2",
        ["maxpool", *stages("stage{}.{}", [4, 8, 4], first=2)],
        "<fc",
    ),
    "convnext_tiny": (
        "ConvNeXt-T",
        [
            "features.0.1",
            *stages("features.1.{1}", [3]),
            "features.2.1",
            *stages("features.3.{1}", [3]),
            "features.4.1",
            *stages("features.5.{1}", [9]),
            "features.6.1",
            *stages("features.7.{1}", [2]),
        ],
        "<classifier.2",
    ),
    "swin_t": (
        "Swin-T",
        [
            "features.0.2",
            *stages("features.1.{1}", [2]),
            "features.2.reduction",
            *stages("features.3.{1}", [2]),
            "features.4.reduction",
            *stages("features.5.{1}", [6]),
            "features.6.reduction",
            *stages("features.7.{1}", [1]),
        ],
        "<head",
    ),
}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, exporter: str, torchvision: Any, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    built = recipe("export_torchvision").build(name, random_weights=True)
    # Swin's maps are channels-last, all others channels-first.
    last_axis = name == "swin_t"
    check_torch(
        NETWORKS[name],
        *built,
        "torchvision",
        exporter,
        tmp_path,
        pool=lambda values: averaged(values, last_axis),
    )


def lenet() -> Any:
    """LeNet-5 of LeCun et al. (1998): 32 x 32 pixels of gray."""
    from torch import nn

    layers: dict[str, Any] = {
        "c1": nn.Conv2d(1, 6, 5),
        "tanh1": nn.Tanh(),
        "s2": nn.AvgPool2d(2),
        "c3": nn.Conv2d(6, 16, 5),
        "tanh3": nn.Tanh(),
        "s4": nn.AvgPool2d(2),
        "flat": nn.Flatten(),
        "c5": nn.Linear(400, 120),
        "tanh5": nn.Tanh(),
        "f6": nn.Linear(120, 84),
        "tanh6": nn.Tanh(),
        "output": nn.Linear(84, 10),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_lenet(exporter: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    preprocessing = {"crop_size": (32, 32), "channels": "GRAY"}
    preprocessing |= {"mean": 128.0, "std": 64.0}
    network = ("LeNet-5", ["s2", "s4", "tanh5"], "<output")
    check_torch(network, lenet(), preprocessing, "torch", exporter, tmp_path)
