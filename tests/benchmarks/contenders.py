"""The libraries that `tests.benchmarks.throughput` compares, each in its own process.

    python -m tests.benchmarks.contenders NAME JOB.json

A process loads its network and answers each line on its standard input, a number of
images, with a line of JSON: the seconds from files to matrix, and the peak memory of
the process in MB so far.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.timing import peak_memory

Embed = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class Job:
    """What all contenders do.

    Attributes
    ----------
    network : str
        Name in timm, or "" where it has none.
    backbone : str
        The ONNX file of this library.
    plain : str
        Folder of `model.onnx`, float input and the same codes as output, with its
        `preprocessor_config.json`.
    images : list of str
    """

    network: str
    backbone: str
    plain: str
    images: list[str]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def sk_cnncodes(job: Job, **parameters: Any) -> Embed:
    """This library with its defaults and an empty cache; int8 is calibrated before."""
    from sk_cnncodes import CNNCodeTransformer, CodeCache

    codes = CNNCodeTransformer(job.backbone, **parameters).fit(job.images)

    def embed(paths: list[str]) -> np.ndarray:
        return codes.set_params(cache=CodeCache()).transform(paths)

    return embed


def fastembed(job: Job) -> Embed:
    """fastembed with its defaults, and a model from a local folder."""
    from fastembed import ImageEmbedding

    model = ImageEmbedding(
        "Qdrant/resnet50-onnx", specific_model_path=job.plain, local_files_only=True
    )
    return lambda paths: np.array(list(model.embed(paths)))


def plain_loop(job: Job) -> Embed:
    """What one writes by hand: Pillow, numpy and ONNX Runtime, 16 images a batch."""
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(
        f"{job.plain}/model.onnx", providers=["CPUExecutionProvider"]
    )
    config = json.loads(
        Path(job.plain, "preprocessor_config.json").read_text(encoding="utf-8")
    )
    size, crop = config["size"]["shortest_edge"], config["crop_size"]["height"]
    mean, std = (np.float32(config[key]) for key in ("image_mean", "image_std"))
    scale = np.float32(config["rescale_factor"])

    def one(path: str) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        factor = size / min(image.size)
        scaled = (round(image.width * factor), round(image.height * factor))
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
        pixels = (np.asarray(image, np.float32) * scale - mean) / std
        return pixels.transpose(2, 0, 1)

    def embed(paths: list[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(paths), 16):
            batch = np.stack([one(path) for path in paths[start : start + 16]])
            parts.append(session.run(None, {"data": batch})[0])
        return np.concatenate(parts)

    return embed


def embetter(job: Job) -> Embed:
    """embetter's loader and timm encoder; timm without its download of weights."""
    import timm
    from embetter.vision import ImageLoader, TimmEncoder
    from sklearn.pipeline import make_pipeline

    create = timm.create_model
    timm.create_model = lambda name, pretrained, **rest: create(name, **rest)
    encoder = TimmEncoder(job.network)
    encoder.model.eval()
    pipeline = make_pipeline(ImageLoader(), encoder)
    return lambda paths: pipeline.fit_transform(paths)


def timm_loader(job: Job) -> Embed:
    """timm and torch's DataLoader with a process for each core, 16 images a batch."""
    import os

    import timm
    import torch
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(job.network, pretrained=False, num_classes=0).eval()
    transform = create_transform(**resolve_data_config({}, model=model))

    class Files(torch.utils.data.Dataset):
        def __init__(self, paths: list[str]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(self.paths[index]).convert("RGB"))

    def embed(paths: list[str]) -> np.ndarray:
        loader = torch.utils.data.DataLoader(
            Files(paths), batch_size=16, num_workers=os.cpu_count() or 1
        )
        with torch.inference_mode():
            return torch.cat([model(batch) for batch in loader]).numpy()

    return embed


# Names in the table; those of this library are its parameters.
CONTENDERS: dict[str, Callable[[Job], Embed]] = {
    "sk_cnncodes": sk_cnncodes,
    "fastembed": fastembed,
    "Pillow + ONNX Runtime": plain_loop,
    "timm + DataLoader": timm_loader,
    "embetter": embetter,
}


def main() -> None:
    name = sys.argv[1]
    job = Job(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    if name in CONTENDERS:
        make = CONTENDERS[name]
    else:  # "sk_cnncodes precision=bfloat16"
        pairs = (word.split("=") for word in name.split()[1:])
        make = partial(sk_cnncodes, **dict(pairs))
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    embed = make(job)
    for line in sys.stdin:
        start = time.perf_counter()
        codes = embed(job.images[: int(line)])
        seconds = time.perf_counter() - start
        if len(codes) != int(line):
            raise AssertionError(f"{len(codes)} rows for {line} images")
        print(json.dumps([seconds, peak_memory()]), file=answers, flush=True)


if __name__ == "__main__":
    main()
