"""ChannelAxes: which axis of a map is that of its channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sk_cnncodes.graphs.operators import POINTWISE
from sk_cnncodes.layers.typed_graph import TypedGraph

if TYPE_CHECKING:
    import onnx

# Pointwise operators that may change the rank, or leave out the channels.
_LOSES_AXES = frozenset(["Flatten", "ReduceMean", "Reshape", "Squeeze", "Unsqueeze"])


class ChannelAxes:
    """Finds the channels of rank-4 tensors by the operators around them.

    Parameters
    ----------
    graph : TypedGraph
    """

    def __init__(self, graph: TypedGraph) -> None:
        self.graph = graph
        self._known: dict[str, int] = {}

    def axis(self, name: str) -> int:
        """Axis of the channels in a tensor with its batch: 1 or the last."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> int:
        for find in (self._from_producers, self._from_readers):
            axis = find(name)
            if axis is not None:
                return axis
        shape = self.graph.shape(name)
        # No operator tells. Rows and columns are mostly equal, channels differ.
        return 3 if shape[1] == shape[2] != shape[3] else 1

    def _from_producers(self, name: str) -> int | None:
        view = self.graph.view
        waiting, seen = [(name, [0, 1, 2, 3])], {name}
        while waiting:
            where, axes = waiting.pop()
            if where == view.input_name:
                return axes.index(1 if self.graph.shape(where)[1] in (1, 3) else 3)
            if where in self._known:
                return axes.index(self._known[where])
            index = view.producer[where]
            made = self._axis_of_operator(index)
            if made is not None:
                return axes.index(made)
            if self.graph.op(index) == "Reshape":
                continue
            if self.graph.op(index) == "Transpose":
                order = self._order(index)
                axes = [order[axis] for axis in axes]
            for source in reversed(view.data_inputs(index)):  # the first is next
                if source not in seen and self.graph.may_have_rank(source, 4):
                    seen.add(source)
                    waiting.append((source, axes))
        return None

    def _from_readers(self, name: str) -> int | None:
        view = self.graph.view
        waiting, seen = [(name, [0, 1, 2, 3])], {name}
        while waiting:
            where, axes = waiting.pop()
            for index in view.readers.get(where, []):
                node = view.nodes[index]
                is_data = node.input[0] == where
                read = self._axis_of_operator(index) if is_data else None
                if read is not None:
                    return axes[read]
                op, made = self.graph.op(index), node.output[0]
                if op not in POINTWISE - _LOSES_AXES or made in seen:
                    continue
                seen.add(made)
                order = self._order(index) if op == "Transpose" else range(4)
                waiting.append((made, [axes[axis] for axis in order]))
        return None

    def _axis_of_operator(self, index: int) -> int | None:
        """The axis on which an operator has channels; None where any would do."""
        node, op = self.graph.view.nodes[index], self.graph.op(index)
        if "Conv" in op or "Pool" in op or op in ("BatchNormalization", "LRN"):
            return 3 if _has_channels_last(node) else 1
        return 3 if op in ("MatMul", "Gemm", "LayerNormalization") else None

    def _order(self, index: int) -> list[int]:
        attributes = self.graph.view.nodes[index].attribute
        return next(list(a.ints) for a in attributes if a.name == "perm")


def _has_channels_last(node: onnx.NodeProto) -> bool:
    """Of operators of ONNX Runtime that optimised files hold."""
    stated = any(a.name == "channels_last" and a.i for a in node.attribute)
    return stated or node.op_type.startswith("Nhwc")
