"""to_onnx: every head predicts as in scikit-learn, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC

from sk_cnncodes import (
    CNNCodeTransformer,
    CodeCache,
    ExportError,
    OnnxClassifier,
    ShrinkageLDA,
    load_backbone,
    to_onnx,
)
from sk_cnncodes.backbones.norms import signed_roots
from sk_cnncodes.export.conversion import SignedRoots, run_model
from sk_cnncodes.export.head_graph import INPUT, HeadGraph

CACHE = CodeCache()
# Images to predict: 15 that `exported` trains with, and 15 new ones.
PREDICTED = slice(105, 135)
# Unit length lets every solver converge quickly.
CODES = CNNCodeTransformer(norm="l2", cache=CACHE)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return found.images[:200] / 16, found.target[:200]


def exported(head: Any, X: Any, y: Any, path: Path) -> tuple[Any, OnnxClassifier]:
    steps = head.steps if isinstance(head, Pipeline) else [("head", head)]
    pipeline = Pipeline([("codes", CODES), *steps]).fit(X[:120], y[:120])
    to_onnx(pipeline, path)
    return pipeline, OnnxClassifier(path)


HEADS: dict[str, Any] = {
    "logistic": make_pipeline(StandardScaler(), LogisticRegression(C=0.01)),
    "pca": make_pipeline(PCA(8, whiten=True, random_state=0), LogisticRegression()),
    "min max": make_pipeline(MinMaxScaler(clip=True), LogisticRegression()),
    "max abs": make_pipeline(MaxAbsScaler(), "passthrough", LinearSVC()),
    "neighbours": make_pipeline(Normalizer(), KNeighborsClassifier(5)),
    "cosine": KNeighborsClassifier(5, metric="cosine"),
    "svc": SVC(),
    "ridge": RidgeClassifier(),
    "lda": make_pipeline(PCA(8, random_state=0), LinearDiscriminantAnalysis()),
    "shrinkage lda": ShrinkageLDA(),
    "mlp": MLPClassifier((16,), max_iter=60, random_state=0, tol=0.01),
    "sgd": SGDClassifier(random_state=0),
    "sgd log": SGDClassifier(loss="log_loss", random_state=0),
    "naive Bayes": make_pipeline(PCA(8, random_state=0), GaussianNB()),
    "one-vs-rest svm": OneVsRestClassifier(LinearSVC()),
    "one-vs-rest svc": OneVsRestClassifier(SVC()),
    "one-vs-rest ridge": OneVsRestClassifier(RidgeClassifier()),
    "one-vs-rest logistic": OneVsRestClassifier(LogisticRegression()),
    "one-vs-rest pipelines": OneVsRestClassifier(
        make_pipeline(PCA(6, random_state=0), SVC())
    ),
    "sigmoid": CalibratedClassifierCV(LinearSVC(), cv=2),
    "sigmoid svc": CalibratedClassifierCV(SVC(), cv=2, ensemble=False),
    "isotonic": CalibratedClassifierCV(LinearSVC(), cv=2, method="isotonic"),
    "isotonic neighbours": CalibratedClassifierCV(
        KNeighborsClassifier(), cv=2, method="isotonic"
    ),
}
if tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8):
    bayes = make_pipeline(PCA(8, random_state=0), GaussianNB())
    HEADS |= {
        "temperature": CalibratedClassifierCV(LinearSVC(), cv=2, method="temperature"),
        "temperature Bayes": CalibratedClassifierCV(bayes, cv=2, method="temperature"),
    }


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("name", HEADS)
def test_heads(
    name: str, n_classes: int, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    X, y = digits
    y = y if n_classes == 10 else (y > 4).astype(int)
    pipeline, classifier = exported(HEADS[name], X, y, tmp_path / "m.onnx")
    X = X[PREDICTED]
    expected, labels = pipeline.predict(X), classifier.predict(X)
    assert labels.dtype == expected.dtype
    assert (labels != expected).sum() <= 1  # of 30
    method = "decision_function"
    if hasattr(pipeline, "predict_proba"):
        method = "predict_proba"
    wanted, got = (getattr(m, method)(X) for m in (pipeline, classifier))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-3 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("head", [LogisticRegression(), SVC(), SGDClassifier()])
@pytest.mark.parametrize("kind", ["text", "objects", "negative", "bool", "float"])
def test_classes(
    kind: str, head: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    X, y = digits
    y = {
        "text": np.array(["ä b", "c", "ddd"])[y % 3],
        "objects": np.array(["a", "b", "c"], object)[y % 3],
        "negative": (y % 3).astype(np.int16) - 5,
        "bool": y > 4,
        "float": (y % 3) * 0.5,
    }[kind]
    if kind == "float":  # scikit-learn accepts only whole numbers
        y = y * 2
    pipeline, classifier = exported(head, X, y, tmp_path / "m.onnx")
    X = X[PREDICTED]
    assert classifier.classes_.tolist() == pipeline.classes_.tolist()
    labels = classifier.predict(X)
    assert (
        labels.dtype.kind
        == np.asarray(pipeline.classes_)
        .astype("U" if kind == "objects" else pipeline.classes_.dtype)
        .dtype.kind
    )
    assert (labels != pipeline.predict(X)).sum() <= 1


def test_searches_and_nested_pipelines(
    digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    X, y = digits
    inner = GridSearchCV(SVC(), {"C": [1, 10]}, cv=2)
    steps = [("codes", CODES), ("rest", make_pipeline(StandardScaler(), inner))]
    search = GridSearchCV(Pipeline(steps), {"codes__layer": [-1, -2]}, cv=2)
    search.fit(X, y)
    model = to_onnx(search, tmp_path / "m.onnx")
    classifier = OnnxClassifier(tmp_path / "m.onnx")
    X = X[PREDICTED]
    assert (classifier.predict(X) != search.predict(X)).sum() <= 1
    names = [name for name, _ in classifier.metadata["steps"]]
    assert names == ["codes", "rest__standardscaler", "rest__gridsearchcv"]
    (value,) = model.graph.input
    assert value.name == "images"
    assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_metadata(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    pipeline = make_pipeline(CODES, LogisticRegression()).fit(X, y % 3)
    model = to_onnx(pipeline)
    onnx.checker.check_model(model, full_check=True)
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(found["sk_cnncodes.classes"]) == [0, 1, 2]
    preprocessing = load_backbone("cnncodes-mini").preprocessing
    assert found | preprocessing.to_metadata() == found
    facts = json.loads(found["sk_cnncodes.model"])
    assert facts["backbone"] == "cnncodes-mini"
    assert facts["norm"] == "l2"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [PCA(4), NearestCentroid()],
            r"'nearestcentroid' \(NearestCentroid\).*skl2onnx",
        ),
        ([FunctionTransformer(np.abs), SVC()], r"'functiontransformer' \(Function"),
        ([StandardScaler()], r"'standardscaler' .*neither a classifier nor"),
        ([PCA(4), CNNCodeTransformer(), SVC()], r"'pca' .*Expected a CNNCode"),
        ([CNNCodeTransformer()], r"'cnncodetransformer' .*classifier or regressor"),
    ],
)
def test_a_step_that_cannot_be_converted_is_named(
    steps: list[Any],
    message: str,
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    X, y = digits
    if not any(isinstance(s, CNNCodeTransformer) for s in steps):
        pipeline = make_pipeline(CODES, *steps).fit(X, y)
    elif len(steps) == 1:
        pipeline = make_pipeline(*steps).fit(X, y)
    else:
        pipeline = make_pipeline(*steps)
        pipeline[0].fit(X.reshape(200, -1))
        pipeline[-1].fit(X.reshape(200, -1), y)
    with pytest.raises(ExportError, match=message):
        to_onnx(pipeline, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_wrongly_converted_step_is_named(
    digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """skl2onnx 1.20 converts some classifiers wrongly."""
    from sk_cnncodes.export import conversion

    X, y = digits
    pipeline = make_pipeline(CODES, StandardScaler(), SVC()).fit(X, y)
    original = conversion.converted
    other = StandardScaler().fit(np.random.default_rng(0).normal(size=(9, 800)))
    monkeypatch.setattr(
        conversion,
        "converted",
        lambda step, *rest: original(
            other if isinstance(step, StandardScaler) else step, *rest
        ),
    )
    with pytest.raises(ExportError, match=r"'standardscaler'.*give different values"):
        to_onnx(pipeline)


@pytest.mark.parametrize(
    ("parameter", "value"), [("views", "flip"), ("precision", "float16")]
)
def test_views_and_precisions_are_refused(
    parameter: str, value: str, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    X, y = digits
    codes = CNNCodeTransformer(norm="l2", cache=CACHE)
    pipeline = make_pipeline(codes, SVC()).fit(X, y)
    codes.set_params(**{parameter: value})
    with pytest.raises(
        ExportError, match=f"{parameter}='{value}'.*Expected {parameter}"
    ):
        to_onnx(pipeline)


def test_other_models(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    with pytest.raises(NotFittedError):
        to_onnx(make_pipeline(CNNCodeTransformer(), SVC()))
    with pytest.raises(ExportError, match="got SVC.*Expected a fitted Pipeline"):
        to_onnx(SVC().fit(X.reshape(200, -1), y))
    several = make_pipeline(CODES, KNeighborsClassifier()).fit(X, np.c_[y, y])
    with pytest.raises(ExportError, match="several labels"):
        to_onnx(several)


def test_skl2onnx_is_an_extra(
    digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = digits
    pipeline = make_pipeline(CODES, SVC()).fit(X, y)
    monkeypatch.setitem(__import__("sys").modules, "skl2onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'sk-cnncodes\[export\]'"):
        to_onnx(pipeline)


def test_a_stored_backbone_is_exported(
    digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    import pickle

    X, y = digits
    backbone = tmp_path / "net.onnx"
    backbone.write_bytes(load_backbone("cnncodes-mini").path.read_bytes())
    codes = CNNCodeTransformer(backbone, norm="l2", store_backbone=True)
    pipeline = make_pipeline(codes, SVC()).fit(X, y)
    loaded = pickle.loads(pickle.dumps(pipeline))
    backbone.unlink()
    to_onnx(loaded, tmp_path / "m.onnx")
    assert list(OnnxClassifier(tmp_path / "m.onnx").predict(X[:20])) == list(
        loaded.predict(X[:20])
    )


@pytest.mark.parametrize("norm", ["l2", "power", None])
def test_norms(
    norm: str | None, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    X, y = digits
    codes = CNNCodeTransformer(layer=-3, norm=norm, cache=CACHE)
    pipeline = make_pipeline(codes, SVC()).fit(X, y)
    to_onnx(pipeline, tmp_path / "model.onnx")
    loaded = OnnxClassifier(tmp_path / "model.onnx")
    assert loaded.metadata["norm"] == norm
    X = X[PREDICTED]
    np.testing.assert_allclose(
        loaded.decision_function(X), pipeline.decision_function(X), atol=2e-3
    )


@pytest.mark.parametrize("opset", [7, 13])
def test_signed_roots_of_negative_values(opset: int) -> None:
    rows = np.array([[4, -9, 0, -1e-12]], np.float32)
    graph = HeadGraph(opset)
    roots = SignedRoots().add(graph, INPUT, rows)
    model = graph.finish(4, {"values": (roots, onnx.TensorProto.FLOAT, ["N", 4])})
    np.testing.assert_array_equal(run_model(model, rows)[0], signed_roots(rows))
