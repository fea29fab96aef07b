"""The penultimate tensor: the input of a network's classifier."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.graphs.classifiers import find_classifiers
from sk_cnncodes.graphs.ensemble_heads import ENSEMBLE_OF_OUTPUTS, ensemble_tensor
from sk_cnncodes.graphs.operators import (
    CONTAINERS,
    FIXED_NORMALISATIONS,
    LAYOUT_OPS,
    LINEAR_OPS,
)
from sk_cnncodes.layers.feature_outputs import (
    FeatureOutputs,
    is_embedding,
    pools_positions,
)
from sk_cnncodes.layers.layer import LayerGraph
from sk_cnncodes.layers.scores import ScoreRules

# Operators without weights that a head may begin with.
_BARE = LAYOUT_OPS | frozenset(["Clip", "Elu", "LeakyRelu", "Relu", "Selu", "Tanh"])


class ClassifierWalk:
    """Walks from the outputs of a file back to the input of its classifier.

    Softmax, reshapes, poolings and biases are skipped up to the first fully connected
    layer or equivalent convolution. Its input is the penultimate tensor.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self._scores = ScoreRules(graph)

    @cached_property
    def _outputs(self) -> list[str]:
        """The outputs that depend on the image, on it alone where there are such."""
        stated: list[str] = [o.name for o in self.graph.view.model.graph.output]
        outputs = [tensor for name in stated for tensor in self._elements(name)]
        outputs = [name for name in outputs if name in self.graph.view.image_dependent]
        if not outputs:
            raise BackboneError(
                f"no output depends on the image input {self.graph.view.input_name!r}."
            )
        # Image-text models: prefer the outputs that depend on the image only.
        image_only = [n for n in outputs if not self.graph.view.other_inputs(n)]
        return image_only or outputs

    @cached_property
    def output(self) -> str:
        """The output that holds the scores, or the features if there are none."""
        if self.features is not None:
            return self.features.tensor
        classifiers = [name for name, found in self._classifiers.items() if found]
        if len(classifiers) == 1:
            return classifiers[0]
        # Auxiliary classifiers have fewer layers before them than the main one.
        return max(classifiers, key=self._depth)

    def _depth(self, output: str) -> tuple[int, int, int]:
        """Convolutions and linear layers before the classifiers of an output."""
        layers = self._learned(self._before(self._classifiers[output]))
        convolutions = [i for i in layers if not self._scores.is_fully_connected(i)]
        return len(convolutions), len(layers), self.graph.view.producer[output]

    @cached_property
    def features(self) -> FeatureOutputs | None:
        """The outputs of a file without a classifier; None if it has one."""
        if any(self._classifiers.values()):
            return None
        return FeatureOutputs(self.graph, self._outputs)

    @cached_property
    def _heads(self) -> dict[int, str]:
        """The classifiers of all outputs but auxiliary ones, with their outputs."""
        heads = dict[int, str]()
        if self.features is not None:
            return heads
        main = self._classifiers[self.output]
        before_main = self._before(main)
        for output, found in self._classifiers.items():
            if output == self.output or self._is_task(found, main, before_main):
                heads.update(dict.fromkeys(found, output))
        return heads

    def _is_task(
        self, heads: list[int], main: list[int], before_main: set[int]
    ) -> bool:
        """Whether classifiers are another task than the main ones, as age and gender.

        An auxiliary classifier has the layers of a head where the main one has a part
        of the trunk. A classifier of an embedding is no other task than the embedding.
        """
        before = self._before(heads)
        if (
            not heads
            or not before.isdisjoint(main)
            or not before_main.isdisjoint(heads)
        ):
            return False
        own = self._learned(before - before_main)
        others = self._learned(before_main - before)
        convolves = [
            any(not self._scores.is_fully_connected(i) for i in layers)
            for layers in (own, others)
        ]
        few, many = sorted([len(own), len(others)])
        return convolves[0] == convolves[1] and many <= 2 * few + 1

    @cached_property
    def _classifiers(self) -> dict[str, list[int]]:
        """Indices of the classifier layers before each output, if any."""
        return {name: self._find_classifiers(name) for name in self._outputs}

    def _find_classifiers(self, output: str) -> list[int]:
        """Indices of the classifier layers before an output; [] if there are none."""
        if not self._is_flat(output) or is_embedding(self.graph, output):
            return []  # a map, tokens or an embedding: features, not scores
        view = self.graph.view
        found = find_classifiers(
            output,
            view.producer.get,
            self.graph.op,
            view.data_inputs,
            self._scores.is_classifier,
            self._scores.scores_read,
            self._scores.compares,
        )
        # Layers that depend on each other are branches of one residual block.
        upstream = view.ancestors(n for i in found for n in view.data_inputs(i))
        is_scores = upstream.isdisjoint(found) and all(
            pools_positions(self.graph, index, output) for index in found
        )
        return found if is_scores else []

    def _is_flat(self, output: str) -> bool:
        """Whether an output is one vector per image."""
        shape = self.graph.shape(output)
        if not shape:  # not known for scores of images against texts
            return bool(self.graph.view.other_inputs(output))
        is_batch = shape[0] == self.graph.batch  # otherwise rows may be positions
        return sum(dim > 1 for dim in shape[1 if is_batch else 0 :]) <= 1

    def _elements(self, output: str) -> list[str]:
        """The tensors in an output that is a sequence or a map; itself otherwise."""
        view, found, waiting = self.graph.view, list[str](), [output]
        seen = {output}
        while waiting:
            name = waiting.pop(0)
            index = view.producer.get(name)
            inside = index is not None and self.graph.op(index) in CONTAINERS
            if index is None or not inside or self.graph.shape(name):
                found.append(name)
                continue
            waiting += [each for each in view.data_inputs(index) if each not in seen]
            seen.update(waiting)
        return found

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
        if self.features is not None:
            return self.features.tensor, self.features.rule
        heads, view = [*self._heads], self.graph.view
        read = [self._read(head) for head in heads]
        if len(set(map(self._computation, read))) == 1:
            classifier = view.nodes[heads[0]]
            what = f"{classifier.op_type} {classifier.output[0]!r}"
            rule = f"input of the classifier ({what})"
            if len(heads) > 1:
                rule = f"common input of all {len(heads)} classifiers"
            main = self._read(self._classifiers[self.output][0])
            name, before = self._before_normalisation(main)
            return name, f"{rule}{before}"
        # Several inputs: what they have in common, or their concatenation.
        which = f"{len(heads)} classifiers"
        outputs = list(dict.fromkeys(self._heads.values()))
        if len(outputs) > 1:
            listed = ", ".join(map(repr, outputs[:5]))
            which += f" of the outputs {listed}{', ...' if len(outputs) > 5 else ''}"
        common = self._common
        after = self._before(heads) - view.ancestors(common[-1:])
        if common and not self._learned(after):
            name, before = self._before_normalisation(common[-1])
            return name, f"common input of all {which}{before}"
        if self._concatenated is not None:
            return self._concatenated, f"concatenated inputs of {which}"
        if common:
            return common[-1], f"last common dominator of all {which}"
        return self.output, f"the output: {which} without a common input"

    def _read(self, head: int) -> str:
        """The tensor that a classifier reads."""
        return self._scores.read(head)

    def _computation(self, name: str) -> tuple[object, ...]:
        """What computes a tensor from the last tensor before it with several readers.

        Heads may each begin with the same Relu or Flatten; what they read is equal.
        """
        view, steps = self.graph.view, list[object]()
        while True:
            index = view.producer.get(name)
            data = [] if index is None else view.data_inputs(index)
            if index is None or len(data) != 1 or self.graph.op(index) not in _BARE:
                return (name, *steps)
            node = view.nodes[index]
            constants = [
                str(view.constant_value(n)) for n in node.input if n != data[0]
            ]
            attributes = [a.SerializeToString() for a in node.attribute]
            steps += [node.op_type, *attributes, *constants]
            name = data[0]

    @cached_property
    def _concatenated(self) -> str | None:
        """The tensor that joins what all classifiers read; None if there is none."""
        view, outputs = self.graph.view, set(self._heads.values())
        name = ensemble_tensor(*outputs) if len(outputs) == 1 else ENSEMBLE_OF_OUTPUTS
        if name not in view.image_dependent:
            return None
        parts = view.data_inputs(view.producer[name])
        joined = {view.data_inputs(view.producer[part])[0] for part in parts}
        return name if joined == set(map(self._read, self._heads)) else None

    def _before_normalisation(self, name: str) -> tuple[str, str]:
        """The code whose batch normalisation a classifier begins with, and the rule.

        The normalisation of a hidden layer's output belongs to that layer.
        """
        view = self.graph.view

        def producer(name: str) -> int | None:
            """The node that computes a tensor, before its rearrangements."""
            index = view.producer.get(name)
            while index is not None and self.graph.op(index) in LAYOUT_OPS:
                index = view.producer.get(view.data_inputs(index)[0])
            return index

        index = producer(name)
        if index is None or self.graph.op(index) not in FIXED_NORMALISATIONS:
            return name, ""
        code = view.data_inputs(index)[0]
        before = producer(code)
        if before is not None and self.graph.op(before) == "Add":  # a bias
            before = producer(view.data_inputs(before)[0])
        is_hidden = before is None or self.graph.op(before) in LINEAR_OPS
        if is_hidden or sum(dim > 1 for dim in self.graph.shape(code)[1:]) > 1:
            return name, ""
        return code, f", before its normalisation ({view.nodes[index].output[0]!r})"

    @cached_property
    def end(self) -> str:
        """The tensor at which the chain of dominators ends.

        Usually the output. The concatenation of several heads' inputs is read by no
        node, so it is not on a path to the output and ends the chain itself.
        """
        is_concatenated = self._heads and self.tensor == self._concatenated
        return self.tensor if is_concatenated else self.output

    def _before(self, heads: list[int]) -> set[int]:
        """The nodes that classifiers depend on."""
        return self.graph.view.ancestors(map(self._read, heads))

    def _learned(self, nodes: Iterable[int]) -> list[int]:
        """The linear layers among nodes."""
        return [
            i
            for i in nodes
            if self.graph.op(i) in LINEAR_OPS and self.graph.view.data_inputs(i)
        ]

    @cached_property
    def _common(self) -> list[str]:
        """Tensors on every path from the image to any of the heads, in order."""
        view = self.graph.view
        if self._concatenated is not None:
            return view.dominators(self._concatenated)[:-1]
        read = dict.fromkeys(map(self._read, self._heads))
        first, *others = (view.dominators(name) for name in read)
        shared = set(first).intersection(*others)
        return [name for name in first if name in shared]
