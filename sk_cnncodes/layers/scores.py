"""Which nodes before an output compute, keep or join scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sk_cnncodes.graphs.checks import all_graphs
from sk_cnncodes.graphs.operators import (
    AFTER_SCORES,
    AFTER_SCORES_OR_FEATURES,
    LAYOUT_OPS,
    LINEAR_OPS,
    ONLY_AFTER_SCORES,
)
from sk_cnncodes.graphs.view import captures
from sk_cnncodes.layers.layer import LayerGraph
from sk_cnncodes.layers.typed_graph import has_channels_last

if TYPE_CHECKING:
    import onnx

# What the branches of an If may hold that passes scores on, as by torch.squeeze.
_KEEPS_SCORES = AFTER_SCORES | {"Constant", "Shape"}
_SELECTIONS = frozenset(
    [
        "ArrayFeatureExtractor",
        "Compress",
        "Gather",
        "GatherElements",
        "GatherND",
        "Slice",
        "Split",
    ]
)


class ScoreRules:
    """Judges the nodes on the way from an output back to its classifiers.

    Its methods are those that `sk_cnncodes.graphs.classifiers.find_classifiers` takes.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph

    def is_classifier(self, index: int, passed: frozenset[str]) -> bool:
        """Whether a layer gives scores, judged by the operators after it."""
        if self.graph.op(index) not in LINEAR_OPS:
            return True
        # Features may be divided by their sum too.
        undecided = passed & AFTER_SCORES_OR_FEATURES or {"Div", "ReduceSum"} <= passed
        if (
            undecided
            and not passed & ONLY_AFTER_SCORES
            and self._has_feature_width(index)
        ):
            return False
        return self.is_fully_connected(index)

    def scores_read(self, index: int) -> list[str] | None:
        """The scores that a node reads; None to judge by its operator."""
        node, data = self.graph.view.nodes[index], self.graph.view.data_inputs(index)
        if self.graph.op(index) == "Where":
            # Two constants: the condition is what is left of the scores.
            return [n for n in dict.fromkeys(node.input[1:]) if n in data] or data
        if self.graph.op(index) == "If" and self._branch_ops(index) <= _KEEPS_SCORES:
            return data
        if self._is_squared_norm(index):
            return []  # a part of a squared distance: |x|^2 - 2 x p + |p|^2
        if self._divides_by_sum(index) or self._multiplies_probabilities(index):
            return data
        if self._selects_scores(index) or self._weighs_probabilities(index):
            return data[:1]
        return None

    def compares(self, index: int) -> bool:
        """Whether a node that is no linear layer computes scores.

        It compares features with constant prototypes, one per class, or has a
        classifier inside.
        """
        data = self.graph.view.data_inputs(index)
        if self.graph.op(index) == "CDist":  # of nearest neighbours, by skl2onnx
            return len(data) == 1
        if self.graph.op(index) == "If":
            read = self._read_in_branches(index)
            return bool(read) and self.graph.view.input_name not in read
        if self.graph.op(index) not in ("Mul", "Sub") or len(data) != 1:
            return False
        features = self.graph.shape(self.before_expansion(data[0]))
        made = self.graph.shape(self.graph.view.nodes[index].output[0])
        return _n_axes(features) == 1 and _n_axes(made) == 2

    def _branch_ops(self, index: int) -> set[str]:
        """The operators in the branches of an If."""
        attributes = self.graph.view.nodes[index].attribute
        return {op for attribute in attributes for op in _ops(attribute.g)}

    def read(self, index: int) -> str:
        """The tensor that a classifier reads; the deepest if it is in several branches.

        What else an If reads decides on the branch, or are scores of an early exit.
        """
        view, data = self.graph.view, self.graph.view.data_inputs(index)
        if self.graph.op(index) == "If":
            data = sorted(self._read_in_branches(index), key=view.weights_before)[-1:]
        return self.before_expansion(data[0])

    def _read_in_branches(self, index: int) -> list[str]:
        """What the branches of an If that hold linear layers read."""
        branches = [
            attribute.g
            for attribute in self.graph.view.nodes[index].attribute
            if not LINEAR_OPS.isdisjoint(_ops(attribute.g))
        ]
        read = {name for branch in branches for name in captures(branch)}
        return [name for name in self.graph.view.data_inputs(index) if name in read]

    def before_expansion(self, name: str) -> str:
        """The tensor that is repeated to a tensor, once for each class."""
        index = self.graph.view.producer.get(name)
        while index is not None and self.graph.op(index) in ("Expand", "Tile"):
            name = self.graph.view.nodes[index].input[0]
            index = self.graph.view.producer.get(name)
        return name

    def is_fully_connected(self, index: int) -> bool:
        """Whether a linear layer is no convolution, or a 1x1 or full-size one."""
        node = self.graph.view.nodes[index]
        if "Conv" not in node.op_type:
            return True
        sides = self.graph.shape(node.output[0])[1:]
        if has_channels_last(node):
            sides = (*sides[-1:], *sides[:-1])
        if set(sides[1:]) == {1}:
            return True
        return set(self.graph.kernel(index)) <= {1}

    def _has_feature_width(self, index: int) -> bool:
        """Whether a layer before an activation is as wide as features, not scores.

        A ReLU at the end of a file may follow features or, as in SqueezeNet, scores.
        Layer widths are multiples of 32; class counts (1000, 1001, 10) rarely are.
        """
        return self.graph.width(index) % 32 == 0

    def _divides_by_sum(self, index: int) -> bool:
        """Whether a node divides by the sum, as the last step of a softmax."""
        data = self.graph.view.data_inputs(index)
        if self.graph.op(index) != "Div" or len(data) != 2:
            return False
        total = self.graph.view.producer.get(data[1])
        if total is None or self.graph.op(total) != "ReduceSum":
            return False
        return self.graph.view.data_inputs(total) == data[:1]

    def _multiplies_probabilities(self, index: int) -> bool:
        """Whether a node multiplies probabilities with scores, as for an entropy."""
        data = self.graph.view.data_inputs(index)
        if self.graph.op(index) != "Mul" or len(data) != 2:
            return False
        return any(map(self._is_probability, data))

    def _selects_scores(self, index: int) -> bool:
        """Whether a node selects classes, as opposed to tokens or positions."""
        data = self.graph.view.data_inputs(index)
        if self.graph.op(index) not in _SELECTIONS or len(data) != 1:
            return False
        return _n_axes(self.graph.shape(data[0])) <= 1

    def _weighs_probabilities(self, index: int) -> bool:
        """Whether a linear layer is an expectation: a sum of values by probability."""
        data = self.graph.view.data_inputs(index)
        is_linear = self.graph.op(index) in LINEAR_OPS and len(data) == 1
        return is_linear and self._is_probability(data[0])

    def _is_probability(self, name: str) -> bool:
        """Whether a vector is the output of a softmax, possibly rearranged."""
        view, source = self.graph.view, self.graph.view.producer.get(name)
        while source is not None and len(view.data_inputs(source)) == 1:
            if self.graph.op(source) == "Softmax":
                return _n_axes(self.graph.shape(name)) <= 1
            if self.graph.op(source) not in LAYOUT_OPS | {"Slice"}:
                return False
            source = view.producer.get(view.data_inputs(source)[0])
        if source is None or not self._divides_by_sum(source):
            return False
        exponential = view.producer.get(view.data_inputs(source)[0])
        return exponential is not None and self.graph.op(exponential) == "Exp"

    def _is_squared_norm(self, index: int) -> bool:
        """Whether a node is the squared length of a vector."""
        view, op = self.graph.view, self.graph.op(index)
        data = view.data_inputs(index)
        if len(data) != 1 or op not in ("ReduceSum", "ReduceSumSquare"):
            return False
        if op == "ReduceSum":
            square = view.producer.get(data[0])
            if square is None or not self._is_square(square):
                return False
        made = self.graph.shape(view.nodes[index].output[0])
        return _n_axes(self.graph.shape(data[0])) == 1 and _n_axes(made) == 0

    def _is_square(self, index: int) -> bool:
        """Whether a node squares a tensor."""
        node = self.graph.view.nodes[index]
        if self.graph.op(index) == "Mul":
            return len(set(node.input)) == 1
        power = self.graph.op(index) == "Pow" and node.input[1]
        return bool(power) and self.graph.view.constant_value(str(power)) == [2]


def _ops(graph: onnx.GraphProto) -> set[str]:
    """The operators in a graph and its branches."""
    return {node.op_type for each in all_graphs(graph) for node in each.node}


def _n_axes(shape: tuple[int, ...]) -> int:
    """Number of dimensions besides the batch that are larger than one."""
    return sum(dim > 1 for dim in shape[1:])
