"""Joins the inputs of several classifiers into one tensor.

Networks with several trunks, such as CrossViT or an ensemble, average the scores of
one classifier per trunk. No tensor of such a file holds the features of all trunks.
Likewise in a network with several outputs, such as age and gender, each of which has
hidden layers of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sk_cnncodes.graphs.classifiers import find_classifiers
from sk_cnncodes.graphs.view import constant_names, node_reads

if TYPE_CHECKING:
    import onnx

_FULLY_CONNECTED = ("Gemm", "MatMul")


def ensemble_tensor(output: str) -> str:
    """Name of the concatenated inputs of the classifiers of an output."""
    return f"{output}/read_by_classifiers"


# Name of the concatenated inputs of the classifiers of all outputs.
ENSEMBLE_OF_OUTPUTS = ensemble_tensor("all_outputs")


def join_ensemble_heads(model: onnx.ModelProto) -> None:
    """Concatenate the inputs of the classifiers of each output, and of all outputs.

    No node reads the new tensor: it can be a layer, and no other layer depends on it.

    Parameters
    ----------
    model : onnx.ModelProto
        With nodes in topological order and without Constant nodes; changed in place.
    """
    import onnx

    nodes = list(model.graph.node)
    producer = _image_dependent(model.graph)

    def data_inputs(index: int) -> list[str]:
        # In reverse, so that the walk meets the first classifier first.
        return [name for name in reversed(nodes[index].input) if name in producer]

    read: dict[str, list[str]] = {ENSEMBLE_OF_OUTPUTS: []}
    for output in model.graph.output:
        classifiers = find_classifiers(
            output.name,
            producer.get,
            lambda index: nodes[index].op_type,
            data_inputs,
            lambda index, _: nodes[index].op_type in _FULLY_CONNECTED,
        )
        sources = [data_inputs(index)[0] for index in classifiers]
        read[ensemble_tensor(output.name)] = sources
        read[ENSEMBLE_OF_OUTPUTS] += sources
    for name, sources in read.items():
        sources = list(dict.fromkeys(sources))
        parts = [f"{name}/{number}" for number in range(len(sources))]
        if len(sources) < 2 or not producer.keys().isdisjoint([name, *parts]):
            continue
        for source, part in zip(sources, parts, strict=True):
            node = onnx.helper.make_node("Flatten", [source], [part], axis=1)
            model.graph.node.append(node)
        model.graph.node.append(onnx.helper.make_node("Concat", parts, [name], axis=1))


def _image_dependent(graph: onnx.GraphProto) -> dict[str, int]:
    """Map tensors that depend on an input of the graph to the nodes computing them."""
    dependent = {value.name for value in graph.input} - constant_names(graph)
    producer = {}
    for index, node in enumerate(graph.node):
        if not dependent.isdisjoint(node_reads(node)):
            dependent.update(node.output)
            producer.update(dict.fromkeys(filter(None, node.output), index))
    return producer
