"""Networks of timm: codes equal what forward hooks see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.architectures.helpers import (
    Network,
    averaged,
    check_torch,
    class_token,
    recipe,
)

pytestmark = [
    pytest.mark.slow,
    # The exporters call parts of torch that torch deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]


@pytest.fixture(scope="module")
def timm(torchvision: Any) -> Any:
    return pytest.importorskip("timm")


def numbered(pattern: str, count: int) -> list[str]:
    return [pattern.format(number) for number in range(count)]


TRANSFORMER = ["<blocks.0", *numbered("blocks.{}", 11)]
NETWORKS: dict[str, Network] = {
    "inception_v4": (
        "Inception v4",
        ["features.0", *(f"features.{number}" for number in range(2, 21))],
        "<last_linear",
    ),
    "inception_resnet_v2": (
        "Inception-ResNet-v2",
        [
            *("conv2d_1a.bn", "maxpool_3a", "maxpool_5a", "mixed_5b"),
            *numbered("repeat.{}", 10),
            "mixed_6a",
            *numbered("repeat_1.{}", 20),
            "mixed_7a",
            *numbered("repeat_2.{}", 9),
            "block8",
        ],
        "<classif",
    ),
    "mobilenetv1_100": ("MobileNet v1", numbered("blocks.{}", 4), "<classifier"),
    "vit_small_patch16_224": ("ViT-S/16", TRANSFORMER, "<head"),
    "deit_tiny_distilled_patch16_224": ("DeiT-Ti distilled", TRANSFORMER, "<head"),
    "vit_small_patch14_dinov2": ("DINOv2-S", TRANSFORMER, "norm"),
}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, exporter: str, timm: Any, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    options = {"img_size": 224} if "dinov2" in name else {}
    built = recipe("export_timm").build(name, random_weights=True, **options)
    pool = class_token if NETWORKS[name][1] is TRANSFORMER else averaged
    check_torch(NETWORKS[name], *built, "timm", exporter, tmp_path, pool)
