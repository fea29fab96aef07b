"""On a part of Caltech-20, every saved format predicts the same as the pipeline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from sk_cnncodes import (
    SKOPS_TRUSTED_TYPES,
    CNNCodeTransformer,
    OnnxClassifier,
    to_onnx,
)
from sk_cnncodes.export.onnx_classifier import run_images

HEADS: dict[str, list[Any]] = {
    "logistic": [StandardScaler(), LogisticRegression(C=0.01)],
    "linear svm": [StandardScaler(), LinearSVC(C=0.001)],
    "svc": [StandardScaler(), PCA(64, random_state=0), SVC()],
    "neighbours": [Normalizer(), KNeighborsClassifier(5)],
    "neighbours by distance": [
        Normalizer(),
        KNeighborsClassifier(5, weights="distance"),
    ],
    "ridge": [StandardScaler(), RidgeClassifier(alpha=100)],
    "lda": [
        StandardScaler(),
        PCA(64, random_state=0),
        LinearDiscriminantAnalysis(),
    ],
    "mlp": [StandardScaler(), MLPClassifier((64,), random_state=0, tol=0.01)],
    "calibrated": [StandardScaler(), CalibratedClassifierCV(LinearSVC(C=0.001), cv=2)],
    "one-vs-rest": [StandardScaler(), OneVsRestClassifier(LinearSVC(C=0.001))],
    "one-vs-rest logistic": [
        StandardScaler(),
        OneVsRestClassifier(LogisticRegression(C=0.01)),
    ],
    "ridge regressor": [StandardScaler(), Ridge(alpha=100)],
    "neighbours regressor": [Normalizer(), KNeighborsRegressor(5)],
}
PROGRAM = """
import sys
from pathlib import Path
import joblib, numpy as np, skops.io
images = joblib.load(sys.argv[1])
for file in sorted(f for name in sys.argv[2:] for f in Path(name).glob("*.model")):
    if file.parent.name == "skops":
        trusted = skops.io.get_untrusted_types(file=file)
        pipeline = skops.io.load(file, trusted=trusted)
    else:
        pipeline = joblib.load(file)
    np.save(file.with_suffix(".npy"), pipeline.predict(images))
"""


class Saved(NamedTuple):
    """Pipelines by the names of their heads, the test photographs, and the folder."""

    pipelines: dict[str, Pipeline]
    images: list[str]
    folder: Path


@pytest.fixture(scope="module")
def saved(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Every head fitted, saved in every format, and loaded in a new process."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("joblib", "skops", "stored", "backbones"):
        (folder / name).mkdir()
    backbone = folder / "backbones" / "mobilenet_v2.onnx"
    backbone.write_bytes((shared / "backbones" / backbone.name).read_bytes())
    photographs = shared / "data" / "caltech20"
    train, test = (
        [str(p) for p in sorted((photographs / part).glob("*/*.jpg"))[::step]]
        for part, step in (("train", 4), ("test", 8))
    )
    names = [Path(p).parent.name for p in train]
    sizes = [float(len(name)) for name in names]  # targets of the regressors
    pipelines = {}
    for name, head in HEADS.items():
        codes = CNNCodeTransformer(str(backbone))
        pipeline = Pipeline(
            [("codes", codes), *((str(i), step) for i, step in enumerate(head))]
        )
        pipeline.fit(train, sizes if "regressor" in name else names)
        joblib.dump(pipeline, folder / "joblib" / f"{name}.model")
        skops.io.dump(pipeline, folder / "skops" / f"{name}.model")
        codes.set_params(store_backbone=True)
        joblib.dump(pipeline, folder / "stored" / f"{name}.model")
        codes.set_params(store_backbone=False)
        pipelines[name] = pipeline
    joblib.dump(test, folder / "images.joblib")
    for kinds in (("joblib", "skops"), ("stored",)):
        if "stored" in kinds:
            backbone.rename(folder / "moved")
        parts = [folder / "images.joblib", *(folder / kind for kind in kinds)]
        subprocess.run([sys.executable, "-c", PROGRAM, *parts], check=True, timeout=900)
    (folder / "moved").rename(backbone)
    return Saved(pipelines, test, folder)


@pytest.mark.parametrize("kind", ["joblib", "skops", "stored"])
@pytest.mark.parametrize("name", HEADS)
def test_a_fresh_process_predicts_the_same(name: str, kind: str, saved: Saved) -> None:
    predicted = np.load(saved.folder / kind / f"{name}.npy")
    expected = saved.pipelines[name].predict(saved.images)
    if "regressor" in name:
        np.testing.assert_allclose(predicted, expected, atol=1e-3)
    else:
        assert len(predicted) == 50
        np.testing.assert_array_equal(predicted, expected)


@pytest.mark.parametrize("name", HEADS)
def test_saved_pipelines_are_small_and_need_few_trusted_types(
    name: str, saved: Saved
) -> None:
    head = saved.folder / "head.joblib"
    joblib.dump(saved.pipelines[name][1:], head)
    whole = saved.folder / "joblib" / f"{name}.model"
    assert whole.stat().st_size < head.stat().st_size + 10_000
    file = saved.folder / "skops" / f"{name}.model"
    unknown = set(skops.io.get_untrusted_types(file=file)) - set(SKOPS_TRUSTED_TYPES)
    assert not unknown


@pytest.fixture(scope="module")
def prepared(saved: Saved) -> np.ndarray:
    """The test photographs, preprocessed for an ONNX file."""
    from sk_cnncodes import load_backbone
    from sk_cnncodes.images.decode import read_rgb

    backbone = load_backbone(saved.folder / "backbones" / "mobilenet_v2.onnx")
    apply = backbone.preprocessing.apply
    return np.stack([apply(read_rgb(p, i)) for i, p in enumerate(saved.images)])


@pytest.mark.parametrize("name", HEADS)
def test_the_onnx_file_predicts_the_same(
    name: str, saved: Saved, prepared: np.ndarray
) -> None:
    pipeline = saved.pipelines[name]
    path = saved.folder / f"{name}.onnx"
    to_onnx(pipeline, path)
    classifier = OnnxClassifier(path)
    session = classifier._session()
    parts = [run_images(session, prepared[i : i + 16]) for i in range(0, 50, 16)]
    joined = [np.concatenate(output) for output in zip(*parts, strict=True)]
    outputs = dict(zip(classifier.outputs, joined, strict=True))
    expected = pipeline.predict(saved.images)
    if "regressor" in name:
        np.testing.assert_allclose(outputs["values"][:, 0], expected, atol=1e-3)
        return
    assert (outputs["label"] != expected).sum() <= 1
    if hasattr(pipeline, "predict_proba"):
        wanted = pipeline.predict_proba(saved.images)
        np.testing.assert_allclose(outputs["probabilities"], wanted, atol=1e-3)
    else:
        wanted = pipeline.decision_function(saved.images)
        np.testing.assert_allclose(outputs["decision"], wanted, atol=1e-3)
    if name == "logistic":  # also from files to labels
        assert list(classifier.predict(saved.images)) == list(outputs["label"])
