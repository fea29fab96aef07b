"""The command that finds duplicates, suspect labels and outliers."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from tests.cli.commands import invoke
from tests.inspection.scenes import burst, scene


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 14 scenes, with copies, and a file that is no image."""
    folder = tmp_path_factory.mktemp("data")
    for name, start in (("fox", 0), ("owl", 100)):
        (folder / name).mkdir()
        for number in range(14):
            image = scene(start + number)
            image.save(folder / name / f"{number:02}.jpg", quality=90)
    fox, owl = folder / "fox", folder / "owl"
    (owl / "copy.jpg").write_bytes((fox / "00.jpg").read_bytes())
    (fox / "again.jpg").write_bytes((fox / "01.jpg").read_bytes())
    scene(2).save(fox / "small.jpg", quality=50)
    (fox / "broken.jpg").write_bytes(b"nothing")
    return folder


def test_text(data: Path) -> None:
    result = invoke("audit", data)
    assert result.exit_code == 3
    assert "1 image could not be read." in result.stderr
    text = result.stdout
    assert len(text.splitlines()) <= 45
    assert "31 images of 2 classes: 2 exact and 1 near duplicates" in text
    assert "! 1 set of duplicates has several labels" in " ".join(text.split())
    contradiction, same = text.index("labelled fox and owl:"), text.index("the same:")
    assert contradiction < same < text.index("near (")
    # Paths stand alone in their lines, to be copied.
    lines = [line.strip() for line in text.splitlines()]
    for name in ("fox/00.jpg", "owl/copy.jpg", "fox/01.jpg", "fox/again.jpg"):
        assert str(data / name) in lines
    assert "fox     16  (14 scenes)" in text


def test_json(data: Path) -> None:
    result = invoke("audit", data, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["images"] == 31
    first, second, third = found["duplicates"]
    assert [os.path.relpath(path, data) for path in first["images"]] == [
        str(Path("fox", "00.jpg")),
        str(Path("owl", "copy.jpg")),
    ]
    assert (first["labels"], first["exact"]) == (["fox", "owl"], True)
    assert (second["exact"], third["exact"]) == (True, False)
    assert {Path(path).name for path in third["images"]} == {"02.jpg", "small.jpg"}
    assert [each["label"] for each in found["class_sizes"]] == ["fox", "owl"]
    assert [Path(each["path"]).name for each in found["unreadable"]] == ["broken.jpg"]
    assert len(found["warnings"]) == 1


def test_bursts_of_a_table_are_warned_of_unless_groups_are_given(
    tmp_path: Path,
) -> None:
    rows = [["file", "label", "site"]]
    for number in range(8):
        for position, image in enumerate(burst(scene(number), 4, number)):
            name = f"{number}-{position}.jpg"
            image.save(tmp_path / name, quality=85)
            rows.append([name, "fox" if number < 4 else "owl", f"s{number}"])
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    options = ("--image-column", "file", "--label-column", "label")
    arguments = ("audit", tmp_path / "labels.csv", *options)
    text = " ".join(invoke(*arguments).stdout.split())
    assert "! Looks like bursts:" in text
    assert "--group-column" in text
    grouped = invoke(*arguments, "--group-column", "site", "--json")
    found = json.loads(grouped.stdout)
    assert (found["bursts"], found["warnings"]) == (None, [])
    assert [each["scenes"] for each in found["class_sizes"]] == [4, 4]


def test_no_readable_image(tmp_path: Path) -> None:
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "a.jpg").write_bytes(b"nothing")
    result = invoke("audit", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "a.jpg: not an image file" in result.stderr
