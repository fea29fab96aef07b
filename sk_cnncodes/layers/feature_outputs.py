"""Layer -1 of a file without a classifier, found from its outputs.

Such a file gives one of three things:

- an embedding, one vector per image, as image-text models do;
- feature maps or tokens, of one depth or of several, as feature pyramids do;
- predictions at many positions: boxes, masks, depth, text. No output is a code then.
  Layer -1 is the deepest feature of the backbone, before a neck upsamples it, or what
  the prediction heads read.
"""

from __future__ import annotations

import math
from functools import cached_property

from sk_cnncodes.graphs.operators import (
    CONVOLUTIONS,
    LAYOUT_OPS,
    LINEAR_OPS,
    NORMALISATIONS,
    POINTWISE,
    POOLS,
)
from sk_cnncodes.layers.layer import Layer, LayerGraph

_UPSAMPLING = frozenset(["ConvTranspose", "DepthToSpace", "Resize", "Upsample"])
# Operators that turn scores into predictions.
_DECISIONS = frozenset(
    [
        "ArgMax",
        "HardSigmoid",
        "LogSoftmax",
        "NonMaxSuppression",
        "Sigmoid",
        "Softmax",
        "TopK",
    ]
)
# Operators that join or select predictions; all of their inputs may be predictions.
_SELECTIONS = frozenset(["Concat", "Gather", "GatherElements", "GatherND"]) | _DECISIONS
# Layers that compute features have a multiple of 8 channels, mostly one of 32; numbers
# of classes and of coordinates (21, 85, 255) rarely do.
_ANY_WIDTH, _USUAL_WIDTH = 8, 32
# Of the maps that a neck upsamples, in channels.
_WIDEST_TO_NARROWEST = 4
# Names by which exporters mark the features of an image.
_EMBEDDING_NAMES = frozenset(
    [
        "embedding",
        "embeddings",
        "image_embedding",
        "image_embeddings",
        "image_embeds",
        "image_features",
    ]
)


def is_embedding(graph: LayerGraph, output: str) -> bool:
    """Whether an output is an embedding although a linear layer computes it.

    So it is if it has such a name, or if that layer projects to the usual width of
    embeddings without a bias, as in CLIP.
    """
    view, name = graph.view, output
    if output.lower() in _EMBEDDING_NAMES:
        return True
    while name in view.producer:
        index = view.producer[name]
        node, data = view.nodes[index], view.data_inputs(index)
        if graph.op(index) in ("Gemm", "MatMul") and len(data) == 1:
            others = [each for each in node.input if each not in data]
            has_weights = all(each not in view.producer for each in others)
            width = graph.shape(node.output[0])[-1:]
            usual = bool(width) and width[0] % _USUAL_WIDTH == 0
            # Weights that other inputs decide are features themselves.
            return len(others) == 1 and has_weights and usual
        if graph.op(index) not in LAYOUT_OPS or len(data) != 1:
            return False
        (name,) = data
    return False


def pools_positions(graph: LayerGraph, index: int, output: str) -> bool:
    """Whether one vector remains of what a layer computes at many positions.

    Detectors flatten or select positions instead: their outputs may be flat as well.

    Parameters
    ----------
    graph : LayerGraph
    index : int
        The layer's node.
    output : str
        An output of the file that depends on it.
    """
    view, made = graph.view, graph.view.nodes[index].output[0]
    if graph.op(index) not in LINEAR_OPS or len(graph.shape(made)) < 3:
        return True
    width = graph.width(index)
    needed = view.ancestors([output])
    after = [n for n in view.dependents([made]) if view.producer.get(n) in needed]
    return any(math.prod(graph.shape(name)[1:]) == width for name in after)


def before_neck(
    graph: LayerGraph, layers: list[str], blocks: list[str], end: str, upsampled: bool
) -> str:
    """The last of the widest block outputs of a dense predictor's backbone.

    A neck that follows them reduces the number of channels. Before upsampling, they are
    those at the resolution of the end; if none ends before the neck there, the last of
    the widest layers. Maps after the tokens of a transformer belong to the neck.

    Parameters
    ----------
    graph : LayerGraph
    layers : list of str
        The dominators up to `end`.
    blocks : list of str
        Those that are block outputs.
    end : str
        The tensor that is upsampled or that prediction heads read.
    upsampled : bool
        Whether it is upsampled.
    """
    last = graph.layer(end)
    found = [graph.layer(name, name) for name in layers]
    tokens = [each for each in found if each.kind == "tokens" and each.name in blocks]
    if upsampled:
        found = [each for each in found if each.n_positions == last.n_positions]
    found = found or [last]
    widest = _last_of_widest(found)
    ends = [each for each in found if each.name in blocks]
    if ends and found.index(ends[0]) <= found.index(widest):
        widest = _last_of_widest(ends)
    else:
        # The inside of an inverted bottleneck is wider than its end.
        index, _ = _convolution_before(graph, widest.name)
        after = found[found.index(widest) + 1 :]
        if index is not None and graph.is_grouped(index) and after:
            widest = _last_of_widest(after)
    if widest.kind == "map" and tokens and tokens[-1].n_channels >= widest.n_channels:
        return tokens[-1].name
    return widest.name


def _convolution_before(graph: LayerGraph, name: str) -> tuple[int | None, str]:
    """The convolution before activations and poolings, and what it reads."""
    for each in reversed(graph.view.dominators(name)):
        index = graph.view.producer[each]
        op, data = graph.op(index), graph.view.data_inputs(index)
        if op in CONVOLUTIONS and len(data) == 1:
            return index, data[0]
        if op not in POINTWISE | POOLS:
            break
    return None, name


def _last_of_widest(layers: list[Layer]) -> Layer:
    """The last of the layers with the largest number of channels."""
    return max(reversed(layers), key=lambda layer: layer.n_channels)


class FeatureOutputs:
    """Finds layer -1 from the outputs of a file without a classifier.

    Parameters
    ----------
    graph : LayerGraph
    outputs : list of str
        The outputs that depend on the image.
    """

    def __init__(self, graph: LayerGraph, outputs: list[str]) -> None:
        self.graph = graph
        self.outputs = outputs
        self._layers = [name for name in outputs if graph.can_be_layer(name)]

    @property
    def tensor(self) -> str:
        """The tensor of layer -1; of dense predictors, where their backbone ends.

        That is the tensor that is upsampled or that the heads read. A neck may lie
        before it, which `BlockFinder` skips.
        """
        return self._found[0]

    @property
    def rule(self) -> str:
        """The rule by which `tensor` was found."""
        return self._found[1]

    @property
    def listed(self) -> list[str]:
        """Outputs that are numbered layers, whatever the rules for blocks say."""
        return [] if self.is_dense else self._features

    @cached_property
    def _found(self) -> tuple[str, str]:
        view = self.graph.view
        none = "no classifier found"
        if self.is_dense:
            bottleneck = self._bottleneck
            if bottleneck is not None:
                return bottleneck, "last of the widest blocks before upsampling"
            read = self._read_by_heads
            if read is not None:
                return read, "last of the widest blocks before the prediction heads"
        features = self._features or self.outputs
        if len(features) == 1:
            return features[0], f"the output {features[0]!r}: {none}"
        vectors = [n for n in features if self._positions(n) == 1]
        rule = "embedding" if vectors else "deepest"
        coarsest = min(map(self._positions, features))
        features = [n for n in features if self._positions(n) == coarsest]
        deepest = max(features, key=lambda n: len(view.ancestors([n])))
        deepest = self._before_subsampling(deepest)
        return deepest, f"the {rule} of {len(self.outputs)} outputs: {none}"

    def _before_subsampling(self, name: str) -> str:
        """The output of which an output has every second position, as FPNs give it."""
        view, index = self.graph.view, self.graph.view.producer[name]
        source = view.data_inputs(index)[0]
        pools = self.graph.op(index) in POOLS and self._positions(name) > 1
        return source if pools and source in self._features else name

    @cached_property
    def _features(self) -> list[str]:
        """Outputs that can be layers, but for the output of a pooler."""
        return [n for n in self._layers if not self._is_pooler(n)] or self._layers

    def _is_pooler(self, name: str) -> bool:
        """Whether a vector is the output of BERT's pooler, which no image model needs.

        Classifiers read what it reads, and many files hold random weights in it.
        """
        index = self.graph.view.producer.get(name, -1)
        if index < 0 or self.graph.op(index) != "Tanh":
            return False
        return self._positions(name) == 1

    def _positions(self, name: str) -> int:
        """Number of positions or tokens of a tensor."""
        shape = self.graph.shape(name)
        if shape[2:] == (1,):
            return 1
        if not self.graph.can_be_layer(name):
            return max(1, math.prod(shape[1:]))
        return self.graph.layer(name, name).n_positions

    def _width(self, name: str) -> int:
        """Number of channels of a tensor."""
        if self.graph.can_be_layer(name):
            return self.graph.layer(name, name).n_channels
        return self.graph.shape(name)[-1] if self.graph.shape(name) else 0

    # -- dense predictions -----------------------------------------------------

    @cached_property
    def is_dense(self) -> bool:
        """Whether the outputs are predictions at many positions."""
        dense = [name for name in self.outputs if self._has_positions(name)]
        if not self._layers or any(map(self._decisions, dense)):
            return True
        if not set(self._layers) <= set(dense):
            return False  # an embedding is among them
        dense = self._layers
        if any(self._joins_resolutions(name) for name in dense):
            return True
        heads = {n: i for n in dense if (i := self._head(n)) is not None}
        widths = [self.graph.width(i) for i in heads.values()]
        if any(width % _ANY_WIDTH for width in widths):
            return True
        read = [self.graph.view.data_inputs(i)[0] for i in set(heads.values())]
        if len(set(read)) < len(read):
            return True  # several predictions from the same features
        if self._bottleneck is None:
            return False
        if any(len(self.graph.shape(name)) == 3 for name in dense):
            return True  # positions of several resolutions, one after the other
        coarsest = min(map(self._positions, dense))
        same = len(widths) > 1 and len(set(widths)) == 1
        odd = bool(widths) and widths[0] % _USUAL_WIDTH > 0
        return (same and odd) or coarsest > self._positions(self._bottleneck)

    def _has_positions(self, name: str) -> bool:
        """Whether an output has several positions, flattened or selected ones too."""
        return self._positions(name) > 1 or not all(
            pools_positions(self.graph, index, name) for index in self._tail(name)[0]
        )

    def _decisions(self, output: str) -> bool:
        """Whether an output is scores, or what was selected by scores."""
        return bool(self._tail(output)[1] & _DECISIONS)

    def _joins_resolutions(self, output: str) -> bool:
        """Whether the positions of an output are those of maps of several sizes."""
        nodes = self.graph.view.nodes
        made = [nodes[index].output[0] for index in self._tail(output)[0]]
        sizes = {self._positions(name) for name in made}
        return len(self.graph.shape(output)) == 3 and len(sizes) > 1

    def _tail(self, output: str) -> tuple[set[int], set[str]]:
        """The linear layers that an output is computed by, and operators after them."""
        view = self.graph.view
        heads, passed, seen = set(), set(), set()
        waiting = [output]
        while waiting:
            index = view.producer.get(waiting.pop())
            if index is None or index in seen:
                continue
            seen.add(index)
            op, data = self.graph.op(index), view.data_inputs(index)
            if op in LINEAR_OPS and len(data) == 1:
                heads.add(index)
                continue
            is_alone = len(data) == 1 and op not in NORMALISATIONS | POOLS
            if is_alone or op in _SELECTIONS:
                passed.add(op)
                waiting.extend(data)
        return heads, passed

    def _head(self, output: str) -> int | None:
        """The linear layer whose values an output holds, rearranged at most."""
        view, name = self.graph.view, output
        while name in view.producer:
            index = view.producer[name]
            op, data = self.graph.op(index), view.data_inputs(index)
            if len(data) != 1 or op not in LAYOUT_OPS | LINEAR_OPS | {"Add"}:
                return None
            if op in LINEAR_OPS:
                return index
            (name,) = data
        return None

    @cached_property
    def _bottleneck(self) -> str | None:
        """The coarsest map that is upsampled; the widest of them, then the last.

        Much narrower ones are weights of positions, as in pyramids of attention.
        """
        view, found = self.graph.view, []
        for index in view.ancestors(self.outputs):
            sources = view.data_inputs(index)
            if self.graph.op(index) not in _UPSAMPLING or not sources:
                continue
            source, result = sources[0], view.nodes[index].output[0]
            if not self.graph.can_be_layer(source):
                continue
            before, after = self._positions(source), self._positions(result)
            if 1 < before <= after // 2:  # one position: a pooled vector is spread
                source = self._before_shuffle(index, source)
                found.append((-before, self._width(source), index, source))
        if not found:
            return None
        least = max(width for _, width, *_ in found) / _WIDEST_TO_NARROWEST
        return self._before_lateral(max(f for f in found if f[1] >= least)[-1])

    def _before_lateral(self, name: str) -> str:
        """What a convolution reads that gives a neck its fewer channels.

        The convolution that ends an inverted bottleneck follows a depthwise one.
        """
        index, read = _convolution_before(self.graph, name)
        if index is None or read == self.graph.view.input_name:
            return name
        before, _ = _convolution_before(self.graph, read)
        is_lateral = (
            set(self.graph.kernel(index)) == {1}
            and self.graph.can_be_layer(read)
            and self._width(read) > self._width(name)
            and (before is None or not self.graph.is_grouped(before))
        )
        return read if is_lateral else name

    def _before_shuffle(self, index: int, source: str) -> str:
        """What the convolution reads that makes channels to be positions."""
        view, before = self.graph.view, self.graph.view.producer.get(source, -1)
        if self.graph.op(index) != "DepthToSpace" or before < 0:
            return source
        data = view.data_inputs(before)
        return data[0] if self.graph.op(before) in LINEAR_OPS else source

    @property
    def is_upsampled(self) -> bool:
        """Whether `tensor` of a dense predictor is upsampled."""
        return self._bottleneck is not None

    @cached_property
    def _read_by_heads(self) -> str | None:
        """The widest tensor that a head reads; what they have in common if several do.

        Heads of a detector without a neck read the last maps of the backbone, and
        narrower ones that are coarser still.
        """
        view = self.graph.view
        heads = set().union(*(self._tail(name)[0] for name in self.outputs))
        read = {view.data_inputs(index)[0] for index in heads} - {view.input_name}
        if not read:
            return None
        widths = {name: self._width(name) for name in read}
        widest = [name for name in read if widths[name] == max(widths.values())]
        first, *others = (view.dominators(name) for name in widest)
        shared = set(first).intersection(*others)
        chain = [n for n in first if n in shared and self.graph.can_be_layer(n)]
        return chain[-1] if chain else None
