"""Names -> backbones: the catalogue, and the preprocessing of any ONNX file."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from sk_cnncodes.backbone import Backbone
from sk_cnncodes.download import home_folder, obtain_file
from sk_cnncodes.exceptions import (
    BackboneError,
    DownloadError,
    PreprocessingError,
)
from sk_cnncodes.files import working_folder
from sk_cnncodes.forks import import_whole
from sk_cnncodes.model_files import digest_with_data, file_sha256, read_outline
from sk_cnncodes.preprocessing import METADATA_KEY, Preprocessing
from sk_cnncodes.preprocessing_formats import read_huggingface, read_timm

T = TypeVar("T")
_PACKAGE = Path(__file__).parent
# In a wheel `models` lies inside of the package, in a checkout beside it.
MODELS = next(
    (f for f in (_PACKAGE / "models", _PACKAGE.parent / "models") if f.is_dir()),
    _PACKAGE / "models",
)


@dataclass(frozen=True)
class CatalogueRow:
    """A known backbone.

    Attributes
    ----------
    name : str
    file : str
        File name in the home folder; a bundled file lies in `models`.
    sha256 : str
    size : int
        In bytes.
    license : str
        SPDX identifier.
    source : str
        Where the weights come from.
    architecture : str
    preprocessing : Preprocessing
    code_length : int
        Length of the codes of layer -1.
    penultimate : str
        Tensor of layer -1; "" where it is found when the file is read.
    top1 : float or None
        Stated top-1 accuracy on ImageNet, in %.
    aliases : tuple of str
        Other names.
    addresses : tuple of str
        Where the file can be downloaded, in order of preference.
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
        If a row lacks a value or has one too many.
    """
    with open(MODELS / "catalogue.toml", "rb") as file:
        tables = tomllib.load(file)
    return {name: _row(name, table) for name, table in tables.items()}


def _row(name: str, table: Mapping[str, Any]) -> CatalogueRow:
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


def list_backbones() -> list[CatalogueRow]:
    """The known backbones, bundled ones first.

    Returns
    -------
    list of CatalogueRow

    Examples
    --------
    >>> from sk_cnncodes.catalogue import list_backbones
    >>> [row.name for row in list_backbones() if row.bundled]
    ['cnncodes-mini']
    """
    return sorted(read_catalogue().values(), key=lambda row: not row.bundled)


def find_row(name: str) -> CatalogueRow | None:
    """The row with a name or an alias; None where there is none."""
    rows = read_catalogue()
    if name in rows:
        return rows[name]
    return next((row for row in rows.values() if name in row.aliases), None)


def local_file(row: CatalogueRow) -> Path | None:
    """Where the file of a row lies on this machine, by its name and size; or None."""
    try:
        path = MODELS / row.file if row.bundled else home_folder() / row.file
    except DownloadError:
        return None
    return path if path.is_file() and path.stat().st_size == row.size else None


def download_backbone(name: str, progress: bool | None = None) -> Path:
    """Have the file of a known backbone on this machine.

    Parameters
    ----------
    name : str
        Its name in the catalogue, or an alias.
    progress : bool or None, default=None
        Whether to show a progress bar; None shows one on a terminal.

    Returns
    -------
    Path

    Raises
    ------
    BackboneError
        If no backbone has this name.
    DownloadError
        If the file is not there and cannot be downloaded, or does not work.
    """
    row = find_row(name)
    if row is None:
        raise BackboneError(
            f"backbone={name!r}: not in the catalogue. Expected {_names_like(name)}."
        )
    return MODELS / row.file if row.bundled else obtain_file(row, progress)


def _names_like(name: str) -> str:
    """The names that could be meant, for a message."""
    rows = list_backbones()
    names = [each for row in rows for each in (row.name, *row.aliases)]
    close = difflib.get_close_matches(name.strip().lower(), names, n=4)
    nearest = " or ".join(repr(each) for each in close or [rows[0].name])
    return f"a name that list_backbones() shows, such as {nearest}"


def load_backbone(
    name_or_path: str | os.PathLike[str],
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
) -> Backbone:
    """Find a backbone and the preprocessing that belongs to it.

    Parameters
    ----------
    name_or_path : str or path-like
        The name or an alias of a known backbone, such as ``"cnncodes-mini"`` or
        ``"resnet50"``, or the path of an ONNX file. A string that is a name is never
        read as a path: should a file be called the same, a warning says so, and
        ``"./resnet50"`` or a `pathlib.Path` stands for the file.
    preprocessing : Preprocessing, dict or None, default=None
        None takes, in this order: the file's own metadata, the catalogue's row of the
        file's SHA-256, a Hugging Face `preprocessor_config.json` beside the file, a
        timm `config.json` beside the file.

    Returns
    -------
    Backbone

    Raises
    ------
    BackboneError
        If there is no such backbone, or the file is not an ONNX image network.
    DownloadError
        If the file of a known backbone is not there and cannot be downloaded.
    PreprocessingError
        If no preprocessing is known for the file.

    Notes
    -----
    The file of a name is looked for in the package, then in the home folder, and
    else downloaded to it. The home folder is `SK_CNNCODES_HOME`, or the user's cache
    folder. A download is compared with the catalogue's SHA-256, run once, and only
    then put in place. `SK_CNNCODES_OFFLINE=1` forbids the network;
    `SK_CNNCODES_MIRROR`, such as ``"https://mirror.example.org"``, replaces scheme and
    host of the addresses.

    Examples
    --------
    >>> from sk_cnncodes import load_backbone
    >>> backbone = load_backbone("cnncodes-mini")
    >>> backbone.preprocessing.crop_size
    (116, 116)
    >>> len(backbone.layers) >= 4
    True
    """
    path = _find_file(name_or_path)
    for module in ("onnx", "onnx.inliner", "onnx.version_converter"):
        import_whole(module)
    digest = file_sha256(path)
    model = read_outline(path)
    row = next((r for r in read_catalogue().values() if r.sha256 == digest), None)
    if isinstance(preprocessing, Mapping):
        preprocessing = Preprocessing.from_dict(preprocessing)
    if preprocessing is None:
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        preprocessing = _known_preprocessing(path, digest, metadata, row)
    elif not isinstance(preprocessing, Preprocessing):
        raise TypeError(
            "preprocessing: expected a Preprocessing, a dict of its parameters, or "
            f"None, got {preprocessing!r}."
        )
    return Backbone(
        path=path,
        sha256=digest_with_data(path, model),
        preprocessing=preprocessing,
        name=row.name if row else None,
        penultimate=(row.penultimate or None) if row else None,
    )


def _find_file(name_or_path: str | os.PathLike[str]) -> Path:
    """Path of the ONNX file that a name or a path stands for."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(
            "backbone: expected the name of a known backbone or the path of an ONNX "
            f"file, got {name_or_path!r}."
        )
    path = Path(name_or_path)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise BackboneError(f"backbone={str(name_or_path)!r}: {error}.") from error
    if isinstance(name_or_path, str) and find_row(name_or_path) is not None:
        if is_file:
            warnings.warn(
                f"backbone={name_or_path!r} is taken as the name of a known backbone, "
                f"not as the file of that name in {working_folder()}. If the file is "
                f"meant, write {f'.{os.sep}{name_or_path}'!r}.",
                stacklevel=3,
            )
        return download_backbone(name_or_path)
    if is_file:
        return path
    what = "is a folder" if is_folder else "no such file"
    if find_row(str(path)) is not None:
        what += f"; the known backbone of this name is {str(path)!r}, a string"
    else:
        what += ", and no known backbone has this name"
    raise BackboneError(
        f"backbone={str(name_or_path)!r}: {what}. "
        f"Expected {_names_like(str(name_or_path))}, or the path of an ONNX file; "
        f"relative paths start from {working_folder()}."
    )


def _known_preprocessing(
    path: Path, digest: str, metadata: dict[str, str], row: CatalogueRow | None
) -> Preprocessing:
    """The preprocessing stated in or for a file; never a guess."""
    own = _read_values(path, Preprocessing.from_metadata, metadata)
    if own is not None:
        return own
    if row is not None:
        return row.preprocessing
    beside = path.parent / "preprocessor_config.json"
    if beside.is_file():
        return _read_values(beside, read_huggingface, _read_json(beside))
    beside = path.parent / "config.json"
    if beside.is_file():
        config = _read_json(beside)
        if "pretrained_cfg" in config or "input_size" in config:
            return _read_values(beside, read_timm, config)
    raise PreprocessingError(
        f"backbone {str(path)!r}: its preprocessing is not known: neither its metadata "
        f"({METADATA_KEY}) nor the catalogue (sha256 {digest[:12]}...) nor a "
        "preprocessor_config.json or timm config.json beside it states it. Expected "
        "preprocessing=Preprocessing(crop_size=..., resize_size=..., scale=..., "
        "mean=..., std=...), as the network was trained."
    )


def _read_values(
    path: Path, read: Callable[[Mapping[str, Any]], T], config: Mapping[str, Any]
) -> T:
    """What a reader makes of values in a file; faults name the file."""
    try:
        return read(config)
    except PreprocessingError as error:
        raise PreprocessingError(f"{str(path)!r}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise PreprocessingError(
            f"{str(path)!r}: a value is not of the kind it should be ({error})."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PreprocessingError(f"{str(path)!r}: not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise PreprocessingError(
            f"{str(path)!r}: expected a JSON object, got {type(values).__name__}."
        )
    return values
