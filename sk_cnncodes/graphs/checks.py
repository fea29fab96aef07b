"""What an ONNX model must fulfil before its graph is walked, cut or run.

ONNX files may be damaged or hostile. ONNX Runtime and onnx refuse most of what is
malformed; here is refused what they would read, run or allocate without end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from sk_cnncodes.base.exceptions import BackboneError, first_line
from sk_cnncodes.graphs.wire_format import ELEMENT_BYTES

if TYPE_CHECKING:
    import onnx

# The largest published image networks have about ten thousand nodes.
_MOST_NODES = 50_000
# Functions that call each other, one inside of the other.
_MOST_CALLS = 100
# Attributes that count or step over something. ONNX Runtime divides by them, and some
# versions end the process where one is 0.
_POSITIVE = ("strides", "dilations", "kernel_shape", "group", "num_groups", "blocksize")
# Inputs of convolutions.
_WEIGHT_AND_BIAS = {"Conv": (1, 2), "QLinearConv": (3, 8)}
_SAME_SHAPE = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
# Operators on blocks of channels, as many as fit into a register.
_ONE_PROCESSOR = "com.microsoft.nchwc"
# Elements of a weight or an activation of one image: 2 GB in single precision.
_MOST_ELEMENTS = 2**29
# Of a file; the image input takes this many images at once.
LARGEST_BATCH = 4096
_RANDOM = frozenset(
    [
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ]
)
# Rounds of a loop, those of the loops around it counted in.
_MOST_ROUNDS = 2**16


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and the bodies of its If, Loop and Scan nodes, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node or body.initializer:
                    yield from all_graphs(body)


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model: of its graph, its functions, and bodies in both."""
    functions = (node for function in model.functions for node in function.node)
    bodies = [model.graph]
    for node in functions:
        yield node
        for attribute in node.attribute:
            bodies += [attribute.g, *attribute.graphs]
    for body in bodies:
        for graph in all_graphs(body):
            yield from graph.node


def all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a graph holds: initializers, attributes, those of bodies."""
    for each in all_graphs(graph):
        yield from each.initializer
        sparse = list(each.sparse_initializer)
        for node in each.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    sparse.append(attribute.sparse_tensor)
                sparse.extend(attribute.sparse_tensors)
        for tensor in sparse:
            yield tensor.values
            yield tensor.indices


def check_structure(model: onnx.ModelProto) -> None:
    """Refuse a model whose functions, nodes or shapes no network has.

    Raises
    ------
    BackboneError
    """
    for text in _texts(model):
        if not isinstance(text, str):  # protobuf gives bytes that are no UTF-8 as such
            raise BackboneError(f"its name {text!r} is no text. Expected UTF-8.")
    nodes = _count_nodes(model)
    if nodes > _MOST_NODES:
        raise BackboneError(
            f"it has more than {_MOST_NODES} nodes, those of its functions counted "
            f"where they are called. Expected at most {_MOST_NODES}."
        )
    for node in _all_nodes(model):
        if node.domain == _ONE_PROCESSOR:
            raise BackboneError(
                f"its {node.op_type} {list(node.output[:1])} is of the domain "
                f"{_ONE_PROCESSOR!r}: ONNX Runtime optimised the file for one "
                "processor. Expected the file from before."
            )
        _check_steps(node)
    for tensor in all_tensors(model.graph):
        if any(dim < 0 for dim in tensor.dims):
            raise BackboneError(
                f"its tensor {tensor.name!r} has the shape {list(tensor.dims)}. "
                "Expected no negative dimension."
            )
        _check_size(tensor.name, tensor.dims)
        _check_content(tensor)
    for graph in all_graphs(model.graph):
        _check_biases(graph)


def _check_steps(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name not in _POSITIVE:
            continue
        single = attribute.type == attribute.INT
        values = [attribute.i] if single else list(attribute.ints)
        if any(value < 1 for value in values):
            raise BackboneError(
                f"its {node.op_type} {list(node.output[:1])} has {attribute.name}="
                f"{values}. Expected positive numbers."
            )


def _check_content(tensor: onnx.TensorProto) -> None:
    """Refuse a tensor whose content ends before its shape: it may be overread."""
    size = ELEMENT_BYTES.get(tensor.data_type)
    external = tensor.data_location == tensor.EXTERNAL
    if size is None or external or not tensor.HasField("raw_data"):
        return
    expected = size * math.prod(tensor.dims)
    if len(tensor.raw_data) != expected:
        raise BackboneError(
            f"its tensor {tensor.name!r} of shape {list(tensor.dims)} has "
            f"{len(tensor.raw_data)} bytes. Expected {expected}."
        )


def _check_biases(graph: onnx.GraphProto) -> None:
    """Refuse too short a bias of a convolution: ONNX Runtime before 1.30 reads on."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values = [list(a.t.dims) for a in node.attribute if a.HasField("t")]
            shapes.update(zip(node.output, values, strict=False))
        elif node.op_type in _SAME_SHAPE and node.input and node.input[0] in shapes:
            shapes.update(dict.fromkeys(node.output, shapes[node.input[0]]))
        places = _WEIGHT_AND_BIAS.get(node.op_type)
        if places is None or len(node.input) <= places[1]:
            continue
        weight, bias = (shapes.get(node.input[place]) for place in places)
        if bias is None:
            continue
        if len(bias) != 1 or (weight and bias != weight[:1]):
            raise BackboneError(
                f"its {node.op_type} {list(node.output[:1])} has a bias of shape "
                f"{bias}. Expected {weight[:1] if weight else 'one dimension'}."
            )


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Names of all kinds, and what else should be text."""
    yield from (model.producer_name, model.producer_version, model.domain)
    yield model.doc_string
    for opset in model.opset_import:
        yield opset.domain
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for graph in all_graphs(model.graph):
        yield graph.name
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
        for node in graph.node:
            yield from (node.op_type, node.domain, node.name, *node.input)
            yield from node.output
            yield from (attribute.name for attribute in node.attribute)
            for entry in node.metadata_props:
                yield from (entry.key, entry.value)
    for tensor in all_tensors(model.graph):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def _count_nodes(model: onnx.ModelProto) -> int:
    """Number of nodes once model-local functions stand where they are called."""
    functions = {(f.domain, f.name): f for f in model.functions}
    counts: dict[tuple[str, str], int] = {}
    open_calls: list[tuple[str, str]] = []

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += count_function(key) if key in functions else 1
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    total += count(body.node)
        return total

    def count_function(key: tuple[str, str]) -> int:
        if key in open_calls or len(open_calls) >= _MOST_CALLS:
            raise BackboneError(f"its function {key[1]!r} calls itself, or too many.")
        if key not in counts:
            open_calls.append(key)
            counts[key] = count(functions[key].node)
            open_calls.pop()
        return counts[key]

    return count(model.graph.node)


def check_loops(graph: onnx.GraphProto) -> None:
    """Refuse loops that may not end soon: only a run could tell when they do.

    Raises
    ------
    BackboneError
    """
    _check_loops(graph, 1, {})


def _check_loops(graph: onnx.GraphProto, rounds: int, outer: dict[str, int]) -> None:
    """`rounds` of the loops around a graph, and constants that it can read."""
    from onnx import numpy_helper

    known = dict(outer)
    constants = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant":
            values = [a.t for a in node.attribute if a.HasField("t")]
            constants += [(name, v) for name in node.output for v in values]
    for name, tensor in constants:
        if tensor.data_type == tensor.INT64 and math.prod(tensor.dims) == 1:
            try:
                known[name] = int(numpy_helper.to_array(tensor).item())
            except ValueError as error:
                raise BackboneError(
                    f"its constant {name!r} is damaged ({first_line(error)})."
                ) from error
    for node in graph.node:
        inside = rounds
        if node.op_type == "Loop":
            bound = known.get(node.input[0] if node.input else "")
            inside = rounds * max(bound or 0, 1)
            if bound is None or inside > _MOST_ROUNDS:
                raise BackboneError(
                    f"its loop {node.output[0]!r} has "
                    f"{'no constant bound' if bound is None else f'{inside} rounds'}. "
                    f"Expected a constant of at most {_MOST_ROUNDS} rounds, those of "
                    "the loops around it counted in."
                )
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _check_loops(body, inside, known)


def check_repeatable(graph: onnx.GraphProto) -> None:
    """Refuse a network that gives other codes each time.

    Raises
    ------
    BackboneError
    """
    for each in all_graphs(graph):
        for node in each.node:
            if node.op_type in _RANDOM:
                raise BackboneError(
                    f"its {node.op_type} {list(node.output[:1])} makes random numbers: "
                    "an image would have another code each time. Expected a network "
                    "exported for inference."
                )


def check_batch(size: int) -> None:
    """Refuse a baked-in batch size that no network has.

    Raises
    ------
    BackboneError
    """
    if size > LARGEST_BATCH:
        raise BackboneError(
            f"its batch size is fixed at {size}. Expected at most {LARGEST_BATCH}."
        )


def check_sizes(shapes: Mapping[str, tuple[int | None, ...] | None]) -> None:
    """Refuse activations that would fill the memory.

    Parameters
    ----------
    shapes : mapping of str to tuple, or None
        What is known of the shapes of tensors, by name.

    Raises
    ------
    BackboneError
    """
    for name, shape in shapes.items():
        if shape is not None:
            _check_size(name, [dim or 1 for dim in shape])


def _check_size(name: str, dims: Iterable[int]) -> None:
    elements = math.prod(dims)
    if elements > _MOST_ELEMENTS:
        raise BackboneError(
            f"its tensor {name!r} has {elements} elements. Expected at most "
            f"{_MOST_ELEMENTS}."
        )
