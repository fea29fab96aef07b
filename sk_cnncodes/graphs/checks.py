"""Checks of an ONNX model before its graph is traversed, cut or run.

ONNX files may be damaged or malicious. ONNX Runtime and onnx refuse most malformed
files; these checks refuse what they would read, run or allocate without bound.
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
_MAX_NODES = 50_000
# Depth of nested calls of functions.
_MAX_CALL_DEPTH = 100
# Attributes that must be positive: ONNX Runtime divides by them, and some versions
# crash if one is 0.
_POSITIVE = ("strides", "dilations", "kernel_shape", "group", "num_groups", "blocksize")
# Positions of weight and bias among the inputs of convolutions.
_WEIGHT_AND_BIAS = {"Conv": (1, 2), "QLinearConv": (3, 8)}
# Operators whose output has the shape of their first input.
_SAME_SHAPE = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
# Operators on blocks of channels that fit the registers of one processor type.
_NCHWC_DOMAIN = "com.microsoft.nchwc"
# Elements of a weight or an activation of one image: 2 GB in single precision.
_MAX_ELEMENTS = 2**29
# Largest fixed batch size of a file.
LARGEST_BATCH = 4096
_RANDOM_OPS = frozenset(
    [
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ]
)
# Domains of the operators that ONNX Runtime, or OpenVINO, has.
_DOMAINS = frozenset(
    [
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.preview.training",
        "ai.onnx.training",
        "com.microsoft",
        "com.microsoft.experimental",
        "com.ms.internal.nhwc",
        "org.openvinotoolkit",
        "org.pytorch.aten",
    ]
)
# Iterations of a loop, multiplied by those of the enclosing loops.
_MAX_ITERATIONS = 2**16


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the bodies of its If, Loop and Scan nodes, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node or body.initializer:
                    yield from all_graphs(body)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a model: of its graph, its functions and their bodies."""
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
    """Yield every tensor of a graph: initializers and attributes, also of bodies."""
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
    """Refuse a model with invalid or implausible nodes, functions or tensors.

    Raises
    ------
    BackboneError
        Naming the fault.
    """
    for text in _texts(model):
        if not isinstance(text, str):  # protobuf returns invalid UTF-8 as bytes
            raise BackboneError(f"its name {text!r} is not text. Expected UTF-8.")
    nodes = _count_nodes(model)
    if nodes > _MAX_NODES:
        raise BackboneError(
            f"it has more than {_MAX_NODES} nodes after inlining its functions. "
            f"Expected at most {_MAX_NODES}."
        )
    for node in all_nodes(model):
        if node.domain == _NCHWC_DOMAIN:
            raise BackboneError(
                f"its {node.op_type} {list(node.output[:1])} is of the domain "
                f"{_NCHWC_DOMAIN!r}: ONNX Runtime optimised the file for one "
                "processor. Expected the file before this optimisation."
            )
        _check_positive(node)
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


def _check_positive(node: onnx.NodeProto) -> None:
    """Refuse strides, kernel shapes and other such attributes below 1."""
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
    """Refuse a tensor whose data do not match its shape: reads may overrun."""
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
    """Refuse too short a bias of a convolution: ONNX Runtime < 1.30 overreads it."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values = [list(a.t.dims) for a in node.attribute if a.HasField("t")]
            shapes.update(zip(node.output, values, strict=False))
        elif node.op_type in _SAME_SHAPE and node.input and node.input[0] in shapes:
            shapes.update(dict.fromkeys(node.output, shapes[node.input[0]]))
        positions = _WEIGHT_AND_BIAS.get(node.op_type)
        if positions is None or len(node.input) <= positions[1]:
            continue
        weight, bias = (shapes.get(node.input[position]) for position in positions)
        if bias is None:
            continue
        if len(bias) != 1 or (weight and bias != weight[:1]):
            raise BackboneError(
                f"its {node.op_type} {list(node.output[:1])} has a bias of shape "
                f"{bias}. Expected {weight[:1] if weight else 'one dimension'}."
            )


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Yield the names and other texts of a model."""
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
    """Number of nodes after inlining model-local functions."""
    functions = {(f.domain, f.name): f for f in model.functions}
    counts: dict[tuple[str, str], int] = {}
    active_calls: list[tuple[str, str]] = []

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
        if key in active_calls or len(active_calls) >= _MAX_CALL_DEPTH:
            raise BackboneError(
                f"its function {key[1]!r} calls itself, or is nested too deeply. "
                f"Expected a call depth of at most {_MAX_CALL_DEPTH}."
            )
        if key not in counts:
            active_calls.append(key)
            counts[key] = count(functions[key].node)
            active_calls.pop()
        return counts[key]

    return count(model.graph.node)


def check_loops(graph: onnx.GraphProto) -> None:
    """Refuse loops without a constant bound, or with too many iterations.

    Raises
    ------
    BackboneError
        Naming the loop.
    """
    _check_loops(graph, 1, {})


def _check_loops(graph: onnx.GraphProto, repeats: int, outer: dict[str, int]) -> None:
    """Check a graph that runs `repeats` times and can read the `outer` constants."""
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
        inside = repeats
        if node.op_type == "Loop":
            bound = known.get(node.input[0] if node.input else "")
            inside = repeats * max(bound or 0, 1)
            if bound is None or inside > _MAX_ITERATIONS:
                count = "no constant bound" if bound is None else f"{inside} iterations"
                raise BackboneError(
                    f"its loop {node.output[0]!r} has {count}. Expected a constant "
                    f"bound of at most {_MAX_ITERATIONS} iterations, multiplied by "
                    "those of the enclosing loops."
                )
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _check_loops(body, inside, known)


def check_repeatable(graph: onnx.GraphProto) -> None:
    """Refuse a network whose codes differ between runs, or between batches.

    Raises
    ------
    BackboneError
        Naming the operator.
    """
    fixed: set[str] = set()  # computed from weights alone
    for each in all_graphs(graph):
        true = {t.name for t in each.initializer if _is_true(t)}
        fixed.update(t.name for t in each.initializer)
        for node in each.node:
            if node.input and fixed.issuperset(filter(None, node.input)):
                fixed.update(node.output)
            trains = node.op_type == "Dropout" and not true.isdisjoint(node.input[2:3])
            if node.op_type == "BatchNormalization":
                trains = any(a.name == "training_mode" and a.i for a in node.attribute)
            # Weight standardisation, as in NFNet, normalises weights in this way.
            if trains and fixed.isdisjoint(node.input[:1]):
                raise BackboneError(
                    f"its {node.op_type} {list(node.output[:1])} is in training mode: "
                    "the code of an image would depend on the other images of its "
                    "batch, or on chance. Expected a network exported for inference "
                    "(model.eval()), or a layer before this tensor."
                )
            if node.op_type in _RANDOM_OPS:
                raise BackboneError(
                    f"its {node.op_type} {list(node.output[:1])} draws random numbers: "
                    "the code of an image would differ between runs. Expected a "
                    "network exported for inference, or a layer before this tensor."
                )


def _is_true(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor is the boolean True."""
    from onnx import numpy_helper

    is_flag = tensor.data_type == tensor.BOOL and math.prod(tensor.dims) == 1
    return is_flag and bool(numpy_helper.to_array(tensor).item())


def check_domains(graph: onnx.GraphProto) -> None:
    """Refuse operators of domains that no engine has.

    Raises
    ------
    BackboneError
        Naming the operator.
    """
    for each in all_graphs(graph):
        for node in each.node:
            if node.domain not in _DOMAINS:
                raise BackboneError(
                    f"its {node.op_type} {list(node.output[:1])} is an operator of the "
                    f"domain {node.domain!r}, which the file does not define and ONNX "
                    "Runtime does not have. Expected operators of ONNX: export the "
                    "network without it, or choose a layer before it by its name."
                )


def check_batch(size: int) -> None:
    """Refuse an implausibly large fixed batch size.

    Raises
    ------
    BackboneError
        If `size` exceeds `LARGEST_BATCH`.
    """
    if size > LARGEST_BATCH:
        raise BackboneError(
            f"its batch size is fixed at {size}. Expected at most {LARGEST_BATCH}."
        )


def check_sizes(shapes: Mapping[str, tuple[int | None, ...] | None]) -> None:
    """Refuse activations that are too large for memory.

    Parameters
    ----------
    shapes : mapping of str to tuple, or None
        Known shapes of tensors, by name.

    Raises
    ------
    BackboneError
        Naming the tensor.
    """
    for name, shape in shapes.items():
        if shape is not None:
            _check_size(name, [dim or 1 for dim in shape])


def _check_size(name: str, dims: Iterable[int]) -> None:
    elements = math.prod(dims)
    if elements > _MAX_ELEMENTS:
        raise BackboneError(
            f"its tensor {name!r} has {elements} elements. Expected at most "
            f"{_MAX_ELEMENTS}."
        )
