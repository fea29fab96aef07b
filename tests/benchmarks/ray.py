"""Ray: how much two workers bring, what one costs, and the memory of the driver.

    python -m tests.benchmarks.ray [--images 1920] [--rounds 5] [--backbone NAME]

It fails unless two workers of one core each are at least 1.8 times as fast as one, one
at least 0.9 times as fast as the library without Ray, and the driver's memory grows by
less than 30 MB from 1,000 to 100,000 tiny images. Ways take turns, and ratios are
medians over the rounds. Ray's start, and the first call of each way, which loads the
network, are not timed. On a machine that is shared, see the seconds of computing too:
a ratio of two workers needs two cores that are free. Two processes without Ray show
what this machine allows.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from PIL import Image
from sklearn.datasets import load_sample_images

from sk_cnncodes import BatchEmbedder, CNNCodeTransformer, embed_to
from tests.benchmarks.timing import machine, peak_memory
from tests.scale.clusters import cluster
from tests.scale.conftest import png, save_tiny

TWO, ONE, MOST_MB = 1.8, 0.9, 30
SIZE = (500, 375)


def save_photographs(folder: Path, count: int) -> None:
    """Different crops of scikit-learn's photographs, as JPEG files."""
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    folder.mkdir()
    for number in range(count):
        photograph = photographs[number % 2]
        x, y = (
            rng.integers(photograph.width - 320),
            rng.integers(photograph.height - 240),
        )
        crop = photograph.crop((x, y, x + 320, y + 240)).resize(SIZE)
        crop.save(folder / f"{number:05}.jpg", quality=90)


def computed() -> float:
    """Seconds that this process and all that it started, Ray's too, have computed."""
    ticks, found = 0, [os.getpid()]
    stats: dict[int, list[str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            text = path.read_text(encoding="utf-8")
            stats[int(path.parent.name)] = text.rpartition(")")[2].split()
    for process in found:
        found += [child for child, each in stats.items() if int(each[1]) == process]
        ticks += sum(int(each) for each in stats[process][11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and seconds of computing, of one call."""
    before, start = computed(), time.perf_counter()
    work()
    return time.perf_counter() - start, computed() - before


def compare(backbone: str, folder: Path, count: int, rounds: int) -> bool:
    """Print times and ratios; return whether they are as promised."""
    transformer = CNNCodeTransformer(backbone, n_jobs=1)
    images, target = folder / "images", folder / "codes"
    save_photographs(images, count)

    def shards(**how: Any) -> None:
        # Both of two workers get as many images.
        embed_to(transformer, target, images, shard_rows=count // 8, **how)
        shutil.rmtree(target)

    def halves(start_all: Parallel) -> None:
        start_all(
            delayed(embed_to)(
                transformer, target, images, shard_rows=count // 8, part=(i, 2)
            )
            for i in range(2)
        )
        shutil.rmtree(target)

    ways: dict[str, Callable[[], None]] = {
        "without Ray, n_jobs=1": lambda: shards(),
        "1 worker": lambda: shards(engine="ray", ray_options={"num_workers": 1}),
        "2 workers": lambda: shards(engine="ray", ray_options={"num_workers": 2}),
        "2 processes without Ray": partial(halves, Parallel(2)),
    }
    for way in ways.values():  # what loads the network, and starts workers
        way()
    found = {name: list[tuple[float, float]]() for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(measured(way))
    print(f"\n{count} JPEG files of {SIZE[0]} x {SIZE[1]}, {backbone}, {rounds} rounds")
    print("\n| way | seconds | of computing | images/s |\n| --- | ---: | ---: | ---: |")
    for name, times in found.items():
        seconds, cpu = np.median(times, axis=0)
        print(f"| {name} | {seconds:.2f} | {cpu:.2f} | {count / seconds:.1f} |")
    local, one, two, processes = (np.array(times) for times in found.values())
    ratio, cpu = np.median(local / processes, axis=0)
    print(
        f"2 processes / 1, without Ray: {ratio:.2f} times as fast "
        f"({1 / cpu:.2f} times the seconds of computing)"
    )
    passed = True
    for what, slow, fast, least in (
        ("2 workers / 1 worker", one, two, TWO),
        ("1 worker / without Ray", local, one, ONE),
    ):
        ratio, cpu = np.median(slow / fast, axis=0)
        passed &= bool(ratio >= least)
        print(
            f"{'PASS' if ratio >= least else 'FAIL'}: {what}: {ratio:.2f} times as "
            f"fast, expected {least} ({1 / cpu:.2f} times the seconds of computing)"
        )
    return passed


def map_batches(ray: Any, backbone: str, folder: Path) -> None:
    """Print the times of `Dataset.map_batches`, the start of its actors apart."""
    transformer = CNNCodeTransformer(backbone, n_jobs=1)
    logging.getLogger("ray.data").setLevel("ERROR")
    # More of them than above: starting takes seconds, which differ.
    paths = [{"path": str(path)} for path in (folder / "images").iterdir()] * 3

    def embed(rows: list[dict[str, str]], workers: int) -> None:
        codes = ray.data.from_items(rows, override_num_blocks=8).map_batches(
            BatchEmbedder,
            fn_constructor_args=[transformer, "path"],
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        )
        assert codes.materialize().count() == len(rows)

    for workers in (1, 2):
        start, _ = measured(partial(embed, paths[:8], workers))
        whole, _ = measured(partial(embed, paths, workers))
        rate = (len(paths) - 8) / (whole - start)
        print(
            f"map_batches, {workers} actor(s): {rate:.1f} images/s after a start of "
            f"{start:.1f} s"
        )


def driver(folder: Path) -> None:
    """Have a folder embedded by Ray, and print the peak memory of this process."""
    with cluster():
        embed_to(
            CNNCodeTransformer(save_tiny(folder / "net.onnx"), n_jobs=1),
            folder / "codes",
            folder / "tiny",
            engine="ray",
        )
        print(peak_memory())


def drivers(counts: Sequence[int]) -> bool:
    """Print the peak memory of drivers; return whether it grew as promised."""
    found = []
    for count in counts:
        with tempfile.TemporaryDirectory(dir="/tmp") as name:
            for number in range(count):
                path = Path(name, "tiny", f"{number // 1000:05}", f"{number:07}.png")
                if number % 1000 == 0:
                    path.parent.mkdir(parents=True)
                path.write_bytes(png(number % 100))
            command = [sys.executable, "-m", "tests.benchmarks.ray", "--driver", name]
            start = time.perf_counter()
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True
            )
            seconds = time.perf_counter() - start
        found.append(float(done.stdout.split()[-1]))
        print(f"driver, {count:,} images: {found[-1]:.0f} MB at most ({seconds:.0f} s)")
    passed = max(found) - found[0] < MOST_MB
    print(
        f"{'PASS' if passed else 'FAIL'}: {max(found) - found[0]:+.1f} MB, expected "
        f"less than {MOST_MB}"
    )
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1920)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", default="cnncodes-mini")
    parser.add_argument("--tiny", type=int, nargs="*", default=[1000, 100_000])
    parser.add_argument("--driver", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.driver is not None:
        driver(args.driver)
        return
    print(machine())
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        start = time.perf_counter()
        with cluster() as ray:
            print(
                f"Ray {ray.__version__} started in {time.perf_counter() - start:.1f} s"
            )
            passed = compare(args.backbone, folder, args.images, args.rounds)
            map_batches(ray, args.backbone, folder)
    passed &= drivers(args.tiny)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
