"""Steps: the cut tensors of a network, one after the other, and what lies between."""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property

from sk_cnncodes.exceptions import BackboneError
from sk_cnncodes.layers import LayerGraph
from sk_cnncodes.operators import (
    ATTENTION,
    GLOBAL_POOLS,
    MERGES,
    MOVES,
    POINTWISE,
    POOLS,
    WEIGHTED,
)


@dataclass
class Step:
    """Cut tensors that hold the same values, moved about."""

    tensors: list[str]
    nodes: list[int]  # the nodes between the step before and this one
    layer: str | None  # the tensor that stands for it; None: no code can be cut here


class Steps:
    """The steps from the image to a tensor, and questions about them.

    Steps are named by their index; what lies between two of them, by its nodes.

    Parameters
    ----------
    graph : LayerGraph
    output : str
        The output of the file.
    end : str
        The tensor at or before which the last step lies.
    """

    def __init__(self, graph: LayerGraph, output: str, end: str) -> None:
        self.graph = graph
        self.output = output
        self.end = end

    @cached_property
    def all(self) -> list[Step]:
        """The cut tensors up to the penultimate, those of same values as one."""
        view, start = self.graph.view, -1
        steps: list[Step] = []
        path = view.path(self.output)
        end = view.producer.get(self.end, -1)
        for name in view.cut_tensors(self.output):
            here = view.producer[name]
            if here > end:
                break
            between = path[bisect(path, start) : bisect(path, here)]
            start = here
            if steps and len(between) == 1 and self._moves(here):
                steps[-1].tensors.append(name)
            else:
                steps.append(Step([name], between, None))
        if not steps:
            raise BackboneError(
                f"it has no layer: nothing lies between its image input "
                f"{view.input_name!r} and its output {self.output!r}."
            )
        for step in steps:
            step.layer = self._representative(step.tensors)
        return steps

    def _representative(self, tensors: list[str]) -> str | None:
        """The tensor of a step at which to cut; None where no code can be made."""
        shapes = {name: self.graph.shape(name) for name in tensors}
        fitting = [name for name in tensors if self.graph.can_be_layer(name)]
        if not fitting:
            return None
        dequantised = [n for n in fitting if self._made_by(n) == "DequantizeLinear"]
        if dequantised:  # what goes into QuantizeLinear may lack its activation
            fitting = fitting[fitting.index(dequantised[0]) :]
        first = fitting[0]
        if shapes[first][2:] == (1,):
            # Channels with one place, (batch, channels, 1), look like tokens.
            return next((n for n in fitting if len(shapes[n]) == 2), first)
        alike = [name for name in fitting if shapes[name] == shapes[first]]
        between = tensors[tensors.index(first) : tensors.index(alike[-1])]
        shuffled = any(len(shapes[name]) > 4 for name in between)
        return alike[-1] if shuffled else first  # the block ends behind the shuffle

    def _made_by(self, name: str) -> str:
        return self.graph.op(self.graph.view.producer[name])

    def _moves(self, index: int) -> bool:
        """Whether a node keeps all values, as a pooling over single places does too."""
        if self.graph.op(index) in POOLS:
            (source,) = self.graph.view.data_inputs(index)
            node = self.graph.view.nodes[index]
            kernel = next(
                list(a.ints) for a in node.attribute if a.name == "kernel_shape"
            )
            same = self.graph.shape(source) == self.graph.shape(node.output[0])
            return same and set(kernel) == {1}
        return self.graph.op(index) in MOVES

    def pools_all(self, nodes: list[int]) -> bool:
        return len(nodes) == 1 and self.graph.op(nodes[0]) in GLOBAL_POOLS | {
            "Gather",
            "Slice",
        }

    def is_weighted(self, nodes: list[int]) -> bool:
        return any(self.graph.op(i) in WEIGHTED for i in nodes)

    @cached_property
    def _on_path(self) -> frozenset[int]:
        """Nodes through which the image reaches the output."""
        return frozenset(self.graph.view.path(self.output))

    def readers(self, index: int) -> int:
        """How many ways lead on from a step, splits counted by their outputs."""
        last = self.all[index].tensors[-1]
        readers = self.graph.view.readers.get(last, [])
        nodes = [i for i in readers if i in self._on_path]
        return sum(
            len(self.graph.view.nodes[i].output) if self.graph.op(i) == "Split" else 1
            for i in nodes
        )

    def between(self, start: int, end: int) -> list[int]:
        """Nodes behind step `start`, up to and with step `end`."""
        return [i for step in self.all[start + 1 : end + 1] for i in step.nodes]

    def is_pointwise(self, nodes: list[int]) -> bool:
        return all(self.graph.op(i) in POINTWISE and not self._mixes(i) for i in nodes)

    def _mixes(self, index: int) -> bool:
        """Whether a ReduceMean pools over places rather than over channels."""
        if self.graph.op(index) != "ReduceMean":
            return False
        node = self.graph.view.nodes[index]
        before, after = (
            self.graph.shape(node.input[0]),
            self.graph.shape(node.output[0]),
        )
        return len(before) != len(after) or before[:-1] != after[:-1]

    def joins(self, index: int) -> bool:
        """Whether a step is made of several tensors."""
        maker = self.all[index].nodes[-1]
        several = len(self.graph.view.data_inputs(maker)) >= 2
        return several and self.graph.op(maker) in MERGES

    def is_merge(self, index: int) -> bool:
        """Whether a step is made of two tensors that differ by learned weights."""
        nodes = self.all[index].nodes
        return (
            self.joins(index)
            and self.is_weighted(nodes)
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
            and all(self.graph.op(i) in WEIGHTED for i in makers)
            and bool(others)
            and set(others) <= {"Pad", "Slice", "Split"}
        )

    def gates_channels(self, index: int) -> bool:
        """Whether a step is the one before, its channels scaled (squeeze-excite)."""
        maker = self.all[index].nodes[-1]
        if index == 0 or not self._is_gate(maker):
            return False
        before = self.all[index - 1].tensors[-1]
        factors = [n for n in self.graph.view.data_inputs(maker) if n != before]
        return len(factors) == 1 and self.channels(index) == math.prod(
            self.graph.shape(factors[0])[1:]
        )

    def _is_gate(self, index: int) -> bool:
        """Whether a node scales channels, or places, by factors made of them."""
        node = self.graph.view.nodes[index]
        if self.graph.op(index) != "Mul":
            return False
        made = self.graph.shape(node.output[0])
        return any(
            len(shape) == len(made) and shape != made
            for shape in map(self.graph.shape, self.graph.view.data_inputs(index))
        )

    def opens(self, index: int) -> bool:
        """Whether several branches leave a step, beyond those of an activation."""
        if index + 1 >= len(self.all):
            return False
        nodes = self.all[index + 1].nodes
        alone = (
            self.is_pointwise(nodes)
            or self._is_gate(nodes[-1])
            or self._is_grouped(nodes)
        )
        return self.readers(index) >= 2 and not alone

    def projects_for_attention(self, index: int) -> bool:
        """Whether a step is the keys and values of an attention that nothing passes."""
        behind = self.all[index + 1].nodes
        attends = any(self.graph.op(i) in ATTENTION for i in behind)
        if not attends or self.is_merge(index + 1):
            return False
        while index > 0 and not self.is_weighted(self.all[index].nodes):
            index -= 1  # a bias
        made = {self.graph.op(i) for i in self.all[index].nodes} & WEIGHTED
        return bool(made) and made <= {"Gemm", "MatMul"} and not self.is_merge(index)

    def adds_channels(self, index: int) -> bool:
        """Whether a dense block's step made a step: the one before, and more."""
        if index == 0 or self.graph.op(self.all[index].nodes[-1]) != "Concat":
            return False
        joined = self.graph.view.data_inputs(self.all[index].nodes[-1])
        return self.all[index - 1].tensors[-1] in joined

    def channels(self, index: int) -> int:
        name = self.all[index].layer
        return self.graph.layer(name).n_channels if name else 0

    def expands(self, index: int, follower: int) -> bool:
        """Whether a merge joins single learned layers that all read one step."""
        between = self.between(index, follower)
        weighted = [i for i in between if self.graph.op(i) in WEIGHTED]
        joined = self.graph.view.data_inputs(between[-1])
        return len(weighted) == len(joined) and all(
            self.graph.view.data_inputs(i) == [self.all[index].tensors[-1]]
            for i in weighted
        )

    def resolution(self, index: int) -> tuple[int, ...] | None:
        """Rows and columns of a map; None for a map that is merely padded."""
        name = self.all[index].layer
        if name is None or self.graph.op(self.all[index].nodes[-1]) == "Pad":
            return None
        layer = self.graph.layer(name)
        if layer.kind != "map":
            return None
        places = [d for a, d in enumerate(layer.shape, 1) if a != layer.channel_axis]
        return tuple(places)

    def is_depthwise(self, nodes: list[int]) -> bool:
        """Whether a convolution among nodes sees each channel by itself."""
        return any(
            attribute.name == "group" and attribute.i > 1
            for i in nodes
            for attribute in self.graph.view.nodes[i].attribute
        )
