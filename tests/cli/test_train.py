"""The command that trains a classifier on a folder of images."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import joblib
import pytest

from sk_cnncodes import (
    CNNCodeTransformer,
    download_backbone,
    load_backbone,
    load_model,
    to_onnx,
)
from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.cli import train as train_module
from sk_cnncodes.cli.common.held_out import confusions
from sk_cnncodes.cli.train import Head, Norm
from sk_cnncodes.export import pipeline as export
from sk_cnncodes.heads.presets import HEADS, REGRESSORS
from sk_cnncodes.inspection.reliability import calibration_error
from sk_cnncodes.ranking.rank_codes import NORMS
from tests.cli.commands import environment, invoke, only_posix
from tests.forwards import counted_forwards

FAST = ("--layer", "-1", "--layer", "-2", "--head", "svm", "--head", "knn", "--cv", "2")


def test_choices_are_those_of_the_library() -> None:
    assert [head.value for head in Head] == ["auto", *{**HEADS, **REGRESSORS}]
    assert [norm.value for norm in Norm] == list(NORMS)


def test_text(photos: Path, tmp_path: Path) -> None:
    result = invoke("train", photos, "-o", tmp_path / "model.joblib", *FAST)
    assert result.exit_code == 0, result.stderr
    text = result.stdout
    assert max(map(len, text.replace(str(tmp_path), "").splitlines())) <= 80
    # Three copies of each of eight photographs, which stay on one side.
    assert text.startswith("24 images of 2 classes; 6 held out.\n")
    ranked = text.split("leave-one-group-out accuracy of ridge, in %:\n\n")[1]
    table = ranked.split("\n\n")[0].splitlines()
    assert table[0].split() == [
        *("score", "+-", "backbone", "layer", "norm", "kernel", "length", "compute")
    ]
    assert len(table) == 5
    assert sum(line.startswith("*") for line in table) == 1
    compared = text.split("Mean accuracy in 2-fold cross-validation, in %:\n\n")[1]
    table = compared.split("\n\n")[0].splitlines()
    assert table[0].split() == ["backbone", "layer", "norm", "svm", "knn"]
    for line in table[1:]:
        name, layer, norm, *scores = line.split()
        assert (name, layer in ("-1", "-2")) == ("cnncodes-mini", True)
        assert norm in NORMS
        assert all(0 <= float(score) <= 100 for score in scores)
    sentences = " ".join(text.split())
    assert re.search(
        r"Chosen: cnncodes-mini, layer -[12], (l2|power) norm, .*: [\d.]+% in cross",
        sentences,
    )
    assert re.search(
        r"Held-out accuracy: [\d.]+% \(95% interval [\d.]+ to [\d.]+\); always "
        r"'(china|flower)': [\d.]+%\. Balanced, each class alike: [\d.]+% "
        r"\([\d.]+ to [\d.]+\); always '(china|flower)': 50\.00%\. Mean probability "
        r"of what is predicted: [\d.]+%",
        sentences,
    )
    assert re.search(r"^ +precision +recall +f1-score +support$", text, re.MULTILINE)
    assert re.search(r"^china +1 +\d+ +\S+$", text, re.MULTILINE)
    assert "this combination, fitted anew to all 24 images" in sentences
    assert re.search(r"Saved .*model.joblib \(0.\d\d MB\)\.\n$", text)
    found = result.stderr.split("Ranking")[0]
    assert re.search(r"photos\d*: 24 images of 2 classes\.\n\nclass +images\n", found)
    assert re.search(r"\nchina +12\nflower +12\n", found)
    assert "1 .txt file: not the suffix of an image (README.txt)." in found
    assert [path.name for path in tmp_path.iterdir()] == ["model.joblib"]


def test_json_describes_the_saved_model(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.joblib"
    arguments = ("train", photos, "-o", output, *FAST, "--held-out", "0.25", "--json")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["classes"] == ["china", "flower"]
    assert (found["images"], found["ignored"], found["unreadable"]) == (24, 3, [])
    assert (found["model"], found["onnx"]) == (str(output), None)

    ranked = [(row["layer"], row["norm"]) for row in found["ranking"]]
    assert sorted(ranked) == [(-2, "l2"), (-2, "power"), (-1, "l2"), (-1, "power")]
    scores = [row["score"] for row in found["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(row["recommended"] for row in found["ranking"]) == 1

    assert found["folds"] == 2
    compared = [(c["layer"], c["norm"]) for c in found["search"]]
    assert {*compared} <= {*ranked}
    assert [c["head"] for c in found["search"]] == ["svm", "knn"] * (len(compared) // 2)
    assert found["chosen"] in found["search"]
    best = max(candidate["mean"] for candidate in found["search"])
    assert found["chosen"]["mean"] == best

    held_out = found["held_out"]
    matrix = held_out["confusion_matrix"]
    assert held_out["images"] == sum(map(sum, matrix)) == 6
    right = matrix[0][0] + matrix[1][1]
    assert held_out["accuracy"] == pytest.approx(right / 6)
    assert held_out["classes"]["china"]["support"] == 3
    assert 0.5 <= held_out["mean_probability"] <= 1
    assert 0 <= held_out["expected_calibration_error"] <= 1

    model = joblib.load(output)
    codes, head = model["codes"], model["head"]
    assert (codes.layer, codes.norm) == (
        *(found["chosen"]["layer"], found["chosen"]["norm"]),
    )
    assert type(head.estimator) is type(HEADS[found["chosen"]["head"]][1])
    # It refers neither to the cache of the run nor to its threads.
    assert (codes.cache, codes.cache_layers, codes.n_jobs) == ("memory", None, -1)


@pytest.mark.parametrize(
    ("options", "n_fitted"),
    [((), 24), (("--no-refit",), 18), (("--held-out", "0"), 24)],
)
def test_the_saved_model_is_fitted_to_all_images(
    options: tuple[str, ...], n_fitted: int, photos: Path, tmp_path: Path
) -> None:
    """Those that are held out too, unless --no-refit is given."""
    arguments = ("train", photos, "-o", tmp_path / "m.joblib", "--held-out", "0.25")
    rest = ("--layer", "-1", "--head", "rbf", "--cv", "2", "--json")
    found = json.loads(invoke(*arguments, *rest, *options).stdout)
    assert found["fitted_images"] == n_fitted
    (calibrated,) = joblib.load(tmp_path / "m.joblib")["head"].calibrated_classifiers_
    assert len(calibrated.estimator.X_fit_) == n_fitted


def test_the_report_does_not_depend_on_the_refit(photos: Path, tmp_path: Path) -> None:
    arguments = ("train", photos, "-o", tmp_path / "m.joblib", *FAST, "--json")
    refitted, kept = (
        json.loads(invoke(*arguments, option).stdout)
        for option in ("--refit", "--no-refit")
    )
    assert refitted | {"fitted_images": 18} == kept


@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_probabilities_also_as_onnx(
    head: str, photos: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("skl2onnx")
    exported = tmp_path / "model.onnx"
    to_onnx(load_model(models[head]), exported)
    expected, found = (
        [json.loads(line) for line in invoke(*call, "--json").stdout.splitlines()]
        for call in (("predict", models[head], photos), ("predict", exported, photos))
    )
    assert len(expected) == 24
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-3)
        assert 0.5 <= ours["probability"] <= 1


def test_fewer_folds_for_a_small_class(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    for path in sorted((folder / "china").glob("*.jpg"))[4:]:
        path.unlink()
    rest = ("--layer", "-1", "--head", "svm", "--json")
    result = invoke("train", folder, "-o", tmp_path / "m.joblib", *rest)
    assert result.exit_code == 0
    folds = json.loads(result.stdout)["folds"]
    assert folds in (2, 3)  # as the held-out images are drawn
    said = f"{folds} folds instead of 5: as many as the smallest class"
    assert said in result.stderr


def test_layers_side_by_side(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.joblib"
    layers = ("--layer", "-1,fire9", "--layer", "-1")
    with counted_forwards() as count:
        result = invoke(
            *("train", photos, "-o", output, *layers, "--head", "svm", "--json")
        )
    assert result.exit_code == 0, result.stderr
    assert count.images <= 24
    found = json.loads(result.stdout)
    assert all(row["layer"] in ([-1, "fire9"], -1) for row in found["ranking"])
    assert len(found["ranking"]) == 4
    assert joblib.load(output)["codes"].layer == found["chosen"]["layer"]


def test_same_seed_same_result(photos: Path, tmp_path: Path) -> None:
    def search(seed: str) -> list[dict[str, object]]:
        arguments = ("train", photos, "-o", tmp_path / "m.joblib", *FAST, "--json")
        rest = ("--seed", seed, "--cache", tmp_path / "codes.sqlite3")
        return json.loads(invoke(*arguments, *rest).stdout)["held_out"]

    assert search("1") == search("1")


def test_one_forward_pass_per_image(photos: Path, tmp_path: Path) -> None:
    arguments = ("train", photos, "-o", tmp_path / "model.joblib", *FAST)
    cache = ("--cache", tmp_path / "codes.sqlite3")
    with counted_forwards() as count:
        assert invoke(*arguments, *cache).exit_code == 0
        assert count.images == 24
        assert invoke(*arguments, *cache).exit_code == 0
        assert count.images == 24
        # All layers, which the cache lacks, take one more pass.
        arguments = ("train", photos, "-o", tmp_path / "model.joblib", "--head", "svm")
        assert invoke(*arguments, *cache).exit_code == 0
        assert count.images == 48


def test_all_numbered_layers_are_ranked(photos: Path, tmp_path: Path) -> None:
    options = ("--head", "svm", "--cv", "2", "--json")
    printed = invoke("train", photos, "-o", tmp_path / "m.joblib", *options).stdout
    layers = {row["layer"] for row in json.loads(printed)["ranking"]}
    assert layers == {-1 - i for i in range(len(load_backbone("cnncodes-mini").layers))}


def test_the_number_of_threads_changes_nothing(photos: Path, tmp_path: Path) -> None:
    arguments = ("train", photos, "-o", tmp_path / "m.joblib", *FAST, "--json")
    alone, together = (
        json.loads(invoke(*arguments, "--jobs", jobs).stdout) for jobs in ("1", "2")
    )
    assert alone == together


@only_posix
def test_a_terminal_shows_the_fits_of_the_comparison(
    photos: Path, tmp_path: Path
) -> None:
    """The bar is on standard error alone, and comes after that of the embedding."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    command = [sys.executable, "-m", "sk_cnncodes", "train", str(photos), *FAST]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "m.joblib")],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(),
        text=True,
    ) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how Linux tells that the other end is closed
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        assert process.stdout is not None
        report = process.stdout.read()
    assert process.returncode == 0, shown
    embedded, _, compared = shown.decode().partition("Ranking 2 layers")
    assert "Embed: 100%" in embedded
    assert "Rank: 100%" in compared
    assert re.findall(r"Compare:.*?(\d+)/(\d+)", compared)[-1] in {
        *(("12", "12"), ("16", "16"))  # 3 codes, and the recommended ones
    }
    assert report.startswith("24 images of 2 classes")
    assert "Compare:" not in report


def test_all_images_train_without_held_out_images(photos: Path, tmp_path: Path) -> None:
    arguments = ("train", photos, "-o", tmp_path / "m.joblib", *FAST, "--held-out", "0")
    text = invoke(*arguments).stdout
    assert text.startswith("24 images of 2 classes; 0 held out.")
    assert "Held-out" not in text
    assert json.loads(invoke(*arguments, "--json").stdout)["held_out"] is None


def test_bad_images_are_skipped(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    bad = folder / "china" / "0005.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    result = invoke("train", folder, "-o", tmp_path / "m.joblib", *FAST, "--json")
    assert result.exit_code == 3
    assert f"{bad}: the file is damaged or truncated" in result.stderr
    found = json.loads(result.stdout)
    assert found["images"] == 23
    (row,) = found["unreadable"]
    assert row["path"] == str(bad)
    assert row["error"].startswith("the file is damaged or truncated")
    assert joblib.load(tmp_path / "m.joblib").classes_.tolist() == ["china", "flower"]


def test_temporary_cache_is_removed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    invoke("train", photos, "-o", tmp_path / "m.joblib", *FAST)
    assert (tmp_path / "m.joblib").exists()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("counts", "arguments", "message"),
    [
        ({}, [], "found no images in its sub-folders"),
        ({"a": 9}, [], "found images of 1 class: ['a']"),
        ({"a": 9, "b": 1}, [], "too few images to train on: 'a' has 7, 'b' has 1."),
        ({"a": 2, "b": 2}, [], "'b' has 1. Expected at least 2 of at least 2 classes"),
        (
            {"a": 2, "b": 2},
            ["--head", "knn", "--held-out", "0"],
            "5 nearest neighbours: 4",
        ),
        ({"a/deep": 9, "b/deep": 9}, ["--flat"], "Found images in nested folders"),
        ({"a": 9, "b": 9}, ["--layer", "-99"], "--layer -99"),
        ({"a": 9, "b": 9}, ["--backbone", "nothing"], "--backbone nothing"),
    ],
)
def test_errors_come_before_any_forward_pass(
    counts: dict[str, int],
    arguments: list[str],
    message: str,
    photos: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(photos / "china" / "0000.jpg", folder / name / f"{number}.jpg")
    with counted_forwards() as count:
        result = invoke("train", folder, "-o", tmp_path / "m.joblib", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in " ".join(result.stderr.split())
    assert count.images == 0
    assert not (tmp_path / "m.joblib").exists()


def test_skipped_images_and_folders_are_reported(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "empty").mkdir()
    shutil.copytree(photos / "china", folder / "nested" / "deep")
    shutil.copy(photos / "china" / "0000.jpg", folder)
    (folder / "notes.txt").touch()
    result = invoke(
        *("train", folder, "-o", tmp_path / "m.joblib", "--layer", "-1"),
        *("--head", "svm", "--cv", "2"),
    )
    assert result.exit_code == 0
    assert "1 folder: no images inside (empty)." in result.stderr
    assert "1 image: not in the folder of a class (0000.jpg)." in result.stderr
    assert re.search(r"\nnested +12\n", result.stderr)


def test_outputs_that_would_replace_an_input(photos: Path, tmp_path: Path) -> None:
    folder, backbone = tmp_path / "photos", tmp_path / "net.onnx"
    shutil.copytree(photos, folder)
    backbone.write_bytes(download_backbone("cnncodes-mini").read_bytes())
    image = folder / "china" / "0000.jpg"
    joblib_file, own = tmp_path / "m.joblib", ["--backbone", backbone]
    for options in (
        ["-o", image],
        ["-o", joblib_file, "--onnx", backbone, *own],
        ["-o", joblib_file, "--cache", joblib_file],
    ):
        result = invoke("train", folder, *options)
        assert result.exit_code == 1
        assert "it is one of the inputs" in result.stderr
    result = invoke("train", folder, "-o", backbone, *own)
    assert result.exit_code == 2
    assert "expected the name of a joblib file" in result.stderr
    assert image.read_bytes() == (photos / "china" / "0000.jpg").read_bytes()


def test_too_few_readable_images(photos: Path, tmp_path: Path) -> None:
    for name, damaged in (("china", 0), ("flower", 11)):
        shutil.copytree(photos / name, tmp_path / "photos" / name)
        for path in sorted((tmp_path / "photos" / name).glob("*.jpg"))[:damaged]:
            path.write_bytes(b"nothing")
    result = invoke("train", tmp_path / "photos", "-o", tmp_path / "m.joblib")
    assert result.exit_code == 1
    assert "too few images to train on: 'china' has" in result.stderr
    assert "'flower' has 1" in result.stderr


def test_many_classes_list_the_most_frequent_confusions() -> None:
    import numpy as np

    classes = [f"class {i}" for i in range(11)]
    matrix = 5 * np.eye(11, dtype=int)
    assert "none" in confusions(classes, matrix)
    matrix[3, 7], matrix[10, 0] = 2, 11
    lines = confusions(classes, matrix).splitlines()
    assert [line.split(maxsplit=1) for line in lines[2:]] == [
        ["11", "class 10 predicted as class 0"],
        ["2", "class 3 predicted as class 7"],
    ]
    assert len(confusions(classes[:10], matrix[:10, :10]).splitlines()) == 13


def test_expected_calibration_error() -> None:
    import numpy as np

    certainty = np.array([0.95, 0.95, 0.91, 1.0, 0.65, 0.65])
    right = np.array([True, True, True, False, True, False])
    expected = (abs(0.95 + 0.95 + 0.91 + 1 - 3) + abs(1.3 - 1)) / 6
    assert calibration_error(certainty, right) == pytest.approx(expected)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_long_names_fit_a_terminal(photos: Path, tmp_path: Path) -> None:
    backbone = tmp_path / f"{'a_long_name_of_a_network_' * 3}.onnx"
    shutil.copy(load_backbone("cnncodes-mini").path, backbone)
    options = ("--layer", "-1", "--cv", "2", "--backbone", backbone)
    heads = [word for head in HEADS for word in ("--head", head)]
    arguments = ("train", photos, "-o", tmp_path / "m.joblib", *options, *heads)
    text = invoke(*arguments).stdout.split("Chosen:")[0]
    assert "a_lo" in text
    assert max(map(len, text.splitlines())) <= 80


def test_codes_of_training_and_use_are_the_same(
    models: dict[str, Path], photos: Path
) -> None:
    """The head was fitted on codes of the saved transformer."""
    model = joblib.load(models["logistic"])
    codes = model["codes"]
    transformer = CNNCodeTransformer(layer=codes.layer, norm=codes.norm)
    images = sorted(map(str, photos.glob("*/*.jpg")))
    labels = model["head"].predict(transformer.transform(images))
    assert labels.tolist() == model.predict(images).tolist()
    assert (labels == [Path(image).parent.name for image in images]).mean() > 0.9


def test_onnx_without_skl2onnx(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "find_spec", lambda name: None)
    files = ("-o", tmp_path / "m.joblib", "--onnx", tmp_path / "m.onnx")
    result = invoke("train", photos, *files)
    assert result.exit_code == 1
    assert "pip install 'sk-cnncodes[export]'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_no_file_is_left_if_one_cannot_be_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skl2onnx")

    def fail(*arguments: object) -> None:
        raise ExportError("step 'head': cannot be converted")

    monkeypatch.setattr(export, "to_onnx", fail)
    files = ("-o", tmp_path / "m.joblib", "--onnx", tmp_path / "m.onnx")
    result = invoke("train", photos, *files, *FAST)
    assert result.exit_code == 1
    assert "Error: step 'head': cannot be converted" in result.stderr
    assert not list(tmp_path.iterdir())


def test_joblib_file_contains_the_stored_backbone(photos: Path, tmp_path: Path) -> None:
    backbone = tmp_path / "own.onnx"
    shutil.copy(load_backbone("cnncodes-mini").path, backbone)
    arguments = ("train", photos, "-o", tmp_path / "m.joblib", *FAST)
    rest = ("--backbone", backbone, "--store-backbone")
    assert invoke(*arguments, *rest).exit_code == 0
    before = invoke("predict", tmp_path / "m.joblib", photos)
    assert before.exit_code == 0
    backbone.unlink()
    after = invoke("predict", tmp_path / "m.joblib", photos)
    assert (after.exit_code, after.stdout) == (0, before.stdout)
