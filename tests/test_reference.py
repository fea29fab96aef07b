"""Codes and accuracies equal those of an independent script on real photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from sk_cnncodes import CNNCodeTransformer, CodeCache

LAYERS = {
    "squeezenet1.1": [
        "squeezenet0_concat3",
        "squeezenet0_concat5",
        "squeezenet0_concat7",
        "squeezenet0_pool3_fwd",
    ],
    "mobilenet_v2": ["conv4_6_sum", "conv6_2_sum", "pool6"],
}
HEADS = {
    "logreg": make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=999)),
    "linsvc": make_pipeline(StandardScaler(), LinearSVC(C=0.001)),
    "knn5": make_pipeline(Normalizer(), KNeighborsClassifier(5)),
}


@pytest.fixture(scope="module")
def cache() -> CodeCache:
    """Keeps the codes of all layers of one pass."""
    return CodeCache()


@pytest.mark.parametrize(
    ("network", "layer"), [(n, layer) for n in LAYERS for layer in LAYERS[n]]
)
def test_codes_and_accuracies(
    network: str, layer: str, shared: Path, cache: CodeCache
) -> None:
    order = (shared / "reference" / "caltech20_order.txt").read_text().split()
    paths = [shared / "data" / "caltech20" / name for name in order]
    labels = np.array([path.parent.name for path in paths])
    train = np.array([name.startswith("train") for name in order])
    codes = CNNCodeTransformer(
        shared / "backbones" / f"{network}.onnx",
        layer=layer,
        cache=cache,
        cache_layers=LAYERS[network],
    ).fit_transform(paths)

    with np.load(shared / "reference" / f"caltech20_{network}.npz") as reference:
        expected = reference[layer].astype(np.float64)
    cosine = (codes * expected).sum(1)
    cosine /= np.linalg.norm(codes, axis=1) * np.linalg.norm(expected, axis=1)
    assert np.median(cosine) >= 0.9999
    assert cosine.min() >= 0.999

    lines = (shared / "reference" / "accuracy.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    (row,) = [
        r
        for r in rows
        if (r["data"], r["net"], r.get("layer")) == ("caltech20", network, layer)
    ]
    for name, head in HEADS.items():
        score = head.fit(codes[train], labels[train]).score(
            codes[~train], labels[~train]
        )
        assert abs(100 * score - row[name]) <= 1.5, name
