"""What models of all kinds predict for image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline

from sk_cnncodes import CNNCodeClassifier, CNNCodeTransformer, ModelCard, save_model
from sk_cnncodes.cli.serving.predictor import Predictor
from tests.cli.commands import invoke


@pytest.fixture(scope="module")
def images(photograph_files: list[Path]) -> list[str]:
    return list(map(str, photograph_files))


@pytest.fixture(scope="module")
def several(images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for two labels, "china" and "cropped", with its card."""
    y = np.array([[i < 4, i % 2] for i in range(len(images))]).astype(int)
    model = CNNCodeClassifier(layers=[-1], heads="ridge", cv=2).fit(images, y)
    card = ModelCard.from_estimator(model, y, classes=["china", "odd; one"])
    path = tmp_path_factory.mktemp("several") / "labels.joblib"
    return save_model(model.pipeline_, path, card=card)


def test_several_labels_have_the_names_of_the_card(
    several: Path, images: list[str]
) -> None:
    predictor = Predictor(several, None, None, None)
    assert (predictor.kind, predictor.classes) == ("labels", ["china", "odd; one"])
    predictor.top = 2
    found = predictor(images)
    assert [("china" in each.label) for each in found] == [i < 4 for i in range(8)]
    for each in found:
        assert len(each.label) == len(each.score)
        assert all(score > 0 for score in each.score)
        names, scores = zip(*each.ranked, strict=True)
        assert {*names} == {"china", "odd; one"}
        assert list(scores) == sorted(scores, reverse=True)


def test_options_for_several_labels(several: Path, images: list[str]) -> None:
    result = invoke("predict", several, images[0])
    assert result.exit_code == 2
    assert "--label-separator ';': it is in the label 'odd; one'" in result.stderr
    result = invoke("predict", several, images[0], "--label-separator", "|")
    assert result.stdout.startswith("path,label,score,error\n")
    result = invoke(
        "predict", several, images[0], "--label-separator", "|", "--reject", "0.9"
    )
    assert "gives no probabilities of classes" in result.stderr


def test_the_predicted_class_comes_first(images: list[str], tmp_path: Path) -> None:
    """With a threshold, it is not the most probable one."""
    from sklearn.linear_model import LogisticRegression

    labels = ["a"] * 4 + ["b"] * 4
    model = FixedThresholdClassifier(
        make_pipeline(CNNCodeTransformer(), LogisticRegression(C=1e-4)), threshold=0.0
    ).fit(images, labels)
    predictor = Predictor(save_model(model, tmp_path / "m.joblib"), None, None, None)
    predictor.top = 2
    for each in predictor(images):
        assert each.label == "b"
        assert [label for label, _ in each.ranked] == ["b", "a"]
        assert each.score == each.ranked[0][1]


def test_a_model_without_probabilities(images: list[str], tmp_path: Path) -> None:
    model = make_pipeline(CNNCodeTransformer(), RidgeClassifier())
    path = save_model(model.fit(images, [0, 1] * 4), tmp_path / "m.joblib")
    predictor = Predictor(path, None, None, None)
    assert (predictor.kind, predictor.gives_scores) == ("classes", False)
    assert {each.score for each in predictor(images)} == {None}
    for option in (["--top", "2"], ["--reject-below", "0.5"]):
        result = invoke("predict", path, images[0], *option)
        assert result.exit_code == 2
        assert f"{option[0]}: model" in result.stderr


def test_several_labels_need_a_card(images: list[str], tmp_path: Path) -> None:
    model = make_pipeline(CNNCodeTransformer(), RidgeClassifier())
    path = save_model(model.fit(images, [[0, 1], [1, 0]] * 4), tmp_path / "m.joblib")
    with pytest.raises(ValueError, match="or a model card with the names"):
        Predictor(path, None, None, None)(images)


def test_a_damaged_card_is_said(
    several: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = several.read_bytes().replace(b'"task"', b'"tusk"')
    (tmp_path / "m.joblib").write_bytes(content)
    assert Predictor(tmp_path / "m.joblib", None, None, None).card is None
    assert "its model card: expected the JSON" in capsys.readouterr().err
