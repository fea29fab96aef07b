"""Blocks: the layers of a backbone that have numbers, and why these.

-1 is the penultimate layer; before it come the outputs of the blocks that a person
would draw:

- dominators with several readers, and outputs of merges (residual sums and the like);
- in plain chains, the last tensor at a resolution, after its pooling;
- vectors that a fully connected layer reads, or the maps that they are pooled from;
- where there is no dominator for long, the cells of `sk_cnncodes.layers.block_rules`.

An activation or a normalisation after a block belongs to the block. Each rule adds or
drops candidates and says so: `BlockFinder.decisions` has the last word on each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.graphs.operators import (
    ATTENTION,
    CONVOLUTIONS,
    GLOBAL_POOLS,
    LINEAR_OPS,
    NORMALISATIONS,
    POINTWISE,
    POOLS,
)
from sk_cnncodes.layers.block_rules import cell_outputs, is_channel_mlp, mixes_tokens
from sk_cnncodes.layers.dominators import Dominator, DominatorChain
from sk_cnncodes.layers.layer import Layer, LayerGraph
from sk_cnncodes.layers.penultimate import ClassifierWalk


@dataclass(frozen=True)
class LayerDecision:
    """What became of a tensor that could have been a numbered layer.

    Attributes
    ----------
    tensor : str
    shape : tuple of int
        With the batch; () where it is not known.
    is_layer : bool
    rule : str
        The rule that decided.
    """

    tensor: str
    shape: tuple[int, ...]
    is_layer: bool
    rule: str


class Candidates:
    """Dominators by their index: those that are block outputs, and those that are not.

    Both have the rule that decided last.
    """

    def __init__(self) -> None:
        self.kept: dict[int, str] = {}
        self.dropped: dict[int, str] = {}

    def add(self, index: int, rule: str) -> None:
        """Take a dominator as a block output, if it is not one already."""
        if index not in self.kept:
            self.kept[index] = rule
            self.dropped.pop(index, None)

    def drop(self, index: int, rule: str) -> None:
        """Take a dominator as none."""
        self.kept.pop(index, None)
        self.dropped[index] = rule

    def drop_where(self, is_dropped: Callable[[int], bool], rule: str) -> None:
        """Drop all for which a function, called before any is dropped, says so."""
        for index in [i for i in self.in_order if is_dropped(i)]:
            self.drop(index, rule)

    @property
    def in_order(self) -> list[int]:
        """The block outputs, from the image on."""
        return sorted(self.kept)


class BlockFinder:
    """Finds the numbered layers of one model.

    Parameters
    ----------
    graph : LayerGraph
    penultimate : str or None
        Name of the penultimate tensor where it is known; otherwise it is found.
    stated_by : str
        What states the penultimate tensor, for `Layer.rule`.
    """

    def __init__(
        self,
        graph: LayerGraph,
        penultimate: str | None = None,
        stated_by: str = "the caller",
    ) -> None:
        self.graph = graph
        self._stated_penultimate = penultimate
        self._stated_by = stated_by
        self._walk = ClassifierWalk(graph)
        self._classifier_input = penultimate or self._walk.tensor
        self.chain = DominatorChain(graph, self._walk.end, self._classifier_input)

    # -- the penultimate layer -----------------------------------------------

    @cached_property
    def penultimate(self) -> str:
        """The tensor of layer -1.

        Where the network pools a map by its average, or picks the class token of
        its tokens, the map or the tokens: `pooling="auto"` then does the same, and
        other poolings can be chosen.
        """
        return self._penultimate[0]

    @cached_property
    def _penultimate(self) -> tuple[str, str]:
        name, rule = self._classifier_input, self._walk.rule
        if self._stated_penultimate is not None:
            return name, f"{self._stated_by} states that it is the penultimate"
        last = self.chain.all[-1]
        if last.tensors[-1] != name or last.layer is None:
            return name, rule  # inside a block; no dominator stands for it
        shape = self.graph.shape(last.layer)
        if len(shape) == 4 and len(self.graph.shape(name)) == 2 and not _flat(shape):
            # The classifier sees every position of the map: so does the code.
            flat = [n for n in last.tensors if len(self.graph.shape(n)) == 2]
            return flat[0], rule
        if len(self.chain.all) > 1 and self.chain.pools_all(last.nodes):
            before = self.chain.all[-2]
            if before.layer is not None and self._auto_pools_alike(before, last):
                return before.layer, f"{rule}, pooled as pooling='auto' does"
        return last.layer, rule

    def _auto_pools_alike(self, before: Dominator, last: Dominator) -> bool:
        """Whether `pooling="auto"` of `before` gives the values of `last`."""
        assert before.layer is not None and last.layer is not None
        layer, pooled = self.graph.layer(before.layer), self.graph.shape(last.layer)
        op, node = self.graph.op(last.nodes[0]), self.graph.view.nodes[last.nodes[0]]
        if sum(dim > 1 for dim in pooled[1:]) > 1:
            return False
        if layer.kind == "map" or (
            layer.kind == "tokens" and not layer.has_class_token
        ):
            return op in GLOBAL_POOLS and max(pooled[1:]) == layer.n_channels
        if op == "Gather":
            index = self.graph.view.constant_value(node.input[1])
            axis = [a.i for a in node.attribute if a.name == "axis"] or [0]
            return index == [0] and axis == [1]
        if op != "Slice" or len(node.input) < 2:
            return False
        starts = self.graph.view.constant_value(node.input[1])
        return starts is not None and starts[-1] == 0

    # -- the block outputs ---------------------------------------------------

    @cached_property
    def block_outputs(self) -> list[str]:
        """Tensors of the numbered layers, in order from the image."""
        listed = [each.tensor for each in self.decisions if each.is_layer]
        producer = self.graph.view.producer
        names = set(listed) - {self.penultimate}
        return [*sorted(names, key=lambda name: producer[name]), self.penultimate]

    @cached_property
    def decisions(self) -> list[LayerDecision]:
        """What the rules decided about each candidate, in order from the image."""
        found = self._candidates()
        rules: dict[str, tuple[bool, str]] = {}
        for index, rule in (found.dropped | found.kept).items():
            dominator = self._chain_to_penultimate[index]
            name = dominator.layer or dominator.tensors[0]
            is_layer = index in found.kept and dominator.layer is not None
            rules[name] = (is_layer, rule)
        for dominator in self._chain_to_penultimate:
            for name in cell_outputs(self.graph, dominator.nodes[:-1]):
                rules[name] = (True, "the output of a cell, read by the two after it")
        rules[self.penultimate] = (True, self._penultimate[1])
        producer = self.graph.view.producer
        return [
            LayerDecision(name, self.graph.shape(name), *rules[name])
            for name in sorted(rules, key=lambda name: producer.get(name, -1))
        ]

    def _candidates(self) -> Candidates:
        """All rules, one after the other."""
        found = self._merges_and_branches()
        self._drop_squeezes(found)
        self._add_last_at_resolution(found)
        self._add_before_fully_connected(found)
        self._move_after_pointwise(found)
        self._drop_transitions(found)
        self._drop_half_blocks(found)
        found.drop_where(
            lambda i: not self.chain.is_linear(self.chain.between(-1, i)),
            "no weights before it: the image, rearranged or scaled",
        )
        found.drop_where(
            self._only_pools_until_penultimate,
            "only poolings and normalisations between it and the penultimate",
        )
        return found

    @cached_property
    def _chain_to_penultimate(self) -> list[Dominator]:
        """Dominators up to that of the penultimate layer."""
        for count, dominator in enumerate(self.chain.all, 1):
            if self.penultimate in dominator.tensors:
                return self.chain.all[:count]
        return self.chain.all

    def _merges_and_branches(self) -> Candidates:
        """Outputs of merges, and dominators from which several branches leave."""
        found, chain = Candidates(), self.chain
        for index, dominator in enumerate(self._chain_to_penultimate):
            if dominator.layer is None:
                found.drop(index, "no code can be made: not floats of rank 2 to 4")
            elif chain.is_dense_concat(index):
                found.drop(index, "inside of a dense block: channels are added to it")
            elif chain.is_merge(index):
                found.add(index, "a merge of branches: a residual sum or the like")
            elif not chain.branches_after(index):
                found.drop(index, "inside of a block: no branch begins or ends here")
            elif chain.projects_for_attention(index):
                found.drop(index, "keys and values of an attention without a skip")
            else:
                found.add(index, "several branches leave it")
        return found

    def _drop_squeezes(self, found: Candidates) -> None:
        """Drop the narrow inside of a block whose output is the merge after it."""
        order, chain = found.in_order, self.chain

        def is_squeeze(index: int) -> bool:
            follower = next((i for i in order if i > index), None)
            return (
                follower is not None
                and not chain.is_merge(index)
                and self.graph.op(chain.all[index].nodes[-1]) not in POOLS
                and chain.is_merge(follower)
                and (
                    not chain.branches_after(follower) or chain.expands(index, follower)
                )
                and chain.channels(index) < chain.channels(follower)
                and not cell_outputs(self.graph, chain.between(index, follower)[:-1])
            )

        found.drop_where(is_squeeze, "the squeeze inside of the block after it")

    def _add_last_at_resolution(self, found: Candidates) -> None:
        """Add the last dominator of resolutions at which no block ends."""
        chain, order = self.chain, found.in_order
        resolutions = [
            chain.resolution(i) for i in range(len(self._chain_to_penultimate))
        ]
        have = {resolutions[i] for i in order}
        added = set()
        for resolution in dict.fromkeys(resolutions):
            if resolution is None or resolution in have or max(resolution) == 1:
                continue
            index = max(i for i, r in enumerate(resolutions) if r == resolution)
            before = max((i for i in order if i < index), default=-1)
            nodes = chain.between(before, index)
            if not chain.is_linear(nodes):
                continue  # a block's output, rearranged
            if not any(self.graph.op(i) in POOLS | CONVOLUTIONS for i in nodes):
                continue  # heads and tokens of an attention
            index = self._before_inverted_bottleneck(self._with_pool(index))
            size = chain.resolution(index)
            if size is not None and max(size) > 1:
                added.add(index)
        for index in added:
            found.add(index, "the last at its resolution in a plain chain")

    def _with_pool(self, index: int) -> int:
        """The pooling that follows a dominator, after a padding or not; or itself."""
        chain = self._chain_to_penultimate
        for follower, dominator in enumerate(chain[index + 1 :], index + 1):
            ops = [self.graph.op(i) for i in dominator.nodes]
            if len(ops) == 1 and ops[0] in POOLS:
                return follower
            if ops != ["Pad"]:
                break
        return index

    def _before_inverted_bottleneck(self, index: int) -> int:
        """The narrow map before the inverted bottleneck that a dominator is in."""
        chain, wide = self.chain, self.chain.channels(index)
        later = range(index + 1, len(self._chain_to_penultimate))
        follower = next((i for i in later if chain.is_linear(chain.all[i].nodes)), None)
        if follower is None or not chain.is_depthwise(chain.all[follower].nodes):
            return index
        others = [i for i in later if chain.channels(i) not in (0, wide)]
        narrow = [i for i in range(index) if chain.channels(i) not in (0, wide)]
        if not others or not narrow or chain.channels(others[0]) >= wide:
            return index
        same = chain.resolution(narrow[-1]) == chain.resolution(index)
        learned = chain.is_linear(chain.between(-1, narrow[-1]))
        return narrow[-1] if same and learned else index

    def _add_before_fully_connected(self, found: Candidates) -> None:
        """Add the vectors, or averaged maps, that a fully connected layer reads."""
        for index, dominator in enumerate(self._chain_to_penultimate):
            readers = self.graph.view.readers.get(dominator.tensors[-1], [])
            if dominator.layer is None or not self.chain.is_linear(readers):
                continue
            shape = self.graph.shape(dominator.layer)
            if self.chain.pools_all(dominator.nodes) and _flat(shape) and index > 0:
                index -= 1  # the map before it stands for it
            elif len(shape) != 2:
                continue
            if self.chain.all[index].layer is not None:
                found.add(index, "a fully connected layer reads it")

    def _move_after_pointwise(self, found: Candidates) -> None:
        """Move block outputs to after the activations that belong to them."""
        moved = {index: self._after_pointwise(index) for index in found.in_order}
        rules = dict(found.kept)
        for index, after in moved.items():
            if after != index:
                found.drop(index, "its activation follows, which belongs to the block")
        for index, after in moved.items():
            if after != index:
                found.add(after, f"{rules[index]}, after its activation")

    def _after_pointwise(self, index: int) -> int:
        """The dominator after the activations, and squeeze-excite gates, that follow.

        Normalisations belong to what comes next, unless they lead to the penultimate
        layer.
        """
        chain = self._chain_to_penultimate
        last = len(chain) - 1
        if self.chain.is_pointwise(self.chain.between(index, last)):
            return last
        while index < last:
            nodes = chain[index + 1].nodes
            normalised = any(self.graph.op(i) in NORMALISATIONS for i in nodes)
            belongs = self.chain.is_pointwise(nodes) and not normalised
            if not chain[index + 1].layer or not (
                belongs or self.chain.is_squeeze_excite(index + 1)
            ):
                break
            index += 1
        return index

    def _drop_transitions(self, found: Candidates) -> None:
        """Drop what has nothing learned, or a mere pooling, between it and the next."""
        chain = self.chain
        for index, follower in itertools.pairwise(found.in_order):
            nodes = chain.between(index, follower)
            n_linear = sum(self.graph.op(i) in LINEAR_OPS for i in nodes)
            pooled = any(self.graph.op(i) in POOLS for i in nodes)
            merged = not chain.is_pointwise(nodes) and any(
                len(self.graph.view.data_inputs(i)) > 1 for i in nodes
            )
            transition = pooled and n_linear <= 1 and chain.branches_after(follower)
            if merged:
                continue
            if n_linear == 0 and chain.is_merge(index):
                # The block has the name.
                found.drop(
                    follower, "nothing is learned between it and the block before"
                )
            elif n_linear == 0 or transition:
                found.drop(index, "a transition, listed after its pooling")

    def _drop_half_blocks(self, found: Candidates) -> None:
        """Drop the sum between the attention and the MLP of a transformer block.

        The same goes for what stands for the attention: a pooling, a convolution, or
        a matrix that mixes tokens.
        """
        order, chain = found.in_order, self.chain
        ends = [*order, len(self._chain_to_penultimate) - 1]
        for place, index in enumerate(order):
            start = ends[place - 1] if place else -1
            before = chain.between(start, index)
            after = chain.between(index, ends[place + 1])
            attention = any(self.graph.op(i) in ATTENTION for i in before)
            alone = not any(self.graph.op(i) in ATTENTION for i in after)
            last = max((i for i in found.kept if i < index), default=-1)
            if attention and alone and chain.is_linear(after) and chain.is_merge(index):
                found.drop(index, "the sum between an attention and its MLP")
            elif self._mixes_then_not(last, index, after):
                found.drop(index, "the sum between a mixing of tokens and its MLP")

    def _mixes_then_not(self, start: int, index: int, after: list[int]) -> bool:
        """Whether a dominator ends a mixing of tokens, and a channel MLP follows."""
        if not self.chain.is_join(index):
            return False
        channels, before = self.chain.channels(index), self.chain.between(start, index)
        width_before = self.chain.channels(start) if start >= 0 else channels
        tensor = self.chain.all[index].tensors[-1]
        return mixes_tokens(self.graph, before, width_before) and is_channel_mlp(
            self.graph, tensor, after, channels
        )

    def _only_pools_until_penultimate(self, index: int) -> bool:
        """Whether only poolings and normalisations follow, up to the penultimate."""
        end = len(self._chain_to_penultimate) - 1
        nodes = self.chain.between(index, end)
        free = POINTWISE | GLOBAL_POOLS | {"Gather", "Slice"}
        return index != end and all(self.graph.op(i) in free for i in nodes)

    # -- layers --------------------------------------------------------------

    def layers(self) -> list[Layer]:
        """The numbered layers, in order from the image; the last is -1."""
        names = self.block_outputs
        others = self.graph.view.other_inputs(self.penultimate)
        if others:
            raise BackboneError(
                f"its layers need the inputs {others} besides the image input "
                f"{self.graph.view.input_name!r}. Expected a network of images alone; "
                "the others can be made initializers."
            )
        labels = self.graph.labels(names)
        rules = {each.tensor: each.rule for each in self.decisions}
        return [
            self.graph.layer(name, label, place - len(names), rules[name])
            for place, (name, label) in enumerate(zip(names, labels, strict=True))
        ]


def _flat(shape: tuple[int, ...]) -> bool:
    """Whether at most one dimension, beside the batch, is larger than one."""
    return sum(dim > 1 for dim in shape[1:]) <= 1
