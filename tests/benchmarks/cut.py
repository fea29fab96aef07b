"""What a cut saves: the time of each layer's codes against the penultimate's.

python -m tests.benchmarks.cut ../shared/backbones/squeezenet1.1.onnx
"""

from __future__ import annotations

import sys

import numpy as np

from sk_cnncodes import load_backbone
from sk_cnncodes.engines.devices import Device
from sk_cnncodes.engines.session import open_session
from tests.benchmarks.timing import machine, paired_ratio


def main() -> None:
    backbone = load_backbone(sys.argv[1])
    height, width = backbone.preprocessing.crop_size
    images = np.random.default_rng(0).integers(0, 256, (16, height, width, 3), np.uint8)
    sessions = {}
    for layer in backbone.layers:
        spec = backbone.spec(layer.name, "auto", None)
        graphs = backbone.code_graphs([spec])
        sessions[layer.name] = open_session(graphs, Device(None, True), 1)
    last = sessions[backbone.layers[-1].name]
    print(f"{machine()}; 16 images, 1 thread\n")
    print("| layer | name | times faster than -1 |\n| ---: | --- | ---: |")
    for layer in backbone.layers:
        session = sessions[layer.name]
        ratio = paired_ratio(lambda: last.run(images), lambda s=session: s.run(images))
        print(f"| {layer.position} | {layer.label} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
