"""The penultimate tensor: the input of a network's classifier."""

from __future__ import annotations

from functools import cached_property

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.graphs.classifiers import find_classifiers
from sk_cnncodes.graphs.ensemble_heads import ensemble_tensor
from sk_cnncodes.graphs.operators import LINEAR_OPS
from sk_cnncodes.layers.layer import LayerGraph


class ClassifierWalk:
    """Walks from the outputs of a file back to the input of its classifier.

    Softmax, reshapes, poolings and biases are skipped up to the first fully connected
    layer or equivalent convolution. Its input is the penultimate tensor.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph

    @cached_property
    def output(self) -> str:
        """The output that holds the scores, or the features if there are none."""
        outputs: list[str] = [o.name for o in self.graph.view.model.graph.output]
        outputs = [name for name in outputs if name in self.graph.view.image_dependent]
        if not outputs:
            raise BackboneError(
                f"no output depends on the image input {self.graph.view.input_name!r}."
            )
        # Image-text models: prefer the outputs that depend on the image only.
        image_only = [n for n in outputs if not self.graph.view.other_inputs(n)]
        outputs = image_only or outputs
        classifiers = [n for n in outputs if self._classifiers(n)]
        # Auxiliary classifiers come before the main one.
        deepest = sorted(classifiers, key=lambda n: self.graph.view.producer[n])
        return deepest[-1] if deepest else outputs[0]

    def _classifiers(self, output: str) -> list[int]:
        """Indices of the classifier layers before an output; [] if there are none."""
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
            lambda i: self._is_softmax_step(i) or self._selects_scores(i),
        )
        # Layers that depend on each other are branches of one residual block.
        upstream = view.ancestors(n for i in found for n in view.data_inputs(i))
        return found if upstream.isdisjoint(found) else []

    def _is_classifier(self, index: int, passed: frozenset[str]) -> bool:
        """Whether a linear layer gives scores, judged by the operators after it."""
        softmax = passed & {"Softmax", "LogSoftmax", "Sigmoid", "Exp"}
        rectified = passed & {"Relu", "Clip"}
        if rectified and not softmax and self._has_feature_width(index):
            return False
        return self._is_fully_connected(index)

    def _has_feature_width(self, index: int) -> bool:
        """Whether a layer before a ReLU is as wide as features rather than scores.

        A ReLU at the end of a file may follow features or, as in SqueezeNet, scores.
        Layer widths are multiples of 32; class counts (1000, 1001, 10) rarely are.
        """
        shape = self.graph.shape(self.graph.view.nodes[index].output[0])
        axis = 1 if len(shape) == 4 else -1
        return not shape or shape[axis] % 32 == 0

    def _is_softmax_step(self, index: int) -> bool:
        """Whether a node is a softmax's division by the sum or shift by the maximum."""
        op, data = self.graph.op(index), self.graph.view.data_inputs(index)
        reductions = {"Div": "ReduceSum", "Sub": "ReduceMax"}
        if op not in reductions or len(data) != 2:
            return False
        producer, reduction = (self.graph.view.producer.get(name) for name in data)
        if reduction is None or self.graph.op(reduction) != reductions[op]:
            return False
        # Features may be divided by their sum too; only scores are exponentials.
        is_exponential = producer is not None and self.graph.op(producer) == "Exp"
        same_data = self.graph.view.data_inputs(reduction) == data[:1]
        return same_data and (op == "Sub" or is_exponential)

    def _selects_scores(self, index: int) -> bool:
        """Whether a node selects classes, as opposed to tokens or positions."""
        data = self.graph.view.data_inputs(index)
        if self.graph.op(index) not in ("Gather", "Slice") or len(data) != 1:
            return False
        return sum(dim > 1 for dim in self.graph.shape(data[0])[1:]) <= 1

    def _is_fully_connected(self, index: int) -> bool:
        """Whether a linear layer is no convolution, or a 1x1 or full-size one."""
        node = self.graph.view.nodes[index]
        if "Conv" not in node.op_type:
            return True
        if set(self.graph.shape(node.output[0])[2:]) == {1}:
            return True
        return set(self.graph.kernel(index)) <= {1}

    @cached_property
    def tensor(self) -> str:
        """The input of the classifier; the output of a file without a classifier."""
        return self._penultimate[0]

    @cached_property
    def rule(self) -> str:
        """The rule by which `tensor` was chosen."""
        return self._penultimate[1]

    @cached_property
    def _penultimate(self) -> tuple[str, str]:
        heads = self._classifiers(self.output)
        if not heads:
            return self.output, f"the output {self.output!r}: no classifier found"
        view = self.graph.view
        if len(heads) == 1:
            (name,) = view.data_inputs(heads[0])
            classifier = view.nodes[heads[0]]
            what = f"{classifier.op_type} {classifier.output[0]!r}"
            return name, f"input of the classifier ({what})"
        # Several heads: their common input, or their concatenated inputs.
        first = min(heads)
        dominators = view.dominators(self.output)
        before = [name for name in dominators if view.producer[name] < first]
        common = [name for name in before if self._feeds_all(name, heads)]
        concatenated = ensemble_tensor(self.output)
        if common and not self._has_weights_between(common[-1], heads):
            return common[-1], f"common input of all {len(heads)} classifiers"
        if concatenated in view.image_dependent:
            return concatenated, f"concatenated inputs of {len(heads)} classifiers"
        if common:
            return common[-1], f"last common dominator of all {len(heads)} classifiers"
        return (
            self.output,
            f"the output: {len(heads)} classifiers without a common input",
        )

    @cached_property
    def end(self) -> str:
        """The tensor at which the chain of dominators ends.

        Usually the output. The concatenation of several heads' inputs is read by no
        node, so it is not on a path to the output and ends the chain itself.
        """
        concatenated = ensemble_tensor(self.output)
        return concatenated if self.tensor == concatenated else self.output

    def _feeds_all(self, name: str, heads: list[int]) -> bool:
        """Whether all heads depend on a tensor."""
        index = self.graph.view.producer[name]
        view = self.graph.view
        return all(index in view.ancestors(view.data_inputs(head)) for head in heads)

    def _has_weights_between(self, name: str, heads: list[int]) -> bool:
        """Whether there are learned layers between a tensor and the heads."""
        view = self.graph.view
        inputs = [source for head in heads for source in view.data_inputs(head)]
        between = view.ancestors(inputs) - view.ancestors([name])
        return any(
            self.graph.op(i) in LINEAR_OPS and view.data_inputs(i) for i in between
        )
