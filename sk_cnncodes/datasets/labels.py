"""Labelled images of a table: which columns, which files, and what kind of labels."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sk_cnncodes.base.public import public
from sk_cnncodes.datasets.columns import cell_text, choose_columns
from sk_cnncodes.datasets.labelled_images import (
    SPLIT_NAMES,
    TASKS,
    LabelledImages,
    LeftOut,
    Task,
)
from sk_cnncodes.datasets.tables import Table, read_table

# Cells that mean "not known" among numbers; among words they may be classes.
_MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "?"}
# Whole numbers of at most so many different values are classes.
MAX_NUMBERED_CLASSES = 20
_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)?")


@public
def read_labels(
    path: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    root: str | os.PathLike[str] | None = None,
    label_separator: str | None = None,
    task: Task | None = None,
) -> LabelledImages:
    """Read the labels of images from a table.

    Columns that are not named are guessed by their names and content;
    `LabelledImages.notes` says which were taken.

    Parameters
    ----------
    path : str or path-like
        A table in CSV (.csv, .tsv, .tab, .txt; cells between commas, semicolons, tabs
        or bars; in UTF-8, UTF-16 or Windows-1252), JSON lines (.jsonl, .ndjson), a JSON
        array of objects (.json), or Parquet (.parquet, .pq; needs pyarrow).
    image_column, label_column : str or None, default=None
        Names of the columns with the image files and with their labels.
    group_column : str or None, default=None
        Name of the column that says which images belong together.
    split_column : str or None, default=None
        Name of the column that says "train", "val" or "test", or another usual word.
    root : str, path-like or None, default=None
        Folder that relative paths of images start from; None: that of the table.
    label_separator : str or None, default=None
        What separates several labels in a cell; the task is then "multilabel".
    task : {"classification", "regression", "multilabel"} or None, default=None
        None finds it out: lists of labels are multilabel; labels of which some are no
        numbers are classes; numbers with decimals are values of a regression; whole
        numbers are classes where at most 20 different ones occur, and values otherwise.

    Returns
    -------
    LabelledImages
        In the order of the table, and what was not taken.

    Raises
    ------
    OSError
        If the table cannot be read.
    ImportError
        If it is a Parquet file, and pyarrow is not installed.
    ValueError
        If it is no such table, a column is missing or cannot be guessed, or no row has
        an image file and a label.

    Notes
    -----
    Rows without a label, those whose file is missing, and those that repeat a file with
    the same label are left out and named in `LabelledImages.left_out`, and so are all
    rows of a file with several different labels. With ``task="multilabel"``, the labels
    of all rows of a file are taken together. An empty cell is then an image without any
    of the labels. Rows are counted as in a spreadsheet: the header is row 1.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sk_cnncodes import read_labels
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("1.jpg", "2.jpg", "3.jpg"):
    ...         Path(folder, name).touch()
    ...     table = Path(folder, "labels.csv")
    ...     _ = table.write_text(
    ...         "file;species;burst\\n1.jpg;fox;a\\n2.jpg;badger;b\\n3.jpg;;b\\n"
    ...     )
    ...     found = read_labels(table)
    >>> found.labels, found.groups
    (['fox', 'badger'], ['a', 'b'])
    >>> print(found.left_out[0])
    1 row: no label (row 4). Fill in column 'species'.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task: expected one of {list(TASKS)} or None, got {task!r}.")
    table_path = Path(path)
    table = read_table(table_path)
    columns = choose_columns(
        table,
        str(table_path),
        {
            "image": image_column,
            "label": label_column,
            "group": group_column,
            "split": split_column,
        },
    )
    reader = _Reader(table, columns, Path(root) if root else table_path.parent)
    return reader.read(str(table_path), root is not None, label_separator, task)


# -- rows ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A row whose image file exists."""

    number: int
    path: str
    label: Any
    group: str
    split: str


@dataclass(frozen=True)
class _Reader:
    """Reads the rows of a table, and keeps what it leaves out."""

    table: Table
    columns: dict[str, str]
    root: Path

    def read(
        self, path: str, rooted: bool, separator: str | None, task: Task | None
    ) -> LabelledImages:
        """The images with their labels. Parameters are those of `read_labels`."""
        left_out = _LeftOut()
        for each in self.table.broken:
            left_out.add("more cells than columns", "", each)
        rows = self._existing(path, rooted, left_out)
        labels = _Labels.of([row.label for row in rows], separator, task, self.table)
        label_column = self.columns["label"]
        known = list[tuple[_Row, Any]]()
        for row in rows:
            value = labels.value(row.label)
            if value is None:
                cure = f"Fill in column {label_column!r}."
                fault = "no label"
                if labels.task == "regression" and cell_text(row.label):
                    fault = f"{cell_text(row.label)[:30]!r} is not a number"
                left_out.add(fault, cure, f"row {row.number}")
            else:
                known.append((row, value))
        kept = _once(known, labels.task, left_out)
        if not kept:
            raise ValueError(
                f"{path!r}: no row has both an image file and a label. "
                + " ".join(map(str, left_out.found()))
            )
        has_splits = "split" in self.columns
        used = {*self.columns.values()}
        others = [name for name in self.table.columns if name not in used]
        roles = ", ".join(f"{role} {name!r}" for role, name in self.columns.items())
        rest = f"; not used: {', '.join(map(repr, others))}" if others else ""
        read = (f"Read as {self.table.form}.", f"Columns: {roles}{rest}.")
        return LabelledImages(
            [row.path for row, _ in kept],
            [value for _, value in kept],
            [row.group for row, _ in kept] if "group" in self.columns else None,
            [row.split for row, _ in kept] if has_splits else None,
            labels.task,
            left_out=left_out.found(),
            notes=(*read, *labels.notes),
        )

    def _existing(self, path: str, rooted: bool, left_out: _LeftOut) -> list[_Row]:
        """The rows whose files exist."""
        rows, missing = list[_Row](), list[tuple[int, str]]()
        for number, values in self.table.rows:
            name = cell_text(values.get(self.columns["image"]))
            if not name:
                cure = f"Fill in column {self.columns['image']!r}."
                left_out.add("no image file", cure, f"row {number}")
                continue
            file = self._file(name)
            if file is None:
                missing.append((number, name))
                continue
            group = f"\0{number}"  # of its own where the cell is empty
            if "group" in self.columns:
                group = cell_text(values.get(self.columns["group"])) or group
            split = self._split(path, number, values)
            rows.append(
                _Row(number, file, values.get(self.columns["label"]), group, split)
            )
        if missing:
            cure = (
                f"Relative paths start from {str(self.root)!r}; root=FOLDER is another."
            )
            if not rooted and Path(missing[0][1]).exists():
                cure = "They are found from the working folder on: root='.'."
            if "://" in missing[0][1]:
                cure = "Download them first."
            for number, name in missing:
                left_out.add("no such file", cure, f"row {number}: {name}")
            if not rows:
                raise ValueError(
                    f"{path!r}: none of its image files exist, such as "
                    f"{missing[0][1]!r} in row {missing[0][0]}. {cure}"
                )
        return rows

    def _file(self, name: str) -> str | None:
        for each in (name, name.replace("\\", "/")):
            file = self.root / each
            try:
                if file.exists() and not file.is_dir():
                    return str(file)
            except (OSError, ValueError):  # no possible name
                return None
        return None

    def _split(self, path: str, number: int, values: dict[str, Any]) -> str:
        if "split" not in self.columns:
            return ""
        word = cell_text(values.get(self.columns["split"]))
        if word.lower() not in SPLIT_NAMES:
            raise ValueError(
                f"{path!r}: row {number}: expected 'train', 'val' or 'test' in column "
                f"{self.columns['split']!r}, got {word!r}."
            )
        return SPLIT_NAMES[word.lower()]


class _LeftOut:
    """Rows that are left out, by reason."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, reason: str, cure: str, item: str) -> None:
        self._items[reason, cure].append(item)

    def found(self) -> tuple[LeftOut, ...]:
        return tuple(
            LeftOut("row" if len(items) == 1 else "rows", tuple(items), reason, cure)
            for (reason, cure), items in self._items.items()
        )


def _once(
    rows: list[tuple[_Row, Any]], task: Task, left_out: _LeftOut
) -> list[tuple[_Row, Any]]:
    """One row for each file."""
    by_path: dict[str, list[tuple[_Row, Any]]] = defaultdict(list)
    for row, value in rows:
        by_path[os.path.normpath(row.path)].append((row, value))
    kept = list[tuple[_Row, Any]]()
    for same in by_path.values():
        first, value = same[0]
        if task == "multilabel":
            labels = (label for _, each in same for label in each)
            kept.append((first, list(dict.fromkeys(labels))))
            continue
        if any(other != value for _, other in same[1:]):
            numbers = ", ".join(str(row.number) for row, _ in same)
            cure = "Correct them; or task='multilabel' takes all of them."
            item = f"rows {numbers}: {first.path}"
            left_out.add("one file with different labels", cure, item)
            continue
        kept.append(same[0])
        for row, _ in same[1:]:
            item = f"row {row.number} repeats row {first.number}"
            left_out.add("the same file again", "", item)
    return kept


# -- labels --------------------------------------------------------------------


@dataclass(frozen=True)
class _Labels:
    """How cells become labels."""

    task: Task
    separator: str | None
    decimal_comma: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, cells: list[Any], separator: str | None, task: Task | None, table: Table
    ) -> _Labels:
        """Tell the task from all cells."""
        if separator == "":
            raise ValueError("label_separator: expected at least one letter, got ''.")
        if separator is not None and task not in (None, "multilabel"):
            raise ValueError(
                f"label_separator: expected no separator for task={task!r}, got "
                f"{separator!r}."
            )
        if separator is not None or any(isinstance(cell, list) for cell in cells):
            return cls(task or "multilabel", separator, False)
        texts = [cell_text(cell) for cell in cells]
        filled = [text for text in texts if text.lower() not in _MISSING]
        comma = table.separator not in ("", ",") and all(
            _DECIMAL_COMMA.fullmatch(text) for text in filled
        )
        if task is not None:
            return cls(task, separator, comma)
        values = [_number(text, comma) for text in filled]
        if not filled or None in values:
            return cls("classification", separator, comma)
        different = len({*values})
        cure = "task={!r} takes them as {}."
        if any(not _WHOLE.fullmatch(text) for text in filled):
            return cls("regression", separator, comma)
        if different <= MAX_NUMBERED_CLASSES:
            note = (
                f"The labels are whole numbers, {different} different ones: they are "
                "taken as classes. " + cure.format("regression", "values")
            )
            return cls("classification", separator, comma, (note,))
        note = (
            f"The labels are whole numbers, {different} different ones: they are taken "
            "as values to regress. " + cure.format("classification", "classes")
        )
        return cls("regression", separator, comma, (note,))

    def value(self, cell: Any) -> Any:
        """The label of a cell; None if it has none."""
        if self.task == "multilabel":
            if cell is None:
                return None
            parts = cell if isinstance(cell, list) else [cell]
            if self.separator is not None and not isinstance(cell, list):
                parts = str(cell).split(self.separator)
            return list(dict.fromkeys(filter(None, map(cell_text, parts))))
        text = cell_text(cell)
        if self.task == "classification":
            return text or None
        return _number(text, self.decimal_comma)


def _number(text: str, decimal_comma: bool) -> float | None:
    """A finite number; None for anything else."""
    try:
        found = float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
