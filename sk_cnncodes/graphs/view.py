"""Looking at and cutting ONNX graphs: pure functions on `onnx.ModelProto`.

Nothing here knows about images or layers. A model is looked at through a `GraphView`,
and cut with `cut_model`.
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

# Initializers above this many elements are left out of shape inference, which
# copies the model; shapes, axes and scales all lie below it.
LARGEST_SHAPE_TENSOR = 4096

Shape = tuple[int | None, ...]


def default_opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set that a model imports."""
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return max(versions, default=1)


def constant_names(graph: onnx.GraphProto) -> set[str]:
    """Names of the dense and sparse initializers of a graph."""
    names = {tensor.name for tensor in graph.initializer}
    return names | {tensor.values.name for tensor in graph.sparse_initializer}


def node_reads(node: onnx.NodeProto) -> list[str]:
    """Names of the tensors a node reads, captures of its sub-graphs included."""
    reads = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            reads.extend(_captures(body))
    return reads


def _captures(body: onnx.GraphProto) -> Iterator[str]:
    """Names that a sub-graph takes from the graphs around it."""
    own = {value.name for value in body.input} | constant_names(body)
    own.update(name for node in body.node for name in node.output)
    for node in body.node:
        yield from (name for name in node_reads(node) if name not in own)
    yield from (value.name for value in body.output if value.name not in own)


def tensor_size(tensor: onnx.TensorProto) -> int:
    """Number of elements of an initializer."""
    return math.prod(tensor.dims)


def value_shape(value: onnx.ValueInfoProto) -> Shape | None:
    """Shape of a graph input, output or inner value; None where none is stated."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    )


def set_shape(value: onnx.ValueInfoProto, shape: Iterable[int | str]) -> None:
    """State the shape of a graph value; strings are symbolic dimensions."""
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
    """Types of the tensors of a model, given the shape of one of its inputs."""
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
        # A stated shape may hold a baked-in batch size; only the name is trusted.
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
    """What reads what in a model, as far as it depends on one input.

    Edges that leave `Shape` and `Size` are no dependence: they carry the size of
    the image, not the image. Nor are the scale and the zero point that go with what
    `DynamicQuantizeLinear` makes.

    Parameters
    ----------
    model : onnx.ModelProto
        In the normal form of `sk_cnncodes.graphs.reading.read_model`.
    input_name : str
        The input that counts.
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

    def made_of(self, inputs: Iterable[str]) -> set[str]:
        """Names of the tensors that depend on some of the model's inputs, and these."""
        found = set(inputs)
        for node, reads in zip(self.nodes, self._reads, strict=True):
            if not found.isdisjoint(reads):
                found.update(filter(None, node.output))
        return found

    def other_inputs(self, name: str) -> list[str]:
        """Inputs that a tensor needs besides the one that counts."""
        needed = {n for i in self.ancestors([name]) for n in self._reads[i]} | {name}
        names = [value.name for value in self.model.graph.input]
        return [n for n in names if n in needed and n != self.input_name]

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """Initializers by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    def constant_value(self, name: str) -> list[float] | None:
        """Flat value of a small initializer, or None."""
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

        They are the dominators of `output`, in order from the input. One sweep of
        the topological order finds them: exactly there, the set of tensors that
        are made and still wanted holds a single one.
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
        """Number of elements of the initializers that a tensor needs."""
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
        """The initializers that each node needs, as the bits of a number."""
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
    """Give the tensors of a graph, and of the bodies in it, other names."""
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
    """A copy of a model that ends at the given tensors and keeps only their needs.

    Nodes, initializers, inputs and value types that no output needs are left out;
    captures of If, Loop and Scan bodies count as needs. Metadata, operator sets
    and references to external data stay.
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
