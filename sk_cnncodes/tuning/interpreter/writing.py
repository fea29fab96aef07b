"""Writing trained weights into the ONNX file that they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.backbones.analysis import PENULTIMATE_KEY
from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.graphs.reading import embed_external_data
from sk_cnncodes.graphs.view import captures
from sk_cnncodes.tuning.interpreter.plan import TailPlan
from sk_cnncodes.tuning.interpreter.weights import Slot, Weight

if TYPE_CHECKING:
    import onnx

# Metadata key of where a tuned file comes from.
TUNING_KEY = "sk_cnncodes.tuning"


def write_weights(
    backbone: Backbone,
    plan: TailPlan,
    values: Mapping[str, np.ndarray],
    provenance: Mapping[str, Any],
) -> bytes:
    """The ONNX file of a backbone with trained weights, serialised.

    Nodes, and the names of tensors and modules, are those of the file, so that its
    layers keep their numbers. A weight that other nodes read too, because exporters
    merge equal ones, gets a copy of its own; so frozen layers stay as they are. Weights
    have the precision of the file.

    Parameters
    ----------
    backbone : Backbone
        That the plan was made of.
    plan : TailPlan
    values : mapping of str to ndarray
        The trained weights.
    provenance : mapping
        Plain values for the metadata `sk_cnncodes.tuning`, beside the digest of the
        file, and the tensors between which it was trained.
    """
    model = backbone.read()
    embed_external_data(model, backbone.path.parent)
    writer = _Writer(model.graph)
    for group in _groups(plan):
        for weight in group:
            if not np.isfinite(values[weight.name]).all():
                raise BackboneError(
                    f"the trained weight {weight.name!r} is not finite. Nothing was "
                    "written."
                )
        if all(np.array_equal(values[w.name], w.value) for w in group) and not any(
            folding.dead and folding.weights == group for folding in plan.foldings
        ):
            continue  # not trained: it stays as it is, to the last bit
        for weight in group:
            for slot in weight.slots:
                writer.replace(slot, values[weight.name])
            for slot, constant in weight.also:
                writer.replace(slot, constant)
    writer.write()
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    origin = {
        "backbone_sha256": backbone.sha256,
        "trained_after": plan.input_name,
        "layer": plan.output_name,
        **provenance,
    }
    if TUNING_KEY in metadata:
        origin["before"] = json.loads(metadata[TUNING_KEY])
    metadata[TUNING_KEY] = json.dumps(origin)
    metadata.update(backbone.preprocessing.to_metadata())
    if backbone.penultimate is not None:
        metadata[PENULTIMATE_KEY] = backbone.penultimate
    model.ClearField("metadata_props")
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    try:
        return bytes(model.SerializeToString())
    except ValueError as error:
        raise BackboneError(
            f"{backbone.description}: files of more than 2 GB cannot be written."
        ) from error


def _groups(plan: TailPlan) -> Iterator[list[Weight]]:
    """The weights; those of a normalisation are written together."""
    together = {id(w): folding for folding in plan.foldings for w in folding.weights}
    for weight in plan.weights:
        folding = together.get(id(weight))
        if folding is None:
            yield [weight]
        elif weight is folding.weights[0]:
            yield folding.weights


class _Writer:
    """Replaces constants where nodes read them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._nodes = {node.output[0]: node for node in graph.node}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._values: dict[str, dict[int, tuple[np.ndarray, list[Slot]]]] = {}

    def replace(self, slot: Slot, value: np.ndarray) -> None:
        """Set what a node reads."""
        output, position = slot
        name = self._nodes[output].input[position]
        found = self._values.setdefault(name, {})
        found.setdefault(id(value), (value, []))[1].append(slot)

    def write(self) -> None:
        """Write all values: in place, or where other nodes read them too as copies."""
        readers = self._readers()
        taken = {*self._tensors, *(v.name for v in self._graph.input)}
        taken.update(name for node in self._graph.node for name in node.output)
        for name, found in self._values.items():
            for value, slots in found.values():
                tensor = self._tensors[name]
                if len(found) > 1 or readers[name] != {*slots}:
                    tensor = self._copy(tensor, taken)
                    for output, position in slots:
                        self._nodes[output].input[position] = tensor.name
                _fill(tensor, value)
            replaced = {slot for _, slots in found.values() for slot in slots}
            if len(found) > 1 and readers[name] == replaced:
                self._graph.initializer.remove(self._tensors[name])

    def _readers(self) -> dict[str, set[Slot]]:
        """Where each constant is read; bodies and outputs count as readers too."""
        readers: dict[str, set[Slot]] = {}
        for node in self._graph.node:
            for position, name in enumerate(node.input):
                readers.setdefault(name, set()).add((node.output[0], position))
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    for name in captures(body):
                        readers.setdefault(name, set()).add((node.output[0], -1))
        for output in self._graph.output:
            readers.setdefault(output.name, set()).add(("", 0))
        return readers

    def _copy(self, tensor: onnx.TensorProto, taken: set[str]) -> onnx.TensorProto:
        names = (f"{tensor.name}_tuned{number or ''}" for number in count())
        name = next(name for name in names if name not in taken)
        taken.add(name)
        copied: onnx.TensorProto = self._graph.initializer.add()
        copied.CopyFrom(tensor)
        copied.name = name
        return copied


def _fill(tensor: onnx.TensorProto, value: np.ndarray) -> None:
    """Set the value of a constant, in its own precision."""
    import onnx
    from onnx import numpy_helper

    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    with np.errstate(over="ignore"):
        converted = value.astype(dtype)
    if not np.isfinite(converted.astype(np.float32)).all():
        raise BackboneError(
            f"the trained weight {tensor.name!r} has values that the file's {dtype} "
            "cannot represent. Nothing was written."
        )
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(converted, name))
