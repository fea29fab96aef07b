"""What a ranking measures for its advice: differences, neighbours, a learning curve.

All of it takes a few of the eigendecompositions that the ranking itself takes many of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sk_cnncodes.ranking.leave_one_out import ridge_decompositions
from sk_cnncodes.ranking.ranked_codes import (
    CodeFigures,
    Compared,
    CurvePoint,
    Difference,
    Joined,
    Neighbours,
    RankedCodes,
)
from sk_cnncodes.ranking.ridge_scores import NormedCodes, best_ridge, spread
from sk_cnncodes.ranking.scoring import (
    Targets,
    numbered,
    sample_scores,
    standard_error,
)

# Parts of the images that a learning curve is measured on.
_PARTS = (8, 4, 2)
# Images of a class, or groups with it, in a part; of what has no classes, in all.
_LEAST_IN_PART, _LEAST_WITHOUT_CLASSES = 2, 8
# With fewer in a part, one image, or group, of each class is left out at a time: a
# model without a single one knows its class less than the others, so that the curve was
# twice as steep as with new images.
_FEW_IN_PART = 50
# Share of the images whose classes have that many.
_LEAST_SHARE = 0.95
# Images that are enough for a point of the curve, for codes side by side, and to ask
# for their neighbours.
_ENOUGH, _ENOUGH_ASKED = 2000, 1000
# Values of the codes that are compared with at once.
_CHUNK_VALUES = 2**22

CodesOf = Callable[[RankedCodes], NormedCodes]


def code_figures(
    rows: Sequence[RankedCodes],
    samples: Sequence[np.ndarray],
    codes_of: CodesOf,
    targets: Targets,
    scoring: str,
    groups: np.ndarray | None,
) -> CodeFigures:
    """Measure what advice is about.

    Parameters
    ----------
    rows : sequence of RankedCodes
        The best first.
    samples : sequence of ndarray, shape (n_samples,)
        What each sample adds to the score of each row.
    codes_of : callable
        Takes a row and returns its codes.
    targets : Targets
    scoring : str
    groups : ndarray of int, shape (n_samples,), or None
    """
    measured = _Measured(rows, samples, codes_of, targets, scoring, groups)
    chosen = next(row for row in rows if row.recommended)
    own = [row for row in rows if row.backbone == chosen.backbone]
    last = next((row for row in own if row.layer == -1), None)
    earlier = next((row for row in own if last and _before(row, last)), None)
    firsts = {row.backbone: row for row in reversed(rows)}
    leaders = [row for row in rows if firsts[row.backbone] is row]
    constant = np.broadcast_to(targets.values.mean(axis=0), targets.values.shape)
    ground = sample_scores(constant, targets, scoring)
    curve, last_doubling, next_doubling = measured.curve(chosen)
    counts = np.bincount(targets.numbers) if len(targets.numbers) else None
    pair = None if last is None or earlier is None else measured.compare(last, earlier)
    return CodeFigures(
        signal=difference(samples[0], ground, groups),
        layers=pair,
        backbones=[measured.compare(leaders[0], each) for each in leaders[1:]],
        joined_layers=measured.joined_layers(own, pair),
        joined_backbones=(
            measured.joined(tuple(leaders[:2])) if len(leaders) > 1 else None
        ),
        neighbours=None if counts is None else measured.neighbours(last or chosen),
        curve=curve,
        last_doubling=last_doubling,
        next_doubling=next_doubling,
        training_score=measured.training_score(chosen),
        norm_left=codes_of(chosen).norm,
        least_per_class=None if counts is None else float(counts.min()),
        mean_per_class=None if counts is None else float(counts.mean()),
    )


def difference(
    samples: np.ndarray, others: np.ndarray, groups: np.ndarray | None
) -> Difference:
    """The difference of two scores of the same samples.

    It is clear from three standard errors of many images on: the best of 36 rows is
    ahead of another one by two of them by luck.
    """
    differences = samples - others
    value, error = float(differences.mean()), standard_error(differences, groups)
    units = (len(samples) if groups is None else len(np.unique(groups))) - 1
    # The quantile of Student's t, by its expansion around 3, that of the normal one.
    quantile = 3 + 7.5 / units + 17.25 / units**2 + 30.2 / units**3
    return Difference(value, error, value > quantile * error)


def _before(row: RankedCodes, last: RankedCodes) -> bool:
    """Whether codes are of one layer, before the last."""
    single = not isinstance(row.layer, list) and row.layer != last.layer
    return single and row.multiply_adds <= last.multiply_adds


@dataclass(frozen=True)
class _Measured:
    """The rows of a ranking. Parameters are those of `code_figures`."""

    rows: Sequence[RankedCodes]
    samples: Sequence[np.ndarray]
    codes_of: CodesOf
    targets: Targets
    scoring: str
    groups: np.ndarray | None

    @property
    def n_samples(self) -> int:
        return len(self.targets.values)

    def samples_of(self, row: RankedCodes) -> np.ndarray:
        return next(
            samples
            for each, samples in zip(self.rows, self.samples, strict=True)
            if each is row
        )

    def compare(self, row: RankedCodes, other: RankedCodes) -> Compared:
        better, worse = sorted((row, other), key=lambda each: -each.score)
        pair = self.samples_of(better), self.samples_of(worse)
        return Compared(better, worse, difference(*pair, self.groups))

    def joined(self, rows: tuple[RankedCodes, ...]) -> Joined:
        """Codes side by side, with the kernel of the best of them."""
        taken = self._some(_ENOUGH)
        best = max(rows, key=lambda row: row.score)
        codes = [self.codes_of(row)[taken] for row in rows]
        alone = codes[rows.index(best)]
        gamma = _relative_gamma(best, alone)
        if len(taken) < self.n_samples:
            single = self._score(alone, taken, gamma)
        else:
            single = self.samples_of(best)
        samples = self._score(np.hstack(codes), taken, gamma)
        groups = None if self.groups is None else self.groups[taken]
        found = difference(
            samples, single, None if groups is None else numbered(groups)
        )
        return Joined(rows, float(samples.mean()), found, len(taken))

    def joined_layers(
        self, own: list[RankedCodes], pair: Compared | None
    ) -> Joined | None:
        """Layers that were ranked side by side, or the last and the best earlier one.

        Parameters
        ----------
        own : list of RankedCodes
            Rows of a backbone.
        pair : Compared or None
            Two of them.
        """
        single = next((row for row in own if not isinstance(row.layer, list)), None)
        several = next((row for row in own if isinstance(row.layer, list)), None)
        if several is not None and single is not None:
            pair_samples = self.samples_of(several), self.samples_of(single)
            found = difference(*pair_samples, self.groups)
            return Joined((several,), several.score, found, self.n_samples)
        if pair is None:
            return None
        # The transformer has one norm for all layers.
        better, layer = pair.better, pair.other.layer
        same = [r for r in own if (r.layer, r.norm) == (layer, better.norm)]
        return self.joined((better, *same[:1])) if same else None

    # -- the learning curve ----------------------------------------------------

    def curve(
        self, row: RankedCodes
    ) -> tuple[list[CurvePoint], Difference | None, Difference | None]:
        """Scores with fewer images, and what twice as many add."""
        codes = self.codes_of(row)
        gamma = _relative_gamma(row, codes)
        parts_of = {n_parts: list(self._parts(n_parts)) for n_parts in _PARTS}
        few = self._few(max((n for n in _PARTS if parts_of[n]), default=1))
        everything = np.arange(self.n_samples)
        all_samples = self.samples_of(row)
        if few and parts_of[2]:
            all_samples = self._score(codes, everything, gamma, few)
        points = list[CurvePoint]()
        last = following = None
        for n_parts in _PARTS:
            parts = parts_of[n_parts]
            if not parts:
                continue
            covered = np.concatenate(parts)
            scored = [self._score(codes.take(p), p, gamma, few) for p in parts]
            samples = np.concatenate(scored)
            groups = None if self.groups is None else numbered(self.groups[covered])
            size = round(len(covered) / len(parts))
            points.append(CurvePoint(n_parts, size, float(samples.mean()), few))
            if n_parts == 2:
                known = self._n_known(parts[0], few), self._n_known(everything, few)
                pair = all_samples[covered], samples
                last = difference(*pair, groups)
                following = self._following(*pair, groups, known[1] / known[0])
        few = few and bool(points)
        score = float(all_samples.mean())
        points.append(CurvePoint(1, self.n_samples, score, few))
        return points, last, following

    def _following(
        self,
        samples: np.ndarray,
        halves: np.ndarray,
        groups: np.ndarray | None,
        factor: float,
    ) -> Difference | None:
        """What twice the images add if the loss falls by the same power of them.

        `factor` is how many times more images the models of `samples` know than those
        of `halves`.
        """
        perfect = 0.0 if self.scoring.startswith("neg_") else 1.0
        loss, before = perfect - float(samples.mean()), perfect - float(halves.mean())
        if not 0 <= loss < before:
            return None
        power = np.log(2) / np.log(factor)
        ratio = (loss / before) ** power
        # The gain is linear in both losses near their values.
        linear = ((1 + power) * ratio - 1) * samples
        linear -= power * ratio * loss / before * halves
        error = standard_error(linear, groups)
        gain = float(loss * (1 - ratio))
        # What did not clearly help is no sign that more would.
        helped = before - loss > 2 * standard_error(samples - halves, groups)
        return Difference(gain, error, helped and gain > 2 * error)

    def _parts(self, n_parts: int) -> Iterator[np.ndarray]:
        """Disjoint parts, until they have enough images; none if classes are small."""
        part_of = self._split(n_parts)
        if part_of is None:
            return
        n_images = 0
        for number in range(n_parts):
            rows = np.flatnonzero(part_of == number)
            n_images += len(rows)
            yield rows
            if n_images >= _ENOUGH:
                return

    def _units(self) -> tuple[np.ndarray, np.ndarray]:
        """The image or group that each sample is, and the class of each of these."""
        units = np.arange(self.n_samples) if self.groups is None else self.groups
        kinds = np.zeros(int(units.max()) + 1, int)
        if len(self.targets.numbers):
            # The class of a group is that of most of its images.
            pairs, counts = np.unique(
                np.column_stack([units, self.targets.numbers]),
                axis=0,
                return_counts=True,
            )
            order = np.argsort(counts, kind="stable")
            kinds[pairs[order, 0]] = pairs[order, 1]
        return units, kinds

    def _few(self, n_parts: int) -> bool:
        """Whether a class has few images, or groups, in a part."""
        if not len(self.targets.numbers):
            return False
        _, kinds = self._units()
        return len(kinds) / len(np.unique(kinds)) < _FEW_IN_PART * n_parts

    def _split(self, n_parts: int) -> np.ndarray | None:
        """The part of each sample; groups are kept together, classes are spread."""
        units, kinds = self._units()
        if len(self.targets.numbers):
            enough = np.bincount(kinds)[kinds] >= _LEAST_IN_PART * n_parts
            if enough[units].mean() < _LEAST_SHARE:
                return None
        elif len(kinds) < _LEAST_WITHOUT_CLASSES * n_parts:
            return None
        shuffled = np.random.default_rng(0).permutation(len(kinds))
        shuffled = shuffled[np.argsort(kinds[shuffled], kind="stable")]
        part_of_unit = np.empty(len(kinds), int)
        part_of_unit[shuffled] = np.arange(len(kinds)) % n_parts
        part_of: np.ndarray = part_of_unit[units]
        return part_of

    def _folds(self, taken: np.ndarray, few: bool) -> np.ndarray | None:
        """What is left out together: a group, or with few one of each class."""
        if not few:
            return None if self.groups is None else numbered(self.groups[taken])
        units, kinds = self._units()
        found, numbers = np.unique(units[taken], return_inverse=True)
        order = np.argsort(kinds[found], kind="stable")
        ordered = kinds[found][order]
        folds = np.empty(len(found), int)
        folds[order] = np.arange(len(found)) - np.searchsorted(ordered, ordered)
        left_out: np.ndarray = folds[numbers]
        return left_out

    def _n_known(self, taken: np.ndarray, few: bool) -> float:
        """Images, or groups, that a model knows, without those that it predicts."""
        units, kinds = self._units()
        found = np.unique(units[taken])
        return len(found) - (len(np.unique(kinds[found])) if few else 1)

    def _some(self, count: int) -> np.ndarray:
        """All samples, or about so many of them, of all classes."""
        n_parts = -(-self.n_samples // count)
        part_of = self._split(n_parts) if n_parts > 1 else None
        if part_of is not None:
            return np.flatnonzero(part_of == 0)
        if self.groups is not None or n_parts == 1:
            return np.arange(self.n_samples)
        return np.sort(np.random.default_rng(0).permutation(self.n_samples)[:count])

    def _score(
        self, codes: Any, taken: np.ndarray, gamma: float | None, few: bool = False
    ) -> np.ndarray:
        """What samples add to the leave-one-out score of a kernel."""
        groups = self._folds(taken, few)
        targets = _some_targets(self.targets, taken)
        read = codes if _in_chunks(codes, gamma) else codes[:]
        return best_ridge(read, targets, self.scoring, [gamma], groups=groups).samples

    # -- neighbours and training images ----------------------------------------

    def neighbours(self, row: RankedCodes) -> Neighbours:
        """Whether the nearest neighbour of an image is of its class."""
        codes, numbers = self.codes_of(row), self.targets.numbers
        asked = np.random.default_rng(0).permutation(self.n_samples)[:_ENOUGH_ASKED]
        units = np.arange(self.n_samples) if self.groups is None else self.groups
        mine, step = codes[asked], max(1, _CHUNK_VALUES // codes.shape[1])
        nearest = np.full(len(asked), np.inf)
        hits = np.zeros(len(asked), bool)
        for start in range(0, self.n_samples, step):
            chunk = slice(start, start + step)
            others = codes[chunk]
            distances = (others**2).sum(axis=1) - 2 * mine @ others.T
            distances[units[asked, None] == units[chunk]] = np.inf
            first = distances.argmin(axis=1)
            found = distances[np.arange(len(asked)), first]
            closer = found < nearest
            nearest = np.minimum(nearest, found)
            hits[closer] = (numbers[chunk][first] == numbers[asked])[closer]
        counts = np.bincount(numbers).astype(float)
        pairs = counts @ (counts - 1) / (self.n_samples * (self.n_samples - 1))
        return Neighbours(row, float(hits.mean()), float(pairs))

    def training_score(self, row: RankedCodes) -> float:
        """The score of the ridge of a row on the images that it was fitted to."""
        codes: Any = self.codes_of(row)
        read = codes if _in_chunks(codes, row.gamma) else codes[:]
        weights = self.targets.weights
        (ridge,) = ridge_decompositions(read, [row.gamma], weights=weights)
        fitted = ridge.fitted(self.targets.values, row.alpha)
        return float(sample_scores(fitted, self.targets, self.scoring).mean())


def _in_chunks(codes: Any, gamma: float | None) -> bool:
    """Whether a decomposition reads codes in chunks of rows."""
    return gamma is None and len(codes) > codes.shape[1]


def _relative_gamma(row: RankedCodes, codes: Any) -> float | None:
    """The gamma of a row, as `best_ridge` takes it."""
    return None if row.gamma is None else row.gamma * spread(codes)


def _some_targets(targets: Targets, taken: np.ndarray) -> Targets:
    """Targets of some samples, without classes that do not occur."""
    some = targets.take(taken)
    if targets.kind != "classification":
        return some
    found, numbers = np.unique(some.numbers, return_inverse=True)
    return replace(
        some,
        values=some.values[:, found],
        classes=some.classes[found],
        numbers=numbers,
    )
