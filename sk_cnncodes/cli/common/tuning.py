"""Tuning: a fine-tuning beside the frozen model, in words and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.datasets.labelled_images import LabelledImages

if TYPE_CHECKING:
    from sk_cnncodes.export.model_card import ModelCard, OperatingPoint
    from sk_cnncodes.inspection.tuning_display import FineTuningDisplay
    from sk_cnncodes.tuning.estimators import FineTunedClassifier, FineTunedRegressor
    from sk_cnncodes.tuning.validation import Decision


@dataclass(frozen=True)
class Tuning:
    """A fine-tuning beside the frozen model that `train` chose.

    Attributes
    ----------
    estimator : FineTunedClassifier or FineTunedRegressor
        Fitted.
    train : LabelledImages
        What it was trained on, and validated on.
    scoring : str
        Name of the scores.
    found : Decision
        By the scores of the validation part.
    rival : str
        The frozen model, in words.
    """

    estimator: FineTunedClassifier | FineTunedRegressor
    train: LabelledImages
    scoring: str
    found: Decision
    rival: str

    @property
    def backbone(self) -> str:
        """What was fine-tuned."""
        return str(self.estimator.backbone)

    @property
    def train_from(self) -> int | str:
        """The layer before the first trained one."""
        return self.estimator.train_from

    @property
    def taken(self) -> bool:
        """Whether the tuned model is taken."""
        return self.found.tuned

    @property
    def n_validation(self) -> int:
        """Number of images that chose the epoch."""
        return len(self.estimator.validation_rows_)

    @property
    def n_trained(self) -> int:
        """Number of images that weights were trained on."""
        return len(self.train) - self.n_validation

    def parts(self) -> tuple[LabelledImages, LabelledImages]:
        """The images that weights were trained on, and those that chose the epoch."""
        valid = self.estimator.validation_rows_
        trained = np.setdiff1d(np.arange(len(self.train)), valid)
        return self.train.take(trained.tolist()), self.train.take(valid.tolist())

    def decision(self) -> str:
        """Which model was taken, and why, in words."""
        from sk_cnncodes.ranking.ranked_codes import SHARES, short_name

        percent = self.scoring in SHARES
        shown = "{:.2f}%" if percent else "{:.4f}"
        factor, unit = (100, " points") if percent else (1, "")
        model = self.estimator
        epoch = f"epoch {model.best_epoch_} of {model.n_iter_}"
        if not model.best_epoch_:
            epoch = f"before training: no epoch of {model.n_iter_} was better"
        text = (
            f"On {self.n_validation} validation images, {short_name(self.backbone)} "
            f"fine-tuned after layer {self.train_from} has "
            f"{shown.format(factor * self.found.tuned_score)} {self.scoring} "
            f"({epoch}), and {self.rival} "
            f"{shown.format(factor * self.found.frozen_score)}: "
            f"{self.found.compared(factor, unit)}."
        )
        if self.taken:
            return f"The tuned model is taken. {text}"
        return f"The frozen model is kept. {text} {self.found.rule}"

    @property
    def caution(self) -> str:
        """What to know of a page about the validation images."""
        return (
            f"No image is held out: the page is about the {self.n_validation} "
            "validation images, which also chose the epoch, so that its figures are "
            "slightly too good for new images."
        )

    def display(self) -> FineTuningDisplay:
        """The curves, for the page."""
        from sk_cnncodes.inspection.tuning_display import FineTuningDisplay

        found = FineTuningDisplay.from_estimator(self.estimator)
        found.is_tuned, found.decision = self.taken, self.decision()
        weighted = getattr(self.estimator, "class_weight", None) is not None
        if found.scoring == self.scoring and not weighted:
            found.frozen_score = self.found.frozen_score
            found.gain_error = self.found.error
        return found

    def as_dict(self, frozen: dict[str, Any] | None) -> dict[str, Any]:
        """The figures as values for JSON."""
        model = self.estimator
        return {
            "backbone": self.backbone,
            "train_from": self.train_from,
            "taken": self.taken,
            "decision": self.decision(),
            "scoring": self.scoring,
            "frozen_score": self.found.frozen_score,
            "tuned_score": self.found.tuned_score,
            "gain": self.found.gain,
            "standard_error": self.found.error,
            "losses": self.found.losses,
            "trained_images": self.n_trained,
            "validation_images": self.n_validation,
            "epochs": model.n_iter_,
            "best_epoch": model.best_epoch_,
            "history": {
                name: [None if math.isnan(value) else value for value in values]
                for name, values in model.history_.items()
            },
            "precision": model.precision_,
            "maps_bytes": model.maps_bytes_,
            "seconds": model.timings_["all"],
            "held_out_frozen": frozen,
        }

    def described(self, card: ModelCard) -> ModelCard:
        """The card of the tuned model, from that of the frozen one."""
        from sk_cnncodes.export.model_card import operating_points

        model = self.estimator
        _, valid = self.parts()
        points: tuple[OperatingPoint, ...] = ()
        if self.train.task == "classification":
            probabilities = model.pipeline_.predict_proba(valid.paths)
            points = operating_points(
                probabilities, model.classes_, np.asarray(valid.targets)
            )
        return replace(
            card,
            backbone_sha256=model.pipeline_["codes"].fitted_backbone_["sha256"],
            layers=(-1,),
            norm="power",
            head=f"linear head, fine-tuned with the layers after {self.train_from}",
            n_images=self.n_trained,
            scoring=self.scoring,
            cv_score=self.found.tuned_score,
            n_folds=1,
            operating_points=points,
            n_tested=self.n_validation,
        )
