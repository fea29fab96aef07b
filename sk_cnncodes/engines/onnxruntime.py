"""ONNX Runtime: sessions on the CPU, and on GPUs with CUDA or TensorRT."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.base.exceptions import DeviceError
from sk_cnncodes.base.forks import fork_lock, import_fork_safe
from sk_cnncodes.base.threads import ResourcePool
from sk_cnncodes.engines.devices import Device, cuda_driver

if TYPE_CHECKING:
    import onnxruntime as ort

_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_CPU = ["CPUExecutionProvider"]
# Batches in flight on a GPU: one is copied while another is computed.
_IN_FLIGHT = 2
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


class CpuRunner:
    """A network on the CPU; several threads may run it at once.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        With one uint8 input [N, height, width, 3] and float32 outputs [N, d].
    n_concurrent_runs : int
        Number of concurrent calls of `run` that increase the throughput.
    """

    def __init__(self, session: ort.InferenceSession, n_concurrent_runs: int) -> None:
        self._session = session
        self.n_concurrent_runs = n_concurrent_runs
        self.provider: str = session.get_providers()[0]
        (self._input,) = session.get_inputs()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an input image."""
        height, width, channels = self._input.shape[1:]
        return height, width, channels

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Codes of a batch, one array for each layer."""
        return list(self._session.run(None, {self._input.name: images}))


class GpuRunner(CpuRunner):
    """A network on one GPU.

    Images are copied through pinned memory into a tensor that stays on the GPU while
    another batch is computed. Batches are padded to the largest one so far or to a
    power of two, so that the GPU sees few different shapes.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    gpu : int
        Index of the GPU.
    fixed_batch : bool
        Whether the graph has a fixed batch size, so that batches are not padded.
    memory : str, default="cuda"
        Device type of the input tensor; "cpu" in tests without a GPU.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        gpu: int,
        *,
        fixed_batch: bool,
        memory: str = "cuda",
    ) -> None:
        super().__init__(session, _IN_FLIGHT)
        self._fixed_batch = fixed_batch
        self._largest = 1
        self._slots = ResourcePool(
            _Slot(session, self._input.name, gpu, memory) for _ in range(_IN_FLIGHT)
        )

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Codes of a batch, one array for each layer."""
        rows = len(images)
        self._largest = max(self._largest, rows)
        padded_rows = rows
        if not self._fixed_batch:
            padded_rows = min(1 << (rows - 1).bit_length(), self._largest)
        outputs = self._slots.use(lambda slot: slot.run(images, padded_rows))
        return [codes[:rows] for codes in outputs]


class _Slot:
    """Buffers of one batch in flight."""

    def __init__(
        self, session: ort.InferenceSession, name: str, gpu: int, memory: str
    ) -> None:
        self._session = session
        self._name = name
        self._gpu = gpu
        self._memory = memory
        self._staging = _PinnedBuffer(0, gpu)
        self._device_tensors: dict[tuple[int, ...], Any] = {}

    def run(self, images: np.ndarray, padded_rows: int) -> list[np.ndarray]:
        """Codes of a batch padded with copies of its last image."""
        shape = (padded_rows, *images.shape[1:])
        size = int(np.prod(shape))
        if size > len(self._staging.array):
            self._device_tensors.clear()
            self._staging = _PinnedBuffer(size, self._gpu)
        staged = self._staging.array[:size].reshape(shape)
        staged[: len(images)] = images
        staged[len(images) :] = images[-1]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._name, self._copy_to_device(staged))
        for output in self._session.get_outputs():
            binding.bind_output(output.name)
        self._session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())

    def _copy_to_device(self, staged: np.ndarray) -> ort.OrtValue:
        """Copy images to the device, into the same tensor for each shape."""
        value = self._device_tensors.get(staged.shape)
        if value is None:
            make = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
            value = make(list(staged.shape), np.uint8, self._memory, self._gpu)
            self._device_tensors[staged.shape] = value
        value.update_inplace(staged)
        return value


class _PinnedBuffer:
    """Bytes in pinned (page-locked) memory, for fast copies to the GPU.

    If the driver cannot pin them, they are in pageable memory, which is slower.
    """

    def __init__(self, size: int, gpu: int) -> None:
        self.array = np.zeros(size, np.uint8)
        self._driver = cuda_driver() if size else None
        self._pinned = False
        if self._driver is not None:
            self._pinned = _pin(self._driver, self.array, gpu)

    def __del__(self) -> None:
        if self._pinned and self._driver is not None:
            self._driver.cuMemHostUnregister(ctypes.c_void_p(self.array.ctypes.data))


def _pin(driver: ctypes.CDLL, array: np.ndarray, gpu: int) -> bool:
    """Pin the memory of an array for all CUDA contexts; return whether it worked."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    portable = 1
    address, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
    steps: list[Callable[[], int]] = [
        lambda: driver.cuDeviceGet(ctypes.byref(device), gpu),
        lambda: driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        lambda: driver.cuCtxSetCurrent(context),
        lambda: driver.cuMemHostRegister_v2(address, size, portable),
    ]
    return all(step() == 0 for step in steps)


def open_runner(
    model: bytes,
    device: Device,
    *,
    n_threads: int,
    n_concurrent_runs: int,
    precision: str,
    batch_size: int | None,
    engine_cache: str = "",
) -> CpuRunner:
    """Load a code graph on a device.

    Parameters
    ----------
    model : bytes
        A serialised code graph, already converted to float16 or int8 if needed.
    device : Device
    n_threads : int
        Number of CPU threads of all concurrent runs together.
    n_concurrent_runs : int
        Number of concurrent runs on the CPU.
    precision : str
    batch_size : int or None
        Fixed batch size of the graph; None if it is dynamic.
    engine_cache : str
        Folder of the engines that TensorRT compiles.

    Raises
    ------
    DeviceError
        If a required GPU does not work.
    """
    threads_per_run = max(1, n_threads // n_concurrent_runs)
    providers = []
    if device.gpu is not None:
        providers = gpu_providers(model, device, precision, batch_size, engine_cache)
    session = load_session(model, device, threads_per_run, providers)
    if device.gpu is None or session.get_providers()[0] == _CPU[0]:
        return CpuRunner(session, n_concurrent_runs)
    return GpuRunner(session, device.gpu, fixed_batch=batch_size is not None)


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
    with _nvidia_libraries(ort) as reported:
        session = make_session(model, session_options(1), [*providers, *_CPU])
    if session.get_providers()[0] == providers[0][0]:
        return session
    name = "TensorRT" if device.tensorrt else "CUDA"
    needed = "tensorrt" if device.tensorrt else "'sk-cnncodes[cuda]'"
    reason = (
        f"ONNX Runtime {ort.__version__} cannot use {name} on {device}"
        f"{': ' + reported[0] if reported else ''}. Install the NVIDIA libraries that "
        f"it needs: pip install {needed}"
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
    model: bytes, options: ort.SessionOptions, providers: Sequence[Any] = _CPU
) -> ort.InferenceSession:
    """Create an ONNX Runtime session while no other thread forks.

    Raises
    ------
    RuntimeError
        If the number of threads in the options cannot be started.
    """
    _check_threads(options.intra_op_num_threads - 1)
    with fork_lock:
        return import_onnxruntime().InferenceSession(
            model, options, providers=list(providers)
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


@contextmanager
def _nvidia_libraries(ort: ModuleType) -> Iterator[list[str]]:
    """Load CUDA and cuDNN from the NVIDIA wheels; yield the messages of failures."""
    reported: list[str] = []
    printed = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(printed):
            ort.preload_dlls(directory="")
    reported.extend(line for line in printed.getvalue().splitlines() if line.strip())
    yield reported


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
            "cudnn_status_alloc_failed",
            "cublas_status_alloc_failed",
        )
    )
