"""From image files to codes: this library beside others, and the machine's limit.

    python -m tests.benchmarks.throughput [--images FOLDER] [--networks NAME ...]

Every contender has a process of its own with its network loaded; runs of all of them
follow one after another, five times, and ratios are medians of such rounds. Other
libraries take part where they are installed. It writes `throughput.md` and, where
matplotlib is installed, `throughput.svg` beside this file.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
from PIL import Image

from sk_cnncodes import Preprocessing, load_backbone
from sk_cnncodes.graph import cut_model, embed_external_data, read_model

SHARED = Path(__file__).parents[3] / "shared"
HERE = Path(__file__).parent
# Names of the networks in timm.
TIMM = {
    "mobilenet_v2": "mobilenetv2_100",
    "squeezenet1.1": "",
    "resnet50": "resnet50",
    "vgg16": "vgg16",
    "vit_s16": "vit_small_patch16_224",
}


# -- what contenders are given -----------------------------------------------


def photographs(source: Path, folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEGs of (longer, shorter) side from the photographs of a folder."""
    paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    folder.mkdir()
    for number in range(count):
        with Image.open(paths[number % len(paths)]) as opened:
            image = opened.convert("RGB")
        wide = image.width >= image.height
        scaled = image.resize(size if wide else size[::-1], Image.Resampling.BICUBIC)
        scaled.save(folder / f"{number:05}.jpg", quality=90)


def plain_model(backbone_path: Path, folder: Path) -> None:
    """The layer -1 of a backbone as others take it: float input, codes as output."""
    backbone = load_backbone(backbone_path)
    layer = backbone.layer(-1)
    model = read_model(backbone_path)
    cut = cut_model(model, [layer.name])
    embed_external_data(cut, backbone_path.parent)
    code = layer.name
    if layer.kind == "map":
        cut.graph.node.append(onnx.helper.make_node("GlobalAveragePool", [code], ["p"]))
        cut.graph.node.append(onnx.helper.make_node("Flatten", ["p"], ["code"]))
        code = "code"
    elif layer.kind == "tokens":
        raise NotImplementedError(f"{backbone_path}: layer -1 holds tokens")
    cut.graph.ClearField("output")
    cut.graph.output.append(
        onnx.helper.make_tensor_value_info(code, onnx.TensorProto.FLOAT, None)
    )
    folder.mkdir()
    onnx.save(cut, folder / "model.onnx")
    config = plain_config(backbone.preprocessing)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(config), encoding="utf-8")


def plain_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """The preprocessing as Hugging Face writes it; the channel order is left out."""
    height, width = preprocessing.crop_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.resize_size},
        "resample": int(Image.Resampling.BILINEAR),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": preprocessing.scale,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


# -- measuring ---------------------------------------------------------------


class Contender:
    """A process of `tests.benchmarks.contenders`."""

    def __init__(self, name: str, job: Path) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.memory = 0.0
        command = [sys.executable, "-m", "tests.benchmarks.contenders", name, str(job)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, count: int) -> float:
        """Seconds for so many images."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended; run it by itself to see why")
        seconds, self.memory = json.loads(answer)
        return float(seconds)

    def close(self) -> None:
        self._process.communicate()


def compare(names: list[str], job: Path, count: int, rounds: int) -> list[Contender]:
    """Run contenders in turn; the first run of each loads and measures, uncounted."""
    contenders = [Contender(name, job) for name in names]
    for contender in contenders:
        contender.run(count)
    for _ in range(rounds):
        for contender in contenders:
            contender.seconds.append(contender.run(count))
    for contender in contenders:
        contender.close()
    return contenders


def ratio(contender: Contender, reference: Contender) -> float:
    """How many times faster than the reference, the median over rounds."""
    pairs = zip(reference.seconds, contender.seconds, strict=True)
    return statistics.median(slow / fast for slow, fast in pairs)
