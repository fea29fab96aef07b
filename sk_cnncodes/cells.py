"""Cells: blocks of networks in which each block reads the two before it.

NASNet and its kin have no tensor that all paths cross between their stem and their
end. Their cells still end in one: a concatenation of several branches.
"""

from __future__ import annotations

from sk_cnncodes.layers import LayerGraph

# What sets a cell apart from the insides of a block: how many tensors it joins, and
# how many of its kind follow one another.
_FEWEST_BRANCHES = 3
_FEWEST_CELLS = 3


def cell_outputs(graph: LayerGraph, nodes: list[int]) -> list[str]:
    """Outputs of the cells among nodes between which there is no cut tensor."""
    view = graph.view
    cells: list[str] = []
    for index in nodes:
        if graph.op(index) != "Concat" or _joins_shared(graph, index):
            continue
        (name,) = view.nodes[index].output
        follows = not cells or view.producer[cells[-1]] in view.ancestors([name])
        wide = len(view.data_inputs(index)) >= _FEWEST_BRANCHES
        if wide and follows and graph.can_be_layer(name):
            cells.append(name)
    return cells if len(cells) >= _FEWEST_CELLS else []


def _joins_shared(graph: LayerGraph, index: int) -> bool:
    """Whether a tensor is joined here and elsewhere, as inside of a dense block."""
    view = graph.view
    return any(
        reader != index and graph.op(reader) == "Concat"
        for name in view.data_inputs(index)
        for reader in view.readers[name]
    )
