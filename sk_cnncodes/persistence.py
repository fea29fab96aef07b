"""What a transformer takes along when it is saved, and how it finds its backbone again.

A saved transformer holds a **reference** to the backbone it was fitted with: name,
path, SHA-256 and preprocessing. With ``store_backbone=True`` it also holds the **stored
graph**: the backbone cut at the layer, with pooling and normalisation.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sk_cnncodes
from sk_cnncodes.backbone import CODE_VERSION, Backbone, CodeSpec
from sk_cnncodes.catalogue import MODELS, find_row, load_backbone, read_catalogue
from sk_cnncodes.codegraph import CodeGraph
from sk_cnncodes.devices import Device, usable_threads
from sk_cnncodes.download import home_folder
from sk_cnncodes.exceptions import BackboneError, DownloadError, SavedModelError
from sk_cnncodes.model_files import file_sha256
from sk_cnncodes.onnx_bytes import asks_for_files
from sk_cnncodes.preprocessing import Preprocessing
from sk_cnncodes.runtime import CodeSession, open_session

FOLDERS_VARIABLE = "SK_CNNCODES_BACKBONES"
VERSION_KEY = "_sk_cnncodes_version"
STORED_KEY = "_stored_graph"
# Parameters that decide the codes: a stored graph holds for their values only.
_CODE_PARAMETERS = (
    "backbone",
    "layer",
    "pooling",
    "norm",
    "preprocessing",
    "views",
    "precision",
)
# What those that came later mean in files of before.
_LATER_PARAMETERS = {"views": "center", "precision": "float32"}

Reference = dict[str, Any]


def working_graph(
    backbone: Backbone | StoredBackbone, spec: CodeSpec
) -> tuple[CodeGraph, CodeSession]:
    """The most capable code graph of a spec that runs, and its session on the CPU.

    Raises
    ------
    BackboneError
        If none runs.
    """
    tried: list[CodeGraph] = []

    def graphs() -> Iterator[CodeGraph]:
        for graph in backbone.code_graphs([spec]):
            tried[:] = [graph]  # they are large: only the last one is kept
            yield graph

    device = Device(None, required=True)
    session = open_session(graphs(), device, usable_threads(-1))
    return tried[0], session


# -- the reference -----------------------------------------------------------


def backbone_text(backbone: str | os.PathLike[str]) -> str:
    """A `backbone` parameter as a string that means the same, on any system."""
    text = os.fspath(backbone)
    if isinstance(backbone, str) or find_row(text) is None:
        return text
    return f".{os.sep}{text}"  # a path that would be read as a name


def make_reference(parameter: str | os.PathLike[str], backbone: Backbone) -> Reference:
    """What a fitted transformer recognises its backbone by."""
    reference = {
        "parameter": backbone_text(parameter),
        "name": backbone.name,
        "path": str(backbone.path.absolute()),
        "sha256": backbone.sha256,
        "preprocessing": backbone.preprocessing.to_dict(),
    }
    return reference | {"check": _digest(reference)}


def _digest(values: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in values.items() if key != "check"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def find_backbone(
    reference: Reference, preprocessing: Preprocessing | Mapping[str, Any] | None
) -> Backbone:
    """The backbone that a transformer was fitted with, wherever it lies now.

    It is looked for at its path, in the folders of `SK_CNNCODES_BACKBONES`, and in
    the home folder; one that the catalogue knows is then downloaded.

    Parameters
    ----------
    reference : dict
    preprocessing : Preprocessing, dict or None
        None takes that of the reference.

    Raises
    ------
    BackboneError
        If it is not there, or other files lie in its places.
    """
    if preprocessing is None and reference["preprocessing"] is not None:
        preprocessing = Preprocessing.from_dict(reference["preprocessing"])
    others = []
    places = list(_places(reference))
    for path in places:
        if not path.is_file():
            continue
        try:
            found = load_backbone(path, preprocessing)
        except BackboneError:  # a damaged file
            others.append((path, file_sha256(path)))
            continue
        if found.sha256 == reference["sha256"]:
            return found
        others.append((path, found.sha256))
    if others:
        listed = " and ".join(f"{digest} ({str(path)!r})" for path, digest in others)
        raise BackboneError(
            f"backbone={reference['parameter']!r}: the file is not the one this "
            f"transformer was fitted with. Expected sha256 {reference['sha256']}, got "
            f"{listed}. Put the former file back or into a folder that "
            f"{FOLDERS_VARIABLE} names, or fit again."
        )
    rows = read_catalogue().values()
    row = next((r for r in rows if r.sha256 == reference["sha256"]), None)
    fault = None
    if row is not None:
        try:
            return load_backbone(row.name, preprocessing)
        except DownloadError as error:
            fault = error
    looked = ", ".join(repr(str(path)) for path in places)
    raise BackboneError(
        f"backbone={reference['parameter']!r}: its file (sha256 {reference['sha256']}) "
        f"was not found. Expected it at one of {looked}. Set {FOLDERS_VARIABLE} to the "
        "folder that holds it, or save the pipeline with store_backbone=True."
        f"{f' To download it failed: {fault}' if fault else ''}"
    ) from fault


def _places(reference: Reference) -> Iterator[Path]:
    """Where the file of a backbone may lie, without repetition."""
    row = find_row(reference["parameter"])
    file = row.file if row else re.split(r"[\\/]", reference["path"])[-1]
    places = [Path(reference["path"])]
    if row is None:
        places.insert(0, Path(reference["parameter"]))
    elif row.bundled:
        places.append(MODELS / row.file)
    folders = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    places += [Path(os.path.expanduser(f), file) for f in folders if f]  # noqa: PTH111
    with suppress(DownloadError):
        places.append(home_folder() / file)
    yield from dict.fromkeys(place.absolute() for place in places)


# -- the stored graph --------------------------------------------------------


@dataclass(frozen=True)
class StoredBackbone:
    """A backbone of which only the code graph of one layer is there."""

    spec: CodeSpec
    length: int
    graph: CodeGraph
    description = "stored backbone"

    def code_length(self, spec: CodeSpec) -> int:
        return self.length

    def code_graphs(self, specs: list[CodeSpec]) -> Iterator[CodeGraph]:
        yield self.graph


def store_graph(
    parameters: Mapping[str, Any], spec: CodeSpec, length: int, graph: CodeGraph
) -> dict[str, Any]:
    """A code graph as plain values, to be saved."""
    stored = {
        "parameters": _code_parameters(parameters),
        "spec": asdict(spec),
        "code_length": length,
        "batch_size": graph.batch_size,
        "sha256": hashlib.sha256(graph.model).hexdigest(),
    }
    return stored | {"check": _digest(stored), "model": graph.model}


def stored_backbone(
    stored: Mapping[str, Any], parameters: Mapping[str, Any]
) -> StoredBackbone | None:
    """The stored graph as a backbone; None where the parameters are others."""
    if _LATER_PARAMETERS | stored["parameters"] != _code_parameters(parameters):
        return None
    values = dict(stored["spec"])
    values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
    if values["version"] != CODE_VERSION:
        # Neither that version's codes nor those of this version's graphs.
        values["version"] = f"graph of {values['version']}, run by {CODE_VERSION}"
    spec = CodeSpec(**values)
    graph = CodeGraph(stored["model"], stored["batch_size"])
    return StoredBackbone(spec, stored["code_length"], graph)


def _code_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that decide codes, as plain values."""
    found = {name: parameters[name] for name in _CODE_PARAMETERS}
    found["backbone"] = backbone_text(found["backbone"])
    if isinstance(found["preprocessing"], Mapping):
        found["preprocessing"] = Preprocessing.from_dict(found["preprocessing"])
    if isinstance(found["preprocessing"], Preprocessing):
        found["preprocessing"] = found["preprocessing"].to_dict()
    if not isinstance(found["layer"], str):
        found["layer"] = int(found["layer"])
    return found


# -- states ------------------------------------------------------------------


def saved_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a transformer as it is saved: with its version, without paths."""
    saved = dict(state)
    saved["backbone"] = backbone_text(saved["backbone"])
    if isinstance(saved["cache"], os.PathLike):
        saved["cache"] = os.fspath(saved["cache"])
    return saved | {VERSION_KEY: sk_cnncodes.__version__}


def restored_state(state: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The state of a transformer from what this or an older version saved.

    Raises
    ------
    SavedModelError
        If a newer version saved it, or what it says of its backbone was edited.
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
            f"{unknown}, which sk_cnncodes {sk_cnncodes.__version__} does not know. "
            f"Expected sk_cnncodes {version} or newer to load it."
        )
    restored = defaults | restored
    record = restored.get("fitted_backbone_")
    if isinstance(record, tuple):
        restored["fitted_backbone_"] = _reference_of_tuple(*record)
    for key in ("fitted_backbone_", STORED_KEY):
        record = restored.get(key)
        if record is not None and not _is_intact(record):
            raise SavedModelError(
                f"a {kind.__name__} saved by sk_cnncodes {version}: what it says of "
                f"its backbone ({key}) was changed after it was saved. Expected it as "
                "it was saved; save the pipeline again."
            )
    stored = restored.get(STORED_KEY)
    if stored is not None and _is_elsewhere(stored["model"]):
        raise SavedModelError(
            f"a {kind.__name__} saved by sk_cnncodes {version}: its stored network "
            f"({STORED_KEY}) is damaged, or asks for weights in another file. Expected "
            "all of them in the saved file."
        )
    return restored


def _is_elsewhere(model: bytes) -> bool:
    try:
        return asks_for_files(model)
    except ValueError:
        return True


def _reference_of_tuple(parameter: str, sha256: str) -> Reference:
    """The reference from what the first versions saved: parameter and digest."""
    reference = {
        "parameter": parameter,
        "name": None,
        "path": parameter,
        "sha256": sha256,
        "preprocessing": None,
    }
    return reference | {"check": _digest(reference)}


def _is_intact(record: Mapping[str, Any]) -> bool:
    try:
        plain = {key: value for key, value in record.items() if key != "model"}
        if "model" in record:
            digest = hashlib.sha256(record["model"]).hexdigest()
            if digest != record["sha256"]:
                return False
        return bool(_digest(plain) == record["check"])
    except (KeyError, TypeError, AttributeError):
        return False
