"""Read tables of text: CSV, TSV, JSON lines, JSON, Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sk_cnncodes.images.formats import image_suffixes, unreadable_suffixes

SUFFIXES = (
    *(".csv", ".tsv", ".tab", ".txt"),
    *(".jsonl", ".ndjson", ".json", ".parquet", ".pq"),
)
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Records that the separator is found out from.
_TRIED = 100
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes
    ----------
    columns : list of str
    rows : list of (int, dict)
        The number of each row, as a reader of the file counts, and its values by
        column; a column can be missing.
    form : str
        What the file was found to be.
    separator : str
        Between the cells; empty where it is no text file of cells.
    broken : list of str
        Rows that have more cells than there are columns.
    """

    columns: list[str]
    rows: list[tuple[int, dict[str, Any]]]
    form: str
    separator: str = ""
    broken: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """Read a table; its form follows from its suffix and content.

    Raises
    ------
    OSError
        If it cannot be read.
    ImportError
        If it is a Parquet file, and pyarrow is not installed.
    ValueError
        If it is no table.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{str(path)!r}: expected a folder of images, or a table that ends in "
            f"{' '.join(SUFFIXES)}. Save other tables, such as those of Excel, as CSV."
        )
    if suffix in (".parquet", ".pq"):
        table = _read_parquet(path)
    elif suffix in (".json", ".jsonl", ".ndjson"):
        table = _read_json(path)
    else:
        table = _read_cells(path, suffix)
    if not table.rows:
        raise ValueError(f"{str(path)!r}: expected a table with rows, got none.")
    return table


# -- CSV and its kin -----------------------------------------------------------


def _read_cells(path: Path, suffix: str) -> Table:
    text, encoding = _decode(path)
    lines = text.splitlines(keepends=True)
    given = re.match(r"sep=(.)\s*$", lines[0]) if lines else None  # as Excel writes
    first = 1
    if given:
        text, first = "".join(lines[1:]), 2
    try:
        separator = given[1] if given else _separator(text, suffix)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        records = [
            (number, [cell.strip() for cell in cells])
            for number, cells in enumerate(reader, first)
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        raise ValueError(
            f"{str(path)!r}: expected a table of text, got one that cannot be read: "
            f"{error}."
        ) from error
    if not records or max(len(cells) for _, cells in records) < 2:
        names = ", ".join(_SEPARATORS.values())
        raise ValueError(
            f"{str(path)!r}: expected at least two columns, of images and labels, "
            f"separated by {names}; got one."
        )
    form = f"{encoding}, cells between {_SEPARATORS.get(separator, repr(separator))}"
    header = records[0][1]
    if any(is_image_name(cell) for cell in header):
        header = [f"column {number}" for number in range(1, len(header) + 1)]
        form += ", no header"
    else:
        records = records[1:]
    counts = Counter(filter(None, header))
    if max(counts.values()) > 1:
        raise ValueError(
            f"{str(path)!r}: expected columns with different names, got "
            f"{counts.most_common(1)[0][0]!r} twice."
        )
    rows, broken = list[tuple[int, dict[str, Any]]](), list[str]()
    for number, cells in records:
        if any(cells[len(header) :]):
            broken.append(f"row {number}")
            continue
        rows.append((number, dict(zip(header, cells, strict=False))))
    columns = [name for name in header if name]
    return Table(columns, rows, form, separator, tuple(broken))


def _decode(path: Path) -> tuple[str, str]:
    """The text of a file, and its encoding."""
    content = path.read_bytes()
    encoding = next((e for bom, e in _BOMS.items() if content.startswith(bom)), "")
    if not encoding and content[:4096].count(0) > len(content[:4096]) // 4:
        # UTF-16 without a mark: the other byte of each letter is 0.
        encoding = "utf-16-be" if content[0] == 0 else "utf-16-le"
    for name in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            return content.decode(name), name
        except UnicodeDecodeError as error:
            fault = error
    raise ValueError(
        f"{str(path)!r}: expected text in UTF-8, UTF-16 or Windows-1252, got other "
        f"bytes at {fault.start}. Save it as UTF-8."
    )


def _separator(text: str, suffix: str) -> str:
    """What separates cells: what cuts most lines into as many cells as the first."""
    best, separator = (-1.0, 0), ","
    tabs_first = sorted(_SEPARATORS, key=lambda each: each != "\t")
    for each in tabs_first if suffix in (".tsv", ".tab") else _SEPARATORS:
        widths = list[int]()
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=each):
            if any(cells):
                widths.append(len(cells))
            if len(widths) == _TRIED:
                break
        if not widths or max(widths) < 2:
            continue
        width, count = Counter(widths).most_common(1)[0]
        found = (count / len(widths) if width > 1 else 0.0, width)
        if found > best:
            best, separator = found, each
    return separator


def is_image_name(text: Any) -> bool:
    """Whether a text ends like the name of a photograph."""
    if not isinstance(text, str) or "." not in text:
        return False
    suffix = "." + text.rpartition(".")[2].lower()
    return suffix in image_suffixes() or suffix in unreadable_suffixes()


# -- JSON and Parquet ----------------------------------------------------------


def _read_json(path: Path) -> Table:
    text, encoding = _decode(path)
    rows = list[tuple[int, dict[str, Any]]]()
    what = (
        "an array of objects" if text.lstrip()[:1] == "[" else "an object in each line"
    )
    try:
        if text.lstrip()[:1] == "[":
            rows = list(enumerate(json.loads(text), 1))
        else:
            rows = [
                (number, json.loads(line))
                for number, line in enumerate(text.split("\n"), 1)
                if line.strip()
            ]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r}: expected a JSON array of objects, or an object in each "
            f"line; got what cannot be read: {error}."
        ) from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{str(path)!r}: expected {what}, with the columns as keys; got "
                f"{json.dumps(row)[:60]} in row {number}."
            )
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    form = "a JSON array" if what.startswith("an array") else "JSON lines"
    return Table(columns, rows, f"{encoding}, {form}")


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{str(path)!r}: Parquet needs pyarrow, which is not installed: pip "
            "install 'sk-cnncodes[pandas]'."
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{str(path)!r}: expected a Parquet file: {error}") from error
    names = [
        field.name
        for field in table.schema
        if not pyarrow.types.is_struct(field.type)
        and not pyarrow.types.is_binary(field.type)
        and not field.name.startswith("__")
    ]
    rows = table.select(names).to_pylist()
    return Table(names, list(enumerate(rows, 1)), "Parquet")
