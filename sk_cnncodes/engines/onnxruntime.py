"""ONNX Runtime: sessions on the CPU, and on GPUs with CUDA or TensorRT."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.base.exceptions import DeviceError
from sk_cnncodes.base.forks import fork_lock, import_fork_safe
from sk_cnncodes.engines.devices import Device

if TYPE_CHECKING:
    import onnxruntime as ort

_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
# Largest batch size that TensorRT compiles an engine for, and the one it optimises.
_TENSORRT_MAX_BATCH, _TENSORRT_OPT_BATCH = 256, 64
_TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime with its telemetry off.

    Since 1.29 it sends usage data and starts a thread on import, unless an environment
    variable disables it. A value set by the user is kept.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_fork_safe("onnxruntime")


def available_providers() -> list[str]:
    """Execution providers that ONNX Runtime was compiled with, usable or not."""
    return list(import_onnxruntime().get_available_providers())


def import_tool(name: str) -> ModuleType:
    """Import a submodule of ONNX Runtime that imports its `transformers` by bare name.

    The package adds that folder to `sys.path` permanently; this restores it.
    """
    folder = Path(import_onnxruntime().__file__ or "").parent / "transformers"
    previous = list(sys.path)
    sys.path.append(str(folder))
    try:
        return importlib.import_module(f"onnxruntime.{name}")
    finally:
        sys.path[:] = previous


def load_session(
    model: bytes,
    device: Device,
    n_threads: int,
    providers: list[tuple[str, dict[str, str]]] | None = None,
) -> ort.InferenceSession:
    """Create an inference session on a device.

    Parameters
    ----------
    model : bytes
    device : Device
    n_threads : int
        Number of threads of each run on the CPU.
    providers : list, optional
        Output of `gpu_providers` for a GPU; by default, that for float32.

    Raises
    ------
    DeviceError
        If a required GPU does not work; the message gives the reason.
    """
    if device.gpu is None:
        return make_session(model, session_options(n_threads))
    ort = import_onnxruntime()
    providers = providers or gpu_providers(model, device, "float32", None, "")
    reported = _load_nvidia_libraries(ort)
    name = "TensorRT" if device.tensorrt else "CUDA"
    try:
        session = make_session(model, session_options(1), [*providers, CPU_PROVIDER])
        if session.get_providers()[0] == providers[0][0]:
            # In runs, cuDNN's search for kernels is reported as a series of errors.
            ort.set_default_logger_severity(4)
            return session
        needed = "tensorrt" if device.tensorrt else "'sk-cnncodes[cuda]'"
        reason = (
            f"ONNX Runtime {ort.__version__} cannot use {name} on {device}"
            f"{': ' + reported[0] if reported else ''}. Install the NVIDIA libraries "
            f"that it needs: pip install {needed}"
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = (
            f"{device}: too little of its memory is free to load the network. Expected "
            "more free memory, or a smaller backbone"
        )
    if device.required:
        raise DeviceError(f"{reason}, or use device='cpu'.")
    warnings.warn(f"{reason}. The CPU is used instead.", stacklevel=2)
    return make_session(model, session_options(n_threads))


def gpu_providers(
    model: bytes,
    device: Device,
    precision: str,
    batch_size: int | None,
    engine_cache: str,
) -> list[tuple[str, dict[str, str]]]:
    """Execution providers of a GPU with their options, the preferred one first."""
    cuda = {
        "device_id": str(device.gpu),
        # TF32 changes codes by 1e-3.
        "use_tf32": "1" if precision == "tf32" else "0",
        # Other searches run for seconds for every new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if precision == "float16":
        # The layout of tensor cores; convolutions in float32 are slower in it.
        cuda["prefer_nhwc"] = "1"
    if not device.tensorrt:
        return [(_CUDA, cuda)]
    Path(engine_cache).mkdir(parents=True, exist_ok=True)
    if precision in ("float32", "tf32"):
        _set_tensorrt_tf32(precision)
    tensorrt = {
        "device_id": str(device.gpu),
        "trt_fp16_enable": "1" if precision == "float16" else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": engine_cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": engine_cache,
    }
    if batch_size is None:
        # One engine for all batch sizes, instead of a rebuild for each new range.
        name, shape = _input_name_and_shape(model)
        for bound, rows in (
            ("min", 1),
            ("opt", _TENSORRT_OPT_BATCH),
            ("max", _TENSORRT_MAX_BATCH),
        ):
            dims = "x".join(map(str, (rows, *shape)))
            tensorrt[f"trt_profile_{bound}_shapes"] = f"{name}:{dims}"
    return [(_TENSORRT, tensorrt), (_CUDA, cuda)]


def _set_tensorrt_tf32(precision: str) -> None:
    """Turn TF32 on or off for TensorRT, which has no option for it.

    Its libraries read an environment variable once per process.

    Raises
    ------
    DeviceError
        If the variable already has the opposite value.
    """
    wanted = "1" if precision == "tf32" else "0"
    if os.environ.setdefault(_TF32_VARIABLE, wanted) != wanted:
        raise DeviceError(
            f"precision={precision!r} with TensorRT needs {_TF32_VARIABLE}={wanted} in "
            f"the whole process, got {os.environ[_TF32_VARIABLE]!r}: the environment "
            "sets it, or another precision was used before. Use only one of float32 "
            "and tf32 per process, or device='cuda'."
        )


def _input_name_and_shape(model: bytes) -> tuple[str, list[int]]:
    """Name of the only input, and its shape without the batch dimension."""
    import onnx

    (value,) = onnx.load_from_string(model).graph.input
    return value.name, [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]


def session_options(n_threads: int) -> ort.SessionOptions:
    """Options of every session: threads per run, no messages, no spinning.

    Spinning idle threads starve decoding, and each other where cores are shared.
    """
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 4
    # Otherwise a file could be taken for ONNX Runtime's own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = n_threads
    return options


def make_session(
    model: bytes,
    options: ort.SessionOptions,
    providers: Sequence[Any] = (CPU_PROVIDER,),
) -> ort.InferenceSession:
    """Create an ONNX Runtime session while no other thread forks.

    Raises
    ------
    RuntimeError
        If the number of threads in the options cannot be started, or ONNX Runtime
        fails.
    """
    _check_threads(options.intra_op_num_threads - 1)
    with fork_lock:
        # Otherwise a session that fails on a GPU would go on with the CPU, unasked.
        return import_onnxruntime().InferenceSession(
            model, options, providers=list(providers), enable_fallback=0
        )


def _check_threads(count: int) -> None:
    """Start this many threads at once, and end them.

    ONNX Runtime waits forever if only some of its threads can be started.
    """
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    finally:
        end.set()
        for thread in started:
            thread.join()


def _load_nvidia_libraries(ort: ModuleType) -> list[str]:
    """Load CUDA and cuDNN from the NVIDIA wheels; return the messages of failures."""
    printed = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(printed):
            ort.preload_dlls(directory="")
    return [line for line in printed.getvalue().splitlines() if line.strip()]


def padded(images: np.ndarray, size: int) -> np.ndarray:
    """Pad a batch to a size with copies of its last image."""
    missing = size - len(images)
    if missing <= 0:
        return images
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ONNX Runtime raised the error because it could not allocate memory."""
    text = str(error).lower()
    return any(
        phrase in text
        for phrase in (
            "failed to allocate memory",
            "out of memory",
            "alloc_failed",
            "allocation_failed",
            # cuBLAS
            "resource allocation failed",
        )
    )
