"""Families of timm, small: block outputs, and -1 is what timm calls `pre_logits`.

The networks are the smallest of their family or have fewer blocks than any of it, so
that one takes seconds. `.ci/run architectures-nightly` adds torch's newer exporter,
which takes ten times as long.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.architectures.helpers import (
    EXPORTERS,
    PRE_LOGITS,
    Pool,
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


def average(values: np.ndarray) -> np.ndarray:
    """The mean over tokens, or over the places of a map, whose sides are equal."""
    if values.ndim == 4:
        channels_last = values.shape[1] == values.shape[2] != values.shape[3]
        return values.mean((1, 2) if channels_last else (2, 3))
    return values.mean(1) if values.ndim == 3 else values


def numbered(pattern: str, *numbers: int) -> list[str]:
    return [pattern.format(number) for number in numbers]


def vit(blocks: int) -> list[str]:
    return ["<blocks.0", *numbered("blocks.{}", *range(blocks - 1))]


def downsampled(stages: list[list[str]], downsample: str) -> list[str]:
    """Boundaries of stages, and before those of all but the first, a downsampling."""
    names = [*stages[0]]
    for stage, blocks in enumerate(stages[1:], 1):
        names += [downsample.format(stage), *blocks]
    return names


def blocks_of(counts: list[int], pattern: str = "stages.{}.blocks.{}") -> list[list]:
    """Names of blocks by stage."""
    return [
        [pattern.format(stage, block) for block in range(count)]
        for stage, count in enumerate(counts)
    ]


def halves(blocks: list[int], stage: int) -> list[str]:
    """EfficientViT of MSRA: attention between two MLPs, each with its residual sum."""
    pattern = "stages.{}.blocks.{}.ffn{}"
    return [pattern.format(stage, block, half) for block in blocks for half in (0, 1)]


# Options, boundaries before layer -1, and from activations to codes.
Family = tuple[dict[str, Any], list[str], Pool]
TRANSFORMERS: dict[str, Family] = {
    "vit_small_patch14_reg4_dinov2": (
        {"depth": 3, "img_size": 224},
        vit(3),
        class_token,
    ),
    "vit_small_patch16_dinov3": (
        {"depth": 3},
        ["patch_embed.proj", "blocks.0", "blocks.1"],
        class_token,
    ),
    "vit_base_patch16_siglip_224": (
        {"depth": 3, "embed_dim": 192, "num_heads": 3},
        [*vit(4), "attn_pool.proj"],
        average,
    ),
    "eva02_tiny_patch14_224": ({"depth": 3}, vit(3), class_token),
    "hiera_tiny_224": (
        {"stages": (1, 1, 2, 1)},
        ["unroll", *numbered("blocks.{}", 0, 1, 2, 3)],
        average,
    ),
    "swinv2_tiny_window8_256": (
        {"depths": (1, 1, 2, 1), "embed_dim": 48},
        [
            "patch_embed.norm",
            *downsampled(
                blocks_of([1, 1, 2, 0], "layers.{}.blocks.{}"), "layers.{}.downsample"
            ),
        ],
        average,
    ),
    "maxvit_rmlp_pico_rw_256": (
        {"depths": (1, 1, 1, 1)},
        [
            "stem.conv2",
            *(
                f"stages.{stage}.blocks.0.{part}"
                for stage in range(4)
                for part in ("conv", "attn_block", "attn_grid")
            ),
        ][:-1],
        average,
    ),
    "coatnet_pico_rw_224": (
        {"depths": (1, 1, 2, 1)},
        ["stem.conv2", "stages.0", "stages.1", "stages.2.blocks.0", "stages.2"],
        average,
    ),
    "efficientvit_b0": (
        {},
        [
            *("stem.in_conv.act", "stem.res0"),
            *itertools.chain(*blocks_of([2, 2, 3, 3])),
            "head.in_conv.act",
        ],
        average,
    ),
    "efficientvit_m0": (
        {},
        [
            *numbered("patch_embed.relu{}", 1, 2, 3),
            *("<stages.0.blocks.0", *halves([0], 0)),
            *("stages.1.downsample.res1.1", "stages.1.downsample.patchmerge.conv3"),
            *("stages.1.downsample.res2.1", *halves([0, 1], 1)),
            *("stages.2.downsample.res1.1", "stages.2.downsample.patchmerge.conv3"),
            *("stages.2.downsample.res2.1", *halves([0, 1, 2], 2)[:-1]),
        ],
        average,
    ),
}
CONVOLUTIONAL: dict[str, Family] = {
    "convnextv2_atto": (
        {"depths": (1, 1, 2, 1)},
        ["stem.1", *downsampled(blocks_of([1, 1, 2, 0]), "stages.{}.downsample.1")],
        average,
    ),
    "mobilenetv4_conv_small": (
        {},
        [
            *("bn1.act", "blocks.0.1", "blocks.1.1"),
            *numbered("blocks.2.{}", *range(6)),
            *numbered("blocks.3.{}", *range(6)),
            "blocks.4.0",
        ],
        average,
    ),
    "repvit_m0_9": (
        {"depth": (1, 1, 2, 1)},
        [
            *("stem.act1", "<stages.0.blocks.0", "stages.0.blocks.0"),
            *itertools.chain(
                *(
                    [
                        f"stages.{stage}.downsample.pre_block",
                        f"stages.{stage}.downsample.channel_downsample",
                        f"stages.{stage}.downsample",
                        *blocks,
                    ]
                    for stage, blocks in enumerate(blocks_of([1, 1, 2, 0]))
                    if stage
                )
            ),
        ],
        average,
    ),
    "regnety_002": (
        {},
        [
            *("stem.bn", "s1.b1", "s2.b1"),
            *numbered("s3.b{}", *range(1, 5)),
            *numbered("s4.b{}", *range(1, 7)),
        ],
        average,
    ),
    "eca_nfnet_l0": (
        {"depths": (1, 1, 2, 1)},
        [
            *("stem.act4", "<stages.1.0.conv1", "<stages.2.0.conv1", "stages.2.0"),
            *("<stages.3.0.conv1", "stages"),
        ],
        average,
    ),
    "tf_efficientnetv2_b0": (
        {},
        [*itertools.chain(*blocks_of([1, 2, 2, 3, 5, 8], "blocks.{}.{}"))],
        average,
    ),
    "cs3darknet_focus_s": (
        {},
        ["stem.conv1", *numbered("stages.{}", 0, 1, 2)],
        average,
    ),
    "dla46_c": (
        {},
        [
            *("level0.2", "level1.2", "level2.tree1", "level2.root"),
            *("level3.tree2", "level4.tree2"),
        ],
        average,
    ),
    "hgnetv2_b0": (
        {},
        [
            *("<stem.stem3", "stem.stem4.lab", "stages.0.blocks"),
            *("stages.1.downsample", "stages.1.blocks", "stages.2.downsample"),
            *("stages.2.blocks.0", "stages.2.blocks"),
            *("stages.3.downsample", "stages.3.blocks"),
        ],
        average,
    ),
    "fastvit_t8": (
        {"layers": (1, 1, 2, 1)},
        [
            *("stem.0.act", "stem.1.act", "stem.2.act", "stages.0.blocks"),
            *("stages.1.downsample.proj.0", "stages.1.downsample", "stages.1.blocks"),
            *("stages.2.downsample.proj.0", "stages.2.downsample"),
            *("stages.2.blocks.0", "stages.2.blocks"),
            *("stages.3.downsample.proj.0", "stages.3.downsample", "stages.3.blocks"),
        ],
        average,
    ),
    "swiftformer_xs": (
        {"layers": (1, 1, 2, 1)},
        [
            *("stem.2", "stem.5"),
            *("stages.0.blocks.0.local_representation", "stages.0.blocks.0"),
            "<stages.1.blocks.0",
            *("stages.1.blocks.0.local_representation", "stages.1.blocks.0"),
            *("<stages.2.blocks.0", "stages.2.blocks.0"),
            *("stages.2.blocks.1.local_representation", "stages.2.blocks.1"),
            *("<stages.3.blocks.0", "stages.3.blocks.0.local_representation"),
        ],
        average,
    ),
}
FAMILIES = TRANSFORMERS | CONVOLUTIONAL


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, exporter: str, timm: Any, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    options, blocks, pool = FAMILIES[name]
    built = recipe("export_timm").build(name, random_weights=True, **options)
    network = (name, blocks, PRE_LOGITS)
    check_torch(network, *built, "timm", exporter, tmp_path, pool)
