"""DominatorChain: the tensors that every path to the output passes, in order.

In the terms of compilers, they dominate the output. A network can be cut at each of
them, and nothing that an earlier part computes is needed later but this one tensor.
"""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.graphs.operators import (
    ATTENTION,
    GLOBAL_POOLS,
    LAYOUT_OPS,
    LINEAR_OPS,
    MERGES,
    POINTWISE,
    POOLS,
)
from sk_cnncodes.layers.layer import LayerGraph


@dataclass
class Dominator:
    """Dominating tensors that hold the same values, rearranged.

    Attributes
    ----------
    tensors : list of str
    nodes : list of int
        The nodes after the dominator before, up to the first of the tensors.
    layer : str or None
        The tensor at which to cut; None where none of them can give a code.
    """

    tensors: list[str]
    nodes: list[int]
    layer: str | None


class DominatorChain:
    """The dominators between the image and a tensor, and questions about them.

    A dominator is given by its index in the chain, and what lies between two of them
    by its nodes.

    Parameters
    ----------
    graph : LayerGraph
    output : str
        The output of the file.
    end : str
        The tensor at or before which the chain ends.
    """

    def __init__(self, graph: LayerGraph, output: str, end: str) -> None:
        self.graph = graph
        self.output = output
        self.end = end

    @cached_property
    def all(self) -> list[Dominator]:
        """The dominators up to the penultimate; tensors of the same values as one."""
        view, start = self.graph.view, -1
        chain: list[Dominator] = []
        path = view.path(self.output)
        end = view.producer.get(self.end, -1)
        for name in view.dominators(self.output):
            here = view.producer[name]
            if here > end:
                break
            between = path[bisect(path, start) : bisect(path, here)]
            start = here
            if chain and len(between) == 1 and self._rearranges(here):
                chain[-1].tensors.append(name)
            else:
                chain.append(Dominator([name], between, None))
        if not chain:
            raise BackboneError(
                f"it has no layer: nothing lies between its image input "
                f"{view.input_name!r} and its output {self.output!r}."
            )
        for dominator in chain:
            dominator.layer = self._representative(dominator.tensors)
        return chain

    def _representative(self, tensors: list[str]) -> str | None:
        """The tensor of a dominator at which to cut; None where none gives a code."""
        shapes = {name: self.graph.shape(name) for name in tensors}
        fitting = [name for name in tensors if self.graph.can_be_layer(name)]
        if not fitting:
            return None
        dequantised = [n for n in fitting if self._made_by(n) == "DequantizeLinear"]
        if dequantised:  # the input of QuantizeLinear may lack its activation
            fitting = fitting[fitting.index(dequantised[0]) :]
        first = fitting[0]
        if shapes[first][2:] == (1,):
            # Channels at a single position, (batch, channels, 1), look like tokens.
            return next((n for n in fitting if len(shapes[n]) == 2), first)
        alike = [name for name in fitting if shapes[name] == shapes[first]]
        between = tensors[tensors.index(first) : tensors.index(alike[-1])]
        shuffled = any(len(shapes[name]) > 4 for name in between)
        return alike[-1] if shuffled else first  # a block ends after its shuffle

    def _made_by(self, name: str) -> str:
        return self.graph.op(self.graph.view.producer[name])

    def _rearranges(self, index: int) -> bool:
        """Whether a node keeps all values, as a pooling over single positions does."""
        if self.graph.op(index) in POOLS:
            (source,) = self.graph.view.data_inputs(index)
            node = self.graph.view.nodes[index]
            kernel = next(
                list(a.ints) for a in node.attribute if a.name == "kernel_shape"
            )
            same = self.graph.shape(source) == self.graph.shape(node.output[0])
            return same and set(kernel) == {1}
        return self.graph.op(index) in LAYOUT_OPS

    # -- what lies between ---------------------------------------------------

    def between(self, start: int, end: int) -> list[int]:
        """Nodes after dominator `start`, up to and with dominator `end`."""
        return [i for each in self.all[start + 1 : end + 1] for i in each.nodes]

    def is_linear(self, nodes: list[int]) -> bool:
        """Whether there is a convolution or a matrix product among nodes."""
        return any(self.graph.op(i) in LINEAR_OPS for i in nodes)

    def pools_all(self, nodes: list[int]) -> bool:
        """Whether nodes are one global pooling, or one selection of a token."""
        return len(nodes) == 1 and self.graph.op(nodes[0]) in GLOBAL_POOLS | {
            "Gather",
            "Slice",
        }

    def is_pointwise(self, nodes: list[int]) -> bool:
        """Whether nodes compute each position by itself: activations and the like."""
        return all(self.graph.op(i) in POINTWISE and not self._pools(i) for i in nodes)

    def _pools(self, index: int) -> bool:
        """Whether a ReduceMean pools over positions rather than over channels."""
        if self.graph.op(index) != "ReduceMean":
            return False
        node = self.graph.view.nodes[index]
        before, after = (
            self.graph.shape(node.input[0]),
            self.graph.shape(node.output[0]),
        )
        return len(before) != len(after) or before[:-1] != after[:-1]

    def is_depthwise(self, nodes: list[int]) -> bool:
        """Whether a convolution among nodes has groups of channels."""
        return any(
            attribute.name == "group" and attribute.i > 1
            for i in nodes
            for attribute in self.graph.view.nodes[i].attribute
        )

    # -- how a dominator is made ---------------------------------------------

    def is_join(self, index: int) -> bool:
        """Whether a dominator is the sum, the concatenation or the like of several."""
        maker = self.all[index].nodes[-1]
        several = len(self.graph.view.data_inputs(maker)) >= 2
        return several and self.graph.op(maker) in MERGES

    def is_merge(self, index: int) -> bool:
        """Whether a dominator joins two branches that differ by learned weights."""
        nodes = self.all[index].nodes
        return (
            self.is_join(index)
            and self.is_linear(nodes)
            and not self._is_gate(nodes[-1])
            and not self._is_grouped(nodes)
        )

    def _is_grouped(self, nodes: list[int]) -> bool:
        """Whether nodes convolve groups of channels, each by weights of its own."""
        joined = self.graph.view.data_inputs(nodes[-1])
        makers = [self.graph.view.producer[name] for name in joined]
        others = [self.graph.op(i) for i in nodes[:-1] if i not in makers]
        return (
            self.graph.op(nodes[-1]) == "Concat"
            and all(self.graph.op(i) in LINEAR_OPS for i in makers)
            and bool(others)
            and set(others) <= {"Pad", "Slice", "Split"}
        )

    def is_squeeze_excite(self, index: int) -> bool:
        """Whether a dominator is the one before with its channels scaled."""
        maker = self.all[index].nodes[-1]
        if index == 0 or not self._is_gate(maker):
            return False
        before = self.all[index - 1].tensors[-1]
        factors = [n for n in self.graph.view.data_inputs(maker) if n != before]
        return len(factors) == 1 and self.channels(index) == math.prod(
            self.graph.shape(factors[0])[1:]
        )

    def _is_gate(self, index: int) -> bool:
        """Whether a node scales channels, or positions, by factors made of them."""
        node = self.graph.view.nodes[index]
        if self.graph.op(index) != "Mul":
            return False
        made = self.graph.shape(node.output[0])
        return any(
            len(shape) == len(made) and shape != made
            for shape in map(self.graph.shape, self.graph.view.data_inputs(index))
        )

    def is_dense_concat(self, index: int) -> bool:
        """Whether a dominator is the one before, concatenated with new channels."""
        if index == 0 or self.graph.op(self.all[index].nodes[-1]) != "Concat":
            return False
        joined = self.graph.view.data_inputs(self.all[index].nodes[-1])
        return self.all[index - 1].tensors[-1] in joined

    # -- what reads a dominator ----------------------------------------------

    @cached_property
    def _on_path(self) -> frozenset[int]:
        """Nodes through which the image reaches the output."""
        return frozenset(self.graph.view.path(self.output))

    def _n_readers(self, index: int) -> int:
        """How many nodes read a dominator; a Split counts by its outputs."""
        last = self.all[index].tensors[-1]
        readers = self.graph.view.readers.get(last, [])
        nodes = [i for i in readers if i in self._on_path]
        return sum(
            len(self.graph.view.nodes[i].output) if self.graph.op(i) == "Split" else 1
            for i in nodes
        )

    def branches_after(self, index: int) -> bool:
        """Whether several branches leave a dominator, beyond those of an activation."""
        if index + 1 >= len(self.all):
            return False
        nodes = self.all[index + 1].nodes
        alone = (
            self.is_pointwise(nodes)
            or self._is_gate(nodes[-1])
            or self._is_grouped(nodes)
        )
        return self._n_readers(index) >= 2 and not alone

    def projects_for_attention(self, index: int) -> bool:
        """Whether a dominator holds keys and values of an attention without a skip."""
        after = self.all[index + 1].nodes
        attends = any(self.graph.op(i) in ATTENTION for i in after)
        if not attends or self.is_merge(index + 1):
            return False
        while index > 0 and not self.is_linear(self.all[index].nodes):
            index -= 1  # a bias
        made = {self.graph.op(i) for i in self.all[index].nodes} & LINEAR_OPS
        return bool(made) and made <= {"Gemm", "MatMul"} and not self.is_merge(index)

    def expands(self, index: int, follower: int) -> bool:
        """Whether a merge joins single learned layers that all read one dominator."""
        between = self.between(index, follower)
        linear = [i for i in between if self.graph.op(i) in LINEAR_OPS]
        joined = self.graph.view.data_inputs(between[-1])
        return len(linear) == len(joined) and all(
            self.graph.view.data_inputs(i) == [self.all[index].tensors[-1]]
            for i in linear
        )

    # -- shapes --------------------------------------------------------------

    def channels(self, index: int) -> int:
        """Number of channels; 0 where the dominator can give no code."""
        name = self.all[index].layer
        return self.graph.layer(name).n_channels if name else 0

    def resolution(self, index: int) -> tuple[int, ...] | None:
        """Rows and columns of a map; None for a map that is merely padded."""
        name = self.all[index].layer
        if name is None or self.graph.op(self.all[index].nodes[-1]) == "Pad":
            return None
        layer = self.graph.layer(name)
        if layer.kind != "map":
            return None
        sizes = [d for a, d in enumerate(layer.shape, 1) if a != layer.channel_axis]
        return tuple(sizes)
