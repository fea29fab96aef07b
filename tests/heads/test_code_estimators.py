"""CNNCodeClassifier and CNNCodeRegressor: what they choose, serve and keep."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.metaestimators import available_if

from sk_cnncodes import (
    CNNCodeClassifier,
    CNNCodeRegressor,
    CNNCodeTransformer,
    CodeCache,
    ImageError,
    OnnxClassifier,
    load_model,
    save_model,
    to_onnx,
)
from sk_cnncodes.heads.code_estimators import _has_probabilities
from sk_cnncodes.heads.head_comparison import make_splits
from sk_cnncodes.ranking.scoring import read_targets
from tests.forwards import counted_forwards
from tests.rows import TakesRows
from tests.versions import HAS_TEMPERATURE

DIGITS = load_digits()
IMAGES = DIGITS.images / 16
FEW: dict[str, Any] = {"layers": [-1, -3], "heads": ["lda", "ridge"], "n_codes": 2}


@pytest.fixture(scope="module")
def cache() -> CodeCache:
    return CodeCache()


@pytest.fixture(scope="module")
def model(cache: CodeCache) -> CNNCodeClassifier:
    return CNNCodeClassifier(**FEW, cache=cache).fit(IMAGES[:240], DIGITS.target[:240])


def test_it_predicts_images_that_it_did_not_see(model: CNNCodeClassifier) -> None:
    X, y = IMAGES[240:400], DIGITS.target[240:400]
    assert model.score(X, y) > 0.9
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    predicted = model.classes_[probabilities.argmax(axis=1)]
    np.testing.assert_array_equal(predicted, model.predict(X))
    # Calibrated: the mean probability is near the accuracy.
    assert abs(probabilities.max(axis=1).mean() - model.score(X, y)) < 0.1


def test_what_it_compared_is_kept(model: CNNCodeClassifier) -> None:
    results = model.cv_results_
    assert len(results["params"]) == 2 * len(model.ranking_.rows[:2]) or (
        len(results["params"]) == 6  # the recommended codes were not among the best
    )
    best = int(np.argmax(results["mean_test_score"]))
    assert best == model.best_index_
    assert results["rank_test_score"][best] == 1
    assert model.best_params_ == results["params"][best]
    folds = [results[f"split{k}_test_score"][best] for k in range(5)]
    np.testing.assert_allclose(np.mean(folds), model.best_score_, atol=0.01)
    codes = model.pipeline_["codes"]
    assert isinstance(model.pipeline_, Pipeline)
    assert codes.layer == model.best_params_["layer"]
    assert codes.norm == model.best_params_["norm"]


def test_out_of_fold_predictions_have_the_score(model: CNNCodeClassifier) -> None:
    y = DIGITS.target[:240]
    out_of_fold = model.cv_predictions_
    assert out_of_fold.shape == (240, 10)
    predicted = model.classes_[out_of_fold.argmax(axis=1)]
    assert accuracy_score(y, predicted) == pytest.approx(model.best_score_)


def test_each_image_is_embedded_once(
    photograph_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [str(path) for path in photograph_files]
    y = [0, 0, 0, 0, 1, 1, 1, 1]
    for cache in (CodeCache(), None):
        with counted_forwards() as count:
            CNNCodeClassifier(layers=[-1, -2], heads="ridge", cv=2, cache=cache).fit(
                images, y
            )
        assert count.images == 8


def test_it_can_be_cross_validated_and_cloned(cache: CodeCache) -> None:
    estimator = CNNCodeClassifier(**FEW, cv=3, cache=cache)
    scores = cross_val_score(estimator, list(IMAGES[:120]), DIGITS.target[:120], cv=2)
    assert (scores > 0.7).all()
    assert clone(estimator).get_params()["n_codes"] == 2


@pytest.mark.parametrize("format", ["pickle", "joblib", "save_model"])
def test_it_is_saved(model: CNNCodeClassifier, tmp_path: Path, format: str) -> None:
    path = tmp_path / "model.joblib"
    if format == "pickle":
        loaded = pickle.loads(pickle.dumps(model))
    elif format == "joblib":
        joblib.dump(model, path)
        loaded = joblib.load(path)
    else:
        save_model(model, path)
        loaded = load_model(path)
    X = IMAGES[300:340]
    np.testing.assert_allclose(
        loaded.predict_proba(X), model.predict_proba(X), atol=1e-6
    )
    assert loaded.best_params_ == model.best_params_


def test_it_is_exported(
    model: CNNCodeClassifier, tmp_path: Path, photographs: list[np.ndarray]
) -> None:
    pytest.importorskip("skl2onnx")
    path = tmp_path / "model.onnx"
    to_onnx(model, path)
    served = OnnxClassifier(path)
    np.testing.assert_array_equal(
        served.predict(photographs), model.predict(photographs)
    )
    np.testing.assert_allclose(
        served.predict_proba(photographs), model.predict_proba(photographs), atol=1e-3
    )


def test_refit_fits_the_chosen_combination_to_other_images(cache: CodeCache) -> None:
    model = CNNCodeClassifier(**FEW, cache=cache)
    model.fit(IMAGES[:150], DIGITS.target[:150])
    best, ranking, scores = model.best_params_, model.ranking_, model.cv_results_
    assert model.refit(IMAGES[:240], DIGITS.target[:240]) is model
    assert model.best_params_ is best
    assert model.ranking_ is ranking
    assert model.cv_results_ is scores
    codes = model.pipeline_["codes"]
    assert (codes.layer, codes.norm) == (best["layer"], best["norm"])
    twin = CNNCodeClassifier(
        layers=[best["layer"]], norms=best["norm"], heads=best["head"], cache=cache
    ).fit(IMAGES[:240], DIGITS.target[:240])
    found, expected = (m.predict_proba(IMAGES[240:300]) for m in (model, twin))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    with pytest.raises(ValueError, match="expected the classes of fit"):
        model.refit(IMAGES[:20], DIGITS.target[:20] % 5)


def test_refit_of_a_regressor(cache: CodeCache) -> None:
    y = IMAGES.mean(axis=(1, 2))
    model = CNNCodeRegressor(layers=[-3], heads="ridge", cache=cache)
    model.fit(IMAGES[:60], y[:60])
    few = model.score(IMAGES[300:400], y[300:400])
    model.refit(IMAGES[:200], y[:200])
    assert model.score(IMAGES[300:400], y[300:400]) > few


def test_labels_of_other_types(cache: CodeCache) -> None:
    names = np.array(["null", "eins", "zwei"])
    few = DIGITS.target < 3
    X, y = IMAGES[few][:90], names[DIGITS.target[few][:90]]
    model = CNNCodeClassifier(**FEW, cache=cache).fit(X, list(y))
    assert set(model.predict(X)) == set(names)
    two = y != "zwei"
    binary = CNNCodeClassifier(**FEW, cache=cache).fit(X[two], y[two])
    assert binary.predict_proba(X[two]).shape == (two.sum(), 2)
    assert binary.score(X[two], y[two]) > 0.95


def test_groups_are_kept_together(cache: CodeCache) -> None:
    """With copies of each image, only groups give the score of new images."""
    X = np.repeat(IMAGES[:60], 4, axis=0)  # with labels that they do not show
    y, groups = np.repeat(np.arange(60) // 7 % 2, 4), np.repeat(np.arange(60), 4)
    few = FEW | {"cv": 3, "cache": cache}
    without = CNNCodeClassifier(**few).fit(X, y)
    model = CNNCodeClassifier(**few).fit(X, y, groups=groups)
    assert without.best_score_ > 0.9
    assert model.best_score_ < 0.75
    assert model.ranking_.n_groups == 60
    own = CNNCodeClassifier(**few | {"cv": GroupKFold(3)}).fit(X, y, groups=groups)
    assert own.best_score_ < 0.75


def test_a_class_of_one_image_is_trained_and_not_tested(cache: CodeCache) -> None:
    X, y = IMAGES[:101], DIGITS.target[:101].astype(object)
    y[-1] = "alone"
    y = y.astype(str)
    model = CNNCodeClassifier(**FEW, cache=cache).fit(X, y)
    assert "split4_test_score" in model.cv_results_
    assert model.predict_proba(X).shape == (101, 11)
    assert np.isnan(model.cv_predictions_[-1]).all()
    assert np.isfinite(model.cv_predictions_[:-1]).all()


def test_a_class_of_one_group_is_trained_and_not_tested() -> None:
    y = np.repeat(["a", "b", "c"], [20, 20, 4])
    groups = np.r_[np.arange(40) % 8, [8] * 4]
    targets, _ = read_targets(y)
    for train, _ in make_splits(4, targets, y, groups, 0):
        assert {*range(40, 44)} <= {*train}


def test_a_class_that_is_not_tested_does_not_count(cache: CodeCache) -> None:
    y = DIGITS.target[:101].astype(str).astype(object)
    y[-1] = "alone"
    for scoring in ("balanced_accuracy", "f1_macro"):
        model = CNNCodeClassifier(**FEW, cache=cache, scoring=scoring)
        model.fit(IMAGES[:101], y.astype(str))
        assert 0.8 < model.best_score_ <= 1
        assert np.isfinite(model.cv_results_["mean_test_score"]).all()


def test_class_weights(cache: CodeCache) -> None:
    """A class with few images is found more often."""
    rare = np.flatnonzero(DIGITS.target == 8)[:6]
    rows = np.r_[np.flatnonzero(DIGITS.target[:400] == 1), rare]
    X, y = IMAGES[rows], DIGITS.target[rows]
    new = np.flatnonzero(DIGITS.target[400:] == 8) + 400
    recalls = {}
    few = {"layers": [-1], "norms": "l2", "cv": 3, "cache": cache}
    for head in ("lda", "rbf", "ridge", "logistic"):
        for weight in (None, "balanced"):
            model = CNNCodeClassifier(**few, heads=head, class_weight=weight).fit(X, y)
            model.refit(X, y)
            values = model.pipeline_.predict(IMAGES[new])
            recalls[head, weight] = (values == 8).mean()
        assert recalls[head, "balanced"] >= recalls[head, None]
    weighted, plain = (
        sum(recall for (_, weight), recall in recalls.items() if weight == wanted)
        for wanted in ("balanced", None)
    )
    assert weighted > plain
    found, others = (
        CNNCodeClassifier(**few, heads="ridge", class_weight=weight)
        .fit(X, y)
        .ranking_.predictions(0)
        for weight in ("balanced", None)
    )
    assert np.abs(found - others).max() > 1e-6
    with pytest.raises(ValueError, match="head 'knn' has no class weights"):
        CNNCodeClassifier(**few, heads="knn", class_weight="balanced").fit(X, y)


def test_several_labels(cache: CodeCache) -> None:
    y = np.column_stack([DIGITS.target % 2, DIGITS.target > 4]).astype(int)
    model = CNNCodeClassifier(layers=[-1, -3], heads="ridge", cache=cache).fit(
        IMAGES[:240], y[:240]
    )
    assert model.predict(IMAGES[240:300]).shape == (60, 2)
    assert (model.predict(IMAGES[240:300]) == y[240:300]).mean() > 0.85
    assert not hasattr(model, "predict_proba")
    with pytest.raises(ValueError, match=r"heads: expected 'auto' or some of .*lda"):
        CNNCodeClassifier(heads="lda", cache=cache).fit(IMAGES[:30], y[:30])


def test_regression(cache: CodeCache) -> None:
    y = IMAGES.mean(axis=(1, 2))
    model = CNNCodeRegressor(layers=[-1, -3], heads="ridge", cache=cache)
    model.fit(IMAGES[:240], y[:240])
    assert model.score(IMAGES[240:300], y[240:300]) > 0.7
    assert model.cv_predictions_.shape == (240,)
    assert model.ranking_.scoring == "r2"
    both = np.column_stack([y, -y])
    model.fit(IMAGES[:60], both[:60])
    assert model.predict(IMAGES[:5]).shape == (5, 2)
    with pytest.raises(ValueError, match="use CNNCodeRegressor"):
        CNNCodeClassifier(cache=cache).fit(IMAGES[:20], y[:20])


def test_parameters_of_a_transformer_are_kept(cache: CodeCache) -> None:
    given = CNNCodeTransformer("cnncodes-mini", views="flip")
    model = CNNCodeClassifier([given], **FEW, cache=cache)
    model.fit(IMAGES[:60], DIGITS.target[:60])
    assert model.pipeline_["codes"].views == "flip"
    assert given.norm is None


def test_layers_side_by_side(cache: CodeCache) -> None:
    """Lists of equal length are kept as lists in the results."""
    model = CNNCodeClassifier(layers=[[-1, -3], [-1, -2]], heads="lda", cache=cache)
    model.fit(IMAGES[:120], DIGITS.target[:120])
    tried = list(model.cv_results_["param_layer"])
    assert all(layer in ([-1, -3], [-1, -2]) for layer in tried)
    assert model.pipeline_["codes"].layer == model.best_params_["layer"]
    assert model.score(IMAGES[120:200], DIGITS.target[120:200]) > 0.8


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"heads": "forest"}, r"heads: expected 'auto' or some of .*got \['forest'\]"),
        ({"heads": []}, "heads: expected 'auto'"),
        (
            {"backbones": ["cnncodes-mini", CNNCodeTransformer(views="flip")]},
            "backbones: expected different ones, got",
        ),
        ({"n_codes": 0}, "n_codes: expected at least 1, got 0"),
        ({"cv": 1}, "cv: expected at least 2 folds, got 1"),
        ({"scoring": "r2"}, r"scoring: expected one of \['accuracy'"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CNNCodeClassifier(**parameters).fit(IMAGES[:30], DIGITS.target[:30])


def test_bad_images_are_named() -> None:
    with pytest.raises(ImageError, match="image 1"):
        CNNCodeClassifier().fit([IMAGES[0], b"no image", IMAGES[2]], [0, 1, 0])


def test_folds_are_stratified_and_as_many_as_the_smallest_class_allows() -> None:
    y = np.repeat(["a", "b", "c"], [20, 3, 9])
    targets, _ = read_targets(y)
    splits = make_splits(5, targets, y, None, 0)
    assert len(splits) == 3
    for train, test in splits:
        assert set(y[test]) == {"a", "b", "c"}
        assert not set(train) & set(test)


class RowsClassifier(TakesRows, CNNCodeClassifier):
    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        return super().predict_proba(self._images(X, reset=False))


class RowsRegressor(TakesRows, CNNCodeRegressor):
    pass


@parametrize_with_checks(
    [
        RowsClassifier(layers=[-1], heads="ridge", norms="l2", cv=2),
        RowsRegressor(layers=[-1], heads="ridge", norms="l2", cv=2),
    ]
)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    if check.func.__name__ == "check_class_weight_classifiers" and not HAS_TEMPERATURE:
        pytest.skip("a sigmoid undoes class weights")
    check(estimator)
