"""Accuracies of a backbone's codes by layer and head on four data sets.

    python -m tests.benchmarks.accuracy cnncodes-mini ../shared/data

Caltech-20: 600 training and 400 test photographs. Fashion-MNIST: the first 6,000 and
2,000. CIFAR-10: 5,000 training and 2,000 test images, drawn with seed 0. Digits: 5-fold
cross-validation of all 1,797. Parameters of the heads are chosen by cross-validation on
the training part; test parts are scored once.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from sk_cnncodes import CNNCodeTransformer

LAYERS = [-1, -2, -4, -6]
Split = tuple[str, Any, Any, Any, Any]


def heads() -> dict[str, GridSearchCV]:
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    linear = make_pipeline(StandardScaler(), LinearSVC())
    nearest = make_pipeline(Normalizer(), KNeighborsClassifier())
    values = [0.0003, 0.001, 0.003, 0.01, 0.03]
    return {
        "logistic regression": GridSearchCV(
            logistic, {"logisticregression__C": values}, cv=3
        ),
        "linear SVM": GridSearchCV(linear, {"linearsvc__C": values[:4]}, cv=3),
        "k-NN": GridSearchCV(
            nearest, {"kneighborsclassifier__n_neighbors": [1, 5, 9]}, cv=3
        ),
    }


def splits(folder: Path) -> Iterator[Split]:
    """Name, training images and labels, test images and labels."""
    parts = []
    for part in ("train", "test"):
        paths = sorted((folder / "caltech20" / part).glob("*/*.jpg"))
        parts += [paths, [path.parent.name for path in paths]]
    yield "Caltech-20", *parts
    with np.load(folder / "fashion_mnist.npz") as fashion:
        yield (
            "Fashion-MNIST",
            fashion["x_train"][:6000],
            fashion["y_train"][:6000],
            fashion["x_test"][:2000],
            fashion["y_test"][:2000],
        )
    rng, parts = np.random.default_rng(0), []
    with zipfile.ZipFile(folder / "pool_cifar10.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        for part, count in (("train/", 5000), ("test/", 2000)):
            chosen = [n for n in names if n.startswith(part)]
            chosen = [str(n) for n in rng.choice(chosen, count, replace=False)]
            parts += [
                [archive.read(n) for n in chosen],
                [n.split("/")[1] for n in chosen],
            ]
    yield "CIFAR-10", *parts


def codes_of(backbone: str, layer: int, images: Any) -> np.ndarray:
    return CNNCodeTransformer(backbone, layer=layer, cache_layers=LAYERS).transform(
        images
    )


def main() -> None:
    backbone, folder = sys.argv[1], Path(sys.argv[2])
    threadpool_limits(1)
    print(f"| data | layer | {' | '.join(heads())} |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, x_train, y_train, x_test, y_test in splits(folder):
        for layer in LAYERS:
            train, test = (codes_of(backbone, layer, x) for x in (x_train, x_test))
            scores = [
                head.fit(train, y_train).score(test, y_test)
                for head in heads().values()
            ]
            cells = " | ".join(f"{100 * score:.1f}" for score in scores)
            print(f"| {name} | {layer} | {cells} |", flush=True)
    digits = load_digits()
    for layer in LAYERS:
        codes = codes_of(backbone, layer, digits.images / 16)
        scores = [
            cross_val_score(head, codes, digits.target, cv=5).mean()
            for head in heads().values()
        ]
        cells = " | ".join(f"{100 * score:.1f}" for score in scores)
        print(f"| Digits, 5-fold | {layer} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
