"""Rankings of made codes, without images and networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from sk_cnncodes import Advice, RankedCodes
from sk_cnncodes.ranking.advice import advise
from sk_cnncodes.ranking.code_figures import CodeFigures, code_figures
from sk_cnncodes.ranking.ridge_scores import NormedCodes, best_ridge
from sk_cnncodes.ranking.scoring import is_worse, read_targets, standard_error


def made_codes(
    labels: np.ndarray, signal: float, seed: int, n_features: int = 24
) -> np.ndarray:
    """Noise around a centre for each class, further apart with more signal."""
    rng = np.random.default_rng(seed)
    _, numbers = np.unique(labels, return_inverse=True)
    centres = rng.normal(size=(numbers.max() + 1, n_features))
    noise = rng.normal(size=(len(labels), n_features))
    return (signal * centres[numbers] + noise).astype(np.float32)


class Made:
    """A ranking of codes by (backbone, layer), where several layers are a tuple."""

    def __init__(
        self,
        codes: dict[tuple[str, Any], np.ndarray],
        y: Any,
        groups: np.ndarray | None = None,
        scoring: str | None = None,
        gamma: float | None = None,
    ) -> None:
        self.targets, self.scoring = read_targets(y, scoring)
        self.groups = groups
        found = [
            (key, NormedCodes([matrix], None), matrix) for key, matrix in codes.items()
        ]
        scored = [
            (
                *each,
                best_ridge(each[2], self.targets, self.scoring, [gamma], groups=groups),
            )
            for each in found
        ]
        scored.sort(key=lambda each: -each[3].score)
        self.samples = [ridge.samples for *_, ridge in scored]
        near = [not is_worse(each, self.samples[0], groups) for each in self.samples]
        costs = [_cost(layer) for (_, layer), *_ in scored]
        cheapest = min(range(len(costs)), key=lambda i: (not near[i], costs[i]))
        self.rows = [
            RankedCodes(
                score=ridge.score,
                error=standard_error(ridge.samples, groups),
                backbone=backbone,
                layer=list(layer) if isinstance(layer, tuple) else layer,
                label=str(layer),
                norm="l2",
                kernel="linear" if ridge.gamma is None else "rbf",
                gamma=ridge.gamma,
                alpha=ridge.alpha,
                code_length=matrix.shape[1],
                multiply_adds=_cost(layer),
                compute_share=0.5,
                images_per_second=None,
                indistinguishable=near[position],
                recommended=position == cheapest,
            )
            for position, ((backbone, layer), _, matrix, ridge) in enumerate(scored)
        ]
        self.normed = [normed for _, normed, *_ in scored]

    def codes_of(self, row: RankedCodes) -> NormedCodes:
        return self.normed[self.rows.index(row)]

    def figures(self) -> CodeFigures:
        return code_figures(
            self.rows,
            self.samples,
            self.codes_of,
            self.targets,
            self.scoring,
            self.groups,
        )

    def advice(self, *options: Any) -> Advice:
        folder, *rest = options or ("DIR",)
        (given,) = rest or [[]]
        return advise(
            self.rows,
            self.figures(),
            self.targets.kind,
            self.scoring,
            len(self.targets.values),
            "Made images:",
            folder,
            given,
        )


def _cost(layer: Any) -> int:
    deepest = max(layer) if isinstance(layer, tuple) else layer
    return 1000 + 100 * int(deepest)
