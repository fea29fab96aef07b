"""Tables of labels: forms, columns, tasks, and rows that are not taken."""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sk_cnncodes import LabelledImages, read_labels

NAMES = [f"{number}.jpg" for number in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "in").mkdir()
    for name in (*NAMES, "in/0.jpg", "Käfer.png", "a b;c.jpg"):
        (folder / name).touch()
    return folder


def written(folder: Path, text: str, name: str = "labels.csv", **options: Any) -> Path:
    path = folder / name
    path.write_text(text, newline="", **options)
    return path


def read(folder: Path, text: str, **options: Any) -> LabelledImages:
    return read_labels(written(folder, text, encoding="utf-8"), **options)


def names_of(found: LabelledImages) -> list[str]:
    return [Path(path).name for path in found.paths]


# -- forms ---------------------------------------------------------------------

CELLS = st.text(
    st.characters(codec="cp1252", exclude_categories=["Cc", "Zs", "Cf"]), min_size=1
).map(lambda text: f"x{text}x")


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    labels=st.lists(CELLS, min_size=4, max_size=12),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"]),
    ending=st.sampled_from(["\n", "\r\n"]),
    quoted=st.booleans(),
)
def test_separators_and_encodings(
    labels: list[str],
    separator: str,
    encoding: str,
    ending: str,
    quoted: bool,
    folder: Path,
) -> None:
    text = io.StringIO()
    how = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=separator, lineterminator=ending, quoting=how)
    writer.writerow(["file", "label", "site"])
    writer.writerows([n, label, "s"] for n, label in zip(NAMES, labels, strict=False))
    path = folder / "any.csv"
    content = text.getvalue().encode(encoding)
    path.write_bytes(content)
    try:
        is_utf8 = content.decode() != ""
    except UnicodeDecodeError:
        is_utf8 = False
    if encoding == "cp1252" and is_utf8:
        return  # nobody could tell
    found = read_labels(path)
    assert found.labels == labels
    assert names_of(found) == NAMES[: len(labels)]
    assert found.notes[1] == "Columns: image 'file', label 'label'; not used: 'site'."


ROWS = [{"path": "1.jpg", "class": "cat"}, {"path": "2.jpg", "class": "dog"}]


def test_json(folder: Path) -> None:
    lines = "\n".join(map(json.dumps, ROWS)) + "\n\n"
    for text, name in ((lines, "l.jsonl"), (json.dumps(ROWS, indent=1), "l.json")):
        found = read_labels(written(folder, text, name))
        assert (names_of(found), found.labels) == (["1.jpg", "2.jpg"], ["cat", "dog"])
    path = written(folder, '{"path": "1.jpg"\n', "l.jsonl")
    with pytest.raises(ValueError, match=r"l.jsonl': expected a JSON array of objects"):
        read_labels(path)
    with pytest.raises(ValueError, match=r"with the columns as keys; got 3 in row 2"):
        read_labels(written(folder, '[{"path": "1.jpg", "label": "a"}, 3]', "l.json"))


def test_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "image": ["1.jpg", "2.jpg", "3.jpg"],
        "tags": [["red", "round"], [], None],
        "fold": [1, 2, 3],
    }
    path = folder / "labels.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    found = read_labels(path)
    assert found.task == "multilabel"
    assert found.labels == [["red", "round"], []]
    assert found.left_out[0].items == ("row 3",)
    with pytest.raises(ValueError, match="expected a Parquet file"):
        read_labels(written(folder, "a,b", "broken.parquet"))


def test_parquet_needs_pyarrow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'sk-cnncodes\[pandas\]'"):
        read_labels(written(folder, "", "labels.parquet"))


def test_what_spreadsheets_write(folder: Path) -> None:
    text = "sep=;\r\nDatei;Art;Bemerkung\r\nKäfer.png;Käfer;\r\n1.jpg;Wanze;\r\n"
    path = written(folder, text, encoding="utf-8-sig")
    found = read_labels(path, label_column="Art")
    assert found.labels == ["Käfer", "Wanze"]
    assert "utf-8-sig, cells between semicolons" in found.notes[0]


def test_no_header(folder: Path) -> None:
    found = read(folder, "1.jpg,cat\n2.jpg,dog\n")
    assert found.labels == ["cat", "dog"]
    assert found.notes[0].endswith("no header.")


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x", "labels.xlsx", r"a table that ends in .csv .tsv .* Excel, as CSV"),
        ("file\n1.jpg\n", "a.csv", "expected at least two columns"),
        ("", "a.csv", "expected at least two columns"),
        ("file,label\n", "a.csv", "expected a table with rows, got none"),
        ("file,label,label\n1.jpg,a,b\n", "a.csv", "got 'label' twice"),
        ("file,label\n0.png,a\n", "a.csv", "none of its image files exist.*'0.png'"),
        ("file,kind,origin\n1.jpg,a,b\n", "a.csv", r"\['kind', 'origin'\]. Name it by"),
        ("a,b\nx,y\n", "a.csv", r"expected a column of image files, got \['a', 'b'\]"),
        ("file,label\n1.jpg,\n", "a.csv", "no row has both .* 1 row: no label"),
    ],
)
def test_no_such_tables(text: str, name: str, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(written(folder, text, name))


def test_other_bytes(folder: Path) -> None:
    path = folder / "bytes.csv"
    path.write_bytes(codecs.BOM_UTF16_LE + b"a")
    with pytest.raises(ValueError, match="expected text in UTF-8, UTF-16 or Windows"):
        read_labels(path)


# -- columns and files ---------------------------------------------------------


def test_columns_are_guessed(folder: Path) -> None:
    text = "id,File Name,Species,burst_id,split,site\n"
    text += "7,1.jpg,fox,a,Train,x\n8,2.jpg,hen,b,test,x\n9,3.jpg,fox,,val,y\n"
    found = read(folder, text)
    assert found.labels == ["fox", "hen", "fox"]
    assert found.splits == ["train", "test", "validation"]
    assert found.groups is not None and found.groups[:2] == ["a", "b"]
    assert found.groups[2] not in ("", "a", "b")  # a group of its own
    assert found.notes[1] == (
        "Columns: image 'File Name', label 'Species', group 'burst_id', split 'split'; "
        "not used: 'id', 'site'."
    )
    given = read(folder, text, label_column="site", group_column="Species")
    assert (given.labels, given.groups) == (["x", "x", "y"], ["fox", "hen", "fox"])
    with pytest.raises(ValueError, match=r"label_column='Kind': expected one of its"):
        read(folder, text, label_column="Kind")


def test_a_split_column_is_guessed_by_its_words(folder: Path) -> None:
    text = "file,label,set\n1.jpg,a,north\n2.jpg,b,south\n"
    assert read(folder, text).splits is None
    with pytest.raises(ValueError, match="row 2: expected 'train', 'val' or 'test'"):
        read(folder, text, split_column="set")


def test_paths(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"file,label\n{folder / '1.jpg'},a\nin\\0.jpg,b\nin/0.jpg,b\n2.jpg,c\n"
    found = read(folder, text)
    assert found.labels == ["a", "b", "c"]
    assert found.left_out[0].items == ("row 4 repeats row 3",)
    path = written(tmp_path, "file,label\n1.jpg,a\n")
    assert read_labels(path, root=folder).paths == [str(folder / "1.jpg")]
    with pytest.raises(ValueError, match="Relative paths start from .* root=FOLDER is"):
        read_labels(path)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="from the working folder on: root='.'"):
        read_labels(path)
    with pytest.raises(ValueError, match="Download them first"):
        read(folder, "file,label\nhttps://example.org/1.jpg,a\n")


def test_rows_that_are_not_taken_are_named(folder: Path) -> None:
    text = "file,label\n1.jpg,a\n2.jpg,\n,b\ngone.jpg,a\n1.jpg,a\n3.jpg,a\n3.jpg,b\n"
    text += "4.jpg,a,b\n\n5.jpg,c\n"
    found = read(folder, text)
    assert (names_of(found), found.labels) == (["1.jpg", "5.jpg"], ["a", "c"])
    left_out = {each.reason: each.items for each in found.left_out}
    assert left_out == {
        "more cells than columns": ("row 9",),
        "no image file": ("row 4",),
        "no such file": ("row 5: gone.jpg",),
        "no label": ("row 3",),
        "the same file again": ("row 6 repeats row 2",),
        "one file with different labels": (f"rows 7, 8: {folder / '3.jpg'}",),
    }
    text = "\n".join(map(str, found.left_out))
    assert "1 row: one file with different labels (rows 7, 8: " in text
    assert "Correct them; or task='multilabel' takes all of them." in text


# -- tasks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "options", "task", "values"),
    [
        (["a", "b", "1"], {}, "classification", ["a", "b", "1"]),
        (["0", "1", "1"], {}, "classification", ["0", "1", "1"]),
        (["0", "1", "1"], {"task": "regression"}, "regression", [0.0, 1.0, 1.0]),
        (["0.5", "1", "1e2"], {}, "regression", [0.5, 1.0, 100.0]),
        (["0.5", "1"], {"task": "classification"}, "classification", ["0.5", "1"]),
        (["007", "1"], {}, "classification", ["007", "1"]),
        (
            ["a|b", "b", ""],
            {"label_separator": "|"},
            "multilabel",
            [["a", "b"], ["b"], []],
        ),
        (["a b", "b"], {"task": "multilabel"}, "multilabel", [["a b"], ["b"]]),
        (["NA", "Asia"], {}, "classification", ["NA", "Asia"]),
        (["NA", "1.5", "nan", "2"], {}, "regression", [1.5, 2.0]),
    ],
)
def test_tasks(
    labels: list[str], options: Any, task: str, values: list[Any], folder: Path
) -> None:
    text = "".join(f"{n}\t{x}\n" for n, x in zip(NAMES, labels, strict=False))
    found = read(folder, f"file\tlabel\n{text}", **options)
    assert (found.task, found.labels) == (task, values)


def test_whole_numbers(folder: Path, tmp_path: Path) -> None:
    rows = "".join(f"{name},{number % 3}\n" for number, name in enumerate(NAMES))
    few = read(folder, f"file,y\n{rows}")
    assert few.classes == ("0", "1", "2")
    assert "3 different ones: they are taken as classes" in few.notes[2]
    for number in range(30):
        (tmp_path / f"{number}.jpg").touch()
    rows = "".join(f"{number}.jpg,{number}\n" for number in range(30))
    many = read(tmp_path, f"file,age\n{rows}")
    assert (many.task, many.targets.tolist()) == (
        "regression",
        [*map(float, range(30))],
    )
    assert "task='classification' takes them as classes" in many.notes[2]


def test_decimal_commas(folder: Path) -> None:
    found = read(folder, "file;weight\n1.jpg;1,5\n2.jpg;20\n")
    assert (found.task, found.labels) == ("regression", [1.5, 20.0])
    assert read(folder, 'file,tag\n1.jpg,"1,5"\n2.jpg,20\n').task == "classification"


def test_what_is_no_number_is_named(folder: Path) -> None:
    found = read(folder, "file,y\n1.jpg,1.5\n2.jpg,much\n", task="regression")
    assert found.labels == [1.5]
    assert str(found.left_out[0]).startswith("1 row: 'much' is not a number (row 3).")


def test_several_rows_of_an_image_are_several_labels(folder: Path) -> None:
    text = "file,label\n1.jpg,a\n1.jpg,b\n2.jpg,b\n"
    found = read(folder, text, task="multilabel")
    assert found.labels == [["a", "b"], ["b"]]
    assert found.targets.tolist() == [[1, 1], [0, 1]]
    part = found.take([1])
    assert (part.classes, part.targets.tolist()) == (("a", "b"), [[0, 1]])


def test_wrong_options(folder: Path) -> None:
    text = "file,label\n1.jpg,a\n"
    with pytest.raises(ValueError, match="task: expected one of"):
        read(folder, text, task="classes")
    with pytest.raises(ValueError, match="label_separator: expected at least one"):
        read(folder, text, label_separator="")
    with pytest.raises(ValueError, match="expected no separator for task='regression'"):
        read(folder, text, label_separator=",", task="regression")
