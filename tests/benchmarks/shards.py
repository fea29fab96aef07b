"""Memory and throughput of `embed_to` over ever more images.

    python -m tests.benchmarks.shards [images ...]

Tiny images and a network of one convolution, each number in a process of its own; it
fails where memory grows by 30 MB or more, or throughput falls by more than 5%, from the
first number to another. The source is a generator, or with `--folder` a folder.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sk_cnncodes import CNNCodeTransformer, embed_to
from tests.benchmarks.timing import machine
from tests.scale.conftest import png, save_tiny

MOST_MB, LEAST_SPEED = 30, 0.95


def images(count: int) -> Iterator[tuple[str, bytes]]:
    """Images of different content: a number follows each."""
    files = [png(number) for number in range(100)]
    for number in range(count):
        yield f"{number:09}", files[number % 100] + number.to_bytes(4, "big")


def embed(count: int, folder: Path, in_files: bool) -> None:
    """Embed images, and print the peak memory in MB and the images a second."""
    net = save_tiny(folder / "net.onnx")
    source: object = images(count)
    if in_files:
        source = folder / "images"
        for key, content in images(count):
            path = folder / "images" / key[:6] / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    start = time.perf_counter()
    report = embed_to(CNNCodeTransformer(net), folder / "codes", source)
    seconds = time.perf_counter() - start
    assert (report.n_images, report.n_bad) == (count, 0)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    print(peak, count / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=int, nargs="*", default=[10_000, 300_000])
    parser.add_argument("--folder", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        embed(args.images[0], args.one, args.folder)
        return
    print(f"{machine()}\n\n| images | peak MB | images/s |\n| ---: | ---: | ---: |")
    found = []
    for count in args.images:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.benchmarks.shards", str(count)]
            command += ["--one", folder, *["--folder"] * args.folder]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True
            )
        found.append([float(value) for value in done.stdout.split()])
        print(f"| {count:,} | {found[-1][0]:.0f} | {found[-1][1]:.0f} |", flush=True)
    (first, speed), *others = found
    for peak, other_speed in others:
        if peak - first >= MOST_MB or other_speed < LEAST_SPEED * speed:
            sys.exit(
                f"{peak - first:+.0f} MB, {other_speed / speed:.2f} of the images a "
                f"second; expected less than {MOST_MB} MB, and at least {LEAST_SPEED}."
            )


if __name__ == "__main__":
    main()
