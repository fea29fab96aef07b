"""FineTunedClassifier and FineTunedRegressor: later layers are trained in `fit`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted

from sk_cnncodes.base.public import public
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.heads.code_choice import as_targets, at_least_two
from sk_cnncodes.heads.pipeline_models import PipelineRegressor
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.ranking.scoring import read_targets
from sk_cnncodes.tuning.fitting import FineTuning
from sk_cnncodes.tuning.validation import check_given


@public
class FineTunedClassifier(ClassifierMixin, FineTuning):
    """Image classifier whose later layers are fine-tuned, where that pays.

    The layers up to `train_from` are frozen: they run once for each image and view, in
    ONNX Runtime, and their activations, the maps, are kept in a file. What comes after
    them is trained by torch, with a head that starts from ridge [1]_. The model is
    compared with the best head on frozen codes, on a validation part of the images,
    and only taken if it is better by more than chance; otherwise the frozen model is
    kept. Predictions need ONNX Runtime and no torch.

    It needs torch to fit: ``pip install 'sk-cnncodes[torch]'``.

    Parameters
    ----------
    backbone : str or path-like, default="cnncodes-mini"
        As in `CNNCodeTransformer`.
    layer : int or str, default=-1
        Layer whose codes the head gets.
    train_from : int or str, default=-4
        Layer before the first trained one: everything after it is trained. The same as
        `layer` trains the head alone, and ``"all"`` everything after the image. The
        earlier it is, the larger are the maps and the slower an epoch.
    pooling : str, default="auto"
        As in `CNNCodeTransformer`.
    head : {"linear", "mlp"}, default="linear"
        ``"mlp"`` has hidden layers, which are trained alone first.
    hidden : int or sequence of int, default=256
        Sizes of the hidden layers of an ``"mlp"``.
    learning_rate : float or mapping of int or str to float, default=3e-4
        Largest learning rate of the last block. Or a rate for the block that ends at
        each trained layer, such as ``{-3: 1e-4, -2: 2e-4, -1: 3e-4}``.
    layer_decay : float, default=0.8
        Factor of the learning rate from each block to the one before it: early layers
        are more general, and change less.
    head_learning_rate : float, default=1e-3
        Largest learning rate of the head.
    max_epochs : int, default=10
        Number of times that each image is trained on. Rates rise in the first 10% of
        the steps, but at most in one epoch, and fall by a cosine to the end.
    patience : int, default=3
        Epochs without a lower validation loss that end the training; the first one does
        not count.
    validation_fraction : float, default=0.2
        Part of the images that no weight is trained on, up to 0.5: one of n parts,
        where n is 1 / `validation_fraction`, rounded.
    views : {"center", "flip"}, default="flip"
        ``"flip"`` trains on mirror images too. They belong to the part of their image.
    mixup : float, default=0
        Parameter of mixup between maps [2]_; 0 is none.
    batch_size : int, default=64
        Number of images of a step.
    weight_decay : float, default=0.01
        Of AdamW; not of biases.
    precision : {"float32", "bfloat16", "auto"}, default="float32"
        Number format in which the trained layers are computed in the steps of the
        training; weights, the head, validation and predictions are float32. ``"auto"``
        is bfloat16 on GPUs of compute capability 8.0 on, and under Linux on CPUs with
        AMX or AVX512-BF16, where steps took half the time; elsewhere it is float32.
    maps : {"float16", "float32"}, default="float16"
        Number format of the maps. Values that float16 loses are kept as float32.
    preprocessing : Preprocessing, dict or None, default=None
        As in `CNNCodeTransformer`.
    cache : "memory", str, path-like, CodeCache or None, default="memory"
        As in `CNNCodeTransformer`: codes, and the activations of the frozen layers if
        they fit into a half of it, so that the candidates and folds of a search run
        the frozen layers once. With None, only the file of the maps takes room.
    device : str, default="auto"
        As in `CNNCodeTransformer`, and where weights are trained: ``"auto"`` is a GPU
        if torch has one.
    n_jobs : int or None, default=-1
        Number of threads, as in `CNNCodeTransformer`, also of torch.
    random_state : int, RandomState instance or None, default=0
        Draws the validation part, the order of the images, and new layers. The same
        number gives the same model on the same machine.
    verbose : bool, default=False
        Whether to show progress bars on standard error.
    warm_start : bool, default=False
        Whether `fit` continues from the layers that the last `fit` trained. With the
        same images, `y` and `random_state`, the validation part is the same, too.
    label_smoothing : float, default=0
        Part of a label that is given to all classes alike.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, in all losses and in the validation score.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
    pipeline_ : Pipeline
        The steps "codes", a `CNNCodeTransformer` that has the tuned network in itself,
        and "head".
    is_tuned_ : bool
        Whether the tuned model was taken.
    decision_ : str
        Which model was taken, and why.
    frozen_score_, tuned_score_ : float
        Accuracy on the validation part of the best frozen head and of the tuned model.
    gain_error_ : float
        Standard error of their difference.
    validation_losses_ : (float, float) or None
        Log-loss on the validation part of the frozen and of the tuned model, each with
        the temperature that suits it.
    validation_rows_ : ndarray of int
        Positions of the images of the validation part.
    frozen_head_ : {"ridge", "rbf"}
        The best head on frozen codes.
    n_iter_ : int
        Number of epochs.
    best_epoch_ : int
        The one with the lowest validation loss, whose weights are taken. 0 is before
        training.
    history_ : dict of str to list
        By epoch, from 0 on: "epoch", "loss", "validation_loss", "validation_score",
        "learning_rate", "head_learning_rate" (at its end) and "seconds" from the start
        of the training. Of epoch 0, "loss" is NaN.
    notes_ : list of str
        What makes the scores optimistic: images that are copies of others, and with
        `warm_start` those that an earlier fit trained on and this one validates with.
    precision_ : {"float32", "bfloat16"}
        The number format of the training.
    maps_bytes_ : int
        Size of the file of the maps, which was removed.
    timings_ : dict of str to float
        Seconds: "maps", "frozen" for the frozen heads, "training", "final", "all".

    See Also
    --------
    CNNCodeClassifier : Chooses among frozen layers and heads.
    CNNCodeTransformer : Codes, also of a file that `save_backbone` wrote.

    Notes
    -----
    The tuned model is taken if, on the validation part, its accuracy is higher and its
    log-likelihood is higher by more than chance: a paired t test at 5%, on the images
    or on their groups. Accuracy alone was tried: with a few hundred images it took
    models that were 1 to 7 points worse on new images, since the best of several epochs
    is ahead by chance. A frozen model is then fitted to all images; a tuned one is not
    trained again.

    The head gets codes of ``norm="power"``. Probabilities are calibrated by a
    temperature: of the tuned model on the validation part, of ridge by leave-one-out,
    of RBF kernel ridge by folds.

    The maps need ``n_images * n_views * size * 2`` bytes on the disk, in a temporary
    folder that is removed at the end, also after an error or if the process is killed.
    The need is compared with the free space before anything is computed.

    Ctrl-C during the training ends it: the best model so far is kept, with a warning.

    References
    ----------
    .. [1] A. Kumar, A. Raghunathan, R. Jones, T. Ma, P. Liang, "Fine-Tuning can Distort
       Pretrained Features and Underperform Out-of-Distribution", ICLR 2022,
       arXiv:2202.10054.
    .. [2] V. Verma et al., "Manifold Mixup", ICML 2019, arXiv:1806.05236.
    """

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
        label_smoothing: float = 0.0,
        class_weight: Any = None,
    ) -> None:
        super().__init__(
            backbone,
            layer=layer,
            train_from=train_from,
            pooling=pooling,
            head=head,
            hidden=hidden,
            learning_rate=learning_rate,
            layer_decay=layer_decay,
            head_learning_rate=head_learning_rate,
            max_epochs=max_epochs,
            patience=patience,
            validation_fraction=validation_fraction,
            views=views,
            mixup=mixup,
            batch_size=batch_size,
            weight_decay=weight_decay,
            precision=precision,
            maps=maps,
            preprocessing=preprocessing,
            cache=cache,
            device=device,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
            warm_start=warm_start,
        )
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None
    ) -> Self:
        """Train the later layers and the head, and take them if they are better.

        Parameters
        ----------
        X : container of images
            As for `CNNCodeTransformer`, without generators.
        y : array-like, shape (n_images,)
            A class for each image.
        sample_weight : array-like, shape (n_images,), or None, default=None
            Weights of the images, in all losses and in the validation score. With
            them, ridge is the only frozen head.
        groups : array-like, shape (n_images,), or None, default=None
            What each image belongs to, such as its photographed object or its burst:
            the validation part has groups of its own.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If torch is not installed.
        TypeError, ValueError
            If a parameter or `y` is invalid, or torch cannot run a trained layer
            (`BackboneError`).
        ImageError
            If an image cannot be read.
        OSError
            If the disk has no room for the maps.
        FloatingPointError
            If the loss becomes infinite or NaN.
        """
        y = as_targets(self, y)
        check_given("y", y, "Leave these images out, or name their class")
        kind = type_of_target(y, input_name="y")
        if kind.startswith("multilabel") or y.ndim == 2:
            raise ValueError(
                "y: FineTunedClassifier takes one class for each image, got a matrix "
                f"of shape {y.shape}. For several labels of an image, use "
                "CNNCodeClassifier."
            )
        if y.dtype == object and kind == "unknown":
            raise ValueError(
                "Unknown label type: unknown. Expected a class for each image, got an "
                "array of objects. Give y.astype(int) for whole numbers, or "
                "y.astype(str) for text."
            )
        if kind.startswith("continuous") or kind == "unknown":
            raise ValueError(
                f"Unknown label type: {kind}. Expected a class for each image. For "
                "values to regress, use FineTunedRegressor."
            )
        images = at_least_two(X)
        targets, _ = read_targets(y, "accuracy", self.class_weight)
        labels = targets.classes[targets.numbers]
        self.tune(images, targets, labels, sample_weight, groups)
        self.classes_ = targets.classes
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Calibrated probabilities of the classes.

        Parameters
        ----------
        X : container of images

        Returns
        -------
        ndarray, shape (n_images, n_classes)
        """
        check_is_fitted(self)
        probabilities: np.ndarray = self.pipeline_.predict_proba(X)
        return probabilities


@public
class FineTunedRegressor(PipelineRegressor, FineTuning):
    """Regression on images whose later layers are fine-tuned, where that pays.

    As `FineTunedClassifier`, for values: the loss is the squared error, and the
    validation score is R2.

    Parameters
    ----------
    backbone, layer, train_from, pooling, head, hidden, learning_rate, layer_decay, \
    head_learning_rate, max_epochs, patience, validation_fraction, views, mixup, \
    batch_size, weight_decay, precision, maps, preprocessing, cache, device, n_jobs, \
    random_state, verbose, warm_start
        As for `FineTunedClassifier`.

    Attributes
    ----------
    pipeline_, is_tuned_, decision_, frozen_score_, tuned_score_, gain_error_, \
    validation_losses_, validation_rows_, frozen_head_, n_iter_, best_epoch_, \
    history_, notes_, precision_, maps_bytes_, timings_
        As of `FineTunedClassifier`.
    """

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None
    ) -> Self:
        """Train the later layers and the head, and take them if they are better.

        Parameters
        ----------
        X : container of images
            As for `CNNCodeTransformer`, without generators.
        y : array-like of float, shape (n_images,) or (n_images, n_targets)
        sample_weight, groups : array-like or None
            As for `FineTunedClassifier.fit`. The validation score has no weights.

        Returns
        -------
        self
        """
        y = as_targets(self, y)
        check_given("y", y, "Leave these images out")
        y = _as_numbers(y)
        images = at_least_two(X)
        targets, _ = read_targets(y, "r2")
        self.tune(images, targets, y, sample_weight, groups)
        return self


def _as_numbers(y: np.ndarray) -> np.ndarray:
    """Values to regress as floats."""
    got = f"the type {y.dtype}"
    if y.dtype.kind in "fObiu":
        try:
            return y if y.dtype.kind == "f" else y.astype(float)
        except (TypeError, ValueError) as error:
            got = f"others: {error}"
    raise ValueError(
        f"y: FineTunedRegressor takes numbers, got {got}. For classes, use "
        "FineTunedClassifier."
    )
