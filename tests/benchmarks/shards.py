"""Memory and throughput of `embed_to` over ever more images.

    python -m tests.benchmarks.shards [--images N] [--sources iterable table folder]

Tiny images and a network of one convolution. For each source, a process embeds all
images. At its last windows of 10,000 images it takes turns with a second process that
embeds the same source from its beginning, so that whatever else the machine does
concerns both; the figures are medians over these pairs. Both read the same number of
images at a time, files are linked to 10,000 different ones.

It fails where the memory of the first process grows by 30 MB or more from 10,000 images
to the last, or where late windows take more CPU seconds than 1 / 0.95 of early ones.
Wall time is printed beside them: on a shared machine it is what others leave.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sk_cnncodes import CNNCodeTransformer, CodeBatch, embed_to
from tests.benchmarks.timing import machine, peak_memory
from tests.scale.conftest import png, save_tiny

MOST_MB, LEAST_SPEED = 30, 0.95
WINDOW, PAIRS, FILES = 10_000, 10, 10_000
SOURCES = ("iterable", "table", "folder")


def images(count: int) -> Iterator[tuple[str, bytes]]:
    """Images of different content: a number follows each."""
    files = [png(number) for number in range(100)]
    for number in range(count):
        yield f"{number:09}", files[number % 100] + number.to_bytes(4, "big")


def prepare(folder: Path, count: int, kind: str) -> None:
    """Write the network, and the files of a source."""
    save_tiny(folder / "net.onnx")
    if kind == "iterable":
        return
    files = folder / "files"
    files.mkdir()
    for key, content in images(min(count, FILES)):
        (files / f"{key}.png").write_bytes(content)
    names = [f"{number:09}.png" for number in range(FILES)]
    if kind == "table":
        with open(folder / "table.csv", "w") as table:
            table.write("file,label\n")
            for number in range(count):
                table.write(f"files/{names[number % FILES]},{number % 7}\n")
        return
    for number in range(count):
        parent = folder / "images" / f"{number // 1000:06}"
        if number % 1000 == 0:
            parent.mkdir(parents=True)
        os.link(files / names[number % FILES], parent / f"{number:09}.png")


class Watched(CNNCodeTransformer):
    """Says what each window cost, and waits where it takes turns."""

    def iter_codes(self, source: Any, batch: int = 1024) -> Iterator[CodeBatch]:
        done = marked = 0
        cpu, wall = time.process_time(), time.perf_counter()
        for codes in super().iter_codes(source, batch=batch):
            yield codes
            before, done = done, done + len(codes)
            if before // WINDOW < done // WINDOW:
                # An image's, since windows end with batches.
                spent = time.process_time() - cpu, time.perf_counter() - wall
                cost = [each / (done - marked) for each in spent]
                print(done, *cost, peak_memory(), flush=True)
                marked = done
                if input() == "end":
                    os._exit(0)
                cpu, wall = time.process_time(), time.perf_counter()


def embed(folder: Path, kind: str, count: int, target: str) -> None:
    """Embed a source: what one process does."""
    source: Any = folder / {"table": "table.csv", "folder": "images"}.get(kind, "")
    if kind == "iterable":
        source = images(count)
    transformer = Watched(str(folder / "net.onnx"))
    report = embed_to(transformer, folder / target, source)
    assert (report.n_images, report.n_bad, report.complete) == (count, 0, True)


class Worker:
    """A process that embeds a source window by window."""

    def __init__(self, folder: Path, kind: str, count: int, target: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.shards"]
        command += ["--one", str(folder), kind, str(count), target]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._waits = False

    def window(self) -> list[float]:
        """Images so far, CPU and wall seconds of one, and peak MB: the next window."""
        if self._waits:
            self._say("go")
        line = self._out.readline()
        if not line:
            sys.exit(f"a process ended early, with {self._process.wait()}.")
        self._waits = True
        return [float(value) for value in line.split()]

    def end(self) -> None:
        """Let it stop where it is, or finish."""
        self._say("end")
        self._process.wait()

    def finish(self) -> None:
        """Let it finish what is left."""
        self._say("go")
        if code := self._process.wait():
            sys.exit(f"a process ended with {code}.")

    def _say(self, word: str) -> None:
        self._in.write(f"{word}\n")
        self._in.flush()


def measure(folder: Path, kind: str, count: int) -> tuple[bool, str]:
    """Whether a source keeps both promises, and its row of the table."""
    prepare(folder, count, kind)
    start = time.perf_counter()
    large = Worker(folder, kind, count, "large")
    windows = count // WINDOW
    first = large.window()
    passed = [large.window() for _ in range(windows - PAIRS - 1)]
    small = Worker(folder, kind, count, "small")
    small.window()  # opens the network
    cpu, wall = list[float](), list[float]()
    for _ in range(PAIRS):
        early, late = small.window(), large.window()
        cpu.append(early[1] / late[1])
        wall.append(early[2] / late[2])
    small.end()
    large.finish()
    growth = late[3] - first[3]
    ratio = statistics.median(cpu)
    speed = 1 / statistics.median(each[2] for each in passed)
    good = growth < MOST_MB and ratio >= LEAST_SPEED
    cells = [kind, f"{count:,}", f"{first[3]:.0f}", f"{late[3]:.0f}", f"{growth:+.1f}"]
    cells += [f"{1e6 * statistics.median(each[1] for each in passed):.0f}"]
    cells += [f"{speed:.0f}", f"{ratio:.3f} ({min(cpu):.3f}-{max(cpu):.3f})"]
    cells += [f"{statistics.median(wall):.3f}", f"{time.perf_counter() - start:.0f}"]
    return good, f"| {' | '.join([*cells, 'PASS' if good else 'FAIL'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--sources", nargs="*", default=SOURCES, choices=SOURCES)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        folder, kind, count, target = args.one
        embed(Path(folder), kind, int(count), target)
        return
    if args.images % WINDOW or args.images < (PAIRS + 2) * WINDOW:
        parser.error(f"--images: expected a multiple of {WINDOW}, 120,000 or more.")
    names = ["source", "images", "MB at 10,000", "MB at the end", "growth"]
    names += ["CPU us an image", "images/s", "late/early speed by CPU (range)"]
    names += ["by wall", "s", ""]
    rule = ["---", *["---:"] * (len(names) - 2), "---"]
    print(f"{machine()}\n\n| {' | '.join(names)} |\n| {' | '.join(rule)} |")
    kept = []
    for kind in args.sources:
        with tempfile.TemporaryDirectory() as folder:
            good, row = measure(Path(folder), kind, args.images)
        kept.append(good)
        print(row, flush=True)
    if not all(kept):
        sys.exit(
            f"expected less than {MOST_MB} MB, and at least {LEAST_SPEED} of the speed."
        )


if __name__ == "__main__":
    main()
