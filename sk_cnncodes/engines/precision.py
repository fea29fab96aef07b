"""Code graphs in half precision, and what all lower precisions have in common."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sk_cnncodes.base.exceptions import BackboneError, first_line
from sk_cnncodes.engines.onnxruntime import (
    import_onnxruntime,
    import_tool,
    make_session,
    session_options,
)

if TYPE_CHECKING:
    import onnx

# What names begin with of the tensors that a code graph adds to its network, and of its
# outputs: normalisation of the pixels, pooling and norm stay in float32.
CODE_PREFIX = "sk_cnncodes/"
CODE_OUTPUT = "codes_"


def to_float16(model: bytes) -> bytes:
    """A code graph that computes in float16.

    Normalisation of the pixels, pooling and L2 norm stay in float32.

    Parameters
    ----------
    model : bytes
        A serialised code graph in float32.
    """
    fused = fused_graph(model)
    kept = [node.name for node in fused.graph.node if is_added_by_code_graph(node)]
    converted = import_tool("transformers.float16").convert_float_to_float16(
        fused, keep_io_types=True, node_block_list=kept
    )
    return bytes(converted.SerializeToString())


def is_added_by_code_graph(node: onnx.NodeProto) -> bool:
    """Whether a node was added before or after those of the network."""
    return any(name.startswith((CODE_PREFIX, CODE_OUTPUT)) for name in node.output)


def fused_graph(model: bytes, opset: int = 1) -> onnx.ModelProto:
    """A code graph with constants folded and normalisations fused into weights.

    Unfused, a normalisation divides by variances that short numbers cannot hold.

    Parameters
    ----------
    model : bytes
        A serialised code graph in float32.
    opset : int, default=1
        Oldest version of the default operator set that it may have.

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

    options = session_options(n_threads=1)  # nothing is run
    level = import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.graph_optimization_level = level
    # Not a folder: an interrupt while it is removed would leave it there.
    number, path = tempfile.mkstemp(prefix="sk_cnncodes-", suffix=".onnx")
    try:
        os.close(number)
        options.optimized_model_filepath = path
        make_session(model, options)
        fused = onnx.load_from_string(Path(path).read_bytes())
    finally:
        os.unlink(path)  # noqa: PTH108 - in one step
    # ONNX Runtime imports all domains that it knows.
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
