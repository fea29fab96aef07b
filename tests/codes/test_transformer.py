"""CNNCodeTransformer as used from scikit-learn."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_cnncodes import (
    BackboneError,
    CNNCodeTransformer,
    DeviceError,
    LayerError,
    Preprocessing,
    PreprocessingError,
)
from sk_cnncodes.cache.code_cache import resolve_cache
from sk_cnncodes.codes.sessions import SESSIONS
from sk_cnncodes.engines.devices import count_gpus
from tests import networks


@pytest.fixture(scope="module")
def codes(photographs: list[np.ndarray]) -> np.ndarray:
    return CNNCodeTransformer().fit_transform(photographs)


@pytest.fixture
def two_nets(tmp_path: Path, plain: Preprocessing) -> list[str]:
    """Two backbones with preprocessing metadata."""
    paths = []
    for seed, model in enumerate([networks.resnet(), networks.squeezenet()]):
        for key, value in plain.to_metadata().items():
            model.metadata_props.add(key=key, value=value)
        paths.append(networks.save(model, tmp_path / f"net{seed}.onnx"))
    return paths


# -- codes -------------------------------------------------------------------


def test_codes_are_float32_rows(codes: np.ndarray) -> None:
    assert codes.dtype == np.float32
    assert codes.shape == (8, 800)
    assert np.isfinite(codes).all()
    # Different photographs have different codes.
    assert np.linalg.norm(codes[0] - codes[1]) > 0.1 * np.linalg.norm(codes[0])


def test_rows_follow_x(
    codes: np.ndarray, photographs: list[np.ndarray], photograph_files: list[Path]
) -> None:
    order = [3, 0, 7, 7, 1]
    transformer = CNNCodeTransformer(batch_size=2)
    mixed = transformer.transform([photographs[i] for i in order])
    np.testing.assert_allclose(mixed, codes[order], rtol=1e-4, atol=1e-5)
    from_files = transformer.transform(photograph_files)
    similarity = (from_files * codes).sum(1)
    similarity /= np.linalg.norm(from_files, axis=1) * np.linalg.norm(codes, axis=1)
    assert similarity.min() > 0.97  # JPEG changes the pixels a little


@pytest.mark.parametrize("n_jobs", [None, 1, 3, -1])
@pytest.mark.parametrize("batch_size", [1, 3, 100, "auto"])
def test_batches_and_threads_do_not_change_codes(
    n_jobs: int | None,
    batch_size: int | str,
    codes: np.ndarray,
    photographs: list[np.ndarray],
) -> None:
    transformer = CNNCodeTransformer(n_jobs=n_jobs, batch_size=batch_size)
    again = transformer.transform(photographs)
    np.testing.assert_allclose(again, codes, rtol=1e-4, atol=1e-5)


def test_set_params_takes_effect(
    two_nets: list[str], photographs: list[np.ndarray]
) -> None:
    transformer = CNNCodeTransformer(two_nets[0], layer=-1).fit(photographs)
    assert transformer.transform(photographs).shape == (8, 16)
    transformer.set_params(layer=-4)
    assert transformer.transform(photographs).shape == (8, 8)
    transformer.set_params(backbone=two_nets[1], layer=-1)
    changed = transformer.transform(photographs)
    fresh = CNNCodeTransformer(two_nets[1]).fit_transform(photographs)
    np.testing.assert_array_equal(changed, fresh)
    assert len(transformer.fit(photographs).get_feature_names_out()) == 32


def test_the_preprocessing_parameter_as_a_dict(photographs: list[np.ndarray]) -> None:
    record = Preprocessing(crop_size=(116, 116), resize="exact", scale=1 / 255)
    by_record = CNNCodeTransformer(preprocessing=record).transform(photographs)
    by_dict = CNNCodeTransformer(preprocessing=record.to_dict()).transform(photographs)
    np.testing.assert_array_equal(by_record, by_dict)


# -- scikit-learn's conventions ----------------------------------------------


def test_feature_names_and_set_output(
    codes: np.ndarray, photograph_files: list[Path]
) -> None:
    with pytest.raises(NotFittedError):
        CNNCodeTransformer().get_feature_names_out()
    names = CNNCodeTransformer().fit(photograph_files).get_feature_names_out()
    assert names[0] == "cnncodetransformer0"
    assert len(names) == 800
    series = pd.Series([str(p) for p in photograph_files], index=list("abcdefgh"))
    frame = CNNCodeTransformer().set_output(transform="pandas").fit_transform(series)
    assert list(frame.index) == list("abcdefgh")
    assert list(frame.columns) == list(names)
    table = (
        CNNCodeTransformer()
        .set_output(transform="polars")
        .fit_transform(pl.Series(series.to_list()))
    )
    assert isinstance(table, pl.DataFrame)
    np.testing.assert_array_equal(table.to_numpy(), frame.to_numpy())


def test_column_transformer(photograph_files: list[Path]) -> None:
    frame = pd.DataFrame({"path": map(str, photograph_files), "weight": range(8)})
    for selector in ("path", ["path"]):
        union = make_column_transformer(
            (CNNCodeTransformer(), selector), ("passthrough", ["weight"])
        )
        assert union.fit_transform(frame).shape == (8, 801)


def test_html_repr_has_no_link() -> None:
    """There is no documentation page to link to."""
    html = CNNCodeTransformer()._repr_html_()
    assert "CNNCodeTransformer" in html
    assert "href" not in html


def test_copies_give_the_same_codes(
    codes: np.ndarray, photographs: list[np.ndarray]
) -> None:
    fitted = CNNCodeTransformer().fit(photographs)
    fitted.transform(photographs)
    pickled = pickle.dumps(fitted)
    assert len(pickled) < 10_000
    for other in (clone(fitted), copy.deepcopy(fitted), pickle.loads(pickled)):
        again = other.transform(photographs)
        np.testing.assert_allclose(again, codes, rtol=1e-5, atol=1e-6)


def test_one_transformer_in_many_threads(
    codes: np.ndarray, photographs: list[np.ndarray]
) -> None:
    SESSIONS.clear()
    transformer = CNNCodeTransformer()
    results: list[np.ndarray | None] = [None] * 8

    def work(index: int) -> None:
        results[index] = transformer.transform(photographs)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_allclose(result, codes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_parallel_backends(
    backend: str, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    codes = CNNCodeTransformer(cache=tmp_path / "codes.sqlite3")
    model = make_pipeline(codes, StandardScaler(), LogisticRegression(C=0.01))
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    expected = cross_validate(model, photographs, labels, cv=2, return_estimator=True)
    with joblib.parallel_backend(backend, n_jobs=2):
        found = cross_validate(model, photographs, labels, cv=2, return_estimator=True)
    np.testing.assert_array_equal(found["test_score"], expected["test_score"])
    probabilities = [
        [e.predict_proba(photographs) for e in result["estimator"]]
        for result in (found, expected)
    ]
    np.testing.assert_allclose(*probabilities, rtol=1e-3, atol=1e-5)


def test_pipeline_with_memory(tmp_path: Path, photographs: list[np.ndarray]) -> None:
    memory = joblib.Memory(tmp_path, verbose=0)
    model = Pipeline(
        [("codes", CNNCodeTransformer()), ("head", LogisticRegression(C=0.01))],
        memory=memory,
    )
    model.fit(photographs, [0, 0, 0, 0, 1, 1, 1, 1])
    assert list(tmp_path.rglob("output.pkl"))
    assert model.predict(photographs).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_grid_scores_every_backbone_and_layer(
    two_nets: list[str], photographs: list[np.ndarray]
) -> None:
    """Every candidate's fold scores equal those computed by hand."""
    rng = np.random.default_rng(0)
    images = [
        p[30 * i :, 40 * j :] for i in range(3) for j in range(3) for p in photographs
    ]
    images = [image[:60, :70] for image in images]
    labels = rng.integers(0, 2, len(images))
    model = make_pipeline(
        CNNCodeTransformer(), StandardScaler(), LogisticRegression(C=0.1)
    )
    grid = {
        "cnncodetransformer__backbone": two_nets,
        "cnncodetransformer__layer": [-1, -2, -3],
    }
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(images, labels)
    results = search.cv_results_
    seen = set()
    for number, parameters in enumerate(results["params"]):
        codes = CNNCodeTransformer(
            parameters["cnncodetransformer__backbone"],
            layer=parameters["cnncodetransformer__layer"],
        ).transform(images)
        by_hand = cross_validate(
            make_pipeline(StandardScaler(), LogisticRegression(C=0.1)),
            codes,
            labels,
            cv=3,
        )["test_score"]
        scores = [results[f"split{fold}_test_score"][number] for fold in range(3)]
        np.testing.assert_array_equal(scores, by_hand)
        seen.add(tuple(scores))
    assert len(seen) >= 4  # the candidates do differ


# -- errors ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"backbone": "resnet9000"}, BackboneError, "resnet9000.*no known backbone"),
        ({"backbone": 3}, TypeError, "backbone: expected.*got 3"),
        ({"layer": 0}, LayerError, r"layer=0.*Expected -1 \('codes.*-2"),
        ({"layer": -99}, LayerError, "layer=-99.*Expected -1"),
        ({"layer": "fire19"}, LayerError, "layer='fire19'.*'fire9'"),
        (
            {"layer": 1.5},
            TypeError,
            "layer: expected a negative int, a name, or a list",
        ),
        ({"layer": None}, TypeError, "layer: expected"),
        ({"pooling": "sum"}, ValueError, r"pooling: expected one of \['auto'"),
        ({"layer": -2, "pooling": "cls"}, LayerError, "pooling='cls'.*a map of shape"),
        ({"norm": "l1"}, ValueError, r"norm: expected one of \['l2', 'power'"),
        ({"on_error": "skip"}, ValueError, "on_error: expected.*'skip'"),
        ({"max_pixels": 0}, ValueError, "max_pixels: expected None or.*got 0"),
        ({"max_pixels": 1e6}, ValueError, "max_pixels: expected"),
        ({"batch_size": 0}, ValueError, "batch_size: expected 'auto'.*got 0"),
        ({"batch_size": "big"}, ValueError, "batch_size: expected"),
        ({"n_jobs": 0}, ValueError, "n_jobs: expected.*got 0"),
        ({"n_jobs": 1.0}, ValueError, "n_jobs: expected"),
        ({"store_backbone": "no"}, TypeError, "store_backbone: expected.*'no'"),
        ({"device": "gpu"}, ValueError, "device: expected 'auto', 'cpu'.*'gpu'"),
        ({"cache": ""}, ValueError, "cache: expected 'memory', a path or None, got ''"),
        ({"device": 0}, TypeError, "device: expected .auto., .cpu."),
        ({"preprocessing": {"size": 3}}, PreprocessingError, "'size'"),
        ({"preprocessing": 224}, TypeError, "preprocessing: expected"),
        (
            {"preprocessing": {"crop_size": (32, 32), "layout": "NHWC"}},
            PreprocessingError,
            r"\['N', 32, 32, 3\].*'image' has the shape \['N', 3, 116, 116\]",
        ),
    ],
)
def test_wrong_parameters_fail_in_fit(
    parameters: dict[str, Any],
    error: type[Exception],
    message: str,
    photographs: list[np.ndarray],
) -> None:
    transformer = CNNCodeTransformer(**parameters)
    for method in (transformer.fit, transformer.transform):
        with pytest.raises(error, match=message):
            method(photographs)
    assert not hasattr(transformer, "fitted_backbone_")


def test_wrong_x_fails_in_fit() -> None:
    with pytest.raises(ValueError, match="a feature matrix"):
        CNNCodeTransformer().fit(np.zeros((4, 64)))
    with pytest.raises(ValueError, match="0 images"):
        CNNCodeTransformer().fit([])


def test_invalid_backbone_files(
    tmp_path: Path, photographs: list[np.ndarray], plain: Preprocessing
) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    with pytest.raises(BackboneError, match="text.onnx.*not an ONNX file"):
        CNNCodeTransformer(str(text)).fit(photographs)
    with pytest.raises(BackboneError, match="is a folder"):
        CNNCodeTransformer(tmp_path).fit(photographs)
    net = networks.Net()
    model = net.model(net.dense("data", 4, 2), shape=(4,))
    table = networks.save(model, tmp_path / "table.onnx")
    with pytest.raises(BackboneError, match=r"table.onnx.*no image input.*'data' \["):
        CNNCodeTransformer(table, preprocessing=plain).fit(photographs)
    unknown = networks.save(networks.resnet(), tmp_path / "unknown.onnx")
    with pytest.raises(
        PreprocessingError, match=r"unknown.onnx.*not known.*Preprocessing\(crop_size"
    ):
        CNNCodeTransformer(unknown).fit(photographs)


def test_another_file_under_the_same_name_is_refused(
    two_nets: list[str], photographs: list[np.ndarray]
) -> None:
    fitted = CNNCodeTransformer(two_nets[0]).fit(photographs)
    saved = pickle.dumps(fitted)
    Path(two_nets[0]).write_bytes(Path(two_nets[1]).read_bytes())
    with pytest.raises(BackboneError, match=r"net0.onnx.*Expected sha256 \w{64}, got"):
        pickle.loads(saved).transform(photographs)
    refitted = fitted.fit(photographs)
    assert refitted.transform(photographs).shape == (8, 32)


def test_a_bad_image_is_named_and_rows_stay_in_place(
    codes: np.ndarray, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    images: list[Any] = [*photographs[:3], str(bad), *photographs[3:], "gone.jpg"]
    with pytest.raises(ValueError, match="image 3 .*bad.jpg"):
        CNNCodeTransformer().transform(images)
    with pytest.warns(
        UserWarning, match=r"2 of 10 images(.|\n)*bad.jpg(.|\n)*gone"
    ) as w:
        result = CNNCodeTransformer(on_error="nan", batch_size=2).transform(images)
    assert len(w) == 1
    assert np.isnan(result[[3, 9]]).all()
    rest = np.delete(result, [3, 9], axis=0)
    np.testing.assert_allclose(rest, codes, rtol=1e-4, atol=1e-5)


def test_all_images_bad() -> None:
    with pytest.warns(UserWarning, match="1 of 1 images"):
        result = CNNCodeTransformer(on_error="nan").transform(["gone.jpg"])
    assert result.shape == (1, 800)
    assert np.isnan(result).all()


def test_a_missing_gpu_is_an_error(photographs: list[np.ndarray]) -> None:
    if count_gpus():
        with pytest.raises(DeviceError, match="cuda:99.*Expected 'cuda:0'"):
            CNNCodeTransformer(device="cuda:99").fit(photographs)
    else:
        with pytest.raises(DeviceError, match="'cuda'.*no GPU"):
            CNNCodeTransformer(device="cuda").fit(photographs)


def test_codes_are_written_to_a_file(
    codes: np.ndarray, photograph_files: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "codes.npy"
    path.write_text("replaced")
    transformer = CNNCodeTransformer(batch_size=3)
    written = transformer.transform_to(path, photograph_files)
    expected = transformer.transform(photograph_files)
    assert isinstance(written, np.memmap)
    np.testing.assert_array_equal(written, expected)
    np.testing.assert_array_equal(np.load(path), expected)
    assert written.dtype == np.float32


def test_bad_images_in_a_file_of_codes(
    photograph_files: list[Path], tmp_path: Path
) -> None:
    """NaN if requested; otherwise no file, and finished codes stay in the cache."""
    images = [*photograph_files[:5], "gone.jpg", *photograph_files[5:]]
    path, cache = tmp_path / "codes.npy", tmp_path / "cache" / "codes.sqlite3"
    cache.parent.mkdir()
    transformer = CNNCodeTransformer(cache=cache, batch_size=2, n_jobs=1)
    with pytest.raises(ValueError, match="image 5 .*gone.jpg"):
        transformer.transform_to(path, images)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert resolve_cache(cache).info().rows >= 4
    transformer.set_params(on_error="nan")
    with pytest.warns(UserWarning, match="1 of 9 images"):
        written = transformer.transform_to(path, images)
    assert np.isnan(written[5]).all()
    assert np.isfinite(np.delete(written, 5, axis=0)).all()


def test_progress_bar(
    photographs: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    CNNCodeTransformer().transform(photographs)
    assert capsys.readouterr().err == ""
    CNNCodeTransformer(verbose=True).transform(photographs)
    assert "8/8" in capsys.readouterr().err


@pytest.mark.parametrize("cache", [None, "memory"])
def test_max_pixels(photographs: list[np.ndarray], cache: str | None) -> None:
    small, large = photographs[0][:40, :50], photographs[1][:40, :51]
    codes = CNNCodeTransformer(max_pixels=2000, cache=cache, on_error="nan")
    with pytest.warns(UserWarning, match="51 x 40 pixels. .*max_pixels=2000"):
        rows = codes.fit_transform([small, large, small])
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False]
    unlimited = CNNCodeTransformer(max_pixels=None, cache=cache)
    np.testing.assert_allclose(unlimited.transform([small])[0], rows[2], atol=1e-5)
    assert np.isfinite(unlimited.transform([large])).all()
