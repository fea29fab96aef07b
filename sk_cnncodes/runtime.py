"""ONNX Runtime sessions: devices, threads, and one table of sessions a process."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import joblib
import numpy as np

from sk_cnncodes.exceptions import BackboneError, DeviceError
from sk_cnncodes.forks import import_whole, unforked

if TYPE_CHECKING:
    import onnxruntime as ort

# Sessions kept open; each holds the weights and an arena of about 200 MB.
MAX_SESSIONS = 4
# Codes of one image alone and in a batch may differ by this much, relative to the
# largest value: rounding does, mixed-up rows do not.
_BATCH_TOLERANCE = 1e-3
GPU_BATCH_SIZE = 64
# On a CPU, most networks are quickest with one or two images in a run: more leave the
# caches. Large dense layers want more, whose weights are then read less often.
_UNMEASURED_BATCH_SIZE = 2
_MAX_CPU_BATCH_SIZE = 64
# So many images pay for a measurement; and so much quicker must a larger batch be.
_WORTH_MEASURING = 128
_WORTHWHILE = 1.04


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime with its telemetry off.

    From 1.29 on it sends usage data and starts a thread on import, unless the
    environment says otherwise. A variable that the user set stays as it is.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_whole("onnxruntime")


def usable_threads(n_jobs: int | None) -> int:
    """Number of threads for `n_jobs`, within what this process may use.

    That is bounded by CPU affinity, cgroup quotas and the share that joblib gives a
    worker process (`joblib.cpu_count`), and by OMP_NUM_THREADS, through which a
    parent process divides its cores among its children. Threads of a pool, as joblib
    makes one, share the cores; a daemonic process, as in joblib's pool of them, is
    one of many.

    Parameters
    ----------
    n_jobs : int or None
        As in scikit-learn: None means 1, -1 means all, -2 all but one.
    """
    available: int = joblib.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if limit.isdigit() and int(limit) > 0:
        available = min(available, int(limit))
    if n_jobs is None:
        return 1
    if n_jobs > 0:
        return n_jobs
    if multiprocessing.current_process().daemon:
        available = 1
    elif isinstance(threading.current_thread(), DummyProcess):
        pooled = [isinstance(t, DummyProcess) for t in threading.enumerate()]
        available = available // sum(pooled)
    return max(1, available + 1 + n_jobs)


# -- devices -----------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """Where a session runs: the CPU (`gpu` is None), or a GPU by its index."""

    gpu: int | None
    required: bool  # an error rather than the CPU where it does not work

    def __str__(self) -> str:
        return "cpu" if self.gpu is None else f"cuda:{self.gpu}"


def resolve_device(device: str) -> Device:
    """The device that a `device` parameter stands for on this machine.

    "auto" asks the NVIDIA driver, not ONNX Runtime, which prints errors where there
    is none.

    Raises
    ------
    DeviceError
        If a GPU is asked for that this machine or this ONNX Runtime does not have.
    ValueError
        If `device` is not "auto", "cpu", "cuda" or "cuda:N".
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise ValueError(
            f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N' with a number N, got "
            f"{device!r}."
        )
    if device == "cpu":
        return Device(None, required=True)
    has_provider = (
        "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()
    )
    gpus = count_gpus()
    if device == "auto":
        usable = gpus > 0 and has_provider
        return Device(0 if usable else None, required=False)
    index = int(match.group(1) or 0)
    if gpus == 0:
        raise DeviceError(
            f"device={device!r}: the NVIDIA driver shows no GPU on this machine. "
            "Expected 'cpu' or 'auto' here."
        )
    if not has_provider:
        raise DeviceError(
            f"device={device!r}: the installed onnxruntime has no CUDA provider. "
            "Expected the package onnxruntime-gpu, and no onnxruntime beside it."
        )
    if index >= gpus:
        valid = ", ".join(f"'cuda:{i}'" for i in range(gpus))
        raise DeviceError(
            f"device={device!r}: this machine has {gpus} GPU(s). Expected {valid}."
        )
    return Device(index, required=True)


def count_gpus() -> int:
    """Number of GPUs that the NVIDIA driver lets this process see; 0 without one."""
    if sys.platform == "linux" and not Path("/proc/driver/nvidia").exists():
        in_wsl = Path("/dev/dxg").exists()
        if not in_wsl and not Path("/dev/nvidiactl").exists():
            return 0
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


# -- sessions ----------------------------------------------------------------


class RunnableGraph(Protocol):
    """A serialised model and how many images it takes in each run (None: any)."""

    @property
    def model(self) -> bytes: ...

    @property
    def batch_size(self) -> int | None: ...


class CodeSession:
    """A loaded code graph.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        With one uint8 input [N, height, width, 3] and float32 outputs [N, d].
    batch_size : int or None
        Number of images that each run must have; None for any number.
    n_callers : int, default=1
        How many threads may call `run` at once and gain by it.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        batch_size: int | None,
        n_callers: int = 1,
    ) -> None:
        self._session = session
        self.batch_size = batch_size
        self.n_callers = n_callers
        self._measuring = threading.Lock()
        self._measured: int | None = None
        self.provider: str = session.get_providers()[0]
        (self._input,) = session.get_inputs()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an input image."""
        height, width, channels = self._input.shape[1:]
        return height, width, channels

    def good_batch_size(self, n_images: int) -> int:
        """How many images a run should have, if there are so many in all.

        On a CPU it is measured once for many images: the batch is doubled until that
        gains nothing.
        """
        if self.batch_size is not None:
            return self.batch_size
        if self.provider != "CPUExecutionProvider":
            return GPU_BATCH_SIZE
        if n_images < _WORTH_MEASURING:
            return _UNMEASURED_BATCH_SIZE
        with self._measuring:
            if self._measured is None:
                self._measured = self._quickest_batch_size()
        return min(self._measured, -(-n_images // (2 * self.n_callers)))

    def _quickest_batch_size(self) -> int:
        size, quickest = 1, self._images_per_second(1)
        while size < _MAX_CPU_BATCH_SIZE:
            doubled = self._images_per_second(2 * size)
            if doubled < _WORTHWHILE * quickest:
                break
            size, quickest = 2 * size, doubled
        return size

    def _images_per_second(self, batch_size: int) -> float:
        """Speed of all callers together: the best of three rounds."""
        images = np.zeros((batch_size, *self.image_shape), np.uint8)
        with ThreadPoolExecutor(self.n_callers, "sk_cnncodes-measure") as callers:
            seconds = []
            for _ in range(4):  # the first one finds its memory
                start = time.perf_counter()
                list(callers.map(self.run, [images] * self.n_callers))
                seconds.append(time.perf_counter() - start)
        return batch_size * self.n_callers / min(seconds[1:])

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Codes of a batch. Several threads may call it at once.

        Parameters
        ----------
        images : ndarray of uint8, shape (n_images, height, width, 3)

        Returns
        -------
        list of ndarray of float32, shape (n_images, d)
            One for each layer.

        Raises
        ------
        BackboneError
            If the network does not return one row an image.
        """
        if self.batch_size is None:
            return self._run(images)
        parts = []
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            rows = len(part)
            if rows < self.batch_size:
                repeated = np.repeat(part[-1:], self.batch_size - rows, axis=0)
                part = np.concatenate([part, repeated])
            parts.append([codes[:rows] for codes in self._run(part)])
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        outputs = self._session.run(None, {self._input.name: images})
        for codes in outputs:
            if codes.ndim != 2 or len(codes) != len(images):
                raise BackboneError(
                    f"the network returned codes of shape {codes.shape} for "
                    f"{len(images)} images. Expected one row an image."
                )
        return list(outputs)


def open_session(
    graphs: Iterable[RunnableGraph],
    device: Device,
    n_threads: int,
    n_callers: int = 1,
) -> CodeSession:
    """Load the first of several graphs whose rows do not depend on the batch.

    Parameters
    ----------
    graphs : iterable of RunnableGraph
    device : Device
    n_threads : int
        CPU threads of all runs together.
    n_callers : int, default=1
        How many threads will call `run` at once; each run has its share of
        `n_threads`. On a GPU there is one.

    Raises
    ------
    BackboneError
        If ONNX Runtime loads or runs none of them.
    DeviceError
        If a required GPU does not work.
    """
    fault: Exception | None = None
    for graph in graphs:
        try:
            with unforked:
                session = _load(graph.model, device, max(1, n_threads // n_callers))
            callers = n_callers if device.gpu is None else 1
            code_session = CodeSession(session, graph.batch_size, callers)
            fault = _batch_fault(code_session)
        except DeviceError:
            raise
        except Exception as error:
            fault = error
        if fault is None:
            return code_session
    assert fault is not None
    reason = (str(fault).strip() or type(fault).__name__).splitlines()[0][:500]
    raise BackboneError(f"ONNX Runtime cannot run the backbone: {reason}") from fault


def _batch_fault(session: CodeSession) -> Exception | None:
    """Run two images alone and together; what is wrong with the rows, if anything."""
    rng = np.random.default_rng(0)
    shape = session.image_shape
    coarse = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
    repeats = (-(-shape[0] // 4), -(-shape[1] // 4))
    images = coarse.repeat(repeats[0], axis=1).repeat(repeats[1], axis=2)
    images = np.ascontiguousarray(images[:, : shape[0], : shape[1]])
    together = session.run(images)
    if session.batch_size is not None:
        return None  # every run has the batch size that the file was made for
    for index in range(2):
        alone = session.run(images[index : index + 1])
        for one, both in zip(alone, together, strict=True):
            largest = np.abs(one).max(initial=1e-6)
            difference = np.abs(one[0] - both[index]).max(initial=0)
            if not difference <= _BATCH_TOLERANCE * largest:
                return BackboneError(
                    "codes of an image depend on the other images of its batch "
                    f"(largest difference {difference:.3g} of {largest:.3g})."
                )
    return None


def _load(model: bytes, device: Device, n_threads: int) -> ort.InferenceSession:
    """An inference session on the device, or an error that says why not."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Else a file could pass for one of ONNX Runtime's own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = 1 if device.gpu is not None else n_threads
    # Idle threads that spin starve decoding, and each other where cores are shared.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    cpu = ["CPUExecutionProvider"]
    if device.gpu is None:
        return ort.InferenceSession(model, options, providers=cpu)
    cuda = {
        "device_id": str(device.gpu),
        # TF32 would change codes by 1e-3; each new search would cost seconds.
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    with _nvidia_libraries(ort) as reported:
        session = ort.InferenceSession(
            model, options, providers=[("CUDAExecutionProvider", cuda), *cpu]
        )
    if session.get_providers()[0] == "CUDAExecutionProvider":
        return session
    reason = (
        f"ONNX Runtime {ort.__version__} cannot use CUDA on {device}"
        f"{': ' + reported[0] if reported else ''}. Install the NVIDIA libraries that "
        "it needs: pip install 'sk-cnncodes[cuda]'"
    )
    if device.required:
        raise DeviceError(f"{reason}; or choose device='cpu'.")
    warnings.warn(f"{reason}. The CPU is used instead.", stacklevel=2)
    options.intra_op_num_threads = n_threads
    return ort.InferenceSession(model, options, providers=cpu)


@contextmanager
def _nvidia_libraries(ort: ModuleType) -> Iterator[list[str]]:
    """Load CUDA and cuDNN of the NVIDIA wheels; collect what fails, print nothing."""
    import contextlib
    import io

    reported: list[str] = []
    printed = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(printed):
            ort.preload_dlls(directory="")
    reported.extend(line for line in printed.getvalue().splitlines() if line.strip())
    yield reported


# -- the table of sessions ---------------------------------------------------


class _Entry:
    """A session that is there, or is being made by the thread that holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: CodeSession | None = None


class SessionTable:
    """Sessions of this process, the least recently used leaving first.

    Sessions cannot be pickled, must not be deleted in a forked child, and cost
    seconds to make: estimators ask this table for theirs each time.

    Parameters
    ----------
    max_sessions : int
        How many are kept.
    """

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self.max_sessions = max_sessions
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], CodeSession]) -> CodeSession:
        """The session of a key; `make` is called once however many threads ask."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > self.max_sessions:
                self._entries.popitem(last=False)
        with entry.lock:
            if entry.session is None:
                entry.session = make()
            return entry.session

    def clear(self) -> None:
        """Close all sessions that no one is using."""
        with self._lock:
            self._entries.clear()

    def _abandon_after_fork(self) -> None:
        # Deleting a session whose threads stayed in the parent hangs, at exit too:
        # one reference that is never given back keeps the child from trying.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._entries))
        self._entries = OrderedDict()
        self._lock = threading.Lock()


SESSIONS = SessionTable()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SESSIONS._abandon_after_fork)
