"""ONNX nodes of nearest neighbours.

skl2onnx compares an image with one training code after the other, and its weights by
distance are wrong. Here one matrix product finds candidates, whose distances are then
computed from differences: those of the product have lost the digits that `1 / distance`
needs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    NearestNeighbors,
)

from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.export.conversion import converted
from sk_cnncodes.export.head_graph import HeadGraph

# Candidates beyond those that are asked for, as the product ranks them with an error.
_MORE_CANDIDATES = 16
# Codes of the same image differ by rounding, relative to their length, if they were
# computed in other batches; such distances count as zero.
_ROUNDING = 1e-6
# Bytes of a file in ONNX's format, less some for the network.
_MAX_BYTES = 2**31 - 2**27
_SYNONYMS = {"l1": "manhattan", "cityblock": "manhattan", "l2": "euclidean"}
# Metrics that one matrix product ranks.
_BY_PRODUCT = ("euclidean", "sqeuclidean", "cosine")


class _Nearest(NamedTuple):
    """Tensors [N, k]: numbers of training codes, the nearest first, and distances."""

    numbers: str
    distances: str


def neighbour_probabilities(
    graph: HeadGraph, model: KNeighborsClassifier, x: str, rows: np.ndarray
) -> str:
    """Add probabilities [N, n_classes]."""
    import onnx

    numbers, weights = _weighted(graph, model, x, rows)
    found = graph.node("Gather", graph.constant(model._y, "i8"), numbers, axis=0)
    found = _reshaped(graph, found, -1, model.n_neighbors, 1)
    classes = graph.constant(np.arange(len(model.classes_)), "i8")
    votes = graph.node("Equal", found, classes)
    votes = graph.node("Cast", votes, to=onnx.TensorProto.FLOAT)
    return _mean(graph, model, votes, weights, len(model.classes_))


def neighbour_values(
    graph: HeadGraph, model: KNeighborsRegressor, x: str, rows: np.ndarray
) -> str:
    """Add predicted values [N, n_targets]."""
    numbers, weights = _weighted(graph, model, x, rows)
    targets = np.asarray(model._y).reshape(len(model._y), -1)
    found = graph.node("Gather", graph.constant(targets), numbers, axis=0)
    return _mean(graph, model, found, weights, targets.shape[1])


def _mean(graph: HeadGraph, model: Any, values: str, weights: str, width: int) -> str:
    """Add the weighted mean [N, width] of values [N, k, width].

    Divided at the end: sums of equal weights are exact, and so are ties.
    """
    count = model.n_neighbors
    rows = _reshaped(graph, weights, -1, 1, count)
    total = graph.node("MatMul", weights, graph.constant(np.ones((count, 1))))
    sums = _reshaped(graph, graph.node("MatMul", rows, values), -1, width)
    return graph.node("Div", sums, total)


def _weighted(
    graph: HeadGraph, model: Any, x: str, rows: np.ndarray
) -> tuple[str, str]:
    """Add the numbers of the neighbours, and their weights: [N, k], or [1, k]."""
    import onnx

    if model.weights not in ("uniform", "distance", None):
        raise ExportError(
            f"its weights={model.weights!r}, expected 'uniform' or 'distance'"
        )
    if graph.opset < 11:
        raise ExportError(f"nearest neighbours need opset 11, not {graph.opset}")
    codes = _training_codes(model)
    count = model.n_neighbors
    metric = _SYNONYMS.get(model.effective_metric_, model.effective_metric_)
    if metric in _BY_PRODUCT:
        nearest, length = _by_product(graph, metric, codes, x, count)
    else:
        nearest, length = _by_scan(graph, model, metric, codes, x, rows)
    if model.weights != "distance":
        return nearest.numbers, graph.constant(np.ones((1, count)))
    rounding = _ROUNDING * length
    limits = {"sqeuclidean": rounding**2, "cosine": rounding**2 / 2}
    limit = graph.constant(limits.get(metric, rounding))
    is_zero = graph.node("Not", graph.node("Greater", nearest.distances, limit))
    is_zero = graph.node("Cast", is_zero, to=onnx.TensorProto.FLOAT)
    any_zero = graph.node("MatMul", is_zero, graph.constant(np.ones((count, 1))))
    any_zero = graph.node("Greater", any_zero, graph.constant(0))
    inverse = graph.node("Reciprocal", graph.node("Max", nearest.distances, limit))
    return nearest.numbers, graph.node("Where", any_zero, is_zero, inverse)


def _training_codes(model: Any) -> np.ndarray:
    codes = model._fit_X
    codes = codes.toarray() if hasattr(codes, "toarray") else np.asarray(codes)
    codes = codes.astype(np.float32)
    if codes.nbytes > _MAX_BYTES:
        raise ExportError(
            f"its {len(codes)} training codes of length {codes.shape[1]} take "
            f"{codes.nbytes / 1e9:.1f} GB, and an ONNX file holds less than 2.1 GB. "
            "Expected fewer images, or PCA before it"
        )
    return codes


def _by_product(
    graph: HeadGraph, metric: str, codes: np.ndarray, x: str, count: int
) -> tuple[_Nearest, float]:
    """Find neighbours by ``|y|^2 - 2 x y``; also return the length of a code."""
    if metric == "cosine":
        lengths = np.linalg.norm(codes, axis=1, keepdims=True)
        if not lengths.all():
            raise ExportError(
                "a training code is all zeros, and has no direction for "
                "metric='cosine'. Expected metric='euclidean'"
            )
        codes = codes / lengths
        x = graph.node("LpNormalization", x, axis=1, p=2)
    length = float(np.median(np.linalg.norm(codes, axis=1)))
    # Centred, fewer digits cancel.
    center = codes.mean(axis=0, dtype=np.float64).astype(np.float32)
    codes = codes - center
    table = graph.constant(codes)
    x = graph.node("Sub", x, graph.constant(center))
    squares = (codes.astype(np.float64) ** 2).sum(axis=1)
    ranked = graph.node("Gemm", x, table, graph.constant(squares), transB=1, alpha=-2.0)
    n_candidates = min(len(codes), count + _MORE_CANDIDATES)
    _, candidates = _smallest(graph, ranked, n_candidates)
    # In the order of the training codes, the first of which wins a tie.
    candidates, _ = _smallest(graph, candidates, n_candidates)
    found = graph.node("Gather", table, candidates, axis=0)
    difference = graph.node("Sub", found, _reshaped(graph, x, -1, 1, codes.shape[1]))
    squares = graph.node("Mul", difference, difference)
    ones = graph.constant(np.ones((codes.shape[1], 1)))
    distances = graph.node("MatMul", squares, ones)
    distances = _reshaped(graph, distances, -1, n_candidates)
    nearest, positions = _smallest(graph, distances, count)
    numbers = graph.node("GatherElements", candidates, positions, axis=1)
    if metric == "euclidean":
        nearest = graph.node("Sqrt", nearest)
    elif metric == "cosine":
        nearest = graph.node("Mul", nearest, graph.constant(0.5))
    return _Nearest(numbers, nearest), length


def _by_scan(
    graph: HeadGraph,
    model: Any,
    metric: str,
    codes: np.ndarray,
    x: str,
    rows: np.ndarray,
) -> tuple[_Nearest, float]:
    """Find neighbours as skl2onnx does, which computes all differences."""
    parameters = model.effective_metric_params_
    if parameters.get("w") is not None:
        raise ExportError("its metric has weights w, expected none")
    search = NearestNeighbors(
        n_neighbors=model.n_neighbors,
        metric=metric,
        p=parameters.get("p", 2),
        algorithm="brute",
    ).fit(codes)
    search.radius = None  # skl2onnx takes one of the two
    numbers, distances = graph.model(converted(search, rows, graph.opset), x)
    size = search.kneighbors(np.zeros_like(codes[:1]), len(codes))[0]
    return _Nearest(numbers, distances), float(np.median(size))


def _smallest(graph: HeadGraph, tensor: str, count: int) -> tuple[str, str]:
    """Add the smallest values of each row in order, and their positions."""
    values, positions = graph.new_name(), graph.new_name()
    inputs = [tensor, graph.constant([count], "i8")]
    graph.node_of_outputs("TopK", inputs, [values, positions], largest=0)
    return values, positions


def _reshaped(graph: HeadGraph, tensor: str, *shape: int) -> str:
    return graph.node("Reshape", tensor, graph.constant(shape, "i8"))
