"""Faults on a GPU: too little memory, forks, copies of transformers, bad images."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from sk_cnncodes.base.exceptions import DeviceError, ImageError
from sk_cnncodes.engines.devices import count_gpus
from tests.gpu.context import Context, GpuMeter
from tests.gpu.data import ROOT
from tests.gpu.parity import compared

BAR = 1e-3


@contextlib.contextmanager
def memory_taken(context: Context, leave_mb: int) -> Iterator[str]:
    """Another process that holds the GPU's memory but for so much."""
    if not context.gpu:
        yield "no GPU"
        return
    command = [sys.executable, "-m", "tests.gpu.hog", str(leave_mb)]
    hog = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert hog.stdin is not None
    assert hog.stdout is not None
    try:
        yield hog.stdout.readline().strip() or "it ended"
    finally:
        hog.stdin.close()
        try:
            hog.wait(10)
        except subprocess.TimeoutExpired:
            hog.kill()


def huge_batch(context: Context) -> None:
    """A batch that does not fit is halved, with one warning and right codes."""
    few = context.photographs(context.few(70, 5))
    expected = context.transformer("resnet50", device="cpu").transform(few)
    images = context.photographs(context.few(2500, 20))
    order = np.arange(len(images)) % 150 % len(few)
    images = [few[i] for i in order]
    with memory_taken(context, 3000) as taken, GpuMeter() as meter:
        transformer = context.transformer("resnet50", batch_size=context.few(1024, 16))
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            codes = transformer.transform(images)
        seconds = time.perf_counter() - start
        messages = [str(w.message) for w in caught if "does not fit" in str(w.message)]
        values = compared(codes, expected[order], BAR)
        # Rows of the same image are all nearest to it: which one does not matter.
        values["ok"] = not values["differing_rows"] and len(messages) == int(
            context.gpu
        )
        context.record(
            "batch of 1024 in 3 GB",
            **values,
            warnings=messages,
            other=len(caught) - len(messages),
            seconds=seconds,
            taken=taken,
        )
        start = time.perf_counter()
        again = transformer.transform(images)
        seconds = time.perf_counter() - start
        values = compared(again, expected[order], BAR)
        context.record("again", differing=values["differing_rows"], seconds=seconds)
    context.record("memory", **meter.result)


def full_memory(context: Context) -> None:
    """Hardly any memory is left: an error that says so, or right codes."""
    images = context.photographs(4)
    expected = context.transformer("resnet50", device="cpu").transform(images)
    for leave, devices in ((700, ["cuda"]), (150, ["cuda", "auto"])):
        with memory_taken(context, leave) as taken:
            for device in devices:
                name = f"{leave} MB left, device={device}"
                outcome(context, name, images, expected, device, taken)
    outcome(context, "memory is back", images, expected, "cuda", "")


def outcome(
    context: Context,
    name: str,
    images: list[str],
    expected: np.ndarray,
    device: str,
    taken: str,
) -> None:
    """Record whether codes are right, or what the error says; in a child each."""
    # A process that met an error of CUDA may be of no use afterwards.
    device = device if context.gpu else "cpu"
    path = context.network("resnet50")
    program = (
        "import sys, warnings, numpy as np, sk_cnncodes\n"
        "t = sk_cnncodes.CNNCodeTransformer(sys.argv[1], device=sys.argv[2], "
        "cache=None)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    codes = t.fit_transform(sys.argv[4:])\n"
        "print([str(w.message)[:300] for w in caught])\n"
        "np.save(sys.argv[3], codes)\n"
    )
    target = context.work / "outcome.npy"
    target.unlink(missing_ok=True)
    arguments = [path, device, str(target), *images]
    start = time.perf_counter()
    try:
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=15,
            check=False,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        context.record(name, ok=False, error="no end in 15 s", taken=taken)
        return
    values: dict[str, Any] = {"seconds": time.perf_counter() - start, "taken": taken}
    if target.exists():
        values |= compared(np.load(target), expected, BAR)
        values["warnings"] = result.stdout.strip()
    else:
        last = (result.stderr.strip().splitlines() or ["nothing"])[-1]
        values |= {"ok": "DeviceError" in last, "error": last[:400]}
    context.record(name, **values)


def two_sessions(context: Context) -> None:
    """Two networks, and two precisions of one, at the same time in threads."""
    images = context.photographs(context.few(150, 12))
    jobs = [
        ("cnncodes-mini", "float32"),
        ("cnncodes-mini", "float16"),
        ("mobilenet_v2", "float16"),
        ("mobilenet_v2", "float32"),
    ]
    expected = {
        network: context.transformer(network, device="cpu").transform(images)
        for network in ("cnncodes-mini", "mobilenet_v2")
    }

    def work(job: tuple[str, str]) -> list[np.ndarray]:
        transformer = context.transformer(
            job[0], precision=context.precision(job[1]), batch_size=32
        )
        return [transformer.transform(images) for _ in range(2)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        results = list(pool.map(work, jobs))
    for (network, precision), both in zip(jobs, results, strict=True):
        bar = BAR if precision == "float32" else 1e-2
        for turn, codes in enumerate(both):
            values = compared(codes, expected[network], bar)
            context.record(f"{network} {precision}, turn {turn}", **values)


def missing_device(context: Context) -> None:
    """A GPU that is not there is an error."""
    name = f"cuda:{count_gpus()}"
    try:
        context.transformer("cnncodes-mini", device=name)
    except DeviceError as error:
        context.record(f"device={name}", ok=True, error=str(error))
    else:
        context.record(f"device={name}", ok=False, error="none")


def fork_after_use(context: Context) -> None:
    """A forked child neither hangs nor gets wrong codes; the parent goes on."""
    images = context.photographs(8)
    transformer = context.transformer("cnncodes-mini")
    expected = transformer.transform(images)
    read, write = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(15)  # ends it wherever it hangs
        try:
            codes = transformer.transform(images)
            text = "right codes" if near(codes, expected) else "wrong codes"
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"[:400]
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode() or "hung"
    _, status = os.waitpid(child, 0)
    context.record(
        "child",
        said=said,
        status=status,
        seconds=time.perf_counter() - start,
        ok=status == 0 and said not in ("hung", "wrong codes"),
    )
    context.record("parent after it", ok=near(transformer.transform(images), expected))


def pickling(context: Context) -> None:
    """A copy by pickle has the same codes, here and in another process."""
    images = context.photographs(8)
    transformer = context.transformer("cnncodes-mini")
    expected = transformer.transform(images)
    copied = pickle.loads(pickle.dumps(transformer))
    context.record("copy", ok=near(copied.transform(images), expected))
    path = context.work / "pickled"
    path.write_bytes(pickle.dumps(transformer))
    program = (
        "import pickle, sys, numpy as np\n"
        "t = pickle.load(open(sys.argv[1], 'rb'))\n"
        "np.save(sys.argv[2], t.transform(sys.argv[3:]))\n"
    )
    target = context.work / "pickled.npy"
    command = [sys.executable, "-c", program, str(path), str(target), *images]
    subprocess.run(command, timeout=25, check=True, cwd=ROOT)
    context.record("other process", ok=near(np.load(target), expected))


def loky_workers(context: Context) -> None:
    """Two workers of joblib use the GPU at the same time."""
    images = context.photographs(context.few(64, 8))
    transformer = context.transformer("cnncodes-mini")
    expected = transformer.transform(images)
    start = time.perf_counter()
    parts = Parallel(n_jobs=2, timeout=35)(
        delayed(transformer.transform)(images[i::4]) for i in range(4)
    )
    ok = all(near(part, expected[i::4]) for i, part in enumerate(parts))
    context.record("2 workers", ok=ok, seconds=time.perf_counter() - start)


def bad_image(context: Context) -> None:
    """A bad image has a row of NaN or an error that names it; others are right."""
    images = context.photographs(context.few(100, 10))
    transformer = context.transformer("cnncodes-mini", on_error="nan", batch_size=16)
    expected = transformer.transform(images)
    bad = context.work / "bad.jpg"
    bad.write_bytes(b"not an image")
    images[7] = str(bad)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        codes = transformer.transform(images)
    good = np.arange(len(images)) != 7
    ok = bool(np.isnan(codes[7]).all()) and near(codes[good], expected[good])
    context.record("on_error=nan", ok=ok, warnings=len(caught))
    try:
        transformer.set_params(on_error="raise").transform(images)
    except ImageError as error:
        context.record("on_error=raise", ok=error.index == 7, error=str(error)[:200])
    else:
        context.record("on_error=raise", ok=False, error="none")


def near(codes: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(codes - expected).max() <= BAR * np.abs(expected).max())
