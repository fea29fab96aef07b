"""DominatorChain: the tensors on every path from the image to the output, in order.

Dominators are defined as in compilers. A network can be cut at each of them, because
later nodes need no other earlier activation.
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
from sk_cnncodes.layers.block_rules import (
    is_depthwise_convolution,
    is_pointwise_convolution,
    shares_input,
)
from sk_cnncodes.layers.layer import LayerGraph


@dataclass
class Dominator:
    """Dominating tensors that hold the same values, possibly rearranged.

    Attributes
    ----------
    tensors : list of str
        Names, in graph order.
    nodes : list of int
        The nodes after the previous dominator, up to the producer of the first tensor.
    layer : str or None
        The tensor at which to cut; None if codes cannot be pooled from any of them.
    """

    tensors: list[str]
    nodes: list[int]
    layer: str | None


class DominatorChain:
    """The dominators between the image and a tensor, and predicates on them.

    Methods take dominators as indices into the chain, and the part of the graph between
    two of them as a list of nodes.

    Parameters
    ----------
    graph : LayerGraph
    output : str
        The output of the file.
    end : str
        The chain ends at this tensor or at the last dominator before it.
    """

    def __init__(self, graph: LayerGraph, output: str, end: str) -> None:
        self.graph = graph
        self.output = output
        self.end = end

    @cached_property
    def all(self) -> list[Dominator]:
        """The dominators up to `end`; tensors with the same values are merged."""
        view, start = self.graph.view, -1
        chain: list[Dominator] = []
        path = view.path(self.output)
        end = view.producer.get(self.end, -1)
        for name in view.dominators(self.output):
            position = view.producer[name]
            if position > end:
                break
            between = path[bisect(path, start) : bisect(path, position)]
            start = position
            if chain and len(between) == 1 and self._rearranges(position):
                chain[-1].tensors.append(name)
            else:
                chain.append(Dominator([name], between, None))
        if not chain:
            raise BackboneError(
                f"it has no layers: no nodes between its image input "
                f"{view.input_name!r} and its output {self.output!r}."
            )
        for dominator in chain:
            dominator.layer = self._representative(dominator.tensors)
        return chain

    def _representative(self, tensors: list[str]) -> str | None:
        """The tensor of a dominator at which to cut; None if none can be a layer."""
        shapes = {name: self.graph.shape(name) for name in tensors}
        candidates = [name for name in tensors if self.graph.can_be_layer(name)]
        if not candidates:
            return None
        dequantised = [
            n for n in candidates if self._producer_op(n) == "DequantizeLinear"
        ]
        if dequantised:  # the activation may be fused into QuantizeLinear
            candidates = candidates[candidates.index(dequantised[0]) :]
        first = candidates[0]
        if shapes[first][2:] == (1,):
            # Shape (batch, channels, 1) is a pooled vector, not tokens.
            return next((n for n in candidates if len(shapes[n]) == 2), first)
        same_shape = [name for name in candidates if shapes[name] == shapes[first]]
        between = tensors[tensors.index(first) : tensors.index(same_shape[-1])]
        shuffled = any(len(shapes[name]) > 4 for name in between)
        return same_shape[-1] if shuffled else first  # include a channel shuffle

    def _producer_op(self, name: str) -> str:
        return self.graph.op(self.graph.view.producer[name])

    def _rearranges(self, index: int) -> bool:
        """Whether a node only rearranges values; a 1x1 pooling counts."""
        if self.graph.op(index) in POOLS:
            (source,) = self.graph.view.data_inputs(index)
            node = self.graph.view.nodes[index]
            kernel = next(
                list(a.ints) for a in node.attribute if a.name == "kernel_shape"
            )
            same = self.graph.shape(source) == self.graph.shape(node.output[0])
            return same and set(kernel) == {1}
        return self.graph.op(index) in LAYOUT_OPS

    # -- nodes between dominators --------------------------------------------

    def between(self, start: int, end: int) -> list[int]:
        """Nodes after dominator `start` up to and including dominator `end`."""
        return [i for each in self.all[start + 1 : end + 1] for i in each.nodes]

    def is_linear(self, nodes: list[int]) -> bool:
        """Whether nodes include a convolution or a matrix product."""
        return any(self.graph.op(i) in LINEAR_OPS for i in nodes)

    def pools_all(self, nodes: list[int]) -> bool:
        """Whether nodes are a single global pooling or token selection."""
        return len(nodes) == 1 and self.graph.op(nodes[0]) in GLOBAL_POOLS | {
            "Gather",
            "Slice",
        }

    def is_pointwise(self, nodes: list[int]) -> bool:
        """Whether all nodes are pointwise, such as activations."""
        return all(self.graph.op(i) in POINTWISE and not self._pools(i) for i in nodes)

    def _pools(self, index: int) -> bool:
        """Whether a node is a ReduceMean over positions rather than over channels."""
        if self.graph.op(index) != "ReduceMean":
            return False
        node = self.graph.view.nodes[index]
        before, after = (
            self.graph.shape(node.input[0]),
            self.graph.shape(node.output[0]),
        )
        return len(before) != len(after) or before[:-1] != after[:-1]

    def is_depthwise(self, nodes: list[int]) -> bool:
        """Whether nodes include a grouped convolution."""
        return any(map(self.graph.is_grouped, nodes))

    # -- how a dominator is computed -----------------------------------------

    def is_join(self, index: int) -> bool:
        """Whether a dominator is a sum, concatenation or other merge of tensors."""
        producer = self.all[index].nodes[-1]
        n_inputs = len(self.graph.view.data_inputs(producer))
        return n_inputs >= 2 and self.graph.op(producer) in MERGES

    def is_merge(self, index: int) -> bool:
        """Whether a dominator merges branches, at least one with learned weights."""
        nodes = self.all[index].nodes
        return (
            self.is_join(index)
            and self.is_linear(nodes)
            and not self._is_gate(nodes[-1])
            and not self._is_grouped(nodes)
        )

    def _is_grouped(self, nodes: list[int]) -> bool:
        """Whether nodes are a grouped convolution written as separate ones."""
        merged = self.graph.view.data_inputs(nodes[-1])
        # The image itself has no producer.
        producers = [self.graph.view.producer.get(name) for name in merged]
        others = [self.graph.op(i) for i in nodes[:-1] if i not in producers]
        return (
            self.graph.op(nodes[-1]) == "Concat"
            and all(i is not None and self.graph.op(i) in LINEAR_OPS for i in producers)
            and bool(others)
            and set(others) <= {"Pad", "Slice", "Split"}
        )

    def is_squeeze_excite(self, index: int) -> bool:
        """Whether a dominator is the previous one with gated channels."""
        producer = self.all[index].nodes[-1]
        if index == 0 or not self._is_gate(producer):
            return False
        before = self.all[index - 1].tensors[-1]
        factors = [n for n in self.graph.view.data_inputs(producer) if n != before]
        return len(factors) == 1 and self.channels(index) == math.prod(
            self.graph.shape(factors[0])[1:]
        )

    def _is_gate(self, index: int) -> bool:
        """Whether a node multiplies by gates for channels or positions."""
        node = self.graph.view.nodes[index]
        if self.graph.op(index) != "Mul":
            return False
        made = self.graph.shape(node.output[0])
        return any(
            len(shape) == len(made) and shape != made
            for shape in map(self.graph.shape, self.graph.view.data_inputs(index))
        )

    def is_dense_concat(self, index: int) -> bool:
        """Whether a dominator is the previous one concatenated with new channels."""
        if index == 0 or self.graph.op(self.all[index].nodes[-1]) != "Concat":
            return False
        merged = self.graph.view.data_inputs(self.all[index].nodes[-1])
        return self.all[index - 1].tensors[-1] in merged

    def joins_branches(self, index: int) -> bool:
        """Whether a dominator concatenates the branches of one block.

        The steps of a dense block do not: each concatenates what was before it.
        """
        nodes = self.all[index].nodes
        ops = [self.graph.op(i) for i in nodes]
        if ops[-1] != "Concat" or not self.is_join(index) or self.branches_after(index):
            return False
        if not (self.is_linear(nodes) or POOLS.intersection(ops)):
            return False
        if not self.is_dense_concat(index):
            return not self._is_grouped(nodes)
        step_before = self.graph.op(self.all[index - 1].nodes[-1]) == "Concat"
        return not step_before and not shares_input(self.graph, nodes[-1])

    def is_pointwise_convolution(self, index: int) -> bool:
        """Whether a dominator is one 1x1 convolution without groups and stride."""
        nodes = self.all[index].nodes
        return len(nodes) == 1 and is_pointwise_convolution(self.graph, nodes[0])

    def only_mixes_tokens(self, index: int) -> bool:
        """Whether a dominator is one depthwise convolution."""
        nodes = self.all[index].nodes
        return len(nodes) == 1 and is_depthwise_convolution(self.graph, nodes[0])

    # -- readers of a dominator ----------------------------------------------

    @cached_property
    def _on_path(self) -> frozenset[int]:
        """Nodes on a path from the image to the output."""
        return frozenset(self.graph.view.path(self.output))

    def _n_readers(self, index: int) -> int:
        """Number of nodes that read a dominator; a Split counts once per output."""
        last = self.all[index].tensors[-1]
        readers = self.graph.view.readers.get(last, [])
        nodes = [i for i in readers if i in self._on_path]
        return sum(
            len(self.graph.view.nodes[i].output) if self.graph.op(i) == "Split" else 1
            for i in nodes
        )

    def branches_after(self, index: int) -> bool:
        """Whether a dominator starts branches, other than within an activation."""
        if index + 1 >= len(self.all):
            return False
        nodes = self.all[index + 1].nodes
        unbranched = (
            self.is_pointwise(nodes)
            or self._is_gate(nodes[-1])
            or self._is_grouped(nodes)
        )
        return self._n_readers(index) >= 2 and not unbranched

    def is_split(self, index: int) -> bool:
        """Whether all readers of a dominator take a part of its channels."""
        readers = self.graph.view.readers.get(self.all[index].tensors[-1], [])
        return {self.graph.op(i) for i in readers} <= {"Slice", "Split"}

    def projects_for_attention(self, index: int) -> bool:
        """Whether a dominator is a key-value projection of skipless attention."""
        after = self.all[index + 1].nodes
        attends = any(self.graph.op(i) in ATTENTION for i in after)
        if not attends or self.is_merge(index + 1):
            return False
        while index > 0 and not self.is_linear(self.all[index].nodes):
            index -= 1  # skip a bias
        made = {self.graph.op(i) for i in self.all[index].nodes} & LINEAR_OPS
        return bool(made) and made <= {"Gemm", "MatMul"} and not self.is_merge(index)

    def expands(self, index: int, follower: int) -> bool:
        """Whether each branch of a merge is one linear layer reading a dominator."""
        between = self.between(index, follower)
        linear = [i for i in between if self.graph.op(i) in LINEAR_OPS]
        merged = self.graph.view.data_inputs(between[-1])
        return len(linear) == len(merged) and all(
            self.graph.view.data_inputs(i) == [self.all[index].tensors[-1]]
            for i in linear
        )

    # -- shapes --------------------------------------------------------------

    def channels(self, index: int) -> int:
        """Number of channels; 0 if the dominator cannot be a layer."""
        name = self.all[index].layer
        return self.graph.layer(name).n_channels if name else 0

    def resolution(self, index: int) -> tuple[int, ...] | None:
        """Spatial size of a map; None for other kinds and for the output of a Pad."""
        name = self.all[index].layer
        if name is None or self.graph.op(self.all[index].nodes[-1]) == "Pad":
            return None
        layer = self.graph.layer(name)
        if layer.kind != "map":
            return None
        sizes = [d for a, d in enumerate(layer.shape, 1) if a != layer.channel_axis]
        return tuple(sizes)
