"""What the check reads: carried backbones and photographs, and files made of them.

python -m tests.gpu.data

fills `.gpu/data` from the shared folder beside the checkout.
"""

from __future__ import annotations

import shutil
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from sk_cnncodes import load_backbone
from sk_cnncodes.engines.session import in_precision
from tests import networks as small_networks
from tests.benchmarks import networks

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / ".gpu" / "data"
SHARED = ROOT.parent / "shared"
BACKBONES = ("mobilenet_v2", "squeezenet1.1")
N_CARRIED = 150
# What is made: folder, number of files, width and height.
JPEG_FILES = (("500x375", 2000, 500, 375), ("4000x3000", 64, 4000, 3000))


def carry(target: Path = CARRIED) -> int:
    """Fill the folder that travels to the machine; return its size in bytes."""
    folder = target / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for name in BACKBONES:
        shutil.copyfile(SHARED / "backbones" / f"{name}.onnx", target / f"{name}.onnx")
    found = sorted((SHARED / "data" / "caltech20" / "test").rglob("*.jpg"))
    for number, path in enumerate(found[:: len(found) // N_CARRIED][:N_CARRIED]):
        shutil.copyfile(path, folder / f"{number:03}.jpg")
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def photographs(carried: Path) -> list[str]:
    """Paths of the carried photographs."""
    found = sorted(map(str, (carried / "photographs").glob("*.jpg")))
    if not found:
        raise FileNotFoundError(
            f"no photographs in {carried}: python -m tests.gpu.data fills it"
        )
    return found


@lru_cache(maxsize=1)
def _pixels(carried: Path) -> list[np.ndarray]:
    paths = photographs(carried)
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def mosaic(carried: Path, seed: int, width: int, height: int) -> np.ndarray:
    """Photographs side by side at their own size, so that detail is real."""
    rng = np.random.default_rng(seed)
    images = _pixels(carried)
    tall = min(120, *(len(image) for image in images))
    canvas = np.empty((height + tall, width + 1000, 3), np.uint8)
    for top in range(0, height, tall):
        left = -int(rng.integers(100))
        while left < width:
            image = images[rng.integers(len(images))]
            start = rng.integers(len(image) - tall + 1)
            image = image[start : start + tall, max(0, -left) :][:, :1000]
            left = max(0, left)
            canvas[top : top + tall, left : left + image.shape[1]] = image
            left += image.shape[1]
    return canvas[:height, :width]


def write_jpeg(task: tuple[Path, Path, int, int, int]) -> None:
    """Write one JPEG file; a task is (carried, path, seed, width, height)."""
    carried, path, seed, width, height = task
    Image.fromarray(mosaic(carried, seed, width, height)).save(path, quality=90)


_SHALLOW = {
    "resnet50": partial(networks.resnet, 1, 1, 1, 1),
    "vit_s16": partial(networks.vit, 384, 6, depth=2),
    "vit_b16": partial(networks.vit, 768, 12, depth=2),
}


def write_network(name: str, work: Path, *, shallow: bool) -> Path:
    """The file of a network with random weights, or of one with fewer blocks."""
    if not shallow:
        return networks.write(name, work)
    path = work / f"{name}.onnx"
    if not path.exists():
        model = _SHALLOW[name]()
        for key, value in networks.IMAGENET.to_metadata().items():
            model.metadata_props.add(key=key, value=value)
        small_networks.save(model, path)
    return path


def write_graph(backbone_path: str, precision: str, path: Path) -> None:
    """Write the code graph of the last layer, in float32 or float16."""
    backbone = load_backbone(backbone_path)
    spec = backbone.spec(-1, "auto", None)
    graph = next(iter(backbone.code_graphs([spec])))
    path.write_bytes(in_precision(graph.model, precision, None))


if __name__ == "__main__":
    print(f"{carry() / 2**20:.1f} MiB in {CARRIED}")
