"""`train --fine-tune`: what it takes, keeps, says, writes and refuses."""

from __future__ import annotations

import csv
import functools
import json
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sk_cnncodes import OnnxClassifier, read_model_card
from sk_cnncodes.cli.common import fine_tuning
from tests import networks
from tests.cli.commands import invoke

DIGITS = load_digits()
N_IMAGES = 400
# Without a choice among layers and heads, whose comparison is tested elsewhere.
FAST = ("--layer", "-1", "--head", "ridge", "--norm", "power", "--jobs", "1")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of five digits, and a table of how much ink they have."""
    folder, rows = tmp_path_factory.mktemp("digits"), list[tuple[str, float, str]]()
    chosen = np.flatnonzero(DIGITS.target < 5)[:N_IMAGES]
    for number in chosen:
        path = folder / "images" / str(DIGITS.target[number]) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(DIGITS.images[number] * 15)).save(path)
        ink = float(DIGITS.images[number].mean()) + 0.001
        rows.append((str(path.relative_to(folder)), ink, "a;b" if ink > 5 else "a"))
    with open(folder / "ink.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "ink", "tags"), *rows])
    return folder


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A random network with short codes, which has much to learn, and fast rates."""
    pytest.importorskip("torch")
    from sk_cnncodes.tuning import estimators
    from tests.tuning.test_estimators import PLAIN, narrow

    model = narrow()
    onnx.helper.set_model_props(model, PLAIN.to_metadata())
    recipe = {"learning_rate": 1e-2, "head_learning_rate": 1e-2, "batch_size": 32}
    for name in ("FineTunedClassifier", "FineTunedRegressor"):
        faster = functools.partial(
            getattr(estimators, name), views="center", max_epochs=8, **recipe
        )
        monkeypatch.setattr(estimators, name, faster)
    monkeypatch.setattr(fine_tuning, "FEWEST", 100)
    return networks.save(model, tmp_path / "net.onnx")


def in_words(text: str) -> str:
    return " ".join(text.split())


def test_a_better_tuned_model_is_taken(
    digits: Path, backbone: str, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("skl2onnx")
    output, page = tmp_path / "model.joblib", tmp_path / "report.html"
    exported = tmp_path / "model.onnx"
    files = ("-o", output, "--report", page, "--onnx", exported)
    options = ("--backbone", backbone, *FAST, "--fine-tune", "--train-from", "-3")
    result = invoke("train", digits / "images", *files, *options, "--json")
    assert result.exit_code == 0, result.stderr
    assert "Fine-tuning" in result.stderr
    found = json.loads(result.stdout)
    tuning = found["fine_tuning"]
    assert tuning["taken"], tuning["decision"]
    assert tuning["gain"] > tuning["standard_error"]
    assert tuning["gain"] == pytest.approx(
        tuning["tuned_score"] - tuning["frozen_score"]
    )
    assert tuning["trained_images"] + tuning["validation_images"] == 320
    assert found["fitted_images"] == tuning["trained_images"]
    assert tuning["history"]["loss"][0] is None
    assert found["held_out"]["accuracy"] > tuning["held_out_frozen"]["accuracy"]

    # What is saved is the tuned model: without the file, and as ONNX.
    Path(backbone).unlink()
    model = joblib.load(output)
    paths = sorted((digits / "images").glob("*/*.png"))
    names = np.array([path.parent.name for path in paths])
    right = float((model.predict(paths) == names).mean())
    assert right > tuning["held_out_frozen"]["accuracy"] + 0.03
    same = OnnxClassifier(exported).predict(paths[:50]) == model.predict(paths[:50])
    assert same.all()
    card = read_model_card(output)
    assert card is not None
    assert (card.layers, card.n_folds, card.n_tested) == ((-1,), 1, 64)
    assert card.head == "linear head, fine-tuned with the layers after -3"
    assert card.backbone_sha256 == model["codes"].fitted_backbone_["sha256"]
    html = page.read_text(encoding="utf-8")
    assert tuning["decision"].split(". ")[0] in html
    assert 'id="h-tuning"' in html and "validation accuracy" in html
    assert "on validation images" in html


def test_text_refit_and_no_held_out_images(
    digits: Path, backbone: str, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    options = ("--backbone", backbone, *FAST, "--fine-tune", "--train-from", "-3")
    images, output = digits / "images", tmp_path / "model.joblib"
    result = invoke("train", images, "-o", output, *options)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.replace(str(tmp_path), "").splitlines()
    assert max(map(len, lines)) <= 80
    text = in_words(result.stdout)
    assert "The tuned model is taken. On 64 validation images, net.onnx fine-" in text
    assert "the chosen frozen codes and head, out of fold," in text
    assert "Of the frozen model: Held-out accuracy:" in text
    assert "The saved model is the tuned one. It was trained on 256 images" in text
    assert read_model_card(output).n_images == 256

    result = invoke("train", images, "-o", output, *options, "--refit")
    assert "fitted anew to all 400 images" in in_words(result.stdout), result.stderr
    assert read_model_card(output).n_images == 320

    page = tmp_path / "page.html"
    all_of_them = ("--held-out", "0", "--report", page)
    result = invoke("train", images, "-o", output, *options, *all_of_them)
    assert result.exit_code == 0, result.stderr
    assert "The saved model is the tuned one." in in_words(result.stdout)
    assert "80 validation images, which also chose the epoch" in in_words(
        page.read_text(encoding="utf-8")
    )


def test_regression(digits: Path, backbone: str, tmp_path: Path) -> None:
    table, output = digits / "ink.csv", tmp_path / "model.joblib"
    options = ("--backbone", backbone, *FAST, "--fine-tune", "--train-from", "-3")
    columns = ("--label-column", "ink", "--task", "regression")
    result = invoke("train", table, "-o", output, *columns, *options, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["fine_tuning"]
    assert found["scoring"] == "r2"
    assert found["taken"] == (found["gain"] > found["standard_error"])
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:20]
    truth = np.array([row["ink"] for row in rows], float)
    predicted = joblib.load(output).predict([digits / row["file"] for row in rows])
    assert np.abs(predicted - truth).mean() < 1


def test_a_frozen_model_is_kept(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled network knows digits: there is nothing to gain."""
    pytest.importorskip("torch")
    monkeypatch.setattr(fine_tuning, "FEWEST", 100)
    output = tmp_path / "model.joblib"
    options = (*FAST, "--fine-tune", "--groups", r"/(\d+)\d\.png", "--json")
    weights = ("--class-weight", "balanced", "--scoring", "balanced_accuracy")
    result = invoke("train", digits / "images", "-o", output, *options, *weights)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    tuning = found["fine_tuning"]
    assert not tuning["taken"]
    assert tuning["train_from"] in (-2, -4)
    assert tuning["decision"].startswith("The frozen model is kept. On ")
    assert "better by more than chance" in tuning["decision"]
    assert tuning["held_out_frozen"] is None
    assert found["fitted_images"] == found["images"]
    assert read_model_card(output).n_folds > 1


def refused(*arguments: Any) -> str:
    result = invoke("train", *arguments)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert "Ranking" not in result.stderr
    return in_words(result.stderr)


def test_refusals(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    images, output = digits / "images", tmp_path / "model.joblib"
    said = refused(images, "-o", output, "--fine-tune")
    assert "--fine-tune: expected at least 500 images to train on, got 320." in said
    assert "below frozen ones on new images" in said
    said = refused(images, "-o", output, "--train-from", "-2")
    assert "--train-from: expected --fine-tune beside it" in said
    said = refused(images, "-o", output, "--fine-tune", "--train-from", "-2,-3")
    assert "expected one layer, got '-2,-3'" in said
    tags = ("--label-column", "tags", "--label-separator", ";")
    said = refused(digits / "ink.csv", "-o", output, *tags, "--fine-tune")
    assert "got several labels" in said
    said = refused(images, "-o", output, "--fine-tune", "--max-pixels", "100000")
    assert "expected no --max-pixels beside it" in said
    assert not output.exists()


def test_wrong_layers_are_refused_before_the_work(
    digits: Path, backbone: str, tmp_path: Path
) -> None:
    arguments = (digits / "images", "-o", tmp_path / "m.joblib", "--fine-tune")
    said = refused(*arguments, "--backbone", backbone, "--train-from", "-99")
    assert "-99" in said
    said = refused(*arguments, "--backbone", backbone, "--train-from", "scores")
    assert "scores" in said


def test_without_torch(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    said = refused(digits / "images", "-o", tmp_path / "m.joblib", "--fine-tune")
    assert "pip install 'sk-cnncodes[torch]'" in said
