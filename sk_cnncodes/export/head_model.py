"""Convert the steps after the codes to one ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import is_classifier, is_regressor
from sklearn.neighbors import KNeighborsRegressor

from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.export.classifier_scores import decision, probabilities
from sk_cnncodes.export.composition import THRESHOLD_CLASSIFIERS, threshold_of
from sk_cnncodes.export.conversion import (
    MAX_DIFFERING_ROWS,
    add_transformer,
    as_matrix,
    compare,
    converted,
    naming,
    run_model,
    transformed,
)
from sk_cnncodes.export.head_graph import INPUT, HeadGraph, Output
from sk_cnncodes.export.kernels import kernel_values
from sk_cnncodes.export.neighbours import neighbour_values
from sk_cnncodes.heads.kernel_ridge import KernelRidgeCV

if TYPE_CHECKING:
    import onnx


def build_head(
    steps: Sequence[tuple[str, Any]], codes: np.ndarray, opset: int
) -> onnx.ModelProto:
    """Build one ONNX model of all steps after the codes.

    Parameters
    ----------
    steps : sequence of (name, estimator)
        Fitted; transformers, and a classifier or regressor at the end.
    codes : ndarray of float32, shape (n_rows, code_length)
        Codes on which each step is compared with its ONNX nodes.
    opset : int
        Version of the default operator set.

    Returns
    -------
    onnx.ModelProto
        With the input ``codes`` and the outputs ``label`` and ``probabilities`` or
        ``decision``, or the output ``values``.

    Raises
    ------
    ExportError
        If a step cannot be converted, or its nodes compute something else.
    """
    graph = HeadGraph(opset)
    tensor, rows = INPUT, codes
    for name, step in steps[:-1]:
        with naming(name, step):
            tensor = add_transformer(graph, step, tensor, rows)
            rows = transformed(step, rows)
    name, step = steps[-1]
    with naming(name, step):
        outputs = _predictions(graph, step, tensor, rows)
        model = graph.finish(codes.shape[1], outputs)
        check_predictions(run_model(model, codes), step, rows)
    return model


def _predictions(
    graph: HeadGraph, estimator: Any, tensor: str, rows: np.ndarray
) -> dict[str, Output]:
    """Add a classifier or regressor; return outputs for `HeadGraph.finish`."""
    import onnx

    if is_regressor(estimator):
        if isinstance(estimator, KNeighborsRegressor):
            values = neighbour_values(graph, estimator, tensor, rows)
        elif isinstance(estimator, KernelRidgeCV):
            values = kernel_values(graph, estimator, tensor)
        else:
            (values,) = graph.model(converted(estimator, rows, graph.opset), tensor)
        n_targets = as_matrix(estimator.predict(rows[:1])).shape[1]
        values = graph.node("Reshape", values, graph.constant([-1, n_targets], "i8"))
        return {"values": (values, onnx.TensorProto.FLOAT, ["N", n_targets])}
    if not is_classifier(estimator):
        raise ExportError("the last step is neither a classifier nor a regressor")
    if np.ndim(estimator.predict(rows[:1])) > 1:
        raise ExportError("it predicts several labels per image, expected one")
    classes, element = _class_values(estimator)
    kind = scores_name(estimator)
    make = probabilities if kind == "probabilities" else decision
    label, scores = make(graph, estimator, tensor, rows)
    if isinstance(estimator, THRESHOLD_CLASSIFIERS):
        label = _label_by_threshold(graph, estimator, tensor, rows, classes)
    elif label is None or element in (onnx.TensorProto.BOOL, onnx.TensorProto.DOUBLE):
        if kind == "probabilities" and hasattr(estimator, "decision_function"):
            # Decision values still differ where probabilities are saturated.
            _, ranked = decision(graph, estimator, tensor, rows)
            single = len(classes) == 2
        else:
            ranked, single = scores, kind == "decision" and len(classes) == 2
        label = _predicted_label(graph, ranked, single, classes)
    width = head_scores(estimator, rows[:1]).shape[1]
    return {
        "label": (label, element, ["N"]),
        kind: (scores, onnx.TensorProto.FLOAT, ["N", width]),
    }


def _class_values(estimator: Any) -> tuple[np.ndarray, int]:
    """The classes of a classifier, and their ONNX element type."""
    import onnx

    classes = np.asarray(estimator.classes_)
    if all(isinstance(each, str) for each in classes):
        return classes.astype(object), onnx.TensorProto.STRING
    types = onnx.TensorProto
    elements = {"b": types.BOOL, "i": types.INT64, "u": types.INT64, "f": types.DOUBLE}
    if classes.dtype.kind not in elements:
        raise ExportError(
            f"its classes {list(classes)[:5]} are not all strings or all numbers"
        )
    element = elements[classes.dtype.kind]
    return classes.astype(onnx.helper.tensor_dtype_to_np_dtype(element)), element


def _predicted_label(
    graph: HeadGraph, scores: str, single: bool, classes: np.ndarray
) -> str:
    """Add the class with the largest score, or by the sign of a single score."""
    import onnx

    if single:
        positive = graph.node("Greater", scores, graph.constant(0))
        index = graph.node("Cast", positive, to=onnx.TensorProto.INT64)
        index = graph.node("Reshape", index, graph.constant([-1], "i8"))
    else:
        index = graph.node("ArgMax", scores, axis=1, keepdims=0)
    return graph.node("Gather", graph.constant(classes, classes.dtype), index, axis=0)


def _label_by_threshold(
    graph: HeadGraph, estimator: Any, tensor: str, rows: np.ndarray, classes: np.ndarray
) -> str:
    """Add the label of a classifier with a threshold of its own."""
    import onnx

    threshold = threshold_of(estimator)
    positive = threshold.positive
    if threshold.method == "predict_proba":
        _, scores = probabilities(graph, estimator, tensor, rows)
        scores = graph.node("Gather", scores, graph.constant([positive], "i8"), axis=1)
    else:
        _, scores = decision(graph, estimator, tensor, rows)
        if positive == 0:
            scores = graph.node("Neg", scores)
    below = graph.node("Less", scores, graph.constant(threshold.value))
    index = graph.node("Cast", below, to=onnx.TensorProto.INT64)
    index = graph.node("Reshape", index, graph.constant([-1], "i8"))
    labels = classes[[positive, 1 - positive]]
    return graph.node("Gather", graph.constant(labels, labels.dtype), index, axis=0)


def scores_name(estimator: Any) -> str:
    """Name of the output with a classifier's scores."""
    return "probabilities" if hasattr(estimator, "predict_proba") else "decision"


def head_scores(estimator: Any, rows: np.ndarray) -> np.ndarray:
    """Probabilities, or decision values without them, as a matrix."""
    if hasattr(estimator, "predict_proba"):
        return as_matrix(estimator.predict_proba(rows))
    return as_matrix(estimator.decision_function(rows))


def check_predictions(
    outputs: list[np.ndarray], estimator: Any, rows: np.ndarray
) -> None:
    """Compare the outputs of an ONNX model with those of an estimator.

    Parameters
    ----------
    outputs : list of ndarray
        Labels and scores, or values.
    estimator : classifier or regressor
    rows : ndarray, shape (n_rows, n_features)
        Input of the estimator.

    Raises
    ------
    ExportError
        If they differ by more than rounding.
    """
    if is_regressor(estimator):
        compare(outputs[0], as_matrix(estimator.predict(rows)), "values")
        return
    compare(outputs[1], head_scores(estimator, rows), scores_name(estimator))
    differing = outputs[0] != estimator.predict(rows)
    if differing.mean() > MAX_DIFFERING_ROWS:
        raise ExportError(
            f"its ONNX nodes give different labels for {differing.sum()} of "
            f"{len(rows)} test rows"
        )
