"""95% intervals of accuracies."""

from __future__ import annotations

import numpy as np
import pytest

from sk_cnncodes.inspection.intervals import accuracy_interval, balanced_interval


def test_wilson() -> None:
    """Values of R: prop.test(81, 263, correct=FALSE), and of 20 of 20."""
    right = np.arange(263) < 81
    assert accuracy_interval(right) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert accuracy_interval(np.ones(20)) == pytest.approx((0.8389, 1), abs=1e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_intervals_cover_the_truth(correlation: float) -> None:
    """Of images in groups that are right together; Wilson's alone does not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), 8)
    covered, naive = 0, 0
    for _ in range(300):
        common = rng.random(25)[groups] < 0.8
        own = rng.random(200) < 0.8
        right = np.where(rng.random(25)[groups] < correlation, common, own)
        low, high = accuracy_interval(right, groups)
        covered += low <= 0.8 <= high
        low, high = accuracy_interval(right)
        naive += low <= 0.8 <= high
    assert covered / 300 > 0.9
    assert (naive / 300 > 0.9) == (correlation == 0)


def test_balanced_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    numbers = np.repeat([0, 1, 2], [150, 20, 6])
    truth = np.array([0.9, 0.7, 0.5])
    covered = 0
    for _ in range(300):
        right = rng.random(176) < truth[numbers]
        low, high = balanced_interval(right, numbers)
        covered += low <= truth.mean() <= high
    assert covered / 300 > 0.9


def test_a_small_class_that_is_right_by_luck_stays_uncertain() -> None:
    numbers = np.repeat([0, 1], [200, 2])
    low, high = balanced_interval(np.ones(202), numbers)
    assert high == 1
    assert low < 0.7
