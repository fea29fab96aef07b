"""ONNX nodes of ridge with an RBF kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from sk_cnncodes.export.head_graph import HeadGraph
from sk_cnncodes.heads.kernel_ridge import KernelRidgeClassifierCV


def kernel_decision(graph: HeadGraph, model: KernelRidgeClassifierCV, x: str) -> str:
    """Add decision values [N, n_classes]; for two classes, those of the second."""
    values = model.dual_coef_, model.intercept_
    if len(model.classes_) == 2:
        values = model.dual_coef_[:, 1:], model.intercept_[1:]
    return _predicted(graph, model, x, *values)


def kernel_values(graph: HeadGraph, model: Any, x: str) -> str:
    """Add predicted values [N, n_targets]."""
    return _predicted(graph, model, x, model.dual_coef_, model.intercept_)


def _predicted(
    graph: HeadGraph, model: Any, x: str, weights: np.ndarray, intercept: np.ndarray
) -> str:
    """Add the weighted sum of the kernel of codes and training codes.

    In float64: the weights of a class cancel, and grow with 1 / alpha, so that float32
    kernels gave decision values with errors of 2e-4.
    """
    import onnx

    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    stored = graph.constant(model.X_fit_, model.X_fit_.dtype)
    basis = graph.node("Cast", stored, to=double)
    squares = np.einsum("ij,ij->i", model.X_fit_, model.X_fit_, dtype=float)
    x = graph.node("Cast", x, to=double)
    ones = graph.constant(np.ones((model.n_features_in_, 1)), float)
    own = graph.node("MatMul", graph.node("Mul", x, x), ones)
    distances = graph.node(
        *("Gemm", x, basis, graph.constant(squares, float)), transB=1, alpha=-2.0
    )
    distances = graph.node("Relu", graph.node("Add", distances, own))
    exponents = graph.node("Mul", distances, graph.constant(-model.gamma_, float))
    values = graph.node(
        "Gemm",
        graph.node("Exp", exponents),
        graph.constant(weights, float),
        graph.constant(intercept, float),
    )
    return graph.node("Cast", values, to=single)
