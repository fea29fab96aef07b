"""load_model: every format of saved pipelines, and damaged or wrong files."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn
import skops.io
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from sk_cnncodes import (
    SKOPS_TRUSTED_TYPES,
    CNNCodeTransformer,
    CodeCache,
    DeviceError,
    ModelCard,
    OnnxClassifier,
    SavedModelError,
    load_backbone,
    load_model,
    save_model,
    to_onnx,
)


@pytest.fixture(scope="module")
def pipeline(photographs: list[np.ndarray]) -> Pipeline:
    labels = ["china"] * 4 + ["flower"] * 4
    steps = (CNNCodeTransformer(), StandardScaler(), PCA(4), SVC())
    return make_pipeline(*steps).fit(photographs, labels)


@pytest.mark.parametrize("suffix", ["joblib", "joblib.gz", "pickle", "skops", "onnx"])
def test_every_format(
    suffix: str, pipeline: Pipeline, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "skops":
        skops.io.dump(pipeline, path)
    elif suffix == "onnx":
        to_onnx(pipeline, path)
    elif suffix == "pickle":
        path.write_bytes(pickle.dumps(pipeline))
    else:
        joblib.dump(pipeline, path)
    loaded = load_model(path)
    assert isinstance(loaded, OnnxClassifier if suffix == "onnx" else Pipeline)
    assert list(loaded.predict(photographs)) == list(pipeline.predict(photographs))


@pytest.mark.parametrize("suffix", ["joblib", "joblib.gz", "pickle", "skops", "onnx"])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.98])
def test_truncated_files(
    suffix: str, share: float, pipeline: Pipeline, tmp_path: Path
) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "skops":
        skops.io.dump(pipeline, path)
    elif suffix == "onnx":
        to_onnx(pipeline, path)
    else:
        joblib.dump(pipeline, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"model\.{suffix}.*(truncated|whole file)"):
        load_model(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(SavedModelError, match=r"gone\.joblib.*no such file"):
        load_model(tmp_path / "gone.joblib")
    text = tmp_path / "text.joblib"
    text.write_text("hello")
    with pytest.raises(SavedModelError, match=r"text\.joblib.*cannot be loaded"):
        load_model(text)


def test_one_warning_of_another_scikit_learn(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr("sklearn.base.__version__", "1.7.1")
        joblib.dump(pipeline, tmp_path / "old.joblib")
    with pytest.warns(UserWarning) as caught:
        load_model(tmp_path / "old.joblib")
    (warning,) = caught
    assert str(warning.message).startswith(
        f"model {str(tmp_path / 'old.joblib')!r}: scikit-learn 1.7.1 saved it, and "
        f"{sklearn.__version__} is installed"
    )
    assert warning.filename == __file__


def test_a_missing_package_is_named_with_the_model(tmp_path: Path) -> None:
    path = tmp_path / "boosted.joblib"
    path.write_bytes(b"\x80\4cno_such_boost.sklearn\nClassifier\n.")
    with pytest.raises(
        ImportError, match=r"boosted\.joblib.*pip install no_such_boost$"
    ):
        load_model(path)


def test_a_model_of_other_versions_tells_them(tmp_path: Path) -> None:
    card = ModelCard(
        "classification", "net", "0" * 64, None, (-1,), "l2", "ridge", ("a", "b"), 9,
        "accuracy", 0.9, 5, (), 9, 0, {"scikit-learn": "1.12"}, "2030-01-01T00:00:00Z",
    )  # fmt: skip
    path = save_model({}, tmp_path / "new.joblib", card=card)
    content = path.read_bytes()
    path.write_bytes(b"\x80\4csklearn.svm\nFuture\n." + content[content.index(b".") :])
    with pytest.raises(
        SavedModelError, match=r"saved with scikit-learn 1\.12\).*Future"
    ):
        load_model(path)


def test_errors_of_the_transformer_are_not_wrapped(tmp_path: Path) -> None:
    fitted = CNNCodeTransformer().fit(np.zeros((1, 8, 8, 3)))
    digest = fitted.fitted_backbone_["sha256"].encode()
    path = tmp_path / "edited.pickle"
    path.write_bytes(pickle.dumps(fitted).replace(digest, b"0" * 64))
    with pytest.raises(SavedModelError, match="was changed after it was saved"):
        load_model(path)


def caches(folder: Path) -> list[Any]:
    return ["memory", None, str(folder / "a"), CodeCache(), CodeCache(folder / "b")]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("store", [False, True])
def test_skops_with_every_parameter(
    number: int, store: bool, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    cache = caches(tmp_path)[number]
    preprocessing = load_backbone("cnncodes-mini").preprocessing
    given = [None, preprocessing, preprocessing.to_dict()][number % 3]
    codes = CNNCodeTransformer(
        cache=cache, preprocessing=given, cache_layers=[-1, -2], store_backbone=store
    )
    expected = codes.fit_transform(photographs)
    path = tmp_path / "codes.skops"
    skops.io.dump(codes, path)
    assert set(skops.io.get_untrusted_types(file=path)) <= set(SKOPS_TRUSTED_TYPES)
    loaded = load_model(path)
    np.testing.assert_allclose(
        loaded.transform(photographs), expected, rtol=1e-5, atol=1e-6
    )
    assert repr(loaded.cache) == repr(cache)
    assert loaded.preprocessing == given


def test_skops_refuses_untrusted_types(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    risky = make_pipeline(CNNCodeTransformer(), FunctionTransformer(np.save))
    path = tmp_path / "risky.skops"
    skops.io.dump(risky, path)
    with pytest.raises(SavedModelError, match=r"not trusted: numpy\S*save\. If"):
        load_model(path)


def test_an_edited_skops_file_is_refused(tmp_path: Path) -> None:
    fitted = CNNCodeTransformer().fit(np.zeros((1, 8, 8, 3)))
    path, edited = tmp_path / "a.skops", tmp_path / "b.skops"
    skops.io.dump(fitted, path)
    digest = fitted.fitted_backbone_["sha256"].encode()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(edited, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            assert name != "schema.json" or digest in content
            new.writestr(name, content.replace(digest, b"0" * 64))
    with pytest.raises(SavedModelError, match="was changed after it was saved"):
        load_model(edited)


def test_skops_with_a_calibration(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    codes = CNNCodeTransformer(precision="int8", cache=None)
    try:
        expected = codes.fit_transform(photographs)
    except DeviceError as error:
        pytest.skip(f"this machine does not compute in int8: {error}")
    skops.io.dump(codes, tmp_path / "codes.skops")
    loaded = load_model(tmp_path / "codes.skops")
    np.testing.assert_allclose(loaded.transform(photographs), expected, atol=1e-5)
