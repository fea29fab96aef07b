"""Train ``cnncodes-mini.onnx``, the backbone that is bundled with sk_cnncodes.

The network is SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360) for images of
half the side, with a second branch that keeps a coarse layout of the last map. It
starts from SqueezeNet's weights and learns to predict the codes and scores of
MobileNetV2 and SqueezeNet for unlabelled photographs at full size (knowledge
distillation, Hinton et al. 2015, arXiv:1503.02531). It also learns to classify the
thumbnails and the drawn symbols.

Needs: torch, numpy, pillow, onnx, onnxruntime (or onnxruntime-gpu).

    python models/recipes/train_mini.py \\
        --photographs pool_caltech81.zip --thumbnails pool_cifar10.zip \\
        --mobilenet mobilenet_v2.onnx --squeezenet squeezenet1.1.onnx \\
        --output models/cnncodes-mini.onnx

``--photographs`` and ``--thumbnails`` are zip archives of images; only the members
``train/CLASS/...`` of the thumbnails are read.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import torch
from mini_samples import (
    MEAN,
    NO_LABEL,
    SIDE,
    STD,
    Samples,
    Teachers,
    make_samples,
    read_archive,
)
from torch import nn
from torch.nn import functional as F


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then parallel 1x1 and 3x3 convolutions."""

    def __init__(self, width_in: int, squeezed: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, width // 2, 1)
        self.expand3x3 = nn.Conv2d(squeezed, width // 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class Codes(nn.Module):
    """Channel averages of a map, concatenated with its layout at 3 x 3 positions."""

    def __init__(self, width_in: int, layout: int) -> None:
        super().__init__()
        self.layout = nn.Conv2d(width_in, layout, 1)
        self.width = width_in + 9 * layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layout = F.avg_pool2d(F.relu(self.layout(x)), 3, 2)
        return torch.cat([x.mean((2, 3)), layout.flatten(1)], 1)


class Mini(nn.Sequential):
    """Stem, eight fire modules, codes of 512 averages and 3 x 3 x 32 layout values."""

    def __init__(self, classes: int = 1000) -> None:
        def pool() -> nn.MaxPool2d:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        layers = {
            "stem": nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool()),
            "fire2": Fire(64, 16, 128),
            "fire3": Fire(128, 16, 128),
            "pool3": pool(),
            "fire4": Fire(128, 32, 256),
            "fire5": Fire(256, 32, 256),
            "pool5": pool(),
            "fire6": Fire(256, 48, 384),
            "fire7": Fire(384, 48, 384),
            "fire8": Fire(384, 64, 512),
            "fire9": Fire(512, 64, 512),
            "codes": Codes(512, 32),
        }
        layers["classifier"] = nn.Linear(layers["codes"].width, classes)
        super().__init__(OrderedDict(layers))

    def start_from(self, squeezenet: Path) -> None:
        """Copy the convolutions of SqueezeNet 1.1, except the last, its classifier."""
        tensors = {
            tensor.name: onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load(squeezenet).graph.initializer
        }
        own = [layer for layer in self[:-2].modules() if isinstance(layer, nn.Conv2d)]
        with torch.no_grad():
            for number, convolution in enumerate(own):
                name = f"squeezenet0_conv{number}_"
                convolution.weight.copy_(torch.tensor(tensors[name + "weight"]))
                convolution.bias.copy_(torch.tensor(tensors[name + "bias"]))


def standardised(targets: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Standardise each column, so that a few columns do not dominate the loss."""
    result = {}
    for name, values in targets.items():
        values = values.astype(np.float32)
        if name == "scores":
            values -= values.max(1, keepdims=True)
        else:
            values = (values - values.mean(0)) / (values.std(0) + 1e-3)
            values = np.clip(values, -6, 6)
        result[name] = torch.from_numpy(values.astype(np.float16))
    return result


class Distillation(nn.Module):
    """The losses of a batch, with their linear heads."""

    def __init__(self, samples: Samples, n_features: int) -> None:
        super().__init__()
        self.targets = standardised(samples.targets)
        self.classes = torch.from_numpy(samples.thumbnail_classes)
        self.symbols = torch.from_numpy(samples.symbols)
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(n_features, values.shape[1])
                for name, values in self.targets.items()
                if name != "scores"
            }
        )
        self.class_head = nn.Linear(n_features, int(self.classes.max()) + 1)
        self.symbol_head = nn.Linear(n_features, int(self.symbols.max()) + 1)

    def forward(
        self, net: Mini, codes: torch.Tensor, rows: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        losses = {}
        is_crop = rows < len(self.targets["scores"])
        crops, of_crops = rows[is_crop], codes[is_crop]
        for name, head in self.heads.items():
            wanted = self.targets[name][crops].float()
            losses[name] = F.mse_loss(head(of_crops), wanted)
        wanted = self.targets["scores"][crops].float().softmax(1)
        losses["scores"] = 0.3 * F.cross_entropy(net.classifier(of_crops), wanted)
        for name, head, labels, weight in (
            ("classes", self.class_head, self.classes[rows], 0.4),
            ("symbols", self.symbol_head, self.symbols[rows], 0.4),
        ):
            losses[name] = weight * F.cross_entropy(
                head(codes), labels, ignore_index=NO_LABEL, label_smoothing=0.05
            )
        return losses


def augmented(
    pixels: np.ndarray, may_mirror: np.ndarray, rng: np.random.Generator
) -> torch.Tensor:
    """Normalised batch, with random mirroring and a shift of up to 4 pixels."""
    x = torch.from_numpy(pixels)
    mirrored = torch.from_numpy(may_mirror & (rng.random(len(pixels)) < 0.5))
    x[mirrored] = x[mirrored].flip(2)
    x = (x.float() - torch.tensor(MEAN)) / torch.tensor(STD)
    x = F.pad(x.permute(0, 3, 1, 2), (4, 4, 4, 4), mode="replicate")
    left, top = rng.integers(0, 9, 2)
    x = x[:, :, top : top + SIDE, left : left + SIDE]
    return x.contiguous(memory_format=torch.channels_last)


def train(
    net: Mini,
    samples: Samples,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    learning_rate: float,
    snapshots: Path | None = None,
) -> Mini:
    """Distil the network; return a copy with weights averaged over the last steps."""
    distillation = Distillation(samples, net.codes.width)
    net = net.to(memory_format=torch.channels_last).train()
    averaged = copy.deepcopy(net)
    new = [*net.codes.parameters(), *net.classifier.parameters()]
    new += list(distillation.parameters())
    inherited = [p for p in net.parameters() if not any(p is q for q in new)]
    optimizer = torch.optim.AdamW(
        [{"params": inherited, "factor": 0.5}, {"params": new, "factor": 2.0}],
        weight_decay=0.02,
    )
    rng = np.random.default_rng(seed)
    count = len(samples.pixels)
    steps = epochs * (count // batch_size)
    begun, cpu, step, running = time.monotonic(), time.process_time(), 0, {}
    for epoch in range(epochs):
        for rows in np.array_split(rng.permutation(count), count // batch_size):
            rate = learning_rate * min(1.0, (step + 1) / 500)
            rate *= 0.5 * (1 + np.cos(np.pi * step / steps)) + 1e-3
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            rows = np.sort(rows)
            x = augmented(samples.pixels[rows], samples.symbols[rows] == NO_LABEL, rng)
            with torch.autocast("cpu", torch.bfloat16):
                codes = net[:-1](x)
            losses = distillation(net, codes.float(), torch.from_numpy(rows))
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(inherited + new, 5.0)
            optimizer.step()
            step += 1
            with torch.no_grad():
                share = min(0.999, step / (step + 100))
                for mean, now in zip(
                    averaged.parameters(), net.parameters(), strict=True
                ):
                    mean.lerp_(now, 1 - share)
            for name, value in losses.items():
                old = running.get(name, value.item())
                running[name] = old + (value.item() - old) / min(step, 100)
            if step % 100 == 0:
                parts = " ".join(f"{k} {v:.3f}" for k, v in running.items())
                loss = sum(running.values())
                minutes = (time.monotonic() - begun) / 60
                used = (time.process_time() - cpu) / 60
                print(
                    f"epoch {epoch} step {step} of {steps}, {minutes:.1f} min "
                    f"({used:.1f} min of CPU): loss {loss:.4f} {parts}",
                    flush=True,
                )
        if snapshots is not None:
            export(averaged, snapshots / f"epoch{epoch}.onnx")
    return averaged


def export(net: Mini, path: Path) -> None:
    """Export the network with its layer names and its preprocessing."""
    net = copy.deepcopy(net).eval()
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
    _halve_classifier(model)
    preprocessing = {
        "resize": "shorter",
        "resize_size": SIDE,
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
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _halve_classifier(model: onnx.ModelProto) -> None:
    """Store the classifier's weights in float16, which halves the largest tensor.

    The classifier comes after the penultimate layer, so codes do not change.
    """
    graph = model.graph
    (weights,) = (t for t in graph.initializer if t.name == "classifier.weight")
    half = onnx.numpy_helper.to_array(weights).astype(np.float16)
    cast = onnx.helper.make_node(
        "Cast", ["classifier.weight_half"], [weights.name], to=onnx.TensorProto.FLOAT
    )
    graph.initializer.remove(weights)
    graph.initializer.append(
        onnx.numpy_helper.from_array(half, "classifier.weight_half")
    )
    graph.node.insert(0, cast)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--thumbnails", type=Path, required=True)
    parser.add_argument("--mobilenet", type=Path, required=True)
    parser.add_argument("--squeezenet", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=6, help="crops per photograph")
    parser.add_argument(
        "--coarse", type=float, default=0.25, help="share of crops made gray and coarse"
    )
    parser.add_argument("--symbols", type=int, default=600, help="number of symbols")
    parser.add_argument("--drawings", type=int, default=50, help="drawings per symbol")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--snapshots", type=Path, help="folder for the network of each epoch"
    )
    parser.add_argument(
        "--samples-cache", type=Path, help="folder to cache the samples in"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    cache = args.samples_cache
    if cache is not None and (cache / "rest.npz").exists():
        samples = Samples.load(cache)
    else:
        samples = make_samples(
            read_archive(args.photographs, ""),
            read_archive(args.thumbnails, "train/"),
            Teachers(args.mobilenet, args.squeezenet, args.threads),
            crops=args.crops,
            coarse_share=args.coarse,
            n_symbols=args.symbols,
            drawings=args.drawings,
            seed=args.seed,
        )
        if cache is not None:
            samples.save(cache)
    print(f"{len(samples.pixels)} images", flush=True)
    net = Mini()
    net.start_from(args.squeezenet)
    net = train(
        net,
        samples,
        epochs=args.epochs,
        batch_size=args.batch_size,
        seed=args.seed,
        learning_rate=args.learning_rate,
        snapshots=args.snapshots,
    )
    export(net, args.output)


if __name__ == "__main__":
    main()
