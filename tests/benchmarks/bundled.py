"""Rate of the bundled backbone beside MobileNetV2, from memory, without decoding.

    python -m tests.benchmarks.bundled ../shared

Both turn the same 400 decoded photographs into codes, without a cache. Median and
ratio are of pairs of runs, one right after the other.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sk_cnncodes import CNNCodeTransformer
from tests.benchmarks.timing import machine, seconds

PAIRS = 7


def main() -> None:
    shared = Path(sys.argv[1])
    paths = sorted((shared / "data" / "caltech20" / "test").glob("*/*.jpg"))
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    rates: dict[str, list[float]] = {"cnncodes-mini": [], "mobilenet_v2": []}
    backbones = {
        "cnncodes-mini": "cnncodes-mini",
        "mobilenet_v2": shared / "backbones" / "mobilenet_v2.onnx",
    }
    transformers = {
        name: CNNCodeTransformer(backbone, cache=None)
        for name, backbone in backbones.items()
    }
    for transformer in transformers.values():
        transformer.transform(photographs[:32])  # opens the session
    for _ in range(PAIRS):
        for name, transformer in transformers.items():
            took = seconds(lambda t=transformer: t.transform(photographs))  # type: ignore[misc]
            rates[name].append(len(photographs) / took)
    mini, mobilenet = rates.values()
    ratio = statistics.median(a / b for a, b in zip(mini, mobilenet, strict=True))
    print(f"{len(photographs)} photographs in memory; {machine()}\n")
    print("| backbone | images a second | times MobileNetV2 |")
    print("| --- | ---: | ---: |")
    print(f"| cnncodes-mini | {statistics.median(mini):.0f} | {ratio:.1f} |")
    print(f"| mobilenet_v2 | {statistics.median(mobilenet):.0f} | 1.0 |")


if __name__ == "__main__":
    main()
