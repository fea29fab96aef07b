"""`train --fine-tune`: its options, what is checked first, and the training itself."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from sk_cnncodes.cli.common.frame import note, parse_layer
from sk_cnncodes.datasets.labelled_images import LabelledImages

if TYPE_CHECKING:
    from sk_cnncodes.codes.transformer import CNNCodeTransformer
    from sk_cnncodes.export.model_card import ModelCard, OperatingPoint
    from sk_cnncodes.heads.code_estimators import CNNCodeClassifier, CNNCodeRegressor
    from sk_cnncodes.inspection.tuning_display import FineTuningDisplay
    from sk_cnncodes.tuning.estimators import FineTunedClassifier, FineTunedRegressor
    from sk_cnncodes.tuning.validation import Decision

FineTuneOption = Annotated[
    bool,
    typer.Option(
        "--fine-tune",
        help="Then also train later layers of the chosen backbone (needs the extra "
        "torch), and take them if that is better by more than chance.",
    ),
]
TrainFromOption = Annotated[
    str | None,
    typer.Option(
        "--train-from",
        metavar="LAYER",
        show_default=False,
        help="With --fine-tune: train what comes after this layer, such as -4; or "
        "all.  [default: -2 if layer -1 is clearly the best, as for images like those "
        "of the backbone; otherwise -4]",
    ),
]
# With fewer images, fine-tuning is refused.
FEWEST = 500
_MEASURED = (
    "In tests with mobilenet_v2 and 100, 200, 300 and 1,000 images of clothes, tuned "
    "models were 0.5 to 6 points below frozen ones on new images, and with 6,000 "
    "above; the validation part of so few cannot tell a gain from chance."
)
# The layers before the first trained one, for images that are like those that the
# backbone knows, and for others.
_SIMILAR, _UNLIKE = -2, -4


@dataclass(frozen=True)
class Tuning:
    """A fine-tuning beside the frozen model that `train` chose.

    Attributes
    ----------
    estimator : FineTunedClassifier or FineTunedRegressor
        Fitted.
    backbone : str
    train_from : int or str
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
    backbone: str
    train_from: int | str
    train: LabelledImages
    scoring: str
    found: Decision
    rival: str

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


def read_train_from(fine_tune: bool, train_from: str | None) -> int | str | None:
    """Read `--train-from`."""
    if train_from is None:
        return None
    if not fine_tune:
        raise typer.BadParameter("--train-from: expected --fine-tune beside it.")
    layer = parse_layer(train_from)
    if isinstance(layer, list):
        raise typer.BadParameter(
            f"--train-from: expected one layer, got {train_from!r}."
        )
    return layer


def check_fine_tuning(
    train: LabelledImages,
    transformers: Sequence[CNNCodeTransformer],
    train_from: int | str | None,
    limit: dict[str, Any],
) -> None:
    """Refuse, before anything is computed, what cannot be fine-tuned or cannot pay.

    Parameters
    ----------
    train : LabelledImages
        Those to train on.
    transformers : sequence of CNNCodeTransformer
        Of all backbones.
    train_from : int, str or None
    limit : dict
        What `--max-pixels` sets.

    Raises
    ------
    ImportError
        If torch is missing.
    ValueError
        If images have several labels or are too few, or torch cannot run the layers
        (`BackboneError`).
    """
    from sk_cnncodes.tuning.fitting import require_torch

    require_torch()
    if train.task == "multilabel":
        raise ValueError(
            "--fine-tune: expected one class for each image, or values to regress, got "
            "several labels. Train without it: the codes are those of frozen layers."
        )
    if limit:
        raise ValueError(
            "--fine-tune: expected no --max-pixels beside it; images are trained on "
            "with the usual limit."
        )
    if len(train) < FEWEST:
        raise ValueError(
            f"--fine-tune: expected at least {FEWEST} images to train on, got "
            f"{len(train)}. {_MEASURED} Train without --fine-tune, or with more images."
        )
    from sk_cnncodes.backbones.loading import load_backbone
    from sk_cnncodes.tuning.tail import read_tail

    for each in transformers:
        backbone = load_backbone(each.backbone)
        start = train_from
        if start is None:
            start = _at_most(_UNLIKE, len(backbone.layers))
        read_tail(backbone, start)


def _at_most(layer: int, n_layers: int) -> int:
    """A layer, or the earliest one of a backbone with fewer."""
    return max(layer, -n_layers)


def suggested_start(model: CNNCodeClassifier | CNNCodeRegressor) -> int:
    """After which layer to train, by what the ranking says of the images.

    Where layer -1 is better than all earlier ones by more than chance, the last layers
    suit the images as they are, and the last block alone is trained; otherwise the
    last three blocks are.
    """
    from sk_cnncodes.backbones.loading import load_backbone

    ranking, backbone = model.ranking_, model.best_params_["backbone"]
    answers = {each.name: each.answer for each in ranking.advice().findings}
    same = ranking.recommended.backbone == backbone
    wanted = _SIMILAR if same and answers.get("similarity") == "yes" else _UNLIKE
    return _at_most(wanted, len(load_backbone(backbone).layers))


def fine_tuned(
    model: CNNCodeClassifier | CNNCodeRegressor,
    train: LabelledImages,
    train_from: int | str | None,
    cache: Any,
) -> Tuning:
    """Fine-tune the chosen backbone, and compare it with the frozen model.

    It has to beat two frozen models on its validation part: the best head on the codes
    of layer -1, as `FineTunedClassifier` does, and then what was chosen, by its
    predictions out of fold.

    Parameters
    ----------
    model : CNNCodeClassifier or CNNCodeRegressor
        Fitted to `train`.
    train : LabelledImages
    train_from : int, str or None
        None takes the `suggested_start`.
    cache : str, path-like or None
        Where codes, and maps that fit, are kept.
    """
    from sk_cnncodes.tuning.frozen import FROZEN_HEADS

    start = suggested_start(model) if train_from is None else train_from
    backbone = str(model.best_params_["backbone"])
    # Validated on as many images as a fold of the frozen model has.
    n_folds = sum(key.startswith("split") for key in model.cv_results_)
    estimator = _trained(model, train, start, cache, 1 / max(n_folds, 2))
    found = Tuning(
        estimator,
        backbone,
        start,
        train,
        "r2" if train.task == "regression" else "accuracy",
        estimator.comparison,
        f"{FROZEN_HEADS[estimator.frozen_head_]} on frozen codes of layer -1",
    )
    return _against_chosen(found, model) if found.taken else found


def _trained(
    model: CNNCodeClassifier | CNNCodeRegressor,
    train: LabelledImages,
    start: int | str,
    cache: Any,
    fraction: float,
) -> Any:
    from sk_cnncodes.tuning.estimators import FineTunedClassifier, FineTunedRegressor

    parameters: dict[str, Any] = {
        "train_from": start,
        "validation_fraction": fraction,
        "cache": cache,
        "device": model.device,
        "n_jobs": model.n_jobs,
        "random_state": model.random_state,
        "verbose": sys.stderr is not None and sys.stderr.isatty(),
    }
    backbone = model.best_params_["backbone"]
    estimator: FineTunedClassifier | FineTunedRegressor
    if train.task == "regression":
        estimator = FineTunedRegressor(backbone, **parameters)
    else:
        parameters["class_weight"] = model.class_weight
        estimator = FineTunedClassifier(backbone, **parameters)
    note(
        f"Fine-tuning {backbone} after layer {start}; Ctrl-C ends the training, and "
        "keeps the best epoch so far ..."
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        estimator.fit(train.paths, train.targets, groups=train.groups)
    for each in caught:
        note(str(each.message))
    return estimator


def _against_chosen(
    tuning: Tuning, model: CNNCodeClassifier | CNNCodeRegressor
) -> Tuning:
    """Compare with the chosen codes and head, on the same images and by its scoring."""
    from sk_cnncodes.ranking.scoring import numbered, read_targets
    from sk_cnncodes.tuning.validation import decide

    train, pipeline = tuning.train, tuning.estimator.pipeline_
    values = np.reshape(model.cv_predictions_, (len(train), -1))
    rows = tuning.estimator.validation_rows_
    rows = rows[np.isfinite(values[rows]).all(axis=1)]
    paths = [train.paths[row] for row in rows]
    regresses = train.task == "regression"
    tuned = pipeline.predict(paths) if regresses else pipeline.predict_proba(paths)
    both = np.stack([values[rows], np.reshape(tuned, (len(rows), -1))])
    if not regresses:  # as decision values, of which there is one temperature
        both = np.log(np.maximum(both, 1e-12))
    scoring = model.ranking_.scoring
    targets, _ = read_targets(np.asarray(train.targets), scoring)
    groups = None
    if train.groups is not None:
        groups = numbered([train.groups[row] for row in rows])
    return replace(
        tuning,
        scoring=scoring,
        found=decide(both[0], both[1], targets.take(rows), scoring, groups=groups),
        rival="the chosen frozen codes and head, out of fold,",
    )


def trained_anew(
    tuning: Tuning,
    model: CNNCodeClassifier | CNNCodeRegressor,
    images: LabelledImages,
    cache: Any,
) -> Tuning:
    """For `--refit`: trained on all images, if that is better by more than chance."""
    fraction = tuning.estimator.validation_fraction
    estimator = _trained(model, images, tuning.train_from, cache, fraction)
    if estimator.is_tuned_:
        return replace(tuning, estimator=estimator, train=images)
    note(
        "--refit: trained on all images, the gain was not more than chance; the tuned "
        "model of the figures is saved."
    )
    return tuning
