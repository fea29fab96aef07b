"""Train ``cnncodes-mini.onnx``, the backbone that is bundled with sk_cnncodes.

A small inverted-residual network learns to predict what two ImageNet networks
see in unlabelled photographs: their penultimate codes, an earlier layer's codes
and their class scores (knowledge distillation, Hinton et al. 2015,
arXiv:1503.02531; inverted residuals, Sandler et al. 2018, arXiv:1801.04381).

Needs: torch, numpy, pillow, onnx, onnxruntime (or onnxruntime-gpu), tqdm.

    python models/recipes/train_mini.py \\
        --photographs pool_caltech81.zip --thumbnails pool_cifar10.zip \\
        --mobilenet mobilenet_v2.onnx --squeezenet squeezenet1.1.onnx \\
        --output models/cnncodes-mini.onnx

``--photographs`` and ``--thumbnails`` are zip archives of images. Of the
thumbnails only members under ``train/`` are read.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

SIDE = 128  # input of the student, in pixels
TEACHER_SIDE = 224
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; a shortcut where shapes allow."""

    def __init__(self, width_in: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = width_in * expansion
        self.shortcut = stride == 1 and width_in == width
        self.expand = nn.Sequential(
            nn.Conv2d(width_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
        )
        self.project = nn.Sequential(
            nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.expand(x))
        y = F.relu(self.depthwise(y))
        y = self.project(y)
        return x + y if self.shortcut else y


class Mini(nn.Module):
    """Stem and four stages of inverted residuals, 512 features, 1,000 scores."""

    # (width, expansion, blocks, stride) of each stage
    STAGES = ((24, 3, 2, 2), (48, 3, 3, 2), (80, 4, 4, 2), (128, 4, 3, 2))

    def __init__(self, features: int = 512, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        width_in = 16
        for number, (width, expansion, blocks, stride) in enumerate(self.STAGES, 1):
            stage = []
            for index in range(blocks):
                stage.append(
                    InvertedResidual(
                        width_in, width, expansion, stride if index == 0 else 1
                    )
                )
                width_in = width
            self.add_module(f"stage{number}", nn.Sequential(*stage))
        self.features = nn.Sequential(
            nn.Conv2d(width_in, features, 1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(features, classes)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.features(x).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.codes(x))


@dataclass
class Crops:
    """Square crops as uint8 [N, SIDE, SIDE, 3], and what the teachers say of each."""

    pixels: np.ndarray
    targets: dict[str, np.ndarray]


class Teachers:
    """The two ImageNet networks, each with the tensors that the student predicts."""

    def __init__(self, mobilenet: Path, squeezenet: Path, threads: int) -> None:
        self.mobilenet = self._session(
            mobilenet, ["pool6", "conv6_2_sum", "fc7"], threads
        )
        self.squeezenet = self._session(squeezenet, ["squeezenet0_concat7"], threads)

    @staticmethod
    def _session(
        path: Path, names: list[str], threads: int
    ) -> tuple[ort.InferenceSession, list[str]]:
        model = onnx.load(path)
        made = {name for node in model.graph.node for name in node.output}
        outputs = [n if n in made else model.graph.output[0].name for n in names]
        present = {output.name for output in model.graph.output}
        for name in outputs:
            if name not in present:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(
            model.SerializeToString(), options, ["CPUExecutionProvider"]
        )
        return session, outputs

    def __call__(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 [N, 224, 224, 3] -> float16 targets by name."""
        rgb = crops.astype(np.float32)
        session, names = self.mobilenet
        bgr = (rgb[..., ::-1] - np.float32([103.94, 116.78, 123.68])) * 0.017
        data = {session.get_inputs()[0].name: _nchw(bgr)}
        code, early, scores = session.run(names, data)
        session, names = self.squeezenet
        data = {session.get_inputs()[0].name: _nchw((rgb - MEAN) / STD)}
        (fire,) = session.run(names, data)
        scores = scores.reshape(len(crops), -1)
        return {
            "mobilenet": code.reshape(len(crops), -1).astype(np.float16),
            "mobilenet_early": early.mean((2, 3)).astype(np.float16),
            "squeezenet": fire.mean((2, 3)).astype(np.float16),
            "scores": scores.astype(np.float16),
        }


def _nchw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square of 35 to 100% of the shorter side's square, perhaps mirrored."""
    side = int(min(image.size) * np.sqrt(rng.uniform(0.35, 1.0)))
    left = int(rng.integers(0, image.width - side + 1))
    top = int(rng.integers(0, image.height - side + 1))
    crop = image.crop((left, top, left + side, top + side))
    return (
        crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
    )


def read_archive(path: Path, prefix: str) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [n for n in sorted(archive.namelist()) if n.startswith(prefix)]
        return [archive.read(n) for n in names if n.lower().endswith((".jpg", ".png"))]


def make_crops(
    jobs: list[tuple[bytes, int]], teachers: Teachers, batch_size: int = 32
) -> Crops:
    """One crop for each (file content, seed), with the teachers' targets."""

    def crop(job: tuple[bytes, int]) -> tuple[np.ndarray, np.ndarray]:
        content, seed = job
        rng = np.random.default_rng(seed)
        image = random_crop(Image.open(io.BytesIO(content)).convert("RGB"), rng)
        if rng.random() < 0.1:
            image = image.convert("L").convert("RGB")
        large = image.resize((TEACHER_SIDE, TEACHER_SIDE), Image.Resampling.BILINEAR)
        small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return np.asarray(small), np.asarray(large)

    pixels = np.empty((len(jobs), SIDE, SIDE, 3), np.uint8)
    parts: list[dict[str, np.ndarray]] = []
    with ThreadPoolExecutor(2) as pool:
        for start in tqdm(range(0, len(jobs), batch_size), desc="teachers"):
            pairs = list(pool.map(crop, jobs[start : start + batch_size]))
            pixels[start : start + len(pairs)] = [small for small, _ in pairs]
            parts.append(teachers(np.stack([large for _, large in pairs])))
    targets = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    return Crops(pixels, targets)


def standardised(targets: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Zero mean and unit variance a column, so that no few columns rule the loss."""
    result = {}
    for name, values in targets.items():
        values = values.astype(np.float32)
        if name != "scores":
            values = (values - values.mean(0)) / (values.std(0) + 1e-3)
            values = np.clip(values, -6, 6)
        result[name] = torch.from_numpy(values.astype(np.float16))
    return result


def train(
    crops: Crops, *, minutes: float, batch_size: int, seed: int, learning_rate: float
) -> Mini:
    """Distil for a given time; the learning rate follows a cosine of the time used."""
    torch.manual_seed(seed)
    targets = standardised(crops.targets)
    net = Mini().to(memory_format=torch.channels_last)
    heads = nn.ModuleDict(
        {k: nn.Linear(512, v.shape[1]) for k, v in targets.items() if k != "scores"}
    )
    parameters = [*net.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02)
    pixels = torch.from_numpy(crops.pixels)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    rng = np.random.default_rng(seed)
    start, step, epoch, running = time.monotonic(), 0, 0, 0.0
    net.train()
    while True:
        for rows in np.array_split(
            rng.permutation(len(pixels)), len(pixels) // batch_size
        ):
            used = (time.monotonic() - start) / (60 * minutes)
            if used >= 1:
                return net.eval()
            rate = learning_rate * min(1, (step + 1) / 200)
            rate *= 0.5 * (1 + np.cos(np.pi * used)) + 1e-3
            for group in optimizer.param_groups:
                group["lr"] = rate
            x = (pixels[rows].float() - mean) / std
            x = x.permute(0, 3, 1, 2)
            if rng.random() < 0.5:
                x = x.flip(3)
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                codes = net.codes(x)
            codes = codes.float()
            loss = torch.zeros(())
            for name, head in heads.items():
                wanted = targets[name][rows].float()
                loss = loss + F.mse_loss(head(codes), wanted)
            wanted = targets["scores"][rows].float()
            if wanted.min() < 0 or wanted.sum(1).max() > 1.5:
                wanted = wanted.softmax(1)
            loss = loss + 0.3 * F.cross_entropy(net.classifier(codes), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            step += 1
            running += (loss.item() - running) / min(step, 100)
            if step % 100 == 0:
                print(
                    f"epoch {epoch} step {step} time {used:.0%} loss {running:.4f}",
                    flush=True,
                )
        epoch += 1


def export(net: Mini, path: Path) -> None:
    """Write the network with its layer names and its preprocessing."""
    buffer = io.BytesIO()
    torch.onnx.export(
        net.to(memory_format=torch.contiguous_format),
        (torch.zeros(1, 3, SIDE, SIDE),),
        buffer,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    model = onnx.load_from_string(buffer.getvalue())
    preprocessing = {
        "resize": "shorter",
        "resize_size": 144,
        "interpolation": "bilinear",
        "crop_size": [SIDE, SIDE],
        "scale": 1.0,
        "mean": MEAN,
        "std": STD,
        "channels": "RGB",
        "layout": "NCHW",
    }
    onnx.helper.set_model_props(
        model, {"sk_cnncodes.preprocessing": json.dumps(preprocessing)}
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--thumbnails", type=Path, required=True)
    parser.add_argument("--mobilenet", type=Path, required=True)
    parser.add_argument("--squeezenet", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=6, help="crops a photograph")
    parser.add_argument(
        "--thumbnail-share", type=float, default=1.0, help="share of thumbnails used"
    )
    parser.add_argument("--minutes", type=float, default=60, help="time of training")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--crops-cache", type=Path, help="keep the crops in this .npz")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    if args.crops_cache is not None and args.crops_cache.exists():
        with np.load(args.crops_cache) as kept:
            arrays = dict(kept)
        crops = Crops(arrays.pop("pixels"), arrays)
    else:
        photographs = read_archive(args.photographs, "")
        thumbnails = read_archive(args.thumbnails, "train/")
        chosen = np.random.default_rng(args.seed).permutation(len(thumbnails))
        chosen = chosen[: int(len(thumbnails) * args.thumbnail_share)]
        contents = photographs * args.crops + [thumbnails[i] for i in chosen]
        jobs = [(content, args.seed + i) for i, content in enumerate(contents)]
        teachers = Teachers(args.mobilenet, args.squeezenet, args.threads)
        crops = make_crops(jobs, teachers)
        if args.crops_cache is not None:
            np.savez(args.crops_cache, pixels=crops.pixels, **crops.targets)
    print(f"{len(crops.pixels)} crops", flush=True)
    net = train(
        crops,
        minutes=args.minutes,
        batch_size=args.batch_size,
        seed=args.seed,
        learning_rate=args.learning_rate,
    )
    export(net, args.output)


if __name__ == "__main__":
    main()
