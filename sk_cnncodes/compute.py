"""What a layer costs: multiply-adds of the nodes that it needs.

Convolutions and matrix products are counted, which do nearly all of a network's work;
biases, activations, normalisations and poolings are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sk_cnncodes.graph import GraphView, infer_types, read_model, value_shape
from sk_cnncodes.layers import image_input

if TYPE_CHECKING:
    import onnx

    from sk_cnncodes.backbone import Backbone

Shapes = Mapping[str, tuple[int, ...]]

# Operators that are counted, and which of their inputs are the factors.
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
        Shapes of its inputs and its output, with the batch.

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
    made = math.prod(shapes[node.output[0]])
    if "Conv" in node.op_type:
        # The kernel has the shape [out, in / groups, height, width].
        return made * math.prod(second[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return made * first[0 if transposed else -1]
    return made * first[-1]


def multiply_adds(view: GraphView, shapes: Shapes, names: list[str]) -> int:
    """Multiply-adds of all nodes that the given tensors need.

    Nodes that the image does not reach are constants, and cost nothing.
    """
    return sum(
        node_multiply_adds(view.nodes[index], shapes)
        for index in view.ancestors(names)
        if view.data_inputs(index)
    )


def layer_multiply_adds(
    backbone: Backbone, names: list[str]
) -> tuple[dict[str, int], int]:
    """What layers of a backbone cost for one image.

    Parameters
    ----------
    backbone : Backbone
    names : list of str
        Names of the layers' tensors.

    Returns
    -------
    by_name : dict of str to int
        Multiply-adds up to each layer.
    total : int
        Multiply-adds of the whole network.
    """
    model = read_model(backbone.path)
    value = image_input(model)
    stated = value_shape(value)
    batch = (stated[0] if stated else None) or 1
    view = GraphView(model, value.name)
    input_shape = (batch, *backbone.preprocessing.input_shape[1:])
    shapes = _factor_shapes(backbone, view, input_shape)
    by_name = {name: multiply_adds(view, shapes, [name]) // batch for name in names}
    outputs = [output.name for output in model.graph.output]
    return by_name, multiply_adds(view, shapes, outputs) // batch


def _factor_shapes(
    backbone: Backbone, view: GraphView, input_shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Shapes of what the counted nodes read and write."""
    from sk_cnncodes.backbone import _measured

    wanted: set[str] = set()
    for index, node in enumerate(view.nodes):
        if node.op_type in _FACTORS and view.data_inputs(index):
            wanted.update(node.input[i] for i in _FACTORS[node.op_type])
            wanted.add(node.output[0])
    shapes = {
        name: tuple(tensor.dims)
        for name, tensor in view.constants.items()
        if name in wanted
    }
    types = infer_types(view.model, view.input_name, input_shape)
    unknown = []
    for name in sorted(wanted - set(shapes)):
        found = types[name].shape if name in types else None
        if found is None or None in found:
            unknown.append(name)
        else:
            shapes[name] = tuple(dim or 0 for dim in found)
    if unknown:
        # One run tells all that shape inference does not.
        measured = _measured(read_model(backbone.path), unknown, backbone, input_shape)
        shapes.update(
            {n: tuple(d or 0 for d in t.shape or ()) for n, t in measured.items()}
        )
    return shapes
