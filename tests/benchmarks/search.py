"""What a search over layers costs with and without the code cache.

    python -m tests.benchmarks.search ../shared/backbones/squeezenet1.1.onnx \\
        ../shared/data/caltech20/train

Three layers x four values of C x 5 folds with refit. The lower bound is written by
hand: all codes are computed once in one pass a layer set, and GridSearchCV runs on
the matrices. Forward passes are counted where ONNX Runtime is called, in every
process; the self-test of a newly loaded backbone is left out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from joblib.externals.loky import get_reusable_executor
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sk_cnncodes import CNNCodeTransformer, layer_grid
from sk_cnncodes.cache.code_cache import MEMORY
from sk_cnncodes.codes.sessions import SESSIONS
from tests.benchmarks.timing import machine
from tests.forwards import counted_forwards

LAYERS = [-1, -2, -3]
VALUES_OF_C = [0.001, 0.01, 0.1, 1.0]


class CountingTransformer(CNNCodeTransformer):
    """Appends to a file how many images it ran, in whatever process it is."""

    def transform(self, X: Any) -> np.ndarray:
        log = os.environ.get("SK_CNNCODES_FORWARDS")
        if log is None:
            return super().transform(X)
        # The table of sessions is kept: only the count is of this call.
        with counted_forwards(keep_sessions=True) as count:
            codes = super().transform(X)
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {count.images}\n")
        return codes


def model_of(backbone: str, cache: Any, memory: str | None = None) -> Pipeline:
    head = LogisticRegression(max_iter=300)
    codes = CountingTransformer(backbone, cache=cache)
    return Pipeline(
        [("codes", codes), ("scale", StandardScaler()), ("head", head)],
        memory=None if memory is None else joblib.Memory(memory, verbose=0),
    )


def by_hand(backbone: str, paths: list[str], labels: np.ndarray) -> dict[str, Any]:
    """All codes in one pass, then a search on each matrix."""
    first = CNNCodeTransformer(backbone, cache="memory", cache_layers=LAYERS)
    matrices = [first.set_params(layer=layer).transform(paths) for layer in LAYERS]
    scores = []
    for matrix in matrices:
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        grid = {"logisticregression__C": VALUES_OF_C}
        search = GridSearchCV(head, grid, cv=5, refit=False).fit(matrix, labels)
        scores.append(search.cv_results_)
    best = max(range(len(LAYERS)), key=lambda i: scores[i]["mean_test_score"].max())
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.01))
    head.fit(matrices[best], labels)
    return {
        f"split{fold}_test_score": np.concatenate(
            [s[f"split{fold}_test_score"] for s in scores]
        )
        for fold in range(5)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("images", type=Path)
    parser.add_argument("--skip-slow", action="store_true", help="not without a cache")
    args = parser.parse_args()
    files = sorted(args.images.glob("*/*.jpg"))
    paths, labels = [str(f) for f in files], np.array([f.parent.name for f in files])
    print(f"{machine()}; {len(paths)} images of {len(set(labels))} classes\n")
    print("| search | forward passes an image | seconds | times the lower bound |")
    print("| --- | ---: | ---: | ---: |")

    reference: dict[str, Any] = {}
    bound = [0.0]

    def row(name: str, work: Any) -> None:
        MEMORY.clear()
        SESSIONS.clear()
        # New workers, which see the environment of this row.
        get_reusable_executor().shutdown(wait=True)
        with tempfile.NamedTemporaryFile() as log:
            os.environ["SK_CNNCODES_FORWARDS"] = log.name
            with counted_forwards() as count:
                start = time.perf_counter()
                results = work()
                seconds = time.perf_counter() - start
            del os.environ["SK_CNNCODES_FORWARDS"]
            lines = Path(log.name).read_text(encoding="utf-8").splitlines()
        counts = [tuple(map(int, line.split())) for line in lines]
        of_workers = sum(images for pid, images in counts if pid != os.getpid())
        passes = count.images + of_workers
        if not reference:
            reference.update(results)
            bound[0] = seconds
        for fold in range(5):
            key = f"split{fold}_test_score"
            if not np.allclose(results[key], reference[key], atol=1e-12):
                worst = np.abs(results[key] - reference[key]).max()
                print(f"  (scores of fold {fold} differ by up to {worst:.4f})")
        print(
            f"| {name} | {passes / len(paths):.2f} | {seconds:.1f} | "
            f"{seconds / bound[0]:.2f} |",
            flush=True,
        )

    def search(cache: Any, n_jobs: int = 1, together: bool = True, **kw: Any) -> Any:
        model = model_of(args.backbone, cache, **kw)
        layers = layer_grid(LAYERS, "codes") if together else {"codes__layer": LAYERS}
        grid = layers | {"head__C": VALUES_OF_C}
        found = GridSearchCV(model, grid, cv=5, n_jobs=n_jobs).fit(paths, labels)
        return found.cv_results_

    def precomputed(cache: str) -> Any:
        transformer = CNNCodeTransformer(
            args.backbone, cache=cache, cache_layers=LAYERS
        )
        transformer.precompute(paths)
        return search(cache, n_jobs=2)

    # One thread for the heads' linear algebra, as in joblib's workers: small matrices
    # gain nothing from more, and suffer where other processes want the cores.
    threadpool_limits(1)
    row("by hand (the lower bound)", lambda: by_hand(args.backbone, paths, labels))
    with tempfile.TemporaryDirectory() as folder:
        disk = f"{folder}/codes.sqlite3"
        row("memory, cache_layers", lambda: search("memory"))
        row("memory, layer by layer", lambda: search("memory", together=False))
        row("disk cold", lambda: search(disk))
        row("disk warm", lambda: search(disk))
        row("disk warm, n_jobs=2", lambda: search(disk, 2))
        row("disk cold, n_jobs=2", lambda: search(f"{folder}/two.sqlite3", 2))
        row("precompute, n_jobs=2", lambda: precomputed(f"{folder}/three.sqlite3"))
        if not args.skip_slow:
            row("Pipeline(memory=...)", lambda: search(None, memory=f"{folder}/joblib"))
            row("no cache", lambda: search(None))
            row("no cache, n_jobs=2", lambda: search(None, 2))


if __name__ == "__main__":
    main()
