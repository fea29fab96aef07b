"""Choose backbone, layer, norm and head by cross-validation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import getclosurevars
from typing import Any, Self

from sklearn.base import ClassifierMixin, clone
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedKFold
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from sk_cnncodes.base.progress import progress_bar
from sk_cnncodes.base.public import public
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.heads.grids import LayerChoice, layer_grid
from sk_cnncodes.heads.presets import DEFAULT_HEADS, HEADS
from sk_cnncodes.ranking.ranked_codes import short_name

DEFAULT_LAYERS = (-1, -2, -4)
DEFAULT_NORMS = ("power",)


# The keys of the grid, by the attributes of a candidate.
_KEYS = {"backbone": "codes__backbone", "layer": "codes__layer", "norm": "codes__norm"}


@dataclass(frozen=True)
class Candidate:
    """A combination of backbone, layer, norm and head, and its mean accuracy.

    Attributes
    ----------
    backbone : str
    layer : int, str or list of them
    norm : str or None
    head : str
        A key of `HEADS`.
    mean, std : float
        Mean and standard deviation of the accuracy over the folds, in [0, 1].
    """

    backbone: str
    layer: LayerChoice
    norm: str | None
    head: str
    mean: float
    std: float


class CodeSearch(GridSearchCV):
    """GridSearchCV whose heads are fitted with one BLAS thread.

    More threads slow down the many small products of a head: logistic regression on
    480 codes of length 512 took 0.04 s with one and 0.8 s with two. Networks and
    decoding have threads of their own.

    With `verbose`, a progress bar on standard error takes the place of a message on
    standard output.
    """

    verbose: bool

    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Fit all candidates, and the best one on all images."""
        with threadpool_limits(1, user_api="blas"):
            super().fit(X, y, **params)
        return self

    def _run_search(
        self, evaluate_candidates: Callable[..., Any], *, callback_ctx: Any = None
    ) -> None:
        """Compare all candidates; the bar counts their fits."""
        # Since scikit-learn 1.9.
        context = {} if callback_ctx is None else {"callback_ctx": callback_ctx}
        verbose, self.verbose = self.verbose, False
        try:
            with _fit_bar(self, evaluate_candidates, disable=not verbose):
                super()._run_search(evaluate_candidates, **context)
        finally:
            self.verbose = verbose


def _fit_bar(
    search: GridSearchCV, evaluate_candidates: Callable[..., Any], disable: bool
) -> Any:
    """A progress bar of the fits that a function of `GridSearchCV.fit` starts."""
    # Only the function has the `joblib.Parallel` that runs them, and which calls
    # `print_progress` in this process when some have ended in whatever process.
    scope = dict[str, Any]()
    if not disable:
        scope |= getclosurevars(evaluate_candidates).nonlocals
    # Before scikit-learn 1.9, the attribute is that of the fit before.
    n_splits = scope.get("n_splits", getattr(search, "n_splits_", 0))
    bar = progress_bar(
        total=len(ParameterGrid(search.param_grid)) * n_splits or None,
        desc="Compare",
        unit="fit",
        dynamic_ncols=True,
        disable=disable,
    )
    if parallel := scope.get("parallel"):
        parallel.print_progress = lambda: bar.update(parallel.n_completed_tasks - bar.n)
    return bar


@public
def code_search(
    backbones: Sequence[str],
    layers: Sequence[LayerChoice] = DEFAULT_LAYERS,
    heads: Sequence[str] = DEFAULT_HEADS,
    *,
    norms: Sequence[str | None] = DEFAULT_NORMS,
    cv: int = 5,
    seed: int = 0,
    n_jobs: int | None = None,
    cache: str | os.PathLike[str] | CodeCache = "memory",
    device: str = "auto",
    verbose: bool = False,
) -> GridSearchCV:
    """Build a search over backbones, layers, norms and heads.

    All layers of a backbone are computed in one forward pass per image, and all norms
    from its codes.

    Parameters
    ----------
    backbones : sequence of str
        Names or paths, as the parameter `backbone` of `CNNCodeTransformer`.
    layers : sequence of int, str or list of them, default=(-1, -2, -4)
        As the parameter `layer` of `CNNCodeTransformer`: a list is one candidate.
    heads : sequence of str, default=("svm", "logistic", "knn", "lda", "ridge", "rbf")
        Keys of `HEADS`.
    norms : sequence of str or None, default=("power",)
        As the parameter `norm` of `CNNCodeTransformer`. The heads suit codes of unit
        length: "l2" and "power".
    cv : int, default=5
        Number of folds, stratified and shuffled.
    seed : int, default=0
        Random seed of the shuffling.
    n_jobs : int or None, default=None
        Number of processes.
    cache : "memory", str, path-like or CodeCache, default="memory"
        As in `CNNCodeTransformer`.
    device : str, default="auto"
        As in `CNNCodeTransformer`.
    verbose : bool, default=False
        Whether `fit` shows a progress bar of the fits that are compared. The first
        ones also compute the codes.

    Returns
    -------
    search : GridSearchCV
        Not fitted. Its pipelines have the steps "codes" and "head".
        The heads are fitted with one BLAS thread.

    Raises
    ------
    ValueError
        If a head is not a key of `HEADS`, or there is none.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import code_search, verdict
    >>> digits = load_digits()
    >>> search = code_search(["cnncodes-mini"], [-2], ["svm"], cv=2)
    >>> search = search.fit(digits.images[:60] / 16, digits.target[:60])
    >>> verdict(search)  # doctest: +ELLIPSIS
    'Chosen: cnncodes-mini, layer -2, power norm, linear SVM: ...% in cross-validation.'
    """
    codes = CNNCodeTransformer(norm="power", cache=cache, device=device)
    unknown = [name for name in heads if name not in HEADS]
    if unknown or not heads:
        raise ValueError(f"heads: expected some of {list(HEADS)}, got {list(heads)}.")
    estimators = [clone(HEADS[name][1]) for name in heads]
    grid = layer_grid(layers, step="codes") | {
        "codes__backbone": list(backbones),
        "codes__norm": list(norms),
        "head": estimators,
    }
    return CodeSearch(
        Pipeline([("codes", codes), ("head", estimators[0])]),
        grid,
        cv=StratifiedKFold(cv, shuffle=True, random_state=seed),
        n_jobs=n_jobs,
        verbose=verbose,
        error_score="raise",
    )


def scores(search: GridSearchCV) -> list[Candidate]:
    """All candidates of a fitted `code_search`, in the order of its grid."""
    results = search.cv_results_
    found = [
        Candidate(
            parameters["codes__backbone"],
            parameters["codes__layer"],
            parameters["codes__norm"],
            _head_name(parameters["head"]),
            float(mean),
            float(std),
        )
        for parameters, mean, std in zip(
            results["params"],
            results["mean_test_score"],
            results["std_test_score"],
            strict=True,
        )
    ]
    places = {name: list(search.param_grid[key]) for name, key in _KEYS.items()}
    return sorted(
        found, key=lambda c: [places[name].index(getattr(c, name)) for name in _KEYS]
    )


def chosen(search: GridSearchCV) -> Candidate:
    """The best candidate of a fitted `code_search`."""
    best = search.best_params_
    wanted = [*(best[key] for key in _KEYS.values()), _head_name(best["head"])]
    return next(
        c for c in scores(search) if [c.backbone, c.layer, c.norm, c.head] == wanted
    )


def _head_name(head: ClassifierMixin) -> str:
    """The key in `HEADS` of a classifier, by its type."""
    return next(name for name, (_, each) in HEADS.items() if type(each) is type(head))


@public
def score_table(search: GridSearchCV) -> str:
    """Format the mean cross-validated accuracies of a search as a table, in percent.

    Parameters
    ----------
    search : GridSearchCV
        A fitted `code_search`.

    Returns
    -------
    table : str
        One line for each backbone, layer and, if there are several, norm; one column
        for each head, named by its key in `HEADS`.
    """
    found = scores(search)
    heads = list(dict.fromkeys(c.head for c in found))
    names = ["backbone", "layer", "norm"]
    if len({c.norm for c in found}) == 1:
        names.pop()
    lines: dict[tuple[str, ...], list[str]] = {}
    for c in found:
        start = (short_name(c.backbone), str(c.layer), str(c.norm))[: len(names)]
        cell = f"{100 * c.mean:{max(len(c.head), 5)}.1f}"
        lines.setdefault(start, []).append(cell)
    widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
    rows = [(names, [f"{head:>5}" for head in heads]), *lines.items()]
    return "\n".join(
        "  ".join(
            [start[0].ljust(widths[0]), *map(str.rjust, start[1:], widths[1:]), *cells]
        )
        for start, cells in rows
    )


@public
def verdict(search: GridSearchCV) -> str:
    """Describe the best candidate of a search in one sentence.

    Parameters
    ----------
    search : GridSearchCV
        A fitted `code_search`.

    Returns
    -------
    sentence : str
        The backbone, layer, norm and head chosen, and their cross-validated accuracy.
    """
    best = chosen(search)
    return (
        f"Chosen: {short_name(best.backbone)}, layer {best.layer}, "
        f"{best.norm or 'no'} norm, {HEADS[best.head][0]}: {100 * best.mean:.2f}% in "
        "cross-validation."
    )
