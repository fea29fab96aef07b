"""The command that classifies images with a saved model."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline

from sk_cnncodes import CNNCodeTransformer, read_model_card
from sk_cnncodes.cli.common import image_arguments as images_module
from tests.cli.commands import invoke
from tests.forwards import counted_forwards


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def with_bad_images(photos: Path, tmp_path: Path) -> list[Path]:
    """Six paths; the first, third and last are bad."""
    good = [photos / "china" / f"{number:04}.jpg" for number in range(3)]
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(good[0].read_bytes()[:700])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    return [tmp_path / "missing.jpg", good[0], truncated, good[1], good[2], text]


@pytest.fixture
def without_probabilities(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> Path:
    """A model whose classifier, without calibration, has no probabilities."""
    model = joblib.load(models["svm"])
    images = sorted(map(str, photos.glob("*/*.jpg")))
    labels = [Path(image).parent.name for image in images]
    model.set_params(head=model["head"].estimator).fit(images, labels)
    joblib.dump(model, tmp_path / "without.joblib")
    return tmp_path / "without.joblib"


@pytest.mark.parametrize("head", [None, "svm", "logistic", "knn"])
def test_csv_of_a_folder(
    models: dict[str, Path], without_probabilities: Path, photos: Path, head: str | None
) -> None:
    path = without_probabilities if head is None else models[head]
    result = invoke("predict", path, photos)
    assert result.exit_code == 0
    assert result.stdout.startswith("path,label,probability,error\n")
    assert (
        result.stderr
        == "Ignored 3 entries that are hidden or without an image suffix.\n"
    )
    rows = rows_of(result.stdout)
    paths = [row["path"] for row in rows]
    assert paths == sorted(map(str, photos.glob("*/*.jpg")))
    model = joblib.load(path)
    assert [row["label"] for row in rows] == model.predict(paths).tolist()
    if head is None:
        assert {row["probability"] for row in rows} == {""}
    else:
        best = model.predict_proba(paths).max(axis=1)
        found = [float(row["probability"]) for row in rows]
        np.testing.assert_allclose(found, best, atol=1e-5)


def test_json_lines(without_probabilities: Path, photos: Path) -> None:
    path = str(photos / "flower" / "0000.jpg")
    result = invoke("predict", without_probabilities, path, "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"path": path, "label": "flower", "probability": None, "error": None}
    ]


@pytest.mark.parametrize("chunk_size", [256, 2])
def test_bad_images_do_not_stop_the_run(
    models: dict[str, Path],
    with_bad_images: list[Path],
    chunk_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images_module, "CHUNK_SIZE", chunk_size)
    result = invoke("predict", models["logistic"], *with_bad_images, "--json")
    assert result.exit_code == 3
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["path"] for row in rows] == list(map(str, with_bad_images))
    assert [row["label"] for row in rows] == [
        None,
        "china",
        None,
        "china",
        "china",
        None,
    ]
    faults = [row["error"] or "" for row in rows]
    assert faults[0].startswith("no such file")
    assert "truncated" in faults[2]
    assert faults[5].startswith("not an image file")
    messages = result.stderr.splitlines()
    assert messages[0].startswith(f"{with_bad_images[0]}: no such file")
    assert messages[-1] == "3 images could not be read."
    assert len(messages) == 4


def test_only_bad_images(models: dict[str, Path]) -> None:
    result = invoke("predict", models["svm"], "missing.jpg")
    assert result.exit_code == 3
    assert [row["label"] for row in rows_of(result.stdout)] == [""]


def test_standard_input(models: dict[str, Path], photos: Path) -> None:
    named = [photos / "flower" / "0003.jpg", photos / "china"]
    given = f"{named[0]}\n\n{named[1]}\r\n"
    result = invoke("predict", models["svm"], "-", given=given)
    assert result.exit_code == 0
    labels = [row["label"] for row in rows_of(result.stdout)]
    assert labels == ["flower", *["china"] * 12]


def test_output_file(models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    arguments = ("predict", models["knn"], photos / "china")
    result = invoke(*arguments, "-o", tmp_path / "labels.csv")
    assert (result.exit_code, result.stdout) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
    written = (tmp_path / "labels.csv").read_text(encoding="utf-8")
    assert written == "\ufeff" + invoke(*arguments).stdout  # for spreadsheets
    invoke(*arguments, "-o", tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_text(encoding="utf-8") == written[1:]


@pytest.mark.parametrize("output", ["model", "image", "cache"])
def test_output_that_is_an_input(
    output: str, models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    files = {
        "model": tmp_path / "model.joblib",
        "image": tmp_path / "photo.jpg",
        "cache": tmp_path / "codes.sqlite3",
    }
    files["model"].write_bytes(models["svm"].read_bytes())
    files["image"].write_bytes((photos / "china" / "0000.jpg").read_bytes())
    arguments = ("predict", files["model"], files["image"], "--cache", files["cache"])
    before = [files[name].read_bytes() for name in ("model", "image")]
    result = invoke(*arguments, "-o", files[output])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"output '{files[output]}': it is one of the inputs" in result.stderr
    assert [files[name].read_bytes() for name in ("model", "image")] == before


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_empty_standard_input(models: dict[str, Path], options: list[str]) -> None:
    result = invoke("predict", models["svm"], "-", *options, given="")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "found no images in the arguments" in result.stderr


def test_model_that_takes_no_images(photos: Path, tmp_path: Path) -> None:
    joblib.dump(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), tmp_path / "m.joblib")
    result = invoke("predict", tmp_path / "m.joblib", photos)
    assert result.exit_code == 1
    assert "contains a LogisticRegression, which takes no images" in result.stderr


def test_cache_serves_the_second_run(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    arguments = ("predict", models["logistic"], photos, "--cache", tmp_path / "codes")
    with counted_forwards() as count:
        first = invoke(*arguments)
        assert count.images == 24
        assert invoke(*arguments).stdout == first.stdout
        assert count.images == 24


def test_labels_and_probabilities_take_one_forward_pass(
    models: dict[str, Path], photos: Path
) -> None:
    with counted_forwards() as count:
        invoke("predict", models["logistic"], photos)
    assert count.images == 24


def test_regressor(photos: Path, tmp_path: Path) -> None:
    images = sorted(map(str, photos.glob("*/*.jpg")))
    ages = np.arange(24) / 2
    model = make_pipeline(CNNCodeTransformer(), LinearRegression()).fit(images, ages)
    joblib.dump(model, tmp_path / "ages.joblib")
    result = invoke("predict", tmp_path / "ages.joblib", *images[:2])
    assert result.stdout.startswith("path,value,error\n")
    found = [float(row["value"]) for row in rows_of(result.stdout)]
    np.testing.assert_allclose(found, model.predict(images[:2]), rtol=1e-6)
    result = invoke("predict", tmp_path / "ages.joblib", images[0], "--json")
    assert json.loads(result.stdout) == {
        "path": images[0],
        "value": pytest.approx(found[0]),
        "error": None,
    }
    for option in (["--top", "2"], ["--sort-into", str(tmp_path / "a")]):
        result = invoke("predict", tmp_path / "ages.joblib", images[0], *option)
        assert result.exit_code == 2
        assert f"{option[0]}: model" in result.stderr
        assert "gives values, not labels" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "Expected a whole file"),
        (b"no pickle", "Expected a whole file"),
        ("half", "Expected a whole file"),
        ("list", "contains a list, which cannot predict"),
    ],
)
def test_model_files_that_cannot_be_loaded(
    content: bytes | str | None,
    message: str,
    models: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.joblib"
    if content == "half":
        whole = models["svm"].read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "list":
        joblib.dump([1, 2], path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    result = invoke("predict", path, "photo.jpg", "-o", tmp_path / "labels.csv")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: model {str(path)!r}: ")
    assert message in result.stderr
    assert not (tmp_path / "labels.csv").exists()


def test_folder_without_images(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    result = invoke("predict", models["svm"], tmp_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"{str(tmp_path)!r}: this folder contains no images.",
        "Ignored 1 entry that is hidden or without an image suffix.",
        "Error: found no images in the arguments.",
    ]


def test_old_output_survives_an_error(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "labels.csv"
    output.write_text("before")
    broken = shutil.copy(models["svm"], tmp_path / "broken.joblib")
    model = joblib.load(broken)
    model.set_params(codes__backbone="no-such-backbone.onnx")
    joblib.dump(model, broken)
    result = invoke("predict", broken, "photo.jpg", "-o", output)
    assert result.exit_code == 1
    assert "no-such-backbone.onnx" in result.stderr
    assert output.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.joblib", "labels.csv"]


# -- ONNX files --------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_model(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that train wrote, beside a joblib file of the same name."""
    pytest.importorskip("skl2onnx")
    folder = tmp_path_factory.mktemp("onnx")
    files = ("-o", folder / "model.joblib", "--onnx", folder / "model.onnx")
    result = invoke("train", photos, *files, "--layer", "-1", "--head", "logistic")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"Saved .*model.onnx \([\d.]+ MB\)\.\n$", result.stdout)
    return folder / "model.onnx"


def test_both_files_have_the_model_card(onnx_model: Path, photos: Path) -> None:
    card = read_model_card(onnx_model)
    assert card is not None
    assert card == read_model_card(onnx_model.with_suffix(".joblib"))
    assert (card.task, card.classes) == ("classification", ("china", "flower"))
    assert (card.head, card.layers) == ("logistic regression", (-1,))
    assert card.n_images == 24
    assert 15 <= card.n_tested <= 19  # copies are kept together
    assert card.operating_points[0].coverage == 1
    assert str(photos.parent) not in card.to_json()


def test_onnx_file_predicts_as_the_joblib_file(onnx_model: Path, photos: Path) -> None:
    tables = [
        rows_of(invoke("predict", model, photos).stdout)
        for model in (onnx_model, onnx_model.with_suffix(".joblib"))
    ]
    assert len(tables[0]) == len(tables[1]) == 24
    for ours, other in zip(*tables, strict=True):
        assert (ours["path"], ours["label"]) == (other["path"], other["label"])
        found, expected = float(ours["probability"]), float(other["probability"])
        assert found == pytest.approx(expected, abs=1e-3)


def test_bad_images_for_an_onnx_file(
    onnx_model: Path, with_bad_images: list[Path]
) -> None:
    result = invoke("predict", onnx_model, *with_bad_images)
    assert result.exit_code == 3
    labels = [row["label"] for row in rows_of(result.stdout)]
    assert labels == ["", "china", "", "china", "china", ""]


def test_onnx_file_takes_no_cache(onnx_model: Path, tmp_path: Path) -> None:
    result = invoke("predict", onnx_model, "a.jpg", "--cache", tmp_path / "codes")
    assert result.exit_code == 2
    assert "Expected --cache only with a joblib or skops file" in result.stderr


def test_onnx_file_on_an_unknown_device(onnx_model: Path) -> None:
    result = invoke("predict", onnx_model, "a.jpg", "--device", "tpu")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: --device: expected")


def test_backbone_is_not_a_model() -> None:
    from sk_cnncodes import load_backbone

    result = invoke("predict", load_backbone("cnncodes-mini").path, "photo.jpg")
    assert result.exit_code == 1
    assert "pass a backbone to CNNCodeTransformer" in result.stderr
