"""Graphs made simpler before their precision is lowered."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sk_cnncodes.exceptions import BackboneError, first_line
from sk_cnncodes.onnxruntime_engine import import_onnxruntime, make_session

if TYPE_CHECKING:
    import onnx


def fused_graph(model: bytes, opset: int = 1) -> onnx.ModelProto:
    """A code graph with constants folded and normalisations fused into weights.

    Unfused, a normalisation divides by variances that short numbers cannot hold.

    Parameters
    ----------
    model : bytes
        A serialised code graph in float32.
    opset : int, default=1
        The version of the standard operators that it shall have at least.

    Returns
    -------
    onnx.ModelProto
        Its nodes are named, and the types of its tensors inferred.

    Raises
    ------
    BackboneError
        If it cannot be converted to that version.
    """
    import onnx
    import onnx.version_converter

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1  # nothing is run
    # No folder: an interrupt while it is removed would leave it there.
    number, path = tempfile.mkstemp(prefix="sk_cnncodes-", suffix=".onnx")
    try:
        os.close(number)
        options.optimized_model_filepath = path
        make_session(model, options)
        fused = onnx.load_from_string(Path(path).read_bytes())
    finally:
        os.unlink(path)  # noqa: PTH108 - in one step
    # ONNX Runtime writes down all domains that it knows.
    used = {node.domain for node in fused.graph.node} | {""}
    imports = [entry for entry in fused.opset_import if entry.domain in used]
    fused.ClearField("opset_import")
    fused.opset_import.extend(imports)
    if any(entry.domain == "" and entry.version < opset for entry in imports):
        try:
            fused = onnx.version_converter.convert_version(fused, opset)
        except Exception as error:
            raise BackboneError(
                f"the network cannot be converted to opset {opset}, which this "
                f"precision needs ({first_line(error)}). Expected a file exported with "
                f"opset {opset} or later, or precision='float32'."
            ) from error
    for number, node in enumerate(fused.graph.node):
        node.name = f"node_{number}"
    return onnx.shape_inference.infer_shapes(fused)


def is_end(node: onnx.NodeProto) -> bool:
    """Whether a node is one that `sk_cnncodes.codegraph` put before or behind."""
    return any(name.startswith(("sk_cnncodes/", "codes_")) for name in node.output)
