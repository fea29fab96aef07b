"""StoredBackbone: the part of a backbone that a saved pipeline brings along."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.code_graph import CodeGraph
from sk_cnncodes.backbones.spec import CODE_VERSION, CodeSpec
from sk_cnncodes.engines.devices import CPU, usable_threads
from sk_cnncodes.engines.session import CodeSession, open_session
from sk_cnncodes.images.preprocessing import Preprocessing


@dataclass(frozen=True)
class StoredBackbone:
    """A backbone of which only the code graph of one layer is there."""

    spec: CodeSpec
    length: int
    graph: CodeGraph
    description = "stored backbone"

    def code_length(self, spec: CodeSpec) -> int:
        """Number of values of the codes."""
        return self.length

    def code_graphs(self, specs: list[CodeSpec]) -> Iterator[CodeGraph]:
        """The stored graph."""
        yield self.graph


def store_graph(
    parameters: Mapping[str, Any], spec: CodeSpec, length: int, graph: CodeGraph
) -> dict[str, Any]:
    """A code graph as plain values, to be saved.

    Parameters
    ----------
    parameters : mapping
        Parameters that decide the codes, as plain values.
    spec : CodeSpec
    length : int
        Number of values of a code.
    graph : CodeGraph
    """
    stored = {
        "parameters": dict(parameters),
        "spec": asdict(spec),
        "code_length": length,
        "batch_size": graph.batch_size,
        "sha256": hashlib.sha256(graph.model).hexdigest(),
    }
    return stored | {"check": record_digest(stored), "model": graph.model}


def stored_backbone(
    stored: Mapping[str, Any], parameters: Mapping[str, Any]
) -> StoredBackbone | None:
    """The stored graph as a backbone; None if it was made with other parameters."""
    if stored["parameters"] != parameters:
        return None
    values = dict(stored["spec"])
    values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
    if values["version"] != CODE_VERSION:
        # Neither that version's codes nor those of this version's graphs.
        values["version"] = f"graph of {values['version']}, run by {CODE_VERSION}"
    spec = CodeSpec(**values)
    graph = CodeGraph(stored["model"], stored["batch_size"])
    return StoredBackbone(spec, stored["code_length"], graph)


def is_intact(record: Mapping[str, Any]) -> bool:
    """Whether a saved record is as it was saved, by its digests."""
    try:
        plain = {key: value for key, value in record.items() if key != "model"}
        if "model" in record:
            digest = hashlib.sha256(record["model"]).hexdigest()
            if digest != record["sha256"]:
                return False
        return bool(record_digest(plain) == record["check"])
    except (KeyError, TypeError, AttributeError):
        return False


def record_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, without their entry `check`."""
    plain = {key: value for key, value in values.items() if key != "check"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


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

    session = open_session(graphs(), CPU, usable_threads(-1))
    return tried[0], session
