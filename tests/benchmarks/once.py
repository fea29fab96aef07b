"""How often an image runs through the network in what scikit-learn does with it.

    python -m tests.benchmarks.once

Prints p, the images run per different image, counted in the session in every process,
with a cold cache; and p for a cache that is too small. The network is a small one with
random weights, the images are 48 random ones. Rows of dask and ray are left out where
they are not installed (`pip install dask distributed ray`).
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from sklearn.ensemble import BaggingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    validation_curve,
)
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils import resample

from sk_cnncodes import CNNCodeTransformer, CodeCache, Preprocessing
from sk_cnncodes.cache.code_cache import MEMORY
from sk_cnncodes.codes.sessions import SESSIONS
from tests import networks
from tests.forwards import counted_forwards

N_IMAGES = 48
LAYERS = [-1, -2, -3]
# The file of counts, and the process whose images `passes` counts itself.
LOG, COUNTED = "SK_CNNCODES_FORWARDS", "SK_CNNCODES_COUNTED"
# Largest p: workers may rarely compute an image at the same time.
ONE, ONE_OF_WORKERS = 1.0, 1.1


class CountingTransformer(CNNCodeTransformer):
    """Appends to a file how many images it ran, in whatever process it is."""

    def transform(self, X: Any) -> np.ndarray:
        if os.environ[COUNTED] == str(os.getpid()):
            return super().transform(X)
        # The table of sessions is kept: only the count is of this call.
        with counted_forwards(keep_sessions=True) as count:
            codes = super().transform(X)
        with open(os.environ[LOG], "a", encoding="utf-8") as file:
            file.write(f"{count.images}\n")
        return codes


def passes(work: Callable[[], Any], n_different: int) -> float:
    """Images that run, per different image."""
    MEMORY.clear()
    SESSIONS.clear()
    get_reusable_executor().shutdown(wait=True)  # new workers see the environment
    with tempfile.NamedTemporaryFile() as log:
        os.environ.update({LOG: log.name, COUNTED: str(os.getpid())})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with counted_forwards() as count:
                work()
        lines = Path(log.name).read_text(encoding="utf-8").split()
    return (count.images + sum(map(int, lines))) / n_different


@contextmanager
def dask_workers() -> Iterator[None]:
    """Two processes of dask, as joblib's workers."""
    from dask.distributed import Client

    with (
        Client(n_workers=2, threads_per_worker=1, dashboard_address=None),
        parallel_config(backend="dask"),
    ):
        yield


@contextmanager
def ray_workers() -> Iterator[None]:
    """Two processes of ray, as joblib's workers."""
    import ray
    from ray.util.joblib import register_ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_ray()
    try:
        with parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()


def rows(net: str, folder: Path) -> list[tuple[str, float, float]]:
    """What is tried, p, and the largest p that is right."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N_IMAGES, 40, 40, 3), np.uint8)
    labels = np.arange(N_IMAGES) % 2

    def model(cache: Any = "memory", **parameters: Any) -> Pipeline:
        # With a batch size, so that none is measured on images that are not counted.
        codes = CountingTransformer(net, cache=cache, batch_size=16, **parameters)
        return Pipeline([("codes", codes), ("head", RidgeClassifier())])

    def grid(model: Any, n_jobs: int | None = None, cv: int = 3, **values: Any) -> Any:
        found = {name.replace("codes_", "codes__"): v for name, v in values.items()}
        search = GridSearchCV(model, found, cv=cv, n_jobs=n_jobs, error_score="raise")
        return search.fit(images, labels)

    def union(**values: list[Any]) -> FeatureUnion:
        ((name, choices),) = values.items()
        return FeatureUnion(
            [
                (f"c{i}", CountingTransformer(net, **{name: v}))
                for i, v in enumerate(choices)
            ]
        )

    poolings, norms = ["avg", "max", "gem"], ["l2", None]
    halving = {"codes__layer": LAYERS, "head__alpha": [1.0, 10.0]}
    repeated = np.tile(images, (10, 1, 1, 1))
    drawn = resample(np.arange(N_IMAGES), random_state=0)
    n_drawn = len(set(drawn))
    many = resample(np.arange(N_IMAGES), n_samples=10 * N_IMAGES, random_state=0)
    found: list[tuple[str, float, float]] = []

    def row(
        name: str, work: Callable[[], Any], most: float = ONE, n: int = N_IMAGES
    ) -> None:
        found.append((name, passes(work, n), most))
        print(f"| {name} | {found[-1][1]:.2f} | {most:.2f} |", flush=True)

    for order in (LAYERS, LAYERS[::-1]):
        row(
            f"grid over layer={order}",
            lambda order=order: grid(model(), codes_layer=order),
        )
    row(
        "HalvingGridSearchCV over 3 layers",
        lambda: HalvingGridSearchCV(
            model(), halving, cv=2, random_state=0, min_resources=24
        ).fit(images, labels),
    )
    row(
        "RandomizedSearchCV over 3 layers",
        lambda: RandomizedSearchCV(
            model(), halving, n_iter=6, cv=3, random_state=0
        ).fit(images, labels),
    )
    row(
        "validation_curve over 3 layers",
        lambda: validation_curve(
            model(), images, labels, param_name="codes__layer", param_range=LAYERS, cv=3
        ),
    )
    row(
        "grid over 3 poolings x 2 norms",
        lambda: grid(model(layer=-2), codes_pooling=poolings, codes_norm=norms),
    )
    row("FeatureUnion of 3 layers", lambda: union(layer=LAYERS).fit_transform(images))
    row(
        "FeatureUnion of 3 layers, the first one first",
        lambda: union(layer=LAYERS[::-1]).fit_transform(images),
    )
    row("FeatureUnion of 2 norms", lambda: union(norm=norms).fit_transform(images))
    row(
        "FeatureUnion of 3 poolings",
        lambda: FeatureUnion(
            [(p, CountingTransformer(net, layer=-2, pooling=p)) for p in poolings]
        ).fit_transform(images),
    )
    row("every image ten times", lambda: model().fit(repeated, np.tile(labels, 10)))
    row("bootstrap", lambda: model()[0].fit_transform(images[drawn]), n=n_drawn)
    row("ten times as many, drawn", lambda: model()[0].fit_transform(images[many]))
    paths = [str(folder / f"{number}.png") for number in range(N_IMAGES)]
    for pixels, path in zip(images, paths, strict=True):
        Image.fromarray(pixels).save(path)
    row(
        "BaggingClassifier of 5 models, on a column of paths",
        lambda: BaggingClassifier(model(), 5, random_state=0).fit(
            np.array(paths, object)[:, None], labels
        ),
    )
    values = {"head__alpha": [1.0, 10.0, 100.0]}
    backends: dict[str, tuple[str, Callable[[], Any]]] = {
        "loky": ("joblib", lambda: parallel_config(backend="loky")),
        "multiprocessing": (
            "joblib",
            lambda: parallel_config(backend="multiprocessing"),
        ),
        "threading": ("joblib", lambda: parallel_config(backend="threading")),
        "dask": ("distributed", dask_workers),
        "ray": ("ray", ray_workers),
    }
    for backend, (package, workers) in backends.items():

        def in_parallel(cache: Any, workers: Callable[[], Any] = workers) -> None:
            with workers():
                grid(model(cache), n_jobs=2, cv=5, **values)

        path = folder / f"{backend}.sqlite3"
        for cache, name in (("memory", "'memory'"), (path, "PATH")):
            name = f"n_jobs=2, {backend}, cache={name}"
            if find_spec(package) is None:
                print(f"| {name} | not installed | {ONE_OF_WORKERS:.2f} |")
                continue
            row(name, lambda cache=cache: in_parallel(cache), ONE_OF_WORKERS)
    row(
        "grid over 3 layers, n_jobs=2, cache='memory'",
        lambda: grid(model(), n_jobs=2, codes_layer=LAYERS),
        ONE_OF_WORKERS,
    )
    whole = CodeCache()
    grid(model(whole), cv=5, **values)
    for share in (0.95, 0.8, 0.5):
        # Fits and scores of 15 candidates need each image once, and so does the refit.
        most = 1 + 16 * (1 - share) + 0.25
        size = int(share * whole.info().bytes)
        small = CodeCache(max_bytes=size)
        row(
            f"cache in memory of {share:.0%} of 5 folds x 3 alphas",
            lambda small=small: grid(model(small), cv=5, **values),
            most,
        )
    flat = model(pooling="flatten", layer=-3)
    limit, MEMORY.max_bytes = MEMORY.max_bytes, 100_000
    MEMORY._store = None
    row(
        "pooling='flatten', 3 layers, larger than the memory cache",
        lambda: grid(flat, codes_layer=LAYERS),
    )
    MEMORY.max_bytes, MEMORY._store = limit, None
    return found


def small_network(folder: Path) -> str:
    """Write a network with random weights, and its preprocessing; return its path."""
    plain = Preprocessing(crop_size=(32, 32), resize="shorter", resize_size=36)
    net = networks.resnet()
    for key, value in plain.to_metadata().items():
        net.metadata_props.add(key=key, value=value)
    return str(networks.save(net, folder / "net.onnx"))


def main() -> int:
    print("| tried, with a cold cache | p | at most |\n| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        found = rows(small_network(Path(name)), Path(name))
    wrong = [name for name, p, most in found if p > most + 1e-9]
    if wrong:
        print(f"\nMore than expected: {wrong}")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
