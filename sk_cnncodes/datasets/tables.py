"""Read tables of text: CSV, TSV, JSON lines, JSON, Parquet."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
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
# Bytes of a text that are decoded at once, and rows of Parquet that are read at once.
_PART, _BATCH = 2**20, 1024
# Follows the last line of a text.
_END = "end of the text"
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


# What a row is: its number, as a reader of the file counts, and its values by column,
# some of which can be missing; True if it has more cells than there are columns.
Row = tuple[int, dict[str, Any], bool]


# Of a text of cells: the number of a row, its cells, and its lines, until the next.
_Record = tuple[int, list[str], list[str]]


@dataclass(frozen=True)
class TableStream:
    """A table whose rows are read one after the other, as often as they are asked for.

    Attributes
    ----------
    columns : list of str or None
        None if each row names its own, as in JSON.
    form : str
        What the file was found to be.
    read : callable
        Takes the names of the columns that are needed, or None for all, and yields each
        `Row`. It raises a ValueError where the table cannot be read.
    separator : str
        Between the cells; empty where it is no text file of cells.
    """

    columns: list[str] | None
    form: str
    read: Callable[[Sequence[str] | None], Iterator[Row]]
    separator: str = ""


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


def open_table(path: Path, place: str = "") -> TableStream:
    """Open a table; its form follows from its suffix and content.

    Rows are read one by one, of Parquet about a thousand at once; a JSON array is read
    whole.

    Parameters
    ----------
    path : Path
    place : str, default=""
        What errors name, if it is not the path.

    Raises
    ------
    OSError
        If it cannot be read.
    ImportError
        If it is a Parquet file, and pyarrow is not installed.
    ValueError
        If it is no table.
    """
    suffix, place = path.suffix.lower(), repr(place or str(path))
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{place}: expected a folder of images, or a table that ends in "
            f"{' '.join(SUFFIXES)}. Save other tables, such as those of Excel, as CSV."
        )
    if suffix in (".parquet", ".pq"):
        return _open_parquet(path, place)
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _open_json(path, place)
    return _open_cells(path, place, suffix)


def read_table(path: Path) -> Table:
    """Read a table of labels, of at least two columns.

    Raises
    ------
    OSError, ImportError, ValueError
        As `open_table`.
    """
    stream = open_table(path)
    if stream.separator and stream.columns is not None and len(stream.columns) < 2:
        names = ", ".join(_SEPARATORS.values())
        raise ValueError(
            f"{str(path)!r}: expected at least two columns, of images and labels, "
            f"separated by {names}; got one."
        )
    rows, broken = list[tuple[int, dict[str, Any]]](), list[str]()
    for number, row, is_broken in stream.read(None):
        if is_broken:
            broken.append(f"row {number}")
        else:
            rows.append((number, row))
    if not rows:
        raise ValueError(f"{str(path)!r}: expected a table with rows, got none.")
    columns = stream.columns
    if columns is None:
        columns = list(dict.fromkeys(name for _, row in rows for name in row))
    return Table(columns, rows, stream.form, stream.separator, tuple(broken))


# -- CSV and its kin -----------------------------------------------------------


def _open_cells(path: Path, place: str, suffix: str) -> TableStream:
    encoding = _encoding(path, place)
    with open(path, encoding=encoding, newline="") as file:
        given = re.match(r"sep=(.)\s*$", file.readline())  # as Excel writes
    skipped = 1 if given else 0

    def records(separator: str) -> Iterator[_Record]:
        number = skipped
        try:
            with open(path, encoding=encoding, newline="") as file:
                lines = list[str]()
                noted = _noted(islice(file, skipped, None), lines)
                for cells in csv.reader(noted, delimiter=separator):
                    if lines[0] is _END:
                        return
                    number += 1
                    if any(cell.strip() for cell in cells):
                        yield number, [cell.strip() for cell in cells], lines
                    lines.clear()
        except csv.Error as error:
            raise ValueError(
                f"{place}: expected a table of text, got one that cannot be "
                f"read, in row {number + 1}: {error}."
            ) from error

    separator = given[1] if given else _separator(records, suffix)
    header = next((cells for _, cells, _ in records(separator)), [])
    form = f"{encoding}, cells between {_SEPARATORS.get(separator, repr(separator))}"
    has_header = not any(is_image_name(cell) for cell in header)
    if not has_header:
        header = [f"column {number}" for number in range(1, len(header) + 1)]
        form += ", no header"
    counts = Counter(filter(None, header))
    if counts and max(counts.values()) > 1:
        raise ValueError(
            f"{place}: expected columns with different names, got "
            f"{counts.most_common(1)[0][0]!r} twice."
        )

    def read(_: Sequence[str] | None) -> Iterator[Row]:
        width = len(header)
        for position, (number, cells, lines) in enumerate(records(separator)):
            if len(lines) > 1 and _swallows_rows(lines, separator, width):
                raise ValueError(
                    f"{place}: row {number}: a quote opens a cell, and the rows behind "
                    "it are in that cell. Expected a second quote that ends the cell. "
                    'Write a quote inside of a cell twice (""), or save the table as '
                    "JSON lines or Parquet."
                )
            if position == 0 and has_header:
                continue
            row = dict(zip(header, cells, strict=False))
            yield number, row, len(cells) > width and any(cells[width:])

    return TableStream([name for name in header if name], form, read, separator)


def _noted(source: Iterable[str], lines: list[str]) -> Iterator[str]:
    """The same lines, also added to a list, and `_END`.

    A row that takes it in has a quote that was not closed.
    """
    for line in source:
        lines.append(line)
        yield line
    lines.append(_END)
    yield _END


def _swallows_rows(lines: Sequence[str], separator: str, width: int) -> bool:
    """Whether the lines of one row are several: a quote in it was not closed.

    Either it is open at the end, or each line behind the first is a row by itself, with
    an image. Lines of a text in a cell are none.
    """
    if lines[-1] is _END:
        return True
    # By itself, each line: quotes that one of them opens end with it.
    rows = (next(csv.reader([line], delimiter=separator)) for line in lines[1:])
    return all(
        len(cells) == width and any(is_image_name(cell.strip()) for cell in cells)
        for cells in rows
        if cells
    )


def _encoding(path: Path, place: str) -> str:
    """The encoding of a text, of which all is read, but little is kept."""
    with open(path, "rb") as file:
        content = file.read(4096)
    encoding = next((e for bom, e in _BOMS.items() if content.startswith(bom)), "")
    if not encoding and content.count(0) > len(content) // 4:
        # UTF-16 without a mark: the other byte of each letter is 0.
        encoding = "utf-16-be" if content[0] == 0 else "utf-16-le"
    for name in [encoding] if encoding else ["utf-8", "cp1252"]:
        wrong = _first_other_byte(path, name)
        if wrong is None:
            return name
    raise ValueError(
        f"{place}: expected text in UTF-8, UTF-16 or Windows-1252, got other "
        f"bytes at {wrong}. Save it as UTF-8."
    )


def _first_other_byte(path: Path, encoding: str) -> int | None:
    """Where the first byte is that is not of an encoding; None if all are."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0
    with open(path, "rb") as file:
        while True:
            part = file.read(_PART)
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(part, not part)
            except UnicodeDecodeError as error:
                return position - held + error.start
            position += len(part)
            if not part:
                return None


def _separator(records: Callable[[str], Iterator[_Record]], suffix: str) -> str:
    """What separates cells: what cuts most lines into as many cells as the first."""
    best, separator = (-1.0, 0), ","
    tabs_first = sorted(_SEPARATORS, key=lambda each: each != "\t")
    for each in tabs_first if suffix in (".tsv", ".tab") else _SEPARATORS:
        widths = [len(cells) for _, cells, _ in islice(records(each), _TRIED)]
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


def check_columns(wanted: Iterable[Any], names: Sequence[str], path: Any) -> None:
    """Refuse columns that a table or another source does not have.

    Raises
    ------
    ValueError
        If there is one; it begins with `path`.
    """
    for name in wanted:
        if name not in names:
            raise ValueError(f"{path}: column {name!r}: expected one of {list(names)}.")


def as_text(cell: Any) -> str | None:
    """A cell as text; None if it is empty."""
    return None if cell is None else str(cell)


# -- JSON and Parquet ----------------------------------------------------------


def _open_json(path: Path, place: str) -> TableStream:
    encoding = _encoding(path, place)
    # A line is what a line feed ends: cells can have other ends of lines.
    with open(path, encoding=encoding, newline="\n") as file:
        start = next((line.lstrip() for line in file if line.strip()), "")
    is_array = start.startswith("[")
    what = "an array of objects" if is_array else "an object in each line"

    def values() -> Iterator[tuple[int, Any]]:
        with open(path, encoding=encoding, newline="\n") as file:
            if is_array:
                yield from enumerate(json.load(file), 1)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)

    def read(_: Sequence[str] | None) -> Iterator[Row]:
        try:
            for number, row in values():
                if not isinstance(row, dict):
                    break
                yield number, row, False
            else:
                return
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{place}: expected a JSON array of objects, or an object in "
                f"each line; got what cannot be read: {error}."
            ) from error
        raise ValueError(
            f"{place}: expected {what}, with the columns as keys; got "
            f"{json.dumps(row)[:60]} in row {number}."
        )

    form = "a JSON array" if is_array else "JSON lines"
    return TableStream(None, f"{encoding}, {form}", read)


def import_parquet(what: str) -> Any:
    """pyarrow.parquet, or an ImportError that says how to install it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{what}: Parquet needs pyarrow, which is not installed: pip install "
            "'sk-cnncodes[pandas]'."
        ) from error
    return pyarrow.parquet


def _open_parquet(path: Path, place: str) -> TableStream:
    parquet = import_parquet(place)
    import pyarrow

    try:
        schema = parquet.read_schema(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{place}: expected a Parquet file: {error}") from error
    names = [
        field.name
        for field in schema
        if not pyarrow.types.is_struct(field.type)
        and not pyarrow.types.is_binary(field.type)
        and not field.name.startswith("__")
    ]

    def read(needed: Sequence[str] | None) -> Iterator[Row]:
        taken = names if needed is None else [name for name in names if name in needed]
        number = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH, columns=taken):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row, False
        except pyarrow.ArrowException as error:
            raise ValueError(
                f"{place}: expected a whole Parquet file: {error}"
            ) from error

    return TableStream(names, "Parquet", read)
