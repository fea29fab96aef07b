"""Base class of the estimators that fine-tune: parameters, `fit`, and the result."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from sk_cnncodes.base.files import atomic_write, check_not_an_input
from sk_cnncodes.base.logs import logger
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.heads.pipeline_models import PipelineModel
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.ranking.scoring import Targets
from sk_cnncodes.tuning.frozen import FROZEN_HEADS
from sk_cnncodes.tuning.parameters import check_tuning
from sk_cnncodes.tuning.validation import Decision, make_parts


class FineTuning(PipelineModel):
    """Base class of `FineTunedClassifier` and `FineTunedRegressor`.

    Attributes are those of `FineTunedClassifier`.
    """

    decision_: str
    # The tuned ONNX model, an array of bytes; None if the network is as it was.
    _tuned_model: np.ndarray | None = None
    # The tensor after which a model that was taken was trained.
    _trained_after: str | None = None
    # Digests of the images that the tuned model was trained on.
    _trained_on: np.ndarray | None = None

    def __init__(
        self,
        backbone: str | os.PathLike[str] = "cnncodes-mini",
        *,
        layer: int | str = -1,
        train_from: int | str = -4,
        pooling: str = "auto",
        head: str = "linear",
        hidden: int | Sequence[int] = 256,
        learning_rate: float | Mapping[int | str, float] = 3e-4,
        layer_decay: float = 0.8,
        head_learning_rate: float = 1e-3,
        max_epochs: int = 10,
        patience: int = 3,
        validation_fraction: float = 0.2,
        views: str = "flip",
        mixup: float = 0.0,
        batch_size: int = 64,
        weight_decay: float = 0.01,
        precision: str = "float32",
        maps: str = "float16",
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        cache: str | os.PathLike[str] | CodeCache | None = "memory",
        device: str = "auto",
        n_jobs: int | None = -1,
        random_state: Any = 0,
        verbose: bool = False,
        warm_start: bool = False,
    ) -> None:
        self.backbone = backbone
        self.layer = layer
        self.train_from = train_from
        self.pooling = pooling
        self.head = head
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.layer_decay = layer_decay
        self.head_learning_rate = head_learning_rate
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.views = views
        self.mixup = mixup
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.precision = precision
        self.maps = maps
        self.preprocessing = preprocessing
        self.cache = cache
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start

    def tune(
        self,
        images: Sequence[Any],
        targets: Targets,
        y: np.ndarray,
        sample_weight: Any,
        groups: Any,
    ) -> None:
        """Fit to images; sets all attributes but the classes.

        Parameters
        ----------
        images : sequence
        targets : Targets
            With the weights of the classes.
        y : ndarray
            Classes or values, as heads take them.
        sample_weight, groups : array-like or None
        """
        parameters = self.get_params(deep=False)
        check_tuning(parameters)
        require_torch()
        if len(images) != len(y):
            raise ValueError(
                f"X and y: expected as many images as targets, got {len(images)} and "
                f"{len(y)}: inconsistent numbers of samples."
            )
        weights = image_weights(targets, sample_weight, len(y))
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=3)
        split, *others = (int(seed) for seed in seeds)
        fraction = float(self.validation_fraction)
        parts = make_parts(fraction, targets, y, weights, groups, split)

        from sk_cnncodes.tuning.run import Task, fine_tune

        previous = trained_after = trained_on = None
        if self.warm_start:
            trained_after, trained_on = self._trained_after, self._trained_on
            if self._tuned_model is not None:
                previous = self._tuned_model.tobytes()
        given = parameters, images, y, parts, sample_weight is not None, others
        found = fine_tune(Task(*given, previous, trained_after, trained_on))
        outcome, frozen = found.outcome, found.frozen
        self.pipeline_ = found.pipeline
        self._tuned_model = None
        if found.model is not None:
            self._tuned_model = np.frombuffer(found.model, np.uint8)
        self._trained_after = found.trained_after if found.decision.tuned else None
        self._trained_on = found.trained_on
        self.is_tuned_ = found.decision.tuned
        self.history_ = outcome.history
        self.n_iter_, self.best_epoch_ = outcome.n_epochs, outcome.best_epoch
        self.frozen_head_ = frozen.name
        self.precision_ = outcome.precision
        self.notes_, self.maps_bytes_ = found.notes, found.maps_bytes
        self.timings_ = found.timings
        decision = found.decision
        self.frozen_score_ = decision.frozen_score
        self.tuned_score_ = decision.tuned_score
        self.gain_error_, self.validation_losses_ = decision.error, decision.losses
        self.validation_rows_ = parts.valid
        self.decision_ = self._explain(targets.kind)
        logger.info("fine-tuning: %s", self.decision_)
        if outcome.interrupted:
            warnings.warn(
                f"fit was interrupted after epoch {outcome.n_epochs} of "
                f"{self.max_epochs}; the best so far is kept. {self.decision_}",
                UserWarning,
                stacklevel=3,
            )

    @property
    def comparison(self) -> Decision:
        """The comparison of both models on the validation part."""
        return Decision(
            tuned=self.is_tuned_,
            frozen_score=self.frozen_score_,
            tuned_score=self.tuned_score_,
            error=self.gain_error_,
            losses=self.validation_losses_,
        )

    def _explain(self, kind: str) -> str:
        """Which model was taken, and why."""
        decision = self.comparison
        factor, unit = (1, " of R2") if kind == "regression" else (100, " points")
        compared = (
            f"on {len(self.validation_rows_)} validation images, tuned "
            f"{self.tuned_score_:.4f} (epoch {self.best_epoch_} of {self.n_iter_}) "
            f"against frozen {self.frozen_score_:.4f} "
            f"({FROZEN_HEADS[self.frozen_head_]}): {decision.compared(factor, unit)}"
        )
        if self.is_tuned_:
            return f"The tuned model is taken: {compared}."
        return (
            f"The frozen model is kept, and was fitted to all images: {compared}. "
            f"{decision.rule}"
        )

    def save_backbone(self, path: str | os.PathLike[str]) -> Path:
        """Write the tuned network to an ONNX file, which is a backbone again.

        ``CNNCodeTransformer(path)`` gives the tuned codes at every layer; up to
        `train_from` they are those of the backbone, to the last bit. The file has the
        names, layer numbers and preprocessing of the backbone, and in its metadata
        where it comes from.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        path : Path
            The file, which appears when it is complete.

        Raises
        ------
        ValueError
            If the network is as it was: the frozen model was kept, or the head alone
            was trained. Also if the file is the backbone itself.
        OSError
            If the file cannot be written.
        """
        check_is_fitted(self)
        if self._tuned_model is None:
            raise ValueError(
                "save_backbone: the network was not changed; its file is that of "
                f"backbone={os.fspath(self.backbone)!r}. {self.decision_}"
            )
        file = Path(path)
        check_not_an_input(file, [self.backbone])
        with atomic_write(file) as part:
            part.write_bytes(self._tuned_model.tobytes())
        return file

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "pipeline_")


def image_weights(targets: Targets, sample_weight: Any, n_images: int) -> np.ndarray:
    """The weights of images: those of their classes times their own.

    Raises
    ------
    ValueError
        If there are too few, or they are negative, not finite or all zero.
    """
    weights: np.ndarray = np.ones(n_images)
    if targets.weights is not None:
        weights = targets.weights
    if sample_weight is not None:
        weights = weights * _own_weights(sample_weight, n_images)
    if not weights.any():
        raise ValueError(
            "class_weight and sample_weight: expected a weight above 0 for some "
            "images, got 0 for all."
        )
    return weights


def _own_weights(sample_weight: Any, n_images: int) -> np.ndarray:
    try:
        own = np.asarray(sample_weight, float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"sample_weight: expected numbers, one for each of the {n_images} images: "
            f"{error}."
        ) from error
    own = np.full(n_images, float(own)) if own.ndim == 0 else own
    if own.shape != (n_images,):
        raise ValueError(
            f"sample_weight: expected one for each of the {n_images} images, got the "
            f"shape {own.shape}."
        )
    if not (np.isfinite(own).all() and (own >= 0).all() and own.any()):
        raise ValueError(
            "sample_weight: expected finite numbers from 0 on, and some above, got "
            f"{own.min()} to {own.max()}."
        )
    return own


def require_torch() -> None:
    """Raise an ImportError that says what to install."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Fine-tuning needs torch: pip install 'sk-cnncodes[torch]'. A fitted model "
            "predicts without it.",
            name="torch",
        ) from error
