"""The penultimate tensor: what the classifier of a network reads."""

from __future__ import annotations

from functools import cached_property

from sk_cnncodes.exceptions import BackboneError
from sk_cnncodes.joined_heads import joined_name
from sk_cnncodes.layers import LayerGraph
from sk_cnncodes.operators import AFTER_SCORES, JOINS_SCORES, WEIGHTED


class ClassifierWalk:
    """Walks from the outputs of a file back to what its classifier reads.

    Softmax, reshapes, poolings and biases are passed over until the first fully
    connected layer, or convolution that is one at each place or over all places; what
    that reads is the penultimate tensor.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph

    @cached_property
    def output(self) -> str:
        """The output of the file that carries the scores (or the features)."""
        outputs: list[str] = [o.name for o in self.graph.view.model.graph.output]
        outputs = [name for name in outputs if name in self.graph.view.dependent]
        if not outputs:
            raise BackboneError(
                f"no output depends on the image input {self.graph.view.input_name!r}."
            )
        # Of networks that compare images with texts, the features of images.
        alone = [name for name in outputs if not self.graph.view.other_inputs(name)]
        outputs = alone or outputs
        classifiers = [n for n in outputs if self._classifier_nodes(n)]
        # Auxiliary classifiers of training stand before the real one.
        deepest = sorted(classifiers, key=lambda n: self.graph.view.producer[n])
        return deepest[-1] if deepest else outputs[0]

    def _classifier_nodes(self, output: str) -> list[int]:
        """The last weighted nodes, behind which only scores are left; else []."""
        shape = self.graph.shape(output)
        if not shape or sum(dim > 1 for dim in shape[1:]) > 1:
            return []  # a map or tokens: features, not scores
        found: list[int] = []
        waiting, softmax, relu = [output], False, False
        while waiting:
            name = waiting.pop()
            index = self.graph.view.producer.get(name)
            if index is None:
                return []
            op, data = self.graph.op(index), self.graph.view.data_inputs(index)
            softmax |= op in ("Softmax", "LogSoftmax", "Sigmoid", "Exp")
            if op in WEIGHTED and len(data) == 1:
                features = relu and not softmax and self._could_be_features(name)
                if features or not self._is_fully_connected(index):
                    return []
                found.append(index)
            elif op in JOINS_SCORES or (op in AFTER_SCORES and len(data) == 1):
                relu |= op in ("Relu", "Clip")
                waiting.extend(data)
            elif self._is_step_of_softmax(index) or self._selects_scores(index):
                waiting.append(data[0])
            else:
                return []
        # Layers that read each other are parts of a block whose branches are added.
        behind = self.graph.view.ancestors(
            name for index in found for name in self.graph.view.data_inputs(index)
        )
        return found if behind.isdisjoint(found) else []

    def _could_be_features(self, name: str) -> bool:
        """Whether a rectified product is wide like a layer, not like a label set."""
        shape = self.graph.shape(name)
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
        # Divided by its sum, only an exponential is a score; features may be too.
        exponential = made is not None and self.graph.op(made) == "Exp"
        own = self.graph.view.data_inputs(by) == data[:1]
        return own and (op == "Sub" or exponential)

    def _selects_scores(self, index: int) -> bool:
        """Whether a node leaves out classes, as opposed to tokens or places."""
        data = self.graph.view.data_inputs(index)
        if self.graph.op(index) not in ("Gather", "Slice") or len(data) != 1:
            return False
        return sum(dim > 1 for dim in self.graph.shape(data[0])[1:]) <= 1

    def _is_fully_connected(self, index: int) -> bool:
        """Whether a product sees all of one place, or of all places."""
        node = self.graph.view.nodes[index]
        if "Conv" not in node.op_type:
            return True
        if set(self.graph.shape(node.output[0])[2:]) == {1}:
            return True
        return set(self.graph.kernel(index)) <= {1}

    @cached_property
    def tensor(self) -> str:
        """What the classifier reads; for a file without one, its output."""
        heads = self._classifier_nodes(self.output)
        if not heads:
            return self.output
        if len(heads) == 1:
            (name,) = self.graph.view.data_inputs(heads[0])
            return name
        # Several heads: what all of them read, or what each of them reads.
        first = min(heads)
        cuts = self.graph.view.cut_tensors(self.output)
        before = [c for c in cuts if self.graph.view.producer[c] < first]
        common = [c for c in before if self._feeds_all(c, heads)]
        if common and not self._learns_between(common[-1], heads):
            return common[-1]
        joined = joined_name(self.output)
        if joined in self.graph.view.dependent:
            return joined
        return common[-1] if common else self.output

    @cached_property
    def end(self) -> str:
        """The tensor to which the network is walked: the output, or what joins heads.

        Nothing reads what joins several heads, so that no way to the output meets it.
        """
        joined = joined_name(self.output)
        return joined if self.tensor == joined else self.output

    def _feeds_all(self, name: str, heads: list[int]) -> bool:
        index = self.graph.view.producer[name]
        view = self.graph.view
        return all(index in view.ancestors(view.data_inputs(head)) for head in heads)

    def _learns_between(self, name: str, heads: list[int]) -> bool:
        """Whether heads learned layers of their own behind a tensor."""
        view = self.graph.view
        read = [source for head in heads for source in view.data_inputs(head)]
        behind = view.ancestors(read) - view.ancestors([name])
        return any(self.graph.op(i) in WEIGHTED and view.data_inputs(i) for i in behind)
