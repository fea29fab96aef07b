"""Types of tensors that shape inference does not find, from a run of the network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from sk_cnncodes.base.exceptions import BackboneError, first_line
from sk_cnncodes.engines.devices import usable_threads
from sk_cnncodes.engines.onnxruntime import (
    import_onnxruntime,
    make_session,
    session_options,
)
from sk_cnncodes.graphs.checks import check_domains, check_loops
from sk_cnncodes.graphs.reading import embed_external_data, read_model
from sk_cnncodes.graphs.view import TensorType, cut_model

if TYPE_CHECKING:
    import onnx


def measured_types(
    path: Path,
    known: Mapping[str, TensorType | None],
    image: onnx.ValueInfoProto,
    shape: tuple[int, ...],
) -> dict[str, TensorType]:
    """Measure the types of tensors by running a network once on black images.

    For tensors of known element type, the network outputs only the shape.

    Parameters
    ----------
    path : Path
        The ONNX file.
    known : mapping of str to TensorType or None
        The tensors, each with the type that shape inference found, if any.
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

    names = list(known)
    cut = cut_model(read_model(path), names)
    embed_external_data(cut, path.parent)
    check_loops(cut.graph)
    check_domains(cut.graph)
    outputs = []
    cut.graph.ClearField("output")
    taken = {name for node in cut.graph.node for name in node.output}
    taken |= {tensor.name for tensor in cut.graph.initializer}
    numbers = (f"sk_cnncodes/shape/{number}" for number in count())
    free = (name for name in numbers if name not in taken)
    for name, type_ in known.items():
        output = name
        if type_ is not None and type_.element:
            output = next(free)
            cut.graph.node.append(onnx.helper.make_node("Shape", [name], [output]))
        cut.graph.output.add(name=output)
        outputs.append(output)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    options = session_options(n_threads=usable_threads(-1))
    # Optimisation takes long on large graphs and does not pay off for one run.
    levels = import_onnxruntime().GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL
    options.enable_mem_pattern = options.enable_mem_reuse = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = make_session(cut.SerializeToString(), options)
        # Tensors computed from weights alone need no image.
        read = {value.name for value in cut.graph.input} & {image.name}
        arrays = session.run(outputs, dict.fromkeys(read, np.zeros(shape, dtype)))
    except Exception as error:
        listed = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        raise BackboneError(
            f"its tensors {listed} cannot be computed ({first_line(error)})."
        ) from error
    types = {}
    for (name, type_), output, array in zip(
        known.items(), outputs, arrays, strict=True
    ):
        if output != name and type_ is not None:
            types[name] = TensorType(type_.element, tuple(map(int, array)))
        elif isinstance(array, np.ndarray):
            element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            types[name] = TensorType(element, array.shape)
    return types
