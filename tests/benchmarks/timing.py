"""Ratios of times, taken in one run: machines are shared, so seconds mean little."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired_ratio(
    slow: Callable[[], object], fast: Callable[[], object], pairs: int = 7
) -> float:
    """Median of slow/fast over pairs that run one right after the other."""
    slow(), fast()  # whatever is loaded or cached on the first call
    return statistics.median(seconds(slow) / seconds(fast) for _ in range(pairs))


def peak_memory() -> float:
    """Peak memory of this process in MB.

    Where Linux tells it: `getrusage` counts the parent's at the time of the fork too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
        return int(peak) / 1024
    import resource

    factor = 2**20 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / factor


def machine() -> str:
    """The machine, for the head of a table."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.split(":")[1] for line in lines if line.startswith("model name")]
        model = names[0].strip() if names else model
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"
