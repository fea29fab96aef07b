"""Networks loaded by ONNX Runtime, on the CPU or on a GPU."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.base.threads import ResourcePool
from sk_cnncodes.engines.devices import Device, cuda_driver
from sk_cnncodes.engines.onnxruntime import (
    CPU_PROVIDER,
    gpu_providers,
    import_onnxruntime,
    load_session,
)

if TYPE_CHECKING:
    import onnxruntime as ort

# Batches in flight on a GPU: one is copied while another is computed.
_IN_FLIGHT = 2
# Batches are padded to at most so many times their size, and new sizes up to so many
# images are powers of two.
_MAX_PADDING, _MAX_ROUNDED = 8, 32


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
    another batch is computed. Batches are padded to few sizes: for each new one cuDNN
    chooses its kernels, which takes up to four seconds.

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
        self._sizes: set[int] = set()
        # Runs at the same time are no faster, and each takes memory of its own; so does
        # a binding, for the CUDA libraries, if it is made during a run.
        run_lock = threading.Lock()
        self._slots = ResourcePool(
            _Slot(session, self._input.name, gpu, memory, run_lock)
            for _ in range(_IN_FLIGHT)
        )

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Codes of a batch, one array for each layer."""
        rows = len(images)
        padded_rows = rows if self._fixed_batch else self._padded_size(rows)
        outputs = self._slots.use(lambda slot: slot.run(images, padded_rows))
        self._sizes.add(padded_rows)
        return [codes[:rows] for codes in outputs]

    def _padded_size(self, rows: int) -> int:
        """An earlier size that is not much larger; or a new one."""
        power = 1 << (rows - 1).bit_length()
        # A copy: another thread may add a size meanwhile.
        sizes = tuple(self._sizes)
        known = [size for size in sizes if rows <= size <= _MAX_PADDING * power]
        return min(known, default=power if rows <= _MAX_ROUNDED else rows)


class _Slot:
    """Buffers of one batch in flight."""

    def __init__(
        self,
        session: ort.InferenceSession,
        name: str,
        gpu: int,
        memory: str,
        run_lock: threading.Lock,
    ) -> None:
        self._run_lock = run_lock
        self._session = session
        self._name = name
        self._gpu = gpu
        self._memory = memory
        self._staging = _PinnedBuffer(0, gpu)
        self._device_tensors: dict[tuple[int, ...], Any] = {}

    def run(self, images: np.ndarray, padded_rows: int) -> list[np.ndarray]:
        """Codes of a batch padded with copies of its last image."""
        try:
            return self._run(images, padded_rows)
        except Exception:
            # What did not fit must not take the memory of smaller batches.
            self._device_tensors.clear()
            self._staging = _PinnedBuffer(0, self._gpu)
            raise

    def _run(self, images: np.ndarray, padded_rows: int) -> list[np.ndarray]:
        shape = (padded_rows, *images.shape[1:])
        size = int(np.prod(shape))
        if size > len(self._staging.array):
            self._device_tensors.clear()
            self._staging = _PinnedBuffer(size, self._gpu)
        staged = self._staging.array[:size].reshape(shape)
        staged[: len(images)] = images
        staged[len(images) :] = images[-1]
        on_device = self._copy_to_device(staged)
        with self._run_lock:
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._name, on_device)
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
        # At the end of the interpreter, `ctypes` of an array can no longer be used.
        self._address = ctypes.c_void_p(self.array.ctypes.data)
        self._driver = cuda_driver() if size else None
        self._pinned = False
        if self._driver is not None:
            self._pinned = _pin(self._driver, self.array, gpu)

    def __del__(self) -> None:
        if self._pinned and self._driver is not None:
            self._driver.cuMemHostUnregister(self._address)


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
    if device.gpu is None or session.get_providers()[0] == CPU_PROVIDER:
        return CpuRunner(session, n_concurrent_runs)
    return GpuRunner(session, device.gpu, fixed_batch=batch_size is not None)
