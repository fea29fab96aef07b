"""ModelCard: what a saved model is, and what its training showed of it."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import numpy as np

from sk_cnncodes._version import __version__
from sk_cnncodes.backbones.catalogue import find_row_by_digest
from sk_cnncodes.backbones.hub_address import is_hub_address
from sk_cnncodes.base.exceptions import first_line
from sk_cnncodes.base.public import public

_MAX_POINTS = 100


@public
@dataclass(frozen=True)
class OperatingPoint:
    """How often a classifier is right where it is at least so sure.

    Attributes
    ----------
    threshold : float
        Least probability of the predicted class.
    accuracy : float
        Share of right predictions among the images at or above the threshold.
    coverage : float
        Share of these images among all.
    """

    threshold: float
    accuracy: float
    coverage: float


@public
@dataclass(frozen=True)
class ModelCard:
    """What a saved model is, and what its training showed of it.

    Attributes
    ----------
    task : {"classification", "multilabel", "regression"}
    backbone : str
        Name, or name of the file without its folders.
    backbone_sha256 : str
    backbone_license : str or None
        SPDX identifier; None for a file that is not in the catalogue.
    layers : tuple of int or str
    norm : str or None
    head : str
        In words.
    classes : tuple of str, int, float or bool
        Classes, or names of labels, in the order of the columns of the model's
        probabilities; () for a regression.
    n_images : int
        Number of images that the saved model was fitted to.
    scoring : str
        Name of `cv_score`.
    cv_score : float
        Cross-validated score of the chosen combination.
    n_folds : int
        1 for a fine-tuned network, whose score is that of a validation part.
    operating_points : tuple of OperatingPoint
        By rising threshold, from out-of-fold probabilities of the images that codes and
        head were chosen on; () for what has no probabilities, for nearest neighbours,
        and with scikit-learn before 1.8.
    n_tested : int
        Number of these images.
    seed : int or None
    versions : dict of str to str
        Of sk_cnncodes, scikit-learn and ONNX Runtime.
    created : str
        Date and time in UTC, as in ISO 8601.
    command : str or None
        Command that trained the model. Of paths outside the working directory it has
        the last part only, so that a model that is passed on tells no folders.

    See Also
    --------
    read_model_card : Read the card of a file.
    save_model : Save a model with its card.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import CNNCodeClassifier, ModelCard
    >>> digits = load_digits()
    >>> X, y = digits.images[:100] / 16, digits.target[:100]
    >>> model = CNNCodeClassifier(layers=[-1], heads="lda").fit(X, y)
    >>> card = ModelCard.from_estimator(model, y)
    >>> card.backbone, card.backbone_license, card.layers, card.head, card.n_images
    ('cnncodes-mini', 'Apache-2.0', (-1,), 'shrinkage LDA', 100)
    >>> ModelCard.from_json(card.to_json()) == card
    True
    """

    task: str
    backbone: str
    backbone_sha256: str
    backbone_license: str | None
    layers: tuple[int | str, ...]
    norm: str | None
    head: str
    classes: tuple[Any, ...]
    n_images: int
    scoring: str
    cv_score: float
    n_folds: int
    operating_points: tuple[OperatingPoint, ...]
    n_tested: int
    seed: int | None
    versions: dict[str, str]
    created: str
    command: str | None = None

    @classmethod
    def from_estimator(
        cls,
        model: Any,
        y: Any,
        *,
        classes: Sequence[Any] | None = None,
        n_images: int | None = None,
        command: Sequence[str] | None = None,
    ) -> Self:
        """Describe a fitted `CNNCodeClassifier` or `CNNCodeRegressor`.

        Parameters
        ----------
        model : CNNCodeClassifier or CNNCodeRegressor
        y : array-like
            What `fit` got.
        classes : sequence or None, default=None
            Names of several labels; None takes the numbers of their columns.
        n_images : int or None, default=None
            Number of images that `refit` got; None is that of `y`.
        command : sequence of str or None, default=None
            Words of the command that trained it.

        Returns
        -------
        ModelCard
        """
        from sk_cnncodes.heads.presets import HEADS, REGRESSORS

        y = np.asarray(y.toarray() if hasattr(y, "toarray") else y)
        chosen = model.best_params_
        known = getattr(model, "classes_", None)
        task = "regression" if known is None else "classification"
        if known is not None and y.ndim == 2 and y.shape[1] > 1:
            task = "multilabel"
        heads = REGRESSORS if task == "regression" else HEADS
        layer = chosen["layer"]
        points: tuple[OperatingPoint, ...] = ()
        n_tested = int(
            np.isfinite(np.reshape(model.cv_predictions_, (len(y), -1))).all(1).sum()
        )
        if task == "classification" and _is_calibrated_by_temperature(model):
            points = operating_points(model.cv_predictions_, model.classes_, y.ravel())
        names = known if classes is None else classes
        reference = model.pipeline_["codes"].fitted_backbone_
        row = find_row_by_digest(reference["sha256"])
        seed = model.random_state
        return cls(
            task=task,
            backbone=_named(chosen["backbone"]),
            backbone_sha256=reference["sha256"],
            backbone_license=None if row is None else row.license,
            layers=tuple(layer) if isinstance(layer, (list, tuple)) else (layer,),
            norm=chosen["norm"],
            head=heads[chosen["head"]][0],
            classes=() if names is None else tuple(np.asarray(names).tolist()),
            n_images=len(y) if n_images is None else n_images,
            scoring=model.ranking_.scoring,
            cv_score=float(model.best_score_),
            n_folds=sum(key.startswith("split") for key in model.cv_results_),
            operating_points=points,
            n_tested=n_tested,
            seed=seed if isinstance(seed, int) else None,
            versions=_versions(),
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            command=None if command is None else _command_text(command),
        )

    def to_json(self) -> str:
        """The card as a JSON object."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a card from JSON.

        Raises
        ------
        ValueError
            If it is not the JSON of a card. Values that a later version added are left
            out.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError(f"got {values!r:.100}")
            known = {field.name for field in fields(cls)}
            values = {key: value for key, value in values.items() if key in known}
            values["operating_points"] = tuple(
                OperatingPoint(*(float(point[f.name]) for f in fields(OperatingPoint)))
                for point in values["operating_points"]
            )
            for key in ("layers", "classes"):
                values[key] = tuple(values[key])
            for key in ("task", "backbone", "head"):
                if not isinstance(values[key], str):
                    raise ValueError(f"{key}: got {values[key]!r:.100}")
            return cls(**values)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"expected the JSON object of a model card ({first_line(error)})."
            ) from error

    def threshold_for(self, accuracy: float) -> OperatingPoint:
        """The lowest threshold from which on predictions were right so often.

        Parameters
        ----------
        accuracy : float
            Above 0 and below 1. It is that of the images above the threshold, and
            counts as reached only by at least ``1 / (1 - accuracy)`` of them: fewer
            could not show one mistake in so many.

        Returns
        -------
        OperatingPoint

        Raises
        ------
        ValueError
            If the card has no thresholds, or none reached the accuracy.
        """
        if not self.operating_points:
            raise ValueError("the model card has no thresholds.")
        return find_threshold(self.operating_points, self.n_tested, accuracy)


# -- values ------------------------------------------------------------------


def operating_points(
    probabilities: np.ndarray, classes: np.ndarray, y: np.ndarray
) -> tuple[OperatingPoint, ...]:
    """Accuracy and coverage by threshold, at up to 100 coverages.

    Parameters
    ----------
    probabilities : ndarray, shape (n_images, n_classes)
        Out of fold; NaN for images that were not tested.
    classes : ndarray, shape (n_classes,)
    y : ndarray, shape (n_images,)
    """
    tested = np.isfinite(probabilities).all(axis=1)
    p, y = probabilities[tested], np.asarray(y)[tested]
    if not len(p):
        return ()
    certainty = p.max(axis=1)
    right = np.asarray(classes)[p.argmax(axis=1)] == y
    order = np.argsort(-certainty, kind="stable")
    sorted_certainty = certainty[order]
    accuracy = np.cumsum(right[order]) / np.arange(1, len(p) + 1)
    # Images that are equally sure are above a threshold together.
    last = np.flatnonzero(np.append(np.diff(sorted_certainty) != 0, True))
    wanted = np.linspace(0, len(last) - 1, min(_MAX_POINTS, len(last)))
    chosen = last[np.unique(wanted.round().astype(int))][::-1]
    return tuple(
        OperatingPoint(
            threshold=float(sorted_certainty[i]),
            accuracy=round(float(accuracy[i]), 6),
            coverage=round((int(i) + 1) / len(p), 6),
        )
        for i in chosen
    )


def find_threshold(
    points: Sequence[OperatingPoint], n_tested: int, accuracy: float
) -> OperatingPoint:
    """The lowest threshold that reaches an accuracy; see `ModelCard.threshold_for`.

    Parameters
    ----------
    points : sequence of OperatingPoint
        By rising threshold.
    n_tested : int
        Number of images that they were measured on.
    accuracy : float
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy: expected a number from 0 to 1, got {accuracy}.")
    least = math.ceil(round(1 / (1 - accuracy), 6))
    usable = [point for point in points if round(point.coverage * n_tested) >= least]
    found = None
    for point in reversed(usable):
        if point.accuracy < accuracy:
            break
        found = point
    if found is None:
        best = max(usable, key=lambda point: point.accuracy, default=None)
        reached = (
            f"training tested {n_tested} images, and {least} are needed"
            if best is None
            else f"the highest was {best.accuracy:.4g}, on {best.coverage:.0%} of the "
            "images"
        )
        raise ValueError(
            f"accuracy: no threshold reached {accuracy:g} in training; {reached}."
        )
    return found


def _is_calibrated_by_temperature(model: Any) -> bool:
    """Whether probabilities of the pipeline are scaled as those out of fold are.

    Nearest neighbours have no decision values; their probabilities are 0 in the one
    case, and small numbers in the other.
    """
    head = model.pipeline_["head"]
    is_scaled = getattr(head, "method", None) == "temperature"
    return is_scaled and hasattr(head.estimator, "decision_function")


def _versions() -> dict[str, str]:
    found = {"sk_cnncodes": __version__}
    for name, packages in (
        ("scikit-learn", ["scikit-learn"]),
        ("onnxruntime", ["onnxruntime-gpu", "onnxruntime"]),
    ):
        for package in packages:
            try:
                found[name] = version(package)
                break
            except PackageNotFoundError:
                continue
    return found


def _named(backbone: object) -> str:
    """A backbone without folders; an address of the Hub in full."""
    text = str(backbone)
    return text if is_hub_address(backbone) else last_part(text)


def last_part(path: str) -> str:
    """A path without its folders, of any system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _command_text(words: Sequence[str]) -> str:
    """A command as a shell takes it, without folders outside the working directory."""
    return shlex.join([_without_folders(word) for word in words])


def _without_folders(word: str) -> str:
    option, equals, value = word.partition("=")
    if not (equals and option.startswith("-")):
        option, equals, value = "", "", word
    outside = re.match(
        r"[\\/~]|[A-Za-z]:[\\/]|\.\.(?:[\\/]|$)|.*[\\/]\.\.(?:[\\/]|$)", value
    )
    return option + equals + ((last_part(value) if outside else "") or value)
