"""ModelCard: what training knew, in the file of the model, and thresholds from it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sk_cnncodes import (
    CNNCodeClassifier,
    CNNCodeRegressor,
    ModelCard,
    OnnxClassifier,
    OperatingPoint,
    SavedModelError,
    load_model,
    read_model_card,
    save_model,
    to_onnx,
)
from sk_cnncodes.export.model_card import operating_points

DIGITS = load_digits()
IMAGES, LABELS = DIGITS.images[:100] / 16, DIGITS.target[:100]


@pytest.fixture(scope="module")
def model() -> CNNCodeClassifier:
    return CNNCodeClassifier(layers=[-1], heads="lda", cv=3).fit(IMAGES, LABELS)


@pytest.fixture(scope="module")
def card(model: CNNCodeClassifier) -> ModelCard:
    words = ["sk-cnncodes", "train", "/home/ann/my digits", "-o", "m.joblib"]
    return ModelCard.from_estimator(model, LABELS, n_images=120, command=words)


def test_it_says_what_was_trained(model: CNNCodeClassifier, card: ModelCard) -> None:
    assert (card.task, card.backbone, card.layers) == (
        "classification",
        "cnncodes-mini",
        (-1,),
    )
    assert card.backbone_license == "Apache-2.0"
    assert card.head == "shrinkage LDA"
    assert card.classes == tuple(range(10))
    assert (card.n_images, card.n_tested, card.n_folds, card.seed) == (120, 100, 3, 0)
    assert (card.scoring, card.cv_score) == ("accuracy", model.best_score_)
    assert {*card.versions} == {"sk_cnncodes", "scikit-learn", "onnxruntime"}
    assert card.command == "sk-cnncodes train 'my digits' -o m.joblib"


def test_a_regression_has_no_classes_and_no_thresholds() -> None:
    y = IMAGES.mean(axis=(1, 2))
    model = CNNCodeRegressor(layers=[-3], heads="ridge", cv=3).fit(IMAGES, y)
    card = ModelCard.from_estimator(model, y)
    assert (card.task, card.classes, card.operating_points) == ("regression", (), ())
    assert (card.head, card.scoring, card.command) == ("ridge", "r2", None)


def test_several_labels_have_names() -> None:
    y = np.column_stack([LABELS % 2, LABELS > 4]).astype(int)
    model = CNNCodeClassifier(layers=[-1], heads="ridge", cv=3).fit(IMAGES, y)
    card = ModelCard.from_estimator(model, y, classes=["odd", "large"])
    assert (card.task, card.classes) == ("multilabel", ("odd", "large"))
    assert ModelCard.from_json(card.to_json()) == card


def test_nearest_neighbours_have_no_thresholds() -> None:
    model = CNNCodeClassifier(layers=[-1], heads="knn", cv=3).fit(IMAGES, LABELS)
    card = ModelCard.from_estimator(model, LABELS)
    assert (card.head, card.operating_points) == ("5 nearest neighbours", ())


# -- files -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["joblib", "pkl", "joblib.gz", "joblib.xz", "skops"])
def test_each_kind_of_file_keeps_it(
    suffix: str, model: CNNCodeClassifier, card: ModelCard, tmp_path: Path
) -> None:
    without = save_model(model.pipeline_, tmp_path / f"a.{suffix}")
    path = save_model(model.pipeline_, tmp_path / f"b.{suffix}", card=card)
    assert read_model_card(without) is None
    assert read_model_card(path) == card
    loaded = load_model(path, device="cpu")
    np.testing.assert_array_equal(
        loaded.predict(IMAGES[:9]), model.pipeline_.predict(IMAGES[:9])
    )


def test_an_onnx_file_keeps_it(
    model: CNNCodeClassifier, card: ModelCard, tmp_path: Path
) -> None:
    pytest.importorskip("skl2onnx")
    to_onnx(model.pipeline_, tmp_path / "a.onnx")
    to_onnx(model.pipeline_, tmp_path / "b.onnx", card)
    assert read_model_card(tmp_path / "a.onnx") is None
    assert read_model_card(tmp_path / "b.onnx") == card
    assert OnnxClassifier(tmp_path / "b.onnx").predict(IMAGES[:3]).tolist() == [0, 1, 2]


def test_a_card_is_read_without_running_the_file(
    tmp_path: Path, card: ModelCard
) -> None:
    path = save_model(_Runs(tmp_path / "ran"), tmp_path / "hostile.joblib", card=card)
    assert read_model_card(path) == card
    assert not (tmp_path / "ran").exists()


class _Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_files_without_a_readable_card(tmp_path: Path, card: ModelCard) -> None:
    with pytest.raises(SavedModelError, match="no such file"):
        read_model_card(tmp_path / "missing.joblib")
    (tmp_path / "empty.joblib").touch()
    assert read_model_card(tmp_path / "empty.joblib") is None
    for name in ("bad.skops", "bad.onnx", "bad.joblib.gz"):
        (tmp_path / name).write_bytes(b"no such thing\xff")
        with pytest.raises(SavedModelError, match=rf"{name}'?: cannot be read"):
            read_model_card(tmp_path / name)
    whole = save_model([1], tmp_path / "whole.joblib", card=card).read_bytes()
    (tmp_path / "cut.joblib").write_bytes(whole[:-1])
    assert read_model_card(tmp_path / "cut.joblib") is None
    (tmp_path / "edited.joblib").write_bytes(whole.replace(b'"task"', b'"tusk"'))
    with pytest.raises(SavedModelError, match="its model card: expected the JSON"):
        read_model_card(tmp_path / "edited.joblib")


def test_a_later_version_may_add_to_it(card: ModelCard) -> None:
    values = json.loads(card.to_json()) | {"mood": "sunny"}
    assert ModelCard.from_json(json.dumps(values)) == card


# -- the command ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("photos/2024", "photos/2024"),
        ("/home/ann/photos/", "photos"),
        ("~/photos", "photos"),
        ("../../ann/photos", "photos"),
        ("photos/../../ann", "ann"),
        ("C:\\Users\\ann\\photos", "photos"),
        ("--cache=/home/ann/codes.sqlite3", "--cache=codes.sqlite3"),
        ("--layer=-1,-2", "--layer=-1,-2"),
        ("--device", "--device"),
        ("/", "/"),
    ],
)
def test_a_command_tells_no_folders(
    word: str, kept: str, model: CNNCodeClassifier
) -> None:
    import shlex

    card = ModelCard.from_estimator(model, LABELS, command=["train", word])
    assert shlex.split(card.command or "") == ["train", kept]


# -- thresholds ----------------------------------------------------------------


def points_of(certainty: list[float], right: list[bool]) -> tuple[OperatingPoint, ...]:
    p = np.array(certainty)
    y = np.where(right, "a", "b")
    return operating_points(np.column_stack([p, 1 - p]), np.array(["a", "b"]), y)


def test_accuracy_and_coverage_by_threshold() -> None:
    found = points_of([0.9, 0.8, 0.8, 0.6], [True, True, False, False])
    assert [dataclasses.astuple(point) for point in found] == [
        (0.6, 0.5, 1.0),
        (0.8, 0.666667, 0.75),
        (0.9, 1.0, 0.25),
    ]


def test_images_that_no_fold_tested_do_not_count() -> None:
    found = points_of([0.9, np.nan, 0.7], [True, False, False])
    assert [point.coverage for point in found] == [0.5, 1.0][::-1]
    assert points_of([np.nan], [True]) == ()


def test_many_images_have_100_points() -> None:
    certainty = np.linspace(0.5, 1, 5000, endpoint=False)
    found = points_of(certainty.tolist(), [True] * 5000)
    assert len(found) == 100
    assert (found[0].coverage, found[-1].coverage) == (1.0, 0.0002)
    # The image at a threshold is not below it.
    for point in found:
        assert (certainty >= point.threshold).mean() == pytest.approx(
            point.coverage, abs=1e-6
        )


def test_the_threshold_for_an_accuracy(card: ModelCard) -> None:
    certainty = [0.99] * 40 + [0.9] * 40 + [0.6] * 20
    right = [True] * 40 + [True] * 36 + [False] * 4 + [True] * 10 + [False] * 10
    made = dataclasses.replace(
        card, operating_points=points_of(certainty, right), n_tested=100
    )
    assert made.threshold_for(0.95).threshold == 0.9
    assert made.threshold_for(0.951).threshold == 0.99
    assert made.threshold_for(0.8).threshold == 0.6
    with pytest.raises(ValueError, match=r"no threshold reached 0\.98 .* the highest"):
        made.threshold_for(0.98)  # 40 images could not show 1 mistake in 50
    with pytest.raises(ValueError, match="tested 100 images, and 1000 are needed"):
        made.threshold_for(0.999)
    with pytest.raises(ValueError, match="from 0 to 1"):
        made.threshold_for(95)
    with pytest.raises(ValueError, match="has no thresholds"):
        dataclasses.replace(card, operating_points=()).threshold_for(0.9)


def test_a_lucky_low_threshold_does_not_count(card: ModelCard) -> None:
    """From the threshold on, each higher one must reach the accuracy too."""
    certainty = [0.9] * 10 + [0.8] * 10 + [0.7] * 80
    right = [True] * 10 + [True] * 5 + [False] * 5 + [True] * 80
    made = dataclasses.replace(
        card, operating_points=points_of(certainty, right), n_tested=100
    )
    assert made.threshold_for(0.9).threshold == 0.9


def test_thresholds_are_those_of_the_saved_model(
    model: CNNCodeClassifier, card: ModelCard
) -> None:
    """Out-of-fold probabilities and those of the pipeline are on one scale."""
    head = model.pipeline_["head"].calibrated_classifiers_[0]
    assert head.method == "temperature"
    best = model.cv_predictions_.max(axis=1)
    assert card.operating_points[0].threshold == pytest.approx(best.min(), abs=1e-6)
    assert card.operating_points[0].coverage == 1
