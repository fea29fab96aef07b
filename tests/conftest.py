"""Fixtures and helpers for all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Before NumPy is imported: on the small matrices of tests, OpenBLAS's threads wait for
# each other for most of the CPU time. Processes that tests start inherit it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from sk_cnncodes import Preprocessing
from sk_cnncodes.engines.onnxruntime import import_onnxruntime

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real backbones and photographs beside the checkout."""
    if not (SHARED / "backbones").is_dir():
        pytest.skip(f"needs the real backbones and photographs in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Eight different photographs: crops of the two that scikit-learn ships."""
    parts = []
    for image in load_sample_images().images:
        for top, left in [(0, 0), (0, 240), (160, 80), (200, 300)]:
            parts.append(image[top : top + 220, left : left + 330 - top])
    return parts


@pytest.fixture(scope="session")
def photograph_files(
    photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """The same photographs as JPEG files."""
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{number}.jpg" for number in range(len(photographs))]
    for pixels, path in zip(photographs, paths, strict=True):
        Image.fromarray(pixels).save(path, quality=90)
    return paths


@pytest.fixture(scope="session")
def plain() -> Preprocessing:
    """Preprocessing of the small networks of `tests.networks`: 32 x 32, [-1, 1]."""
    return Preprocessing(
        crop_size=(32, 32), resize_size=36, scale=1 / 127.5, mean=(1, 1, 1)
    )


def run_tensor(
    model: onnx.ModelProto,
    tensor: str,
    pixels: np.ndarray,
    preprocessing: Preprocessing,
) -> np.ndarray:
    """Activations of one tensor from running the whole network on float images.

    An independent check of a code graph: normalises in numpy and cuts nothing.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    if tensor not in [o.name for o in whole.graph.output]:
        whole.graph.output.append(onnx.ValueInfoProto(name=tensor))
    data = pixels.astype(np.float64) * preprocessing.scale
    if preprocessing.channels == "BGR":
        data = data[..., ::-1]
    data = (data - preprocessing.mean) / preprocessing.std
    if preprocessing.layout == "NCHW":
        data = data.transpose(0, 3, 1, 2)
    (value,) = [v for v in whole.graph.input if v.name == "data"]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    session = import_onnxruntime().InferenceSession(
        whole.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rows = []
    for image in data.astype(dtype):  # one by one, for fixed batch sizes
        rows.append(session.run([tensor], {"data": image[None]})[0])
    return np.concatenate(rows).astype(np.float32)


def prepared(images: list[np.ndarray], preprocessing: Preprocessing) -> np.ndarray:
    """Resize and crop images into one uint8 array."""
    return np.stack([preprocessing.apply(Image.fromarray(i)) for i in images])


def run_python(program: str, **environment: str) -> str:
    """Output of a program run in a process of its own, which must exit with 0."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip() + result.stderr.strip()
