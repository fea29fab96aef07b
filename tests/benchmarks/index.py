"""What `CodeIndex` finds of the nearest of a million codes, and what it costs.

    python -m tests.benchmarks.index [codes] [--real CODES.npy] [--hard]

It fails where, of 1,000,000 codes of 512 values, recall@10 is below 0.95, or a query
on one core takes 10 ms or more. The codes are made: what a layer with ReLU gives for
points of 32 dimensions around 5,000 centres, and noise. With `--real`, codes of a
network are enlarged: a code is a random convex mixture of one of them and of four of
its 16 nearest, with noise of a tenth of each feature's deviation, and ReLU; queries are
others of the real ones, as they are. `--hard` takes independent noise in all
dimensions, where all codes are about equally far, and recall has no limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sk_cnncodes import CodeIndex
from tests.benchmarks.timing import machine

FEATURES, QUERIES, NEAREST = 512, 300, 10
LEAST_RECALL, MOST_MS = 0.95, 10
CHUNK = 8192
Maker = Callable[[int], np.ndarray]


def made(rng: np.random.Generator) -> Maker:
    centres = rng.standard_normal((5000, 32), np.float32) * 2
    weights = rng.standard_normal((32, FEATURES), np.float32)

    def make(count: int) -> np.ndarray:
        points = centres[rng.integers(0, len(centres), count)]
        points = points + rng.standard_normal(points.shape, np.float32)
        noise = rng.standard_normal((count, FEATURES), np.float32)
        return np.maximum(points @ weights + noise, 0)

    return make


def hard(rng: np.random.Generator) -> Maker:
    return lambda count: rng.standard_normal((count, FEATURES), np.float32)


def enlarged(real: np.ndarray, rng: np.random.Generator) -> Maker:
    unit = real / np.linalg.norm(real, axis=1, keepdims=True)
    near = np.empty((len(real), 16), np.int64)
    for start in range(0, len(real), 1024):
        products = unit[start : start + 1024] @ unit.T
        near[start : start + 1024] = np.argpartition(-products, 16, axis=1)[:, :16]
    deviation = real.std(axis=0)

    def make(count: int) -> np.ndarray:
        rows = rng.integers(0, len(real), count)
        others = near[rows[:, None], rng.integers(0, 16, (count, 4))]
        weights = rng.dirichlet(np.ones(5), count).astype(np.float32)
        codes = weights[:, :1] * real[rows]
        for number in range(4):
            codes += weights[:, number + 1, None] * real[others[:, number]]
        noise = rng.standard_normal(codes.shape, np.float32)
        return np.maximum(codes + 0.1 * deviation * noise, 0)

    return make


def nearest(codes: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows of the nearest codes by cosine, and the seconds a query."""
    start = time.perf_counter()
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    cosines = np.empty((len(queries), len(codes)), np.float32)
    for row in range(0, len(codes), CHUNK):
        part = np.asarray(codes[row : row + CHUNK])
        lengths = np.linalg.norm(part, axis=1)
        cosines[:, row : row + CHUNK] = queries @ part.T / lengths
    best = np.argpartition(-cosines, NEAREST, axis=1)[:, :NEAREST]
    return best, (time.perf_counter() - start) / len(queries)


def memory(name: str) -> float:
    """Memory of this process in MB: RssAnon, its own; RssFile, mapped from files."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if name in line)


def search(path: Path, folder: Path) -> None:
    """Search one code after the other, in one thread; print what it takes."""
    before = memory("RssAnon")
    start = time.perf_counter()
    CodeIndex.open(path, verify=False)
    quick = time.perf_counter() - start
    start = time.perf_counter()
    index = CodeIndex.open(path)
    opened = time.perf_counter() - start
    queries = np.load(folder / "queries.npy")
    index.search(queries[:1], NEAREST)
    found, seconds = [], []
    for query in queries:
        start = time.perf_counter()
        keys, _ = index.search(query[None], NEAREST)
        seconds.append(time.perf_counter() - start)
        found.append(keys[0].astype(int))
    np.save(folder / "found.npy", found)
    own, mapped = memory("RssAnon") - before, memory("RssFile")
    times = np.median(seconds) * 1e3, np.quantile(seconds, 0.99) * 1e3
    print(*times, quick, opened, own, mapped)


def build(count: int, path: Path, codes: np.ndarray, n_jobs: int) -> CodeIndex:
    start, cpu = time.perf_counter(), time.process_time()
    index = CodeIndex(n_jobs=n_jobs).add(codes, [str(row) for row in range(count)])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    own = memory("RssAnon")
    print(
        f"built with {n_jobs} threads: {seconds:.0f} s, {cpu:.0f} CPU s; {own:.0f} MB"
    )
    start = time.perf_counter()
    index.save(path)
    size = path.stat().st_size
    print(
        f"saved in {time.perf_counter() - start:.1f} s: {size / 1e6:.0f} MB, "
        f"{size / count:.0f} bytes a code",
        flush=True,
    )
    return index


def update(index: CodeIndex, make: Maker) -> None:
    """Print what it takes to replace, add and remove a thousand codes."""
    keys = [str(row) for row in range(1000)]
    for what, change in {
        "add": lambda: index.add(make(1000), [f"new {key}" for key in keys]),
        "replace": lambda: index.add(make(1000), keys),
        "remove": lambda: index.remove(keys),
    }.items():
        start = time.perf_counter()
        change()
        print(f"{what} 1,000: {time.perf_counter() - start:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codes", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--real", type=Path, metavar="CODES.npy")
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--search", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.search:
        search(*args.search)
        return
    rng = np.random.default_rng(0)
    make = hard(rng) if args.hard else made(rng)
    if args.real:
        real = rng.permutation(np.load(args.real))
        queries, real = real[:QUERIES], real[QUERIES:]
        make = enlarged(real, rng)
    else:
        queries = make(QUERIES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = args.codes, queries.shape[1]
        print(f"{machine()}; {shape[0]:,} codes of {shape[1]} values")
        codes = np.lib.format.open_memmap(folder / "codes.npy", "w+", np.float32, shape)
        for start in range(0, len(codes), CHUNK):
            part = codes[start : start + CHUNK]
            part[:] = make(len(part))
        codes.flush()
        np.save(folder / "queries.npy", queries)
        codes = np.load(folder / "codes.npy", mmap_mode="r")
        index = build(args.codes, folder / "index", codes, args.jobs)
        update(index, make)
        del index
        command = [sys.executable, "-m", "tests.benchmarks.index"]
        command += ["--search", str(folder / "index"), str(folder)]
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        done = subprocess.run(
            command, env=os.environ | one, stdout=-1, text=True, check=True
        )
        ms, slow, quick, opened, own, mapped = map(float, done.stdout.split())
        found = np.load(folder / "found.npy")
        true, exactly = nearest(codes, queries)
    same = [
        len({*a} & {*b}) for a, b in zip(found.tolist(), true.tolist(), strict=True)
    ]
    recall = np.mean(same) / NEAREST
    print(f"opened in {opened:.2f} s, unverified in {quick:.3f} s")
    print(f"memory of a search: {own:.0f} MB, and {mapped:.0f} MB mapped")
    print(f"a query: median {ms:.2f} ms, 99% within {slow:.2f} ms, one thread")
    print(f"exactly, {QUERIES} at once, all threads: {exactly * 1e3:.1f} ms a query")
    passed = ms < MOST_MS and (recall >= LEAST_RECALL or args.hard)
    print(f"recall@10 {recall:.4f}: {'PASS' if passed else 'FAIL'}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
