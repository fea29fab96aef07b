"""Building ONNX graphs, and their operator sets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.base.exceptions import first_line

if TYPE_CHECKING:
    import onnx


class GraphBuilder:
    """Collects nodes and initializers; every method returns the name of a tensor.

    Parameters
    ----------
    prefix : str
        Prefix of all names, unused in the graph that they are added to.
    """

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix = prefix
        self._count = 0

    def new_name(self) -> str:
        """Return an unused name."""
        self._count += 1
        return f"{self._prefix}{self._count}"

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add an initializer and return its name."""
        from onnx import numpy_helper

        name = self.new_name()
        array = np.asarray(value, dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any
    ) -> str:
        """Add a node with one output and return the name of the output."""
        output = output or self.new_name()
        self.node_of_outputs(op_type, inputs, [output], **attributes)
        return output

    def node_of_outputs(
        self,
        op_type: str,
        inputs: Iterable[str],
        outputs: Iterable[str],
        **attributes: Any,
    ) -> None:
        """Add a node with named outputs."""
        import onnx

        node = onnx.helper.make_node(op_type, [*inputs], [*outputs], **attributes)
        self.nodes.append(node)


def merge_opsets(
    *imports: Iterable[onnx.OperatorSetIdProto],
) -> list[onnx.OperatorSetIdProto]:
    """Merge operator sets of several models: the newest version per domain."""
    import onnx

    versions: dict[str, int] = {}
    for each in imports:
        for entry in each:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            versions[domain] = max(entry.version, versions.get(domain, 1))
    return [onnx.helper.make_opsetid(*pair) for pair in versions.items()]


def convert_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert a model to a version of the default operator set; merge its imports.

    Raises
    ------
    ValueError
        If the model is newer, or onnx cannot convert it.
    """
    import onnx.version_converter

    imports = merge_opsets(model.opset_import)
    del model.opset_import[:]
    model.opset_import.extend(imports)
    found = next((entry.version for entry in imports if entry.domain == ""), opset)
    if found > opset:
        raise ValueError(f"it needs opset {found}, but the backbone has {opset}")
    if found == opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:
        raise ValueError(
            f"onnx cannot convert it from opset {found} to {opset} "
            f"({first_line(error).rstrip('.')})"
        ) from error
