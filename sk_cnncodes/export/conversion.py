"""Convert pipeline steps with skl2onnx, and compare the results with scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from sk_cnncodes.backbones.norms import signed_roots
from sk_cnncodes.base.exceptions import ExportError, first_line
from sk_cnncodes.engines.devices import CPU, usable_threads
from sk_cnncodes.engines.onnxruntime import load_session
from sk_cnncodes.export.head_graph import HeadGraph
from sk_cnncodes.heads.pipeline_models import PipelineModel

if TYPE_CHECKING:
    import onnx

# Version of the ai.onnx.ml operator set; newer ones deprecate some of its operators.
_ML_OPSET = 3
# Largest error relative to the largest value, and largest share of rows that differ:
# float32 rounding and ties between neighbours stay below; a wrong formula does not.
_TOLERANCE = 1e-3
MAX_DIFFERING_ROWS = 0.05


Steps = list[tuple[str, Any]]


@dataclass(frozen=True)
class SideBySide:
    """Steps that each take some of the columns, with their outputs side by side.

    Attributes
    ----------
    parts : list of (slice, steps, weight)
        Columns of the input, the fitted steps after them, and the factor of the output.
    """

    parts: list[tuple[slice, Steps, float]]

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """Transform all parts."""
        outputs = []
        for columns, steps, weight in self.parts:
            part = rows[:, columns]
            for _, step in steps:
                part = transformed(step, part)
            outputs.append(part * np.float32(weight))
        return np.concatenate(outputs, axis=1)

    def add(self, graph: HeadGraph, tensor: str, rows: np.ndarray) -> str:
        """Add the nodes of all parts."""
        outputs = []
        for columns, steps, weight in self.parts:
            index = np.arange(rows.shape[1])[columns]
            output = graph.node("Gather", tensor, graph.constant(index, "i8"), axis=1)
            part = rows[:, columns]
            for name, step in steps:
                with naming(name, step):
                    output = add_transformer(graph, step, output, part)
                    part = transformed(step, part)
            if weight != 1:
                output = graph.node("Mul", output, graph.constant(weight))
            outputs.append(output)
        return graph.node("Concat", *outputs, axis=1)


class SignedRoots:
    """The first step of ``norm="power"``."""

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """The signed square roots of codes."""
        return signed_roots(rows)

    def add(self, graph: HeadGraph, tensor: str, rows: np.ndarray) -> str:
        """Add their nodes, of operators that all operator sets have."""
        positive, negative = (
            graph.node("Sqrt", graph.node("Relu", part))
            for part in (tensor, graph.node("Neg", tensor))
        )
        return graph.node("Sub", positive, negative)


@contextmanager
def naming(name: str, step: Any) -> Iterator[None]:
    """Name the step in errors, and suppress warnings.

    skl2onnx reads parameters that scikit-learn deprecates, and the rows have no feature
    names; the user can change neither.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if isinstance(error, _StepError):  # of a step inside of this one
            raise
        hint = ""
        if not isinstance(error, ExportError):
            hint = (
                " Expected a step that skl2onnx converts, such as StandardScaler, PCA "
                "or Normalizer before LogisticRegression, LinearSVC, SVC or "
                "KNeighborsClassifier."
            )
        raise _StepError(
            f"step {name!r} ({type(step).__name__}) cannot be converted to ONNX: "
            f"{first_line(error).rstrip('.')}.{hint}"
        ) from error


class _StepError(ExportError):
    """An ExportError that names its step."""

    __module__, __qualname__ = ExportError.__module__, ExportError.__qualname__


def unwrapped(estimator: Any) -> Any:
    """The fitted estimator inside of searches, FrozenEstimator and the like."""
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, PipelineModel):
            estimator = estimator.pipeline_
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            return estimator


def used_steps(pipeline: Pipeline) -> Steps:
    """The steps of a pipeline, without None and "passthrough"."""
    return [s for s in pipeline.steps if s[1] is not None and s[1] != "passthrough"]


def flat_steps(steps: Iterable[tuple[str, Any]]) -> Steps:
    """Flatten steps: nested pipelines are replaced by their own steps."""
    flat: Steps = []
    for name, step in steps:
        step = unwrapped(step)
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
    if isinstance(step, (SideBySide, SignedRoots)):
        return step.add(graph, tensor, rows)
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
