"""The bundled backbone: its size, its cost, and its codes compared with recorded ones.

After a new training, ``python -m tests.backbones.test_bundled`` records them again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from sk_cnncodes import CNNCodeTransformer, load_backbone
from sk_cnncodes.layers.multiply_adds import layer_multiply_adds

NAME = "cnncodes-mini"
RECORDED = Path(__file__).parents[1] / "recorded" / f"{NAME}.txt"


def codes_of_three_images() -> np.ndarray:
    """Codes of two photographs and a digit."""
    images = [*load_sample_images().images, load_digits().images[0] / 16]
    return CNNCodeTransformer(NAME, cache=None).transform(images)


def test_codes_equal_the_recorded_ones() -> None:
    recorded = np.loadtxt(RECORDED, dtype=np.float32).T
    np.testing.assert_allclose(codes_of_three_images(), recorded, rtol=0, atol=1e-3)


def test_size_and_cost() -> None:
    backbone = load_backbone(NAME)
    assert backbone.path.stat().st_size <= 5e6
    _, multiply_adds = layer_multiply_adds(backbone.graph, [backbone.layers[-1].name])
    assert 2 * multiply_adds <= 150e6
    height, width = backbone.preprocessing.crop_size
    assert 96 <= height == width <= 160


def test_layers_are_named_blocks() -> None:
    layers = load_backbone(NAME).layers
    assert len(layers) >= 5
    assert {"fire3", "fire5", "fire8"} < {layer.label for layer in layers}


if __name__ == "__main__":
    RECORDED.parent.mkdir(exist_ok=True)
    np.savetxt(RECORDED, codes_of_three_images().T, fmt="%.5f")
