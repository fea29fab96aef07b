"""Multiply-adds, compared with counts by hand and published figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from sk_cnncodes import Preprocessing, load_backbone
from sk_cnncodes.layers.multiply_adds import layer_multiply_adds, node_multiply_adds
from tests import networks


@pytest.mark.parametrize(
    ("node", "shapes", "count"),
    [
        # 16 kernels of 3 x 3 x 8 at 5 x 7 positions.
        (
            helper.make_node("Conv", ["x", "w"], ["y"]),
            {"x": (1, 8, 5, 7), "w": (16, 8, 3, 3), "y": (1, 16, 5, 7)},
            16 * 5 * 7 * 8 * 9,
        ),
        # Depthwise: each channel has its own kernel.
        (
            helper.make_node("Conv", ["x", "w"], ["y"], group=8),
            {"x": (1, 8, 5, 7), "w": (8, 1, 3, 3), "y": (1, 8, 5, 7)},
            8 * 5 * 7 * 9,
        ),
        # The kernel is multiplied with each input value.
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"]),
            {"x": (1, 8, 5, 7), "w": (8, 4, 2, 2), "y": (1, 4, 10, 14)},
            8 * 5 * 7 * 4 * 4,
        ),
        (
            helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1),
            {"x": (40, 2), "w": (10, 40), "y": (2, 10)},
            2 * 10 * 40,
        ),
        (
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            {"x": (3, 4, 17, 16), "w": (3, 4, 16, 17), "y": (3, 4, 17, 17)},
            3 * 4 * 17 * 17 * 16,
        ),
        (helper.make_node("Relu", ["x"], ["y"]), {}, 0),
    ],
)
def test_one_node(node, shapes: dict[str, tuple[int, ...]], count: int) -> None:
    assert node_multiply_adds(node, shapes) == count


def test_alexnet_by_hand(tmp_path: Path, plain: Preprocessing) -> None:
    path = networks.save(networks.alexnet(), tmp_path / "net.onnx")
    counts, total = layer_multiply_adds(
        load_backbone(path, plain).graph, ["pool1", "pool5", "fc6", "fc7"]
    )
    conv1 = 8 * 3 * 9 * 32 * 32
    conv5 = conv1 + 12 * 8 * 9 * 16**2 + (16 * 12 + 16 * 16) * 9 * 8**2
    assert counts == {
        "pool1": conv1,
        "pool5": conv5,
        "fc6": conv5 + 256 * 40,
        "fc7": conv5 + 256 * 40 + 40 * 24,
    }
    assert total == conv5 + 256 * 40 + 40 * 24 + 24 * 10


@pytest.mark.parametrize("batch", [1, 4])
def test_counts_do_not_depend_on_a_fixed_batch_size(
    tmp_path: Path, plain: Preprocessing, batch: int
) -> None:
    model = networks.resnet(batch=batch, reshape=True)
    baked = load_backbone(networks.save(model, tmp_path / "baked.onnx"), plain)
    free = load_backbone(
        networks.save(networks.resnet(), tmp_path / "free.onnx"), plain
    )
    expected = layer_multiply_adds(free.graph, ["stem"])
    assert layer_multiply_adds(baked.graph, ["stem"]) == expected


@pytest.mark.parametrize("baked", [True, False])
def test_attention_by_hand(tmp_path: Path, plain: Preprocessing, baked: bool) -> None:
    path = networks.save(networks.vit(baked), tmp_path / "vit.onnx")
    counts, total = layer_multiply_adds(
        load_backbone(path, plain).graph, ["embedded", "attention0", "block0", "block1"]
    )
    patches = 16 * 3 * 8 * 8 * 16
    attention = 4 * 17 * 16 * 16 + 2 * 17 * 17 * 16
    block = attention + 2 * 17 * 16 * 32
    assert counts == {
        "embedded": patches,
        "attention0": patches + attention,
        "block0": patches + block,
        "block1": patches + 2 * block,
    }
    assert total == patches + 2 * block + 16 * 10


def test_counts_grow_towards_the_penultimate_layer() -> None:
    backbone = load_backbone("cnncodes-mini")
    names = [layer.name for layer in backbone.layers]
    counts, total = layer_multiply_adds(backbone.graph, names)
    assert (np.diff([counts[name] for name in names]) >= 0).all()
    assert 0.9 < counts[names[-1]] / total < 1


def test_published_figures(shared: Path) -> None:
    backbone = load_backbone(shared / "backbones" / "squeezenet1.1.onnx")
    counts, total = layer_multiply_adds(backbone.graph, ["squeezenet0_concat7"])
    assert total / 1e9 == pytest.approx(0.35, abs=0.005)
    # conv10 has 1,000 kernels of 1 x 1 x 512 at 13 x 13 positions.
    assert total - counts["squeezenet0_concat7"] == 1000 * 512 * 13 * 13
