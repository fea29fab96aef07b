"""Steps of a pipeline -> ONNX by skl2onnx, compared with the steps themselves."""

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

# Operator set of the nodes of trees, SVMs and the like; newer ones deprecate some.
_ML_OPSET = 3
# Shares of the largest value, and of the rows: float32 sums and ties between
# neighbours stay below, a wrong formula does not.
_TOLERANCE = 1e-3
ODD_ROWS = 0.05


def used_steps(pipeline: Pipeline) -> list[tuple[str, Any]]:
    """The steps of a pipeline that do something."""
    return [s for s in pipeline.steps if s[1] is not None and s[1] != "passthrough"]


def flat_steps(steps: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The steps with those of nested pipelines in their places."""
    flat: list[tuple[str, Any]] = []
    for name, step in steps:
        step = getattr(step, "best_estimator_", step)
        if isinstance(step, Pipeline):
            flat += [(f"{name}__{n}", s) for n, s in flat_steps(used_steps(step))]
        else:
            flat.append((name, step))
    return flat


def converted(
    estimator: Any, rows: np.ndarray, opset: int, *choices: dict[str, Any]
) -> onnx.ModelProto:
    """What skl2onnx makes of an estimator, with the first options that it knows."""
    from skl2onnx import __max_supported_opset__, convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    target = {"": min(opset, __max_supported_opset__), "ai.onnx.ml": _ML_OPSET}
    types = [("x", FloatTensorType([None, rows.shape[1]]))]
    for options in choices or ({},):
        try:
            model: onnx.ModelProto = convert_sklearn(
                estimator,
                "piece",
                types,
                target_opset=target,
                options={id(estimator): options} if options else None,
            )
            return model
        except NameError as error:  # an option that it does not know
            unknown = error
    raise unknown


def add_transformer(graph: HeadGraph, step: Any, tensor: str, rows: np.ndarray) -> str:
    """Nodes of a transformer, compared with it on some rows."""
    piece = converted(step, rows, graph.opset)
    wanted = transformed(step, rows)
    compare(run_model(piece, rows)[0], wanted, "values")
    return graph.model(piece, tensor)[0]


def transformed(step: Any, rows: np.ndarray) -> np.ndarray:
    """What a transformer makes of rows, as a float32 matrix."""
    found = step.transform(rows)
    found = found.toarray() if hasattr(found, "toarray") else found
    return np.asarray(found, np.float32)


def as_matrix(values: Any) -> np.ndarray:
    """Predictions of one or of several columns as a matrix."""
    array: np.ndarray = np.asarray(values)
    return array.reshape(len(array), -1)


def compare(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Compare what ONNX nodes give with what scikit-learn gives.

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
    if not (error <= _TOLERANCE * scale).mean() >= 1 - ODD_ROWS:
        raise ExportError(
            f"its ONNX nodes give other {what}: largest difference {error.max():.3g} "
            f"of {scale:.3g} in {len(got)} test rows"
        )


def run_model(model: onnx.ModelProto, rows: np.ndarray) -> list[np.ndarray]:
    """Outputs of an ONNX model of one input."""
    session = load_session(model.SerializeToString(), CPU, usable_threads(-1))
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: rows})
    return outputs
