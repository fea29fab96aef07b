"""to_onnx of kernel ridge and of the other heads for codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from sk_cnncodes import (
    HEADS,
    CNNCodeTransformer,
    ExportError,
    KernelRidgeClassifierCV,
    KernelRidgeCV,
    OnnxClassifier,
    load_model,
    save_model,
    to_onnx,
)
from sk_cnncodes.export.conversion import run_model
from sk_cnncodes.export.head_model import build_head
from sk_cnncodes.heads.presets import REGRESSORS

DIGITS = load_digits()
X, Y = DIGITS.images[:200] / 16, DIGITS.target[:200]
PREDICTED = X[135:165]
CODES = CNNCodeTransformer(norm="power")


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str, classes: int, tmp_path: Path) -> None:
    y = Y if classes == 10 else np.where(Y > 4, "large", "small")
    model = make_pipeline(CODES, clone(HEADS[name][1])).fit(X[:150], y[:150])
    to_onnx(model, tmp_path / "m.onnx")
    loaded = OnnxClassifier(tmp_path / "m.onnx")
    np.testing.assert_array_equal(loaded.predict(PREDICTED), model.predict(PREDICTED))
    method = next(
        method
        for method in ("predict_proba", "decision_function")
        if hasattr(loaded, method)
    )
    np.testing.assert_allclose(
        getattr(loaded, method)(PREDICTED),
        getattr(model, method)(PREDICTED),
        atol=1e-4,
    )


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(name: str, tmp_path: Path) -> None:
    model = make_pipeline(CODES, clone(REGRESSORS[name][1])).fit(X, Y.astype(float))
    to_onnx(model, tmp_path / "m.onnx")
    found = OnnxClassifier(tmp_path / "m.onnx").predict(PREDICTED)
    np.testing.assert_allclose(found.ravel(), model.predict(PREDICTED), atol=1e-3)


def test_several_targets(tmp_path: Path) -> None:
    model = make_pipeline(CODES, KernelRidgeCV()).fit(X, np.c_[Y, Y**2])
    to_onnx(model, tmp_path / "m.onnx")
    found = OnnxClassifier(tmp_path / "m.onnx").predict(PREDICTED)
    np.testing.assert_allclose(found, model.predict(PREDICTED), atol=1e-3)


@pytest.mark.parametrize(
    "around",
    [
        lambda head: OneVsRestClassifier(head),
        lambda head: CalibratedClassifierCV(head, cv=2, ensemble=False),
        lambda head: CalibratedClassifierCV(
            head, cv=2, ensemble=False, method="temperature"
        ),
    ],
)
def test_inside_of_others(around: Any, tmp_path: Path) -> None:
    head = around(KernelRidgeClassifierCV())
    if getattr(head, "method", "") == "temperature" and (
        tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8)
    ):
        pytest.skip("temperature needs scikit-learn 1.8")
    model = make_pipeline(CODES, head).fit(X[:150], Y[:150])
    to_onnx(model, tmp_path / "m.onnx")
    loaded = OnnxClassifier(tmp_path / "m.onnx")
    np.testing.assert_array_equal(loaded.predict(PREDICTED), model.predict(PREDICTED))
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(
            loaded.predict_proba(PREDICTED), model.predict_proba(PREDICTED), atol=1e-5
        )


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("distance", [0.0, 30.0])
def test_weak_regularisation_and_codes_far_from_zero(
    opset: int, distance: float
) -> None:
    """Large weights cancel: float32 would lose three digits."""
    rng = np.random.default_rng(0)
    codes = (rng.normal(size=(300, 20)) * 0.05 + distance).astype(np.float32)
    y = (codes[:, :3] > distance) @ [1, 2, 4]
    head = KernelRidgeClassifierCV([0.1], [1e-6]).fit(codes, y)
    assert np.abs(head.dual_coef_).max() > 100
    model = build_head([("head", head)], codes, opset)
    wanted = head.decision_function(codes)
    np.testing.assert_allclose(run_model(model, codes)[1], wanted, atol=1e-5)


def test_labels_are_refused() -> None:
    labels = np.stack([Y % 2, Y % 3 == 0], axis=1).astype(int)
    model = make_pipeline(CODES, KernelRidgeClassifierCV()).fit(X, labels)
    with pytest.raises(ExportError, match="several labels"):
        to_onnx(model)


@pytest.mark.parametrize("suffix", ["joblib", "skops"])
@pytest.mark.parametrize("head", [KernelRidgeClassifierCV(), KernelRidgeCV()])
def test_saved_files(suffix: str, head: Any, tmp_path: Path) -> None:
    model = make_pipeline(CODES, clone(head)).fit(X[:100], Y[:100])
    path = save_model(model, tmp_path / f"model.{suffix}")
    np.testing.assert_array_equal(load_model(path).predict(X), model.predict(X))


@pytest.mark.parametrize("name", ["lda", "ridge", "rbf"])
def test_photographs(name: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "caltech20"
    train, test = (
        [str(path) for path in sorted((folder / part).glob("*/*.jpg"))[::4]]
        for part in ("train", "test")
    )
    backbone = shared / "backbones" / "squeezenet1.1.onnx"
    codes = CNNCodeTransformer(str(backbone), layer=-2, norm="power")
    model = make_pipeline(codes, clone(HEADS[name][1]))
    model.fit(train, [Path(path).parent.name for path in train])
    to_onnx(model, tmp_path / "m.onnx")
    loaded = OnnxClassifier(tmp_path / "m.onnx")
    np.testing.assert_array_equal(loaded.predict(test), model.predict(test))
    if name != "lda":
        np.testing.assert_allclose(
            loaded.decision_function(test), model.decision_function(test), atol=1e-4
        )
