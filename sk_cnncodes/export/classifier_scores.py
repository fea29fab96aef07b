"""Classifiers -> scores as ONNX nodes.

skl2onnx converts most. A few are written here, because what it makes of them differs
from scikit-learn: linear discriminant analysis (probabilities of two classes), SGD
(labels where probabilities are saturated), one-vs-rest without probabilities, and
calibration by isotonic regression or temperature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline

from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.export.conversion import (
    add_transformer,
    converted,
    transformed,
    used_steps,
)
from sk_cnncodes.export.head_graph import HeadGraph

# Added to probabilities before their logarithm, as scikit-learn's calibration does.
_LOG_FLOOR = 1e-12

Scores = tuple[str | None, str]  # tensors of the label, if there is one, and the scores


def decision(graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray) -> Scores:
    """Decision values [N, n]; with two classes, those of the second, [N, 1]."""
    estimator, x, rows = _inner(graph, estimator, x, rows)
    if isinstance(estimator, (LinearDiscriminantAnalysis, SGDClassifier)):
        return None, _linear(graph, estimator, x)
    if isinstance(estimator, OneVsRestClassifier):
        parts = [_positive(graph, e, x, rows) for e in estimator.estimators_]
        return None, graph.node("Concat", *parts, axis=1)
    label, scores = _library_scores(
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
    """Probabilities [N, n_classes]."""
    estimator, x, rows = _inner(graph, estimator, x, rows)
    n_classes = len(estimator.classes_)
    if isinstance(estimator, LinearDiscriminantAnalysis):
        values = _linear(graph, estimator, x)
        if n_classes > 2:
            return None, graph.node("Softmax", values, axis=1)
        return None, _both(graph, graph.node("Sigmoid", values))
    if isinstance(estimator, SGDClassifier) and estimator.loss == "log_loss":
        values = _linear(graph, estimator, x)
        if n_classes == 2:
            return None, _both(graph, graph.node("Sigmoid", values))
        # Sigmoids as shares of their sum, by their logarithms: they are often tiny.
        softplus = graph.node("Softplus", graph.node("Neg", values))
        return None, graph.node("Softmax", graph.node("Neg", softplus), axis=1)
    if isinstance(estimator, OneVsRestClassifier):
        columns = [
            _column(graph, probabilities(graph, each, x, rows)[1], 1)
            for each in estimator.estimators_
        ]
        return None, _shares(graph, graph.node("Concat", *columns, axis=1), n_classes)
    if isinstance(estimator, CalibratedClassifierCV):
        parts = [
            _calibrated(graph, each, x, rows)
            for each in estimator.calibrated_classifiers_
        ]
        count = graph.constant(len(parts))
        return None, graph.node("Div", graph.node("Sum", *parts), count)
    return _library_scores(graph, estimator, x, rows, {"zipmap": False}, {})


def _inner(
    graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray
) -> tuple[Any, str, np.ndarray]:
    """The classifier inside of searches and pipelines, behind their transformers."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    if not isinstance(estimator, Pipeline):
        return estimator, x, rows
    for _, step in used_steps(estimator)[:-1]:
        x = add_transformer(graph, step, x, rows)
        rows = transformed(step, rows)
    return _inner(graph, estimator[-1], x, rows)


def _library_scores(
    graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray, *choices: dict[str, Any]
) -> Scores:
    piece = converted(estimator, rows, graph.opset, *choices)
    label, scores = graph.model(piece, x)
    return label, scores


def _positive(graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray) -> str:
    """Score [N, 1] by which one-vs-rest compares its classifiers."""
    if hasattr(estimator, "decision_function"):
        return decision(graph, estimator, x, rows)[1]
    return _column(graph, probabilities(graph, estimator, x, rows)[1], 1)


def _linear(graph: HeadGraph, estimator: Any, x: str) -> str:
    weights = graph.constant(estimator.coef_.T)
    return graph.node("Gemm", x, weights, graph.constant(estimator.intercept_))


def _column(graph: HeadGraph, matrix: str, index: int) -> str:
    return graph.node("Gather", matrix, graph.constant([index], "i8"), axis=1)


def _both(graph: HeadGraph, positive: str) -> str:
    """Probabilities of two classes from that of the second, [N, 1]."""
    negative = graph.node("Sub", graph.constant(1), positive)
    return graph.node("Concat", negative, positive, axis=1)


def _shares(graph: HeadGraph, values: str, n_classes: int) -> str:
    """Non-negative values of each class as shares; equal ones where all are zero."""
    if n_classes == 2:
        return _both(graph, values)
    tiny = graph.constant(np.finfo(np.float32).tiny)
    values = graph.node("Add", values, tiny)
    total = graph.node("MatMul", values, graph.constant(np.ones((n_classes, 1))))
    return graph.node("Div", values, total)


def _calibrated(graph: HeadGraph, fold: Any, x: str, rows: np.ndarray) -> str:
    """Probabilities of one fold of a CalibratedClassifierCV."""
    estimator, n_classes = fold.estimator, len(fold.classes)
    if len(estimator.classes_) != n_classes:
        raise ExportError("a fold of its calibration lacks a class")
    decides = hasattr(estimator, "decision_function")
    if decides:
        scores = decision(graph, estimator, x, rows)[1]
    else:
        scores = probabilities(graph, estimator, x, rows)[1]
    if fold.method == "temperature":
        if not decides:
            floored = graph.node("Add", scores, graph.constant(_LOG_FLOOR))
            scores = graph.node("Log", floored)
        elif n_classes == 2:
            scores = graph.node("Concat", graph.node("Neg", scores), scores, axis=1)
        beta = graph.constant(fold.calibrators[0].beta_)
        return graph.node("Softmax", graph.node("Mul", scores, beta), axis=1)
    if n_classes == 2 and not decides:
        scores = _column(graph, scores, 1)
    columns = [
        _calibrated_column(graph, calibrator, _column(graph, scores, index))
        for index, calibrator in enumerate(fold.calibrators)
    ]
    return _shares(graph, graph.node("Concat", *columns, axis=1), n_classes)


def _calibrated_column(graph: HeadGraph, calibrator: Any, score: str) -> str:
    if hasattr(calibrator, "a_"):  # Platt's sigmoid
        scaled = graph.node("Mul", score, graph.constant(-calibrator.a_))
        return graph.node(
            "Sigmoid", graph.node("Sub", scaled, graph.constant(calibrator.b_))
        )
    return _interpolated(
        graph, score, calibrator.X_thresholds_, calibrator.y_thresholds_
    )


def _interpolated(graph: HeadGraph, x: str, knots: Any, values: Any) -> str:
    """Linear interpolation [N, 1] between knots, constant outside of them."""
    import onnx

    knots, values = np.asarray(knots), np.asarray(values)
    if len(knots) == 1:
        knots, values = knots[[0, 0]] + [0, 1], values[[0, 0]]
    # How many of the inner knots lie at or below x; one at infinity, never passed,
    # keeps the matrix from being empty.
    inner = graph.constant([[*knots[1:-1], np.inf]])
    passed = graph.node("Not", graph.node("Less", x, inner))
    passed = graph.node("Cast", passed, to=onnx.TensorProto.FLOAT)
    ones = graph.constant(np.ones((len(knots) - 1, 1)))
    index = graph.node("MatMul", passed, ones)
    index = graph.node("Cast", index, to=onnx.TensorProto.INT64)

    def at(table: np.ndarray) -> str:
        return graph.node("Gather", graph.constant(table), index, axis=0)

    share = graph.node("Div", graph.node("Sub", x, at(knots[:-1])), at(np.diff(knots)))
    share = graph.node("Relu", share)
    excess = graph.node("Relu", graph.node("Sub", share, graph.constant(1)))
    share = graph.node("Sub", share, excess)
    rise = graph.node("Mul", share, at(np.diff(values)))
    return graph.node("Add", at(values[:-1]), rise)
