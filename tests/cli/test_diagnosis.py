"""Problems that the diagnosis finds, and the cures that it names."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sk_cnncodes.cli import diagnosis as doctor
from sk_cnncodes.engines.devices import count_gpus
from sk_cnncodes.engines.onnxruntime import import_onnxruntime


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SK_CNNCODES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SK_CNNCODES_OFFLINE", "1")
    found = doctor.diagnose()
    assert found.versions["numpy"] == np.__version__
    assert found.versions["onnxruntime"] == import_onnxruntime().__version__
    assert {"python", "onnx", "scikit-learn", "pillow"} <= set(found.versions)
    assert found.providers["CPUExecutionProvider"] is True
    assert found.providers.get("CUDAExecutionProvider", False) <= (count_gpus() > 0)
    assert found.home == str(tmp_path / "home")
    assert not (tmp_path / "home").exists()  # it was not created
    text = doctor.as_text(found)
    assert f"{tmp_path / 'home'} (offline)" in text
    assert "CPUExecutionProvider: works" in text


def install(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    """Pretend that these distributions are installed."""
    distributions = [
        SimpleNamespace(metadata={"Name": name.replace("_", "-")}, version=version)
        for name, version in packages.items()
    ]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: distributions)


def test_two_conflicting_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, numpy="2", onnxruntime_gpu="1.27.0", onnxruntime="1.26.0")
    (problem,) = [p for p in doctor.diagnose().problems if "one folder" in p]
    assert "onnxruntime 1.26.0 and onnxruntime-gpu 1.27.0" in problem
    assert problem.endswith(
        "Cure: pip uninstall -y onnxruntime onnxruntime-gpu && pip install "
        "onnxruntime-gpu"
    )


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_gpu"])
def test_one_package_is_no_conflict(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    install(monkeypatch, onnxruntime_extensions="0.14", **{name: "1.27.0"})
    assert doctor.onnxruntime_packages() == {name.replace("_", "-"): "1.27.0"}
    assert not [p for p in doctor.diagnose().problems if "onnxruntime 1" in p]


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    problems = doctor.package_problems({"numpy": "2", "onnx": ""}, {})
    assert "onnx is not installed. Cure: pip install onnx" in problems
    assert "no package of ONNX Runtime is installed" in problems[1]


class FakeRuntime:
    """An ONNX Runtime whose sessions fall back to the CPU, as the real one does."""

    def __init__(self, works: bool) -> None:
        self.works = works

    SessionOptions = SimpleNamespace

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self, directory: str) -> None:
        print("libcudnn.so.9: not found")

    def InferenceSession(self, model, options, providers) -> SimpleNamespace:
        used = providers if self.works else ["CPUExecutionProvider"]
        return SimpleNamespace(
            get_providers=lambda: used,
            run=lambda names, inputs: [inputs["x"] * 3],
        )


def test_providers_that_fall_back_do_not_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    works, (problem,) = doctor.working_providers(FakeRuntime(False), gpus=1)
    assert works == {"CUDAExecutionProvider": False, "CPUExecutionProvider": True}
    assert "it fell back to CPUExecutionProvider (libcudnn.so.9: not found)" in problem
    assert "pip install 'sk-cnncodes[cuda]'" in problem
    assert capsys.readouterr().out == ""
    works, problems = doctor.working_providers(FakeRuntime(True), gpus=1)
    assert works["CUDAExecutionProvider"]
    assert not problems


def test_without_a_gpu_cuda_is_not_tried() -> None:
    works, problems = doctor.working_providers(FakeRuntime(True), gpus=0)
    assert works == {"CUDAExecutionProvider": False, "CPUExecutionProvider": True}
    assert not problems


def test_a_gpu_with_a_cpu_only_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(True)
    monkeypatch.setattr(
        runtime, "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    _, (problem,) = doctor.working_providers(runtime, gpus=2)
    assert "2 GPU(s), but this ONNX Runtime is for CPUs only. Cure: pip" in problem


@pytest.mark.gpu
def test_cuda_works_on_a_gpu() -> None:
    if count_gpus() == 0:
        pytest.skip("needs a GPU")
    assert doctor.diagnose().providers["CUDAExecutionProvider"]


def test_a_home_folder_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = doctor.folder_problems(tmp_path / "file" / "home")
    assert "is not writable" in problem
    assert "SK_CNNCODES_HOME" in problem
    assert doctor.folder_problems(tmp_path / "new" / "home") == []
