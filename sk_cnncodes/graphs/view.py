"""Analysing and cutting ONNX graphs.

Nothing here knows about images or layers. `GraphView` analyses a model, and
`cut_model` cuts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sk_cnncodes.base.exceptions import BackboneError, first_line
from sk_cnncodes.graphs.checks import check_sizes

if TYPE_CHECKING:
    import onnx

# Larger initializers are excluded from shape inference, which copies the model;
# shapes, axes and scales have fewer elements.
LARGEST_SHAPE_TENSOR = 4096

Shape = tuple[int | None, ...]


def default_opset(model: onnx.ModelProto) -> int:
    """Version of a model's default operator set."""
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return max(versions, default=1)


def constant_names(graph: onnx.GraphProto) -> set[str]:
    """Names of the dense and sparse initializers of a graph."""
    names = {tensor.name for tensor in graph.initializer}
    return names | {tensor.values.name for tensor in graph.sparse_initializer}


def node_reads(node: onnx.NodeProto) -> list[str]:
    """Names of the tensors that a node reads, captures of its bodies included."""
    reads = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            reads.extend(captures(body))
    return reads


def captures(body: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that a body captures from the graphs around it."""
    own = {value.name for value in body.input} | constant_names(body)
    own.update(name for node in body.node for name in node.output)
    for node in body.node:
        yield from (name for name in node_reads(node) if name not in own)
    yield from (value.name for value in body.output if value.name not in own)


def tensor_size(tensor: onnx.TensorProto) -> int:
    """Number of elements of an initializer."""
    return math.prod(tensor.dims)


def value_shape(value: onnx.ValueInfoProto) -> Shape | None:
    """Shape of a graph input, output or inner value; None if it is not declared."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    )


def set_shape(value: onnx.ValueInfoProto, shape: Iterable[int | str]) -> None:
    """Declare the shape of a graph value; strings are symbolic dimensions."""
    tensor = value.type.tensor_type
    tensor.ClearField("shape")
    for dim in shape:
        new = tensor.shape.dim.add()
        if isinstance(dim, str):
            new.dim_param = dim
        else:
            new.dim_value = dim


@dataclass(frozen=True)
class TensorType:
    """Element type (an `onnx.TensorProto.DataType`) and shape of a tensor."""

    element: int
    shape: Shape | None


def infer_types(
    model: onnx.ModelProto, input_name: str, input_shape: tuple[int, ...]
) -> dict[str, TensorType]:
    """Infer the types of all tensors, given the shape of one input."""
    import onnx
    import onnx.shape_inference

    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = "types"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for output in model.graph.output:
        # The declared shape may have a fixed batch size; only the name is used.
        graph.output.add(name=output.name)
    for tensor in model.graph.initializer:
        if tensor_size(tensor) <= LARGEST_SHAPE_TENSOR and not tensor.data_location:
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(
                    tensor.name, tensor.data_type, tensor.dims
                )
            )
    for value in graph.input:
        if value.name == input_name:
            set_shape(value, input_shape)
    try:
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except Exception as error:
        raise BackboneError(
            f"its shapes are contradictory for an input {input_name!r} of shape "
            f"{input_shape} ({first_line(error)})."
        ) from error
    known = {
        tensor.name: TensorType(tensor.data_type, tuple(tensor.dims))
        for tensor in model.graph.initializer
    }
    for value in (*light.graph.value_info, *light.graph.input, *light.graph.output):
        if value.type.HasField("tensor_type"):
            known[value.name] = TensorType(
                value.type.tensor_type.elem_type, value_shape(value)
            )
    check_sizes({name: known[name].shape for name in known})
    return known


class GraphView:
    """The data flow from one input through a model.

    Outputs of `Shape` and `Size` do not count as dependent on the input: they carry
    the size of the image, not the image. Neither do the scale and the zero point that
    `DynamicQuantizeLinear` computes.

    Parameters
    ----------
    model : onnx.ModelProto
        In the normal form of `sk_cnncodes.graphs.reading.read_model`.
    input_name : str
        The input to follow.
    """

    def __init__(self, model: onnx.ModelProto, input_name: str) -> None:
        self.model = model
        self.input_name = input_name
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.producer: dict[str, int] = {}
        self.image_dependent = {input_name}
        self.readers: dict[str, list[int]] = {}
        self._reads = [node_reads(node) for node in self.nodes]
        for index, node in enumerate(self.nodes):
            for name in filter(None, node.output):
                self.producer[name] = index
            for name in dict.fromkeys(self._reads[index]):
                self.readers.setdefault(name, []).append(index)
            if node.op_type not in ("Shape", "Size") and self.data_inputs(index):
                carrying = node.output
                if node.op_type == "DynamicQuantizeLinear":
                    carrying = node.output[:1]
                self.image_dependent.update(filter(None, carrying))

    def data_inputs(self, index: int) -> list[str]:
        """The tensors that node `index` reads and that depend on the input."""
        names = dict.fromkeys(self._reads[index])
        return [name for name in names if name in self.image_dependent]

    def dependents(self, inputs: Iterable[str]) -> set[str]:
        """Names of the given inputs and of all tensors that depend on them."""
        found = set(inputs)
        for node, reads in zip(self.nodes, self._reads, strict=True):
            if not found.isdisjoint(reads):
                found.update(filter(None, node.output))
        return found

    def other_inputs(self, name: str) -> list[str]:
        """Model inputs that a tensor needs besides `input_name`."""
        needed = {n for i in self.ancestors([name]) for n in self._reads[i]} | {name}
        names = [value.name for value in self.model.graph.input]
        return [n for n in names if n in needed and n != self.input_name]

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """Initializers by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    def constant_value(self, name: str) -> list[float] | None:
        """Flattened value of a small initializer, or None."""
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location:
            return None
        if tensor_size(tensor) > LARGEST_SHAPE_TENSOR:
            return None
        try:
            return list(numpy_helper.to_array(tensor).ravel())
        except (TypeError, ValueError, LookupError) as error:
            raise BackboneError(
                f"its constant {name!r} is damaged ({first_line(error)})."
            ) from error

    def before_identities(self, name: str) -> str:
        """The tensor of which a tensor is a copy; itself if it is none."""
        index = self.producer.get(name)
        while index is not None and self.nodes[index].op_type == "Identity":
            (name,) = self.nodes[index].input
            index = self.producer.get(name)
        return name

    def ancestors(self, names: Iterable[str]) -> set[int]:
        """Indices of all nodes that the given tensors need."""
        found: set[int] = set()
        waiting = list(names)
        while waiting:
            index = self.producer.get(waiting.pop())
            if index is not None and index not in found:
                found.add(index)
                waiting.extend(self._reads[index])
        return found

    def path(self, output: str) -> list[int]:
        """Indices of the nodes through which the input reaches `output`, in order."""
        found: set[int] = set()
        waiting = [output]
        while waiting:
            index = self.producer.get(waiting.pop())
            if index is not None and index not in found:
                found.add(index)
                waiting.extend(self.data_inputs(index))
        return sorted(found)

    def dominators(self, output: str) -> list[str]:
        """Tensors through which every path from the input to `output` passes.

        In order from the input. One pass in topological order finds them: exactly
        there, a single tensor is live, that is computed and still to be read.
        """
        path = self.path(output)
        last_reader: dict[str, int] = {}
        for index in path:
            for name in self.data_inputs(index):
                last_reader[name] = index
        last_reader[output] = len(self.nodes)
        live = {self.input_name}
        cuts = []
        for index in path:
            live -= {n for n in self.data_inputs(index) if last_reader[n] == index}
            live |= {n for n in self.nodes[index].output if n in last_reader}
            if len(live) == 1:
                cuts.append(next(iter(live)))
        return list(dict.fromkeys(cuts))

    def weights_before(self, name: str) -> int:
        """Number of elements of the initializers that a tensor depends on."""
        if name not in self.producer:
            return 0
        needed = self._needed_weights[self.producer[name]]
        sizes = enumerate(self._weight_sizes)
        return sum(size for bit, size in sizes if needed >> bit & 1)

    @cached_property
    def _weight_sizes(self) -> list[int]:
        return [tensor_size(tensor) for tensor in self.constants.values()]

    @cached_property
    def _needed_weights(self) -> list[int]:
        """Initializers that each node depends on, as a bit set."""
        bits = {name: 1 << bit for bit, name in enumerate(self.constants)}
        needed: list[int] = []
        for reads in self._reads:
            here = 0
            for name in reads:
                here |= bits.get(name, 0)
                if name in self.producer:
                    here |= needed[self.producer[name]]
            needed.append(here)
        return needed


def rename_tensors(graph: onnx.GraphProto, renamed: Callable[[str], str]) -> None:
    """Rename the tensors of a graph and of the bodies in it."""
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [renamed(name) for name in field]
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                rename_tensors(body, renamed)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renamed(value.name)
    for tensor in graph.sparse_initializer:
        tensor.values.name = renamed(tensor.values.name)


def cut_model(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """Copy a model, ending at the given tensors.

    Nodes, initializers and inputs that no output depends on are dropped, as are value
    types; captures of If, Loop and Scan bodies are dependencies. Metadata, operator
    sets and references to external data are kept.
    """
    import onnx

    names = set(outputs)
    nodes = []
    for node in reversed(model.graph.node):
        if names.intersection(node.output):
            nodes.append(node)
            names.update(node_reads(node))
    cut = onnx.ModelProto()
    for field in (
        "ir_version",
        "producer_name",
        "producer_version",
        "domain",
        "model_version",
        "doc_string",
    ):
        setattr(cut, field, getattr(model, field))
    cut.opset_import.extend(model.opset_import)
    cut.metadata_props.extend(model.metadata_props)
    graph = cut.graph
    graph.name = model.graph.name or "codes"
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(t for t in model.graph.initializer if t.name in names)
    graph.sparse_initializer.extend(
        t for t in model.graph.sparse_initializer if t.values.name in names
    )
    graph.input.extend(v for v in model.graph.input if v.name in names)
    for name in outputs:
        graph.output.add(name=name)
    return cut
