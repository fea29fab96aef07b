"""The catalogue: the table of known backbones."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from sk_cnncodes.base.exceptions import DownloadError
from sk_cnncodes.base.home import cache_dir
from sk_cnncodes.base.public import public
from sk_cnncodes.images.preprocessing import Preprocessing

_PACKAGE = Path(__file__).parents[1]
# `models` is inside the package in a wheel, and beside it in a checkout.
MODELS = next(
    (f for f in (_PACKAGE / "models", _PACKAGE.parent / "models") if f.is_dir()),
    _PACKAGE / "models",
)


@public
@dataclass(frozen=True)
class CatalogueRow:
    """A known backbone.

    Attributes
    ----------
    name : str
        Name that `load_backbone` takes.
    file : str
        File name in the home folder, or in `models` for a bundled file.
    sha256 : str
        Digest of the file.
    size : int
        Size of the file in bytes.
    license : str
        SPDX identifier.
    source : str
        Where the weights come from.
    architecture : str
    preprocessing : Preprocessing
    code_length : int
        Length of the codes of layer -1.
    penultimate : str
        Tensor of layer -1; "" if it is found from the graph.
    top1 : float or None
        Published top-1 accuracy on ImageNet, in %.
    aliases : tuple of str
        Other names.
    addresses : tuple of str
        Download addresses, in order of preference.
    bundled : bool
        Whether the file comes with the package.
    notes : str
    """

    name: str
    file: str
    sha256: str
    size: int
    license: str
    source: str
    architecture: str
    preprocessing: Preprocessing
    code_length: int
    penultimate: str = ""
    top1: float | None = None
    aliases: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    bundled: bool = False
    notes: str = ""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return self.preprocessing.crop_size


@lru_cache(maxsize=1)
def read_catalogue() -> dict[str, CatalogueRow]:
    """The rows of `models/catalogue.toml` by name.

    Raises
    ------
    ValueError
        If a row lacks a value or has an unknown one.
    """
    with open(MODELS / "catalogue.toml", "rb") as file:
        tables = tomllib.load(file)
    return {name: _row(name, table) for name, table in tables.items()}


def _row(name: str, table: Mapping[str, Any]) -> CatalogueRow:
    """Create a row from its TOML table."""
    values = dict(table)
    known = {field.name for field in fields(CatalogueRow)} - {"name"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"catalogue row {name!r}: unknown {unknown}.")
    try:
        values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        for key in ("aliases", "addresses"):
            values[key] = tuple(values.get(key, ()))
        return CatalogueRow(name=name, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"catalogue row {name!r}: {error}") from error


@public
def list_backbones() -> list[CatalogueRow]:
    """Return the known backbones, bundled ones first.

    Returns
    -------
    list of CatalogueRow

    Examples
    --------
    >>> from sk_cnncodes import list_backbones
    >>> [row.name for row in list_backbones() if row.bundled]
    ['cnncodes-mini']
    """
    return sorted(read_catalogue().values(), key=lambda row: not row.bundled)


def find_row(name: str) -> CatalogueRow | None:
    """The row with a name or an alias; None if there is none."""
    rows = read_catalogue()
    if name in rows:
        return rows[name]
    return next((row for row in rows.values() if name in row.aliases), None)


def find_row_by_digest(sha256: str) -> CatalogueRow | None:
    """The row of a file with a SHA-256; None if there is none."""
    rows = read_catalogue().values()
    return next((row for row in rows if row.sha256 == sha256), None)


def bundled_file(row: CatalogueRow) -> Path:
    """Path of the file of a bundled backbone."""
    return MODELS / row.file


def local_file(row: CatalogueRow) -> Path | None:
    """Path of a row's local file, matched by name and size; None if missing."""
    try:
        path = bundled_file(row) if row.bundled else cache_dir() / row.file
    except DownloadError:
        return None
    return path if path.is_file() and path.stat().st_size == row.size else None
