"""Splits operators that fuse the end of a block with the start of the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
_SKIP = "SkipLayerNormalization"
_DEFAULT_EPSILON = 1e-12


def split_fused(model: onnx.ModelProto) -> None:
    """Split SkipLayerNormalization into the sum and the normalisation that it fuses.

    Optimisers of transformers create it; the sum is the output of a block. ONNX Runtime
    fuses the two again when it loads the network.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place.
    """
    graph = model.graph
    if not any(_can_be_split(node) for node in graph.node):
        return
    taken = {name for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if _can_be_split(node):
            nodes.extend(_split(node, taken))
        else:
            nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)


def _can_be_split(node: onnx.NodeProto) -> bool:
    # The second and third outputs, mean and deviation, are for training.
    return node.op_type == _SKIP and not any(node.output[1:3])


def _split(node: onnx.NodeProto, taken: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that replace a fused one; `taken` are the used names."""
    import onnx

    output = node.output[0]
    first, skip, scale, offset, bias = (list(node.input) + [""] * 5)[:5]
    total = node.output[3] if len(node.output) > 3 else ""
    total = total or _unused(f"{output}_sum", taken)
    parts = [(first, skip, total)]
    if bias:
        biased = _unused(f"{output}_biased", taken)
        parts = [(first, bias, biased), (biased, skip, total)]
    nodes = [onnx.helper.make_node("Add", [a, b], [target]) for a, b, target in parts]
    epsilon = [a.f for a in node.attribute if a.name == "epsilon"]
    inputs = [total, scale, offset] if offset else [total, scale]
    nodes.append(
        onnx.helper.make_node(
            "LayerNormalization",
            inputs,
            [output],
            axis=-1,
            epsilon=epsilon[0] if epsilon else _DEFAULT_EPSILON,
        )
    )
    return nodes


def _unused(name: str, taken: set[str]) -> str:
    """Extend a name until it is unused, and reserve it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
