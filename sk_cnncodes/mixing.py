"""What mixes places (pixels or tokens), and what sees each place by itself.

Transformers and their kin alternate the two: a first sum that lets places see each
other, by attention, pooling, convolution or a matrix, and a second one that does not.
"""

from __future__ import annotations

from sk_cnncodes.layers import LayerGraph
from sk_cnncodes.operators import (
    ATTENTION,
    CONVOLUTIONS,
    MERGES,
    MOVES,
    POINTWISE,
    POOLS,
    WEIGHTED,
)

_RECURRENT = frozenset(["GRU", "LSTM", "RNN"])


def mixes_places(graph: LayerGraph, nodes: list[int], channels: int) -> bool:
    """Whether places see each other between two steps.

    Parameters
    ----------
    graph : LayerGraph
    nodes : list of int
        The nodes between the steps.
    channels : int
        Number of channels of the first step.
    """
    ops = {graph.op(i) for i in nodes}
    if ops & (ATTENTION | POOLS | _RECURRENT):
        return True
    convolutions = [i for i in nodes if graph.op(i) in CONVOLUTIONS]
    if any(max(graph.kernel(i), default=1) > 1 for i in convolutions):
        return True
    products = [i for i in nodes if graph.op(i) in ("Gemm", "MatMul")]
    return bool(products) and _rows(graph, products[0]) != channels


def is_channel_mlp(
    graph: LayerGraph, start: str, nodes: list[int], channels: int
) -> bool:
    """Whether layers that see each place by itself are added to a tensor.

    Parameters
    ----------
    graph : LayerGraph
    start : str
        The tensor.
    nodes : list of int
        What lies behind it.
    channels : int
        Its number of channels.
    """
    learned = [i for i in nodes if graph.op(i) in WEIGHTED]
    return (
        bool(learned)
        and all(graph.op(i) in POINTWISE | WEIGHTED for i in nodes)
        and not mixes_places(graph, nodes, channels)
        and _is_added_to(graph, start, nodes)
    )


def _is_added_to(graph: LayerGraph, start: str, nodes: list[int]) -> bool:
    """Whether a sum among nodes reads a tensor as it is, moved or scaled."""
    alike = {start}
    for index in nodes:
        data = graph.view.data_inputs(index)
        if graph.op(index) in MERGES and len(data) > 1 and not alike.isdisjoint(data):
            return True
        kept = graph.op(index) in MOVES | {"Mul"}
        # The normalisation of a tensor that nothing else reads is a part of it.
        kept |= (
            graph.op(index) == "BatchNormalization"
            and len(graph.view.readers[data[0]]) == 1
        )
        if kept and len(data) == 1 and data[0] in alike:
            alike.update(graph.view.nodes[index].output)
    return False


def _rows(graph: LayerGraph, index: int) -> int:
    """Over how many values of its data a matrix product sums."""
    name = graph.view.data_inputs(index)[0]
    shape = graph.shape(name)
    is_left = graph.view.nodes[index].input[0] == name
    return shape[-1 if is_left else -2] if len(shape) > 1 else 0
