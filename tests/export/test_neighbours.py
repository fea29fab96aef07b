"""to_onnx of nearest neighbours: the labels and probabilities of scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from sk_cnncodes import CNNCodeTransformer, ExportError, OnnxClassifier, to_onnx
from sk_cnncodes.export import neighbours
from sk_cnncodes.export.head_model import build_head

DIGITS = load_digits()
# The first 120 train a model: they have neighbours at distance 0.
X, Y = DIGITS.images[:200] / 16, DIGITS.target[:200]
PREDICTED = X[105:135]
CODES = CNNCodeTransformer()


def check(model: Any, path: Path, X: Any = PREDICTED, images: Any = PREDICTED) -> None:
    to_onnx(model, path)
    classifier = OnnxClassifier(path)
    assert len(np.unique(model.predict(X))) > 1
    np.testing.assert_array_equal(classifier.predict(images), model.predict(X))
    np.testing.assert_allclose(
        classifier.predict_proba(images), model.predict_proba(X), atol=1e-5
    )


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"n_neighbors": 1},
        {"n_neighbors": 110},
        {"metric": "sqeuclidean", "algorithm": "brute"},
        {"metric": "cosine"},
        {"metric": "manhattan"},
        {"metric": "l1"},
        {"metric": "l2"},
        {"p": 1},
        {"p": 3},
    ],
)
def test_metrics(weights: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    head = KNeighborsClassifier(weights=weights, **parameters)
    steps = [StandardScaler(), PCA(16, random_state=0)] if "p" in parameters else []
    model = make_pipeline(CODES, *steps, head).fit(X[:120], Y[:120])
    check(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("algorithm", ["kd_tree", "ball_tree"])
def test_trees(algorithm: str, tmp_path: Path) -> None:
    head = KNeighborsClassifier(weights="distance", algorithm=algorithm)
    model = make_pipeline(CODES, PCA(8, random_state=0), head)
    check(model.fit(X[:120], Y[:120]), tmp_path / "m.onnx")


@pytest.mark.parametrize("n_targets", [None, 1, 3])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_regressors(weights: str, n_targets: int | None, tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(size=(120, n_targets or 1))
    y = y[:, 0] if n_targets is None else y
    head = KNeighborsRegressor(weights=weights)
    model = make_pipeline(CODES, Normalizer(), head).fit(X[:120], y)
    to_onnx(model, tmp_path / "m.onnx")
    values = OnnxClassifier(tmp_path / "m.onnx").predict(PREDICTED)
    assert values.shape == model.predict(PREDICTED).shape
    np.testing.assert_allclose(values, model.predict(PREDICTED), atol=1e-5)


def test_equal_images(tmp_path: Path) -> None:
    """At distance 0, all equal images vote and no others; ties go to the first class.

    By a tree: the distances of scikit-learn's brute force have a rounding error, which
    makes one of equal images nearer than another.
    """
    images = np.concatenate([X[:40], X[:40]])
    labels = np.concatenate([np.arange(40) % 4, np.arange(40) % 4 + 1])
    for count in (2, 4):
        head = KNeighborsClassifier(count, weights="distance", algorithm="ball_tree")
        model = make_pipeline(CODES, head).fit(images, labels)
        check(model, tmp_path / "m.onnx", X[25:55], X[25:55])
        found = OnnxClassifier(tmp_path / "m.onnx").predict_proba(X[:2])
        np.testing.assert_array_equal(found, [[0.5, 0.5, 0, 0, 0], [0, 0.5, 0.5, 0, 0]])
        model = make_pipeline(CODES, KNeighborsClassifier(count)).fit(images, labels)
        check(model, tmp_path / "m.onnx", X[25:55], X[25:55])


def test_inside_of_other_models(tmp_path: Path) -> None:
    head = KNeighborsClassifier(weights="distance")
    path, y = tmp_path / "m.onnx", Y[:120] > 4
    train, frame = (
        pd.DataFrame({"image": list(X[:120])}),
        pd.DataFrame({"image": list(PREDICTED)}),
    )
    both = [("a", CODES, "image"), ("b", CNNCodeTransformer(layer=-2), ["image"])]
    columns = make_pipeline(ColumnTransformer(both), head).fit(train, Y[:120])
    check(columns, path, frame)
    union = FeatureUnion([("a", CODES), ("b", FrozenEstimator(CODES))])
    check(make_pipeline(union, head).fit(X[:120], Y[:120]), path)
    for around in (
        FixedThresholdClassifier(head, threshold=0.3),
        CalibratedClassifierCV(head, cv=2),
        OneVsRestClassifier(head),
        FrozenEstimator(make_pipeline(StandardScaler(), head)),
    ):
        model: Pipeline = make_pipeline(CODES, around)
        if isinstance(around, FrozenEstimator):
            around.estimator.fit(CODES.fit_transform(X[:120]), y)
        check(model.fit(X[:120], y), path)
    outside = FixedThresholdClassifier(make_pipeline(CODES, head), threshold=0.3)
    check(outside.fit(X[:120], y), path)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(head: Any, message: str) -> None:
        with pytest.raises(ExportError, match=message):
            to_onnx(make_pipeline(CODES, head).fit(X[:120], Y[:120]))

    refuse(KNeighborsClassifier(weights=np.square), "expected 'uniform' or 'distance'")
    refuse(KNeighborsClassifier(metric="chebyshev"), "chebyshev")
    weighted = {"w": np.ones(800)}
    refuse(KNeighborsClassifier(metric_params=weighted), "weights w, expected none")
    monkeypatch.setattr(neighbours, "_MAX_BYTES", 1000)
    refuse(KNeighborsClassifier(), r"120 training codes of length 800 take 0\.0 GB")


def test_codes_of_zeros_have_no_direction() -> None:
    rows = np.eye(8, dtype=np.float32)
    rows[0] = 0
    head = KNeighborsClassifier(2, metric="cosine").fit(rows, np.arange(8) % 2)
    with pytest.raises(ExportError, match=r"all zeros.*metric='euclidean'"):
        build_head([("head", head)], rows, 13)
