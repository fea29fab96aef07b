"""Convert pipeline steps with skl2onnx, and compare the results with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.pipeline import Pipeline

from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.engines.devices import CPU, usable_threads
from sk_cnncodes.engines.onnxruntime import load_session
from sk_cnncodes.export.head_graph import HeadGraph

if TYPE_CHECKING:
    import onnx

# Version of the ai.onnx.ml operator set; newer ones deprecate some of its operators.
_ML_OPSET = 3
# Largest error relative to the largest value, and largest share of rows that differ:
# float32 rounding and ties between neighbours stay below; a wrong formula does not.
_TOLERANCE = 1e-3
MAX_DIFFERING_ROWS = 0.05


def used_steps(pipeline: Pipeline) -> list[tuple[str, Any]]:
    """The steps of a pipeline, without None and "passthrough"."""
    return [s for s in pipeline.steps if s[1] is not None and s[1] != "passthrough"]


def flat_steps(steps: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Flatten steps: nested pipelines are replaced by their own steps."""
    flat: list[tuple[str, Any]] = []
    for name, step in steps:
        step = getattr(step, "best_estimator_", step)
        if isinstance(step, Pipeline):
            flat += [(f"{name}__{n}", s) for n, s in flat_steps(used_steps(step))]
        else:
            flat.append((name, step))
    return flat


def converted(
    estimator: Any, rows: np.ndarray, opset: int, *option_sets: dict[str, Any]
) -> onnx.ModelProto:
    """Convert an estimator by skl2onnx, with the first option set that it supports."""
    from skl2onnx import __max_supported_opset__, convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    target = {"": min(opset, __max_supported_opset__), "ai.onnx.ml": _ML_OPSET}
    types = [("x", FloatTensorType([None, rows.shape[1]]))]
    for options in option_sets or ({},):
        try:
            model: onnx.ModelProto = convert_sklearn(
                estimator,
                "piece",
                types,
                target_opset=target,
                options={id(estimator): options} if options else None,
            )
            return model
        except NameError as error:  # an option is not supported
            unsupported = error
    raise unsupported


def add_transformer(graph: HeadGraph, step: Any, tensor: str, rows: np.ndarray) -> str:
    """Add the nodes of a transformer, after comparing them with it on `rows`."""
    piece = converted(step, rows, graph.opset)
    wanted = transformed(step, rows)
    compare(run_model(piece, rows)[0], wanted, "values")
    return graph.model(piece, tensor)[0]


def transformed(step: Any, rows: np.ndarray) -> np.ndarray:
    """Output of a transformer for `rows`, as a dense float32 matrix."""
    output = step.transform(rows)
    output = output.toarray() if hasattr(output, "toarray") else output
    return np.asarray(output, np.float32)


def as_matrix(values: Any) -> np.ndarray:
    """Predictions as a matrix, also if they have one dimension."""
    array: np.ndarray = np.asarray(values)
    return array.reshape(len(array), -1)


def compare(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Compare the output of ONNX nodes with that of scikit-learn.

    Raises
    ------
    ExportError
        If they differ by more than rounding.
    """
    if got.shape != wanted.shape:
        raise ExportError(
            f"its ONNX nodes give {what} of shape {got.shape}, expected {wanted.shape}"
        )
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-6)
    error = np.abs(got - wanted).max(axis=1)
    if not (error <= _TOLERANCE * scale).mean() >= 1 - MAX_DIFFERING_ROWS:
        raise ExportError(
            f"its ONNX nodes give different {what}: largest difference "
            f"{error.max():.3g}, largest value {scale:.3g}, in {len(got)} test rows"
        )


def run_model(model: onnx.ModelProto, rows: np.ndarray) -> list[np.ndarray]:
    """Run an ONNX model with one input on the CPU."""
    session = load_session(model.SerializeToString(), CPU, usable_threads(-1))
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: rows})
    return outputs
