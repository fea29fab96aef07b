"""Choose the engine, devices and precision that run a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from sk_cnncodes.base.exceptions import DeviceError
from sk_cnncodes.engines.devices import (
    CPU,
    Device,
    check_device,
    count_gpus,
    cpu_features,
    resolve_devices,
)
from sk_cnncodes.engines.onnxruntime import available_providers

PRECISIONS = ("float32", "tf32", "float16", "bfloat16", "int8")
ENGINES = ("auto", "onnxruntime", "openvino")
# Where each precision can be computed; all others are for CPUs only.
_ON_GPUS = ("float32", "tf32", "float16")
_ONLY_GPUS = ("tf32", "float16")
_INSTALL = "pip install 'sk-cnncodes[openvino]'"


@dataclass(frozen=True)
class Execution:
    """How a network is run; part of a session's key.

    Attributes
    ----------
    devices : tuple of Device
        One device, or several GPUs that are used at once.
    engine : {"onnxruntime", "openvino"}
    precision : str
        One of `PRECISIONS`.
    engine_cache : str
        Folder of the engines that TensorRT compiles.
    """

    devices: tuple[Device, ...] = (CPU,)
    engine: str = "onnxruntime"
    precision: str = "float32"
    engine_cache: str = ""

    @property
    def on_cpu(self) -> bool:
        """Whether the network runs on the CPU."""
        return self.devices[0].gpu is None

    def __str__(self) -> str:
        names = ", ".join(map(str, self.devices))
        return f"{self.engine} on {names} in {self.precision}"


def check_execution(device: str | Sequence[str], engine: str, precision: str) -> None:
    """Check the parameters, whether or not this machine supports them.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid, or they contradict each other.
    """
    check_device(device)
    for name, value, choices in (
        ("engine", engine, ENGINES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in choices:
            raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}.")
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise ValueError(
            "engine='openvino' runs on the CPU. Expected device='cpu' or 'auto', got "
            f"{device!r}."
        )
    if engine == "openvino" and precision in _ONLY_GPUS:
        raise ValueError(
            f"engine='openvino' runs on the CPU, but precision={precision!r} on NVIDIA "
            "GPUs only. Expected engine='auto' or 'onnxruntime'."
        )
    if engine == "onnxruntime" and precision == "bfloat16":
        raise ValueError(
            "precision='bfloat16' is computed by OpenVINO. Expected engine='auto' or "
            "'openvino', got engine='onnxruntime'."
        )


def resolve_execution(
    device: str | Sequence[str] = "auto",
    engine: str = "auto",
    precision: str = "float32",
    engine_cache: str = "",
) -> Execution:
    """Resolve the parameters on this machine.

    ``device="auto"`` depends on the precision: bfloat16 and int8 run on the CPU. With
    ``engine="auto"``, OpenVINO runs these two if it is installed, and ONNX Runtime
    everything else.

    Raises
    ------
    DeviceError
        If this machine does not support them; the message names valid values.
    TypeError, ValueError
        See `check_execution`.
    """
    check_execution(device, engine, precision)
    for_gpu = precision in _ON_GPUS and engine != "openvino"
    providers = available_providers()
    devices = resolve_devices(device, providers=providers, gpu_for_auto=for_gpu)
    on_cpu = devices[0].gpu is None
    fault = _fault(on_cpu, precision, engine)
    if fault is not None:
        valid = [p for p in PRECISIONS if _fault(on_cpu, p, engine) is None]
        expected = f"precision to be one of {valid}" if valid else "engine='auto'"
        raise DeviceError(
            f"precision={precision!r}, engine={engine!r} on {devices[0]}: {fault}. "
            f"Expected {expected} here."
        )
    if engine == "auto":
        prefer_openvino = precision == "bfloat16" or (
            precision == "int8" and has_openvino()
        )
        engine = "openvino" if on_cpu and prefer_openvino else "onnxruntime"
    # A precision that needs a GPU must not fall back to the CPU.
    if precision in _ONLY_GPUS:
        devices = tuple(Device(d.gpu, True, d.tensorrt) for d in devices)
    return Execution(devices, engine, precision, engine_cache)


def working_precisions() -> dict[str, str]:
    """Why this machine does not support each precision; "" if it does."""
    gpu = count_gpus() > 0
    faults = {}
    for precision in PRECISIONS:
        on_cpu = not (gpu and precision in _ON_GPUS)
        faults[precision] = _fault(on_cpu, precision, "auto") or ""
    return faults


def has_openvino() -> bool:
    """Whether the package openvino is installed; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


def _fault(on_cpu: bool, precision: str, engine: str) -> str | None:
    """Why this machine does not support the combination; None if it does."""
    if engine == "openvino" and not has_openvino():
        return f"OpenVINO is not installed ({_INSTALL})"
    if precision in _ONLY_GPUS and on_cpu:
        return f"{precision} needs an NVIDIA GPU"
    if precision not in _ON_GPUS and not on_cpu:
        return f"{precision} is for CPUs"
    if precision == "bfloat16":
        if not has_openvino():
            return f"bfloat16 needs OpenVINO ({_INSTALL})"
        features = cpu_features()
        if features is None:  # unknown, but OpenVINO may report them
            from sk_cnncodes.engines.openvino import cpu_capabilities

            features = frozenset({"bfloat16"} if "BF16" in cpu_capabilities() else ())
        if "bfloat16" not in features:
            return "this CPU has neither AMX nor AVX512-BF16"
    if precision == "int8":
        features = cpu_features()
        if features is not None and "int8" not in features:
            return "this CPU has neither VNNI nor AMX: 8-bit sums would overflow"
    return None
