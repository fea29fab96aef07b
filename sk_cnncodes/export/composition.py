"""Transformers of images in a fitted model, and the steps after their codes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import Normalizer

from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.export.conversion import (
    SideBySide,
    SignedRoots,
    Steps,
    flat_steps,
    unwrapped,
)

THRESHOLD_CLASSIFIERS = (FixedThresholdClassifier, TunedThresholdClassifierCV)
# Parameters of the transformer that must have these values: the model takes one view
# of an image, and other precisions depend on the device.
_REQUIRED_PARAMETERS = {"views": "center", "precision": "float32"}


class Threshold(NamedTuple):
    """Method, value, and number of the class that scores at or above it."""

    method: str
    value: float
    positive: int


def threshold_of(model: Any) -> Threshold:
    """The threshold of a fitted threshold classifier."""
    inner = inner_classifier(model)
    method = model.response_method
    if method == "auto":
        has_probabilities = hasattr(inner, "predict_proba")
        method = "predict_proba" if has_probabilities else "decision_function"
    if isinstance(model, TunedThresholdClassifierCV):
        value = model.best_threshold_
        positive = model._curve_scorer._get_pos_label()
    else:
        value, positive = model.threshold, model.pos_label
    if value == "auto":
        value = 0.5 if method == "predict_proba" else 0.0
    first = positive is not None and positive == model.classes_[0]
    return Threshold(method, float(value), 0 if first else 1)


def inner_classifier(model: Any) -> Any:
    """The fitted classifier of a threshold classifier."""
    return getattr(model, "estimator_", model.estimator)


def model_steps(model: Any) -> Steps:
    """Flat steps of a fitted model: transformers of images, then what follows.

    A classifier that wraps a whole pipeline, such as
    ``FixedThresholdClassifier(make_pipeline(codes, head))``, is moved behind the
    pipeline's transformers.

    Raises
    ------
    ExportError
        If the model is no pipeline and wraps none.
    """
    inner = unwrapped(model)
    if isinstance(inner, Pipeline):
        steps = flat_steps([("model", inner)])
        return [(name.removeprefix("model__"), step) for name, step in steps]
    head = copy.copy(inner)
    if isinstance(inner, THRESHOLD_CLASSIFIERS):
        *steps, (_, head.estimator_) = model_steps(inner_classifier(inner))
    elif isinstance(inner, CalibratedClassifierCV) and _has_one_fold(inner):
        fold = copy.copy(inner.calibrated_classifiers_[0])
        *steps, (_, fold.estimator) = model_steps(fold.estimator)
        head.calibrated_classifiers_ = [fold]
    else:
        raise ExportError(
            f"model: got {type(model).__name__}. Expected a fitted Pipeline that "
            "starts with a CNNCodeTransformer, or a search over one."
        )
    return [*steps, (type(inner).__name__.lower(), head)]


def _has_one_fold(model: CalibratedClassifierCV) -> bool:
    return len(model.calibrated_classifiers_) == 1


def _norm_steps(name: str, norm: str | None, lengths: list[int]) -> Steps:
    """Steps that compute a norm of codes without one, of each layer by itself."""
    if norm is None:
        return []
    length, *others = lengths
    if others:
        ends = np.cumsum([0, *lengths]).tolist()
        parts = [
            (slice(*ends[number : number + 2]), _norm_steps(name, norm, [each]), 1.0)
            for number, each in enumerate(lengths)
        ]
        return [(f"{name}__layers", SideBySide(parts))]
    unit_length = Normalizer("l2").fit(np.zeros((1, length), np.float32))
    steps: Steps = [(f"{name}__norm", unit_length)]
    return [(f"{name}__roots", SignedRoots()), *steps] if norm == "power" else steps


class Sources:
    """The transformers of images that a model starts with, in the order of codes.

    Parameters
    ----------
    code_lengths : callable
        Returns the lengths of a transformer's codes, one for each layer.

    Attributes
    ----------
    transformers : list of (name, CNNCodeTransformer)
    """

    def __init__(self, code_lengths: Callable[[CNNCodeTransformer], list[int]]) -> None:
        self.transformers: list[tuple[str, CNNCodeTransformer]] = []
        self._code_lengths = code_lengths
        self._column: tuple[str, int] | None = None

    def split(self, steps: Steps) -> Steps:
        """Collect the transformers of `steps`; return the steps after the raw codes.

        The raw codes are those of all transformers, without norm, side by side.

        Raises
        ------
        ExportError
            If a step takes anything else than images.
        """
        after, _ = self._after(steps)
        if not after or len(steps) == 1:
            name, last = steps[-1]
            raise ExportError(
                f"model: it ends with its step {name!r} ({type(last).__name__}). "
                "Expected a classifier or regressor after it."
            )
        return after

    def _after(self, steps: Steps) -> tuple[Steps, int]:
        """Steps after the raw codes of `steps`, and the length of these codes."""
        (name, first), *rest = steps
        if isinstance(first, CNNCodeTransformer):
            self._check(name, first)
            self.transformers.append((name, first))
            lengths = self._code_lengths(first)
            return [*_norm_steps(name, first.norm, lengths), *rest], sum(lengths)
        if isinstance(first, FeatureUnion):
            branches = [(n, b) for n, b in first.transformer_list if b != "drop"]
        elif isinstance(first, ColumnTransformer):
            branches = self._image_branches(name, first)
        else:
            raise ExportError(
                f"model: its first step {name!r} is {type(first).__name__}. Expected a "
                "CNNCodeTransformer, or a FeatureUnion or ColumnTransformer of them."
            )
        weights = first.transformer_weights or {}
        parts, end = [], 0
        for branch_name, branch in branches:
            branch_steps = flat_steps([(f"{name}__{branch_name}", branch)])
            after, length = self._after(branch_steps)
            columns = slice(end, end + length)
            parts.append((columns, after, float(weights.get(branch_name, 1))))
            end += length
        return [(name, SideBySide(parts)), *rest], end

    def _image_branches(self, name: str, step: ColumnTransformer) -> Steps:
        """The transformers of a ColumnTransformer, if all take the same one column."""
        branches = []
        for branch_name, branch, _ in step.transformers_:
            columns = step._transformer_to_input_indices.get(branch_name, [])
            if (isinstance(branch, str) and branch == "drop") or len(columns) == 0:
                continue
            column = (name, int(columns[0]))
            self._column = self._column or column
            if len(columns) > 1 or self._column != column:
                names = getattr(step, "feature_names_in_", range(step.n_features_in_))
                raise ExportError(
                    f"model: in its step {name!r} (ColumnTransformer), "
                    f"{branch_name!r} takes the columns "
                    f"{[names[number] for number in columns]}. Expected all "
                    "transformers to take the same single column of images, as the "
                    "exported model has one input."
                )
            branches.append((branch_name, branch))
        return branches

    def _check(self, name: str, transformer: CNNCodeTransformer) -> None:
        if transformer.decoder == "gpu":
            raise ExportError(
                f"model: its step {name!r} (CNNCodeTransformer) has decoder='gpu', "
                "which cannot be exported: OnnxClassifier decodes with Pillow. "
                "Expected decoder='auto', with the head fitted on such codes."
            )
        for parameter, required in _REQUIRED_PARAMETERS.items():
            value = getattr(transformer, parameter)
            if value != required:
                raise ExportError(
                    f"model: its step {name!r} (CNNCodeTransformer) has {parameter}="
                    f"{value!r}, which cannot be exported. Expected "
                    f"{parameter}={required!r}, with the head fitted on such codes."
                )
