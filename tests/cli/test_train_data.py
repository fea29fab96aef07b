"""Training on tables, groups, given parts, several labels and values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import read_model_card
from tests.cli.commands import invoke

FAST = ("--layer", "-3", "--cv", "2", "--json")
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 small images with a class, a burst, tags, a width and a part."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    lines = ["file\tclass\tburst\ttags\twidth\tpart"]
    for number in range(48):
        colour = number % 3
        width = 4 + int(rng.integers(0, 30))
        pixels = rng.integers(0, 60, (40, 40, 3))
        pixels[..., colour] += 90
        pixels[:, :width] += 90
        name = f"images/{number:02}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        tags = [COLOURS[colour], *["wide"] * (width > 20)]
        part = "test" if number % 4 == 3 else "train"
        cells = (
            name,
            COLOURS[colour],
            f"b{number // 3 % 8}",
            "/".join(tags),
            width / 2,
        )
        lines.append("\t".join(map(str, (*cells, part))))
    path = folder / "labels.tsv"
    path.write_text("\n".join(lines))
    return path


def trained(*arguments: str | Path) -> tuple[dict[str, Any], str]:
    result = invoke("train", *arguments, *FAST)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_classes_of_a_table(table: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.joblib"
    options = ("--label-column", "class", "--group-column", "burst", "--head", "lda")
    found, said = trained(table, "-o", model, *options)
    assert "48 images of 3 classes, in 8 groups." in said
    assert "class  images  groups\nblue       16       8\n" in said
    assert (found["task"], found["classes"]) == (
        "classification",
        ["blue", "green", "red"],
    )
    assert found["held_out"]["images"] in (6, 12, 18)  # whole bursts
    assert found["fitted_images"] == 48
    result = invoke("predict", model, table.parent / "images" / "00.png", "--json")
    assert json.loads(result.stdout)["label"] == "red"


def test_groups_in_the_ranking(table: Path) -> None:
    options = ("--label-column", "class", "--group-column", "burst", "--layer", "-3")
    found = json.loads(invoke("rank", table, *options, "--json").stdout)
    assert found["groups"] == 8
    assert "--group-column burst" in found["next"]
    pattern = ("--label-column", "class", "--groups", "images/(.)", "--layer", "-3")
    found = json.loads(invoke("rank", table, *pattern, "--json").stdout)
    assert found["groups"] == 5


def test_values_of_a_table(table: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.joblib"
    found, said = trained(
        table, "-o", model, "--label-column", "width", "--head", "ridge"
    )
    assert "Values from " in said
    assert (found["task"], found["scoring"]) == ("regression", "r2")
    held_out = found["held_out"]
    assert held_out["r2"] > 0.8
    error = held_out["mean_absolute_error"]
    assert error < held_out["baseline"]["mean_absolute_error"] / 2
    (value,) = joblib.load(model).predict([str(table.parent / "images" / "00.png")])
    assert 0 < value < 20
    options = ("--label-column", "width", *FAST[:-1])
    text = invoke("train", table, "-o", model, *options).stdout
    assert "leave-one-group-out r2 of ridge:" in text
    assert "mean absolute error" in text
    assert max(map(len, text.replace(str(tmp_path), "").splitlines())) <= 80


def test_several_labels_of_a_table(table: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.joblib"
    options = ("--label-column", "tags", "--label-separator", "/", "--head", "ridge")
    found, said = trained(table, "-o", model, *options)
    assert "48 images with 4 labels, in 8 groups." in said
    names = ["blue", "green", "red", "wide"]
    assert (found["task"], found["classes"]) == ("multilabel", names)
    assert found["scoring"] == "average_precision"
    assert found["held_out"]["average_precision"] > 0.7
    assert list(found["held_out"]["labels"]) == names
    card = read_model_card(model)
    assert card is not None and card.classes == (*names,)
    text = invoke("train", table, "-o", model, *options, *FAST[:-1]).stdout
    assert "Held-out mean average precision of the labels: " in text


def test_a_given_part_is_held_out_and_not_trained_on(
    table: Path, tmp_path: Path
) -> None:
    options = ("--label-column", "class", "--split-column", "part", "--head", "lda")
    found, said = trained(table, "-o", tmp_path / "m.joblib", *options)
    assert "Held out: the 12 images of the part 'test'; the other 36 train." in said
    assert found["held_out"]["images"] == 12
    assert found["fitted_images"] == 36
    found, _ = trained(table, "-o", tmp_path / "m.joblib", *options, "--refit")
    assert found["fitted_images"] == 48


def test_ready_test_images(table: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((table.parent / "images").iterdir())):
        part = "new" if number % 4 == 3 else "known"
        folder = tmp_path / part / COLOURS[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    options = ("--test", tmp_path / "new", "--head", "lda")
    found, said = trained(tmp_path / "known", "-o", tmp_path / "m.joblib", *options)
    assert (found["held_out"]["images"], found["fitted_images"]) == (12, 36)
    assert f"{tmp_path / 'new'}: 12 images of 3 classes." in said


def test_parts_in_folders(table: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((table.parent / "images").iterdir())):
        part = "test" if number % 4 == 3 else "train"
        folder = tmp_path / "data" / part / COLOURS[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    model = tmp_path / "m.joblib"
    found, said = trained(tmp_path / "data", "-o", model, "--head", "lda")
    assert "The folders 'test' and 'train' are taken as parts of a data set" in said
    assert "class  images  train  test\nblue       16     12     4\n" in said
    assert (found["held_out"]["images"], found["fitted_images"]) == (12, 36)
    result = invoke("rank", tmp_path / "data", "--layer", "-3", "--json")
    assert json.loads(result.stdout)["images"] == 36
    assert "12 images of the part 'test' are left for the last figure." in result.stderr


def test_scoring_and_class_weight(table: Path, tmp_path: Path) -> None:
    options = ("--label-column", "class", "--head", "rbf", "--scoring", "f1_macro")
    model = tmp_path / "m.joblib"
    found, _ = trained(table, "-o", model, *options, "--class-weight", "balanced")
    assert found["scoring"] == "f1_macro"
    (calibrated,) = joblib.load(model)["head"].calibrated_classifiers_
    assert calibrated.estimator.class_weight == "balanced"
    text = invoke("train", table, "-o", model, *options, *FAST[:-1]).stdout
    assert "leave-one-group-out f1_macro of ridge, in %:" in text


def test_the_same_file_in_two_classes_is_said(table: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((table.parent / "images").iterdir())):
        folder = tmp_path / "data" / COLOURS[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    shutil.copy(path, tmp_path / "data" / "red")
    shutil.copy(folder / "02.png", folder / "02 (copy).png")
    model = tmp_path / "m.joblib"
    found, said = trained(tmp_path / "data", "-o", model, "--head", "lda")
    assert "4 images are copies of each other, or nearly, such as " in said
    assert "1 set of duplicates has several labels, 1 of them equal files" in said
    exact = [each["images"] for each in found["copies"] if each["exact"]]
    assert sorted(map(len, exact)) == [2, 2]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--label-column", "klass"), 1, "--label-column klass: expected one of its"),
        (("--flat",), 2, "--flat: expected a folder, got a table"),
        ((), 1, "which column has the labels"),
        (
            ("--label-column", "class", "--scoring", "r2"),
            1,
            "--scoring: expected one of",
        ),
        (
            ("--label-column", "width", "--class-weight", "balanced"),
            2,
            "--class-weight: expected classes, got regression",
        ),
        (
            ("--label-column", "class", "--groups", "x", "--group-column", "burst"),
            2,
            "expected one of --groups and --group-column",
        ),
    ],
)
def test_wrong_options(
    options: tuple[str, ...], code: int, message: str, table: Path, tmp_path: Path
) -> None:
    renamed = table.with_name("renamed.tsv")
    text = table.read_text().replace("class", "kind", 1).replace("tags", "words", 1)
    source = table
    if not options:
        renamed.write_text(text)
        source = renamed
    result = invoke("train", source, "-o", tmp_path / "m.joblib", *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in " ".join(result.stderr.split())


def test_options_of_tables_for_a_folder(photos: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.joblib"
    result = invoke("train", photos, "-o", model, "--group-column", "burst")
    assert result.exit_code == 2
    message = "--group-column: expected a table, got a folder."
    assert message in " ".join(result.stderr.split())
    result = invoke("train", photos, "-o", model, "--task", "regression")
    assert "expected a table; the sub-folders" in " ".join(result.stderr.split())


def test_folders_inside_of_classes_as_groups(photos: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(photos.glob("*/*.jpg"))):
        folder = tmp_path / path.parent.name / f"day {number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    options = ("--groups", "/(.+)/", "--layer", "-3", "--json")
    found = json.loads(invoke("rank", tmp_path, *options).stdout)
    assert (found["groups"], found["images"]) == (4, 24)
