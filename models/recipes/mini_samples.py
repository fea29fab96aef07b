"""Training data of ``train_mini.py``: crops of photographs, and drawn symbols.

The targets of crops are outputs of two ImageNet networks, the teachers. Some crops are
made gray and coarse first, so that the student also trains on small gray images.
Symbols are a few random strokes with distortions; the student learns to classify them.
"""

from __future__ import annotations

import io
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image, ImageDraw

SIDE = 116  # input of the student, in pixels
TEACHER_SIDE = 224
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
BILINEAR = Image.Resampling.BILINEAR
NO_LABEL = -1


@dataclass
class Samples:
    """Images and their training targets.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (n, SIDE, SIDE, 3)
    targets : dict of ndarray of float16, shape (n_crops, d)
        Outputs of the teachers for the first `n_crops` images, which are crops.
    thumbnail_classes : ndarray of int64, shape (n,)
        Class of each image; NO_LABEL if it has none.
    symbols : ndarray of int64, shape (n,)
        Symbol of each image; NO_LABEL if it has none.
    """

    pixels: np.ndarray
    targets: dict[str, np.ndarray]
    thumbnail_classes: np.ndarray
    symbols: np.ndarray

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "pixels.npy", self.pixels)
        np.savez(
            folder / "rest.npz",
            thumbnail_classes=self.thumbnail_classes,
            symbols=self.symbols,
            **self.targets,
        )

    @classmethod
    def load(cls, folder: Path) -> Samples:
        with np.load(folder / "rest.npz") as file:
            rest = dict(file)
        classes, symbols = rest.pop("thumbnail_classes"), rest.pop("symbols")
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        return cls(pixels, rest, classes, symbols)


# -- teachers ----------------------------------------------------------------


class Teachers:
    """Two ImageNet networks, with the tensors that the student predicts."""

    def __init__(self, mobilenet: Path, squeezenet: Path, threads: int) -> None:
        self.mobilenet = _session(mobilenet, ["pool6", "conv6_2_sum", "fc7"], threads)
        self.squeezenet = _session(squeezenet, ["squeezenet0_concat7"], threads)

    def __call__(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """Return float16 targets by name for crops, uint8 [N, 224, 224, 3]."""
        rgb = crops.astype(np.float32)
        bgr = (rgb[..., ::-1] - np.float32([103.94, 116.78, 123.68])) * 0.017
        code, early, scores = self.mobilenet.run(
            ["pool6", "conv6_2_sum", "fc7"], {"data": _nchw(bgr)}
        )
        (fire,) = self.squeezenet.run(
            ["squeezenet0_concat7"], {"data": _nchw((rgb - MEAN) / STD)}
        )
        return {
            "mobilenet": code.reshape(len(crops), -1).astype(np.float16),
            "mobilenet_early": early.mean((2, 3)).astype(np.float16),
            "squeezenet": fire.mean((2, 3)).astype(np.float16),
            "scores": scores.reshape(len(crops), -1).astype(np.float16),
        }


def _session(path: Path, names: list[str], threads: int) -> ort.InferenceSession:
    model = onnx.load(path)
    present = {output.name for output in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )


def _nchw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)


# -- crops -------------------------------------------------------------------


def read_archive(path: Path, prefix: str) -> list[tuple[str, bytes]]:
    """Folder name and content of each image under a prefix of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in sorted(archive.namelist()) if n.startswith(prefix)]
        images = [n for n in names if n.lower().endswith((".jpg", ".png"))]
        return [(Path(n).parent.name, archive.read(n)) for n in images]


def random_crop(
    image: Image.Image, rng: np.random.Generator, smallest: float
) -> Image.Image:
    """A random square, at least `smallest` of the largest one, perhaps mirrored."""
    side = int(min(image.size) * np.sqrt(rng.uniform(smallest, 1.0)))
    left = int(rng.integers(0, image.width - side + 1))
    top = int(rng.integers(0, image.height - side + 1))
    crop = image.crop((left, top, left + side, top + side))
    mirrored = rng.random() < 0.5
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop


def coarsen(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shrink to a thumbnail of 10 to 40 pixels, mostly gray."""
    side = int(rng.integers(10, 41))
    small = image.resize((side, side), BILINEAR)
    return small.convert("L").convert("RGB") if rng.random() < 0.8 else small


def make_samples(
    photographs: list[tuple[str, bytes]],
    thumbnails: list[tuple[str, bytes]],
    teachers: Teachers,
    *,
    crops: int,
    coarse_share: float,
    n_symbols: int,
    drawings: int,
    seed: int,
    batch_size: int = 32,
) -> Samples:
    """Create all training samples; equal seeds give equal samples."""
    classes = sorted({name for name, _ in thumbnails})
    jobs = [(content, 0.35, NO_LABEL) for _, content in photographs] * crops
    jobs += [(content, 0.6, classes.index(name)) for name, content in thumbnails]
    count = len(jobs) + n_symbols * drawings
    pixels = np.empty((count, SIDE, SIDE, 3), np.uint8)
    labels = np.full(count, NO_LABEL)
    symbols = np.full(count, NO_LABEL)
    labels[: len(jobs)] = [label for *_, label in jobs]

    def crop(index: int) -> tuple[np.ndarray, np.ndarray]:
        content, smallest, _ = jobs[index]
        rng = np.random.default_rng([seed, index])
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image = random_crop(image, rng, smallest)
        if rng.random() < coarse_share:
            image = coarsen(image, rng)
        small, large = (
            image.resize((side, side), BILINEAR) for side in (SIDE, TEACHER_SIDE)
        )
        return np.asarray(small), np.asarray(large)

    parts: list[dict[str, np.ndarray]] = []
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(jobs), batch_size):
            rows = range(start, min(start + batch_size, len(jobs)))
            pairs = list(pool.map(crop, rows))
            pixels[rows.start : rows.stop] = [small for small, _ in pairs]
            parts.append(teachers(np.stack([large for _, large in pairs])))
            if len(parts) % 200 == 0:
                minutes = (time.monotonic() - begun) / 60
                print(
                    f"{rows.stop} of {len(jobs)} crops, {minutes:.1f} min", flush=True
                )
        prototypes = [
            random_symbol(np.random.default_rng([seed, 1, number]))
            for number in range(n_symbols)
        ]

        def draw(number: int) -> np.ndarray:
            rng = np.random.default_rng([seed, 2, number])
            return draw_symbol(prototypes[number % n_symbols], rng)

        for number, picture in enumerate(pool.map(draw, range(n_symbols * drawings))):
            pixels[len(jobs) + number] = picture
            symbols[len(jobs) + number] = number % n_symbols
    targets = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    return Samples(pixels, targets, labels, symbols)


# -- drawn symbols -----------------------------------------------------------


def random_symbol(rng: np.random.Generator) -> list[np.ndarray]:
    """One to three strokes, each 60 points in the unit square."""
    while True:
        strokes = _random_strokes(rng)
        if np.ptp(np.concatenate(strokes), axis=0).max() > 0.4:
            return strokes


def _random_strokes(rng: np.random.Generator) -> list[np.ndarray]:
    strokes = []
    for _ in range(rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2])):
        if rng.random() < 0.3:  # an arc, or a loop
            centre, radii = rng.uniform(0.3, 0.7, 2), rng.uniform(0.12, 0.38, 2)
            angles = rng.uniform(0, 2 * np.pi) + np.linspace(
                0, rng.uniform(1.0, 2.0) * np.pi, 60
            )
            strokes.append(centre + radii * np.c_[np.cos(angles), np.sin(angles)])
        else:
            corners = rng.uniform(0.1, 0.9, (rng.integers(2, 6), 2))
            strokes.append(_curve(corners, smooth=rng.random() < 0.6))
    return strokes


def _curve(corners: np.ndarray, *, smooth: bool) -> np.ndarray:
    """60 points on the polyline through the corners, optionally smoothed."""
    at = np.linspace(0, len(corners) - 1, 60)
    where = np.arange(len(corners))
    points = np.c_[
        np.interp(at, where, corners[:, 0]), np.interp(at, where, corners[:, 1])
    ]
    if smooth:
        kernel = np.ones(15) / 15
        padded = np.pad(points, ((7, 7), (0, 0)), mode="edge")
        points = np.c_[
            np.convolve(padded[:, 0], kernel, "valid"),
            np.convolve(padded[:, 1], kernel, "valid"),
        ]
    return points


def draw_symbol(strokes: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A distorted, coarse, gray drawing of a symbol, uint8 [SIDE, SIDE, 3]."""
    angle, shear = rng.normal(0, 0.15), rng.normal(0, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(rng.uniform(0.7, 1.1, 2))
    shift = rng.uniform(-0.08, 0.08, 2)
    # A smooth displacement of the plane bends the strokes.
    bend = rng.normal(0, 0.035, (2, 2, 2))
    canvas, scale = Image.new("L", (128, 128)), 128
    pen = ImageDraw.Draw(canvas)
    width = int(rng.integers(6, 19))
    for stroke in strokes:
        points = stroke - 0.5
        waves = np.sin(np.pi * np.c_[points, 2 * points]) @ bend.reshape(4, 2)
        points = (points + waves) @ linear.T + 0.5 + shift
        points = np.clip(points, 0.04, 0.96) * scale
        pen.line([tuple(p) for p in points], fill=255, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            half = width / 2 - 0.5
            pen.ellipse((x - half, y - half, x + half, y + half), fill=255)
    side = int(rng.choice([8, 8, 10, 14, 20, 28, 64]))
    small = canvas.resize((side, side), Image.Resampling.BOX)
    levels = np.asarray(small, np.float32) / 255
    low, high = rng.uniform(0, 0.25), rng.uniform(0.7, 1)
    if rng.random() < 0.2:
        low, high = high, low
    levels = low + (high - low) * np.clip(levels * rng.uniform(1, 1.6), 0, 1)
    gray = Image.fromarray((levels * 255).astype(np.uint8))
    return np.asarray(gray.resize((SIDE, SIDE), BILINEAR).convert("RGB"))
