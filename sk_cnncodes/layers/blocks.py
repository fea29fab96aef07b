"""Blocks: the numbered layers of a backbone, and the rules that find them.

-1 is the penultimate layer; before it come the outputs of the blocks as a diagram of
the network would show them:

- dominators with several readers, and outputs of merges (residual sums and similar);
- of concatenated branches, the 1x1 convolution that fuses them (CSP, DLA, HGNet);
- in plain chains, the last tensor at a resolution, after its pooling;
- vectors that a fully connected layer reads, or the maps that they are pooled from;
- in long parts without a dominator, the cells of `sk_cnncodes.layers.block_rules`.

An activation after a block belongs to the block. Each rule adds or drops candidates;
`BlockFinder.decisions` holds the last decision on each.
"""

from __future__ import annotations

import itertools
from functools import cached_property

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.graphs.operators import (
    CONVOLUTIONS,
    GLOBAL_POOLS,
    LENGTHS,
    LINEAR_OPS,
    POINTWISE,
    POOLS,
)
from sk_cnncodes.layers.block_ends import BlockEnds
from sk_cnncodes.layers.block_rules import (
    attends,
    cell_outputs,
    is_channel_mlp,
    mixes_tokens,
    only_mixes_tokens,
)
from sk_cnncodes.layers.candidates import Candidates, LayerDecision
from sk_cnncodes.layers.dominators import Dominator, DominatorChain
from sk_cnncodes.layers.feature_outputs import before_neck
from sk_cnncodes.layers.layer import Layer, LayerGraph
from sk_cnncodes.layers.penultimate import ClassifierWalk


class BlockFinder:
    """Finds the numbered layers of one model.

    Parameters
    ----------
    graph : LayerGraph
    penultimate : str or None
        Name of the penultimate tensor; None to find it.
    stated_by : str
        Where `penultimate` was stated, for `Layer.rule`.
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
        end = self._walk.end if self._walk.features is None else self._classifier_input
        self.chain = DominatorChain(graph, end, self._classifier_input)

    # -- the penultimate layer -----------------------------------------------

    @cached_property
    def penultimate(self) -> str:
        """The tensor of layer -1.

        If the classifier reads an averaged map or the class token, this is the map or
        the tokens: `pooling="auto"` then gives the same values, and other poolings can
        be chosen.
        """
        return self._penultimate[0]

    @cached_property
    def _penultimate(self) -> tuple[str, str]:
        """The tensor of layer -1 and its rule."""
        name, rule = self._classifier_input, self._walk.rule
        if self._stated_penultimate is not None:
            return name, f"penultimate tensor stated by {self._stated_by}"
        if self._walk.features is not None and self._walk.features.is_dense:
            return self._before_neck(self._walk.features.is_upsampled), rule
        last = self.chain.all[-1]
        if last.tensors[-1] != name or last.layer is None:
            return name, rule  # inside a block, not a dominator
        shape = self.graph.shape(last.layer)
        if len(shape) > 2 and len(self.graph.shape(name)) == 2 and not _is_flat(shape):
            # The classifier reads them flattened, so the code is flattened too.
            flat = [n for n in last.tensors if len(self.graph.shape(n)) == 2]
            if self.graph.can_be_layer(flat[0]):
                return flat[0], rule
        if len(self.chain.all) > 1 and self.chain.pools_all(last.nodes):
            before = self.chain.all[-2]
            if before.layer is not None and self._auto_pooling_matches(before, last):
                return (
                    before.layer,
                    f"{rule}, before its pooling, which pooling='auto' applies",
                )
        return last.layer, rule

    def _before_neck(self, upsampled: bool) -> str:
        """The last block of a dense predictor's backbone."""
        end = self._classifier_input
        whole = BlockFinder(self.graph, end)
        found = [each.layer for each in whole.chain.all if each.layer is not None]
        last = self.graph.layer(end)
        if not found or self.graph.layer(found[-1]).shape != last.shape:
            found.append(end)  # the layer of its dominator has other axes
        return before_neck(self.graph, found, whole.block_outputs, end, upsampled)

    def _auto_pooling_matches(self, before: Dominator, last: Dominator) -> bool:
        """Whether `pooling="auto"` at `before` gives the values of `last`."""
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
        return [n for n in listed if n != self.penultimate] + [self.penultimate]

    @cached_property
    def decisions(self) -> list[LayerDecision]:
        """The decision on each candidate, in order from the image."""
        found = self._candidates()
        rules: dict[str, tuple[bool, str]] = {}
        for index, rule in (found.dropped | found.kept).items():
            dominator = self._chain_to_penultimate[index]
            name = dominator.layer or dominator.tensors[0]
            is_layer = index in found.kept and dominator.layer is not None
            rules[name] = (is_layer, rule)
        for dominator in self._chain_to_penultimate:
            for name in cell_outputs(self.graph, dominator.nodes[:-1]):
                rules[name] = (True, "output of a cell, as in NASNet")
        for name in self._listed_outputs():
            if not rules.get(name, (False, ""))[0]:
                rules[name] = (True, "an output of the file")
        rules[self.penultimate] = (True, self._penultimate[1])
        return [
            LayerDecision(name, self.graph.shape(name), *rules[name])
            for name in sorted(rules, key=self._depth)
        ]

    def _depth(self, name: str) -> tuple[int, int]:
        """Where a tensor is sorted: by its node, or by the last dominator before it.

        Exporters write the rearrangement of an output where the output is given.
        """
        index, nodes = self.graph.view.producer.get(name, -1), self._chain_nodes
        if index in nodes:
            return index, index
        before = self.graph.view.ancestors([name])
        return max(before & nodes, default=-1), index

    @cached_property
    def _chain_nodes(self) -> frozenset[int]:
        """The nodes on the way to the penultimate layer."""
        return frozenset(i for each in self._chain_to_penultimate for i in each.nodes)

    def _listed_outputs(self) -> list[str]:
        """Outputs of a file without a classifier that are layers besides -1."""
        features = self._walk.features
        if features is None or self._stated_penultimate is not None:
            return []
        chain = self._chain_to_penultimate
        same = {self._classifier_input, *chain[-1].tensors}
        names: dict[str, str] = {}
        for index, dominator in enumerate(chain):
            names.update(dict.fromkeys(dominator.tensors, dominator.layer or ""))
            if self._only_pools_until_penultimate(index):
                same.update(dominator.tensors)
        listed = map(self.graph.view.before_identities, features.listed)
        return [names.get(n) or n for n in listed if n not in same]

    def _candidates(self) -> Candidates:
        """Apply all rules in order."""
        found = self._merges_and_branches()
        self._drop_squeezes(found)
        self._move_after_fusions(found)
        self._add_last_at_resolution(found)
        self._add_before_fully_connected(found)
        self._move_after_pointwise(found)
        self._drop_transitions(found)
        self._drop_half_blocks(found)
        found.drop_where(
            lambda i: not self.chain.is_linear(self.chain.between(-1, i)),
            "no weights before it: the input image, rearranged or scaled",
        )
        found.drop_where(
            self._only_pools_until_penultimate,
            "only pooling or pointwise operators between it and layer -1",
        )
        return found

    @cached_property
    def _chain_to_penultimate(self) -> list[Dominator]:
        """Dominators up to and including that of the penultimate layer."""
        for count, dominator in enumerate(self.chain.all, 1):
            if self.penultimate in dominator.tensors:
                return self.chain.all[:count]
        return self.chain.all

    @cached_property
    def _ends(self) -> BlockEnds:
        return BlockEnds(self.chain, len(self._chain_to_penultimate) - 1)

    def _merges_and_branches(self) -> Candidates:
        """Find outputs of merges, and dominators that start several branches."""
        found, chain = Candidates(), self.chain
        for index, dominator in enumerate(self._chain_to_penultimate):
            if dominator.layer is None:
                found.drop(index, "no code possible: not a float tensor of rank 2 to 4")
            elif chain.is_dense_concat(index):
                found.drop(index, "inside a dense block: new channels are concatenated")
            elif chain.is_merge(index):
                found.add(index, "merge of branches (sum, concatenation or similar)")
            elif not chain.branches_after(index):
                found.drop(
                    index, "not a block boundary: no branches start or merge here"
                )
            elif chain.projects_for_attention(index):
                found.drop(
                    index, "keys and values of attention without a skip connection"
                )
            else:
                found.add(index, "start of several branches")
        return found

    def _drop_squeezes(self, found: Candidates) -> None:
        """Drop the narrow tensor inside a block whose output is the next merge."""
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

        found.drop_where(is_squeeze, "narrow squeeze layer inside the next block")

    def _move_after_fusions(self, found: Candidates) -> None:
        """Move concatenations after the 1x1 convolution that fuses their branches."""
        ends: set[int] = set()
        for index in range(len(self._chain_to_penultimate)):
            end = self._ends.fusion_end(index)
            if end is None:
                continue
            start = max((i for i in found.kept if i < index), default=-1)
            if start not in ends and self._ends.is_first_of_block(start, index):
                found.drop(
                    start, "first 1x1 convolution of a block of several branches"
                )
            found.drop(index, "before the 1x1 convolution that fuses the branches")
            found.add(end, "1x1 convolution that fuses concatenated branches")
            ends.add(end)

    def _add_last_at_resolution(self, found: Candidates) -> None:
        """Add the last dominator at each resolution without a block output."""
        chain, order = self.chain, found.in_order
        resolutions = [
            chain.resolution(i) for i in range(len(self._chain_to_penultimate))
        ]
        covered = {resolutions[i] for i in order}
        added = set()
        for resolution in dict.fromkeys(resolutions):
            if resolution is None or resolution in covered or max(resolution) == 1:
                continue
            index = max(i for i, r in enumerate(resolutions) if r == resolution)
            before = max((i for i in order if i < index), default=-1)
            nodes = chain.between(before, index)
            if not chain.is_linear(nodes):
                continue  # a rearranged block output
            if not any(self.graph.op(i) in POOLS | CONVOLUTIONS for i in nodes):
                continue  # attention heads and tokens, not a feature map
            index = self._ends.before_inverted_bottleneck(self._ends.with_pool(index))
            size = chain.resolution(index)
            if size is not None and max(size) > 1:
                added.add(index)
        for index in added:
            found.add(index, "last tensor at its resolution in a plain chain")

    def _add_before_fully_connected(self, found: Candidates) -> None:
        """Add the inputs of fully connected layers, or the maps averaged to them."""
        for index, dominator in enumerate(self._chain_to_penultimate):
            readers = self.graph.view.readers.get(dominator.tensors[-1], [])
            if dominator.layer is None or not self.chain.is_linear(readers):
                continue
            shape = self.graph.shape(dominator.layer)
            if self.chain.pools_all(dominator.nodes) and _is_flat(shape) and index > 0:
                index -= 1  # use the map before the pooling
            elif len(shape) != 2:
                continue
            if self.chain.all[index].layer is not None:
                found.add(index, "input of a fully connected layer")

    def _move_after_pointwise(self, found: Candidates) -> None:
        """Move block outputs after the activations that belong to them."""
        moved = {index: self._ends.after_pointwise(index) for index in found.in_order}
        rules = dict(found.kept)
        for index, after in moved.items():
            if after != index:
                found.drop(index, "before the activation that ends the block")
        for index, after in moved.items():
            if after != index:
                found.add(after, f"{rules[index]}, after its activation")

    def _drop_transitions(self, found: Candidates) -> None:
        """Drop one of two outputs with no weights or only a transition between them."""
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
                # Keep the block: it is the one with a module name.
                found.drop(follower, "no weights between the previous block and it")
            elif n_linear == 0 or transition:
                found.drop(index, "transition: the next output is listed instead")

    def _drop_half_blocks(self, found: Candidates) -> None:
        """Drop the sum between the attention and the MLP of a transformer block.

        Likewise if a pooling, a convolution or a matrix product mixes the tokens
        instead of attention.
        """
        order, chain = found.in_order, self.chain
        ends = [*order, len(self._chain_to_penultimate) - 1]
        for number, index in enumerate(order):
            start = ends[number - 1] if number else -1
            before = chain.between(start, index)
            after = chain.between(index, ends[number + 1])
            attended = attends(self.graph, before) and not attends(self.graph, after)
            last = max((i for i in found.kept if i < index), default=-1)
            if attended and chain.is_linear(after) and chain.is_merge(index):
                found.drop(index, "residual sum between attention and MLP of a block")
            elif self._is_token_mixing_sum(last, index, after):
                found.drop(
                    index, "residual sum between token mixing and MLP of a block"
                )
            elif self._is_before_mlp(index, after, depthwise=True):
                start = self._ends.before_depthwise(index)
                if start != index:
                    found.drop(index, "between token mixing and MLP of a block")
                    if start not in order:
                        found.add(start, "start of a block that mixes tokens first")

    def _is_token_mixing_sum(self, start: int, index: int, after: list[int]) -> bool:
        """Whether a dominator is the sum after token mixing, before a channel MLP."""
        if not self.chain.is_join(index):
            return False
        channels, before = self.chain.channels(index), self.chain.between(start, index)
        width_before = self.chain.channels(start) if start >= 0 else channels
        depthwise = start >= 0 and only_mixes_tokens(self.graph, before)
        mixed = mixes_tokens(self.graph, before, width_before)
        return mixed and self._is_before_mlp(index, after, depthwise)

    def _is_before_mlp(self, index: int, after: list[int], depthwise: bool) -> bool:
        """Whether a channel MLP, maybe with depthwise convolutions, follows."""
        tensor, channels = self.chain.all[index].tensors[-1], self.chain.channels(index)
        return is_channel_mlp(self.graph, tensor, after, channels, depthwise)

    def _only_pools_until_penultimate(self, index: int) -> bool:
        """Whether only pooling or pointwise operators follow, up to layer -1."""
        end = len(self._chain_to_penultimate) - 1
        nodes = self.chain.between(index, end)
        weightless = POINTWISE | GLOBAL_POOLS | {"Gather", "Slice"}
        name = self.chain.all[index].layer
        if name is not None and _is_flat(self.graph.shape(name)):
            weightless |= LENGTHS
        return index != end and all(self.graph.op(i) in weightless for i in nodes)

    # -- layers --------------------------------------------------------------

    def layers(self) -> list[Layer]:
        """The numbered layers, in order from the image; the last is -1."""
        others = self.graph.view.other_inputs(self.penultimate)
        if others:
            raise BackboneError(
                f"its layers need the inputs {others} besides the image input "
                f"{self.graph.view.input_name!r}. Expected a network that takes images "
                "only. Turn the other inputs into initializers, or name a layer that "
                "does not need them."
            )
        names = self.block_outputs
        labels = self.graph.labels(names)
        rules = {each.tensor: each.rule for each in self.decisions}
        return [
            self.graph.layer(name, label, number - len(names), rules[name])
            for number, (name, label) in enumerate(zip(names, labels, strict=True))
        ]


def _is_flat(shape: tuple[int, ...]) -> bool:
    """Whether at most one dimension besides the batch is larger than one."""
    return sum(dim > 1 for dim in shape[1:]) <= 1
