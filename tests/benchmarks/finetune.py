"""What fine-tuning later layers brings, and what it costs.

    python -m tests.benchmarks.finetune ../shared/data

The backbone is mobilenet_v2 in `backbones` beside that folder. Each function yields
rows of one table; a name after the folder runs that one alone, and `--images 12000`
lets `large` train on fewer. Test parts are used for nothing but the figures. A row with
a bar passes or fails, and a row that fails makes the exit status 1.

- `large`: Fashion-MNIST 60,000/10,000, large and unlike ImageNet. Takes 40 minutes on 2
  cores that nothing else uses, and the frozen heads as long again.
- `small`: Fashion-MNIST 6,000/2,000.
- `similar`: Caltech-20 600/400, small and similar: the frozen model is to be kept.
- `cifar`: CIFAR-10 5,000/2,000, with three seeds.
- `speed`: an epoch of the tail, with ``precision="auto"``, against one of the whole
  network from images in float32, as torch trains it unless it is told otherwise; and
  both in the same precision. For -4 of mobilenet_v2 and, where timm is installed, of a
  ResNet-50 with random weights.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from sk_cnncodes import (
    CNNCodeClassifier,
    CNNCodeTransformer,
    FineTunedClassifier,
    Preprocessing,
    load_backbone,
)
from tests.benchmarks.accuracy import Split, splits
from tests.benchmarks.timing import machine, peak_memory
from tests.without_operators import import_torchvision

# What was measured, its value, the bar, and whether it passes; None without a bar.
Row = tuple[str, str, str, bool | None]
# Of the large set: what fits 40 minutes.
LARGE = {"max_epochs": 3, "validation_fraction": 0.1, "batch_size": 128}


@dataclass(frozen=True)
class Data:
    """Where the images and the backbone are, and how many images `large` has."""

    folder: Path
    cache: Path
    n_large: int

    @property
    def backbone(self) -> str:
        return str(self.folder.parent / "backbones" / "mobilenet_v2.onnx")

    def split(self, name: str) -> Split:
        return next(each for each in splits(self.folder) if each[0] == name)

    def frozen(self, X: Any, y: Any, cache: Any, **options: Any) -> CNNCodeClassifier:
        """The best frozen head on the same codes."""
        model = CNNCodeClassifier(
            [self.backbone], [-1], norms=["power"], cache=cache, **options
        )
        with threadpool_limits(1, user_api="blas"):
            return model.fit(X, y)


def paths(images: Any) -> Any:
    return [str(x) for x in images] if isinstance(images[0], Path) else images


def share(value: float) -> str:
    return f"{100 * value:.2f}"


def at_least(what: str, value: float, bar: float, digits: int = 2) -> Row:
    return what, f"{value:.{digits}f}", f">= {bar:.{digits}f}", value >= bar


def large(data: Data) -> Iterator[Row]:
    """Fashion-MNIST as a whole."""
    with np.load(data.folder / "fashion_mnist.npz") as fashion:
        x, y = fashion["x_train"][: data.n_large], fashion["y_train"][: data.n_large]
        x_test, y_test = fashion["x_test"], fashion["y_test"]
    name = f"Fashion-MNIST {len(x):,}/{len(x_test):,}"
    start = time.perf_counter()
    # What fit takes is measured without a cache that keeps it for another one.
    model = FineTunedClassifier(data.backbone, cache=None, **LARGE)
    model.fit(x, y)
    minutes = (time.perf_counter() - start) / 60
    yield f"{name}: fit, minutes", f"{minutes:.1f}", "< 40", minutes < 40
    for part, seconds in model.timings_.items():
        yield f"{name}: of which {part}", f"{seconds:.0f} s", "", None
    disk, memory = model.maps_bytes_ / 1e6, peak_memory()
    yield f"{name}: disk", f"{disk:.0f} MB", "", None
    yield f"{name}: peak memory", f"{memory:.0f} MB", "", None
    yield f"{name}: decision", model.decision_, "", None
    tuned = 100 * model.score(x_test, y_test)
    frozen = data.frozen(x, y, data.cache, cv=2)
    best = 100 * frozen.score(x_test, y_test)
    head = frozen.best_params_["head"]
    yield f"{name}: best frozen head ({head})", f"{best:.2f}", "", None
    yield f"{name}: tuned", f"{tuned:.2f}", f">= {best + 1:.2f}", tuned >= best + 1


def small(data: Data) -> Iterator[Row]:
    """Fashion-MNIST, a tenth of it."""
    name, x, y, x_test, y_test = data.split("Fashion-MNIST")
    name = f"{name} {len(x):,}/{len(x_test):,}"
    model = FineTunedClassifier(data.backbone, cache=data.cache).fit(x, y)
    yield f"{name}: decision", model.decision_, "", None
    seconds = model.timings_["all"]
    yield f"{name}: fit", f"{seconds:.0f} s", "", None
    frozen = data.frozen(x, y, data.cache)
    best = share(frozen.score(x_test, y_test))
    yield f"{name}: best frozen head ({frozen.best_params_['head']})", best, "", None
    yield at_least(f"{name}: tuned", 100 * model.score(x_test, y_test), 90.5)


def similar(data: Data) -> Iterator[Row]:
    """Caltech-20."""
    name, x, y, x_test, y_test = data.split("Caltech-20")
    x, x_test, y, y_test = paths(x), paths(x_test), np.array(y), np.array(y_test)
    name = f"{name} {len(x)}/{len(x_test)}"
    model = FineTunedClassifier(data.backbone, cache=data.cache).fit(x, y)
    kept = "no" if model.is_tuned_ else "yes"
    yield f"{name}: decision", model.decision_, "", None
    yield f"{name}: the frozen model is kept", kept, "yes", kept == "yes"
    best = 100 * data.frozen(x, y, data.cache).score(x_test, y_test)
    yield f"{name}: best frozen head", f"{best:.2f}", "", None
    found = 100 * model.score(x_test, y_test)
    yield at_least(f"{name}: what was taken", found, best - 0.3)


def cifar(data: Data) -> Iterator[Row]:
    """CIFAR-10, a tenth of it."""
    name, x, y, x_test, y_test = data.split("CIFAR-10")
    y, y_test = np.array(y), np.array(y_test)
    name = f"{name} {len(x):,}/{len(x_test):,}"
    frozen = data.frozen(x, y, data.cache)
    best = 100 * frozen.score(x_test, y_test)
    head = frozen.best_params_["head"]
    yield f"{name}: best frozen head ({head})", f"{best:.2f}", "", None
    for seed in range(3):
        model = FineTunedClassifier(
            data.backbone, cache=data.cache, random_state=seed
        ).fit(x, y)
        yield f"{name}, seed {seed}: decision", model.decision_, "", None
        found = 100 * model.score(x_test, y_test)
        yield at_least(f"{name}, seed {seed}: what was taken", found, best - 0.5)


# -- speed ---------------------------------------------------------------------


def resnet50(folder: Path) -> Path | None:
    """A ResNet-50 of timm with random weights as an ONNX file."""
    try:
        import_torchvision()
        import timm
        import torch
    except ImportError:
        return None
    network = timm.create_model("resnet50", pretrained=False).eval()
    path = folder / "resnet50.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, 224, 224),),
            str(path),
            dynamo=False,
            input_names=["image"],
            dynamic_axes={"image": {0: "N"}},
        )
    return path


def images_per_second(
    module: Any,
    read: Callable[[int], np.ndarray],
    width: int,
    precision: str,
    batches: int = 3,
) -> float:
    """Speed of training steps of a module and a linear head, the first left out."""
    import torch

    head = torch.nn.Linear(width, 20)
    weights = [*module.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, 1e-6)
    enabled = precision == "bfloat16"
    start, count = 0.0, 0
    for number in range(batches + 1):
        if number == 1:
            start, count = time.perf_counter(), 0
        maps = torch.from_numpy(read(number))
        targets = torch.arange(len(maps)) % 20
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            codes = module(maps)
        values = head(codes.float())
        torch.nn.functional.cross_entropy(values, targets).backward()
        optimizer.step()
        count += len(maps)
    return count / (time.perf_counter() - start)


def speed(data: Data) -> Iterator[Row]:
    """Training steps on cached maps against those from photographs."""
    import torch

    from sk_cnncodes.tuning.tail import read_tail
    from sk_cnncodes.tuning.torch_settings import training_precision

    chosen = training_precision("auto", torch.device("cpu"))
    precisions = [*dict.fromkeys(["float32", chosen])]

    _, files, *_ = data.split("Caltech-20")
    photographs = [Path(file).read_bytes() for file in files[:128]]
    sizes = [Image.open(io.BytesIO(content)).size for content in photographs]
    mean = np.mean([w * h for w, h in sizes]) / 1e6
    yield "photographs, mean size", f"{mean:.2f} megapixels", "", None
    networks = {"mobilenet_v2": (data.backbone, None)}
    exported = resnet50(data.cache.parent)
    if exported is not None:
        networks["resnet50"] = (str(exported), Preprocessing(crop_size=(224, 224)))
    for name, (path, preprocessing) in networks.items():
        backbone = load_backbone(path, preprocessing)
        width = backbone.code_length(backbone.spec(-1, "auto", None))

        def reader(
            which: int | str, path: str = path, preprocessing: Any = preprocessing
        ) -> tuple[Any, CNNCodeTransformer]:
            tail = read_tail(load_backbone(path, preprocessing), which)
            layer = tail.input_name
            return tail, CNNCodeTransformer(
                *[path],
                layer=layer,
                pooling="flatten",
                preprocessing=preprocessing,
                cache=None,
            )

        tail, transformer = reader(-4)
        shape = tail.input_shape
        cached = transformer.transform(photographs).reshape(-1, *shape)
        cached = cached.astype(np.float16)
        whole, pixels = reader("all")

        def from_maps(number: int, cached: Any = cached) -> np.ndarray:
            rows = (np.arange(64) + 64 * number) % len(cached)
            return cached[rows].astype(np.float32)

        def from_images(
            number: int, whole: Any = whole, pixels: Any = pixels
        ) -> np.ndarray:
            n_files = len(photographs)
            chosen = [photographs[(number * 32 + k) % n_files] for k in range(32)]
            return pixels.transform(chosen).reshape(-1, *whole.input_shape)

        # Rounds of -4 and of the whole network, by precision.
        rates: dict[str, list[tuple[float, float]]] = {each: [] for each in precisions}
        for _ in range(3):
            for precision in precisions:
                fast = images_per_second(tail.module, from_maps, width, precision, 8)
                slow = images_per_second(whole.module, from_images, width, precision)
                rates[precision].append((fast, slow))
        for precision in precisions:
            fast, slow = np.median(rates[precision], axis=0)
            ratio = np.median([fast / slow for fast, slow in rates[precision]])
            what = f"{name}, {precision}"
            yield f"{what}: -4, images a second", f"{fast:.0f}", "", None
            yield f"{what}: whole network, images a second", f"{slow:.1f}", "", None
            yield f"{what}: times faster", f"{ratio:.1f}", "", None
        pairs = zip(rates[chosen], rates["float32"], strict=True)
        ratios = [fast / slow for (fast, _), (_, slow) in pairs]
        what = f"{name}: -4 in {chosen}, times faster than the whole in float32"
        yield at_least(what, float(np.median(ratios)), 15, 1)


MEASUREMENTS: dict[str, Callable[[Data], Iterator[Row]]] = {
    "speed": speed,
    "similar": similar,
    "small": small,
    "cifar": cifar,
    "large": large,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(MEASUREMENTS))
    parser.add_argument("--images", type=int, default=60_000)
    given = parser.parse_args()
    failed = 0
    print(f"{machine()}\n\n| what | measured | bar | |\n| --- | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "codes.sqlite3")
        data = Data(given.folder.resolve(), cache, given.images)
        for name in given.names:
            for what, value, bar, passes in MEASUREMENTS[name](data):
                verdict = {None: "", True: "PASS", False: "FAIL"}[passes]
                failed += passes is False
                print(f"| {what} | {value} | {bar} | {verdict} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
