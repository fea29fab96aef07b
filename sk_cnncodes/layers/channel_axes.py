"""ChannelAxes: the channel axis of feature maps."""

from __future__ import annotations

from sk_cnncodes.graphs.operators import POINTWISE
from sk_cnncodes.layers.typed_graph import TypedGraph, has_channels_last

# Pointwise operators that may change the rank or drop the channels.
_LOSES_AXES = frozenset(["Flatten", "ReduceMean", "Reshape", "Squeeze", "Unsqueeze"])


class ChannelAxes:
    """Finds the channel axis of rank-4 tensors from the operators around them.

    Parameters
    ----------
    graph : TypedGraph
    """

    def __init__(self, graph: TypedGraph) -> None:
        self.graph = graph
        self._known: dict[str, int] = {}

    def axis(self, name: str) -> int:
        """Channel axis of a tensor, counted with the batch dimension: 1 or 3."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> int:
        for find in (self._from_producers, self._from_readers):
            axis = find(name)
            if axis is not None:
                return axis
        shape = self.graph.shape(name)
        # No operator decides. Maps are mostly square; the number of channels differs.
        return 3 if shape[1] == shape[2] != shape[3] else 1

    def _from_producers(self, name: str) -> int | None:
        """Axis from the operators before a tensor; None if none of them decides."""
        view = self.graph.view
        pending, seen = [(name, [0, 1, 2, 3])], {name}
        while pending:
            tensor, axes = pending.pop()
            if tensor == view.input_name:
                return axes.index(1 if self.graph.shape(tensor)[1] in (1, 3) else 3)
            if tensor in self._known:
                return axes.index(self._known[tensor])
            index = view.producer[tensor]
            axis = self._axis_of_operator(index)
            if axis is not None:
                return axes.index(axis)
            if self.graph.op(index) == "Reshape":
                continue
            if self.graph.op(index) == "Transpose":
                order = self._order(index)
                axes = [order[axis] for axis in axes]
            for source in reversed(view.data_inputs(index)):  # visit the first first
                if source not in seen and self.graph.may_have_rank(source, 4):
                    seen.add(source)
                    pending.append((source, axes))
        return None

    def _from_readers(self, name: str) -> int | None:
        """Axis from the operators after a tensor; None if none of them decides."""
        view = self.graph.view
        pending, seen = [(name, [0, 1, 2, 3])], {name}
        while pending:
            tensor, axes = pending.pop()
            for index in view.readers.get(tensor, []):
                node = view.nodes[index]
                is_data = node.input[0] == tensor
                axis = self._axis_of_operator(index) if is_data else None
                if axis is not None:
                    return axes[axis]
                op, output = self.graph.op(index), node.output[0]
                if op not in POINTWISE - _LOSES_AXES or output in seen:
                    continue
                seen.add(output)
                order = self._order(index) if op == "Transpose" else range(4)
                pending.append((output, [axes[axis] for axis in order]))
        return None

    def _axis_of_operator(self, index: int) -> int | None:
        """The channel axis that an operator requires; None if it requires none."""
        node, op = self.graph.view.nodes[index], self.graph.op(index)
        if "Conv" in op or "Pool" in op or op in ("BatchNormalization", "LRN"):
            return 3 if has_channels_last(node) else 1
        return 3 if op in ("MatMul", "Gemm", "LayerNormalization") else None

    def _order(self, index: int) -> list[int]:
        """The permutation of a Transpose."""
        attributes = self.graph.view.nodes[index].attribute
        return next(list(a.ints) for a in attributes if a.name == "perm")
