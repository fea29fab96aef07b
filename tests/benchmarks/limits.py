"""What bounds the throughput of a network on a machine: its stages, and arithmetic."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import onnx
from PIL import Image

from sk_cnncodes import load_backbone
from sk_cnncodes.codes.digests import content_digest
from sk_cnncodes.engines.devices import Device, usable_threads
from sk_cnncodes.engines.onnxruntime import load_session
from sk_cnncodes.engines.openvino import OpenVinoRunner
from sk_cnncodes.engines.session import open_session
from sk_cnncodes.images.decode import decode_content
from sk_cnncodes.images.sources import read_content
from sk_cnncodes.layers.multiply_adds import layer_multiply_adds
from tests.benchmarks.timing import seconds


@dataclass
class Limits:
    """What bounds this library on this machine; all for one image, in seconds.

    Attributes
    ----------
    stages : dict of str to float
        On one core: "look-up" (read the file and digest it), "decode", "resize",
        "run" (with one thread, and with the batch size that "auto" takes).
    arithmetic : dict of str to float
        By precision: multiplications and additions of the network at the speed at
        which all cores multiply large matrices in it.
    n_cores : int
    """

    stages: dict[str, float]
    arithmetic: dict[str, float]
    n_cores: int

    def best(self, precision: str) -> float:
        """The slower of decoding on all cores and of the arithmetic alone."""
        decoding = self.stages["decode"] + self.stages["resize"]
        return max(decoding / self.n_cores, self.arithmetic[precision])


def measure_limits(backbone_path: str, images: list[str]) -> Limits:
    """Measure the stages one by one, each as the median of five rounds."""
    backbone = load_backbone(backbone_path)
    preprocessing = backbone.preprocessing
    spec = backbone.spec(-1, "auto", None)
    n_cores = usable_threads(-1)
    graphs = list(backbone.code_graphs([spec]))
    session = open_session(graphs, Device(None, True), n_cores, n_cores)
    size = session.choose_batch_size(len(images))
    contents = [read_content(path, i) for i, path in enumerate(images)]
    least = preprocessing.min_decode_size

    def look_up() -> None:
        for index, path in enumerate(images):
            content_digest(read_content(path, index))

    def decode() -> list[Image.Image]:
        return [
            decode_content(content, images[i], i, min_decode_size=least).rgb
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
    multiply_adds, _ = layer_multiply_adds(backbone.graph, [spec.layer])
    operations = 2 * multiply_adds[spec.layer]
    arithmetic = {name: operations / speed for name, speed in peaks().items()}
    return Limits(stages, arithmetic, n_cores)


@lru_cache(maxsize=1)
def peaks() -> dict[str, float]:
    """Operations a second of large matrix products on all cores, by precision."""
    n_cores, size = usable_threads(-1), 3072
    a, b = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    model = product_with(b)
    session = load_session(model, Device(None, True), n_cores)
    ways = {
        "float32": [lambda: a @ b, lambda: session.run(None, {"a": a})],
    }
    if importlib.util.find_spec("openvino") is not None:
        runner = OpenVinoRunner(
            model, n_threads=n_cores, n_concurrent_runs=1, bfloat16=True
        )
        ways["bfloat16"] = [lambda: runner.run(a)]
    return {
        precision: 2 * size**3 / min(seconds(way) for way in multiply for _ in range(9))
        for precision, multiply in ways.items()
    }


def product_with(matrix: np.ndarray) -> bytes:
    """A model that multiplies its input by a constant matrix."""
    value = partial(onnx.helper.make_tensor_value_info, elem_type=1, shape=matrix.shape)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [value("a")],
        [value("c")],
        [onnx.numpy_helper.from_array(matrix, "b")],
    )
    opset = onnx.helper.make_opsetid("", 13)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())
