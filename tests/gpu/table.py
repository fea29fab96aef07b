"""The README's table of images a second, from the results of the check.

python -m tests.gpu.table [results.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Of `tests.gpu.check` on the machine that the README names.
MEASURED = Path(__file__).with_name("h100.json")
_NETWORKS = {
    "mobilenet_v2": "MobileNetV2",
    "resnet50": "ResNet-50",
    "vit_b16": "ViT-B/16",
}
# Name of a row, and of its results, without the network.
_ROWS = {
    "from memory, 128 images a batch": "{} float16 from memory, 128",
    "from 500 x 375 JPEG files": "{} float16 from 500x375 files, auto",
    "torch, from memory": "torch {} eager float16 from memory, 256",
    "torch compiled, from memory": "torch {} compiled float16 from memory, 256",
    "torch's DataLoader, from these files": (
        "torch {} eager float16 from 500x375 files, 256"
    ),
    "the same, compiled": "torch {} compiled float16 from 500x375 files, 256",
    "from 4000 x 3000 files, decoded by Pillow": (
        "{} float16 from 4000x3000 files, pillow, turn 2"
    ),
    'the same with decoder="gpu"': "{} float16 from 4000x3000 files, gpu, turn 2",
}


def table(path: Path = MEASURED) -> str:
    """Rows of what was measured, in Markdown."""
    records = json.loads(path.read_text(encoding="utf-8"))
    speeds = {r["name"]: r.get("images_per_second") for r in records}
    lines = [
        f"| images/s in float16 | {' | '.join(_NETWORKS.values())} |",
        "|---|" + "--:|" * len(_NETWORKS),
    ]
    for title, name in _ROWS.items():
        found = [speeds.get(name.format(network)) for network in _NETWORKS]
        cells = ["" if speed is None else f"{speed:,.0f}" for speed in found]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(*map(Path, sys.argv[1:])))
