"""HeadGraph: an ONNX graph that grows node by node, or by whole models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.exceptions import ExportError

if TYPE_CHECKING:
    import onnx

INPUT = "codes"
# Name, element type and shape of an output.
Output = tuple[str, int, list[int | str]]


class HeadGraph:
    """Nodes of an ONNX model that grows from its input to its outputs.

    Parameters
    ----------
    opset : int
        Version of the default operator set.
    """

    def __init__(self, opset: int) -> None:
        import onnx

        self.opset = opset
        self.graph = onnx.GraphProto(name="head")
        self._opsets = {"": opset}
        self._ir_version = 4
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"sk_cnncodes/head/{self._count}"

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        name = self._name()
        array = np.asarray(value, dtype)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any
    ) -> str:
        import onnx

        output = output or self._name()
        self.graph.node.append(
            onnx.helper.make_node(op_type, list(inputs), [output], **attributes)
        )
        return output

    def model(self, piece: onnx.ModelProto, tensor: str) -> list[str]:
        """Add the nodes of a model that reads `tensor`; the names of its outputs."""
        import onnx.compose

        piece = at_opset(piece, self.opset)
        piece = onnx.compose.add_prefix(piece, f"{self._name()}/")
        self.node("Identity", tensor, output=piece.graph.input[0].name)
        self.graph.node.extend(piece.graph.node)
        self.graph.initializer.extend(piece.graph.initializer)
        for entry in piece.opset_import:
            version = max(entry.version, self._opsets.get(entry.domain, 1))
            self._opsets[entry.domain] = version
        self._ir_version = max(self._ir_version, piece.ir_version)
        return [value.name for value in piece.graph.output]

    def finish(self, n_features: int, outputs: dict[str, Output]) -> onnx.ModelProto:
        """The model; `outputs` are tensors, element types and shapes by their names."""
        import onnx

        self.graph.input.append(
            onnx.helper.make_tensor_value_info(
                INPUT, onnx.TensorProto.FLOAT, ["N", n_features]
            )
        )
        for name, (tensor, element, shape) in outputs.items():
            self.node("Identity", tensor, output=name)
            self.graph.output.append(
                onnx.helper.make_tensor_value_info(name, element, shape)
            )
        model = onnx.helper.make_model(
            self.graph,
            opset_imports=[
                onnx.helper.make_opsetid(*pair) for pair in self._opsets.items()
            ],
        )
        model.ir_version = self._ir_version
        return model


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A model at a version of the default operator set, each set imported once.

    Raises
    ------
    ExportError
        If it is newer, or onnx cannot convert it.
    """
    import onnx
    import onnx.version_converter

    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        versions[domain] = max(entry.version, versions.get(domain, 1))
    del model.opset_import[:]
    model.opset_import.extend(
        onnx.helper.make_opsetid(*pair) for pair in versions.items()
    )
    found = versions.get("", opset)
    if found > opset:
        raise ExportError(f"it needs opset {found}, and the backbone has {opset}")
    if found == opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:
        raise ExportError(
            f"onnx cannot raise it from opset {found} to {opset} ({first_line(error)})"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line without its full stop."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return text.rstrip(".")
