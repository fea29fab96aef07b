"""State of a saved transformer, and the search for its backbone after loading.

A saved transformer holds a **reference** to the backbone used in `fit`: name, path,
SHA-256 and preprocessing. With ``store_backbone=True`` it also holds the **stored
graph**: the backbone cut at the layer, with preprocessing and pooling.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sk_cnncodes._version import __version__
from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.catalogue import (
    bundled_file,
    find_row,
    find_row_by_digest,
)
from sk_cnncodes.backbones.hub_address import is_hub_address
from sk_cnncodes.backbones.loading import load_backbone
from sk_cnncodes.backbones.stored import is_intact, record_digest
from sk_cnncodes.base.exceptions import BackboneError, DownloadError, SavedModelError
from sk_cnncodes.base.files import file_sha256
from sk_cnncodes.base.home import cache_dir
from sk_cnncodes.codes.parameters import layer_list
from sk_cnncodes.graphs.wire_format import has_external_data
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.layers.layer import Layer

FOLDERS_VARIABLE = "SK_CNNCODES_BACKBONES"
VERSION_KEY = "_sk_cnncodes_version"
STORED_KEY = "_stored_graph"
# Parameters that affect the codes: a stored graph is valid for their values only.
_CODE_PARAMETERS = (
    "backbone",
    "layer",
    "pooling",
    "norm",
    "preprocessing",
    "views",
    "precision",
)

Reference = dict[str, Any]


def backbone_text(backbone: str | os.PathLike[str]) -> str:
    """A `backbone` parameter as a string with the same meaning on any system."""
    text = os.fspath(backbone)
    if isinstance(backbone, str) or find_row(text) is None:
        return text
    return f".{os.sep}{text}"  # a path that would be taken for a name


def make_reference(
    parameter: str | os.PathLike[str], backbone: Backbone, layers: list[Layer]
) -> Reference:
    """The reference by which a fitted transformer recognises its backbone."""
    names, rules = [x.name for x in layers], [x.rule for x in layers]
    reference = {
        "parameter": backbone_text(parameter),
        "name": backbone.name,
        "path": str(backbone.path.absolute()),
        "sha256": backbone.sha256,
        "preprocessing": backbone.preprocessing.to_dict(),
        "preprocessing_origin": backbone.preprocessing_origin,
        "layer": names if len(names) > 1 else names[0],
        "layer_rule": rules if len(rules) > 1 else rules[0],
    }
    if backbone.address is not None:
        reference["address"] = backbone.address
    return reference | {"check": record_digest(reference)}


def find_backbone(
    reference: Reference,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
    advice: str,
) -> Backbone:
    """Find the backbone that a transformer was fitted with.

    It is searched for at its path, in the folders listed in `SK_CNNCODES_BACKBONES`,
    and in the home folder. If it is in the catalogue, it is then downloaded; if it was
    loaded by an address of the Hub, its commit is fetched.

    Parameters
    ----------
    reference : dict
    preprocessing : Preprocessing, dict or None
        None uses the preprocessing of the reference.
    advice : str
        For the error: how the file is not needed.

    Returns
    -------
    Backbone

    Raises
    ------
    BackboneError
        If no file is found, or only files with different content.
    """
    origin = "the parameter preprocessing"
    if preprocessing is None:
        preprocessing = Preprocessing.from_dict(reference["preprocessing"])
        origin = reference["preprocessing_origin"]
    mismatches = []
    candidates = list(_candidate_paths(reference))
    for path in candidates:
        if not path.is_file():
            continue
        try:
            found = load_backbone(path, preprocessing)
        except BackboneError:  # a damaged file
            mismatches.append((path, file_sha256(path)))
            continue
        if found.sha256 == reference["sha256"]:
            return replace(found, preprocessing_origin=origin)
        mismatches.append((path, found.sha256))
    row = find_row_by_digest(reference["sha256"])
    source: str | None = reference.get("address")
    if source is None and row is not None and not mismatches:
        source = row.name
    fault = None
    if source is not None:
        try:
            found = load_backbone(source, preprocessing)
            if found.sha256 == reference["sha256"]:
                return replace(found, preprocessing_origin=origin)
            mismatches.append((found.path, found.sha256))
        except DownloadError as error:
            fault = error
    if mismatches:
        got = " and ".join(f"{digest} ({str(path)!r})" for path, digest in mismatches)
        raise BackboneError(
            f"backbone={reference['parameter']!r}: the file is not the one this "
            f"transformer was fitted with. Expected sha256 {reference['sha256']}, got "
            f"{got}. Restore the original file, put it into a folder listed in "
            f"{FOLDERS_VARIABLE}, or fit again."
        )
    searched = ", ".join(repr(str(path)) for path in candidates)
    folders = os.environ.get(FOLDERS_VARIABLE)
    cure = f"Set {FOLDERS_VARIABLE} to the folder that contains it"
    if folders:
        cure = f"Add the folder that contains it to {FOLDERS_VARIABLE}={folders!r}"
    raise BackboneError(
        f"backbone={reference['parameter']!r}: its file (sha256 {reference['sha256']}) "
        f"was not found. Expected it at one of {searched}. {cure}, {advice}"
        f"{f' Downloading it failed: {fault}' if fault else ''}"
    ) from fault


def _candidate_paths(reference: Reference) -> Iterator[Path]:
    """Paths where the file of a backbone may be, without duplicates."""
    row = find_row(reference["parameter"])
    file = row.file if row else re.split(r"[\\/]", reference["path"])[-1]
    paths = [Path(reference["path"])]
    if row is None and not is_hub_address(reference["parameter"]):
        paths.insert(0, Path(reference["parameter"]))
    elif row is not None and row.bundled:
        paths.append(bundled_file(row))
    folders = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    paths += [Path(os.path.expanduser(f), file) for f in folders if f]  # noqa: PTH111
    with suppress(DownloadError):
        paths.append(cache_dir() / file)
    yield from dict.fromkeys(path.absolute() for path in paths)


def code_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that affect the codes, as built-in types."""
    found = {name: parameters[name] for name in _CODE_PARAMETERS}
    if parameters.get("decoder") == "gpu":
        found["decoder"] = "gpu"  # a later parameter: models saved before lack it
    found["backbone"] = backbone_text(found["backbone"])
    if isinstance(found["preprocessing"], Mapping):
        found["preprocessing"] = Preprocessing.from_dict(found["preprocessing"])
    if isinstance(found["preprocessing"], Preprocessing):
        found["preprocessing"] = found["preprocessing"].to_dict()
    layers = layer_list(found["layer"])
    several = isinstance(found["layer"], (list, tuple))
    found["layer"] = layers if several else layers[0]
    return found


# -- states ------------------------------------------------------------------


def saved_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """State of a transformer for saving: with the version, and paths as strings."""
    saved = dict(state)
    saved["backbone"] = backbone_text(saved["backbone"])
    if isinstance(saved["cache"], os.PathLike):
        saved["cache"] = os.fspath(saved["cache"])
    return saved | {VERSION_KEY: __version__}


def restored_state(state: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """State of a transformer saved by this or an older version.

    Raises
    ------
    SavedModelError
        If a newer version saved it, its record of the backbone was edited, or its
        stored graph refers to other files.
    """
    restored = dict(state)
    version = restored.pop(VERSION_KEY, "0.1.0")
    signature = inspect.signature(kind)
    defaults = {name: p.default for name, p in signature.parameters.items()}
    unknown = [
        name
        for name in restored
        if name not in defaults and not name.startswith("_") and not name.endswith("_")
    ]
    if unknown:
        raise SavedModelError(
            f"a {kind.__name__} saved by sk_cnncodes {version} has the parameters "
            f"{unknown}, which sk_cnncodes {__version__} does not know. "
            f"Expected sk_cnncodes {version} or newer to load it."
        )
    restored = defaults | restored
    for key in ("fitted_backbone_", STORED_KEY):
        record = restored.get(key)
        if record is not None and not is_intact(record):
            raise SavedModelError(
                f"a {kind.__name__} saved by sk_cnncodes {version}: its record of the "
                f"backbone ({key}) was changed after it was saved. Expected the "
                "original record; save the pipeline again."
            )
    stored = restored.get(STORED_KEY)
    if stored is not None and not isinstance(stored["model"], bytes):
        # An array, which skops stores once.
        restored[STORED_KEY] = stored = stored | {"model": bytes(stored["model"])}
    if stored is not None and _needs_other_files(stored["model"]):
        raise SavedModelError(
            f"a {kind.__name__} saved by sk_cnncodes {version}: its stored network "
            f"({STORED_KEY}) is damaged or refers to weights in another file. Expected "
            "all weights in the saved file."
        )
    return restored


def _needs_other_files(model: bytes) -> bool:
    """Whether a model refers to other files, or is too damaged to tell."""
    try:
        return has_external_data(model)
    except ValueError:
        return True
