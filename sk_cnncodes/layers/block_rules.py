"""Rules about the inside of a block: NASNet cells and token mixing.

Networks like NASNet have no dominator between the stem and the last cell, because each
cell reads the two before it. Still, a cell ends in one tensor, the concatenation of its
branches.

Transformer blocks have two residual sums: the first after token mixing, by attention,
pooling, convolution or a matrix product; the second after a channel MLP, which acts on
each token separately.
"""

from __future__ import annotations

from sk_cnncodes.graphs.operators import (
    ATTENTION,
    CONVOLUTIONS,
    LAYOUT_OPS,
    LINEAR_OPS,
    MERGES,
    POINTWISE,
    POOLS,
)
from sk_cnncodes.layers.layer import LayerGraph

# A cell differs from the inside of a block by the number of concatenated branches and
# the number of cells in a row.
_MIN_BRANCHES = 3
_MIN_CELLS = 3
_RECURRENT = frozenset(["GRU", "LSTM", "RNN"])


def cell_outputs(graph: LayerGraph, nodes: list[int]) -> list[str]:
    """Outputs of the cells among nodes without a dominator between them."""
    view = graph.view
    concats = [
        index
        for index in nodes
        if graph.op(index) == "Concat"
        and len(view.data_inputs(index)) >= _MIN_BRANCHES
        and not _shares_input(graph, index)
    ]
    cells: list[str] = []
    for index in concats:
        (name,) = view.nodes[index].output
        is_next = not cells or view.producer[cells[-1]] in view.ancestors([name])
        # Each cell but the last has two cells as readers; a tensor inside a block has
        # one reader.
        is_read = index == concats[-1] or _n_readers(graph, name) > 1
        if is_next and is_read and graph.can_be_layer(name):
            cells.append(name)
    return cells if len(cells) >= _MIN_CELLS else []


def _n_readers(graph: LayerGraph, name: str) -> int:
    """Number of nodes that read a tensor, or the activation after it."""
    readers = graph.view.readers.get(name, [])
    while len(readers) == 1 and graph.op(readers[0]) in POINTWISE:
        (name,) = graph.view.nodes[readers[0]].output
        readers = graph.view.readers.get(name, [])
    return len(readers)


def _shares_input(graph: LayerGraph, index: int) -> bool:
    """Whether another Concat shares an input with this one, as in a dense block."""
    view = graph.view
    return any(
        reader != index and graph.op(reader) == "Concat"
        for name in view.data_inputs(index)
        for reader in view.readers[name]
    )


def mixes_tokens(graph: LayerGraph, nodes: list[int], channels: int) -> bool:
    """Whether tokens or pixels are mixed between two dominators.

    Parameters
    ----------
    graph : LayerGraph
    nodes : list of int
        Nodes between the dominators.
    channels : int
        Number of channels of the first dominator.
    """
    ops = {graph.op(i) for i in nodes}
    if ops & (ATTENTION | POOLS | _RECURRENT):
        return True
    convolutions = [i for i in nodes if graph.op(i) in CONVOLUTIONS]
    if any(max(graph.kernel(i), default=1) > 1 for i in convolutions):
        return True
    products = [i for i in nodes if graph.op(i) in ("Gemm", "MatMul")]
    return bool(products) and _inner_dimension(graph, products[0]) != channels


def is_channel_mlp(
    graph: LayerGraph, start: str, nodes: list[int], channels: int
) -> bool:
    """Whether a channel MLP follows a tensor and is added to it.

    Parameters
    ----------
    graph : LayerGraph
    start : str
        The tensor.
    nodes : list of int
        The nodes after it.
    channels : int
        Its number of channels.
    """
    linear = [i for i in nodes if graph.op(i) in LINEAR_OPS]
    return (
        bool(linear)
        and all(graph.op(i) in POINTWISE | LINEAR_OPS for i in nodes)
        and not mixes_tokens(graph, nodes, channels)
        and _is_added_to(graph, start, nodes)
    )


def _is_added_to(graph: LayerGraph, start: str, nodes: list[int]) -> bool:
    """Whether a sum among nodes reads a tensor, possibly rearranged or scaled."""
    equivalent = {start}
    for index in nodes:
        data = graph.view.data_inputs(index)
        if (
            graph.op(index) in MERGES
            and len(data) > 1
            and not equivalent.isdisjoint(data)
        ):
            return True
        keeps_values = graph.op(index) in LAYOUT_OPS | {"Mul"}
        # A batch normalisation that is the only reader still counts as the tensor.
        keeps_values |= (
            graph.op(index) == "BatchNormalization"
            and len(graph.view.readers[data[0]]) == 1
        )
        if keeps_values and len(data) == 1 and data[0] in equivalent:
            equivalent.update(graph.view.nodes[index].output)
    return False


def _inner_dimension(graph: LayerGraph, index: int) -> int:
    """Length of the axis of its data that a matrix product sums over; 0 if unknown."""
    name = graph.view.data_inputs(index)[0]
    shape = graph.shape(name)
    is_left = graph.view.nodes[index].input[0] == name
    return shape[-1 if is_left else -2] if len(shape) > 1 else 0
