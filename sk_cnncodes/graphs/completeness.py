"""Checks that each node of an ONNX model is given what it reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.graphs.view import constant_names, default_opset, node_reads

if TYPE_CHECKING:
    import onnx


def check_inputs(model: onnx.ModelProto) -> None:
    """Refuse nodes that read tensors which nothing computes, functions included.

    Raises
    ------
    BackboneError
        Naming the tensor.
    """
    for function in model.functions:
        known = {*function.input, ""}
        _check_inputs(function.node, known, f"in its function {function.name!r}, ")
    graph = model.graph
    given = {value.name for value in graph.input} | constant_names(graph)
    _check_inputs(graph.node, given | {""}, "")


def _check_inputs(nodes: Iterable[onnx.NodeProto], known: set[str], where: str) -> None:
    """Compare what nodes, in any order, read with what is known or computed."""
    nodes = list(nodes)
    known = known.union(*(node.output for node in nodes))
    for node in nodes:
        missing = [name for name in node_reads(node) if name not in known]
        if missing:
            raise BackboneError(
                f"{where}the {node.op_type} {list(node.output[:1])} reads "
                f"{missing[0]!r}, which is no input and is computed nowhere. Expected "
                "a complete network: export it again."
            )


def check_given(model: onnx.ModelProto) -> None:
    """Refuse standard operators without an input that they need.

    A call may leave out inputs of a function; what reads them then lacks an input.

    Raises
    ------
    BackboneError
        Naming the operator and its input.
    """
    import onnx

    opset = default_opset(model)
    needed = onnx.defs.OpSchema.FormalParameterOption.Single
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or "" not in node.input:
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError:
            continue  # ONNX Runtime names it
        for given, wanted in zip(node.input, schema.inputs, strict=False):
            if given == "" and wanted.option == needed:
                raise BackboneError(
                    f"its {node.op_type} {list(node.output[:1])} lacks the input "
                    f"{wanted.name!r}, perhaps because the call of a function leaves "
                    "it out. Expected a complete network: export it again."
                )
