"""Peak memory of `sk-cnncodes embed` over many images; it fails above 600 MB.

    python -m tests.benchmarks.embed_memory ../shared/backbones/squeezenet1.1.onnx \
        ../shared/data/caltech20

Copies of photographs, each with a number behind the image, so that no two files are
equal and each takes a forward pass. The first two runs compute them and put them into
a cache; the others read it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.timing import machine

LIMIT_MB = 600


def copies(originals: list[Path], folder: Path, count: int) -> None:
    """Make images of different content, in sub-folders of 1000."""
    contents = [path.read_bytes() for path in originals]
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(contents[number % len(contents)] + number.to_bytes(4, "big"))


def peak_megabytes(arguments: list[str | Path]) -> tuple[float, float]:
    """Peak resident memory of a command, and its seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "sk_cnncodes", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {command}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return usage.ru_maxrss * unit / 1e6, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    args = parser.parse_args()
    originals = sorted(args.images.rglob("*.jpg"))
    few, many = args.count // 10, args.count
    print(f"{machine()}; copies of {len(originals)} photographs\n")
    print("| images | file | codes | peak MB | seconds |")
    print("| ---: | --- | --- | ---: | ---: |")
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies(originals, folder, many)
        parts = sorted(path for path in folder.iterdir() if path.is_dir())
        rest = ["--backbone", args.backbone, "--cache", folder / "codes.sqlite3"]
        for count, kind, state in (
            (few, "npz", "computed"),
            (many, "npz", "computed"),
            (many, "npz", "cached"),
            (many, "npy", "cached"),
            (many, "parquet", "cached"),
        ):
            inputs = parts[: -(-count // 1000)]
            output = folder / f"codes.{kind}"
            peak, seconds = peak_megabytes(["embed", *inputs, "-o", output, *rest])
            worst = max(worst, peak)
            print(
                f"| {count:,} | .{kind} | {state} | {peak:.0f} | {seconds:.0f} |",
                flush=True,
            )
    if worst > LIMIT_MB:
        sys.exit(f"{worst:.0f} MB; expected at most {LIMIT_MB}.")


if __name__ == "__main__":
    main()
