"""Fixtures: a small backbone, images, and a check that no thread remains."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import CNNCodeTransformer, Preprocessing
from sk_cnncodes.cache.code_cache import MEMORY
from tests import networks


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory, plain: Preprocessing) -> str:
    model = networks.resnet()
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return networks.save(model, tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(scope="session")
def pixels() -> list[np.ndarray]:
    """Twelve small images that have little in common."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (12, 4, 5, 3), np.uint8)
    return [
        image.repeat(6 + number, 0).repeat(9, 1) for number, image in enumerate(coarse)
    ]


@pytest.fixture(scope="session")
def files(
    pixels: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """The same images as lossless files."""
    folder = tmp_path_factory.mktemp("images")
    paths = [str(folder / f"{number}.png") for number in range(len(pixels))]
    for image, path in zip(pixels, paths, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture(scope="session")
def alone(net: str, pixels: list[np.ndarray]) -> np.ndarray:
    """The code of each image, computed alone."""
    transformer = CNNCodeTransformer(net, cache=None, n_jobs=1)
    return np.concatenate([transformer.transform([image]) for image in pixels])


def check_rows(codes: np.ndarray, expected: np.ndarray) -> None:
    """Equal within 1e-5 of the largest value."""
    largest = float(np.abs(np.nan_to_num(expected)).max(initial=0))
    np.testing.assert_allclose(codes, expected, rtol=1e-5, atol=1e-5 * largest)


def own_threads() -> list[str]:
    """Threads of the package, but for the one in a worker that watches its parent."""
    names = [thread.name for thread in threading.enumerate()]
    return [
        name
        for name in names
        if name.startswith("sk_cnncodes") and name != "sk_cnncodes-watch"
    ]


@pytest.fixture(autouse=True)
def no_thread_remains() -> Iterator[None]:
    """Empty the memory cache before a test, and check that its threads end."""
    MEMORY.clear()
    yield
    deadline = time.monotonic() + 5
    while own_threads() and time.monotonic() < deadline:
        time.sleep(0.01)  # after an interrupt, they finish their current image
    assert not own_threads()


def leftovers(folder: Path, cache: Path) -> list[str]:
    """Files of a folder other than a cache and the files that SQLite adds to it."""
    kept = {cache.name + ending for ending in ("", "-wal", "-shm")}
    return sorted(set(os.listdir(folder)) - kept)  # noqa: PTH208


@pytest.fixture
def given(
    net: str, files: list[str], alone: np.ndarray, tmp_path: Path
) -> tuple[str, str, str, str]:
    """Arguments of programs: backbone, image folder, expected codes, work folder."""
    reference = tmp_path / "expected.npy"
    np.save(reference, alone)
    folder = tmp_path / "work"
    folder.mkdir()
    return net, str(Path(files[0]).parent), str(reference), str(folder)


def allow_threads(patch: pytest.MonkeyPatch, count: int) -> None:
    """Let at most `count` more threads start."""
    start, left = threading.Thread.start, [count]

    def start_some(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    patch.setattr(threading.Thread, "start", start_some)
