"""Choice of engine and devices, and errors for unsupported combinations."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from sk_cnncodes import CNNCodeTransformer
from sk_cnncodes.base.exceptions import DeviceError
from sk_cnncodes.engines import execution
from sk_cnncodes.engines.devices import Device
from sk_cnncodes.engines.execution import (
    check_execution,
    has_openvino,
    resolve_execution,
)

GPU_PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that simulates a machine with the given features."""

    def pretend(*, cpu: set[str], gpus: int = 0, openvino: bool = True) -> None:
        monkeypatch.setattr(execution, "available_providers", lambda: GPU_PROVIDERS)
        monkeypatch.setattr(execution, "cpu_features", lambda: frozenset(cpu))
        monkeypatch.setattr(execution, "has_openvino", lambda: openvino)
        monkeypatch.setattr("sk_cnncodes.engines.devices.count_gpus", lambda: gpus)
        monkeypatch.setattr(execution, "count_gpus", lambda: gpus)

    return pretend


def test_auto_depends_on_precision(machine: Any) -> None:
    def chosen(precision: str, engine: str = "auto") -> str:
        return str(resolve_execution(engine=engine, precision=precision))

    machine(cpu={"bfloat16", "int8"}, gpus=1)
    assert chosen("float32") == "onnxruntime on cuda:0 in float32"
    assert chosen("float16") == "onnxruntime on cuda:0 in float16"
    assert chosen("tf32") == "onnxruntime on cuda:0 in tf32"
    assert chosen("bfloat16") == "openvino on cpu in bfloat16"
    assert chosen("int8") == "openvino on cpu in int8"
    assert chosen("int8", "onnxruntime") == "onnxruntime on cpu in int8"
    assert chosen("float32", "openvino") == "openvino on cpu in float32"
    machine(cpu={"int8"}, openvino=False)
    assert chosen("float32") == "onnxruntime on cpu in float32"
    assert chosen("int8") == "onnxruntime on cpu in int8"


def test_gpu_precision_does_not_fall_back_to_the_cpu(machine: Any) -> None:
    machine(cpu={"int8"}, gpus=1)
    assert resolve_execution(precision="float16").devices == (Device(0, True),)
    assert resolve_execution(precision="float32").devices == (Device(0, False),)


@pytest.mark.parametrize(
    ("cpu", "gpus", "openvino", "parameters", "reason", "valid"),
    [
        (
            {"int8"},
            0,
            True,
            {"precision": "bfloat16"},
            "neither AMX nor AVX512-BF16",
            ["float32", "int8"],
        ),
        (
            {"bfloat16", "int8"},
            0,
            False,
            {"precision": "bfloat16"},
            r"bfloat16 needs OpenVINO .*sk-cnncodes\[openvino\]",
            ["float32", "int8"],
        ),
        (
            set(),
            0,
            True,
            {"precision": "int8"},
            "neither VNNI nor AMX",
            ["float32"],
        ),
        (
            {"bfloat16", "int8"},
            0,
            True,
            {"precision": "float16"},
            "float16 needs an NVIDIA GPU",
            ["float32", "bfloat16", "int8"],
        ),
        (
            {"bfloat16", "int8"},
            2,
            True,
            {"precision": "tf32", "device": "cpu"},
            "tf32 needs an NVIDIA GPU",
            ["float32", "bfloat16", "int8"],
        ),
        (
            {"bfloat16", "int8"},
            2,
            True,
            {"precision": "int8", "device": ["cuda:0", "cuda:1"]},
            "int8 is for CPUs",
            ["float32", "tf32", "float16"],
        ),
    ],
)
def test_unsupported_precision_names_supported_ones(
    machine: Any,
    cpu: set[str],
    gpus: int,
    openvino: bool,
    parameters: dict[str, Any],
    reason: str,
    valid: list[str],
) -> None:
    machine(cpu=cpu, gpus=gpus, openvino=openvino)
    with pytest.raises(DeviceError, match=reason) as error:
        resolve_execution(**parameters)
    assert f"one of {valid} here" in str(error.value)


def test_openvino_not_installed(machine: Any) -> None:
    machine(cpu={"int8"}, openvino=False)
    with pytest.raises(DeviceError, match=r"not installed \(pip install 'sk-cnn"):
        resolve_execution(engine="openvino")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"precision": "half"}, "precision: expected one of .*'float16'.*'half'"),
        ({"engine": "torch"}, "engine: expected one of .*'openvino'.*'torch'"),
        ({"engine": "openvino", "device": "cuda"}, "runs on the CPU.*got 'cuda'"),
        ({"engine": "openvino", "precision": "tf32"}, "NVIDIA GPUs only"),
        ({"engine": "onnxruntime", "precision": "bfloat16"}, "computed by OpenVINO"),
    ],
)
def test_parameters_invalid_on_every_machine(
    parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        defaults = {"device": "auto", "engine": "auto", "precision": "float32"}
        check_execution(**(defaults | parameters))
    with pytest.raises(ValueError, match=message):
        CNNCodeTransformer(**parameters).fit(["a.jpg"])


def test_choosing_does_not_import_openvino() -> None:
    program = (
        "import sys; from sk_cnncodes.engines.execution import *; resolve_execution();"
        "working_precisions(); has_openvino(); print('openvino' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
    assert isinstance(has_openvino(), bool)
