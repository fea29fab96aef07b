"""TensorRT and JPEG decoding on the GPU, where their packages are there."""

from __future__ import annotations

import ctypes
import importlib.util
import time
from itertools import cycle, islice

from sk_cnncodes import CNNCodeTransformer
from tests.gpu.context import (
    Context,
    GpuMeter,
    file_throughput,
    session_of,
    session_throughput,
)
from tests.gpu.parity import compared


def tensorrt(context: Context) -> None:
    """Codes and speed with TensorRT."""
    found = any(
        importlib.util.find_spec(name) for name in ("tensorrt_libs", "tensorrt")
    )
    for library in ("libnvinfer.so.10", "libnvinfer.so"):
        try:
            ctypes.CDLL(library)
            found = True
        except OSError:
            continue
    if not found or not context.gpu:
        context.record("not there")
        return
    images = context.photographs(70)
    for network in ("mobilenet_v2", "resnet50"):
        expected = context.transformer(network, device="cpu").transform(images)
        start = time.perf_counter()
        transformer = context.transformer(
            network, device="tensorrt", precision="float16", batch_size=64
        )
        codes = transformer.transform(images)
        values = compared(codes, expected, 1e-2)
        seconds = time.perf_counter() - start
        context.record(f"{network} float16", **values, seconds=seconds)
        speed = session_throughput(
            session_of(transformer), context.crops(128), 128, 0.4
        )
        context.record(f"{network} float16 from memory, 128", **speed)


def gpu_jpeg(context: Context) -> None:
    """decoder="gpu" beside decoder="pillow": speed and codes."""
    if "decoder" not in CNNCodeTransformer().get_params():
        context.record("not there", why="no parameter decoder")
        return
    try:
        import nvidia.nvimgcodec  # noqa: F401
    except ImportError as error:
        context.record("not there", why=str(error))
        return
    if not context.gpu:
        context.record("not there", why="no GPU")
        return
    found = context.files("4000x3000")
    images = list(islice(cycle(found), 64))
    expected = context.transformer("mobilenet_v2", decoder="pillow")
    codes = context.transformer("mobilenet_v2", decoder="gpu").transform(images)
    # The GPU decodes at full size, Pillow at an eighth of it or more.
    values = compared(codes, expected.transform(images), 0.1)
    context.record("codes of the two decoders", **values)
    step = context.few(256, 2)
    # One after the other and again: the machine may change meanwhile.
    for turn in (1, 2):
        for decoder in ("pillow", "gpu"):
            transformer = context.transformer(
                "resnet50", precision=context.precision("float16"), decoder=decoder
            )
            with GpuMeter() as meter:
                speed = file_throughput(transformer, found, step, context.seconds)
            name = f"resnet50 float16 from 4000x3000 files, {decoder}, turn {turn}"
            context.record(name, **speed, **meter.result)
