"""The command that says what to do with a folder of images."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from sk_cnncodes import rank_codes
from tests.cli.commands import invoke
from tests.forwards import counted_forwards

FAST = ("--layer", "-1", "--layer", "-3")


def test_text_is_the_advice_of_the_ranking(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "codes.sqlite3"
    result = invoke("advise", photos, *FAST, "--cache", cache)
    assert result.exit_code == 0, result.stderr
    images = sorted(photos.glob("*/*.jpg"))
    labels = [path.parent.name for path in images]
    with counted_forwards() as count:
        ranking = rank_codes(images, labels, layers=[-1, -3], cache=cache)
    assert count.images == 0  # the command stored them
    advice = ranking.advice(str(photos), ["--cache", str(cache)])
    assert result.stdout == f"{advice!r}\n"
    assert "1 .txt file: not the suffix of an image (README.txt)." in result.stderr


def test_each_image_takes_one_forward_pass(photos: Path) -> None:
    with counted_forwards() as count:
        result = invoke("advise", photos)
    assert result.exit_code == 0
    assert count.images == len(list(photos.glob("*/*.jpg")))


def test_json(photos: Path) -> None:
    result = invoke("advise", photos, *FAST, "--json")
    found = json.loads(result.stdout)
    assert found["title"].startswith("24 images of 2 classes; leave-one-out accuracy")
    assert "similarity" in [each["name"] for each in found["findings"]]
    assert (found["ignored"], found["unreadable"]) == (3, [])


def test_the_next_command_ranks_alike_and_runs(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "codes.sqlite3"
    options = ("--groups", "[0-9](?=[.])", "--scoring", "balanced_accuracy")
    common = ("--cache", cache, "--device", "cpu")
    result = invoke("advise", photos, *FAST, *options, *common)
    assert "leave-one-group-out balanced_accuracy" in result.stdout
    words = shlex.split(result.stdout.rpartition("\n\nNext: ")[2])
    assert words == [
        *("sk-cnncodes", "advise", str(photos)),
        *("--backbone", "cnncodes-mini", "--backbone", "mobilenet_v2"),
        *options,
        *map(str, common),
    ]


def test_an_unreadable_image_is_skipped(photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "china" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    result = invoke("advise", folder, *FAST)
    assert result.exit_code == 3
    assert result.stdout.startswith("24 images")
    assert "bad.jpg" in result.stderr


@pytest.mark.parametrize("wrong", [("--layer", "-99"), ("--backbone", "unknown")])
def test_a_wrong_option_is_an_error(photos: Path, wrong: tuple[str, str]) -> None:
    result = invoke("advise", photos, *wrong)
    assert result.exit_code == 1
    assert "\nError: " in result.stderr
    assert result.stdout == ""
