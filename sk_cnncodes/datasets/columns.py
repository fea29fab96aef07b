"""Which columns of a table have the images, labels, groups and splits."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from sk_cnncodes.datasets.labelled_images import SPLIT_NAMES
from sk_cnncodes.datasets.tables import Table, is_image_name

# Names of columns, by which they are guessed; in lower case, letters and digits only.
_IMAGE_NAMES = (
    *("path", "filepath", "imagepath", "imgpath", "filename", "imagefilename"),
    *("file", "imagefile", "image", "images", "img", "imagename", "imageid", "name"),
    *("photo", "picture"),
)
_LABEL_NAMES = (
    *("label", "labels", "class", "classes", "classname", "classlabel", "category"),
    *("target", "y", "species", "tag", "tags", "diagnosis", "breed", "value"),
)
_GROUP_NAMES = (
    *("group", "groups", "groupid", "burst", "burstid", "individual", "individualid"),
    *("animalid", "patient", "patientid", "subject", "subjectid", "specimen"),
    *("specimenid", "sequenceid", "videoid"),
)
_SPLIT_NAMES = ("split", "set", "subset", "partition")


def choose_columns(
    table: Table, path: str, given: dict[str, str | None]
) -> dict[str, str]:
    """The column of each role: those that are given, and those that are guessed.

    Parameters
    ----------
    table : Table
    path : str
        For messages.
    given : dict of str to str or None
        By the roles "image", "label", "group" and "split"; None is not given.

    Raises
    ------
    ValueError
        If a column is missing, or those of images or labels cannot be guessed.
    """
    for role, name in given.items():
        if name is not None and name not in table.columns:
            raise ValueError(
                f"{path!r}: {role}_column={name!r}: expected one of its columns "
                f"{table.columns}."
            )
    found = {role: name for role, name in given.items() if name is not None}

    def free() -> list[str]:
        return [name for name in table.columns if name not in found.values()]

    if "image" not in found:
        names = [name for name in free() if _has_images(table, name)]
        name = _named(names, _IMAGE_NAMES) or next(iter(names), None)
        name = name or _named(free(), _IMAGE_NAMES)
        if name is None:
            raise ValueError(
                f"{path!r}: expected a column of image files, got {table.columns}. "
                "Name it by image_column=NAME."
            )
        found["image"] = name
    if "label" not in found:
        name = _named(free(), _LABEL_NAMES)
        if name is None and len(free()) == 1:
            (name,) = free()
        if name is None:
            raise ValueError(
                f"{path!r}: cannot tell which column has the labels: {free()}. Name it "
                "by label_column=NAME."
            )
        found["label"] = name
    if "group" not in found and (name := _named(free(), _GROUP_NAMES)):
        found["group"] = name
    if "split" not in found and (name := _named(free(), _SPLIT_NAMES)):
        values = {cell_text(row.get(name)).lower() for _, row in table.rows}
        if values <= {*SPLIT_NAMES}:
            found["split"] = name
    return {role: found[role] for role in given if role in found}


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that has the first of some names."""
    plain = {re.sub(r"[\W_]", "", name).lower(): name for name in reversed(columns)}
    return next((plain[name] for name in names if name in plain), None)


def _has_images(table: Table, column: str) -> bool:
    values = [row.get(column) for _, row in table.rows[:1000]]
    return sum(map(is_image_name, values)) > len(values) / 2


def cell_text(cell: Any) -> str:
    """What stands in a cell; empty if it is missing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return str(int(cell))
    return str(cell).strip()
