"""`evaluate`: predict labelled images with any model of this library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.export.onnx_classifier import OnnxClassifier
from sk_cnncodes.images.containers import as_image_sequence
from sk_cnncodes.inspection.evaluation import Evaluation, ImageSet

# What images are compared by if a model gives no codes.
SIMILARITY_BACKBONE = "cnncodes-mini"


def evaluate(
    model: Any,
    images: Any,
    labels: Any,
    *,
    train_images: Any = None,
    train_labels: Any = None,
    groups: Any = None,
    label_names: Sequence[Any] | None = None,
    out_of_fold: bool = False,
) -> Evaluation:
    """Predict labelled images, and find out what there is to see.

    Parameters
    ----------
    model : estimator or OnnxClassifier
        Fitted: `CNNCodeClassifier`, `CNNCodeRegressor`, a Pipeline, a search, or what
        `load_model` returns.
    images : container of images
        As for `CNNCodeTransformer`.
    labels : array-like, shape (n_images,) or (n_images, n_labels)
        Classes, labels as 0 and 1, or values. Text stands for the class of a model that
        is written so.
    train_images, train_labels : container of images, array-like, or None, default=None
        What the model was fitted to, for the most similar ones of each image.
    groups : array-like, shape (n_images,), or None, default=None
        What each of `images` belongs to: intervals are then those of groups.
    label_names : sequence or None, default=None
        Names of several labels, or of several values; None takes their numbers.
    out_of_fold : bool, default=False
        Whether `images` are those that a `CNNCodeClassifier` or `CNNCodeRegressor` was
        fitted to: its `cv_predictions_` are shown, and the images are `train_images`
        too.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        If the model cannot predict images, or labels do not fit it.
    ImageError
        If an image cannot be read.
    """
    kind = _kind(model)
    sequence = as_image_sequence(images)
    known = [] if kind == "regression" else np.asarray(model.classes_).tolist()
    truth, classes = _as_truth(kind, known, labels, len(sequence), "labels")
    if label_names is not None and kind != "classification":
        classes = [str(name) for name in label_names]
        if len(classes) != truth.shape[1]:
            raise ValueError(
                f"label_names: expected {truth.shape[1]} of them, got {len(classes)}."
            )
    units = _as_groups(groups, len(sequence))
    reader = _Reader(model, kind)
    train = None
    if out_of_fold:
        codes = reader.codes(sequence)
        predicted, scores = _out_of_fold(model, kind, len(sequence))
        known_rows = np.isfinite(predicted.reshape(len(predicted), -1)).all(axis=1)
        rows = np.flatnonzero(known_rows)
        predicted = predicted[rows]
        predicted = predicted if kind == "regression" else predicted.astype(int)
        scores = None if scores is None else scores[rows]
        some = [sequence[int(row)] for row in rows]
        train = tested = ImageSet(some, truth[rows], codes[rows])
        units = None if units is None else units[rows]
    else:
        codes, found = reader.predict(sequence)
        predicted, scores = _as_predicted(kind, known, found)
        tested = ImageSet(sequence, truth, codes)
    if train_images is not None and not out_of_fold:
        seen = as_image_sequence(train_images)
        train_truth, more = _as_truth(
            kind, known, train_labels, len(seen), "train_labels", classes
        )
        classes = more if kind == "classification" else classes
        train = ImageSet(seen, train_truth, reader.codes(seen))
    return Evaluation(
        kind=kind,
        classes=classes,
        n_known=len(known),
        tested=tested,
        train=train,
        predicted=predicted,
        scores=scores,
        has_probabilities=reader.has_probabilities or (out_of_fold and _proba(kind)),
        out_of_fold=out_of_fold,
        similar_by=reader.similar_by,
        groups=units,
    )


def _as_groups(groups: Any, n_images: int) -> np.ndarray | None:
    """Numbers of groups; None if each image is one of its own."""
    if groups is None:
        return None
    if len(groups) != n_images:
        raise ValueError(
            f"groups: expected one for each of {n_images} images, got {len(groups)}."
        )
    found, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return None if len(found) == n_images else np.asarray(numbers)


# -- models ------------------------------------------------------------------------


def _proba(kind: str) -> bool:
    return kind == "classification"


def fitted_pipeline(model: Any) -> Any:
    """The Pipeline inside of an estimator, or else the estimator itself."""
    for name in ("pipeline_", "best_estimator_"):
        inner = getattr(model, name, None)
        if inner is not None:
            return fitted_pipeline(inner)
    return model


def reads_codes(model: Any) -> Callable[[Sequence[Any]], np.ndarray]:
    """What computes the codes by which `evaluate` compares images."""
    return _Reader(model, _kind(model)).codes


def _kind(model: Any) -> str:
    inner = fitted_pipeline(model)
    if not hasattr(inner, "predict"):
        raise TypeError(
            f"model: expected a fitted classifier or regressor of images, got "
            f"{type(model).__name__}."
        )
    if isinstance(inner, OnnxClassifier):
        return "regression" if "values" in inner.outputs else "classification"
    classes = getattr(inner, "classes_", None)
    if classes is None:
        return "regression"
    ranking = getattr(model, "ranking_", None)
    if ranking is not None:
        return str(ranking.kind)
    return "multilabel" if _takes_several_labels(inner) else "classification"


def _takes_several_labels(model: Any) -> bool:
    """Whether a fitted classifier has several labels, by what its head says."""
    head = model[-1] if isinstance(model, Pipeline) else model
    if hasattr(head, "multilabel_"):
        return bool(head.multilabel_)
    # As RidgeClassifier, MLPClassifier and others keep what transforms labels.
    binarizer = getattr(
        head, "_label_binarizer", getattr(head, "label_binarizer_", None)
    )
    kind = getattr(binarizer, "y_type_", "")
    return str(kind).startswith("multilabel")


class _Reader:
    """What gives codes and predictions of images, from one pass where that is possible.

    Parameters
    ----------
    model : estimator or OnnxClassifier
    kind : str
    """

    def __init__(self, model: Any, kind: str) -> None:
        self._model = inner = fitted_pipeline(model)
        self._kind = kind
        self._has_codes = isinstance(inner, Pipeline) and len(inner.steps) > 1
        onnx = isinstance(inner, OnnxClassifier)
        self.has_probabilities = kind != "regression" and (
            "probabilities" in inner.outputs
            if onnx
            else hasattr(inner, "predict_proba")
        )
        self.similar_by = "" if self._has_codes else SIMILARITY_BACKBONE

    def codes(self, images: Sequence[Any]) -> np.ndarray:
        """Codes by which images are compared."""
        if self._has_codes:
            found = self._model[:-1].transform(images)
        else:
            found = CNNCodeTransformer(SIMILARITY_BACKBONE, norm="l2").transform(images)
        codes = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
        return np.asarray(codes, np.float32).reshape(len(images), -1)

    def predict(
        self, images: Sequence[Any]
    ) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
        """Codes, and "label" and "scores"."""
        model: Any = self._model
        if isinstance(model, OnnxClassifier):
            found = model.run(images)
            if "values" in found:
                return self.codes(images), {"label": found["values"], "scores": None}
            scores = found.get("probabilities", found.get("decision"))
            label = found["label"].astype(model.classes_.dtype)
            return self.codes(images), {"label": label, "scores": scores}
        codes = self.codes(images)
        given: Any = images
        if self._has_codes:
            model, given = model[-1], codes
        scores = None
        if self.has_probabilities:
            scores = model.predict_proba(given)
        elif self._kind != "regression" and hasattr(model, "decision_function"):
            scores = model.decision_function(given)
        return codes, {"label": model.predict(given), "scores": scores}


def _as_predicted(
    kind: str, known: list[Any], found: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Predictions in the form of `ImageSet.truth`, and scores of each class."""
    label, scores = np.asarray(found["label"]), found["scores"]
    if kind == "regression":
        return label.astype(float).reshape(len(label), -1), None
    if kind == "multilabel":
        if isinstance(scores, list):  # one array [n, 2] for each label
            scores = np.stack([each[:, -1] for each in scores], axis=1)
        return label.astype(int), np.asarray(scores, float)
    number = {name: position for position, name in enumerate(known)}
    predicted = np.array([number[name] for name in label.tolist()], int)
    if scores is None:
        return predicted, None
    scores = np.asarray(scores, float)
    if scores.ndim == 1:
        scores = np.column_stack([-scores, scores])
    elif len(known) == 2 and scores.shape[1] == 1:
        scores = np.hstack([-scores, scores])
    # Decision values of pairs of classes say nothing of one.
    return predicted, scores if scores.shape[1] == len(known) else None


def _out_of_fold(
    model: Any, kind: str, n_images: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Predictions and scores of the images that a model was fitted to."""
    values = getattr(model, "cv_predictions_", None)
    if values is None:
        raise TypeError(
            "out_of_fold: expected a fitted CNNCodeClassifier or CNNCodeRegressor, got "
            f"{type(model).__name__}."
        )
    if len(values) != n_images:
        raise ValueError(
            f"images: expected the {len(values)} images of fit for out_of_fold=True, "
            f"got {n_images}."
        )
    if kind == "regression":
        return values.reshape(len(values), -1), None
    tested = np.isfinite(values).all(axis=1)
    if kind == "multilabel":
        return np.where(tested[:, None], values > 0, np.nan), values
    return np.where(tested, values.argmax(axis=1), np.nan), values


# -- labels ------------------------------------------------------------------------


def _as_truth(
    kind: str,
    known: list[Any],
    labels: Any,
    n_images: int,
    name: str,
    classes: list[str] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Labels in the form of `ImageSet.truth`, and names of all classes."""
    given = labels.toarray() if hasattr(labels, "toarray") else np.asarray(labels)
    if given.ndim == 0 or len(given) != n_images:
        raise ValueError(
            f"{name}: expected one for each of {n_images} images, got "
            f"{'none' if given.ndim == 0 else len(given)}."
        )
    if kind == "regression":
        try:
            values = given.astype(float).reshape(n_images, -1)
        except ValueError as error:
            raise ValueError(f"{name}: expected values, got {given[0]!r}.") from error
        return values, [str(column) for column in range(values.shape[1])]
    if kind == "multilabel":
        if given.ndim != 2 or given.shape[1] != len(known) or not _is_binary(given):
            raise ValueError(
                f"{name}: expected 0 and 1 in an array of shape ({n_images}, "
                f"{len(known)}), as the model has several labels; got "
                f"{given.dtype} of shape {given.shape}."
            )
        return given.astype(int), [str(each) for each in known]
    if given.ndim != 1:
        raise ValueError(
            f"{name}: expected one class for each image, got an array of shape "
            f"{given.shape}."
        )
    names = [str(each) for each in known] if classes is None else list(classes)
    number = {each: position for position, each in enumerate(names)}
    texts = [str(each) for each in given.tolist()]
    if not {*texts} & {*names}:
        raise ValueError(
            f"{name}: none is a class of the model, {names[:9]}; got "
            f"{sorted({*texts})[:9]}."
        )
    for text in sorted({*texts} - {*names}):
        number[text] = len(names)
        names.append(text)
    return np.array([number[text] for text in texts], int), names


def _is_binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, [0, 1]).all())
