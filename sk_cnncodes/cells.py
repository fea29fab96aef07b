"""Cells: blocks of networks in which each block reads the two before it.

NASNet and its kin have no tensor that all paths cross between their stem and their
end. Their cells still end in one: a concatenation of several branches.
"""

from __future__ import annotations

from sk_cnncodes.layers import LayerGraph
from sk_cnncodes.operators import POINTWISE

# What sets a cell apart from the insides of a block: how many tensors it joins, and
# how many of its kind follow one another.
_FEWEST_BRANCHES = 3
_FEWEST_CELLS = 3


def cell_outputs(graph: LayerGraph, nodes: list[int]) -> list[str]:
    """Outputs of the cells among nodes between which there is no cut tensor."""
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
        # The two cells behind read each but the last; the inside of a block, one node.
        read = index == wide[-1] or _ways_on(graph, name) > 1
        if follows and read and graph.can_be_layer(name):
            cells.append(name)
    return cells if len(cells) >= _FEWEST_CELLS else []


def _ways_on(graph: LayerGraph, name: str) -> int:
    """How many nodes read a tensor, or what activations make of it."""
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
