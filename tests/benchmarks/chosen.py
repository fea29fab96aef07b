"""What `CNNCodeClassifier` chooses, beside an exhaustive sweep; part of `choose`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_score

from sk_cnncodes import HEADS, CNNCodeClassifier, CNNCodeTransformer
from sk_cnncodes.heads.presets import HEAD_GRIDS
from tests.benchmarks.accuracy import splits

Row = tuple[str, str]
Case = tuple[str, Any, np.ndarray, Any, np.ndarray]


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error in ten bins (arXiv:1706.04599)."""
    sure = probabilities.max(axis=1)
    bins = np.minimum((sure * 10).astype(int), 9)
    gaps = np.bincount(bins, right - sure, minlength=10)
    return float(np.abs(gaps).sum() / len(sure))


def estimators(folder: Path, cache: Path) -> Iterator[Row]:
    """Test accuracy and calibration of the classifier with its defaults."""
    both = [str(path) for path in sorted((folder.parent / "backbones").glob("*.onnx"))]
    for name, x, y, x_test, y_test in splits(folder):
        choices = [["cnncodes-mini"], both] if name == "Caltech-20" else [None]
        for backbones in choices:
            backbones = backbones or ["cnncodes-mini"]
            start = time.perf_counter()
            model = CNNCodeClassifier(backbones, cache=cache).fit(x, y)
            took = time.perf_counter() - start
            probabilities = model.predict_proba(x_test)
            predicted = model.classes_[probabilities.argmax(axis=1)]
            right = (predicted == np.asarray(y_test)).astype(float)
            error = calibration_error(probabilities, right)
            yield (
                f"CNNCodeClassifier, {name}, {len(backbones)} backbone(s): test "
                "accuracy; ECE; seconds to fit, codes included",
                f"{100 * right.mean():.2f}; {error:.3f}; {took:.0f}",
            )
    digits = load_digits()
    shuffled = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(
        CNNCodeClassifier(cache=cache),
        list(digits.images / 16),
        digits.target,
        cv=shuffled,
    )
    yield "CNNCodeClassifier, digits, 5 shuffled folds", f"{100 * scores.mean():.2f}"


def bursts(folder: Path, cache: Path) -> Iterator[Row]:
    """The score that is reported with and without groups, and that on new groups.

    Eight crops of each of 200 photographs, ten of each class; tested on eight crops of
    each test photograph.
    """
    _, paths, names, test_paths, test_names = next(splits(folder))
    chosen = [i for i in range(len(paths)) if i % 30 < 10]
    x, y, groups = crops([paths[i] for i in chosen], [names[i] for i in chosen])
    x_test, y_test, _ = crops(test_paths, test_names)
    for with_groups in (True, False):
        model = CNNCodeClassifier(cache=cache)
        model.fit(x, y, groups=groups if with_groups else None)
        yield (
            f"bursts, {'groups given' if with_groups else 'no groups'}: reported; on "
            "new groups",
            f"{100 * model.best_score_:.2f}; {100 * model.score(x_test, y_test):.2f}",
        )


def crops(paths: list[Any], labels: list[str]) -> tuple[list[Any], Any, Any]:
    """Eight random crops of each image, of 80 to 95% of its sides."""
    rng = np.random.default_rng(0)
    found = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        for _ in range(8):
            width, height = (int(side * rng.uniform(0.8, 0.95)) for side in image.size)
            left = rng.integers(image.width - width + 1)
            top = rng.integers(image.height - height + 1)
            box = (left, top, left + width, top + height)
            found.append(np.asarray(image.crop(box)))
    return found, np.repeat(labels, 8), np.repeat(np.arange(len(paths)), 8)


def sweep(folder: Path, cache: Path) -> Iterator[Row]:
    """The classifier beside all layers x norms x heads x regularisations, 5 folds."""
    near, quick, count = 0, 0, 0
    for name, x, y, x_test, y_test in cases(folder):
        start = time.perf_counter()
        model = CNNCodeClassifier(cache=cache).fit(x, y)
        took = time.perf_counter() - start
        accuracy = model.score(x_test, y_test)
        start = time.perf_counter()
        best, tested = exhaustive(x, y, x_test, y_test, cache)
        whole = time.perf_counter() - start
        count += 1
        near += model.best_score_ >= best - 0.005
        quick += took <= whole / 5
        yield (
            f"{name}: 5-fold score chosen, of the sweep; test; seconds",
            f"{100 * model.best_score_:.2f}, {100 * best:.2f}; {100 * accuracy:.2f}, "
            f"{100 * tested:.2f}; {took:.0f}, {whole:.0f}",
        )
    yield (
        "sets within 0.5 points of the sweep; in a fifth of its time",
        (f"{near} of {count}; {quick} of {count}"),
    )


def exhaustive(
    x: Any, y: np.ndarray, x_test: Any, y_test: np.ndarray, cache: Path
) -> tuple[float, float]:
    """The best 5-fold score of all combinations, and its test accuracy."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    best, chosen = 0.0, None
    for layer, norm in itertools.product(range(-1, -11, -1), ("l2", "power")):
        codes = CNNCodeTransformer(layer=layer, norm=norm, cache=cache)
        matrix = codes.fit_transform(x)
        for key, (_, head) in HEADS.items():
            grid = HEAD_GRIDS.get(key, {"": (None,)})
            ((parameter, values),) = grid.items()
            for value in values:
                model = clone(head)
                if parameter:
                    model.set_params(**{parameter: value})
                score = cross_val_score(model, matrix, y, cv=folds).mean()
                if score > best:
                    best, chosen = score, (codes, clone(model).fit(matrix, y))
    assert chosen is not None
    return best, chosen[1].score(chosen[0].transform(x_test), y_test)


def cases(folder: Path) -> Iterator[Case]:
    """Ten sets: classes, shots, sizes, blurred, gray; and three other kinds."""
    caltech20, fashion, cifar = splits(folder)
    _, x, y, x_test, y_test = caltech20
    y, y_test = np.array(y), np.array(y_test)
    names = sorted(set(y))

    def part(classes: list[str], shots: int) -> tuple[list[int], list[int]]:
        train = [i for i in range(len(x)) if y[i] in classes and i % 30 < shots]
        return train, [i for i in range(len(x_test)) if y_test[i] in classes]

    for title, classes, shots in (
        ("20 classes, 15 shots", names, 15),
        ("20 classes, 8 shots", names, 8),
        ("first 10 classes, 20 shots", names[:10], 20),
        ("last 10 classes, 20 shots", names[10:], 20),
    ):
        train, test = part(classes, shots)
        yield (
            title,
            [x[i] for i in train],
            y[train],
            [x_test[i] for i in test],
            y_test[test],
        )
    changes = {
        "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(4)),
        "gray": lambda image: image.convert("L"),
        "48 pixels": lambda image: image.resize((48, 48)),
    }
    train, test = part(names, 15)
    for title, change in changes.items():
        made = [
            [np.asarray(change(Image.open(path).convert("RGB"))) for path in paths]
            for paths in ([x[i] for i in train], x_test)
        ]
        yield f"20 classes, 15 shots, {title}", made[0], y[train], made[1], y_test
    for title, (_, x, y, x_test, y_test) in (("Fashion", fashion), ("CIFAR", cifar)):
        yield title, x[:400], np.array(y[:400]), x_test[:1000], np.array(y_test[:1000])
    digits = load_digits()
    images = list(digits.images / 16)
    yield "digits", images[:400], digits.target[:400], images[400:], digits.target[400:]
