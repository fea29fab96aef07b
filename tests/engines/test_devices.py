"""Resolution of device and n_jobs, and CPU features."""

from __future__ import annotations

from pathlib import Path

import pytest

from sk_cnncodes.base.exceptions import DeviceError
from sk_cnncodes.engines import devices
from sk_cnncodes.engines.devices import (
    Device,
    check_device,
    count_gpus,
    cpu_features,
    resolve_devices,
    usable_threads,
)

CPU = Device(None, required=True)
ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def test_threads_follow_sklearn_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert usable_threads(None) == 1
    assert usable_threads(3) == 3
    assert usable_threads(-1) == 8
    assert usable_threads(-3) == 6
    assert usable_threads(-99) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert usable_threads(-1) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert usable_threads(-1) == 8


def test_cpu_is_always_available() -> None:
    assert resolve_devices("cpu", providers=ALL) == (CPU,)
    assert resolve_devices("auto", providers=ALL)[0].required is False


@pytest.mark.skipif(count_gpus() > 0, reason="there is a GPU")
def test_without_a_gpu() -> None:
    assert resolve_devices("auto", providers=ALL)[0].gpu is None
    for device in ("cuda", "cuda:0", "cuda:3", "tensorrt"):
        with pytest.raises(DeviceError, match=f"{device}.*no GPU.*'cpu' or 'auto'"):
            resolve_devices(device, providers=ALL)
    with pytest.raises(DeviceError, match="'cuda:1'.*no GPU"):
        resolve_devices(["cuda:1", "cuda:0"], providers=ALL)


def test_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sk_cnncodes.engines.devices.count_gpus", lambda: 2)

    def names(device: str | list[str], providers: list[str] = ALL) -> list[str]:
        return [str(d) for d in resolve_devices(device, providers=providers)]

    assert names("auto") == ["cuda:0"]
    assert names("cuda:1") == ["cuda:1"]
    assert names("tensorrt:1") == ["tensorrt:1"]
    assert names(["cuda:1", "cuda:0"]) == ["cuda:1", "cuda:0"]
    with pytest.raises(DeviceError, match=r"2 GPU\(s\).*'cuda:0', 'cuda:1'"):
        names("cuda:2")
    with pytest.raises(DeviceError, match=r"'cuda:5'.*2 GPU\(s\)"):
        names(["cuda:0", "cuda:5"])
    assert names("auto", ALL[2:]) == ["cpu"]
    with pytest.raises(DeviceError, match="no CUDAExecutionProvider"):
        names("cuda", ALL[2:])
    with pytest.raises(DeviceError, match="no TensorrtExecutionProvider"):
        names("tensorrt", ALL[1:])
    auto = resolve_devices("auto", providers=ALL, gpu_for_auto=False)
    assert auto[0].gpu is None


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:", "cuda:x", "", [], ["auto"], ["cpu"], ["cuda", "cuda"]]
)
def test_invalid_device_names(device: str | list[str]) -> None:
    with pytest.raises(ValueError, match="device: expected 'auto', 'cpu', 'cuda'"):
        check_device(device)


@pytest.mark.parametrize("device", [0, None, [0, 1], {"cuda:0"}])
def test_invalid_device_types(device: object) -> None:
    with pytest.raises(TypeError, match="device: expected 'auto'"):
        check_device(device)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("sse2 avx2", set()),
        ("avx512f avx512_vnni", {"int8"}),
        ("avx_vnni", {"int8"}),
        ("avx512_vnni avx512_bf16", {"int8", "bfloat16"}),
        ("amx_bf16 amx_tile amx_int8", {"int8", "bfloat16"}),
    ],
)
def test_cpu_features_from_flags(
    flags: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"processor\t: 0\nmodel name\t: X\nflags\t\t: fpu {flags}\n"
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert cpu_features.__wrapped__() == expected


def test_unknown_cpu_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, encoding: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(devices.platform, "machine", lambda: "AMD64")
    assert cpu_features.__wrapped__() is None
    monkeypatch.setattr(devices.platform, "machine", lambda: "arm64")
    assert cpu_features.__wrapped__() == {"int8"}
