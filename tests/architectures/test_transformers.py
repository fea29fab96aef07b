"""Models of Hugging Face transformers: codes equal hidden states and pooled outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.architectures.helpers import (
    Network,
    averaged,
    check_torch,
    class_token,
    network_input,
    recipe,
    watched,
    whole,
)

pytestmark = [
    pytest.mark.slow,
    # The exporters call parts of torch that torch deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
SMALL = {"hidden_size": 384, "num_attention_heads": 6}
SIDES = {"height": 224, "width": 224}


@pytest.fixture(scope="module")
def transformers(torchvision: Any) -> Any:
    return pytest.importorskip("transformers")


def folder(name: str, transformers: Any, path: Path) -> Path:
    """The two configurations of a model, as its repository holds them."""
    if name == "dinov2":
        config = transformers.Dinov2Config(image_size=518, patch_size=14, **SMALL)
        processor = transformers.BitImageProcessor(
            size={"shortest_edge": 256}, crop_size=SIDES
        )
        config.architectures = ["Dinov2Model"]
    elif name in ("vit", "dino"):
        config = transformers.ViTConfig(intermediate_size=1536, **SMALL)
        processor = transformers.ViTImageProcessor()
        kind = "ViTForImageClassification" if name == "vit" else "ViTModel"
        config.architectures = [kind]
    else:
        config = transformers.SwinConfig()
        processor = transformers.ViTImageProcessor()
        config.architectures = ["SwinForImageClassification"]
    config.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def layers(pattern: str, count: int) -> list[str]:
    return [pattern.format(number) for number in range(count)]


SWIN = "swin.encoder.layers."
NETWORKS: dict[str, Network] = {
    "dinov2": (
        "DINOv2-S",
        ["embeddings", *layers("encoder.layer.{}", 11)],
        "layernorm",
    ),
    "dino": ("DINO ViT-S/16", ["embeddings", *layers("layers.{}", 11)], "layernorm"),
    "vit": (
        "ViT-S/16",
        ["vit.embeddings", *layers("vit.layers.{}", 11)],
        "<classifier",
    ),
    "swin": (
        "Swin-T",
        [
            "swin.embeddings.norm",
            *layers(SWIN + "0.blocks.{}", 2),
            SWIN + "0.downsample.reduction",
            *layers(SWIN + "1.blocks.{}", 2),
            SWIN + "1.downsample.reduction",
            *layers(SWIN + "2.blocks.{}", 6),
            SWIN + "2.downsample.reduction",
            SWIN + "3.blocks.0",
        ],
        "<classifier",
    ),
}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, exporter: str, transformers: Any, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    _, blocks, last = NETWORKS[name]
    export = recipe("export_transformers")
    source = folder(name, transformers, tmp_path / name)
    model, preprocessing = export.build(str(source), random_weights=True)
    pool = averaged if name == "swin" else class_token
    if name in ("dinov2", "dino"):
        check_hidden_states(model, preprocessing, [*blocks, last])
    check_torch(
        NETWORKS[name],
        model,
        preprocessing,
        "transformers",
        exporter,
        tmp_path,
        pool,
        export.scores_or_features,
    )


def check_hidden_states(model: Any, preprocessing: dict, names: list[str]) -> None:
    """The modules that hooks watch put out the model's own hidden states."""
    import torch

    images = torch.from_numpy(network_input(whole(preprocessing)))
    with watched(model, names) as values, torch.no_grad():
        output = model(images, output_hidden_states=True)
    states = [state.numpy() for state in output.hidden_states]
    for name, state in zip(names[:-1], states, strict=False):
        np.testing.assert_allclose(values[name], state, rtol=1e-5, atol=1e-5)
    last = output.last_hidden_state.numpy()
    np.testing.assert_allclose(values[names[-1]], last, rtol=1e-5, atol=1e-5)
