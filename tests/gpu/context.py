"""What a part of the check is given: folders, the GPU, and where results go."""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from sk_cnncodes import CNNCodeTransformer
from sk_cnncodes.codes.plan import plan_transform, state_of
from sk_cnncodes.engines.devices import count_gpus
from sk_cnncodes.engines.session import CodeSession
from tests.gpu import data


@dataclass(frozen=True)
class Context:
    """Options of the check, as a part in its process sees them.

    Attributes
    ----------
    part : str
        Name of the part.
    out : Path
        Folder of the results.
    data : Path
        Folder of what was carried: backbones and photographs.
    work : Path
        Folder of what is made on the machine.
    quick : bool
        Whether to measure for a moment only.
    """

    part: str
    out: Path
    data: Path
    work: Path
    quick: bool = False

    @cached_property
    def gpu(self) -> bool:
        return count_gpus() > 0

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    @property
    def seconds(self) -> float:
        """How long a measurement from files lasts, about."""
        return 1.5 if self.gpu and not self.quick else 0.2

    def precision(self, name: str) -> str:
        """A precision; without a GPU, where only one of them works, that one."""
        return name if self.gpu else "float32"

    def sizes(self, *sizes: int) -> list[int]:
        """Batch sizes; without a GPU, small ones."""
        return list(sizes) if self.gpu else [4, 8]

    def few(self, count: int, rehearsed: int) -> int:
        """A count; without a GPU, a smaller one."""
        return count if self.gpu else min(count, rehearsed)

    # -- inputs --------------------------------------------------------------

    def network(self, name: str) -> str:
        """A backbone as the transformer takes it."""
        if name == "cnncodes-mini":
            return name
        carried = self.data / f"{name}.onnx"
        if carried.exists():
            return str(carried)
        return str(data.write_network(name, self.work, shallow=not self.gpu))

    def graph(self, name: str, precision: str) -> Path:
        """The file of a code graph in float32 or float16, for bare sessions."""
        path = self.work / f"{name}-{precision}.onnx"
        if not path.exists():
            data.write_graph(self.network(name), precision, path)
        return path

    def photographs(self, count: int) -> list[str]:
        """Paths of photographs as they were carried."""
        return list(islice(cycle(data.photographs(self.data)), count))

    def files(self, kind: str) -> list[str]:
        """Paths of the JPEG files that were made: "500x375" or "4000x3000"."""
        found = sorted(map(str, (self.work / kind).glob("*.jpg")))
        if not found:
            raise FileNotFoundError(f"no JPEG files in {self.work / kind}: run prepare")
        return found

    def crops(self, count: int, side: int = 224) -> np.ndarray:
        """Photographs as a network takes them, uint8."""
        some = _crops(self.data, side)
        return some[np.arange(count) % len(some)]

    def transformer(self, name: str, **parameters: Any) -> CNNCodeTransformer:
        """A fitted transformer without a cache, on the GPU if there is one."""
        parameters = {"device": self.device, "cache": None} | parameters
        path = self.network(name)
        return CNNCodeTransformer(path, **parameters).fit([self.photographs(1)[0]])

    # -- results -------------------------------------------------------------

    def record(self, name: str, **values: Any) -> None:
        """Write a result, and print it, before anything else happens."""
        write_record(self.out, {"part": self.part, "name": name, **values})


def write_record(out: Path, entry: dict[str, Any]) -> None:
    """Append a result to the file of results, and print it as one line."""
    line = json.dumps(entry, default=_plain)
    # One write: parts that run at the same time append to the same file.
    with open(out / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    values = {k: v for k, v in entry.items() if k not in ("part", "name")}
    print(f"{entry['part']}: {entry['name']}: {readable(values)}", flush=True)


def readable(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {_short(v)}" for k, v in values.items())


def _short(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_short, value))}]"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


@lru_cache
def _crops(carried: Path, side: int) -> np.ndarray:
    """The first hundred photographs, squeezed into a square."""
    paths = data.photographs(carried)[:100]
    images = [Image.open(path).convert("RGB") for path in paths]
    return np.stack([np.asarray(image.resize((side, side))) for image in images])


# -- measuring -----------------------------------------------------------------


def throughput(
    work: Callable[[int], object], step: int, seconds: float, repeats: int = 2
) -> dict[str, Any]:
    """Images per second of `work(count)`, for counts that last about so long.

    The first call loads and allocates, the second tells the count; neither is counted.
    """
    first = _time(work, step)
    estimate = step / _time(work, step)
    count = max(1, round(estimate * seconds / step)) * step
    times = [_time(work, count) for _ in range(repeats)]
    return {
        "images_per_second": count / statistics.median(times),
        "count": count,
        "seconds": [round(t, 3) for t in times],
        "first_seconds": first,
    }


def _time(work: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    work(count)
    return time.perf_counter() - start


def session_of(transformer: CNNCodeTransformer) -> CodeSession:
    """The session that a transformer uses for many images."""
    return plan_transform(state_of(transformer), 10_000).open_session(False)


def session_throughput(
    session: CodeSession, crops: np.ndarray, batch_size: int, seconds: float
) -> dict[str, Any]:
    """Images per second of a session that is given batches from memory."""
    batches = [
        np.ascontiguousarray(np.roll(crops[:batch_size], shift, axis=0))
        for shift in range(3)
    ]
    threads = session.n_concurrent_runs
    with ThreadPoolExecutor(threads) as pool:

        def work(count: int) -> None:
            turns = islice(cycle(batches), count // batch_size)
            for outputs in pool.map(session.run, turns):
                assert len(outputs[0]) == batch_size

        # One by one, so that each of the buffers has been used before the clock runs.
        work(batch_size)
        return throughput(work, 2 * threads * batch_size, seconds, repeats=3)


def file_throughput(
    transformer: CNNCodeTransformer, images: list[Any], step: int, seconds: float
) -> dict[str, Any]:
    """Images per second of `transform`."""

    def work(count: int) -> None:
        codes = transformer.transform(list(islice(cycle(images), count)))
        assert len(codes) == count
        assert np.isfinite(codes).all()

    return throughput(work, step, seconds)


def cpu_seconds() -> float:
    """Time that all processes of this process session spent on CPUs."""
    session, ticks = os.getsid(0), 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name in parentheses: state, parent, group, session, ...
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class GpuMeter:
    """Samples how busy the first GPU is, and its memory, by NVML, in a thread."""

    def __enter__(self) -> Self:
        self.busy: list[int] = []
        self.memory: list[int] = []
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception:  # no package, no driver
            return self
        self._thread = threading.Thread(target=self._sample, args=[pynvml], daemon=True)
        self._thread.start()
        return self

    def _sample(self, pynvml: Any) -> None:
        while not self._end.wait(0.05):
            rates = pynvml.nvmlDeviceGetUtilizationRates(self._handle)
            self.busy.append(rates.gpu)
            self.memory.append(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def result(self) -> dict[str, Any]:
        """Mean share of time in which a kernel ran, and peak memory."""
        if not self.busy:
            return {"gpu_busy": None}
        return {
            "gpu_busy": statistics.mean(self.busy) / 100,
            "gpu_memory_mb": max(self.memory) / 2**20,
        }
