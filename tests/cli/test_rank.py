"""The command that ranks layers for a folder of images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from sk_cnncodes import download_backbone, rank_codes
from sk_cnncodes.cli.common.scoring import Scoring
from sk_cnncodes.ranking.scoring import SCORINGS
from tests.cli.commands import invoke
from tests.cli.conftest import copies
from tests.forwards import counted_forwards

FAST = ("--layer", "-1", "--layer", "-3")


def test_defaults_are_those_of_the_library() -> None:
    known = dict.fromkeys(name for names in SCORINGS.values() for name in names)
    assert [each.value for each in Scoring] == list(known)


def test_text_is_the_ranking_and_what_to_do_next(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "codes.sqlite3"
    result = invoke("rank", photos, *FAST, "--cache", cache)
    assert result.exit_code == 0, result.stderr
    images = sorted(photos.glob("*/*.jpg"))
    labels = [path.parent.name for path in images]
    with counted_forwards() as count:
        ranking = rank_codes(images, labels, layers=[-1, -3], cache=cache)
    assert count.images == 0  # the command stored them
    table, _, following = result.stdout.rstrip("\n").rpartition("\n\nNext: ")
    assert table == repr(ranking)
    layer = str(ranking.recommended.layer)
    assert shlex.split(following) == [
        *("sk-cnncodes", "train", str(photos), "-o", "model.joblib"),
        *("--backbone", "cnncodes-mini", "--layer", layer, "--cache", str(cache)),
    ]
    assert "2 classes" in result.stderr
    assert "2 entries: hidden, or made by a system" in result.stderr


def test_each_image_takes_one_forward_pass(photos: Path) -> None:
    with counted_forwards() as count:
        result = invoke("rank", photos)
    assert result.exit_code == 0
    assert count.images == len(list(photos.glob("*/*.jpg")))


def test_json(photos: Path) -> None:
    path = download_backbone("cnncodes-mini")
    options = ("--backbone", "cnncodes-mini", "--backbone", path, "--layer", "-1,-3")
    result = invoke("rank", photos, *options, "--json", "--scoring", "neg_log_loss")
    found = json.loads(result.stdout)
    assert (found["images"], found["classes"]) == (24, ["china", "flower"])
    assert found["scoring"] == "neg_log_loss"
    assert len(found["ranking"]) == 4
    assert {row["backbone"] for row in found["ranking"]} == {
        "cnncodes-mini",
        str(path),
    }
    assert all(row["layer"] == [-1, -3] for row in found["ranking"])
    assert found["recommended"] in found["ranking"]
    assert "--layer -1,-3" in found["next"]
    assert found["unreadable"] == []


def test_groups_of_file_names(photograph_files: list[Path], tmp_path: Path) -> None:
    for name, files in (("a", photograph_files[:4]), ("b", photograph_files[4:])):
        for number, path in enumerate(copies(files, tmp_path / name, 8)):
            path.rename(path.with_name(f"burst{number % 4}_{number}.jpg"))
    (tmp_path / "a" / "burst0_0.jpg").rename(tmp_path / "a" / "other.jpg")
    result = invoke("rank", tmp_path, *FAST, "--groups", r"(\w+/burst\d)_", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["groups"] == 9
    assert "1 images do not match" in result.stderr
    result = invoke("rank", tmp_path, *FAST, "--groups", r"burst\d|other", "--json")
    assert json.loads(result.stdout)["groups"] == 5


def test_bad_images_are_skipped(photos: Path, tmp_path: Path) -> None:
    for path in photos.glob("*/*.jpg"):
        target = tmp_path / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "china" / "bad.jpg").write_bytes(b"no image")
    result = invoke("rank", tmp_path, *FAST)
    assert result.exit_code == 3
    assert result.stdout.startswith("24 images of 2 classes")
    assert "bad.jpg: " in result.stderr
    assert "1 image could not be read" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--groups", "("), 2, "expected a regular expression"),
        (("--layer", "-40"), 1, "-40"),
        (("--backbone", "nothing.onnx"), 1, "no such file"),
        (("--scoring", "f1"), 2, "f1"),
    ],
)
def test_errors(
    options: tuple[str, ...], code: int, message: str, photos: Path
) -> None:
    result = invoke("rank", photos, *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in re.sub(r"\s+", " ", result.stderr)


def test_one_class_is_an_error(photos: Path, tmp_path: Path) -> None:
    copies(sorted(photos.glob("china/*.jpg")), tmp_path / "china", 4)
    result = invoke("rank", tmp_path, *FAST)
    assert result.exit_code == 1
    assert "labels: expected at least 2 classes, got 1: ['china']" in result.stderr
