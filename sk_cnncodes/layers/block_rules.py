"""Rules about the inside of a block: NASNet cells, fused branches and token mixing.

Networks like NASNet have no dominator between the stem and the last cell, because each
cell reads the two before it. Still, a cell ends in one tensor, the concatenation of its
branches.

Blocks such as those of CSP and HGNet concatenate their branches and end in the 1x1
convolution that fuses them.

Transformer blocks have two residual sums: the first after token mixing, by attention,
pooling, convolution or a matrix product; the second after a channel MLP, which acts on
each token separately. Where the first half does nothing but mix tokens, by depthwise
convolutions, the MLP may contain a depthwise convolution too (FastViT).
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
        and not shares_input(graph, index)
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


def shares_input(graph: LayerGraph, index: int) -> bool:
    """Whether another Concat shares an input with this one, as in a dense block."""
    view = graph.view
    return any(
        reader != index and graph.op(reader) == "Concat"
        for name in view.data_inputs(index)
        for reader in view.readers[name]
    )


def attends(graph: LayerGraph, nodes: list[int]) -> bool:
    """Whether nodes include attention: with a softmax, or linear.

    Linear attention multiplies two tensors that both depend on the image.
    """
    return any(
        graph.op(i) in ATTENTION
        or (graph.op(i) == "MatMul" and len(graph.view.data_inputs(i)) > 1)
        for i in nodes
    )


def is_depthwise_convolution(graph: LayerGraph, index: int) -> bool:
    """Whether a node is a convolution of each channel by itself."""
    if graph.op(index) not in CONVOLUTIONS:
        return False
    node = graph.view.nodes[index]
    weights = graph.shape(node.input[3 if node.op_type == "QLinearConv" else 1])
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return groups > 1 and weights[1:2] == (1,)


def is_pointwise_convolution(graph: LayerGraph, index: int) -> bool:
    """Whether a node is a 1x1 convolution of all channels, without a stride."""
    if graph.op(index) not in CONVOLUTIONS or set(graph.kernel(index)) != {1}:
        return False
    stated = {a.name: a for a in graph.view.nodes[index].attribute}
    groups = stated["group"].i if "group" in stated else 1
    strides = stated["strides"].ints if "strides" in stated else [1]
    return groups == 1 and set(strides) == {1}


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
    if ops & (POOLS | _RECURRENT) or attends(graph, nodes):
        return True
    if any(graph.op(i) == "ReduceSum" and _sums_tokens(graph, i) for i in nodes):
        return True
    convolutions = [i for i in nodes if graph.op(i) in CONVOLUTIONS]
    if any(max(graph.kernel(i), default=1) > 1 for i in convolutions):
        return True
    products = [i for i in nodes if graph.op(i) in ("Gemm", "MatMul")]
    return bool(products) and _inner_dimension(graph, products[0]) != channels


def _sums_tokens(graph: LayerGraph, index: int) -> bool:
    """Whether a node sums over the tokens of (batch, tokens, channels)."""
    node = graph.view.nodes[index]
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    return (
        len(before) == 3
        and before[1] > 1
        and after
        in (
            (before[0], 1, before[2]),
            (before[0], before[2]),
        )
    )


def only_mixes_tokens(graph: LayerGraph, nodes: list[int]) -> bool:
    """Whether depthwise convolutions are the only linear layers among nodes."""
    linear = [i for i in nodes if graph.op(i) in LINEAR_OPS]
    return bool(linear) and all(is_depthwise_convolution(graph, i) for i in linear)


def is_channel_mlp(
    graph: LayerGraph,
    start: str,
    nodes: list[int],
    channels: int,
    depthwise: bool = False,
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
    depthwise : bool
        Whether the MLP may contain depthwise convolutions.
    """
    inside = [
        i for i in nodes if not (depthwise and is_depthwise_convolution(graph, i))
    ]
    return (
        any(graph.op(i) in LINEAR_OPS for i in inside)
        and all(graph.op(i) in POINTWISE | LINEAR_OPS for i in nodes)
        and not mixes_tokens(graph, inside, channels)
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
