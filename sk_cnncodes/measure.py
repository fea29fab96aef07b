"""Types of tensors that shape inference does not find: a run tells them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sk_cnncodes.devices import usable_threads
from sk_cnncodes.exceptions import BackboneError, first_line
from sk_cnncodes.graph import TensorType, cut_model
from sk_cnncodes.model_checks import check_loops
from sk_cnncodes.model_files import embed_external_data, read_model
from sk_cnncodes.onnxruntime_engine import import_onnxruntime, make_session

if TYPE_CHECKING:
    import onnx


def measured_types(
    path: Path, names: list[str], image: onnx.ValueInfoProto, shape: tuple[int, ...]
) -> dict[str, TensorType]:
    """Types of tensors found by running a network once on black images.

    Parameters
    ----------
    path : Path
        The ONNX file.
    names : list of str
        The tensors.
    image : onnx.ValueInfoProto
        The image input.
    shape : tuple of int
        Its shape.

    Raises
    ------
    BackboneError
        If the network does not run.
    """
    import numpy as np
    import onnx

    ort = import_onnxruntime()
    cut = cut_model(read_model(path), names)
    embed_external_data(cut, path.parent)
    check_loops(cut.graph)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.intra_op_num_threads = usable_threads(-1)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # One run does not pay for preparations, which take long on large graphs.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = options.enable_mem_reuse = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = make_session(cut.SerializeToString(), options)
        # What is made of weights alone needs no image.
        read = {value.name for value in cut.graph.input} & {image.name}
        arrays = session.run(names, dict.fromkeys(read, np.zeros(shape, dtype)))
    except Exception as error:
        listed = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        raise BackboneError(
            f"its tensors {listed} cannot be computed ({first_line(error)})."
        ) from error
    return {
        name: TensorType(onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, arrays, strict=True)
    }
