"""What an ONNX model must fulfil before its graph is walked, cut or run.

ONNX files may be damaged or hostile. ONNX Runtime and onnx refuse most of what is
malformed; here is refused what they would read, run or allocate without end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from sk_cnncodes.exceptions import BackboneError

if TYPE_CHECKING:
    import onnx

# The largest published image networks have about ten thousand nodes.
_MOST_NODES = 50_000
# Elements of one activation: those of large networks are a hundredth of it.
_MOST_ELEMENTS = 2**30
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
    """Refuse a model whose size or numbers no network has.

    Raises
    ------
    BackboneError
    """
    graphs = list(all_graphs(model.graph))
    nodes = sum(len(graph.node) for graph in graphs)
    nodes += sum(len(function.node) for function in model.functions)
    if nodes > _MOST_NODES:
        raise BackboneError(f"it has {nodes} nodes. Expected at most {_MOST_NODES}.")
    for tensor in all_tensors(model.graph):
        if any(dim < 0 for dim in tensor.dims):
            raise BackboneError(
                f"its tensor {tensor.name!r} has the shape {list(tensor.dims)}. "
                "Expected no negative dimension."
            )
        _check_size(tensor.name, tensor.dims)


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
