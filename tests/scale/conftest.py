"""A network of one convolution, and small images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import CNNCodeTransformer, Preprocessing
from tests import networks

SIDE = 8
# Images of the sources in tests of them.
COUNT = 12


def save_tiny(path: Path) -> str:
    """Write a network of one convolution, of inputs of 8 x 8."""
    net = networks.Net()
    net.op("GlobalAveragePool", net.conv("data", 3, 5), out="pooled")
    model = net.model("pooled", shape=(3, SIDE, SIDE))
    plain = Preprocessing(crop_size=(SIDE, SIDE), scale=1 / 127.5, mean=(1, 1, 1))
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return networks.save(model, path)


def png(number: int) -> bytes:
    """An image file, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "net.onnx")


@pytest.fixture(scope="session")
def expected(tiny: str) -> np.ndarray:
    """The codes of images 0 to 11."""
    return CNNCodeTransformer(tiny).transform([png(number) for number in range(COUNT)])


@pytest.fixture
def transformer(tiny: str) -> CNNCodeTransformer:
    return CNNCodeTransformer(tiny, n_jobs=2, batch_size=8)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 images in nested folders; one of them is damaged."""
    root = tmp_path_factory.mktemp("images")
    for number in range(37):
        path = root / "abc"[number % 3] / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number))
    (root / "b" / "010.png").write_bytes(b"no image")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_bytes(png(99))
    (root / "notes.txt").write_text("no image")
    return root
