"""Where the time of a transform goes, and what decoding allows on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import numpy as np

from sk_cnncodes.engines.devices import cuda_driver
from sk_cnncodes.engines.session import CodeSession
from sk_cnncodes.images.decode import read_rgb
from sk_cnncodes.images.views import take_views
from tests.benchmarks.networks import IMAGENET
from tests.gpu.context import Context, GpuMeter, cpu_seconds
from tests.gpu.variants import open_bare, upload


def stages(context: Context) -> None:
    """What a transform of files spends in decoding, waiting, copies and runs."""
    for network in ("vit_b16", "resnet50"):
        in_place(context, network)
        alone(context, network)


def in_place(context: Context, network: str) -> None:
    """Watch a transform: CPU time, runs of the session, and the busy share."""
    transformer = context.transformer(network, precision=context.precision("float16"))
    found = context.files("500x375")
    step = context.few(1024, 16)
    for count in (step, 2 * step):
        start = time.perf_counter()
        transformer.transform(list(islice(cycle(found), count)))
        rate = count / (time.perf_counter() - start)
    count = max(1, round(1.5 * context.seconds * rate / step)) * step
    images = list(islice(cycle(found), count))
    with watched_runs() as runs, GpuMeter() as meter:
        cpu, start = cpu_seconds(), time.perf_counter()
        transformer.transform(images)
        wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    occupied = union(runs)
    context.record(
        f"{network} float16 transform of 500x375 files",
        images_per_second=count / wall,
        count=count,
        seconds=wall,
        cpu_seconds=cpu,
        cores_busy=cpu / wall,
        cpu_ms_per_image=1000 * cpu / count,
        runs=len(runs),
        seconds_in_runs=sum(end - start for start, end in runs),
        seconds_with_any_run=occupied,
        seconds_without_a_run=wall - occupied,
        **meter.result,
    )


@contextlib.contextmanager
def watched_runs() -> Iterator[list[tuple[float, float]]]:
    """Start and end of all runs of sessions."""
    runs: list[tuple[float, float]] = []
    original, lock = CodeSession.run, threading.local()

    def run(self: CodeSession, *arguments: Any, **more: Any) -> Any:
        if getattr(lock, "inside", False):  # halves of a batch
            return original(self, *arguments, **more)
        lock.inside = True
        start = time.perf_counter()
        try:
            return original(self, *arguments, **more)
        finally:
            lock.inside = False
            runs.append((start, time.perf_counter()))

    CodeSession.run = run  # type: ignore[method-assign]
    try:
        yield runs
    finally:
        CodeSession.run = original  # type: ignore[method-assign]


def union(intervals: list[tuple[float, float]]) -> float:
    """Length of what intervals cover together."""
    covered, reached = 0.0, -np.inf
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return float(covered)


def alone(context: Context, network: str) -> None:
    """Milliseconds of a batch: the copy, the run without it, the codes' way back."""
    path = context.graph(network, "float16")
    session = open_bare(context, path, {})
    device, repeats = context.device, context.few(10, 1)
    for size in context.sizes(64, 128, 256)[: 3 if context.gpu else 1]:
        crops = context.crops(size)
        pinned, is_pinned = _pinned(crops)
        value = upload(session, crops, device)
        binding = session.io_binding()
        binding.bind_ortvalue_input(session.get_inputs()[0].name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, device)

        def run(binding: Any = binding) -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        run()
        context.record(
            f"{network} float16 batch of {size}",
            copy_ms=_median_ms(lambda v=value, c=crops: v.update_inplace(c), repeats),
            pinned_copy_ms=_median_ms(
                lambda v=value, p=pinned: v.update_inplace(p), repeats
            ),
            is_pinned=is_pinned,
            run_ms=_median_ms(run, repeats),
            codes_back_ms=_median_ms(binding.copy_outputs_to_cpu, repeats),
            stack_ms=_median_ms(
                lambda c=crops: np.concatenate([i[None] for i in c]), repeats
            ),
            mb=crops.nbytes / 2**20,
        )


def _median_ms(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[2:])


def _pinned(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """A copy of an array in page-locked memory, if the driver allows it."""
    copy = array.copy()
    driver = cuda_driver()
    if driver is None:
        return copy, False
    address, size = ctypes.c_void_p(copy.ctypes.data), ctypes.c_size_t(copy.nbytes)
    return copy, driver.cuMemHostRegister_v2(address, size, 1) == 0


# -- decoding ------------------------------------------------------------------


def decode_limits(context: Context) -> None:
    """Images per second that decoding allows: one thread, threads, processes."""
    cores = len(os.sched_getaffinity(0))
    for kind, step in (("500x375", 400), ("4000x3000", 16)):
        found = context.files(kind)
        step = context.few(step, 8)
        decode_all(found[:1])  # whatever Pillow loads
        some = list(islice(cycle(found), step))
        start, cpu = time.perf_counter(), time.thread_time()
        decode_all(some)
        one, cpu = time.perf_counter() - start, time.thread_time() - cpu
        context.record(
            f"decode {kind}, 1 thread",
            images_per_second=step / one,
            cpu_ms_per_image=1000 * cpu / step,
        )
        seconds = 0.6 * context.seconds
        lots = [found[i::8] for i in range(8)]
        count = max(1, round(step / one * seconds * cores / sum(map(len, lots)))) * 8
        work = [lots[i % 8] for i in range(count)]
        n_images = sum(map(len, work))
        with ThreadPoolExecutor(cores) as pool:
            start = time.perf_counter()
            list(pool.map(decode_all, work))
            threads = time.perf_counter() - start
        context.record(
            f"decode {kind}, {cores} threads",
            images_per_second=n_images / threads,
            count=n_images,
            seconds=threads,
        )
        with multiprocessing.get_context("spawn").Pool(cores) as processes:
            processes.map(decode_all, [found[:1]] * cores * 2, chunksize=1)
            start = time.perf_counter()
            processes.map(decode_all, work, chunksize=1)
            seconds = time.perf_counter() - start
        context.record(
            f"decode {kind}, {cores} processes",
            images_per_second=n_images / seconds,
            count=n_images,
            seconds=seconds,
        )


def decode_all(paths: list[str]) -> int:
    """Decode, resize and crop as a transform does."""
    total = 0
    for index, path in enumerate(paths):
        how = (10**9, IMAGENET.min_decode_size, IMAGENET.color)
        pixels = take_views(read_rgb(path, index, *how), IMAGENET, "center")
        total += int(pixels[0, 0, 0, 0])
    return total
