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
from functools import cached_property

from sk_cnncodes.cells import cell_outputs
from sk_cnncodes.exceptions import BackboneError
from sk_cnncodes.layers import Layer, LayerGraph
from sk_cnncodes.mixing import is_channel_mlp, mixes_places
from sk_cnncodes.operators import (
    ATTENTION,
    CONVOLUTIONS,
    GLOBAL_POOLS,
    NORMALISATIONS,
    POINTWISE,
    POOLS,
    WEIGHTED,
)
from sk_cnncodes.penultimate import ClassifierWalk
from sk_cnncodes.steps import Step, Steps


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
        self._classifier_input = penultimate or walk.tensor
        self.steps = Steps(graph, walk.end, self._classifier_input)

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
        last = self.steps.all[-1]
        if last.tensors[-1] != name or last.layer is None:
            return name  # inside a block; no cut tensor stands for it
        shape = self.graph.shape(last.layer)
        if len(shape) == 4 and len(self.graph.shape(name)) == 2 and not _flat(shape):
            # The classifier sees every place of the map: so does the code.
            flat = [n for n in last.tensors if len(self.graph.shape(n)) == 2]
            return flat[0]
        if len(self.steps.all) > 1 and self.steps.pools_all(last.nodes):
            before = self.steps.all[-2]
            if before.layer is not None and self._auto_pools_alike(before, last):
                return before.layer
        return last.layer

    def _auto_pools_alike(self, before: Step, last: Step) -> bool:
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
        steps = self._steps_before_penultimate
        chosen = {i for i in range(len(steps)) if self._is_block_output(i)}
        chosen = self._without_squeezes(chosen)
        chosen |= self._last_at_resolution(chosen)
        chosen |= self._before_fully_connected()
        chosen = {self._behind_pointwise(i) for i in chosen}
        chosen = self._without_transitions(chosen)
        chosen = self._without_half_blocks(chosen)
        end = len(steps) - 1
        # Before the first weights lies the image, moved about or scaled.
        chosen = {
            i for i in chosen if self.steps.is_weighted(self.steps.between(-1, i))
        }
        found = [steps[i].layer for i in chosen if not self._joins(i, end)]
        names = {name for name in found if name is not None}
        for step in steps:
            names.update(cell_outputs(self.graph, step.nodes[:-1]))
        names.discard(self.penultimate)
        producer = self.graph.view.producer
        return [*sorted(names, key=lambda name: producer[name]), self.penultimate]

    @cached_property
    def _steps_before_penultimate(self) -> list[Step]:
        """Steps up to the one of the penultimate layer."""
        for count, step in enumerate(self.steps.all, 1):
            if self.penultimate in step.tensors:
                return self.steps.all[:count]
        return self.steps.all

    def _is_block_output(self, index: int) -> bool:
        if self.steps.all[index].layer is None or self.steps.adds_channels(index):
            return False
        if self.steps.is_merge(index):
            return True
        opens = self.steps.opens(index)
        return opens and not self.steps.projects_for_attention(index)

    def _without_squeezes(self, chosen: set[int]) -> set[int]:
        """Drop the narrow inside of a block whose output is the merge behind it."""
        kept = set()
        for index in chosen:
            later = [i for i in chosen if i > index]
            follower = min(later, default=None)
            squeezed = (
                follower is not None
                and not self.steps.is_merge(index)
                and self.graph.op(self.steps.all[index].nodes[-1]) not in POOLS
                and self.steps.is_merge(follower)
                and (
                    not self.steps.opens(follower)
                    or self.steps.expands(index, follower)
                )
                and self.steps.channels(index) < self.steps.channels(follower)
                and not cell_outputs(
                    self.graph, self.steps.between(index, follower)[:-1]
                )
            )
            if not squeezed:
                kept.add(index)
        return kept

    def _last_at_resolution(self, chosen: set[int]) -> set[int]:
        """For resolutions at which no block ends: the last step, after its pool."""
        steps = self._steps_before_penultimate
        resolutions = [self.steps.resolution(i) for i in range(len(steps))]
        have = {resolutions[i] for i in chosen}
        found = set()
        for resolution in dict.fromkeys(resolutions):
            if resolution is None or resolution in have or max(resolution) == 1:
                continue
            index = max(i for i, r in enumerate(resolutions) if r == resolution)
            before = max((i for i in chosen if i < index), default=-1)
            nodes = self.steps.between(before, index)
            if not self.steps.is_weighted(nodes):
                continue  # a block's output, rearranged
            if not any(self.graph.op(i) in POOLS | CONVOLUTIONS for i in nodes):
                continue  # heads and tokens of an attention
            index = self._before_expansion(self._with_pool(index))
            places = self.steps.resolution(index)
            if places is not None and max(places) > 1:
                found.add(index)
        return found

    def _with_pool(self, index: int) -> int:
        """The pooling that follows a step at once or behind a padding; or itself."""
        steps = self._steps_before_penultimate
        for follower, step in enumerate(steps[index + 1 :], index + 1):
            ops = [self.graph.op(i) for i in step.nodes]
            if len(ops) == 1 and ops[0] in POOLS:
                return follower
            if ops != ["Pad"]:
                break
        return index

    def _before_expansion(self, index: int) -> int:
        """The narrow map before an inverted bottleneck, for a step inside of it."""
        steps, wide = self._steps_before_penultimate, self.steps.channels(index)
        later = range(index + 1, len(steps))
        follower = next(
            (i for i in later if self.steps.is_weighted(steps[i].nodes)), None
        )
        if follower is None or not self.steps.is_depthwise(steps[follower].nodes):
            return index
        others = [i for i in later if self.steps.channels(i) not in (0, wide)]
        narrow = [i for i in range(index) if self.steps.channels(i) not in (0, wide)]
        if not others or not narrow or self.steps.channels(others[0]) >= wide:
            return index
        same = self.steps.resolution(narrow[-1]) == self.steps.resolution(index)
        learned = self.steps.is_weighted(self.steps.between(-1, narrow[-1]))
        return narrow[-1] if same and learned else index

    def _before_fully_connected(self) -> set[int]:
        """Steps whose vectors, or whose averages, a fully connected layer reads."""
        found = set()
        for index, step in enumerate(self._steps_before_penultimate):
            readers = self.graph.view.readers.get(step.tensors[-1], [])
            if step.layer is None or not self.steps.is_weighted(readers):
                continue
            shape = self.graph.shape(step.layer)
            if self.steps.pools_all(step.nodes) and _flat(shape) and index > 0:
                index -= 1  # the map before it stands for it
            elif len(shape) != 2:
                continue
            if self.steps.all[index].layer is not None:
                found.add(index)
        return found

    def _behind_pointwise(self, index: int) -> int:
        """The step behind the activations, and the gates of channels, that follow.

        Normalisations belong to what comes next, where they do not lead to the
        penultimate layer.
        """
        steps = self._steps_before_penultimate
        last = len(steps) - 1
        if self.steps.is_pointwise(self.steps.between(index, last)):
            return last
        while index < last:
            nodes = steps[index + 1].nodes
            normalised = any(self.graph.op(i) in NORMALISATIONS for i in nodes)
            belongs = self.steps.is_pointwise(nodes) and not normalised
            if not steps[index + 1].layer or not (
                belongs or self.steps.gates_channels(index + 1)
            ):
                break
            index += 1
        return index

    def _without_transitions(self, chosen: set[int]) -> set[int]:
        """Drop boundaries with nothing learned, or a mere pooling, before the next."""
        order, kept = sorted(chosen), set(chosen)
        for index, follower in itertools.pairwise(order):
            nodes = self.steps.between(index, follower)
            weighted = sum(self.graph.op(i) in WEIGHTED for i in nodes)
            pooled = any(self.graph.op(i) in POOLS for i in nodes)
            merged = not self.steps.is_pointwise(nodes) and any(
                len(self.graph.view.data_inputs(i)) > 1 for i in nodes
            )
            transition = pooled and weighted <= 1 and self.steps.opens(follower)
            if merged:
                continue
            if weighted == 0 and self.steps.is_merge(index):
                kept.discard(follower)  # the block is what has a name
            elif weighted == 0 or transition:
                kept.discard(index)
        return kept

    def _without_half_blocks(self, chosen: set[int]) -> set[int]:
        """Drop the sum between the attention and the MLP of a transformer block.

        The same goes for what stands for the attention: a pooling, a convolution, or
        a matrix that mixes tokens.
        """
        order, kept = sorted(chosen), set(chosen)
        ends = [*order, len(self._steps_before_penultimate) - 1]
        for place, index in enumerate(order):
            start = ends[place - 1] if place else -1
            before = self.steps.between(start, index)
            behind = self.steps.between(index, ends[place + 1])
            attention = any(self.graph.op(i) in ATTENTION for i in before)
            learned = self.steps.is_weighted(behind)
            alone = not any(self.graph.op(i) in ATTENTION for i in behind)
            if attention and learned and alone and self.steps.is_merge(index):
                kept.discard(index)
                continue
            last = max((i for i in kept if i < index), default=-1)
            if self._mixes_then_not(last, index, behind):
                kept.discard(index)
        return kept

    def _mixes_then_not(self, start: int, index: int, behind: list[int]) -> bool:
        """Whether a step ends a mixing of places, and a channel MLP follows."""
        if not self.steps.joins(index):
            return False
        channels, before = self.steps.channels(index), self.steps.between(start, index)
        width_before = self.steps.channels(start) if start >= 0 else channels
        tensor = self.steps.all[index].tensors[-1]
        return mixes_places(self.graph, before, width_before) and is_channel_mlp(
            self.graph, tensor, behind, channels
        )

    def _joins(self, index: int, end: int) -> bool:
        """Whether only poolings and normalisations lie before the penultimate."""
        nodes = self.steps.between(index, end)
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
