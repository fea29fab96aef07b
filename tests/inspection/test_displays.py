"""Displays: what they hold, and that they draw, also into given axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from sk_cnncodes import (
    CNNCodeClassifier,
    CNNCodeRegressor,
    CNNCodeTransformer,
    CodesMapDisplay,
    FineTunedClassifier,
    FineTuningDisplay,
    LayerHeadDisplay,
    LayerRankingDisplay,
    MistakesDisplay,
    NeighboursDisplay,
    ReliabilityDisplay,
    code_search,
    report,
)
from sk_cnncodes.inspection import codes_map
from sk_cnncodes.inspection.codes_map import project
from sk_cnncodes.inspection.evaluation import most_similar
from sk_cnncodes.inspection.plots import check_matplotlib

DIGITS = load_digits()
X, Y = DIGITS.images[:160] / 16, DIGITS.target[:160]
N_TRAIN = 100


@pytest.fixture(scope="module")
def model() -> CNNCodeClassifier:
    found = CNNCodeClassifier(
        layers=[-1, -3], heads=["lda", "ridge"], norms="l2", n_codes=2, cv=3
    )
    return found.fit(X[:N_TRAIN], Y[:N_TRAIN])


@pytest.fixture(autouse=True)
def figures() -> Iterator[Any]:
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def drawn(display: Any, pyplot: Any) -> None:
    """A display plots into a figure of its own, and into axes that are given."""
    pyplot.close("all")
    assert display.plot() is display
    display.figure_.canvas.draw()
    assert len(pyplot.get_fignums()) == 1
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 5))
    display.plot(right)
    assert display.figure_ is figure
    assert not left.has_data()
    figure.canvas.draw()
    if hasattr(display, "ax_"):
        assert display.ax_ is right


# -- layers ----------------------------------------------------------------------


def test_layer_ranking(model: CNNCodeClassifier, figures: Any) -> None:
    display = LayerRankingDisplay.from_estimator(model)
    assert display.ranking is model.ranking_
    drawn(display, figures)
    assert "accuracy, in %" in display.ax_.get_ylabel()
    with pytest.raises(TypeError, match="expected a CodeRanking of rank_codes, got"):
        LayerRankingDisplay.from_estimator(LinearSVC())


def test_layers_and_heads(model: CNNCodeClassifier, figures: Any) -> None:
    display = LayerHeadDisplay.from_search(model)
    assert {*display.codes} == {
        "cnncodes-mini, layer -1, l2",
        "cnncodes-mini, layer -3, l2",
    }
    assert display.heads == ["lda", "ridge"]
    results = model.cv_results_
    for parameters, mean, *folds in zip(
        results["params"],
        results["mean_test_score"],
        *(results[f"split{fold}_test_score"] for fold in range(3)),
        strict=True,
    ):
        row = display.codes.index(f"cnncodes-mini, layer {parameters['layer']}, l2")
        column = display.heads.index(parameters["head"])
        assert display.means[row, column] == mean
        assert display.lows[row, column] == min(folds)
        assert display.highs[row, column] == max(folds)
    drawn(display, figures)


def test_searches_of_scikit_learn(figures: Any) -> None:
    pipeline = make_pipeline(CNNCodeTransformer(norm="l2"), LinearSVC())
    grid = {"cnncodetransformer__layer": [-1, -3], "linearsvc__C": [0.001, 10]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X[:60], Y[:60])
    display = LayerHeadDisplay.from_search(search)
    assert display.codes == ["layer -1", "layer -3"]
    assert display.means.shape == (2, 1)
    # Of the values of C, the best.
    scores = search.cv_results_["mean_test_score"].reshape(2, 2)
    assert display.means[:, 0] == pytest.approx(scores.max(axis=1))
    drawn(display, figures)
    search = code_search(["cnncodes-mini"], [-1], ["svm", "lda"], cv=2)
    display = LayerHeadDisplay.from_search(search.fit(X[:60], Y[:60]))
    assert len(display.heads) == 2
    with pytest.raises(TypeError, match="expected a fitted search with cv_results_"):
        LayerHeadDisplay.from_search(LinearSVC())


# -- mistakes and neighbours -------------------------------------------------------


def test_mistakes_of_an_estimator(model: CNNCodeClassifier, figures: Any) -> None:
    labels = Y[N_TRAIN:].copy()
    labels[[3, 7]] = (labels[[3, 7]] + 1) % 10
    display = MistakesDisplay.from_estimator(
        model, X[N_TRAIN:], labels, train_images=X[:N_TRAIN], train_labels=Y[:N_TRAIN]
    )
    wrong = np.flatnonzero(model.predict(X[N_TRAIN:]) != labels)
    assert {3, 7} <= {*display.mistakes} == {*wrong}
    drawn(display, figures)
    assert display.axes_.shape == (min(5, len(wrong)), 5)
    titles = [axes.get_title() for axes in display.axes_[0]]
    assert titles[0].startswith("is ")
    assert titles[1].startswith("taken for ")
    # Similar images have a label and a distance.
    assert all(len(title.split(", ")) == 2 for title in titles[2:])


def test_mistakes_of_predictions(figures: Any) -> None:
    table = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    labels = ["b", "b", "b", "strange $x$"]
    display = MistakesDisplay.from_predictions(list(X[:4]), labels, table, ["a", "b"])
    # A class that the model does not know has no probability at all.
    assert display.mistakes.tolist() == [1, 3, 0]
    drawn(display, figures)
    right = MistakesDisplay.from_predictions(
        list(X[:2]), ["a", "a"], table[:2], ["a", "b"]
    )
    assert right.mistakes.tolist() == []
    drawn(right, figures)
    with pytest.raises(ValueError, match=r"expected the shape \(4, 3\)"):
        MistakesDisplay.from_predictions(list(X[:4]), labels, table, ["a", "b", "c"])


def test_mistakes_are_of_classes() -> None:
    regressor = CNNCodeRegressor(layers=[-3], heads="ridge", norms="l2", cv=2)
    regressor.fit(X[:40], Y[:40].astype(float) + 0.5)
    with pytest.raises(ValueError, match="expected a classifier"):
        MistakesDisplay.from_estimator(regressor, X[40:50], Y[40:50])


def test_an_image_that_is_gone(figures: Any, tmp_path: Any) -> None:
    display = MistakesDisplay.from_predictions(
        [str(tmp_path / "gone.jpg")], ["a"], [[0.1, 0.9]], ["a", "b"]
    )
    display.plot().figure_.canvas.draw()
    assert display.axes_[0, 0].texts[0].get_text() == "cannot be read"


def test_neighbours(model: CNNCodeClassifier, figures: Any) -> None:
    display = NeighboursDisplay.from_estimator(
        model,
        X[N_TRAIN:],
        X[:N_TRAIN],
        labels=Y[N_TRAIN:],
        other_labels=Y[:N_TRAIN],
        n_neighbors=3,
    )
    reads = model.pipeline_[:-1]
    nearest = NearestNeighbors(n_neighbors=3, metric="cosine", algorithm="brute")
    nearest.fit(reads.transform(X[:N_TRAIN]))
    distances, positions = nearest.kneighbors(reads.transform(X[N_TRAIN:]))
    assert display.distances == pytest.approx(distances, abs=1e-5)
    assert (display.positions == positions).mean() > 0.98
    drawn(display, figures)
    assert display.axes_.shape == (5, 4)
    with pytest.raises(TypeError, match="expected a CNNCodeTransformer or a Pipeline"):
        NeighboursDisplay.from_estimator(LinearSVC(), X[:3], X[3:])
    with pytest.raises(
        ValueError, match=r"codes: expected one row for each of 3 images"
    ):
        NeighboursDisplay.from_codes(X[:3], np.ones((2, 4)), X[3:], np.ones((157, 4)))


def test_no_image_is_its_own_neighbour() -> None:
    codes = np.random.default_rng(0).normal(size=(7, 4))
    codes[3] = codes[5]
    positions, distances = most_similar(codes, codes, 10, same=True)
    assert positions.shape == (7, 6)
    assert not (positions == np.arange(7)[:, None]).any()
    assert positions[3, 0] == 5
    assert distances[3, 0] == pytest.approx(0, abs=1e-6)
    assert (np.diff(distances, axis=1) >= 0).all()


# -- reliability -------------------------------------------------------------------


def test_reliability_is_that_of_scikit_learn(
    model: CNNCodeClassifier, figures: Any
) -> None:
    probabilities = model.predict_proba(X[N_TRAIN:])
    display = ReliabilityDisplay.from_predictions(
        Y[N_TRAIN:], probabilities, model.classes_
    )
    certainty = probabilities.max(axis=1)
    right = model.classes_[probabilities.argmax(axis=1)] == Y[N_TRAIN:]
    shares, means = calibration_curve(right, certainty, n_bins=10)
    filled = display.counts > 0
    assert display.accuracy[filled] == pytest.approx(shares)
    assert display.confidence[filled] == pytest.approx(means)
    gaps = np.abs(shares - means) * display.counts[filled]
    assert display.expected_calibration_error == pytest.approx(gaps.sum() / len(right))
    same = ReliabilityDisplay.from_estimator(model, X[N_TRAIN:], Y[N_TRAIN:])
    assert same.counts.tolist() == display.counts.tolist()
    drawn(display, figures)
    with pytest.raises(ValueError, match="probabilities: expected the shape"):
        ReliabilityDisplay.from_predictions(Y[:3], probabilities, model.classes_)


def test_reliability_needs_probabilities() -> None:
    pipeline = make_pipeline(CNNCodeTransformer(), LinearSVC()).fit(X[:40], Y[:40])
    with pytest.raises(ValueError, match="expected a classifier with probabilities"):
        ReliabilityDisplay.from_estimator(pipeline, X[40:50], Y[40:50])


# -- the map -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "pca", "tsne"])
def test_a_map(figures: Any, method: str) -> None:
    codes = CNNCodeTransformer().fit_transform(X)
    display = CodesMapDisplay.from_codes(codes, Y, method=method)
    assert display.method == ("tsne" if method == "auto" else method)
    # Images of a digit are nearer to each other than to others.
    index = NearestNeighbors(n_neighbors=2).fit(display.positions)
    nearest = index.kneighbors(display.positions)[1][:, 1]
    assert np.mean(Y[nearest] == Y) > (0.4 if method == "pca" else 0.9)
    drawn(display, figures)


def test_maps_of_few_and_of_values(model: CNNCodeClassifier, figures: Any) -> None:
    display = CodesMapDisplay.from_estimator(model, X[:40], Y[:40] + 0.5)
    drawn(display, figures)
    for count in (1, 2, 3, 4, 6):
        codes = np.random.default_rng(0).normal(size=(count, 9))
        for method in ("pca", "tsne"):
            assert project(codes, method)[0].shape == (count, 2)
    with pytest.raises(ValueError, match="a row for each image, and as many labels"):
        CodesMapDisplay.from_codes(np.ones((3, 4)), ["a"])
    with pytest.raises(ValueError, match="method: expected one of"):
        project(np.ones((9, 4)), "lda")


def test_many_images_take_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_map, "_TSNE_IMAGES", 50)
    codes = np.random.default_rng(0).normal(size=(60, 9))
    assert project(codes, "auto")[1] == "pca"


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"Display needs .* 'sk-cnncodes\[report\]'"):
        check_matplotlib("Display")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="pip install umap-learn"):
        project(np.random.default_rng(0).normal(size=(20, 5)), "umap")


def test_fine_tuning(figures: Any) -> None:
    history = {
        "epoch": [0, 1, 2],
        "loss": [float("nan"), 0.9, 0.5],
        "validation_loss": [0.8, 0.7, 0.6],
        "validation_score": [0.8, 0.75, 0.9],
        "learning_rate": [0.0, 1e-4, 1e-6],
        "head_learning_rate": [0.0, 1e-3, 1e-5],
        "seconds": [0.0, 1.0, 2.0],
    }
    display = FineTuningDisplay(history, "accuracy", 0.82, 0.02, 2, True, "Taken.")
    assert display.in_percent
    display.plot()
    score, loss, rates = display.axes_
    frozen, tuned, best = score.lines
    np.testing.assert_allclose(frozen.get_ydata(), 82)
    np.testing.assert_allclose(tuned.get_ydata(), [80, 75, 90])
    np.testing.assert_allclose(best.get_xydata(), [[2, 90]])
    band = score.patches[0].get_extents().transformed(score.transData.inverted())
    np.testing.assert_allclose([band.y0, band.y1], [80, 84])
    assert len(loss.lines) == len(rates.lines) == 2
    labels = [text.get_text() for text in score.get_legend().get_texts()]
    assert "best: taken" in labels
    drawn(display, figures)
    with pytest.raises(TypeError, match="expected a FineTunedClassifier or"):
        FineTuningDisplay.from_estimator(LinearSVC())


def test_fine_tuning_of_an_estimator() -> None:
    pytest.importorskip("torch")
    some = FineTunedClassifier(train_from=-2, max_epochs=1, views="center", n_jobs=1)
    display = FineTuningDisplay.from_estimator(some.fit(X, Y))
    assert display.history is some.history_
    assert (display.frozen_score, display.gain_error) == (
        some.frozen_score_,
        some.gain_error_,
    )
    assert display.decision == some.decision_
    pytest.importorskip("jinja2")
    assert 'id="h-tuning"' in report(some, X, Y).html
