"""Bare sessions of code graphs with other options of the CUDA provider."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes.engines.onnxruntime import import_onnxruntime, session_options
from tests.gpu.context import Context, throughput

_BASE = {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_NHWC = {"prefer_nhwc": "1"}
_CONVOLUTIONAL: dict[str, dict[str, str]] = {
    "nhwc": _NHWC,
    "algo default": {"cudnn_conv_algo_search": "DEFAULT"},
    "algo exhaustive": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "nhwc exhaustive": {**_NHWC, "cudnn_conv_algo_search": "EXHAUSTIVE"},
    "nhwc fused bias": {**_NHWC, "fuse_conv_bias": "1"},
    "arena as requested": {"arena_extend_strategy": "kSameAsRequested"},
    "cuda graph": {"enable_cuda_graph": "1"},
    "nhwc cuda graph": {**_NHWC, "enable_cuda_graph": "1"},
}
_TRANSFORMER = {
    "arena as requested": _CONVOLUTIONAL["arena as requested"],
    "cuda graph": {"enable_cuda_graph": "1"},
    "unified stream": {"use_ep_level_unified_stream": "1"},
}
# In the order of their worth.
PLAN = (
    ("resnet50", "float16", _CONVOLUTIONAL),
    ("vit_b16", "float16", _TRANSFORMER),
    ("mobilenet_v2", "float16", _CONVOLUTIONAL),
    (
        "resnet50",
        "float32",
        {k: _CONVOLUTIONAL[k] for k in ("nhwc", "algo exhaustive")},
    ),
)


def variants(context: Context) -> None:
    """The default options with all batches and threads, then one change each."""
    for network, precision, changes in PLAN:
        path = context.graph(network, precision)
        title = f"{network} {precision}"
        base = attempt(context, f"{title} base", path, {})
        if base is not None:
            for size in context.sizes(64, 128, 256):
                for threads in (1, 2, 3):
                    measure(context, base, f"{title} base", size, threads)
        del base
        for name, options in changes.items():
            session = attempt(context, f"{title} {name}", path, options)
            if session is None:
                continue
            for size in context.sizes(128)[:1]:
                threads = 1 if "enable_cuda_graph" in options else 2
                measure(context, session, f"{title} {name}", size, threads)
        if network == "vit_b16":
            fused(context, path)


def attempt(
    context: Context, name: str, path: Path, options: dict[str, str]
) -> Any | None:
    """A session, with the time that it takes and that of its first run."""
    start = time.perf_counter()
    try:
        session = open_bare(context, path, options)
        opened = time.perf_counter() - start
        (size,) = context.sizes(128)[:1]
        if "enable_cuda_graph" not in options:
            session.run(None, {session.get_inputs()[0].name: context.crops(size)})
    except Exception as error:
        context.record(f"{name} fails", error=str(error)[:300])
        return None
    first = time.perf_counter() - start - opened
    context.record(f"{name} opened", open_seconds=opened, first_run_seconds=first)
    return session


def open_bare(context: Context, path: Path, options: dict[str, str]) -> Any:
    """A session of ONNX Runtime on the GPU, if there is one, with some options."""
    ort = import_onnxruntime()
    providers: list[Any] = ["CPUExecutionProvider"]
    if context.gpu:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls(directory="")
        providers = [("CUDAExecutionProvider", _BASE | options), *providers]
    session = ort.InferenceSession(str(path), session_options(2), providers=providers)
    if context.gpu and session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("ONNX Runtime fell back to the CPU")
    return session


def upload(session: Any, images: np.ndarray, device: str) -> Any:
    """A tensor on the device, as an OrtValue."""
    return import_onnxruntime().OrtValue.ortvalue_from_numpy(images, device, 0)


class _InFlight:
    """One batch in flight: its tensor on the device and its binding."""

    def __init__(self, session: Any, images: np.ndarray, device: str) -> None:
        self._session = session
        self._images = images
        self._value = upload(session, images, device)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._value)
        self._device = device

    def bind_outputs(self, shapes: list[tuple[int, ...]]) -> None:
        """Bind outputs to memory that stays, which a captured graph needs."""
        make = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
        self._outputs = [
            make(list(shape), np.float32, self._device, 0) for shape in shapes
        ]
        for output, value in zip(
            self._session.get_outputs(), self._outputs, strict=True
        ):
            self._binding.bind_ortvalue_output(output.name, value)

    def run(self) -> list[np.ndarray]:
        """Copy the images, run, and copy the codes back."""
        self._value.update_inplace(self._images)
        self._session.run_with_iobinding(self._binding)
        return list(self._binding.copy_outputs_to_cpu())


def measure(
    context: Context,
    session: Any,
    name: str,
    size: int,
    threads: int,
) -> None:
    """Record images per second with so many batches in flight, copies included."""
    device = "cuda" if context.gpu else "cpu"
    crops = context.crops(size)
    slots = [_InFlight(session, crops, device) for _ in range(threads)]
    for slot in slots:
        shapes = [(size, output.shape[1]) for output in session.get_outputs()]
        slot.bind_outputs(shapes)

    # A captured graph belongs to its thread.
    pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def turns(slot: _InFlight, count: int) -> None:
        for _ in range(count):
            slot.run()

    def work(count: int) -> None:
        each = count // size // threads
        if pool is None:
            turns(slots[0], each)
            return
        for end in [pool.submit(turns, slot, each) for slot in slots]:
            end.result()

    try:
        values = throughput(work, threads * size, min(0.15, context.seconds))
    except Exception as error:
        context.record(f"{name}, {size} x {threads} fails", error=str(error)[:300])
        return
    finally:
        if pool is not None:
            pool.shutdown()
    context.record(f"{name}, {size} x {threads}", **values)


def fused(context: Context, path: Path) -> None:
    """A transformer whose attention and GELU ONNX Runtime's tool has fused."""
    from sk_cnncodes.engines.onnxruntime import import_tool

    target = context.work / f"{path.stem}-fused.onnx"
    try:
        if not target.exists():
            optimizer = import_tool("transformers.optimizer")
            model = optimizer.optimize_model(
                str(context.graph("vit_b16", "float32")),
                model_type="vit",
                num_heads=12,
                hidden_size=768,
                use_gpu=context.gpu,
                opt_level=0,
            )
            counts = model.get_fused_operator_statistics()
            model.convert_float_to_float16(keep_io_types=True)
            model.save_model_to_file(str(target))
            context.record("vit_b16 float16 fused operators", **counts)
    except Exception as error:
        context.record("vit_b16 float16 fused fails", error=str(error)[:300])
        return
    session = attempt(context, "vit_b16 float16 fused", target, {})
    if session is not None:
        for size in context.sizes(128)[:1]:
            measure(context, session, "vit_b16 float16 fused", size, 2)
