"""Rows of predictions: CSV for programs and for spreadsheets, and JSON lines."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sk_cnncodes.base.files import atomic_write
from sk_cnncodes.cli.serving.predictor import Prediction, Predictor

# What a spreadsheet may take for a formula when a cell begins with it.
_FORMULA = tuple("=+-@\t\r")
_BOM = "\ufeff"


@contextmanager
def open_rows(output: Path | None, is_appended: bool) -> Iterator[TextIO]:
    """Open the file for rows; without one, use standard output.

    Parameters
    ----------
    output : Path or None
    is_appended : bool
        Whether rows are added to the file as they come; otherwise it appears, and
        replaces one, when all is done.
    """
    how: dict[str, Any] = {
        "encoding": "utf-8",
        "errors": "surrogateescape",
        "newline": "",
    }
    if output is None:
        yield sys.stdout
    elif is_appended:
        with open(output, "a", **how) as file:
            yield file
    else:
        with atomic_write(output) as part, open(part, "w", **how) as file:
            yield file


class Rows:
    """Writes a row for each image; the header comes with the first one.

    Parameters
    ----------
    file : text file
    predictor : Predictor
        Decides the columns.
    as_json : bool
        JSON lines instead of CSV.
    shows_best : bool
        Whether rows tell the most probable class of unknown images.
    separator : str
        Between several labels or values in a cell.
    output : Path or None
        The file's path. Spreadsheets are expected to open what ends in ``.csv``: it
        begins with a byte order mark, and no cell is a formula.

    Raises
    ------
    ValueError
        If the file has rows with other columns.
    """

    def __init__(
        self,
        file: TextIO,
        predictor: Predictor,
        as_json: bool,
        shows_best: bool,
        separator: str,
        output: Path | None,
    ) -> None:
        self._file = file
        self._csv = None if as_json else csv.writer(file, lineterminator="\n")
        self._for_spreadsheets = (
            output is not None and not as_json and output.suffix.lower() == ".csv"
        )
        self._kind = predictor.kind
        self._score = "score" if predictor.kind == "labels" else "probability"
        self._top = min(predictor.top, len(predictor.classes))
        self._shows_best = shows_best
        self._separator = separator
        self._needs_header = not as_json
        if self._csv is not None and output is not None and output.is_file():
            self._check_header(output)

    def write(self, path: str, prediction: Prediction | None, fault: str) -> None:
        """Write the row of an image; without a prediction, of a bad one."""
        if self._csv is None:
            record = self._record(path, prediction, fault)
            self._file.write(json.dumps(record) + "\n")
            return
        if self._needs_header:
            self._file.write(_BOM if self._for_spreadsheets else "")
            self._csv.writerow(self._columns())
            self._needs_header = False
        self._csv.writerow(self._cells(path, prediction, fault))

    def flush(self) -> None:
        """Hand on what was written."""
        self._file.flush()

    def _check_header(self, output: Path) -> None:
        """Leave out the header if the file that rows are added to has it."""
        if self._file.mode != "a" or not output.stat().st_size:
            return
        with open(output, encoding="utf-8-sig", errors="surrogateescape") as before:
            first = before.readline().rstrip("\r\n")
        expected = ",".join(self._columns())
        if first != expected:
            raise ValueError(
                f"output {str(output)!r}: its columns are {first[:100]!r}. Expected "
                f"{expected!r}, to which rows can be added, or a new file."
            )
        self._needs_header = False

    # -- JSON ------------------------------------------------------------------

    def _record(
        self, path: str, prediction: Prediction | None, fault: str
    ) -> dict[str, Any]:
        found = Prediction(None) if prediction is None else prediction
        if self._kind == "values":
            return {"path": path, "value": found.label, "error": fault or None}
        record = {"path": path, "label": found.label, self._score: found.score}
        if self._top:
            record["top"] = [
                {"label": label, self._score: score} for label, score in found.ranked
            ]
        if self._shows_best:
            record["best_label"] = found.best
        return record | {"error": fault or None}

    # -- CSV -------------------------------------------------------------------

    def _columns(self) -> list[str]:
        if self._kind == "values":
            return ["path", "value", "error"]
        columns = ["path", "label", self._score]
        # Several labels are ranked beside what is predicted.
        first = 1 if self._kind == "labels" else 2
        for number in range(first, self._top + 1):
            columns += [f"label{number}", f"{self._score}{number}"]
        if self._shows_best:
            columns.append("best_label")
        return [*columns, "error"]

    def _cells(self, path: str, prediction: Prediction | None, fault: str) -> list[Any]:
        found = Prediction(None) if prediction is None else prediction
        cells = [self._safe_path(path), self._cell(found.label)]
        if self._kind != "values":
            cells.append(self._cell(found.score))
            first = 0 if self._kind == "labels" else 1
            for number in range(first, self._top):
                pair = found.ranked[number : number + 1] or [(None, None)]
                cells += map(self._cell, pair[0])
            if self._shows_best:
                cells.append(self._cell(found.best))
        return [*cells, fault]

    def _cell(self, value: Any) -> Any:
        if value is None:
            return ""
        if isinstance(value, list):
            value = self._separator.join(map(str, value))
        if self._for_spreadsheets and isinstance(value, str):
            return safe_text(value)
        return value

    def _safe_path(self, path: str) -> str:
        """A path that is no formula: the same file, seen from here."""
        is_formula = self._for_spreadsheets and path.startswith(_FORMULA)
        return f"./{path}" if is_formula else path


def safe_text(text: str) -> str:
    """A text that no spreadsheet takes for a formula; numbers are none."""
    is_number = re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text)
    return f"'{text}" if text.startswith(_FORMULA) and not is_number else text
