"""StoredBackbone: the code graph of a backbone that a saved pipeline stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.code_graph import CodeGraph, Pooling, with_outputs
from sk_cnncodes.backbones.spec import CODE_VERSION, CodeSpec
from sk_cnncodes.engines.devices import CPU, usable_threads
from sk_cnncodes.engines.session import CodeSession, open_session
from sk_cnncodes.images.preprocessing import Preprocessing


@dataclass(frozen=True)
class StoredBackbone:
    """A backbone that has only the code graph of some layers.

    Attributes
    ----------
    specs : tuple of CodeSpec
        Of the codes of the transformer that it belongs to, one for each of its layers.
    lengths : tuple of int
        Lengths of these codes.
    graph : CodeGraph
    outputs : tuple of (str, str)
        Layer and pooling of each output of the graph.
    sha256 : str
        Of the graph.
    """

    specs: tuple[CodeSpec, ...]
    lengths: tuple[int, ...]
    graph: CodeGraph
    outputs: tuple[tuple[str, str], ...]
    sha256: str
    description = "stored backbone"

    def code_length(self, spec: CodeSpec) -> int:
        """Length of the codes of one of its specs."""
        return self.lengths[[*map(_output, self.specs)].index(_output(spec))]

    def code_graphs(self, specs: list[CodeSpec]) -> Iterator[CodeGraph]:
        """Yield the stored graph, cut to the outputs of some specs."""
        wanted = [self.outputs.index(_output(spec)) for spec in specs]
        if wanted == list(range(len(self.outputs))):
            yield self.graph
        else:
            yield replace(self.graph, model=with_outputs(self.graph.model, wanted))


def store_graph(
    parameters: Mapping[str, Any],
    specs: list[CodeSpec],
    lengths: list[int],
    graph: CodeGraph,
    outputs: list[CodeSpec],
) -> dict[str, Any]:
    """Turn a code graph into plain values that can be saved.

    Parameters
    ----------
    parameters : mapping
        Parameters that determine the codes, as plain values.
    specs : list of CodeSpec
        Of the codes, one for each layer.
    lengths : list of int
        Lengths of these codes.
    graph : CodeGraph
    outputs : list of CodeSpec
        Of the outputs of the graph, without norm.
    """
    values = asdict(specs[0])
    if values["decoder"] == "pillow":
        del values["decoder"]  # for versions that do not know it
    stored = {
        "parameters": dict(parameters),
        "spec": values,
        "parts": [
            [*_output(spec), length]
            for spec, length in zip(specs, lengths, strict=True)
        ],
        "outputs": [list(_output(output)) for output in outputs],
        "code_length": sum(lengths),
        "batch_size": graph.batch_size,
        "sha256": hashlib.sha256(graph.model).hexdigest(),
    }
    return stored | {"check": record_digest(stored), "model": graph.model}


def stored_backbone(
    stored: Mapping[str, Any], parameters: Mapping[str, Any]
) -> StoredBackbone | None:
    """The stored graph as a backbone; None if its parameters differ."""
    if stored["parameters"] != parameters:
        return None
    values = dict(stored["spec"])
    values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
    if values["version"] != CODE_VERSION:
        # Its codes may differ from those of either version alone.
        values["version"] = f"graph of {values['version']}, run by {CODE_VERSION}"
    if values["norm"] is not None and "outputs" not in stored:
        # Graphs normalised their codes once: these are not the codes without norm.
        values["version"] = f"{values['version']}, normalised by the graph"
    spec = CodeSpec(**values)
    outputs = stored.get("outputs", [_output(spec)])
    parts = stored.get("parts", [[*_output(spec), stored["code_length"]]])
    return StoredBackbone(
        tuple(replace(spec, layer=layer, pooling=how) for layer, how, _ in parts),
        tuple(length for _, _, length in parts),
        CodeGraph(stored["model"], stored["batch_size"]),
        tuple((layer, pooling) for layer, pooling in outputs),
        stored["sha256"],
    )


def _output(spec: CodeSpec) -> tuple[str, Pooling]:
    return spec.layer, spec.pooling


def is_intact(record: Mapping[str, Any]) -> bool:
    """Whether a saved record is unchanged, judged by its digests."""
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
    """SHA-256 of plain values, without the entry `check`."""
    plain = {key: value for key, value in values.items() if key != "check"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def working_graph(
    backbone: Backbone | StoredBackbone, specs: list[CodeSpec]
) -> tuple[CodeGraph, CodeSession]:
    """Find the most capable code graph of some specs that runs; open it on the CPU.

    Raises
    ------
    BackboneError
        If no graph runs.
    """
    tried: list[CodeGraph] = []

    def graphs() -> Iterator[CodeGraph]:
        for graph in backbone.code_graphs(specs):
            tried[:] = [graph]  # graphs are large: keep only the last one
            yield graph

    session = open_session(graphs(), CPU, usable_threads(-1))
    return tried[0], session
