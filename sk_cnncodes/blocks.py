"""Blocks: the layers of a backbone that have numbers.

-1 is the penultimate layer; before it come the outputs of the blocks that a person
would draw:

- cut tensors (dominators) with several readers, and outputs of merges;
- in plain chains, the last tensor at a resolution, after its pooling;
- vectors that a fully connected layer reads, or the maps that they are pooled from;
- where no tensor is cut for long, the cells of `sk_cnncodes.cells`.

An activation or a normalisation behind a block belongs to the block.
"""

from __future__ import annotations

import itertools
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property

from sk_cnncodes.cells import cell_outputs
from sk_cnncodes.exceptions import BackboneError
from sk_cnncodes.layers import Layer, LayerGraph
from sk_cnncodes.operators import (
    ATTENTION,
    GLOBAL_POOLS,
    MERGES,
    MOVES,
    NORMALISATIONS,
    POINTWISE,
    POOLS,
    WEIGHTED,
)
from sk_cnncodes.penultimate import ClassifierWalk


@dataclass
class _Group:
    """Cut tensors that hold the same values, moved about: one step of the network."""

    tensors: list[str]
    nodes: list[int]  # the nodes between the group before and this one
    layer: str | None  # the tensor that stands for it; None: no code can be cut here


class BlockFinder:
    """Finds the numbered layers of one model.

    Parameters
    ----------
    graph : LayerGraph
    penultimate : str or None
        Name of the penultimate tensor where it is known; otherwise it is found.
    """

    def __init__(self, graph: LayerGraph, penultimate: str | None = None) -> None:
        self.graph = graph
        self._given_penultimate = penultimate
        walk = ClassifierWalk(graph)
        self._output = walk.output
        self._classifier_input = penultimate or walk.tensor

    @cached_property
    def groups(self) -> list[_Group]:
        """The cut tensors up to the penultimate, those of same values as one."""
        view, start = self.graph.view, -1
        groups: list[_Group] = []
        path = view.path(self._output)
        end = view.producer.get(self._classifier_input, -1)
        for name in view.cut_tensors(self._output):
            here = view.producer[name]
            if here > end:
                break
            between = path[bisect(path, start) : bisect(path, here)]
            start = here
            if groups and len(between) == 1 and self._moves(here):
                groups[-1].tensors.append(name)
            else:
                groups.append(_Group([name], between, None))
        if not groups:
            raise BackboneError(
                f"it has no layer: nothing lies between its image input "
                f"{view.input_name!r} and its output {self._output!r}."
            )
        for group in groups:
            group.layer = self._representative(group.tensors)
        return groups

    def _representative(self, tensors: list[str]) -> str | None:
        """The tensor of a group at which to cut; None where no code can be made."""
        shapes = {name: self.graph.shape(name) for name in tensors}
        fitting = [name for name in tensors if self.graph.can_be_layer(name)]
        if not fitting:
            return None
        first = fitting[0]
        if shapes[first][2:] == (1,):
            # Channels with one place, (batch, channels, 1), look like tokens.
            return next((n for n in fitting if len(shapes[n]) == 2), first)
        alike = [name for name in fitting if shapes[name] == shapes[first]]
        between = tensors[tensors.index(first) : tensors.index(alike[-1])]
        shuffled = any(len(shapes[name]) > 4 for name in between)
        return alike[-1] if shuffled else first  # the block ends behind the shuffle

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

    @cached_property
    def penultimate(self) -> str:
        """The tensor of layer -1.

        Where the network pools a map by its average, or picks the class token of
        its tokens, the map or the tokens: `pooling="auto"` then does the same, and
        other poolings can be chosen.
        """
        name = self._classifier_input
        if self._given_penultimate is not None:
            return name
        last = self.groups[-1]
        if last.tensors[-1] != name or last.layer is None:
            return name  # inside a block; no cut tensor stands for it
        shape = self.graph.shape(last.layer)
        if len(shape) == 4 and len(self.graph.shape(name)) == 2 and not _flat(shape):
            # The classifier sees every place of the map: so does the code.
            flat = [n for n in last.tensors if len(self.graph.shape(n)) == 2]
            return flat[0]
        if len(self.groups) > 1 and self._pools_all(last.nodes):
            before = self.groups[-2]
            if before.layer is not None and self._auto_pools_alike(before, last):
                return before.layer
        return last.layer

    def _pools_all(self, nodes: list[int]) -> bool:
        return len(nodes) == 1 and self.graph.op(nodes[0]) in GLOBAL_POOLS | {
            "Gather",
            "Slice",
        }

    def _auto_pools_alike(self, before: _Group, last: _Group) -> bool:
        """Whether `pooling="auto"` of `before` gives the values of `last`."""
        assert before.layer is not None and last.layer is not None
        layer, pooled = self.graph.layer(before.layer), self.graph.shape(last.layer)
        op, node = self.graph.op(last.nodes[0]), self.graph.view.nodes[last.nodes[0]]
        if sum(dim > 1 for dim in pooled[1:]) > 1:
            return False
        if layer.kind == "map":
            return op in GLOBAL_POOLS and max(pooled[1:]) == layer.n_channels
        if layer.kind == "tokens" and not layer.has_class_token:
            return op in GLOBAL_POOLS and max(pooled[1:]) == layer.n_channels
        if op not in ("Gather", "Slice"):
            return False
        if op == "Gather":
            index = self.graph.view.constant_value(node.input[1])
            axis = [a.i for a in node.attribute if a.name == "axis"] or [0]
            return index == [0] and axis == [1]
        starts = (
            self.graph.view.constant_value(node.input[1])
            if len(node.input) > 1
            else None
        )
        return starts is not None and [*starts][-1] == 0

    @cached_property
    def boundaries(self) -> list[str]:
        """Tensors of the numbered layers, in order from the image."""
        groups = self._groups_before_penultimate
        chosen = {i for i in range(len(groups)) if self._is_block_output(i)}
        chosen = self._without_squeezes(chosen)
        chosen |= self._last_at_resolution(chosen)
        chosen |= self._before_fully_connected()
        chosen = {self._behind_pointwise(i) for i in chosen}
        chosen = self._without_transitions(chosen)
        chosen = self._without_half_blocks(chosen)
        end = len(groups) - 1
        # Before the first weights lies the image, moved about or scaled.
        chosen = {i for i in chosen if self._is_weighted(self._between(-1, i))}
        found = [groups[i].layer for i in chosen if not self._joins(i, end)]
        names = {name for name in found if name is not None}
        for group in groups:
            names.update(cell_outputs(self.graph, group.nodes[:-1]))
        names.discard(self.penultimate)
        producer = self.graph.view.producer
        return [*sorted(names, key=lambda name: producer[name]), self.penultimate]

    def _is_weighted(self, nodes: list[int]) -> bool:
        return any(self.graph.op(i) in WEIGHTED for i in nodes)

    @cached_property
    def _groups_before_penultimate(self) -> list[_Group]:
        """Groups up to the one of the penultimate layer."""
        for count, group in enumerate(self.groups, 1):
            if self.penultimate in group.tensors:
                return self.groups[:count]
        return self.groups

    @cached_property
    def _on_path(self) -> frozenset[int]:
        """Nodes through which the image reaches the output."""
        return frozenset(self.graph.view.path(self._output))

    def _readers(self, index: int) -> int:
        """How many ways lead on from a group, splits counted by their outputs."""
        last = self.groups[index].tensors[-1]
        readers = self.graph.view.readers.get(last, [])
        nodes = [i for i in readers if i in self._on_path]
        return sum(
            len(self.graph.view.nodes[i].output) if self.graph.op(i) == "Split" else 1
            for i in nodes
        )

    def _between(self, start: int, end: int) -> list[int]:
        """Nodes behind group `start`, up to and with group `end`."""
        return [i for group in self.groups[start + 1 : end + 1] for i in group.nodes]

    def _pointwise(self, nodes: list[int]) -> bool:
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

    def _is_merge(self, index: int) -> bool:
        """Whether a group is made of two tensors that differ by learned weights."""
        nodes = self.groups[index].nodes
        maker = nodes[-1]
        return (
            self.graph.op(maker) in MERGES
            and len(self.graph.view.data_inputs(maker)) >= 2
            and self._is_weighted(nodes)
            and not self._is_gate(maker)
        )

    def _is_gate(self, index: int) -> bool:
        """Whether a node scales channels by factors made of them (squeeze-excite)."""
        node = self.graph.view.nodes[index]
        if node.op_type != "Mul":
            return False
        made = self.graph.shape(node.output[0])
        return any(
            len(shape) == len(made) == 4 and shape != made
            for shape in map(self.graph.shape, self.graph.view.data_inputs(index))
        )

    def _opens(self, index: int) -> bool:
        """Whether several branches leave a group, beyond those of an activation."""
        if index + 1 >= len(self.groups):
            return False
        nodes = self.groups[index + 1].nodes
        alone = self._pointwise(nodes) or self._is_gate(nodes[-1])
        return self._readers(index) >= 2 and not alone

    def _is_block_output(self, index: int) -> bool:
        if self.groups[index].layer is None or self._adds_channels(index):
            return False
        return self._is_merge(index) or self._opens(index)

    def _adds_channels(self, index: int) -> bool:
        """Whether a dense block's step made a group: the one before, and more."""
        if index == 0 or self.graph.op(self.groups[index].nodes[-1]) != "Concat":
            return False
        joined = self.graph.view.data_inputs(self.groups[index].nodes[-1])
        return self.groups[index - 1].tensors[-1] in joined

    def _channels(self, index: int) -> int:
        name = self.groups[index].layer
        return self.graph.layer(name).n_channels if name else 0

    def _without_squeezes(self, chosen: set[int]) -> set[int]:
        """Drop the narrow inside of a block whose output is the merge behind it."""
        kept = set()
        for index in chosen:
            later = [i for i in chosen if i > index]
            follower = min(later, default=None)
            squeezed = (
                follower is not None
                and not self._is_merge(index)
                and self.graph.op(self.groups[index].nodes[-1]) not in POOLS
                and self._is_merge(follower)
                and not self._opens(follower)
                and self._channels(index) < self._channels(follower)
                and not cell_outputs(self.graph, self._between(index, follower)[:-1])
            )
            if not squeezed:
                kept.add(index)
        return kept

    def _resolution(self, index: int) -> tuple[int, ...] | None:
        """Rows and columns of a map; None for a map that is merely padded."""
        name = self.groups[index].layer
        if name is None or self.graph.op(self.groups[index].nodes[-1]) == "Pad":
            return None
        layer = self.graph.layer(name)
        if layer.kind != "map":
            return None
        places = [d for a, d in enumerate(layer.shape, 1) if a != layer.channel_axis]
        return tuple(places)

    def _last_at_resolution(self, chosen: set[int]) -> set[int]:
        """For resolutions at which no block ends: the last step, after its pool."""
        groups = self._groups_before_penultimate
        resolutions = [self._resolution(i) for i in range(len(groups))]
        have = {resolutions[i] for i in chosen}
        found = set()
        for resolution in dict.fromkeys(resolutions):
            if resolution is None or resolution in have or max(resolution) == 1:
                continue
            index = max(i for i, r in enumerate(resolutions) if r == resolution)
            before = max((i for i in chosen if i < index), default=-1)
            if not self._is_weighted(self._between(before, index)):
                continue  # a block's output, rearranged
            index = self._before_expansion(self._with_pool(index))
            places = self._resolution(index)
            if places is not None and max(places) > 1:
                found.add(index)
        return found

    def _with_pool(self, index: int) -> int:
        """The pooling that follows a group at once or behind a padding; or itself."""
        groups = self._groups_before_penultimate
        for follower, group in enumerate(groups[index + 1 :], index + 1):
            ops = [self.graph.op(i) for i in group.nodes]
            if len(ops) == 1 and ops[0] in POOLS:
                return follower
            if ops != ["Pad"]:
                break
        return index

    def _before_expansion(self, index: int) -> int:
        """The narrow map before an inverted bottleneck, for a group inside of it."""
        groups, wide = self._groups_before_penultimate, self._channels(index)
        later = range(index + 1, len(groups))
        follower = next((i for i in later if self._is_weighted(groups[i].nodes)), None)
        if follower is None or not self._is_depthwise(groups[follower].nodes):
            return index
        others = [i for i in later if self._channels(i) not in (0, wide)]
        narrow = [i for i in range(index) if self._channels(i) not in (0, wide)]
        if not others or not narrow or self._channels(others[0]) >= wide:
            return index
        same = self._resolution(narrow[-1]) == self._resolution(index)
        learned = self._is_weighted(self._between(-1, narrow[-1]))
        return narrow[-1] if same and learned else index

    def _is_depthwise(self, nodes: list[int]) -> bool:
        """Whether a convolution among nodes sees each channel by itself."""
        return any(
            attribute.name == "group" and attribute.i > 1
            for i in nodes
            for attribute in self.graph.view.nodes[i].attribute
        )

    def _before_fully_connected(self) -> set[int]:
        """Groups whose vectors, or whose averages, a fully connected layer reads."""
        found = set()
        for index, group in enumerate(self._groups_before_penultimate):
            readers = self.graph.view.readers.get(group.tensors[-1], [])
            if group.layer is None or not self._is_weighted(readers):
                continue
            shape = self.graph.shape(group.layer)
            if self._pools_all(group.nodes) and _flat(shape) and index > 0:
                index -= 1  # the map before it stands for it
            elif len(shape) != 2:
                continue
            if self.groups[index].layer is not None:
                found.add(index)
        return found

    def _behind_pointwise(self, index: int) -> int:
        """The group behind the activations that follow.

        Normalisations belong to what comes next, where they do not lead to the
        penultimate layer.
        """
        groups = self._groups_before_penultimate
        last = len(groups) - 1
        if self._pointwise(self._between(index, last)):
            return last
        while index < last:
            nodes = groups[index + 1].nodes
            normalised = any(self.graph.op(i) in NORMALISATIONS for i in nodes)
            if normalised or not self._pointwise(nodes) or not groups[index + 1].layer:
                break
            index += 1
        return index

    def _without_transitions(self, chosen: set[int]) -> set[int]:
        """Drop boundaries with nothing learned, or a mere pooling, before the next."""
        order, kept = sorted(chosen), set(chosen)
        for index, follower in itertools.pairwise(order):
            nodes = self._between(index, follower)
            weighted = sum(self.graph.op(i) in WEIGHTED for i in nodes)
            pooled = any(self.graph.op(i) in POOLS for i in nodes)
            merged = any(len(self.graph.view.data_inputs(i)) > 1 for i in nodes)
            transition = pooled and weighted <= 1 and self._opens(follower)
            if merged:
                continue
            if weighted == 0 and self._is_merge(index):
                kept.discard(follower)  # the block is what has a name
            elif weighted == 0 or transition:
                kept.discard(index)
        return kept

    def _without_half_blocks(self, chosen: set[int]) -> set[int]:
        """Drop the sum between the attention and the MLP of a transformer block."""
        order, kept = sorted(chosen), set(chosen)
        ends = [*order, len(self._groups_before_penultimate) - 1]
        for place, index in enumerate(order):
            before = self.groups[index].nodes
            start = ends[place - 1] if place else -1
            attention = any(
                self.graph.op(i) in ATTENTION for i in self._between(start, index)
            )
            behind = self._between(index, ends[place + 1])
            if (
                before
                and attention
                and behind
                and not any(self.graph.op(i) in ATTENTION for i in behind)
                and self._is_weighted(behind)
                and self._is_merge(index)
            ):
                kept.discard(index)
        return kept

    def _joins(self, index: int, end: int) -> bool:
        """Whether only poolings and normalisations lie before the penultimate."""
        nodes = self._between(index, end)
        free = POINTWISE | GLOBAL_POOLS | {"Gather", "Slice"}
        return index != end and all(self.graph.op(i) in free for i in nodes)

    def layers(self) -> list[Layer]:
        """The numbered layers, in order from the image; the last is -1."""
        names = self.boundaries
        others = self.graph.view.other_inputs(self.penultimate)
        if others:
            raise BackboneError(
                f"its layers need the inputs {others} besides the image input "
                f"{self.graph.view.input_name!r}. Expected a network of images alone; "
                "the others can be made initializers."
            )
        labels = self.graph.labels(names)
        return [
            self.graph.layer(name, label, place - len(names))
            for place, (name, label) in enumerate(zip(names, labels, strict=True))
        ]


def _flat(shape: tuple[int, ...]) -> bool:
    """Whether a shape with its batch has one dimension besides it at most."""
    return sum(dim > 1 for dim in shape[1:]) <= 1
