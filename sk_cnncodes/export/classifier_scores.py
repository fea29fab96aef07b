"""ONNX nodes that compute the scores of a classifier.

skl2onnx converts most classifiers. A few are written here because its results differ
from scikit-learn: linear discriminant analysis (probabilities of two classes), SGD
(labels where probabilities are saturated), one-vs-rest without probabilities, nearest
neighbours, kernel ridge, and calibration by isotonic regression or temperature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifierCV, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.export.composition import THRESHOLD_CLASSIFIERS, inner_classifier
from sk_cnncodes.export.conversion import (
    add_transformer,
    converted,
    transformed,
    unwrapped,
    used_steps,
)
from sk_cnncodes.export.head_graph import HeadGraph
from sk_cnncodes.export.kernels import kernel_decision
from sk_cnncodes.export.neighbours import neighbour_probabilities
from sk_cnncodes.heads.kernel_ridge import KernelRidgeClassifierCV
from sk_cnncodes.heads.shrinkage_lda import ShrinkageLDA

_LDA = (LinearDiscriminantAnalysis, ShrinkageLDA)
_LINEAR = (*_LDA, RidgeClassifierCV, SGDClassifier)
# Added to probabilities before their logarithm, as scikit-learn's calibration does.
_LOG_FLOOR = 1e-12

# Names of the label tensor, or None, and of the score tensor.
Scores = tuple[str | None, str]


def decision(graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray) -> Scores:
    """Add decision values [N, n]; for two classes, those of the second, [N, 1]."""
    estimator, x, rows = _unwrap(graph, estimator, x, rows)
    if isinstance(estimator, _LINEAR):
        return None, _linear(graph, estimator, x)
    if isinstance(estimator, KernelRidgeClassifierCV):
        return None, kernel_decision(graph, estimator, x)
    if isinstance(estimator, OneVsRestClassifier):
        parts = [_positive(graph, e, x, rows) for e in estimator.estimators_]
        return None, graph.node("Concat", *parts, axis=1)
    label, scores = _skl2onnx_scores(
        graph,
        estimator,
        x,
        rows,
        {"zipmap": False, "raw_scores": True},
        {"raw_scores": True},
        {"zipmap": False},
        {},
    )
    if len(estimator.classes_) == 2:
        scores = _column(graph, scores, 1)
    return label, scores


def probabilities(graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray) -> Scores:
    """Add probabilities [N, n_classes]."""
    estimator, x, rows = _unwrap(graph, estimator, x, rows)
    n_classes = len(estimator.classes_)
    if isinstance(estimator, _LDA):
        values = _linear(graph, estimator, x)
        if n_classes > 2:
            return None, graph.node("Softmax", values, axis=1)
        return None, _two_columns(graph, graph.node("Sigmoid", values))
    if isinstance(estimator, SGDClassifier) and estimator.loss == "log_loss":
        values = _linear(graph, estimator, x)
        if n_classes == 2:
            return None, _two_columns(graph, graph.node("Sigmoid", values))
        # Normalize the sigmoids in log space, because they are often tiny.
        softplus = graph.node("Softplus", graph.node("Neg", values))
        return None, graph.node("Softmax", graph.node("Neg", softplus), axis=1)
    if isinstance(estimator, OneVsRestClassifier):
        columns = [
            _column(graph, probabilities(graph, each, x, rows)[1], 1)
            for each in estimator.estimators_
        ]
        return None, _normalized(
            graph, graph.node("Concat", *columns, axis=1), n_classes
        )
    if isinstance(estimator, KNeighborsClassifier):
        return None, neighbour_probabilities(graph, estimator, x, rows)
    if isinstance(estimator, CalibratedClassifierCV):
        parts = [
            _calibrated(graph, each, x, rows)
            for each in estimator.calibrated_classifiers_
        ]
        count = graph.constant(len(parts))
        return None, graph.node("Div", graph.node("Sum", *parts), count)
    return _skl2onnx_scores(graph, estimator, x, rows, {"zipmap": False}, {})


def _unwrap(
    graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray
) -> tuple[Any, str, np.ndarray]:
    """Unwrap searches, pipelines and others, and add the nodes of transformers."""
    estimator = unwrapped(estimator)
    if isinstance(estimator, THRESHOLD_CLASSIFIERS):  # scores are those of the inner
        return _unwrap(graph, inner_classifier(estimator), x, rows)
    if not isinstance(estimator, Pipeline):
        return estimator, x, rows
    for _, step in used_steps(estimator)[:-1]:
        x = add_transformer(graph, step, x, rows)
        rows = transformed(step, rows)
    return _unwrap(graph, estimator[-1], x, rows)


def _skl2onnx_scores(
    graph: HeadGraph,
    estimator: Any,
    x: str,
    rows: np.ndarray,
    *option_sets: dict[str, Any],
) -> Scores:
    """Add label and scores as skl2onnx converts them."""
    piece = converted(estimator, rows, graph.opset, *option_sets)
    label, scores = graph.model(piece, x)
    return label, scores


def _positive(graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray) -> str:
    """Add the score [N, 1] of one binary classifier of a one-vs-rest ensemble."""
    if hasattr(estimator, "decision_function"):
        return decision(graph, estimator, x, rows)[1]
    return _column(graph, probabilities(graph, estimator, x, rows)[1], 1)


def _linear(graph: HeadGraph, estimator: Any, x: str) -> str:
    """Add the decision values of a linear classifier."""
    coef, intercept = np.atleast_2d(estimator.coef_).T, estimator.intercept_
    if isinstance(estimator, _LDA):
        # Its weights are large, and cancel on what all codes have in common.
        centre = estimator.priors_ @ estimator.means_
        x = graph.node("Sub", x, graph.constant(centre))
        # As the nodes compute it.
        intercept = intercept + centre.astype(np.float32).astype(float) @ coef
    intercept = graph.constant(np.atleast_1d(intercept))
    return graph.node("Gemm", x, graph.constant(coef), intercept)


def _column(graph: HeadGraph, matrix: str, index: int) -> str:
    return graph.node("Gather", matrix, graph.constant([index], "i8"), axis=1)


def _two_columns(graph: HeadGraph, positive: str) -> str:
    """Add probabilities [N, 2] from those of the second class, [N, 1]."""
    negative = graph.node("Sub", graph.constant(1), positive)
    return graph.node("Concat", negative, positive, axis=1)


def _normalized(graph: HeadGraph, values: str, n_classes: int) -> str:
    """Scale non-negative class values to a sum of 1; uniform if all are zero."""
    if n_classes == 2:
        return _two_columns(graph, values)
    tiny = graph.constant(np.finfo(np.float32).tiny)
    values = graph.node("Add", values, tiny)
    total = graph.node("MatMul", values, graph.constant(np.ones((n_classes, 1))))
    return graph.node("Div", values, total)


def _calibrated(graph: HeadGraph, fold: Any, x: str, rows: np.ndarray) -> str:
    """Add the probabilities of one fold of a CalibratedClassifierCV."""
    estimator, n_classes = fold.estimator, len(fold.classes)
    if len(estimator.classes_) != n_classes:
        raise ExportError("one of its calibration folds lacks a class")
    has_decision = hasattr(estimator, "decision_function")
    if has_decision:
        scores = decision(graph, estimator, x, rows)[1]
    else:
        scores = probabilities(graph, estimator, x, rows)[1]
    if fold.method == "temperature":
        if not has_decision:
            floored = graph.node("Add", scores, graph.constant(_LOG_FLOOR))
            scores = graph.node("Log", floored)
        elif n_classes == 2:
            scores = graph.node("Concat", graph.node("Neg", scores), scores, axis=1)
        beta = graph.constant(fold.calibrators[0].beta_)
        return graph.node("Softmax", graph.node("Mul", scores, beta), axis=1)
    if n_classes == 2 and not has_decision:
        scores = _column(graph, scores, 1)
    columns = [
        _calibrated_column(graph, calibrator, _column(graph, scores, index))
        for index, calibrator in enumerate(fold.calibrators)
    ]
    return _normalized(graph, graph.node("Concat", *columns, axis=1), n_classes)


def _calibrated_column(graph: HeadGraph, calibrator: Any, score: str) -> str:
    """Add the calibrated value [N, 1] of one class."""
    if hasattr(calibrator, "a_"):  # Platt scaling
        scaled = graph.node("Mul", score, graph.constant(-calibrator.a_))
        return graph.node(
            "Sigmoid", graph.node("Sub", scaled, graph.constant(calibrator.b_))
        )
    return _interpolated(
        graph, score, calibrator.X_thresholds_, calibrator.y_thresholds_
    )


def _interpolated(graph: HeadGraph, x: str, knots: Any, values: Any) -> str:
    """Add linear interpolation [N, 1] between knots, constant outside them."""
    import onnx

    knots, values = np.asarray(knots), np.asarray(values)
    if len(knots) == 1:
        knots, values = knots[[0, 0]] + [0, 1], values[[0, 0]]
    # The segment index is the number of inner knots at or below x. The knot at
    # infinity is never passed; it keeps the matrix from being empty.
    inner = graph.constant([[*knots[1:-1], np.inf]])
    passed = graph.node("Not", graph.node("Less", x, inner))
    passed = graph.node("Cast", passed, to=onnx.TensorProto.FLOAT)
    ones = graph.constant(np.ones((len(knots) - 1, 1)))
    index = graph.node("MatMul", passed, ones)
    index = graph.node("Cast", index, to=onnx.TensorProto.INT64)

    def lookup(table: np.ndarray) -> str:
        return graph.node("Gather", graph.constant(table), index, axis=0)

    fraction = graph.node(
        "Div", graph.node("Sub", x, lookup(knots[:-1])), lookup(np.diff(knots))
    )
    fraction = graph.node("Relu", fraction)
    excess = graph.node("Relu", graph.node("Sub", fraction, graph.constant(1)))
    fraction = graph.node("Sub", fraction, excess)
    rise = graph.node("Mul", fraction, lookup(np.diff(values)))
    return graph.node("Add", lookup(values[:-1]), rise)
