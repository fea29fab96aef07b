"""Parts that are no measurement: inputs, facts of the machine, tests marked `gpu`."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import PIL.features

import sk_cnncodes
from sk_cnncodes.cli.diagnosis import as_dict, diagnose
from tests.benchmarks.timing import machine
from tests.gpu import data
from tests.gpu.context import Context

MADE_NETWORKS = ("vit_b16", "resnet50", "vit_s16")
# Graphs for bare sessions, the slowest to make first.
GRAPHS = (
    ("vit_b16", "float16"),
    ("resnet50", "float16"),
    ("resnet50", "float32"),
    ("mobilenet_v2", "float16"),
)


def prepare(context: Context) -> None:
    """Write the JPEG files, networks and code graphs, all cores at once."""
    start = time.perf_counter()
    shallow = not context.gpu
    tasks: list[Callable[[], object]] = [
        partial(_network, context, name, shallow) for name in MADE_NETWORKS
    ]
    tasks.append(partial(context.graph, "mobilenet_v2", "float16"))
    for kind, count, width, height in data.JPEG_FILES:
        folder = context.work / kind
        folder.mkdir(exist_ok=True)
        count = context.few(count, 20 if width < 1000 else 2)
        jobs = [
            (context.data, folder / f"{number:05}.jpg", number, width, height)
            for number in range(count)
        ]
        missing = [job for job in jobs if not job[1].exists()]
        # Large files one by one, small ones in lots.
        lot = max(1, len(missing) // 64)
        for first in range(0, len(missing), lot):
            tasks.append(partial(_jpegs, missing[first : first + lot]))
    n_cores = len(os.sched_getaffinity(0))
    # Not forks: this process has asked the driver for its GPUs.
    with multiprocessing.get_context("spawn").Pool(min(n_cores, 16)) as pool:
        for task in [pool.apply_async(task) for task in tasks]:
            task.get()
    sizes = {
        kind: sum(p.stat().st_size for p in (context.work / kind).iterdir())
        / len(list((context.work / kind).iterdir()))
        for kind, *_ in data.JPEG_FILES
    }
    context.record(
        "made",
        seconds=time.perf_counter() - start,
        bytes_per_file=sizes,
        free_gb=shutil.disk_usage(context.work).free / 2**30,
        ok=True,
    )


def _network(context: Context, name: str, shallow: bool) -> None:
    """Write a network, and then its code graphs, which need it."""
    data.write_network(name, context.work, shallow=shallow)
    for network, precision in GRAPHS:
        if network == name:
            context.graph(network, precision)


def _jpegs(jobs: list[Any]) -> None:
    for job in jobs:
        data.write_jpeg(job)


def doctor(context: Context) -> None:
    """What the command doctor finds, and the rest of the machine."""
    found = as_dict(diagnose())
    context.record("doctor", **found, ok=not found["problems"])
    import onnxruntime

    facts = {
        "sk_cnncodes": sk_cnncodes.__version__,
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime_cuda": getattr(onnxruntime, "cuda_version", None),
        "libjpeg_turbo": PIL.features.version("libjpeg_turbo"),
        "shm_gb": shutil.disk_usage("/dev/shm").free / 2**30,
        "gpu": context.gpu,
    }
    for package in ("torch", "torchvision", "nvidia-cudnn-cu13", "numpy", "pillow"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not there"
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        facts |= {
            "gpu_name": pynvml.nvmlDeviceGetName(handle),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "gpu_memory_gb": memory.total / 2**30,
            "gpu_memory_used_gb": memory.used / 2**30,
        }
    except Exception as error:
        facts["nvml"] = f"{type(error).__name__}: {error}"
    context.record("machine", **facts)


def marked_tests(context: Context) -> None:
    """The tests marked `gpu`, from the files that have the mark."""
    tests = data.ROOT / "tests"
    marked = [
        str(path.relative_to(data.ROOT))
        for path in sorted(tests.rglob("test_*.py"))
        if re.search(r"^(@|pytestmark = )pytest\.mark\.gpu", path.read_text(), re.M)
    ]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--no-header"]
    command += ["-p", "no:cacheprovider", "-W", "default::DeprecationWarning", *marked]
    start = time.perf_counter()
    log = context.out / "pytest.log"
    # To a file: what was printed is there if this part is killed.
    with log.open("w") as file:
        result = subprocess.run(
            command,
            cwd=data.ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            check=False,
        )
    lines = log.read_text().strip().splitlines()
    faults = [
        line[:300] for line in lines if line.startswith(("FAILED", "ERROR", "E "))
    ]
    context.record(
        "pytest -m gpu",
        files=len(marked),
        result=lines[-1] if lines else "",
        faults=faults[:12],
        seconds=time.perf_counter() - start,
        ok=result.returncode == 0,
    )
