"""Classifiers that each read features of their own: the features, as one tensor.

Networks with several trunks, such as CrossViT or an ensemble, average the scores of
one classifier for each. No tensor of such a file holds what all of them read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sk_cnncodes.graph import constant_names, node_reads
from sk_cnncodes.operators import AFTER_SCORES, JOINS_SCORES

if TYPE_CHECKING:
    import onnx

_FULLY_CONNECTED = ("Gemm", "MatMul")


def joined_name(output: str) -> str:
    """Name of the tensor that joins what the classifiers of an output read."""
    return f"{output}/read_by_classifiers"


def join_heads(model: onnx.ModelProto) -> None:
    """Add the concatenation of what the classifiers of an output read.

    Nothing reads it: it can be a layer, and no other layer needs it.

    Parameters
    ----------
    model : onnx.ModelProto
        With nodes in topological order, and without Constant nodes. It is changed.
    """
    import onnx

    makers = _makers(model.graph)
    for output in model.graph.output:
        name = joined_name(output.name)
        read = _read_by_classifiers(output.name, makers)
        parts = [f"{name}/{number}" for number in range(len(read))]
        if len(read) < 2 or not makers.keys().isdisjoint([name, *parts]):
            continue
        for source, part in zip(read, parts, strict=True):
            node = onnx.helper.make_node("Flatten", [source], [part], axis=1)
            model.graph.node.append(node)
        model.graph.node.append(onnx.helper.make_node("Concat", parts, [name], axis=1))


def _makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The nodes that make tensors out of inputs of the graph."""
    constants = constant_names(graph)
    dependent = {value.name for value in graph.input} - constants
    makers = {}
    for node in graph.node:
        if not dependent.isdisjoint(node_reads(node)):
            dependent.update(node.output)
            makers.update(dict.fromkeys(filter(None, node.output), node))
    return makers


def _read_by_classifiers(output: str, makers: dict[str, onnx.NodeProto]) -> list[str]:
    """What the fully connected layers read behind which only scores are left."""
    found: dict[str, None] = {}
    waiting, seen = [output], {output}
    while waiting:
        name = waiting.pop()
        if name not in makers:
            return []  # the image itself
        node = makers[name]
        data = [source for source in node.input if source in makers]
        if node.op_type in _FULLY_CONNECTED and len(data) == 1:
            found[data[0]] = None
        elif node.op_type in JOINS_SCORES or (
            node.op_type in AFTER_SCORES and len(data) == 1
        ):
            # The last is taken first: in the order of the classifiers.
            waiting.extend(source for source in reversed(data) if source not in seen)
            seen.update(data)
        else:
            return []
    return list(found)
