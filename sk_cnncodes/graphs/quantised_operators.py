"""Exposes the layers of quantised networks as float tensors.

Quantised files come in two formats. In one, QuantizeLinear and DequantizeLinear
surround the operators; in the other, operators such as QLinearConv read and write
integers, with a scale and a zero point as inputs. Both often have no ReLU nodes:
clipping the integers at zero is the ReLU. So layers are outputs of DequantizeLinear,
not inputs of QuantizeLinear.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sk_cnncodes.graphs.view import default_opset, node_reads, tensor_size

if TYPE_CHECKING:
    import onnx

# Position of the output's scale, followed by its zero point, among the inputs.
# https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
_OUTPUT_SCALE = {
    **{"QuantizeLinear": 1, "QLinearConcat": 0},
    **{"QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6},
    **{"QLinearAveragePool": 3, "QLinearGlobalAveragePool": 3, "QLinearReduceMean": 3},
    **{"QLinearLeakyRelu": 3, "QLinearSigmoid": 3, "QLinearSoftmax": 3},
    **{"QGemm": 7, "QLinearWhere": 7},
}
# Operators whose output has the scale of their input.
_KEEPS_SCALE = (
    *("Flatten", "Gather", "Identity", "MaxPool", "NhwcMaxPool", "Relu", "Reshape"),
    *("Slice", "Squeeze", "Transpose", "Unsqueeze"),
)
# DequantizeLinear exists since this version of the default operator set.
_OLDEST_OPSET = 10


def expose_floats(model: onnx.ModelProto) -> None:
    """Insert DequantizeLinear and QuantizeLinear after tensors of integers.

    Each pair is an identity, which ONNX Runtime removes again; the float tensor inside
    can be a layer. Equal nodes that quantise or dequantise the same tensor are merged,
    so that all paths pass through one.

    Parameters
    ----------
    model : onnx.ModelProto
        With nodes in topological order and without Constant nodes; changed in place.
    """
    if default_opset(model) >= _OLDEST_OPSET:
        _merge_equal(model)
        _insert_pairs(model)


def _merge_equal(model: onnx.ModelProto) -> None:
    """Merge equal nodes that quantise or dequantise the same tensor."""
    scalars = [t for t in model.graph.initializer if tensor_size(t) == 1]
    values = {tensor.name: _unnamed(tensor) for tensor in scalars}
    outputs = {output.name for output in model.graph.output}
    first: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            inputs = [values.get(name, name) for name in node.input]
            options = [a.SerializeToString() for a in node.attribute]
            key = (node.op_type, *inputs, *sorted(options))
            kept = first.setdefault(key, node.output[0])
            if kept != node.output[0] and node.output[0] not in outputs:
                renamed[node.output[0]] = kept
    if renamed:
        read = {name for node in model.graph.node for name in node_reads(node)}
        unread = renamed.keys() - read  # bodies may still read an old name
        nodes = [n for n in model.graph.node if unread.isdisjoint(n.output)]
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)


def _unnamed(tensor: onnx.TensorProto) -> bytes:
    """Content of a scalar without its name, to compare values."""
    import onnx

    unnamed = onnx.TensorProto()
    unnamed.CopyFrom(tensor)
    unnamed.ClearField("name")
    return bytes(unnamed.SerializeToString())


def _insert_pairs(model: onnx.ModelProto) -> None:
    """Insert a DequantizeLinear and QuantizeLinear pair after integer tensors."""
    import onnx

    graph = model.graph
    outputs = {output.name for output in graph.output}
    readers: dict[str, Counter[str]] = {}
    for node in graph.node:
        for name in node_reads(node):
            readers.setdefault(name, Counter())[node.op_type] += 1
    taken = {name for node in graph.node for name in node.output}
    scales: dict[str, list[str]] = {}
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        scale = _scale_of_output(node, scales)
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        if scale is None:
            continue
        name = node.output[0]
        scales[name] = scale
        if name in outputs or set(readers.get(name, ())) <= {"DequantizeLinear"}:
            continue
        floats, again = f"{name}_dequantized", f"{name}_quantized_again"
        if taken & {floats, again}:
            continue
        pair = (("DequantizeLinear", name, floats), ("QuantizeLinear", floats, again))
        for op, source, target in pair:
            nodes.append(onnx.helper.make_node(op, [source, *scale], [target]))
        renamed[name] = again
    if renamed:
        graph.ClearField("node")
        graph.node.extend(nodes)


def _scale_of_output(
    node: onnx.NodeProto, scales: dict[str, list[str]]
) -> list[str] | None:
    """Names of scale and zero point of a node's integer output; otherwise None."""
    if node.op_type in _KEEPS_SCALE:
        return scales.get(node.input[0])
    position = _OUTPUT_SCALE.get(node.op_type)
    per_channel = node.op_type == "QuantizeLinear" and node.attribute
    if position is None or per_channel:
        return None
    scale = list(node.input[position : position + 2])
    return scale if len(scale) == 2 and all(scale) else None
