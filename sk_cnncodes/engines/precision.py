"""Convert code graphs to float16; helpers shared by all lower precisions."""

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

# Prefixes of the tensors that a code graph adds to its network, and of its outputs.
# They stay in float32: normalisation of the pixels, pooling and norm.
CODE_PREFIX = "sk_cnncodes/"
CODE_OUTPUT = "codes_"


def to_float16(model: bytes) -> bytes:
    """Convert a code graph to float16.

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
    """Whether a node belongs to the code graph rather than to its network."""
    return any(name.startswith((CODE_PREFIX, CODE_OUTPUT)) for name in node.output)


def fused_graph(model: bytes, opset: int = 1) -> onnx.ModelProto:
    """Fold the constants of a code graph, and fuse normalisations into weights.

    An unfused normalisation divides by variances that low precisions cannot represent.

    Parameters
    ----------
    model : bytes
        A serialised code graph in float32.
    opset : int, default=1
        Minimum version of the default opset.

    Returns
    -------
    onnx.ModelProto
        With named nodes and inferred tensor types.

    Raises
    ------
    BackboneError
        If it cannot be converted to that opset.
    """
    import onnx
    import onnx.version_converter

    options = session_options(n_threads=1)  # nothing is run
    level = import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.graph_optimization_level = level
    # Not a temporary folder: an interrupt during its removal would leave it behind.
    number, path = tempfile.mkstemp(prefix="sk_cnncodes-", suffix=".onnx")
    try:
        os.close(number)
        options.optimized_model_filepath = path
        make_session(model, options)
        fused = onnx.load_from_string(Path(path).read_bytes())
    finally:
        os.unlink(path)  # noqa: PTH108 - in one step
    # ONNX Runtime declares all opset domains that it knows.
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
