"""Broadcasting as before opset 7: by an attribute, along an axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sk_cnncodes.base.exceptions import BackboneError

if TYPE_CHECKING:
    import onnx

_BROADCAST = (
    *("Add", "And", "Div", "Equal", "Gemm", "Greater", "Less", "Mul", "Or", "Pow"),
    *("Sub", "Xor"),
)


def broadcast_as_numpy(model: onnx.ModelProto) -> None:
    """Broadcast as numpy and opset 7 do, instead of by the attributes of opset 6.

    The second input was aligned with the first from an axis on, instead of at the end.
    onnx's own conversion aligns it wrongly, and needs a fixed batch size.

    Parameters
    ----------
    model : onnx.ModelProto
        Of an opset before 7; changed in place.

    Raises
    ------
    BackboneError
        If the rank of an input is unknown; naming the node.
    """
    ranks: dict[str, int] | None = None
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        old = [a for a in node.attribute if a.name in ("axis", "broadcast")]
        if node.op_type in _BROADCAST and old:
            axes = [a.i for a in old if a.name == "axis"]
            if axes and node.op_type != "Gemm":
                ranks = _ranks(model) if ranks is None else ranks
                nodes += _aligned(node, axes[0], ranks)
            for attribute in old:
                node.attribute.remove(attribute)
        nodes.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Ranks of tensors, as far as they are known."""
    import onnx
    import onnx.shape_inference

    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {tensor.name: len(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks


def _aligned(
    node: onnx.NodeProto, axis: int, ranks: dict[str, int]
) -> list[onnx.NodeProto]:
    """Align the second input of a node with an axis; return the nodes that do."""
    import onnx

    first, second = node.input
    if first not in ranks or second not in ranks:
        raise BackboneError(
            f"its {node.op_type} {list(node.output)} broadcasts along axis {axis} of "
            f"{first!r}, as before opset 7, and the number of dimensions of "
            f"{first if first not in ranks else second!r} is unknown. Expected opset 7 "
            "or newer: export the network again."
        )
    rank = ranks[first]
    missing = rank - (axis % rank if rank else 0) - ranks[second]
    if missing <= 0:
        return []
    node.input[1] = f"{node.output[0]}/{second}/aligned"
    axes = list(range(ranks[second], ranks[second] + missing))
    return [onnx.helper.make_node("Unsqueeze", [second], [node.input[1]], axes=axes)]
