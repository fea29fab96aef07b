"""Rank backbones, layers and norms by exact leave-one-out scores of ridge.

A pass through each backbone computes the codes of all its layers. Ridge with a linear
kernel is then scored on each layer with each norm. An RBF kernel is scored where it can
win: where the linear kernel loses at most twice as much as on the best codes, since an
RBF kernel was measured to spare at most 40% of that; and only for so few images that it
takes seconds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from threadpoolctl import threadpool_limits

from sk_cnncodes.base.progress import progress_bar
from sk_cnncodes.base.public import public
from sk_cnncodes.base.threads import OrderedThreadPool
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.images.containers import as_image_sequence
from sk_cnncodes.ranking.code_figures import code_figures
from sk_cnncodes.ranking.code_ranking import CodeRanking
from sk_cnncodes.ranking.given_codes import GivenCodes, is_matrix
from sk_cnncodes.ranking.layer_codes import (
    ComparedBackbone,
    ComparedLayer,
    compared_backbones,
)
from sk_cnncodes.ranking.notes import group_numbers, notes_on_classes, notes_on_copies
from sk_cnncodes.ranking.ranked_codes import RankedCodes
from sk_cnncodes.ranking.ridge_scores import NormedCodes, RidgeScore, best_ridge
from sk_cnncodes.ranking.scoring import (
    GAMMAS,
    Targets,
    is_worse,
    read_targets,
    standard_error,
)

# Beyond it, RBF kernels are left out: eigenvectors take 1.3 s at 2,000, 35 s at 6,000.
MAX_KERNEL_IMAGES = 2000
NORMS = ("l2", "power")
# Values of a layer's codes beyond which layers are scored one by one.
_LARGE_SIZE = 2**24
# Bytes of the predictions that a ranking keeps.
_KEPT_BYTES = 2**28


@public
def rank_codes(
    X: Any,
    y: Any,
    backbones: Any = ("cnncodes-mini",),
    layers: Any = "all",
    norms: Sequence[str] | str = NORMS,
    *,
    groups: Any = None,
    scoring: str | None = None,
    class_weight: Any = None,
    gammas: Sequence[float] | None = None,
    cache: str | os.PathLike[str] | CodeCache | None = "memory",
    n_jobs: int | None = -1,
    device: str = "auto",
    mmap_folder: str | os.PathLike[str] | None = None,
    verbose: bool = False,
) -> CodeRanking:
    """Rank the layers of backbones by exact leave-one-out scores.

    Each backbone runs once on each image. On the codes of each layer, with each norm,
    ridge classification or regression is scored for 13 regularisations and several
    kernels: each image is predicted by the model of all others. A closed form gives
    what refits would, from one eigendecomposition for each kernel.

    Parameters
    ----------
    X : container of images, or StoredCodes or matrix of float
        As for `CNNCodeTransformer`, without generators. Codes, such as `open_codes`
        opens, are ranked with each norm; they are read by chunks, and rows of bad
        images, which are NaN, are left out, with a note.
    y : array-like, shape (n_images,) or (n_images, n_targets)
        A class for each image; 0 or 1 for each of several labels; or values to regress.
    backbones : sequence of str, path-like or CNNCodeTransformer
        Names or paths, as the parameter `backbone` of `CNNCodeTransformer`. Of a
        transformer, all parameters but `layer`, `norm`, `cache`, `cache_layers`,
        `device`, `n_jobs` and `verbose` are kept: preprocessing, pooling, views.
    layers : "all", or sequence of int, str or list of them, default="all"
        ``"all"`` are all numbered layers. A list in the sequence stands for the codes
        of its layers side by side. A layer that one of several backbones lacks is left
        out for it.
    norms : sequence of {"l2", "power"}, default=("l2", "power")
        As the parameter `norm` of `CNNCodeTransformer`.
    groups : array-like, shape (n_images,), or None, default=None
        What each image belongs to, such as its photographed object or its burst. All
        images of a group are left out together: the score is that on new groups.
    scoring : str or None, default=None
        For classes ``"accuracy"`` (the default), ``"balanced_accuracy"``,
        ``"f1_macro"`` (the mean over classes) or ``"neg_log_loss"``, for which one
        temperature makes probabilities of decision values; for labels
        ``"average_precision"`` (the default, mean over labels) or ``"accuracy"``; for
        values ``"r2"`` (the default) or ``"neg_mean_absolute_error"``. Whole numbers
        are classes unless `scoring` is one of the last two.
    class_weight : dict, "balanced" or None, default=None
        Weights of the squared errors of the classes, as of scikit-learn's
        `RidgeClassifier`. The closed form is exact with them too.
    gammas : sequence of float or None, default=None
        Of RBF kernels ``exp(-gamma * |a - b|**2 / s)``, with s the mean squared
        distance of the codes from their mean. None means 0.125, 0.25 and 0.5 for up to
        2,000 images, and none for more; () a linear kernel only. They are tried on
        codes with which a linear kernel loses at most twice as much as on the best.
    cache : "memory", str, path-like, CodeCache or None, default="memory"
        As in `CNNCodeTransformer`; None keeps codes in memory for this call.
    n_jobs : int or None, default=-1
        Number of threads; -1 uses all cores.
    device : str, default="auto"
        As in `CNNCodeTransformer`.
    mmap_folder : str, path-like or None, default=None
        Where to write codes that need not be in memory: those of a layer at a time, in
        a temporary file. None keeps them in memory.
    verbose : bool, default=False
        Whether to show progress bars on standard error.

    Returns
    -------
    ranking : CodeRanking
        It prints as a table. `ranking.recommended` is the cheapest row that chance
        cannot tell from the best.

    Raises
    ------
    TypeError, ValueError
        If a parameter or `y` is invalid. LayerError and BackboneError are subclasses.
    ImageError
        If an image cannot be read.

    Notes
    -----
    The regularisation of a row is that of the least squared error where `scoring`
    counts right predictions, and otherwise that of the best score. The score of a row
    is that of its best kernel, and that of the best row that of the best of all rows,
    which is slightly optimistic. "Chance cannot
    tell" is a paired two-sided t test at 5% of the contributions of the images, or of
    the groups, to the scores, without a correction for the number of rows.

    A layer of n images and codes of length d takes 56 m**2 bytes and a few hundred MB,
    with m the smaller of n and d, or n for RBF kernels, besides its codes in float32.
    With 100,000 codes of length 1,280, which are 0.5 GB, the process was measured to
    take 1.0 GB. With `mmap_folder` they are in a file instead, of which the system
    keeps in memory what there is room for. Codes are kept for all layers at once where
    RBF kernels are tried.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import rank_codes
    >>> digits = load_digits()
    >>> ranking = rank_codes(
    ...     digits.images[:200] / 16, digits.target[:200], layers=[-1, -3]
    ... )
    >>> len(ranking.rows), ranking.best.score > 0.9
    (4, True)
    >>> ranking.recommended in ranking.rows
    True
    """
    given = _given_codes(X, backbones, layers)
    if given is not None:
        y, groups = given.keep(y, "y"), given.keep(groups, "groups")
    targets, scoring = read_targets(y, scoring, class_weight)
    images: Any = as_image_sequence(X) if given is None else given
    if len(targets.values) != len(images):
        raise ValueError(
            f"y: expected a target for each of the {len(images)} images, got "
            f"{len(targets.values)}."
        )
    numbers = None if groups is None else group_numbers(groups, len(images))
    norms = [norms] if isinstance(norms, str) else list(norms)
    if not norms or not {*norms} <= {*NORMS}:
        raise ValueError(f"norms: expected some of {list(NORMS)}, got {norms}.")
    if given is not None:
        norms = given.norms(norms)
    notes = [*([] if given is None else given.notes)]
    notes += notes_on_classes(targets, numbers)
    if gammas is None:
        gammas = GAMMAS if len(images) <= MAX_KERNEL_IMAGES else ()
        if not gammas:
            notes.append(
                f"RBF kernels were left out: more than {MAX_KERNEL_IMAGES:,} images; "
                f"gammas={GAMMAS} tries them."
            )
    compared: Any = [given]
    if given is None:
        compared = compared_backbones(backbones, layers)
    total = sum(len(backbone.layers) for backbone in compared) * len(norms)
    candidates = list[_Candidate]()
    with (
        tempfile.TemporaryDirectory(
            dir=mmap_folder, ignore_cleanup_errors=True
        ) as folder,
        progress_bar(
            total=total, desc="Rank", unit="codes", disable=not verbose
        ) as bar,
    ):
        scorer = _Scorer(targets, scoring, numbers, effective_n_jobs(n_jobs), bar)
        if cache is None and given is None:
            cache = CodeCache(Path(folder, "codes.sqlite3"))
        for backbone in compared:
            backbone.configure(
                cache=cache, device=device, n_jobs=n_jobs, verbose=verbose
            )
            for layer in backbone.layers:
                parts = backbone.compute(layer, images, folder if mmap_folder else None)
                if not candidates:
                    notes += notes_on_copies(parts[0], numbers)
                found = [_Candidate(backbone, layer, norm, parts) for norm in norms]
                candidates += found
                if not gammas:
                    scorer.score(found, [None])
                    _forget_predictions(candidates)
                    for each in found:
                        each.parts = []
        if gammas:
            scorer.score(candidates, [None])
            close = _close(candidates, scoring, numbers)
            bar.total += len(close)
            scorer.score(close, gammas)
            _forget_predictions(candidates)
        candidates.sort(key=_place)
        rows = _rows(candidates, numbers)

        def codes_of(row: RankedCodes) -> NormedCodes:
            """The codes of a row, from the cache if they were not kept."""
            position = next(i for i, each in enumerate(rows) if each is row)
            found = candidates[position]
            parts = found.parts or found.backbone.compute(
                found.layer, images, folder if mmap_folder else None
            )
            return NormedCodes(parts, found.applied_norm)

        # More threads slow small products down, as in `_Scorer`.
        large = any(each.is_large for each in candidates)
        n_blas = scorer.n_threads if large else 1
        with threadpool_limits(n_blas, user_api="blas"):
            figures = code_figures(
                rows,
                [each.scored.samples for each in candidates],
                codes_of,
                targets,
                scoring,
                numbers,
            )
    return CodeRanking(
        rows,
        scoring,
        targets.kind,
        targets.classes,
        len(images),
        None if numbers is None else int(numbers.max()) + 1,
        tuple(notes),
        tuple(each.scored.predictions for each in candidates),
        figures,
    )


# -- scores --------------------------------------------------------------------


@dataclass
class _Candidate:
    """Codes to score, and the best that ridge does with them."""

    backbone: ComparedBackbone | GivenCodes
    layer: ComparedLayer
    norm: str
    parts: list[Any]
    ridge: RidgeScore | None = None
    code_length: int = field(init=False)
    is_large: bool = field(init=False)

    def __post_init__(self) -> None:
        self.code_length = sum(part.shape[1] for part in self.parts)
        self.is_large = self.code_length * len(self.parts[0]) > _LARGE_SIZE

    @property
    def applied_norm(self) -> str | None:
        """The norm that its parts do not have yet."""
        return self.backbone.applied(self.norm)

    @property
    def scored(self) -> RidgeScore:
        assert self.ridge is not None
        return self.ridge


@dataclass(frozen=True)
class _Scorer:
    """Scores candidates in threads.

    One BLAS thread is the fastest for small matrices. Large ones take turns and use all
    threads of the BLAS, in the memory of one.
    """

    targets: Targets
    scoring: str
    groups: np.ndarray | None
    n_threads: int
    bar: Any

    def score(
        self, candidates: list[_Candidate], gammas: Sequence[float | None]
    ) -> None:
        """Score candidates with some kernels, and keep what is better than before."""
        large = any(each.is_large for each in candidates)
        n_threads, n_blas = (1, self.n_threads) if large else (self.n_threads, 1)

        def improve(candidate: _Candidate) -> None:
            codes: Any = NormedCodes(candidate.parts, candidate.applied_norm)
            in_chunks = gammas == [None] and len(codes) > codes.shape[1]
            found = best_ridge(
                codes if candidate.is_large and in_chunks else codes[:],
                self.targets,
                self.scoring,
                gammas,
                groups=self.groups,
            )
            if candidate.ridge is None or found.score > candidate.ridge.score:
                candidate.ridge = found

        with (
            threadpool_limits(n_blas, user_api="blas"),
            OrderedThreadPool(n_threads, "rank") as pool,
        ):
            for _ in pool.in_order(improve, candidates, 2 * n_threads):
                self.bar.update()


def _close(
    candidates: list[_Candidate], scoring: str, groups: np.ndarray | None
) -> list[_Candidate]:
    """Those that lose at most twice as much as the best one."""
    best = max((each.scored for each in candidates), key=lambda ridge: ridge.score)
    perfect = 0 if scoring.startswith("neg_") else 1
    loss = perfect - best.score + standard_error(best.samples, groups)
    return [each for each in candidates if perfect - each.scored.score <= 2 * loss]


def _place(candidate: _Candidate) -> tuple[float, int]:
    """What candidates are sorted by."""
    return -candidate.scored.score, candidate.layer.multiply_adds


def _forget_predictions(candidates: list[_Candidate]) -> None:
    """Keep the predictions of the best alone, in bounded memory."""
    size = 0
    for each in sorted(candidates, key=_place):
        if each.scored.predictions is None:
            continue
        size += each.scored.predictions.nbytes
        if size > _KEPT_BYTES and size > each.scored.predictions.nbytes:
            each.ridge = replace(each.scored, predictions=None)


# -- the result ----------------------------------------------------------------


def _rows(
    candidates: list[_Candidate], groups: np.ndarray | None
) -> tuple[RankedCodes, ...]:
    """The rows of a ranking, of sorted candidates."""
    ridges = [each.scored for each in candidates]
    best = ridges[0].samples
    near = [not is_worse(ridge.samples, best, groups) for ridge in ridges]
    costs = [each.layer.multiply_adds for each in candidates]
    cheapest = min(range(len(costs)), key=lambda i: (not near[i], costs[i], i))
    return tuple(
        RankedCodes(
            score=ridge.score,
            error=standard_error(ridge.samples, groups),
            backbone=each.backbone.name,
            layer=each.layer.which,
            label=" + ".join(each.layer.labels),
            norm=each.norm,
            kernel="linear" if ridge.gamma is None else "rbf",
            gamma=ridge.gamma,
            alpha=ridge.alpha,
            code_length=each.code_length,
            multiply_adds=each.layer.multiply_adds,
            compute_share=each.layer.compute_share,
            images_per_second=each.backbone.images_per_second,
            indistinguishable=near[position],
            recommended=position == cheapest,
        )
        for position, (each, ridge) in enumerate(zip(candidates, ridges, strict=True))
    )


def _given_codes(X: Any, backbones: Any, layers: Any) -> GivenCodes | None:
    """X if it is a matrix of codes; None if it has images."""
    if not is_matrix(X):
        return None
    if backbones != ("cnncodes-mini",) or layers != "all":
        raise ValueError(
            "backbones, layers: expected the defaults for an X of codes, which are "
            f"ranked as they are; got {backbones!r} and {layers!r}."
        )
    return GivenCodes(X)
