"""Small models of Hugging Face transformers, of the families of today.

`.ci/run architectures-nightly` adds torch's newer exporter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, load_backbone
from tests.architectures.helpers import (
    EXPORTERS,
    Pool,
    averaged,
    check_torch,
    class_token,
    network_input,
    photographs,
    recipe,
    whole,
)

pytestmark = [
    pytest.mark.slow,
    # The exporters call parts of torch that torch deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "projection_size": 64,
}
STAGES = {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1]}
SIDES = {"height": 64, "width": 64}
LARGER = {"height": 96, "width": 96}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
CLIP = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
)


@pytest.fixture(scope="module")
def transformers(torchvision: Any) -> Any:
    return pytest.importorskip("transformers")


# The class of the model, its configuration, its image processor.
Source = tuple[str, Callable[[Any], Any], Callable[[Any], Any]]
SOURCES: dict[str, Source] = {
    "DINOv2, registers": (
        "Dinov2WithRegistersModel",
        lambda t: t.Dinov2WithRegistersConfig(num_register_tokens=4, **VISION),
        lambda t: t.BitImageProcessor(size={"shortest_edge": 110}, crop_size=LARGER),
    ),
    # At another size than that of its configuration: its rope has no table of sizes.
    "DINOv3 ViT": (
        "DINOv3ViTModel",
        lambda t: t.DINOv3ViTConfig(num_register_tokens=4, **VISION),
        lambda t: t.DINOv3ViTImageProcessor(size=LARGER),
    ),
    "DINOv3 ConvNeXt": (
        "DINOv3ConvNextModel",
        lambda t: t.DINOv3ConvNextConfig(**STAGES),
        lambda t: t.DINOv3ViTImageProcessor(size=SIDES),
    ),
    "ConvNeXt V2": (
        "ConvNextV2ForImageClassification",
        lambda t: t.ConvNextV2Config(num_labels=10, **STAGES),
        lambda t: t.ConvNextImageProcessor(
            size={"shortest_edge": 64}, image_mean=IMAGENET[0], image_std=IMAGENET[1]
        ),
    ),
    # The fixed sizes of SigLIP 2 are models of SigLIP's class.
    "SigLIP 2": (
        "SiglipModel",
        lambda t: t.SiglipConfig(vision_config=VISION, text_config=TEXT),
        lambda t: t.SiglipImageProcessor(size=SIDES),
    ),
    "SigLIP 2, images alone": (
        "SiglipVisionModel",
        lambda t: t.SiglipVisionConfig(**VISION),
        lambda t: t.SiglipImageProcessor(size=SIDES),
    ),
    "CLIP": (
        "CLIPModel",
        lambda t: t.CLIPConfig(
            vision_config=VISION,
            text_config=TEXT | {"bos_token_id": 98, "eos_token_id": 99},
            projection_dim=32,
        ),
        lambda t: t.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SIDES),
    ),
    "SigLIP 2 NaFlex": (
        "Siglip2Model",
        lambda t: t.Siglip2Config(
            vision_config={k: v for k, v in VISION.items() if k != "image_size"},
            text_config=TEXT,
        ),
        lambda t: t.Siglip2ImageProcessor(),
    ),
}


def stages(prefix: str, first: str, downsample: str) -> list[str]:
    """Boundaries of ConvNeXt with `STAGES`, before the last block."""
    names = [first, f"{prefix}stages.0.layers.0"]
    for stage in (1, 2, 3):
        names.append(f"{prefix}stages.{stage}.{downsample}.1")
        blocks = range(STAGES["depths"][stage])
        names += [f"{prefix}stages.{stage}.layers.{block}" for block in blocks]
    return names


def blocks(prefix: str, *numbers: int) -> list[str]:
    return [f"{prefix}.{number}" for number in numbers]


# Modules that put out the boundaries before layer -1, that which puts out -1, how the
# library pools, and resize, resized size, interpolation, mean, std.
EXPECTED: dict[str, tuple[list[str], str, Pool, tuple[Any, ...]]] = {
    "ConvNeXt V2": (
        stages(
            "convnextv2.encoder.",
            "convnextv2.embeddings.layernorm",
            "downsampling_layer",
        )[:-1],
        "convnextv2.layernorm",
        averaged,
        ("shorter", 73, "bicubic", *IMAGENET),
    ),
    "SigLIP 2": (
        [
            "vision_model.embeddings",
            *blocks("vision_model.encoder.layers", 0, 1),
            *("<vision_model.post_layernorm", "vision_model.head.attention"),
        ],
        "vision_model.head",
        averaged,
        ("exact", None, "bicubic", *HALF),
    ),
    "CLIP": (
        [
            "vision_model.pre_layrnorm",
            *blocks("vision_model.encoder.layers", 0, 1, 2),
        ],
        "visual_projection",
        class_token,
        ("shorter", 64, "bicubic", *CLIP),
    ),
}


def saved(name: str, transformers: Any, path: Path) -> Path:
    """The two configurations of a model, as its repository holds them."""
    architecture, config, processor = SOURCES[name]
    found = config(transformers)
    found.architectures = [architecture]
    found.save_pretrained(path)
    processor(transformers).save_pretrained(path)
    return path


# Those whose pooled output is -1 and that are not compared block by block.
POOLED: dict[str, tuple[Any, ...]] = {
    "DINOv3 ViT": ("exact", None, "bilinear", *IMAGENET),
    "DINOv3 ConvNeXt": ("exact", None, "bilinear", *IMAGENET),
    "SigLIP 2, images alone": ("exact", None, "bicubic", *HALF),
}
if "dynamo" in EXPORTERS:  # the older exporter lacks an operator that it needs
    POOLED["DINOv2, registers"] = ("shorter", 110, "bicubic", *CLIP)
KEYS = ("resize", "resize_size", "interpolation", "mean", "std")


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", EXPECTED)
def test_family(name: str, exporter: str, transformers: Any, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    before, last, pool, stated = EXPECTED[name]
    export = recipe("export_transformers")
    source = saved(name, transformers, tmp_path / "source")
    model, preprocessing = export.build(str(source), random_weights=True)
    assert tuple(preprocessing[key] for key in KEYS) == stated
    check_torch(
        (name, before, last),
        model,
        preprocessing,
        "transformers",
        exporter,
        tmp_path,
        pool,
        export.scores_or_features,
    )


@pytest.mark.parametrize("name", POOLED)
def test_pooler_output(name: str, transformers: Any, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    export = recipe("export_transformers")
    source = saved(name, transformers, tmp_path / "source")
    model, preprocessing = export.build(str(source), random_weights=True)
    assert tuple(preprocessing[key] for key in KEYS) == POOLED[name]
    images = torch.from_numpy(network_input(whole(preprocessing)))
    with torch.no_grad():
        expected = type(model).forward(model, images).pooler_output.numpy()
    path = tmp_path / "network.onnx"
    export.export(model, preprocessing, path, EXPORTERS[-1])
    recipe("export_common").write_metadata(path, preprocessing)
    stated = load_backbone(path).preprocessing
    assert whole(stated.to_dict()) == whole(preprocessing)
    found = CNNCodeTransformer(path, preprocessing=whole(preprocessing))
    codes = found.fit_transform(photographs())
    assert expected.std(axis=0).max() > 1e-3
    largest = np.abs(expected).max()
    np.testing.assert_allclose(codes, expected, rtol=0, atol=1e-4 * largest)


def test_a_variable_number_of_patches(transformers: Any, tmp_path: Path) -> None:
    """SigLIP 2's NaFlex models have no counterpart: an error, and no file."""
    source = saved("SigLIP 2 NaFlex", transformers, tmp_path / "source")
    with pytest.raises(SystemExit, match="no counterpart"):
        recipe("export_transformers").build(str(source), random_weights=True)
