"""Measure engines, precisions and batch sizes of a backbone on this machine."""

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
from sk_cnncodes.engines.execution import ENGINES, PRECISIONS, resolve_execution
from sk_cnncodes.images.safe_open import MAX_PIXELS

CPU_BATCH_SIZES = (1, 4, 16)
GPU_BATCH_SIZES = (32, 128)


@dataclass(frozen=True)
class Measurement:
    """Result of one configuration of a backbone.

    Attributes
    ----------
    parameters : dict
        Parameters of `CNNCodeTransformer` for this configuration.
    device, engine, precision : str
        What the network ran on and with.
    batch_size : int
        Images per run of the network.
    images_per_second : float
        From images to codes, including decoding: the median over rounds.
    least_cosine, median_cosine : float
        Cosine similarity of the codes with float32 codes of ONNX Runtime on the CPU:
        minimum and median over the images.
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
    max_pixels: int | None = MAX_PIXELS,
) -> list[Measurement]:
    """Time a backbone in all configurations that work on this machine.

    Configurations take turns, so that a slowdown of the machine affects all of them.

    Parameters
    ----------
    backbone : str
        As `CNNCodeTransformer` takes it.
    images : sequence or None, default=None
        None takes the two sample photographs of scikit-learn, as JPEG files of
        640 x 427 pixels.
    preprocessing : Preprocessing, dict or None, default=None
    batch_sizes : sequence of int or None, default=None
        None takes 1, 4 and 16 on CPUs, 32 and 128 on GPUs.
    rounds : int, default=3
        Number of timings per configuration.
    n_images : int, default=64
        Number of images per round; `images` are repeated or truncated to it.
    max_pixels : int or None, default=52_000_000
        As in `CNNCodeTransformer`.

    Returns
    -------
    list of Measurement
        The fastest comes first.

    Raises
    ------
    ValueError
        If the backbone or an image cannot be read.
    """
    distinct = list(images or _photographs())[:n_images]
    batch = list(islice(cycle(distinct), n_images))
    common: dict[str, Any] = {"backbone": backbone, "cache": None}
    common["max_pixels"] = max_pixels
    if preprocessing is not None:
        common["preprocessing"] = preprocessing
    reference = CNNCodeTransformer(**common, device="cpu").transform(distinct)
    candidates = []
    for configuration in _configurations():
        on_cpu = configuration.pop("on_cpu")
        for size in batch_sizes or (CPU_BATCH_SIZES if on_cpu else GPU_BATCH_SIZES):
            transformer = CNNCodeTransformer(**common, **configuration, batch_size=size)
            codes = transformer.fit(distinct).transform(distinct)  # also warms up
            candidates.append((configuration, transformer, _cosines(codes, reference)))
    seconds: list[list[float]] = [[] for _ in candidates]
    for _ in range(rounds):
        for times, (_, transformer, _) in zip(seconds, candidates, strict=True):
            start = time.perf_counter()
            transformer.transform(batch)
            times.append(time.perf_counter() - start)
    measured = []
    for times, candidate in zip(seconds, candidates, strict=True):
        configuration, transformer, cosines = candidate
        execution = resolve_execution(**configuration)
        measured.append(
            Measurement(
                {**configuration, "batch_size": transformer.batch_size},
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


def _configurations() -> Iterator[dict[str, Any]]:
    """Yield the parameters of each configuration that works here."""
    devices = ["cuda", "cpu"] if count_gpus() else ["cpu"]
    for device in devices:
        for engine in ENGINES[1:]:  # without "auto"
            for precision in PRECISIONS:
                parameters = {
                    "device": device,
                    "engine": engine,
                    "precision": precision,
                }
                try:
                    execution = resolve_execution(**parameters)
                except (DeviceError, ValueError):
                    continue
                yield parameters | {"on_cpu": execution.on_cpu}


def _photographs() -> list[bytes]:
    """The sample photographs of scikit-learn as JPEG files."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    files = []
    for pixels in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _cosines(codes: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine similarity of each row with that of the reference."""
    lengths = np.linalg.norm(codes, axis=1) * np.linalg.norm(reference, axis=1)
    cosines: np.ndarray = (codes * reference).sum(1) / np.maximum(lengths, 1e-30)
    return cosines


def constructor_call(backbone: str, measurement: Measurement) -> str:
    """The constructor call for a measured configuration, without default values."""
    chosen = dict(measurement.parameters)
    parameters = {name: chosen[name] for name in ("device", "engine", "precision")}
    expected = str(resolve_execution(**parameters))
    for name, default in (("device", "auto"), ("engine", "auto")):
        if str(resolve_execution(**(parameters | {name: default}))) == expected:
            parameters[name] = default
            del chosen[name]
    if chosen["precision"] == "float32":
        del chosen["precision"]
    arguments = [f"{name}={value!r}" for name, value in chosen.items()]
    return f"CNNCodeTransformer({', '.join([repr(backbone), *arguments])})"


def advice(backbone: str, measured: list[Measurement]) -> list[str]:
    """Lines that recommend parameters."""
    fastest = measured[0]
    exact = next(m for m in measured if m.precision == "float32")
    lines = [f"In float32:  {constructor_call(backbone, exact)}"]
    if fastest is not exact:
        ratio = fastest.images_per_second / exact.images_per_second
        lines += [
            f"Fastest:     {constructor_call(backbone, fastest)}",
            f"It is {ratio:.2f} times as fast. The cosine similarity of its codes with "
            f"float32 codes is {fastest.median_cosine:.4f} (median), at least "
            f"{fastest.least_cosine:.4f}; measure the effect on accuracy with your own "
            "data.",
        ]
    return lines
