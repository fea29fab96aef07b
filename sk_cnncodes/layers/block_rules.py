"""Rules about what lies inside of a block: cells of NASNet, mixing of tokens.

Networks like NASNet have no dominator between their stem and their end: each cell
reads the two before it. Their cells still end in one tensor, a concatenation of
several branches.

Transformers alternate two kinds of sums: a first one that lets tokens (or pixels) see
each other, by attention, pooling, convolution or a matrix, and a second one, after an
MLP, that sees each token by itself.
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

# What tells a cell from the inside of a block: how many tensors it joins, and how many
# of its kind follow one another.
_FEWEST_BRANCHES = 3
_FEWEST_CELLS = 3
_RECURRENT = frozenset(["GRU", "LSTM", "RNN"])


def cell_outputs(graph: LayerGraph, nodes: list[int]) -> list[str]:
    """Outputs of the cells among nodes between which there is no dominator."""
    view = graph.view
    wide = [
        index
        for index in nodes
        if graph.op(index) == "Concat"
        and len(view.data_inputs(index)) >= _FEWEST_BRANCHES
        and not _joins_shared(graph, index)
    ]
    cells: list[str] = []
    for index in wide:
        (name,) = view.nodes[index].output
        follows = not cells or view.producer[cells[-1]] in view.ancestors([name])
        # The two cells after it read each cell but the last. A tensor inside of a
        # block has one reader.
        read = index == wide[-1] or _n_readers(graph, name) > 1
        if follows and read and graph.can_be_layer(name):
            cells.append(name)
    return cells if len(cells) >= _FEWEST_CELLS else []


def _n_readers(graph: LayerGraph, name: str) -> int:
    """How many nodes read a tensor, or the result of its activations."""
    readers = graph.view.readers.get(name, [])
    while len(readers) == 1 and graph.op(readers[0]) in POINTWISE:
        (name,) = graph.view.nodes[readers[0]].output
        readers = graph.view.readers.get(name, [])
    return len(readers)


def _joins_shared(graph: LayerGraph, index: int) -> bool:
    """Whether a tensor is joined here and elsewhere, as inside of a dense block."""
    view = graph.view
    return any(
        reader != index and graph.op(reader) == "Concat"
        for name in view.data_inputs(index)
        for reader in view.readers[name]
    )


def mixes_tokens(graph: LayerGraph, nodes: list[int], channels: int) -> bool:
    """Whether tokens, or pixels, see each other between two dominators.

    Parameters
    ----------
    graph : LayerGraph
    nodes : list of int
        The nodes between the dominators.
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
    return bool(products) and _n_summed(graph, products[0]) != channels


def is_channel_mlp(
    graph: LayerGraph, start: str, nodes: list[int], channels: int
) -> bool:
    """Whether an MLP that sees each token by itself is added to a tensor.

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
    learned = [i for i in nodes if graph.op(i) in LINEAR_OPS]
    return (
        bool(learned)
        and all(graph.op(i) in POINTWISE | LINEAR_OPS for i in nodes)
        and not mixes_tokens(graph, nodes, channels)
        and _is_added_to(graph, start, nodes)
    )


def _is_added_to(graph: LayerGraph, start: str, nodes: list[int]) -> bool:
    """Whether a sum among nodes reads a tensor as it is, rearranged or scaled."""
    alike = {start}
    for index in nodes:
        data = graph.view.data_inputs(index)
        if graph.op(index) in MERGES and len(data) > 1 and not alike.isdisjoint(data):
            return True
        kept = graph.op(index) in LAYOUT_OPS | {"Mul"}
        # The normalisation of a tensor that no other node reads is a part of it.
        kept |= (
            graph.op(index) == "BatchNormalization"
            and len(graph.view.readers[data[0]]) == 1
        )
        if kept and len(data) == 1 and data[0] in alike:
            alike.update(graph.view.nodes[index].output)
    return False


def _n_summed(graph: LayerGraph, index: int) -> int:
    """Over how many values of its data a matrix product sums."""
    name = graph.view.data_inputs(index)[0]
    shape = graph.shape(name)
    is_left = graph.view.nodes[index].input[0] == name
    return shape[-1 if is_left else -2] if len(shape) > 1 else 0
