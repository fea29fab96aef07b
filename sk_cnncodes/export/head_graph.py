"""HeadGraph: builds the ONNX graph of the steps after the codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.graphs.builder import GraphBuilder, convert_opset, merge_opsets

if TYPE_CHECKING:
    import onnx

INPUT = "codes"
# Name, element type and shape of an output.
Output = tuple[str, int, list[int | str]]


class HeadGraph(GraphBuilder):
    """ONNX model of a head, built from its input to its outputs.

    Parameters
    ----------
    opset : int
        Version of the default operator set.
    """

    def __init__(self, opset: int) -> None:
        import onnx

        super().__init__("sk_cnncodes/head/")
        self.opset = opset
        self._opsets = [onnx.helper.make_opsetid("", opset)]
        self._ir_version = 4

    def model(self, piece: onnx.ModelProto, tensor: str) -> list[str]:
        """Append a model that takes `tensor`; return the names of its outputs."""
        import onnx.compose

        piece = at_opset(piece, self.opset)
        piece = onnx.compose.add_prefix(piece, f"{self.new_name()}/")
        self.node("Identity", tensor, output=piece.graph.input[0].name)
        self.nodes.extend(piece.graph.node)
        self.initializers.extend(piece.graph.initializer)
        self._opsets = merge_opsets(self._opsets, piece.opset_import)
        self._ir_version = max(self._ir_version, piece.ir_version)
        return [value.name for value in piece.graph.output]

    def finish(self, n_features: int, outputs: dict[str, Output]) -> onnx.ModelProto:
        """Return the model; `outputs` maps names to tensors, types and shapes."""
        import onnx

        declared = []
        for name, (tensor, element, shape) in outputs.items():
            self.node("Identity", tensor, output=name)
            declared.append(onnx.helper.make_tensor_value_info(name, element, shape))
        shape = ["N", n_features]
        codes = onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, shape)
        graph = onnx.helper.make_graph(
            self.nodes, "head", [codes], declared, self.initializers
        )
        return onnx.helper.make_model(
            graph, opset_imports=self._opsets, ir_version=self._ir_version
        )


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert a model to a version of the default operator set.

    Raises
    ------
    ExportError
        If the model is newer, or onnx cannot convert it.
    """
    try:
        return convert_opset(model, opset)
    except ValueError as error:
        raise ExportError(str(error)) from error
