"""Code graphs in half precision: 16-bit weights and activations between 32-bit ends."""

from __future__ import annotations

from sk_cnncodes.fusion import fused_graph, is_end
from sk_cnncodes.onnxruntime_engine import import_tool


def to_float16(model: bytes) -> bytes:
    """A code graph that computes in float16.

    Normalisation of the pixels, pooling and L2 norm stay in float32.

    Parameters
    ----------
    model : bytes
        A serialised code graph in float32.
    """
    fused = fused_graph(model)
    ends = [node.name for node in fused.graph.node if is_end(node)]
    converted = import_tool("transformers.float16").convert_float_to_float16(
        fused, keep_io_types=True, node_block_list=ends
    )
    return bytes(converted.SerializeToString())
