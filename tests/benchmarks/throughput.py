"""From image files to codes: this library beside others, and the machine's limit.

    python -m tests.benchmarks.throughput [--images FOLDER] [--networks NAME ...]

Every contender has a process of its own with its network loaded; runs of all of them
follow one after another, and ratios are medians over such rounds. Other libraries
take part where they are installed, precisions where the machine has them. Then come
the growth of memory with the number of images, and the cost of importing. It writes
`throughput.md` and, where matplotlib is installed, `throughput.svg` beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from PIL import Image

from sk_cnncodes import Preprocessing, load_backbone
from sk_cnncodes.engines.onnxruntime import import_onnxruntime
from sk_cnncodes.graphs.reading import embed_external_data, read_model
from sk_cnncodes.graphs.view import cut_model
from tests.benchmarks import networks
from tests.benchmarks.contenders import Job
from tests.benchmarks.growth import growth_table
from tests.benchmarks.imports import import_table
from tests.benchmarks.limits import Limits, measure_limits
from tests.benchmarks.timing import machine

ort = import_onnxruntime()
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
# Slow networks take the first part of the images only.
SHARES = {"resnet50": 3, "vgg16": 10, "vit_s16": 3}


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
        first = onnx.helper.make_tensor("first", onnx.TensorProto.INT64, [], [0])
        cut.graph.initializer.append(first)
        node = onnx.helper.make_node("Gather", [code, "first"], ["code"], axis=1)
        cut.graph.node.append(node)
        code = "code"
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
    contenders = []
    for name in names:
        contender = Contender(name, job)
        try:
            contender.run(count)
            contenders.append(contender)
        except (RuntimeError, BrokenPipeError):
            print(f"{name}: does not run here, left out", file=sys.stderr)
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


def available() -> list[str]:
    """Contenders whose packages are installed; precisions that this version has."""
    names = ["sk_cnncodes"]
    if importlib.util.find_spec("openvino") is not None:
        names.append("sk_cnncodes engine=openvino")
    names += [f"sk_cnncodes precision={p}" for p in ("bfloat16", "int8")]
    for name, package in [
        ("fastembed", "fastembed"),
        ("Pillow + ONNX Runtime", "onnxruntime"),
        ("timm + DataLoader", "timm"),
        ("embetter", "embetter"),
    ]:
        if importlib.util.find_spec(package) is not None:
            names.append(name)
    return names


# -- what is written ---------------------------------------------------------


@dataclass
class Result:
    """All that was measured with one network and one size of photograph."""

    title: str
    contenders: list[Contender]
    limits: Limits
    count: int

    def speed(self, contender: Contender) -> float:
        return self.count / statistics.median(contender.seconds)


def table(result: Result) -> str:
    """Markdown: img/s, ratio to the reference, memory; then the stages."""
    by_name = {c.name: c for c in result.contenders}
    reference = by_name.get("fastembed", by_name["Pillow + ONNX Runtime"])
    lines = [
        f"**{result.title}**",
        "",
        f"| | img/s | times {reference.name} | peak memory (MB) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for contender in result.contenders:
        lines.append(
            f"| {contender.name} | {result.speed(contender):.1f} | "
            f"{ratio(contender, reference):.2f} | {contender.memory:.0f} |"
        )
    stages = result.limits.stages
    whole = sum(stages.values())
    shares = ", ".join(f"{n} {100 * s / whole:.0f}%" for n, s in stages.items())
    ideal = result.limits.n_cores / whole
    float32 = result.speed(by_name["sk_cnncodes"])
    bounds = []
    for precision in result.limits.arithmetic:
        mine = by_name.get(f"sk_cnncodes precision={precision}", by_name["sk_cnncodes"])
        limit = 1 / result.limits.best(precision)
        share = result.speed(mine) / limit
        bounds.append(f"{limit:.0f} img/s in {precision}, of which {share:.2f} is got")
    lines += [
        "",
        f"Stages on one core, float32: {shares}. All cores, each as quick as one "
        f"alone, would do {ideal:.0f} img/s: {float32 / ideal:.2f} of that is got. "
        "Decoding on all cores, or the arithmetic at the speed of large matrix "
        "products, whichever is slower, allows "
        f"{'; '.join(bounds)}.",
        "",
    ]
    return "\n".join(lines)


def plot(results: list[Result], path: Path) -> None:
    """Bars of img/s relative to the reference, one group for each network."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(c.name for r in results for c in r.contenders))
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        points = []
        for group, result in enumerate(results):
            found = {c.name: c for c in result.contenders}
            reference = found.get("fastembed", found["Pillow + ONNX Runtime"])
            if name in found:
                points.append((group + place * width, ratio(found[name], reference)))
        axes.bar(*zip(*points, strict=True), width, label=name)
    middle = 0.4 - width / 2
    axes.set_xticks(
        [group + middle for group in range(len(results))],
        [result.title.replace(", ", "\n") for result in results],
    )
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_ylabel("images a second, relative to fastembed")
    axes.legend(fontsize="small")
    figure.savefig(path)


def measure(
    title: str,
    network: str,
    folder: Path,
    backbone: Path,
    paths: list[str],
    rounds: int,
) -> Result:
    plain = folder / f"plain-{network}"
    if not plain.exists():
        plain_model(backbone, plain)
    job = folder / "job.json"
    Job(TIMM[network], str(backbone), str(plain), paths).write(job)
    names = [n for n in available() if TIMM[network] or n[:4] not in ("timm", "embe")]
    contenders = compare(names, job, len(paths), rounds)
    return Result(
        title, contenders, measure_limits(str(backbone), paths[:64]), len(paths)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=SHARED / "data/caltech20")
    parser.add_argument("--networks", nargs="*", choices=TIMM, default=list(TIMM))
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--growth", nargs="*", type=int, default=[1000, 2000, 100_000])
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photographs(arguments.images, folder / "usual", arguments.count, (500, 375))
        large = max(8, arguments.count // 20)
        photographs(arguments.images, folder / "large", large, (4000, 3000))
        for network in arguments.networks:
            backbone = SHARED / "backbones" / f"{network}.onnx"
            if network in networks.NETWORKS:
                backbone = networks.write(network, folder)
            elif not backbone.exists():
                continue
            usual = sorted(map(str, (folder / "usual").iterdir()))
            sets = [(network, usual[: max(1, len(usual) // SHARES.get(network, 1))])]
            if network == "mobilenet_v2":
                files = sorted(map(str, (folder / "large").iterdir()))
                sets.append((f"{network}, 4000x3000", files))
            for title, paths in sets:
                result = measure(
                    title, network, folder, backbone, paths, arguments.rounds
                )
                results.append(result)
                print(table(result), flush=True)
    head = f"{machine()}, ONNX Runtime {ort.__version__}; JPEGs of 500x375\n\n"
    parts = [table(result) for result in results]
    if arguments.growth:
        parts.append(growth_table(arguments.images, arguments.growth))
    parts.append(import_table())
    text = head + "\n".join(parts)
    (HERE / "throughput.md").write_text(text, encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is not None:
        plot(results, HERE / "throughput.svg")


if __name__ == "__main__":
    main()
