"""What a ranking measures for its advice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from sk_cnncodes.ranking import code_figures as module
from sk_cnncodes.ranking.code_figures import difference
from sk_cnncodes.ranking.ridge_scores import best_ridge
from tests.ranking.made_rankings import Made, made_codes

LABELS = np.arange(320) % 8
GROUPS = np.arange(320) // 16 * 8 + LABELS  # pairs of images of a class


def single(signal: float = 0.5, labels: np.ndarray = LABELS, **given: Any) -> Made:
    return Made({("net", -1): made_codes(labels, signal, 0)}, labels, **given)


class Noted:
    """What `best_ridge` was called with, for each part of the curve."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = list[tuple[np.ndarray, Any, Any, float]]()
        monkeypatch.setattr(module, "best_ridge", self)

    def __call__(self, codes: Any, targets: Any, *given: Any, groups: Any) -> Any:
        found = best_ridge(codes, targets, *given, groups=groups)
        self.calls.append((codes[:].astype(float), targets, groups, found.alpha))
        return found


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["images", "groups"])
def test_the_curve_rises_to_the_score_of_all_images(groups: Any) -> None:
    made = single(groups=groups)
    curve = made.figures().curve
    wanted = [(8, 40), (4, 80), (2, 160), (1, 320)]
    assert [(point.n_parts, point.n_images) for point in curve] == wanted
    assert curve[-1].score == pytest.approx(made.rows[0].score, abs=0.03)
    scores = [point.score for point in curve]
    assert scores == sorted(scores)
    assert scores[-1] - scores[0] > 0.1
    assert all(point.one_of_each_class for point in curve)


def test_many_images_of_a_class_are_left_out_one_by_one() -> None:
    labels = np.arange(800) % 2
    made = single(signal=0.1, labels=labels)
    last = made.figures().curve[-1]
    assert last.score == made.rows[0].score
    assert not last.one_of_each_class


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["images", "groups"])
def test_parts_have_their_share_of_each_class(
    groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = single(groups=groups)
    noted = Noted(monkeypatch)
    made.figures()
    rows_of = {
        row.tobytes(): i for i, row in enumerate(made.normed[0][:].astype(float))
    }
    parts = [
        np.array([rows_of[row.tobytes()] for row in codes])
        for codes, *_ in noted.calls[1:]
    ]
    assert [len(part) for part in parts[8:]] == [80] * 4 + [160] * 2
    for some in (parts[:8], parts[8:12], parts[12:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(some)), np.arange(320))
        for part in some:
            assert np.ptp(np.bincount(LABELS[part])) <= 2
            if groups is not None:
                assert len(np.unique(groups[part])) == len(part) // 2


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["images", "groups"])
def test_a_point_is_the_score_of_refits_without_one_of_each_class(
    groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ENOUGH", 1)  # the first part alone
    made = single(groups=groups)
    noted = Noted(monkeypatch)
    curve = made.figures().curve
    everything, *parts = noted.calls
    assert len(parts) == 3
    for point, call in zip(curve, [*parts, everything], strict=True):
        codes, targets, folds, alpha = call
        for fold in np.unique(folds):
            left_out = np.bincount(targets.numbers[folds == fold])
            assert left_out.max() == (1 if groups is None else 2)
        predicted = cross_val_predict(
            Ridge(alpha), codes, targets.values, groups=folds, cv=LeaveOneGroupOut()
        )
        hits = predicted.argmax(axis=1) == targets.numbers
        assert point.score == pytest.approx(hits.mean())


@pytest.mark.parametrize(
    ("n_per_class", "n_points"), [(16, 4), (15, 3), (4, 2), (3, 1)]
)
def test_few_images_of_a_class_shorten_the_curve(
    n_per_class: int, n_points: int
) -> None:
    figures = single(labels=np.arange(8 * n_per_class) % 8).figures()
    assert len(figures.curve) == n_points
    assert (figures.last_doubling is None) == (n_points == 1)
    assert figures.mean_per_class == figures.least_per_class == n_per_class


def test_one_small_class_does_not_shorten_the_curve() -> None:
    labels = np.append(LABELS, [9, 9])
    assert len(single(labels=labels).figures().curve) == 4


def test_random_labels_have_no_signal_and_a_flat_curve() -> None:
    figures = single(signal=0).figures()
    assert not figures.signal.clear
    assert figures.last_doubling is not None
    assert abs(figures.last_doubling.value) < 0.1
    assert single().figures().signal.clear


def test_the_next_doubling_is_what_twice_the_images_bring() -> None:
    """Within its error of the mean over many sets, and mostly of each."""
    labels = np.arange(640) % 8
    gains, foreseen = [], []
    for seed in range(8):
        codes = made_codes(labels, 0.5, seed)
        half = Made({("net", -1): codes[:320]}, labels[:320])
        whole = Made({("net", -1): codes}, labels)
        gains.append(whole.rows[0].score - half.rows[0].score)
        found = half.figures().next_doubling
        foreseen.append(0 if found is None else found.value)
    assert np.mean(gains) > 0.01
    assert np.mean(foreseen) == pytest.approx(np.mean(gains), abs=0.02)


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["images", "groups"])
def test_neighbours_are_those_of_scikit_learn(groups: Any) -> None:
    made = single(groups=groups)
    found = made.figures().neighbours
    assert found is not None
    splitter = LeaveOneOut() if groups is None else LeaveOneGroupOut()
    predicted = cross_val_predict(
        KNeighborsClassifier(1), made.normed[0][:], LABELS, groups=groups, cv=splitter
    )
    assert found.share == pytest.approx((predicted == LABELS).mean())
    assert found.chance == pytest.approx(39 / 319)


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_the_training_score_is_that_of_the_model_of_all(gamma: Any) -> None:
    made = single(signal=0.2, gamma=gamma)
    found = made.figures().training_score
    assert found > made.rows[0].score
    if gamma is None:
        model = Ridge(made.rows[0].alpha).fit(made.normed[0][:], made.targets.values)
        predicted = model.predict(made.normed[0][:]).argmax(axis=1)
        assert found == pytest.approx((predicted == LABELS).mean())


def test_layers_that_know_different_things_are_better_together() -> None:
    """One tells even from odd classes, the other which pair of them it is."""
    codes = {
        ("net", -1): made_codes(LABELS % 2, 0.8, 0),
        ("net", -2): made_codes(LABELS // 2, 0.8, 1),
    }
    joined = Made(codes, LABELS).figures().joined_layers
    assert joined is not None
    assert {row.layer for row in joined.rows} == {-1, -2}
    assert joined.difference.clear
    assert joined.score > 0.7
    side_by_side = np.hstack([*codes.values()])
    ranked = Made(codes | {("net", (-1, -2)): side_by_side}, LABELS)
    again = ranked.figures().joined_layers
    assert again is not None
    assert [row.layer for row in again.rows] == [[-1, -2]]
    assert again.score == pytest.approx(joined.score)


def test_codes_side_by_side_are_scored_on_enough_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ENOUGH", 100)
    codes = {("net", -1): made_codes(LABELS, 0.5, 0)}
    codes |= {("net", -2): made_codes(LABELS, 0.5, 1)}
    codes |= {("other", -1): made_codes(LABELS, 0.5, 2)}
    figures = Made(codes, LABELS).figures()
    for joined in (figures.joined_layers, figures.joined_backbones):
        assert joined is not None
        assert joined.n_images == 80
        assert joined.difference.value > 0


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_other_targets(kind: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(200, 16))
    values = codes[:, :3] + rng.normal(size=(200, 3))
    y = values if kind == "regression" else (values > 0).astype(int)
    figures = Made({("net", -1): codes}, y).figures()
    assert figures.neighbours is None
    assert figures.least_per_class is None
    assert [point.n_images for point in figures.curve] == [25, 50, 100, 200]
    assert figures.signal.clear
    assert figures.training_score > figures.curve[-1].score


def test_a_difference_of_few_groups_is_not_clear() -> None:
    rng = np.random.default_rng(0)
    samples, others = np.ones(400), (rng.random(400) < 0.9).astype(float)
    assert difference(samples, others, None).clear
    assert not difference(others, samples, None).clear
    assert not difference(samples, others, np.arange(400) % 2).clear
