"""BlockEnds: from a dominator to the start or the end of the block that it is in."""

from __future__ import annotations

from sk_cnncodes.graphs.operators import NORMALISATIONS, POOLS
from sk_cnncodes.layers.dominators import DominatorChain


class BlockEnds:
    """Moves along a chain of dominators, given and returned as indices into it.

    Parameters
    ----------
    chain : DominatorChain
    last : int
        Index of the penultimate layer.
    """

    def __init__(self, chain: DominatorChain, last: int) -> None:
        self.chain = chain
        self.graph = chain.graph
        self.last = last

    def after_pointwise(self, index: int) -> int:
        """The dominator after the activations and squeeze-excite gates of a block.

        Normalisations belong to the next block, unless only pointwise operators follow
        up to the penultimate layer.
        """
        chain, last = self.chain, self.last
        if chain.is_pointwise(chain.between(index, last)):
            return last
        while index < last:
            nodes = chain.all[index + 1].nodes
            normalised = any(self.graph.op(i) in NORMALISATIONS for i in nodes)
            belongs = chain.is_pointwise(nodes) and not normalised
            if not chain.all[index + 1].layer or not (
                belongs or chain.is_squeeze_excite(index + 1)
            ):
                break
            index += 1
        return index

    def _after_convolution(self, index: int) -> int:
        """The dominator after a convolution's batch normalisation and activation."""
        if index < self.last:
            ops = [self.graph.op(i) for i in self.chain.all[index + 1].nodes]
            index += ops == ["BatchNormalization"]
        return self.after_pointwise(index)

    def with_pool(self, index: int) -> int:
        """The pooling right after a dominator or its padding; otherwise itself."""
        chain = self.chain.all[: self.last + 1]
        for follower, dominator in enumerate(chain[index + 1 :], index + 1):
            ops = [self.graph.op(i) for i in dominator.nodes]
            if len(ops) == 1 and ops[0] in POOLS:
                return follower
            if ops != ["Pad"]:
                break
        return index

    def fusion_end(self, index: int) -> int | None:
        """The end of the block whose branches a dominator concatenates; or None.

        It ends after the 1x1 convolution that fuses its branches. A convolution to more
        channels that is layer -1 (ShuffleNet) or the start of an inverted bottleneck
        belongs to what follows, and so does the squeeze of the next block (SqueezeNet).
        """
        chain = self.chain
        if not chain.joins_branches(index):
            return None
        conv = self.after_pointwise(index) + 1
        if conv > self.last or not chain.is_pointwise_convolution(conv):
            return None
        end = self._after_convolution(conv)
        if end == self.last:
            return end if chain.channels(end) <= chain.channels(index) else None
        widens = chain.channels(end) > chain.channels(index)
        if widens and chain.is_depthwise(chain.all[end + 1].nodes):
            return None
        if chain.is_join(end + 1) and chain.expands(end, end + 1):
            return None
        # HGNet squeezes the channels to half of what the block puts out.
        if chain.is_pointwise_convolution(end + 1):
            wider = self._after_convolution(end + 1)
            if wider < self.last and chain.channels(wider) == 2 * chain.channels(end):
                return wider
        return end

    def is_first_of_block(self, start: int, index: int) -> bool:
        """Whether a dominator is the 1x1 convolution before concatenated branches.

        CSP splits its output; the branches of spatial pyramid pooling only pool it.
        """
        chain, conv = self.chain, start
        while conv > 0 and chain.is_pointwise(chain.all[conv].nodes):
            conv -= 1
        return (
            start >= 0
            and chain.is_pointwise_convolution(conv)
            and (chain.is_split(start) or not chain.is_linear(chain.all[index].nodes))
        )

    def before_depthwise(self, index: int) -> int:
        """The input of a depthwise convolution that keeps the size; else itself."""
        chain, conv = self.chain, index
        while conv > 0 and (
            chain.is_pointwise(chain.all[conv].nodes) or chain.is_squeeze_excite(conv)
        ):
            conv -= 1
        before = conv - 1
        if (
            conv > 0
            and chain.only_mixes_tokens(conv)
            and chain.resolution(before) == chain.resolution(index)
        ):
            return before
        return index

    def before_inverted_bottleneck(self, index: int) -> int:
        """The input of the inverted bottleneck around a dominator; otherwise itself."""
        chain, wide = self.chain, self.chain.channels(index)
        later = range(index + 1, self.last + 1)
        follower = next((i for i in later if chain.is_linear(chain.all[i].nodes)), None)
        if follower is None or not chain.is_depthwise(chain.all[follower].nodes):
            return index
        others = [i for i in later if chain.channels(i) not in (0, wide)]
        narrow = [i for i in range(index) if chain.channels(i) not in (0, wide)]
        if narrow:  # MobileNet v4 has a depthwise convolution before the expansion too
            narrow.append(self.before_depthwise(narrow.pop()))
        if not others or not narrow or chain.channels(others[0]) >= wide:
            return index
        same_size = chain.resolution(narrow[-1]) == chain.resolution(index)
        has_weights = chain.is_linear(chain.between(-1, narrow[-1]))
        return narrow[-1] if same_size and has_weights else index
