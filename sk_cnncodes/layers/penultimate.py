"""The penultimate tensor: what the classifier of a network reads."""

from __future__ import annotations

from functools import cached_property

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.graphs.classifiers import find_classifiers
from sk_cnncodes.graphs.ensemble_heads import ensemble_tensor
from sk_cnncodes.graphs.operators import LINEAR_OPS
from sk_cnncodes.layers.layer import LayerGraph


class ClassifierWalk:
    """Walks from the outputs of a file back to what its classifier reads.

    Softmax, reshapes, poolings and biases are passed until the first fully connected
    layer, or convolution that is one at each position or over all positions. What that
    reads is the penultimate tensor.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph

    @cached_property
    def output(self) -> str:
        """The output of the file that holds the scores (or the features)."""
        outputs: list[str] = [o.name for o in self.graph.view.model.graph.output]
        outputs = [name for name in outputs if name in self.graph.view.image_dependent]
        if not outputs:
            raise BackboneError(
                f"no output depends on the image input {self.graph.view.input_name!r}."
            )
        # Of networks that compare images with texts, the features of images.
        alone = [name for name in outputs if not self.graph.view.other_inputs(name)]
        outputs = alone or outputs
        classifiers = [n for n in outputs if self._classifiers(n)]
        # Auxiliary classifiers for training come before the real one.
        deepest = sorted(classifiers, key=lambda n: self.graph.view.producer[n])
        return deepest[-1] if deepest else outputs[0]

    def _classifiers(self, output: str) -> list[int]:
        """The linear layers after which only scores follow; [] where there are none."""
        shape = self.graph.shape(output)
        if not shape or sum(dim > 1 for dim in shape[1:]) > 1:
            return []  # a map or tokens: features, not scores
        view = self.graph.view
        found = find_classifiers(
            output,
            view.producer.get,
            self.graph.op,
            view.data_inputs,
            self._is_classifier,
            lambda i: self._is_step_of_softmax(i) or self._selects_scores(i),
        )
        # Layers that read each other are parts of a block whose branches are added.
        upstream = view.ancestors(n for i in found for n in view.data_inputs(i))
        return found if upstream.isdisjoint(found) else []

    def _is_classifier(self, index: int, passed: frozenset[str]) -> bool:
        """Whether a linear layer gives scores, from the operators after it."""
        softmax = passed & {"Softmax", "LogSoftmax", "Sigmoid", "Exp"}
        rectified = passed & {"Relu", "Clip"}
        if rectified and not softmax and self._is_wide_like_a_layer(index):
            return False
        return self._is_fully_connected(index)

    def _is_wide_like_a_layer(self, index: int) -> bool:
        """Whether a rectified product has the width of features rather than of scores.

        No operator tells whether a ReLU at the end of a file rectifies features or, as
        SqueezeNet does, scores. Widths of layers are multiples of 32, numbers of
        classes are seldom: 1000, 1001, 10.
        """
        shape = self.graph.shape(self.graph.view.nodes[index].output[0])
        axis = 1 if len(shape) == 4 else -1
        return not shape or shape[axis] % 32 == 0

    def _is_step_of_softmax(self, index: int) -> bool:
        """Whether a node divides by its sum, or subtracts its maximum, of a softmax."""
        op, data = self.graph.op(index), self.graph.view.data_inputs(index)
        reductions = {"Div": "ReduceSum", "Sub": "ReduceMax"}
        if op not in reductions or len(data) != 2:
            return False
        made, by = (self.graph.view.producer.get(name) for name in data)
        if by is None or self.graph.op(by) != reductions[op]:
            return False
        # Features may be divided by their sum as well; an exponential is a score.
        exponential = made is not None and self.graph.op(made) == "Exp"
        own = self.graph.view.data_inputs(by) == data[:1]
        return own and (op == "Sub" or exponential)

    def _selects_scores(self, index: int) -> bool:
        """Whether a node leaves out classes, as opposed to tokens or positions."""
        data = self.graph.view.data_inputs(index)
        if self.graph.op(index) not in ("Gather", "Slice") or len(data) != 1:
            return False
        return sum(dim > 1 for dim in self.graph.shape(data[0])[1:]) <= 1

    def _is_fully_connected(self, index: int) -> bool:
        """Whether a product sees all of one position, or of all positions."""
        node = self.graph.view.nodes[index]
        if "Conv" not in node.op_type:
            return True
        if set(self.graph.shape(node.output[0])[2:]) == {1}:
            return True
        return set(self.graph.kernel(index)) <= {1}

    @cached_property
    def tensor(self) -> str:
        """What the classifier reads; for a file without one, its output."""
        return self._penultimate[0]

    @cached_property
    def rule(self) -> str:
        """Why `tensor` is the penultimate one."""
        return self._penultimate[1]

    @cached_property
    def _penultimate(self) -> tuple[str, str]:
        heads = self._classifiers(self.output)
        if not heads:
            return self.output, f"no classifier was found before {self.output!r}"
        view = self.graph.view
        if len(heads) == 1:
            (name,) = view.data_inputs(heads[0])
            classifier = view.nodes[heads[0]]
            what = f"{classifier.op_type} {classifier.output[0]!r}"
            return name, f"the classifier ({what}) reads it"
        # Several heads: what all of them read, or what each of them reads.
        first = min(heads)
        dominators = view.dominators(self.output)
        before = [name for name in dominators if view.producer[name] < first]
        common = [name for name in before if self._feeds_all(name, heads)]
        joined = ensemble_tensor(self.output)
        if common and not self._learns_between(common[-1], heads):
            return common[-1], f"all {len(heads)} classifiers read it"
        if joined in view.image_dependent:
            return joined, f"it joins what each of {len(heads)} classifiers reads"
        if common:
            return common[-1], f"all {len(heads)} classifiers depend on it"
        return self.output, f"{len(heads)} classifiers have no tensor in common"

    @cached_property
    def end(self) -> str:
        """The tensor at which the chain of dominators ends.

        That is the output; or what joins several heads, which no node reads, so that
        it is on no path to the output.
        """
        joined = ensemble_tensor(self.output)
        return joined if self.tensor == joined else self.output

    def _feeds_all(self, name: str, heads: list[int]) -> bool:
        index = self.graph.view.producer[name]
        view = self.graph.view
        return all(index in view.ancestors(view.data_inputs(head)) for head in heads)

    def _learns_between(self, name: str, heads: list[int]) -> bool:
        """Whether heads have learned layers of their own after a tensor."""
        view = self.graph.view
        read = [source for head in heads for source in view.data_inputs(head)]
        own = view.ancestors(read) - view.ancestors([name])
        return any(self.graph.op(i) in LINEAR_OPS and view.data_inputs(i) for i in own)
