"""`evaluate`, and the HTML pages of `train` and `evaluate`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from sk_cnncodes import OnnxClassifier, find_labelled_images, load_model, save_model
from tests.cli.commands import invoke
from tests.inspection.page.test_report import Page

FAST = ("--layer", "-1", "--head", "lda", "--cv", "2")


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.joblib, model.onnx and report.html."""
    folder = tmp_path_factory.mktemp("trained")
    result = invoke(
        *("train", photos, "-o", folder / "model.joblib", *FAST, "--no-refit"),
        *("--onnx", folder / "model.onnx", "--report", folder / "report.html"),
    )
    assert result.exit_code == 0, result.stderr
    assert re.search(r"Saved .*report.html \(0\.\d\d MB\)\.", result.stdout)
    return folder


def test_train_writes_a_page(trained: Path, photos: Path) -> None:
    page = Page((trained / "report.html").read_text(encoding="utf-8"))
    for section in ("layers", "confusion", "suspects", "duplicates", "trust", "map"):
        assert section in page.ids
    assert "model.joblib, trained on photos0" in page.text
    counts = re.search(r"(\d+) tested images; (\d+) training images", page.text)
    assert counts is not None
    assert int(counts[1]) + int(counts[2]) == 24
    assert f"Only {counts[1]} images were tested" in page.text
    assert "Backbone cnncodes-mini" in page.text
    assert "Command sk-cnncodes" in page.text
    assert re.search(r"sk-cnncodes predict \S+model.joblib DIR", page.text)
    # Copies of four photographs for each class.
    assert "equal images" in page.text or "nearly equal images" in page.text


def test_a_page_without_held_out_images(photos: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = invoke(
        *("train", photos, "-o", tmp_path / "m.joblib", *FAST, "--held-out", "0"),
        *("--report", page, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["report"] == str(page)
    text = Page(page.read_text(encoding="utf-8")).text
    assert "24 images, each predicted by a model of others (out of fold)" in text


def test_audit_writes_a_page(photos: Path, tmp_path: Path) -> None:
    data, page = tmp_path / "data", tmp_path / "audit.html"
    shutil.copytree(photos, data)
    shutil.copy(data / "china" / "0000.jpg", data / "flower" / "same.jpg")
    result = invoke("audit", data, "--report", page)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"Saved .*audit.html \(0\.\d\d MB\)\.", result.stdout)
    found = Page(page.read_text(encoding="utf-8"))
    assert [
        each for each in found.ids if not each.startswith("h-") and each != "main"
    ] == ["summary", "images", "suspects", "duplicates", "outliers"]
    assert "Audit of data" in found.text
    assert re.search(r"labelled china, flower: a contradiction", found.text)
    assert "flower/same.jpg" in found.text
    assert str(tmp_path) not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["model.joblib", "model.skops", "model.onnx"])
def test_figures(trained: Path, photos: Path, name: str) -> None:
    path = trained / name
    if name.endswith("skops"):
        pytest.importorskip("skops")
        save_model(load_model(trained / "model.joblib"), path)
    result = invoke("evaluate", path, photos, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    images = find_labelled_images(photos)
    model = load_model(path)
    assert isinstance(model, OnnxClassifier) == name.endswith("onnx")
    expected = np.mean(model.predict(images.paths) == np.array(images.labels))
    assert found["task"] == "classification"
    assert found["classes"] == ["china", "flower"]
    assert found["held_out"]["images"] == 24
    assert found["held_out"]["accuracy"] == pytest.approx(expected)
    assert np.sum(found["held_out"]["confusion_matrix"]) == 24
    assert found["report"] is None


def test_text_and_page(trained: Path, photos: Path, tmp_path: Path) -> None:
    """Training images among the tested ones are noticed, also under other names."""
    tested = tmp_path / "tested"
    for label in ("china", "flower"):
        (tested / label).mkdir(parents=True)
        for path in sorted((photos / label).glob("*.jpg"))[:4]:
            shutil.copy(path, tested / label / f"copy of {path.name}")
    (tested / "china" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    page = tmp_path / "page.html"
    result = invoke(
        *("evaluate", trained / "model.joblib", tested),
        *("--train", photos, "--report", page),
    )
    assert result.exit_code == 3
    assert re.match(r"Held-out accuracy: [\d.]+% \(95% interval", result.stdout)
    assert "Confusion matrix; rows: truth" in result.stdout
    assert "8 of the 8 tested images are equal to training images" in result.stderr
    text = Page(page.read_text(encoding="utf-8")).text
    assert "8 of the 8 tested images are equal to training images" in text
    assert "1 images could not be read." in text
    assert "24 training images" in text
    assert "Suspect labels" in text and "Duplicates" in text
    assert "Backbone cnncodes-mini" in text


def test_parts_of_a_table(trained: Path, photos: Path, tmp_path: Path) -> None:
    images = find_labelled_images(photos)
    table = tmp_path / "labels.csv"
    rows = [
        f"{path},{label},{'test' if number % 3 == 0 else 'train'}"
        for number, (path, label) in enumerate(
            zip(images.paths, images.labels, strict=True)
        )
    ]
    table.write_text("\n".join(["file,label,split", *rows]))
    page = tmp_path / "page.html"
    result = invoke("evaluate", trained / "model.onnx", table, "--report", page)
    assert result.exit_code == 0, result.stderr
    assert "Evaluated: the 8 images of the part 'test'." in result.stderr
    text = Page(page.read_text(encoding="utf-8")).text
    assert "8 tested images; 16 training images" in text


def test_values_and_several_labels(photos: Path, tmp_path: Path) -> None:
    images = find_labelled_images(photos)
    for task, column in (
        ("regression", [f"{n * 1.5}" for n in range(24)]),
        ("multilabel", [("a|" * (n % 2) + "b|" * (n < 12))[:-1] for n in range(24)]),
    ):
        table, model = tmp_path / f"{task}.csv", tmp_path / f"{task}.joblib"
        rows = [f"{p},{v}" for p, v in zip(images.paths, column, strict=True)]
        table.write_text("\n".join(["file,label", *rows]))
        options = ["--label-separator", "|"] if task == "multilabel" else []
        page = tmp_path / f"{task}.html"
        result = invoke(
            *("train", table, "-o", model, "--layer", "-1", "--head", "ridge"),
            *("--cv", "2", "--report", page, "--task", task, *options),
        )
        assert result.exit_code == 0, result.stderr
        assert "predictions" in Page(page.read_text(encoding="utf-8")).ids
        result = invoke("evaluate", model, table, "--json", *options)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["task"] == task
        assert found["held_out"]["images"] == 24
        assert "mean_absolute_error" in found["held_out"] or (
            found["classes"] == ["a", "b"]
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report", "page.txt"], "expected a name that ends in .html or .htm"),
        (["--report", "no/page.html"], "there is no folder 'no'"),
        (["--task", "regression"], "--task"),
    ],
)
def test_wrong_usage(
    trained: Path, photos: Path, arguments: list[str], message: str
) -> None:
    result = invoke("evaluate", trained / "model.joblib", photos, *arguments)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_labels_of_another_model(trained: Path, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (80, 80), "red").save(tmp_path / name / "1.png")
    result = invoke("evaluate", trained / "model.joblib", tmp_path)
    assert result.exit_code == 1
    assert "none is a class of the model, ['china', 'flower']" in result.stderr
