"""A loaded model of any format, and what it predicts for images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import typer

from sk_cnncodes.base.exceptions import SavedModelError
from sk_cnncodes.cli.common.frame import note
from sk_cnncodes.cli.common.image_arguments import pixel_limit
from sk_cnncodes.cli.common.models import set_up

if TYPE_CHECKING:
    from sk_cnncodes.export.model_card import ModelCard

# A class, several labels, or values.
Kind = Literal["classes", "labels", "values"]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes
    ----------
    label : object
        A class, a list of labels, a value, or a list of values; `UNKNOWN` for a class
        that is not probable enough.
    score : float, list of float or None
        Probability of the class, or decision values of the labels; None if the model
        gives none.
    ranked : tuple of (label, float)
        The best classes by falling probability, the predicted one first; or the labels
        by falling decision value.
    best : object
        The predicted class, even if it is not probable enough.
    """

    label: Any
    score: Any = None
    ranked: tuple[tuple[Any, float], ...] = ()
    best: Any = None


class Predictor:
    """A model that predicts image files.

    Parameters
    ----------
    path : Path
        Of a joblib, skops or ONNX file.
    cache : Path or None
    device : str or None
        None leaves the model's.
    max_pixels : int or None
        As `--max-pixels`.

    Attributes
    ----------
    kind : {"classes", "labels", "values"}
    classes : list
        Classes, or names of labels; empty for values.
    card : ModelCard or None
    gives_scores : bool
    least : float
        Classes of a lower probability are unknown.
    top : int
        Number of ranked labels.
    """

    def __init__(
        self,
        path: Path,
        cache: Path | None,
        device: str | None,
        max_pixels: int | None,
    ) -> None:
        from sk_cnncodes.export.card_files import read_model_card
        from sk_cnncodes.export.loading import load_with_transformers
        from sk_cnncodes.export.onnx_classifier import OnnxClassifier

        self.path = path
        self.least, self.top = 0.0, 0
        self._model, transformers = load_with_transformers(path)
        self._is_onnx = isinstance(self._model, OnnxClassifier)
        name = type(self._model).__name__
        if not hasattr(self._model, "predict"):
            raise ValueError(
                f"model {str(path)!r}: contains a {name}, which cannot predict. "
                "Expected a fitted pipeline that ends with a classifier."
            )
        if not self._is_onnx and not transformers:
            raise ValueError(
                f"model {str(path)!r}: contains a {name}, which takes no images. "
                "Expected a model with a CNNCodeTransformer."
            )
        if self._is_onnx:
            if cache is not None:
                raise typer.BadParameter(
                    f"{str(path)!r} gives labels, and no codes that --cache could "
                    "store. Expected --cache only with a joblib or skops file."
                )
            self._model.device = device or self._model.device
            if max_pixels is not None:
                self._model.max_pixels = pixel_limit(max_pixels)["max_pixels"]
        else:
            set_up(transformers, cache, device, pixel_limit(max_pixels))
        self.card: ModelCard | None = None
        try:
            self.card = read_model_card(path)
        except SavedModelError as error:  # only some options need it
            note(f"Warning: {error}")
        self.kind: Kind = self._kind()
        known = getattr(self._model, "classes_", ())
        if self.kind == "labels" and self.card is not None:
            known = self.card.classes
        self.classes = [] if self.kind == "values" else np.asarray(known).tolist()
        self._columns = {label: column for column, label in enumerate(self.classes)}
        scoring = "decision_function" if self.kind == "labels" else "predict_proba"
        self.gives_scores = self.kind != "values" and hasattr(self._model, scoring)

    @property
    def model(self) -> Any:
        """The loaded pipeline, or an `OnnxClassifier`."""
        return self._model

    def _kind(self) -> Kind:
        if self._is_onnx:
            return "values" if "values" in self._model.outputs else "classes"
        from sklearn.base import is_regressor

        if self.card is not None and self.card.task == "multilabel":
            return "labels"
        return "values" if is_regressor(self._model) else "classes"

    def __call__(self, images: list[str]) -> list[Prediction]:
        """Predict images.

        Raises
        ------
        ImageError
            If one is bad.
        """
        if self.kind == "values":
            values = np.asarray(self._model.predict(images)).tolist()
            return [Prediction(value) for value in values]
        labels, scores = self._labels_and_scores(images)
        if self.kind == "labels":
            return [self._several(*row) for row in zip(labels, scores, strict=True)]
        if scores is None:
            return [Prediction(label, best=label) for label in labels]
        return [self._one(*row) for row in zip(labels, scores, strict=True)]

    def _labels_and_scores(self, images: list[str]) -> tuple[list[Any], Any]:
        """Predicted labels; and a table of scores with a column per class, or None."""
        if self._is_onnx:
            outputs = self._model.run(images)
            return outputs["label"].tolist(), outputs.get("probabilities")
        labels = np.asarray(self._model.predict(images))
        if labels.ndim != (2 if self.kind == "labels" else 1):
            raise ValueError(
                f"model {str(self.path)!r}: gives predictions of shape {labels.shape}. "
                "Expected one label per image, or a model card with the names of "
                "several: save_model(..., card=...)."
            )
        scores = None
        if self.gives_scores and self.kind == "labels":
            scores = self._model.decision_function(images)
        elif self.gives_scores:
            scores = self._model.predict_proba(images)
        elif self.kind == "labels":
            scores = [None] * len(labels)
        return labels.tolist(), scores

    def _one(self, label: Any, row: np.ndarray) -> Prediction:
        column = self._columns[label]
        probability = _rounded(row[column])
        # As rows show them.
        given = label if probability >= _rounded(self.least) else UNKNOWN
        return Prediction(given, probability, self._ranked(row, column), label)

    def _several(self, row: list[int], scores: Any) -> Prediction:
        has = [number for number, one in enumerate(row) if one]
        names = [self.classes[number] for number in has]
        if scores is None:
            return Prediction(names)
        values = [_rounded(scores[number]) for number in has]
        return Prediction(names, values, self._ranked(scores, None))

    def _ranked(
        self, row: np.ndarray, first: int | None
    ) -> tuple[tuple[Any, float], ...]:
        """The best labels with their scores, one of them in front."""
        if not self.top:
            return ()
        order = np.argsort(-row, kind="stable").tolist()
        if first is not None:
            # Classifiers with a threshold predict one that is not the most probable.
            order.remove(first)
            order.insert(0, first)
        best = order[: self.top]
        return tuple((self.classes[column], _rounded(row[column])) for column in best)


def _rounded(score: Any) -> float:
    return round(float(score), 6)
