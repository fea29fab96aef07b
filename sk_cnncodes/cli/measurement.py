"""Which engine, precision and batch size are fastest on this machine for a backbone."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np

from sk_cnncodes.base.exceptions import DeviceError
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.engines.devices import count_gpus
from sk_cnncodes.engines.execution import PRECISIONS, resolve_execution

CPU_BATCH_SIZES = (1, 4, 16)
GPU_BATCH_SIZES = (32, 128)
_ENGINES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Measurement:
    """What one way of running a backbone gave.

    Attributes
    ----------
    parameters : dict
        Of `CNNCodeTransformer`, where they are not its defaults.
    device, engine, precision : str
        What ran.
    batch_size : int
    images_per_second : float
        From images to codes, decoding included: the median over rounds.
    least_cosine, median_cosine : float
        Cosine similarity of the codes with those of ONNX Runtime on the CPU in
        float32: the smallest of all images, and the median.
    """

    parameters: dict[str, Any]
    device: str
    engine: str
    precision: str
    batch_size: int
    images_per_second: float
    least_cosine: float
    median_cosine: float


def measure_backbone(
    backbone: str,
    images: Sequence[Any] | None = None,
    *,
    preprocessing: Any = None,
    batch_sizes: Sequence[int] | None = None,
    rounds: int = 3,
    n_images: int = 64,
) -> list[Measurement]:
    """Run a backbone in all ways that this machine has; the fastest comes first.

    The ways take turns, so that a machine that slows down meanwhile slows all of them.

    Parameters
    ----------
    backbone : str
        As `CNNCodeTransformer` takes it.
    images : sequence or None, default=None
        None takes the two photographs that scikit-learn brings, as JPEG files of
        640 x 427 pixels.
    preprocessing : Preprocessing, dict or None, default=None
    batch_sizes : sequence of int or None, default=None
        None takes 1, 4 and 16 on CPUs, 32 and 128 on GPUs.
    rounds : int, default=3
        How often each way is timed.
    n_images : int, default=64
        How many images a round has; `images` are repeated, or cut off.

    Raises
    ------
    ValueError
        If the backbone or an image cannot be read.
    """
    distinct = list(images or _photographs())[:n_images]
    batch = list(islice(cycle(distinct), n_images))
    common: dict[str, Any] = {"backbone": backbone, "cache": None}
    if preprocessing is not None:
        common["preprocessing"] = preprocessing
    exact = CNNCodeTransformer(**common, device="cpu").transform(distinct)
    found = []
    for way in _ways():
        on_cpu = way.pop("on_cpu")
        for size in batch_sizes or (CPU_BATCH_SIZES if on_cpu else GPU_BATCH_SIZES):
            transformer = CNNCodeTransformer(**common, **way, batch_size=size)
            codes = transformer.fit(distinct).transform(distinct)  # and a warm-up
            found.append((way, transformer, _cosines(codes, exact)))
    seconds: list[list[float]] = [[] for _ in found]
    for _ in range(rounds):
        for times, (_, transformer, _) in zip(seconds, found, strict=True):
            start = time.perf_counter()
            transformer.transform(batch)
            times.append(time.perf_counter() - start)
    measured = []
    for times, (way, transformer, cosines) in zip(seconds, found, strict=True):
        execution = resolve_execution(**way)
        measured.append(
            Measurement(
                {**way, "batch_size": transformer.batch_size},
                ", ".join(map(str, execution.devices)),
                execution.engine,
                execution.precision,
                int(transformer.batch_size),
                n_images / statistics.median(times),
                float(cosines.min()),
                float(np.median(cosines)),
            )
        )
    return sorted(measured, key=lambda m: -m.images_per_second)


def _ways() -> Iterator[dict[str, Any]]:
    """Parameters of all that works here."""
    devices = ["cuda", "cpu"] if count_gpus() else ["cpu"]
    for device in devices:
        for engine in _ENGINES:
            for precision in PRECISIONS:
                way = {"device": device, "engine": engine, "precision": precision}
                try:
                    execution = resolve_execution(**way)
                except (DeviceError, ValueError):
                    continue
                yield way | {"on_cpu": execution.on_cpu}


def _photographs() -> list[bytes]:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    files = []
    for pixels in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _cosines(codes: np.ndarray, exact: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(codes, axis=1) * np.linalg.norm(exact, axis=1)
    cosines: np.ndarray = (codes * exact).sum(1) / np.maximum(lengths, 1e-30)
    return cosines


def constructor_call(backbone: str, measurement: Measurement) -> str:
    """How to write a transformer that runs so."""
    chosen = dict(measurement.parameters)
    way = {name: chosen[name] for name in ("device", "engine", "precision")}
    meant = str(resolve_execution(**way))
    for name, default in (("device", "auto"), ("engine", "auto")):
        if str(resolve_execution(**(way | {name: default}))) == meant:
            way[name] = default
            del chosen[name]
    if chosen["precision"] == "float32":
        del chosen["precision"]
    written = [f"{name}={value!r}" for name, value in chosen.items()]
    return f"CNNCodeTransformer({', '.join([repr(backbone), *written])})"


def advice(backbone: str, measured: list[Measurement]) -> list[str]:
    """Lines that say which parameters to use."""
    fastest = measured[0]
    exact = next(m for m in measured if m.precision == "float32")
    lines = [f"In float32:  {constructor_call(backbone, exact)}"]
    if fastest is not exact:
        ratio = fastest.images_per_second / exact.images_per_second
        lines += [
            f"Fastest:     {constructor_call(backbone, fastest)}",
            f"That is {ratio:.2f} times as fast. Its codes have the cosine similarity "
            f"{fastest.median_cosine:.4f} with those of float32, "
            f"{fastest.least_cosine:.4f} at least; what that costs in accuracy, only "
            "your data tells.",
        ]
    return lines
