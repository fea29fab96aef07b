"""How fast and how well codes and classifiers are chosen.

    python -m tests.benchmarks.choose ../shared/data

The backbones are cnncodes-mini and the two in `backbones` beside that folder. Each
function prints rows of one table; a name after the folder runs that one alone. Test
parts are used for nothing but the figures.
"""

from __future__ import annotations

import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import KernelCenterer
from threadpoolctl import threadpool_limits

from sk_cnncodes import (
    HEADS,
    CNNCodeClassifier,
    CNNCodeTransformer,
    RankedCodes,
    code_search,
    rank_codes,
)
from tests.benchmarks import chosen
from tests.benchmarks.accuracy import splits
from tests.benchmarks.timing import machine, peak_memory, seconds

LAYERS = [-1, -2, -3, -4, -5, -6]
Row = tuple[str, str]


@dataclass(frozen=True)
class Data:
    """Where the images, the backbones and a cache of their codes are."""

    folder: Path
    cache: Path

    @property
    def backbones(self) -> list[str]:
        files = sorted((self.folder.parent / "backbones").glob("*.onnx"))
        return ["cnncodes-mini", *map(str, files)]

    def caltech20(self) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
        """Paths and labels of the 600 training and the 400 test images."""
        _, x, y, x_test, y_test = next(splits(self.folder))
        paths, test_paths = ([str(path) for path in each] for each in (x, x_test))
        return paths, np.array(y), test_paths, np.array(y_test)


def accuracy_of(
    row: RankedCodes, data: Data, x: Any, y: Any, x_test: Any, y_test: Any
) -> float:
    """Test accuracy of the ridge classifier of a ranked row."""
    transformer = CNNCodeTransformer(
        row.backbone,
        layer=row.layer,
        norm=row.norm,
        cache=data.cache,
        cache_layers=LAYERS,
    )
    codes, test = (transformer.transform(each).astype(float) for each in (x, x_test))
    classes = np.unique(y)
    targets = np.where(y[:, None] == classes, 1.0, -1.0)
    if row.kernel == "linear":
        decided = Ridge(row.alpha).fit(codes, targets).predict(test)
    else:
        centre = KernelCenterer()
        kernel = centre.fit_transform(rbf_kernel(codes, gamma=row.gamma))
        across = centre.transform(rbf_kernel(test, codes, gamma=row.gamma))
        model = KernelRidge(alpha=row.alpha, kernel="precomputed")
        mean = targets.mean(axis=0)
        decided = model.fit(kernel, targets - mean).predict(across) + mean
    return float((classes[decided.argmax(axis=1)] == y_test).mean())


def ranks(values: Any) -> np.ndarray:
    """Ranks; equal values have the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def ranking(data: Data) -> Iterator[Row]:
    """Time of a ranking on cached codes, and what its scores say of the test part."""
    x, y, x_test, y_test = data.caltech20()

    def rank() -> Any:
        return rank_codes(x, y, data.backbones, LAYERS, cache=data.cache)

    def search() -> Any:
        heads = ("svm", "logistic", "knn")
        found = code_search(
            data.backbones, LAYERS, heads, norms=["l2"], cache=data.cache
        )
        return found.fit(x, y)

    rank()  # computes the codes
    pairs = [(seconds(rank), seconds(search)) for _ in range(3)]
    fast, slow = np.median(pairs, axis=0)
    name = f"{len(data.backbones)} backbones x {len(LAYERS)} layers, 600 images"
    yield f"ranking of {name} x 2 norms, cached codes", f"{fast:.2f} s"
    yield f"code_search over {name} x 3 heads, 5 folds", f"{slow:.2f} s"
    ratio = np.median([slow / fast for fast, slow in pairs])
    yield "how many times faster the ranking is", f"{ratio:.1f}"
    found = rank()
    tested = [accuracy_of(row, data, x, y, x_test, y_test) for row in found.rows]
    scores = [row.score for row in found.rows]
    correlation = np.corrcoef(ranks(scores), ranks(tested))[0, 1]
    yield (
        f"Spearman correlation with the test accuracy, {len(scores)} rows",
        (f"{correlation:.3f}"),
    )
    recommended = found.rows.index(found.recommended)
    yield "test accuracy of the best row", f"{100 * tested[0]:.2f}"
    yield "test accuracy of the recommended row", f"{100 * tested[recommended]:.2f}"
    yield "largest test accuracy of all rows", f"{100 * max(tested):.2f}"


def many(data: Data) -> Iterator[Row]:
    """Memory and time of 100,000 codes of length 1,280, from a file."""
    from sk_cnncodes.ranking.ridge_scores import NormedCodes, best_ridge
    from sk_cnncodes.ranking.scoring import read_targets

    rng = np.random.default_rng(0)
    y = rng.integers(0, 20, 100_000)
    path = data.cache.with_name("many.npy")
    codes = np.lib.format.open_memmap(path, "w+", np.float32, (len(y), 1280))
    centres = rng.normal(size=(20, 1280)).astype(np.float32)
    for start in range(0, len(y), 10_000):
        rows = slice(start, start + 10_000)
        noise = rng.normal(0, 8, (10_000, 1280)).astype(np.float32)
        codes[rows] = centres[y[rows]] + noise
    codes.flush()
    del codes
    mapped = np.load(path, mmap_mode="r")
    targets, scoring = read_targets(y)
    before, start_time = peak_memory(), time.perf_counter()
    found = best_ridge(NormedCodes([mapped], "l2"), targets, scoring)
    took = time.perf_counter() - start_time
    yield "100,000 codes of 1,280 from a file: peak memory", f"{peak_memory():.0f} MB"
    yield "of which before", f"{before:.0f} MB"
    yield "time for 13 alphas", f"{took:.0f} s"
    yield "leave-one-out accuracy", f"{100 * found.score:.2f}"
    path.unlink()


def heads(data: Data) -> Iterator[Row]:
    """Test accuracy of each head by set, layer and norm."""
    caltech20, fashion, cifar = splits(data.folder)
    cases = [
        *[
            (caltech20, name, layer)
            for name in data.backbones
            for layer in (-1, -2, -4)
        ],
        *[
            (each, "cnncodes-mini", layer)
            for each in (fashion, cifar)
            for layer in (-1, -3)
        ],
    ]
    for (name, x, y, x_test, y_test), backbone, layer in cases:
        for norm in ("l2", "power"):
            transformer = CNNCodeTransformer(
                backbone,
                layer=layer,
                norm=norm,
                cache=data.cache,
                cache_layers=LAYERS,
            )
            codes, test = transformer.transform(x), transformer.transform(x_test)
            for key, (_, head) in HEADS.items():
                start = time.perf_counter()
                fitted = clone(head).fit(codes, y)
                took = time.perf_counter() - start
                yield (
                    f"{name}, {Path(backbone).stem}, layer {layer}, {norm}, {key}",
                    f"{100 * fitted.score(test, y_test):.2f} ({took:.2f} s)",
                )


def few_shots(data: Data) -> Iterator[Row]:
    """A few photographs of each of 81 other classes, with MobileNetV2, 5 draws.

    The test images are all others, each class with the same weight. What is chosen is
    the choice of `CNNCodeClassifier` by the few images alone.
    """
    with zipfile.ZipFile(data.folder / "pool_caltech81.zip") as archive:
        names = [
            name
            for name in sorted(archive.namelist())
            if name.endswith(".jpg") and not name.startswith("BACKGROUND")
        ]
        x = [archive.read(name) for name in names]
    y = np.array([name.split("/")[0] for name in names])
    for views in ("center", "flip"):
        transformer = CNNCodeTransformer(
            str(data.folder.parent / "backbones" / "mobilenet_v2.onnx"),
            norm="power",
            views=views,
            cache=data.cache,
        )
        codes = transformer.transform(x)
        for shots in (3, 5, 10, 20):
            found: dict[str, list[float]] = {}
            for seed in range(5):
                rng = np.random.default_rng(seed)
                drawn = [rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y)]
                train = np.concatenate([each[:shots] for each in drawn])
                test = np.setdiff1d(np.arange(len(y)), train)
                for key in ("logistic", "ridge", "lda", "rbf"):
                    head = clone(HEADS[key][1]).fit(codes[train], y[train])
                    score = balanced_accuracy_score(y[test], head.predict(codes[test]))
                    found.setdefault(key, []).append(score)
                model = CNNCodeClassifier([transformer], [-1], cache=data.cache)
                model.fit([x[i] for i in train], y[train])
                predicted = model.predict([x[i] for i in test])
                score = balanced_accuracy_score(y[test], predicted)
                found.setdefault("chosen", []).append(score)
            for key, scores in found.items():
                yield (
                    f"81 classes, {shots} shots, views={views}, {key}",
                    f"{100 * np.mean(scores):.2f}",
                )


MEASUREMENTS: dict[str, Callable[[Data], Iterator[Row]]] = {
    "ranking": ranking,
    "many": many,
    "heads": heads,
    "few_shots": few_shots,
    "estimators": lambda data: chosen.estimators(data.folder, data.cache),
    "bursts": lambda data: chosen.bursts(data.folder, data.cache),
    "sweep": lambda data: chosen.sweep(data.folder, data.cache),
}


def main() -> None:
    names = sys.argv[2:] or list(MEASUREMENTS)
    print(f"{machine()}\n\n| what | measured |\n| --- | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        data = Data(Path(sys.argv[1]).resolve(), Path(folder, "codes.sqlite3"))
        for name in names:
            # One BLAS thread, also for the heads here.
            with threadpool_limits(1, user_api="blas"):
                for what, value in MEASUREMENTS[name](data):
                    print(f"| {what} | {value} |", flush=True)


if __name__ == "__main__":
    main()
