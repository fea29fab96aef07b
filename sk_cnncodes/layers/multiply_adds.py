"""Cost of layers: multiply-adds of the nodes that they depend on.

Only convolutions and matrix products are counted, which account for nearly all of a
network's work; biases, activations, normalisations and poolings are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sk_cnncodes.graphs.view import GraphView
from sk_cnncodes.layers.typed_graph import TypedGraph

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, tuple[int, ...]]

# Counted operators, and the indices of the inputs that are multiplied.
_FACTORS = {
    "Conv": (0, 1),
    "ConvInteger": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
}


def node_multiply_adds(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiply-adds of one node.

    Parameters
    ----------
    node : onnx.NodeProto
    shapes : mapping of str to tuple of int
        Shapes of its inputs and its output, with the batch dimension.

    Returns
    -------
    int
        0 for operators that are not counted.
    """
    if node.op_type not in _FACTORS:
        return 0
    first, second = (shapes[node.input[i]] for i in _FACTORS[node.op_type])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    n_outputs = math.prod(shapes[node.output[0]])
    if "Conv" in node.op_type:
        # The kernel has the shape [out, in / groups, height, width].
        return n_outputs * math.prod(second[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return n_outputs * first[0 if transposed else -1]
    return n_outputs * first[-1]


def multiply_adds(view: GraphView, shapes: Shapes, names: list[str]) -> int:
    """Multiply-adds of all nodes that the given tensors depend on.

    Nodes that do not depend on the image are constants and cost nothing.
    """
    return sum(
        node_multiply_adds(view.nodes[index], shapes)
        for index in view.ancestors(names)
        if view.data_inputs(index)
    )


def layer_multiply_adds(
    graph: TypedGraph, names: list[str]
) -> tuple[dict[str, int], int]:
    """Multiply-adds of layers of a backbone, for one image.

    Parameters
    ----------
    graph : TypedGraph
    names : list of str
        Names of the layers' tensors.

    Returns
    -------
    by_name : dict of str to int
        Multiply-adds up to each layer.
    total : int
        Multiply-adds of the whole network.
    """
    view, needed = graph.view, set[str]()
    for index, node in enumerate(view.nodes):
        if node.op_type in _FACTORS and view.data_inputs(index):
            needed.update(node.input[i] for i in _FACTORS[node.op_type])
            needed.add(node.output[0])
    shapes = {name: graph.shape(name) for name in sorted(needed)}
    outputs = [output.name for output in view.model.graph.output]
    by_name = {n: multiply_adds(view, shapes, [n]) // graph.batch for n in names}
    return by_name, multiply_adds(view, shapes, outputs) // graph.batch
