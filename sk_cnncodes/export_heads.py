"""The scikit-learn steps behind the codes -> one ONNX model.

skl2onnx converts the steps. A few classifiers are written here, because what it makes
of them differs from scikit-learn: linear discriminant analysis (probabilities of two
classes), SGD (labels where probabilities are saturated), one-vs-rest without
probabilities, and calibration by isotonic regression or temperature.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline

from sk_cnncodes.exceptions import ExportError
from sk_cnncodes.runtime import Device, load_session, usable_threads

if TYPE_CHECKING:
    import onnx

INPUT = "codes"
# Operator set of the nodes of trees, SVMs and the like; newer ones deprecate some.
_ML_OPSET = 3
# Added to probabilities before their logarithm, as scikit-learn's calibration does.
_LOG_FLOOR = 1e-12
# Shares of the largest value, and of the rows: float32 sums and ties between
# neighbours stay below, a wrong formula does not.
_TOLERANCE = 1e-3
_ODD_ROWS = 0.05


class HeadGraph:
    """Nodes of an ONNX model that grows from its input to its outputs.

    Parameters
    ----------
    opset : int
        Version of the default operator set.
    """

    def __init__(self, opset: int) -> None:
        import onnx

        self.opset = opset
        self.graph = onnx.GraphProto(name="head")
        self._opsets = {"": opset}
        self._ir_version = 4
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"sk_cnncodes/head/{self._count}"

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        name = self._name()
        array = np.asarray(value, dtype)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any
    ) -> str:
        import onnx

        output = output or self._name()
        self.graph.node.append(
            onnx.helper.make_node(op_type, list(inputs), [output], **attributes)
        )
        return output

    def model(self, piece: onnx.ModelProto, tensor: str) -> list[str]:
        """Add the nodes of a model that reads `tensor`; the names of its outputs."""
        import onnx.compose

        piece = at_opset(piece, self.opset)
        piece = onnx.compose.add_prefix(piece, f"{self._name()}/")
        self.node("Identity", tensor, output=piece.graph.input[0].name)
        self.graph.node.extend(piece.graph.node)
        self.graph.initializer.extend(piece.graph.initializer)
        for entry in piece.opset_import:
            version = max(entry.version, self._opsets.get(entry.domain, 1))
            self._opsets[entry.domain] = version
        self._ir_version = max(self._ir_version, piece.ir_version)
        return [value.name for value in piece.graph.output]

    def finish(self, n_features: int, outputs: dict[str, tuple[str, int, Any]]) -> Any:
        """The model; `outputs` are tensors, element types and shapes by their names."""
        import onnx

        shape = ["N", n_features]
        self.graph.input.append(
            onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, shape)
        )
        for name, (tensor, element, shape) in outputs.items():
            self.node("Identity", tensor, output=name)
            self.graph.output.append(
                onnx.helper.make_tensor_value_info(name, element, shape)
            )
        model = onnx.helper.make_model(
            self.graph,
            opset_imports=[
                onnx.helper.make_opsetid(*pair) for pair in self._opsets.items()
            ],
        )
        model.ir_version = self._ir_version
        return model


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A model at a version of the default operator set, each set imported once.

    Raises
    ------
    ExportError
        If it is newer, or onnx cannot convert it.
    """
    import onnx
    import onnx.version_converter

    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        versions[domain] = max(entry.version, versions.get(domain, 1))
    del model.opset_import[:]
    model.opset_import.extend(
        onnx.helper.make_opsetid(*pair) for pair in versions.items()
    )
    found = versions.get("", opset)
    if found > opset:
        raise ExportError(f"it needs opset {found}, and the backbone has {opset}")
    if found == opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:
        raise ExportError(
            f"onnx cannot raise it from opset {found} to {opset} ({_reason(error)})"
        ) from error


# -- the head ----------------------------------------------------------------


def build_head(
    steps: Sequence[tuple[str, Any]], codes: np.ndarray, opset: int
) -> onnx.ModelProto:
    """One model of all steps behind the codes.

    Parameters
    ----------
    steps : sequence of (name, estimator)
        Fitted; transformers, and a classifier or regressor at the end.
    codes : ndarray of float32, shape (n_rows, code_length)
        Codes on which each step is compared with its ONNX nodes.
    opset : int

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
        check_predictions(_run(model, codes), step, rows)
    return model


class naming:
    """Context that puts the step into errors, and keeps warnings to itself."""

    def __init__(self, name: str, step: Any) -> None:
        self._step = f"step {name!r} ({type(step).__name__})"
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        self._warnings.__enter__()
        # skl2onnx asks for parameters that scikit-learn deprecates, and the rows have
        # no feature names: nothing that the user could change.
        warnings.simplefilter("ignore")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._warnings.__exit__(kind, error, trace)
        if isinstance(error, Exception):
            raise ExportError(
                f"{self._step} cannot be converted to ONNX: {_reason(error)}. Expected "
                "a step that skl2onnx converts, such as StandardScaler, PCA or "
                "Normalizer before LogisticRegression, LinearSVC, SVC or "
                "KNeighborsClassifier."
            ) from error


def _reason(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return text.rstrip(".")


def _predictions(
    graph: HeadGraph, estimator: Any, tensor: str, rows: np.ndarray
) -> dict[str, tuple[str, int, Any]]:
    """Outputs of a classifier or regressor, as `HeadGraph.finish` takes them."""
    import onnx

    if is_regressor(estimator):
        (values,) = graph.model(_converted(estimator, rows, graph.opset), tensor)
        n_targets = _matrix(estimator.predict(rows[:1])).shape[1]
        values = graph.node("Reshape", values, graph.constant([-1, n_targets], "i8"))
        return {"values": (values, onnx.TensorProto.FLOAT, ["N", n_targets])}
    if not is_classifier(estimator):
        raise ExportError("the last step is neither a classifier nor a regressor")
    if np.ndim(estimator.predict(rows[:1])) > 1:
        raise ExportError("it predicts several labels for an image, expected one")
    classes, element = _class_values(estimator)
    kind = scores_name(estimator)
    make = _probabilities if kind == "probabilities" else _decision
    label, scores = make(graph, estimator, tensor, rows)
    if label is None or element in (onnx.TensorProto.BOOL, onnx.TensorProto.DOUBLE):
        if kind == "probabilities" and hasattr(estimator, "decision_function"):
            # Probabilities may be saturated where decision values still differ.
            _, ranked = _decision(graph, estimator, tensor, rows)
            single = len(classes) == 2
        else:
            ranked, single = scores, kind == "decision" and len(classes) == 2
        label = _largest(graph, ranked, single, classes)
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


def _largest(graph: HeadGraph, scores: str, single: bool, classes: np.ndarray) -> str:
    """The class of the largest score, or by the sign of a single one."""
    import onnx

    if single:
        positive = graph.node("Greater", scores, graph.constant(0))
        index = graph.node("Cast", positive, to=onnx.TensorProto.INT64)
        index = graph.node("Reshape", index, graph.constant([-1], "i8"))
    else:
        index = graph.node("ArgMax", scores, axis=1, keepdims=0)
    return graph.node("Gather", graph.constant(classes, classes.dtype), index, axis=0)


# -- what scikit-learn says --------------------------------------------------


def scores_name(estimator: Any) -> str:
    """Which scores a classifier gives."""
    return "probabilities" if hasattr(estimator, "predict_proba") else "decision"


def head_scores(estimator: Any, rows: np.ndarray) -> np.ndarray:
    """Probabilities, else decision values, as a matrix."""
    if hasattr(estimator, "predict_proba"):
        return _matrix(estimator.predict_proba(rows))
    return _matrix(estimator.decision_function(rows))


def _matrix(values: Any) -> np.ndarray:
    values = np.asarray(values)
    return values.reshape(len(values), -1)


def transformed(step: Any, rows: np.ndarray) -> np.ndarray:
    """What a transformer makes of rows, as a float32 matrix."""
    found = step.transform(rows)
    found = found.toarray() if hasattr(found, "toarray") else found
    return np.asarray(found, np.float32)


# -- transformers ------------------------------------------------------------


def add_transformer(graph: HeadGraph, step: Any, tensor: str, rows: np.ndarray) -> str:
    """Nodes of a transformer, compared with it on some rows."""
    piece = _converted(step, rows, graph.opset)
    wanted = transformed(step, rows)
    _compare(_run(piece, rows)[0], wanted, "values")
    return graph.model(piece, tensor)[0]


def _converted(
    estimator: Any, rows: np.ndarray, opset: int, *choices: dict[str, Any]
) -> onnx.ModelProto:
    """What skl2onnx makes of an estimator, with the first options that it knows."""
    from skl2onnx import __max_supported_opset__, convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    target = {"": min(opset, __max_supported_opset__), "ai.onnx.ml": _ML_OPSET}
    types = [("x", FloatTensorType([None, rows.shape[1]]))]
    for options in choices or ({},):
        try:
            return convert_sklearn(
                estimator,
                "piece",
                types,
                target_opset=target,
                options={id(estimator): options} if options else None,
            )
        except NameError as error:  # an option that it does not know
            unknown = error
    raise unknown


# -- classifiers -------------------------------------------------------------

Scores = tuple[str | None, str]  # tensors of the label, if there is one, and the scores


def _decision(graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray) -> Scores:
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


def _probabilities(
    graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray
) -> Scores:
    """Probabilities [N, n_classes]."""
    estimator, x, rows = _inner(graph, estimator, x, rows)
    n_classes = len(estimator.classes_)
    if isinstance(estimator, LinearDiscriminantAnalysis):
        decision = _linear(graph, estimator, x)
        if n_classes > 2:
            return None, graph.node("Softmax", decision, axis=1)
        return None, _both(graph, graph.node("Sigmoid", decision))
    if isinstance(estimator, SGDClassifier) and estimator.loss == "log_loss":
        positive = graph.node("Sigmoid", _linear(graph, estimator, x))
        return None, _shares(graph, positive, n_classes)
    if isinstance(estimator, OneVsRestClassifier):
        columns = [
            _column(graph, _probabilities(graph, each, x, rows)[1], 1)
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


def used_steps(pipeline: Pipeline) -> list[tuple[str, Any]]:
    """The steps of a pipeline that do something."""
    return [s for s in pipeline.steps if s[1] is not None and s[1] != "passthrough"]


def _library_scores(
    graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray, *choices: dict[str, Any]
) -> Scores:
    piece = _converted(estimator, rows, graph.opset, *choices)
    label, scores = graph.model(piece, x)
    return label, scores


def _positive(graph: HeadGraph, estimator: Any, x: str, rows: np.ndarray) -> str:
    """Score [N, 1] by which one-vs-rest compares its classifiers."""
    if hasattr(estimator, "decision_function"):
        return _decision(graph, estimator, x, rows)[1]
    return _column(graph, _probabilities(graph, estimator, x, rows)[1], 1)


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


# -- calibration -------------------------------------------------------------


def _calibrated(graph: HeadGraph, fold: Any, x: str, rows: np.ndarray) -> str:
    """Probabilities of one fold of a CalibratedClassifierCV."""
    estimator, n_classes = fold.estimator, len(fold.classes)
    if list(estimator.classes_) != list(fold.classes):
        raise ExportError("a fold of its calibration lacks a class")
    decides = hasattr(estimator, "decision_function")
    if decides:
        scores = _decision(graph, estimator, x, rows)[1]
    else:
        scores = _probabilities(graph, estimator, x, rows)[1]
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


# -- checks ------------------------------------------------------------------


def _run(model: onnx.ModelProto, rows: np.ndarray) -> list[np.ndarray]:
    session = load_session(
        model.SerializeToString(), Device(None, required=True), usable_threads(-1)
    )
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: rows})
    return outputs


def check_predictions(
    outputs: list[np.ndarray], estimator: Any, rows: np.ndarray
) -> None:
    """Compare the outputs of an ONNX model with an estimator.

    Parameters
    ----------
    outputs : list of ndarray
        Labels and scores, or values.
    estimator : classifier or regressor
    rows : ndarray, shape (n_rows, n_features)
        What the estimator sees.

    Raises
    ------
    ExportError
        If they differ by more than rounding.
    """
    if is_regressor(estimator):
        _compare(outputs[0], _matrix(estimator.predict(rows)), "values")
        return
    _compare(outputs[1], head_scores(estimator, rows), scores_name(estimator))
    odd = outputs[0] != estimator.predict(rows)
    if odd.mean() > _ODD_ROWS:
        raise ExportError(
            f"its ONNX nodes give {odd.sum()} other labels for {len(rows)} test rows"
        )


def _compare(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    if got.shape != wanted.shape:
        raise ExportError(
            f"its ONNX nodes give {what} of shape {got.shape}, expected {wanted.shape}"
        )
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-6)
    error = np.abs(got - wanted).max(axis=1)
    if not (error <= _TOLERANCE * scale).mean() >= 1 - _ODD_ROWS:
        raise ExportError(
            f"its ONNX nodes give other {what}: largest difference {error.max():.3g} of "
            f"{scale:.3g} in {len(got)} test rows"
        )


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
