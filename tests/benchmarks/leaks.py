"""Memory, open files and threads after many rounds, and during a long transform.

    python -m tests.benchmarks.leaks [rounds] [images]

Growth is that of the resident memory after the first quarter, when everything is
loaded and the allocator has found its size.
"""

from __future__ import annotations

import gc
import pickle
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from sk_cnncodes import CNNCodeTransformer, CodeCache, Preprocessing
from sk_cnncodes.cache.code_cache import MEMORY
from tests import networks
from tests.benchmarks.timing import machine

PLAIN = Preprocessing(crop_size=(32, 32), scale=1 / 127.5, mean=(1, 1, 1))


@dataclass(frozen=True)
class Growth:
    """What grew from the first quarter to the end."""

    start_mb: float
    mb: float
    handles: int
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.start_mb:.0f} MB, {self.mb:+.1f} MB, {self.handles:+d} open files, "
            f"{self.threads:+d} threads"
        )


def _state() -> tuple[float, int, int]:
    """Resident MB, open files, threads."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (resident,) = (r for r in status.splitlines() if r.startswith("VmRSS:"))
    handles = len(list(Path("/proc/self/fd").iterdir()))
    return int(resident.split()[1]) / 1024, handles, threading.active_count()


def _growth(start: tuple[float, int, int], end: tuple[float, int, int]) -> Growth:
    return Growth(start[0], end[0] - start[0], end[1] - start[1], end[2] - start[2])


def many_rounds(net: str, folder: Path, count: int) -> Growth:
    """Fit, transform and clone, each time with images and a cache of their own."""
    rng = np.random.default_rng(0)
    MEMORY.clear()
    for number in range(count):
        if number == count // 4:
            start = _state()
        images = list(rng.integers(0, 256, (24, 40, 40, 3), np.uint8))
        images[3] = b"no image"
        caches = (None, CodeCache(), folder / f"{number}.sqlite3", "memory")
        transformer = CNNCodeTransformer(
            net,
            layer=-1 - number % 3,
            cache=caches[number % 4],
            cache_layers=[-1, -2],
            on_error="nan",
            n_jobs=1 + number % 3,
            batch_size=1 + number % 5,
        )
        codes = transformer.fit(images).transform(images)
        copied = pickle.loads(pickle.dumps(clone(transformer)))
        np.testing.assert_allclose(copied.transform(images), codes, rtol=1e-4)
    MEMORY.clear()
    return _growth(start, _state())


class _Many(Sequence[Any]):
    """Small images, made when they are asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.start: tuple[float, int, int] | None = None
        self.end: tuple[float, int, int] | None = None
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        with self.lock:
            if self.start is None and index >= self.count // 4:
                self.start = _state()
            if self.end is None and index >= self.count - 100:
                self.end = _state()
        value = index * 2654435761 % 2**24
        colour = [value >> 16, value >> 8 & 255, value & 255]
        return np.full((8, 8, 3), colour, np.uint8)


def long_transform(net: str, cache: CodeCache | None, count: int) -> Growth:
    """One transform of so many images that a byte for each would show."""
    images = _Many(count)
    codes = CNNCodeTransformer(net, cache=cache).transform(images)
    assert np.isfinite(codes).all()
    assert images.start is not None and images.end is not None
    return _growth(images.start, images.end)


def backbone_file(folder: Path) -> str:
    model = networks.resnet()
    for key, value in PLAIN.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return networks.save(model, folder / "net.onnx")


def main() -> None:
    import warnings

    warnings.simplefilter("ignore", UserWarning)
    rounds, images = map(int, [*sys.argv[1:], 200, 100_000][:2])
    print(machine(), "\n")
    print("| what | at a quarter, and from there to the end |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = backbone_file(folder)
        growth = many_rounds(net, folder, rounds)
        print(f"| {rounds} rounds of fit, transform, clone | {growth} |", flush=True)
        for word, cache in (
            ("no cache", None),
            ("a full memory cache", CodeCache(max_bytes=images * 100)),
        ):
            growth = long_transform(net, cache, images)
            print(f"| a transform of {images} images, {word} | {growth} |", flush=True)


if __name__ == "__main__":
    main()
