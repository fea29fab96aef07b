"""What bounds the throughput of a network on a machine: its stages, and arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sk_cnncodes import load_backbone
from sk_cnncodes.compute import layer_multiply_adds
from sk_cnncodes.contents import read_content
from sk_cnncodes.devices import Device, usable_threads
from sk_cnncodes.digests import content_digest
from sk_cnncodes.images import decode_content
from sk_cnncodes.runtime import open_session
from tests.benchmarks.timing import seconds


@dataclass
class Limits:
    """What bounds this library on this machine; all for one image, in seconds.

    Attributes
    ----------
    stages : dict of str to float
        On one core: "look-up" (read the file and digest it), "decode", "resize",
        "run" (with one thread, and with the batch size that "auto" takes).
    arithmetic : float
        Multiplications and additions of the network at the speed at which all cores
        multiply large float32 matrices.
    n_cores : int
    """

    stages: dict[str, float]
    arithmetic: float
    n_cores: int

    @property
    def best(self) -> float:
        """The slower of decoding on all cores and of the arithmetic alone."""
        decoding = self.stages["decode"] + self.stages["resize"]
        return max(decoding / self.n_cores, self.arithmetic)


def measure_limits(backbone_path: str, images: list[str]) -> Limits:
    """Measure the stages one by one, each as the median of five rounds."""
    backbone = load_backbone(backbone_path)
    preprocessing = backbone.preprocessing
    spec = backbone.spec(-1, "auto", None)
    n_cores = usable_threads(-1)
    graphs = list(backbone.code_graphs([spec]))
    session = open_session(graphs, Device(None, True), n_cores, n_cores)
    size = session.good_batch_size(len(images))
    contents = [read_content(path, i) for i, path in enumerate(images)]
    least = preprocessing.least_size

    def look_up() -> None:
        for index, path in enumerate(images):
            content_digest(read_content(path, index))

    def decode() -> list[Image.Image]:
        return [
            decode_content(content, images[i], i, least_size=least)
            for i, content in enumerate(contents)
        ]

    decoded = decode()
    pixels = np.stack([preprocessing.apply(image) for image in decoded])

    def run() -> None:
        for start in range(0, len(pixels), size):
            session.run(pixels[start : start + size])

    work: dict[str, Callable[[], object]] = {
        "look-up": look_up,
        "decode": decode,
        "resize": lambda: [preprocessing.apply(image) for image in decoded],
        "run": run,
    }
    stages = {
        name: statistics.median(seconds(stage) for _ in range(5)) / len(images)
        for name, stage in work.items()
    }
    work, _ = layer_multiply_adds(backbone, [spec.layer])
    return Limits(stages, 2 * work[spec.layer] / peak(), n_cores)


def peak() -> float:
    """Float32 operations a second of large matrix products on all cores."""
    a, b = np.ones((3072, 3072), np.float32), np.ones((3072, 3072), np.float32)
    return 2 * 3072**3 / min(seconds(lambda: a @ b) for _ in range(7))
