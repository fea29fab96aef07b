"""Diagnose the environment: what works here, and how to fix the rest."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sk_cnncodes.base.exceptions import DeviceError, DownloadError, first_line
from sk_cnncodes.base.home import HOME_VARIABLE, cache_dir, is_offline
from sk_cnncodes.engines.devices import count_gpus
from sk_cnncodes.engines.execution import working_precisions
from sk_cnncodes.engines.jpeg_decoder import check_gpu_decoding
from sk_cnncodes.engines.onnxruntime import import_onnxruntime, session_options

if TYPE_CHECKING:
    from types import ModuleType

PACKAGES = ("numpy", "pillow", "scikit-learn", "onnx")
# Providers that look for an NVIDIA GPU, and print errors if there is none.
_NVIDIA = (
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
)


@dataclass(frozen=True)
class Diagnosis:
    """Result of `diagnose`.

    Attributes
    ----------
    versions : dict of str to str
        Versions of Python and the packages; "" for a missing package.
    onnxruntime_packages : dict of str to str
        Installed distributions of ONNX Runtime and their versions.
    gpus : int
        Number of GPUs that the NVIDIA driver reports.
    providers : dict of str to bool
        Whether a session ran on each execution provider of ONNX Runtime.
    precisions : dict of str to str
        Why a precision does not work here; "" for one that does.
    gpu_decoding : str
        Why a GPU does not decode JPEG files here; "" if it does.
    home : str
        Folder of downloaded backbones.
    offline : bool
        Whether downloads are forbidden.
    problems : list of str
        Problems, each with its cure.
    """

    versions: dict[str, str]
    onnxruntime_packages: dict[str, str]
    gpus: int
    providers: dict[str, bool]
    precisions: dict[str, str]
    gpu_decoding: str
    home: str
    offline: bool
    problems: list[str] = field(default_factory=list)


def diagnose() -> Diagnosis:
    """Check versions, providers, GPUs and folders."""
    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    if openvino := _version("openvino"):
        versions["openvino"] = openvino
    packages = onnxruntime_packages()
    problems = package_problems(versions, packages)
    gpus, providers = count_gpus(), dict[str, bool]()
    try:
        ort = import_onnxruntime()
    except ImportError as error:
        problems.append(f"onnxruntime cannot be imported: {error}")
    else:
        versions["onnxruntime"] = str(getattr(ort, "__version__", ""))
        providers, faults = working_providers(ort, gpus)
        problems += faults
    try:
        home = str(cache_dir())
        problems += folder_problems(Path(home))
    except DownloadError as error:
        home = ""
        problems.append(str(error))
    return Diagnosis(
        versions,
        packages,
        gpus,
        providers,
        working_precisions(),
        gpu_decoding_fault(),
        home,
        is_offline(),
        problems,
    )


def gpu_decoding_fault() -> str:
    """Why ``decoder="gpu"`` does not work here; "" if it does."""
    try:
        check_gpu_decoding()
        from sk_cnncodes.codes.sessions import gpu_views

        gpu_views(0)
    except (DeviceError, ImportError) as error:
        return str(error).removeprefix("decoder='gpu': ")
    return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def onnxruntime_packages() -> dict[str, str]:
    """Versions of installed distributions that provide the module `onnxruntime`."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        extensions = ("onnxruntime-extensions", "onnxruntime-genai")
        if name.startswith("onnxruntime") and not name.startswith(extensions):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def package_problems(versions: dict[str, str], packages: dict[str, str]) -> list[str]:
    """Problems of the installed packages."""
    problems = [
        f"{name} is not installed. Cure: pip install {name}"
        for name, version in versions.items()
        if not version
    ]
    if not packages:
        problems.append(
            "no package of ONNX Runtime is installed. Cure: pip install "
            "onnxruntime-gpu (Linux, Windows), or pip install onnxruntime (macOS, "
            "Windows on Arm)"
        )
    if len(packages) > 1:
        listed = " and ".join(f"{n} {v}" for n, v in packages.items())
        keep = next((n for n in packages if n == "onnxruntime-gpu"), [*packages][-1])
        problems.append(
            f"{listed} are installed into one folder: the last one overwrote files of "
            "the other, and uninstalling one breaks the other. Cure: "
            f"pip uninstall -y {' '.join(packages)} && pip install {keep}"
        )
    return problems


def working_providers(ort: ModuleType, gpus: int) -> tuple[dict[str, bool], list[str]]:
    """Whether a small session runs on each provider, and problems of those that fail.

    ONNX Runtime lists as available all providers that were compiled in, even if their
    libraries or devices are missing.
    """
    works: dict[str, bool] = {}
    problems = []
    for provider in ort.get_available_providers():
        if provider in _NVIDIA and gpus == 0:
            works[provider] = False
            continue
        fault = _provider_fault(ort, provider)
        works[provider] = fault is None
        if fault is not None and provider == "CUDAExecutionProvider":
            problems.append(
                f"this machine has {gpus} GPU(s), but CUDA does not work: {fault}. "
                "Cure: pip install 'sk-cnncodes[cuda]'"
            )
        elif fault is not None and provider == "CPUExecutionProvider":
            problems.append(
                f"ONNX Runtime does not run on the CPU: {fault}. Cure: install "
                "onnxruntime again"
            )
    if gpus > 0 and "CUDAExecutionProvider" not in works:
        problems.append(
            f"this machine has {gpus} GPU(s), but this ONNX Runtime is for CPUs only. "
            "Cure: pip uninstall -y onnxruntime && pip install 'sk-cnncodes[cuda]'"
        )
    return works, problems


def _provider_fault(ort: ModuleType, provider: str) -> str | None:
    """Why a provider cannot compute a small convolution; None if it can."""
    import numpy as np

    options = session_options(n_threads=1)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if provider in _NVIDIA and hasattr(ort, "preload_dlls"):
            ort.preload_dlls(directory="")
        try:
            session = ort.InferenceSession(_small_model(), options, [provider])
            (output,) = session.run(None, {"x": np.ones((1, 1, 2, 2), np.float32)})
        except Exception as error:
            return first_line(error)
    got = session.get_providers()[0]
    if got != provider:
        reasons = [line for line in printed.getvalue().splitlines() if line.strip()]
        return f"it fell back to {got}" + (f" ({reasons[0][:300]})" if reasons else "")
    return None if np.allclose(output, 3) else f"it computed {output.ravel()[0]}, not 3"


def _small_model() -> bytes:
    """A 1x1 convolution that multiplies by three."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [3.0])
    shape = [1, 1, 2, 2]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return bytes(model.SerializeToString())


def folder_problems(home: Path) -> list[str]:
    """Problems of writing backbones to the home folder."""
    nearest = next(f for f in (home, *home.parents) if f.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return []
    return [
        f"the home folder {str(home)!r} is not writable, so backbones cannot be "
        f"downloaded to it. Cure: set {HOME_VARIABLE} to a writable folder"
    ]


def as_text(found: Diagnosis) -> str:
    """Format a diagnosis for a terminal."""
    lines = [
        f"{name:<13} {version or 'missing'}" for name, version in found.versions.items()
    ]
    packages = ", ".join(f"{n} {v}" for n, v in found.onnxruntime_packages.items())
    lines.append(f"{'packages':<13} {packages or 'none'} of ONNX Runtime")
    lines.append(f"{'platform':<13} {platform.platform()}, {os.cpu_count()} CPUs")
    lines.append(f"{'GPUs':<13} {found.gpus}")
    for provider, works in found.providers.items():
        state = "works" if works else "does not work here"
        lines.append(f"{'provider':<13} {provider}: {state}")
    for precision, fault in found.precisions.items():
        state = f"does not work here: {fault}" if fault else "works"
        lines.append(f"{'precision':<13} {precision}: {state}")
    state = "works"
    if found.gpu_decoding:
        state = f"does not work here: {found.gpu_decoding.removesuffix('.')}"
    lines.append(f"{'decoder':<13} gpu: {state}")
    lines.append(f"{'home':<13} {found.home}{' (offline)' if found.offline else ''}")
    lines += [f"Problem: {problem}." for problem in found.problems]
    if not found.problems:
        lines.append("No problem found.")
    return "\n".join(lines)


def as_dict(found: Diagnosis) -> dict[str, Any]:
    """Convert a diagnosis to values for JSON."""
    return asdict(found) | {"executable": sys.executable}
