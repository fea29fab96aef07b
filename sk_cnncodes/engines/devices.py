"""Resolve `device` and `n_jobs` on this machine, and detect its capabilities."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.dummy import DummyProcess
from numbers import Integral
from pathlib import Path
from typing import Any

from sk_cnncodes.base.exceptions import DeviceError

_EXPECTED = (
    "'auto', 'cpu', 'cuda', 'cuda:N', 'tensorrt' or 'tensorrt:N' with N the index of a "
    "GPU, or a list of GPUs such as ['cuda:0', 'cuda:1']"
)


@dataclass(frozen=True)
class Device:
    """Device that a session runs on: the CPU or a GPU.

    Attributes
    ----------
    gpu : int or None
        Index of the GPU; None for the CPU.
    required : bool, default=True
        Whether a GPU that does not work is an error; otherwise the CPU is used.
    tensorrt : bool, default=False
        Whether TensorRT compiles the network for the GPU.
    """

    gpu: int | None
    required: bool = True
    tensorrt: bool = False

    def __str__(self) -> str:
        if self.gpu is None:
            return "cpu"
        return f"{'tensorrt' if self.tensorrt else 'cuda'}:{self.gpu}"


CPU = Device(None)


def check_device(device: str | Sequence[str]) -> None:
    """Check the form of a `device` parameter, whether or not the device exists.

    Raises
    ------
    TypeError, ValueError
        If it is not a device or a list of GPUs.
    """
    names = [device] if isinstance(device, str) else device
    if not isinstance(names, (list, tuple)) or not all(
        isinstance(name, str) for name in names
    ):
        raise TypeError(f"device: expected {_EXPECTED}, got {device!r}.")
    pattern = r"(cuda|tensorrt)(:\d+)?"
    if isinstance(device, str):
        pattern += "|auto|cpu"
    valid = all(re.fullmatch(pattern, name) for name in names)
    if not names or not valid or len(set(names)) < len(names):
        raise ValueError(f"device: expected {_EXPECTED}, got {device!r}.")


def resolve_devices(
    device: str | Sequence[str], *, providers: Sequence[str], gpu_for_auto: bool = True
) -> tuple[Device, ...]:
    """Resolve a `device` parameter on this machine.

    GPUs are queried from the NVIDIA driver: ONNX Runtime prints errors if there is
    none.

    Parameters
    ----------
    device : str or list of str
        See `check_device`.
    providers : list of str
        Execution providers of the installed ONNX Runtime.
    gpu_for_auto : bool, default=True
        Whether "auto" may be a GPU.

    Raises
    ------
    DeviceError
        If this machine or this ONNX Runtime does not support a requested GPU.
    TypeError, ValueError
        See `check_device`.
    """
    check_device(device)
    if isinstance(device, str):
        if device == "cpu":
            return (CPU,)
        if device == "auto":
            usable = gpu_for_auto and "CUDAExecutionProvider" in providers
            return (Device(0 if usable and count_gpus() else None, required=False),)
    names = [device] if isinstance(device, str) else device
    return tuple(_gpu(name, providers) for name in names)


def _gpu(name: str, providers: Sequence[str]) -> Device:
    """Resolve the name of a GPU, such as "cuda:1"."""
    kind, _, number = name.partition(":")
    index, gpus = int(number or 0), count_gpus()
    if gpus == 0:
        raise DeviceError(
            f"device={name!r}: the NVIDIA driver reports no GPU on this machine. "
            "Expected 'cpu' or 'auto' here."
        )
    needed = {"cuda": "CUDA", "tensorrt": "Tensorrt"}[kind] + "ExecutionProvider"
    if needed not in providers:
        raise DeviceError(
            f"device={name!r}: the installed onnxruntime has no {needed}. Expected the "
            "package onnxruntime-gpu, without the package onnxruntime."
        )
    if index >= gpus:
        valid = ", ".join(f"'{kind}:{i}'" for i in range(gpus))
        raise DeviceError(
            f"device={name!r}: this machine has {gpus} GPU(s). Expected {valid}."
        )
    return Device(index, required=True, tensorrt=kind == "tensorrt")


def count_gpus() -> int:
    """Number of GPUs that the NVIDIA driver exposes to this process; 0 without one."""
    driver = cuda_driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def cuda_driver() -> ctypes.CDLL | None:
    """Load and initialise the NVIDIA driver's library; None if it does not work."""
    if sys.platform == "linux" and not Path("/proc/driver/nvidia").exists():
        in_wsl = Path("/dev/dxg").exists()
        if not in_wsl and not Path("/dev/nvidiactl").exists():
            return None
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def check_n_jobs(value: Any) -> None:
    """Check an `n_jobs` parameter.

    Raises
    ------
    ValueError
        If it is neither None nor an int other than 0.
    """
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    if value is not None and not (is_int and value != 0):
        raise ValueError(
            f"n_jobs: expected None or an int other than 0, got {value!r}."
        )


def usable_threads(n_jobs: int | None) -> int:
    """Number of threads for `n_jobs` within the CPU limits of this process.

    The limits are CPU affinity, cgroup quotas and joblib's share for a worker process
    (`joblib.cpu_count`), and OMP_NUM_THREADS, which parent processes set to divide the
    cores among their children. The threads of a `multiprocessing.dummy` pool, such as
    joblib's, share the cores; a daemonic process, such as a worker of joblib's
    multiprocessing pool, has one core.

    Parameters
    ----------
    n_jobs : int or None
        As in scikit-learn: None means 1, -1 means all, -2 all but one.
    """
    available = _cpu_count()
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


def _cpu_count() -> int:
    """Number of cores available to this process, before OMP_NUM_THREADS."""
    try:
        import joblib
    except ImportError:  # optional for OnnxClassifier; cgroup quotas are then ignored
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    return int(joblib.cpu_count())


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str] | None:
    """Low-precision arithmetic that the CPU supports.

    Returns
    -------
    frozenset of {"bfloat16", "int8"}, or None
        "bfloat16" if it multiplies such numbers (AMX, AVX512-BF16), "int8" if it
        multiplies 8-bit integers without intermediate overflow (VNNI, AMX; any CPU
        that is not x86). None if the system does not report it.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return frozenset({"int8"})
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags: set[str] = set()
    for line in lines:
        if line.startswith("flags"):
            flags.update(line.split(":", 1)[1].split())
    names = {
        "bfloat16": {"amx_bf16", "avx512_bf16"},
        "int8": {"amx_int8", "avx512_vnni", "avx_vnni"},
    }
    return frozenset(name for name, any_of in names.items() if flags & any_of)
