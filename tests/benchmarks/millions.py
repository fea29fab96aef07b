"""What 10 and 100 million images cost: the tables of examples/scale.md.

    python -m tests.benchmarks.millions

Rates are those of the tables below, each with where it is from; the rest is arithmetic,
and one small simulation of workers of different speeds. No run of that size was made.
"""

from __future__ import annotations

import heapq
import re
from pathlib import Path
from random import Random

PAGE = Path(__file__).parents[2] / "examples" / "scale.md"
SIZES = (10_000_000, 100_000_000)

# Images a second of one core, float32 and the quickest precision: those of 2 cores in
# tests/benchmarks/throughput.md, JPEG files of 500 x 375, divided by 2.
CORE = {
    "MobileNetV2": (255.0 / 2, 418.7 / 2),
    "ResNet-50": (49.3 / 2, 161.2 / 2),
    "ViT-S/16": (35.3 / 2, 83.0 / 2),
}
# Images a second of an H100 with 16 cores, float16: from files of 500 x 375, and from
# memory (tests/gpu/h100.json).
GPU = {
    "MobileNetV2": (2723.0, 12050.0),
    "ResNet-50": (2958.0, 8801.0),
    "ViT-B/16": (2889.0, 5413.0),
}
# The same machine, images a second: files of 500 x 375 decoded by 16 processes and by
# 16 threads of one process; ResNet-50 from files of 4000 x 3000, by Pillow and on the
# GPU (tests/gpu/h100.json).
DECODE_PROCESSES, DECODE_THREADS = 3606.0, 1095.0
LARGE_PILLOW, LARGE_GPU = 106.0, 420.0
# Bytes of a row of a shard, with keys of 30 bytes and digests; the test measures them.
ROW_BYTES = {
    (512, "float32"): 2156,
    (512, "float16"): 1132,
    (1280, "float32"): 5228,
    (1280, "float16"): 2668,
    (2048, "float32"): 8301,
    (2048, "float16"): 4204,
}
# Keys a CPU second that a part walks with their digest, on one core of an AMD EPYC that
# others used too; and bytes of a sorted name of 24.
WALK = {"folder": 170_000.0, "Parquet table": 485_000.0}
NAME_BYTES = 26
# CPU of Ray's workers over that of `embed_to` without Ray, on the same machine.
RAY = 1.01
# Of `CodeIndex` with 1,000,000 codes of 512 values (tests/benchmarks/index.py --real):
# bytes a code, and codes added a CPU second; a larger graph takes longer for each.
INDEX_BYTES, INDEX_ADDED = 1187, 1_000_000 / 800

# Assumptions: list prices of large clouds, about, in US dollars; nothing was bought.
CORE_HOUR, GPU_HOUR = 0.04, 4.0  # a core; an H100 with 16 cores
GB_MONTH, PER_GET, PER_LIST = 0.023, 0.4e-6, 5e-6
# Of an object store: bytes of an image, seconds to its first byte, requests a second
# for a prefix, keys of a listing's page and pages a second; bytes a second of machines.
IMAGE_BYTES, LATENCY, PREFIX_GETS = 110_000, 0.03, 5500
PAGE_KEYS, PAGES = 1000, 10
NIC, DISK = 1.25e9, 0.5e9
# Spread of the speeds of workers, and of a shard on one of them, relative.
WORKER_SPREAD, SHARD_SPREAD = 0.1, 0.05
SHARD_ROWS = 8192


def duration(seconds: float) -> str:
    """Time in the unit that fits."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size * (2 if unit == "days" else 1):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def compute() -> str:
    """Time and price of the codes."""
    rows = []
    for name, (single, quick) in CORE.items():
        for what, rate in (("float32", single), ("int8", quick)):
            cells = [f"{name}, {what}, CPU", f"{rate:.0f} a core"]
            for count in SIZES:
                hours = count / rate / 3600
                cells += [duration(3600 * hours / 16), duration(3600 * hours / 256)]
                cells.append(f"${hours * CORE_HOUR:,.0f}")
            rows.append(cells)
    for name, (rate, _) in GPU.items():
        cells = [f"{name}, float16, H100", f"{rate:.0f} a GPU"]
        for count in SIZES:
            seconds = count / rate
            cells += [duration(seconds), duration(seconds / 16)]
            cells.append(f"${seconds / 3600 * GPU_HOUR:,.0f}")
        rows.append(cells)
    header = ["", "images/s", "10 M: 16 cores, or 1 GPU", "256 cores, or 16 GPUs", "$"]
    header += ["100 M: 16 cores, or 1 GPU", "256 cores, or 16 GPUs", "$"]
    return table(header, rows)


def storage() -> str:
    """Size of the shards."""
    rows = []
    for (length, dtype), size in ROW_BYTES.items():
        cells = [f"{length} values, {dtype}", f"{size}"]
        for count in SIZES:
            total = count * size / 1e9
            cells += [f"{total:,.0f} GB", f"${total * GB_MONTH:,.1f}"]
        rows.append(cells)
    header = ["", "bytes a row", "10 M", "a month", "100 M", "a month"]
    return table(header, rows)


def bottlenecks() -> str:
    """What each stage allows on a GPU machine, and how many of them reach a limit."""
    rates = {
        "H100, ResNet-50 float16, from memory": GPU["ResNet-50"][1],
        "16 cores decode, 16 processes": DECODE_PROCESSES,
        "16 cores decode, threads of one process": DECODE_THREADS,
        "from files to codes, ResNet-50": GPU["ResNet-50"][0],
        "16 cores alone, ResNet-50 int8": 16 * CORE["ResNet-50"][1],
        "files of 4000 x 3000, decoded by Pillow": LARGE_PILLOW,
        'files of 4000 x 3000, decoder="gpu"': LARGE_GPU,
        "store, 1 process: 32 reads at once (assumed latency)": 32 / LATENCY,
        "store, 8 processes (assumed latency)": 8 * 32 / LATENCY,
        "network of 10 Gbit/s (assumed)": NIC / IMAGE_BYTES,
        "GETs of one prefix (assumed), all machines": float(PREFIX_GETS),
        "disk of 500 MB/s, codes of 2048 float32 (assumed)": DISK
        / ROW_BYTES[2048, "float32"],
        "keys walked, folder": WALK["folder"],
        "keys walked, Parquet table": WALK["Parquet table"],
        "keys listed in a bucket (assumed)": float(PAGE_KEYS * PAGES),
    }
    rows = [
        [name, f"{rate:,.0f}", *(duration(count / rate) for count in SIZES)]
        for name, rate in rates.items()
    ]
    return table(["stage of one machine", "images/s", "10 M", "100 M"], rows)


def overheads() -> str:
    """What grows with the number of images, besides the codes."""
    rows = []
    for name, rate in WALK.items():
        cells = [f"CPU of each part to walk the keys of one {name}"]
        rows.append([*cells, *(duration(count / rate) for count in SIZES)])
    rows += [
        ["memory for the names of one flat folder"]
        + [f"{count * NAME_BYTES / 1e9:.2f} GB" for count in SIZES],
        ["memory for the rows of a table, tar files"] + ["none"] * 2,
        ["shards of 8,192 images"]
        + [f"{-(-count // SHARD_ROWS):,}" for count in SIZES],
        ["GET requests for images (assumed price)"]
        + [f"${count * PER_GET:,.0f}" for count in SIZES],
        ["LIST requests for each part that lists (assumed price)"]
        + [f"${count / PAGE_KEYS * PER_LIST:,.2f}" for count in SIZES],
        ["CPU that Ray adds"] + [f"{RAY - 1:.0%}"] * 2,
    ]
    rows += [
        ["file of an index, 512 values, in proportion"]
        + [f"{count * INDEX_BYTES / 1e9:.0f} GB" for count in SIZES],
        ["to build it on one core, at least"]
        + [duration(count / INDEX_ADDED) for count in SIZES],
    ]
    return table(["", "10 M", "100 M"], rows)


def finish_time(shards: int, workers: int, parts: int, seed: int) -> float:
    """When the last of some workers is done, over the time if all were equal.

    Parts are stripes of shards; a worker takes the next part when it has done one.
    """
    random = Random(seed)
    speeds = [random.lognormvariate(0, WORKER_SPREAD) for _ in range(workers)]
    free = [(0.0, worker) for worker in range(workers)]
    last = 0.0
    for part in range(parts):
        count = len(range(part, shards, parts))
        start, worker = heapq.heappop(free)
        work = sum(random.lognormvariate(0, SHARD_SPREAD) for _ in range(count))
        end = start + work / speeds[worker]
        last = max(last, end)
        heapq.heappush(free, (end, worker))
    return last * workers / shards


def stragglers() -> str:
    """The simulation."""
    shards = -(-SIZES[0] // SHARD_ROWS)
    rows = []
    for workers in (4, 16, 64):
        cells = [f"{workers}"]
        for factor in (1, 4, 16):
            found = [
                finish_time(shards, workers, factor * workers, seed)
                for seed in range(20)
            ]
            cells.append(f"{sum(found) / len(found):.2f}")
        rows.append(cells)
    return table(["workers", "as many parts", "4 times", "16 times"], rows)


TABLES = {
    "compute": compute,
    "storage": storage,
    "bottlenecks": bottlenecks,
    "overheads": overheads,
    "stragglers": stragglers,
}


def filled(page: str) -> str:
    """The page with its tables as they are computed."""
    for name, make in TABLES.items():
        mark = f"<!-- {name} -->"
        block = f"{mark}\n{make()}\n\n"
        page = re.sub(rf"{mark}\n(?:\|.*\n)*\n", lambda _, b=block: b, page)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for make in TABLES.values():
        print(make(), end="\n\n")
