"""to_onnx of unions, columns, frozen estimators and thresholds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.svm import SVC

from sk_cnncodes import (
    CNNCodeTransformer,
    ExportError,
    OnnxClassifier,
    load_backbone,
    to_onnx,
)

DIGITS = load_digits()
X, Y = DIGITS.images[:120] / 16, DIGITS.target[:120]
CODES = CNNCodeTransformer(norm="l2")
UNION = FeatureUnion(
    [
        ("a", CODES),
        ("b", make_pipeline(CNNCodeTransformer(layer=-2), PCA(8, random_state=0))),
        ("c", FrozenEstimator(CNNCodeTransformer())),
    ],
    transformer_weights={"a": 2},
)


def check(model: Any, path: Path, images: Any = X) -> None:
    given = images if images is X else images["image"]
    to_onnx(model, path)
    classifier = OnnxClassifier(path)
    expected = model.predict(images)
    assert len(np.unique(expected)) > 1
    assert (classifier.predict(given) != expected).sum() <= 1  # of 120
    method = "predict_proba" if hasattr(model, "predict_proba") else "decision_function"
    wanted = getattr(model, method)(images)
    np.testing.assert_allclose(getattr(classifier, method)(given), wanted, atol=2e-3)


def test_unions(tmp_path: Path) -> None:
    nested = FeatureUnion([("u", UNION), ("d", CNNCodeTransformer(layer=-2))])
    model = make_pipeline(nested, LogisticRegression(C=0.1)).fit(X, Y)
    check(model, tmp_path / "m.onnx")
    facts = OnnxClassifier(tmp_path / "m.onnx").metadata["codes"]
    assert [each["norm"] for each in facts] == ["l2", None, None, None]
    # The network is in the file once.
    network = load_backbone("cnncodes-mini").path.stat().st_size
    assert (tmp_path / "m.onnx").stat().st_size < 1.3 * network


def test_backbones_that_crop_differently_are_refused() -> None:
    own = load_backbone("cnncodes-mini").preprocessing
    uncropped = replace(own, resize="exact", resize_size=None)
    other = CNNCodeTransformer(preprocessing=uncropped)
    union = FeatureUnion([("a", CODES), ("b", other)])
    model = make_pipeline(union, LogisticRegression()).fit(X, Y)
    with pytest.raises(ExportError, match="'featureunion__b' resize and crop"):
        to_onnx(model)


def test_two_graphs_in_one_file(tmp_path: Path) -> None:
    """The same network with another normalisation is a second graph."""
    own = load_backbone("cnncodes-mini").preprocessing
    brighter = CNNCodeTransformer(preprocessing=replace(own, scale=own.scale * 1.1))
    union = FeatureUnion([("a", CODES), ("b", brighter)])
    model = make_pipeline(union, LogisticRegression(C=0.1)).fit(X, Y)
    check(model, tmp_path / "m.onnx")


def test_one_column_of_images(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": list(X), "other": list(X)})
    parts = [("a", CODES, "image"), ("b", CNNCodeTransformer(layer=-2), ["image"])]
    columns = ColumnTransformer(parts)
    model = make_pipeline(columns, LogisticRegression(C=0.1)).fit(frame, Y)
    check(model, tmp_path / "m.onnx", frame)
    both = ColumnTransformer([*parts, ("c", CODES, "other")])
    model = make_pipeline(both, LogisticRegression(C=0.1)).fit(frame, Y)
    with pytest.raises(ExportError, match=r"'c' takes.*other.*same single column"):
        to_onnx(model)


def test_other_features_beside_the_codes_are_refused() -> None:
    union = FeatureUnion([("a", CODES), ("b", "drop")])
    union.fit(X)
    union.transformer_list[1] = ("b", PCA(2).fit(X.reshape(120, -1)))
    model = make_pipeline(union, SVC())
    model[-1].fit(np.zeros((120, 802)) + Y[:, None], Y)
    with pytest.raises(ExportError, match="'featureunion__b' is PCA"):
        to_onnx(model)


@pytest.mark.parametrize("head", [LogisticRegression(), SVC()])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"threshold": 0.3},
        {"threshold": -0.2, "response_method": "decision_function"},
        {"threshold": 0.6, "pos_label": "high"},
    ],
)
def test_thresholds(head: Any, parameters: dict[str, Any], tmp_path: Path) -> None:
    y = np.where(Y > 4, "high", "low")
    inside = make_pipeline(CODES, FixedThresholdClassifier(head, **parameters))
    check(inside.fit(X, y), tmp_path / "inside.onnx")
    around = FixedThresholdClassifier(make_pipeline(CODES, head), **parameters)
    check(around.fit(X, y), tmp_path / "around.onnx")


def test_tuned_and_frozen(tmp_path: Path) -> None:
    tuned = TunedThresholdClassifierCV(make_pipeline(CODES, SVC()), cv=2)
    check(tuned.fit(X, Y > 4), tmp_path / "tuned.onnx")
    frozen = FrozenEstimator(make_pipeline(CODES, SVC()).fit(X, Y))
    check(
        FixedThresholdClassifier(FrozenEstimator(tuned)).fit(X, Y > 4), tmp_path / "f"
    )
    check(frozen, tmp_path / "frozen.onnx")
