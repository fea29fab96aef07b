"""Rows: their columns, and cells that spreadsheets show as they are."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sk_cnncodes.cli.serving.predictor import Prediction
from sk_cnncodes.cli.serving.rows import Rows, open_rows, safe_text

CAT = Prediction("cat", 0.9, (("cat", 0.9), ("dog", 0.1)), "cat")


def made(
    rows: list[tuple[str, Prediction | None, str]],
    kind: str = "classes",
    classes: tuple[Any, ...] = ("cat", "dog"),
    **options: Any,
) -> str:
    file = io.StringIO()
    top = options.pop("top", 0)
    given = {
        "as_json": False,
        "shows_best": False,
        "separator": ";",
        "output": None,
    } | options
    predictor: Any = SimpleNamespace(kind=kind, classes=list(classes), top=top)
    writer = Rows(file, predictor, **given)
    assert file.getvalue() == ""  # no header before a row
    for row in rows:
        writer.write(*row)
    return file.getvalue()


def test_ranked_classes() -> None:
    text = made([("a.jpg", CAT, ""), ("b.jpg", None, "no such file")], top=5)
    assert text == (
        "path,label,probability,label2,probability2,error\n"
        "a.jpg,cat,0.9,dog,0.1,\n"
        "b.jpg,,,,,no such file\n"
    )
    record = json.loads(made([("a.jpg", CAT, "")], top=2, as_json=True))
    assert record == {
        "path": "a.jpg",
        "label": "cat",
        "probability": 0.9,
        "top": [
            {"label": "cat", "probability": 0.9},
            {"label": "dog", "probability": 0.1},
        ],
        "error": None,
    }


def test_unknown_images_keep_their_best_class() -> None:
    unknown = Prediction("unknown", 0.9, CAT.ranked, "cat")
    assert made([("a.jpg", unknown, "")], shows_best=True) == (
        "path,label,probability,best_label,error\na.jpg,unknown,0.9,cat,\n"
    )
    record = json.loads(made([("a", unknown, "")], shows_best=True, as_json=True))
    assert (record["label"], record["best_label"]) == ("unknown", "cat")


def test_several_labels() -> None:
    found = Prediction(["cat", "dog"], [1.5, 0.2], (("cat", 1.5),))
    assert made([("a", found, "")], kind="labels", top=1, separator="|") == (
        "path,label,score,label1,score1,error\na,cat|dog,1.5|0.2,cat,1.5,\n"
    )
    none = made([("a", Prediction([], []), "")], kind="labels", as_json=True)
    assert json.loads(none) == {"path": "a", "label": [], "score": [], "error": None}


def test_several_values() -> None:
    rows = [("a", Prediction([1.5, 2.0]), ""), ("b", None, "bad")]
    assert made(rows, kind="values", classes=()) == (
        "path,value,error\na,1.5;2.0,\nb,,bad\n"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "cat"),
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1-2", "'+1-2"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        ("-1", "-1"),
        ("+3.5e-3", "+3.5e-3"),
        ("größe", "größe"),
    ],
)
def test_no_cell_is_a_formula(text: str, shown: str) -> None:
    assert safe_text(text) == shown


def test_a_file_for_spreadsheets_and_one_for_programs(tmp_path: Path) -> None:
    rows = [("=a.jpg", Prediction("=b", 0.5), "")]
    for_spreadsheet = made(rows, output=tmp_path / "rows.CSV")
    assert for_spreadsheet == (
        "\ufeffpath,label,probability,error\n./=a.jpg,'=b,0.5,\n"
    )
    for output in (None, tmp_path / "rows.txt"):
        assert made(rows, output=output).splitlines()[1] == "=a.jpg,=b,0.5,"


def test_rows_are_added_below_one_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"

    def add(top: int) -> None:
        predictor: Any = SimpleNamespace(
            kind="classes", classes=["cat", "dog"], top=top
        )
        with open_rows(path, is_appended=True) as file:
            rows = Rows(file, predictor, False, False, ";", path)
            rows.write("a.jpg", CAT, "")

    add(0)
    add(0)
    assert path.read_text(encoding="utf-8") == (
        "\ufeffpath,label,probability,error\na.jpg,cat,0.9,\na.jpg,cat,0.9,\n"
    )
    with pytest.raises(ValueError, match="its columns are 'path,label,probability,er"):
        add(2)
