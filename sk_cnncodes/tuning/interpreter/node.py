"""TailNode: an ONNX node as the functions that compute it see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class TailNode:
    """An ONNX node, with plain values as attributes.

    Attributes
    ----------
    operator : str
        The operator, with its domain if that is not the default one.
    name : str
        Its name in the file; empty if it has none.
    inputs, outputs : tuple of str
        Names of tensors; empty for those that are left out.
    attributes : dict
        By name; text is decoded.
    opset : int
        Version of the default operator set.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    attributes: dict[str, Any] = field(default_factory=dict)

    def get(self, attribute: str, default: Any = None) -> Any:
        """Value of an attribute, or a default."""
        return self.attributes.get(attribute, default)

    @property
    def title(self) -> str:
        """Operator and name, in messages."""
        return f"{self.operator} ({(self.name or self.outputs[0])!r})"


def read_node(node: onnx.NodeProto, opset: int) -> TailNode:
    """Read a node of a model's main graph."""
    import onnx

    attributes = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        attributes[attribute.name] = (
            value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        )
    operator = node.op_type
    if node.domain not in ("", "ai.onnx"):
        operator = f"{node.domain}.{operator}"
    return TailNode(
        operator, node.name, (*node.input,), (*node.output,), opset, attributes
    )
