"""`train --fine-tune`: its options, what is checked first, and the training itself."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from sk_cnncodes.cli.common.frame import note, parse_layer
from sk_cnncodes.cli.common.tuning import Tuning
from sk_cnncodes.datasets.labelled_images import LabelledImages

if TYPE_CHECKING:
    from sk_cnncodes.codes.transformer import CNNCodeTransformer
    from sk_cnncodes.heads.code_estimators import CNNCodeClassifier, CNNCodeRegressor
    from sk_cnncodes.tuning.estimators import FineTunedClassifier, FineTunedRegressor

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
    # Validated on as many images as a fold of the frozen model has.
    n_folds = sum(key.startswith("split") for key in model.cv_results_)
    estimator = _trained(model, train, start, cache, 1 / max(n_folds, 2))
    found = Tuning(
        estimator,
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
