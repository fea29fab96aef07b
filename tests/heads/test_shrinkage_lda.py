"""Shrinkage LDA: scikit-learn's checks, and equality with scikit-learn's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_cnncodes import ShrinkageLDA


@parametrize_with_checks([ShrinkageLDA()])
def test_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@settings(max_examples=60, deadline=None)
@given(
    n_classes=st.integers(2, 5),
    per_class=st.integers(2, 9),
    n_features=st.integers(1, 40),
    n_dead=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_that_of_scikit_learn(
    n_classes: int, per_class: int, n_features: int, n_dead: int, seed: int
) -> None:
    """With classes of different sizes, and with channels that are 0 in some classes."""
    rng = np.random.default_rng(seed)
    y = np.sort(rng.integers(0, n_classes, n_classes * per_class))
    y[: 2 * n_classes] = np.arange(n_classes).repeat(2)
    X = rng.normal(size=(len(y), n_features)) + 2 * y[:, None]
    X[:, :n_dead] *= y[:, None] > 0
    wanted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(X, y)
    head = ShrinkageLDA().fit(X, y)
    variances = np.linalg.eigvalsh(wanted.covariance_)
    if not variances[0] / variances[-1] > 1e-8:  # neither has a meaning
        assert np.isfinite(head.coef_).all()
        return
    new = rng.normal(size=(20, n_features)) + n_classes
    values = wanted.decision_function(new)
    np.testing.assert_allclose(
        head.decision_function(new), values, rtol=1e-5, atol=1e-5 * np.abs(values).max()
    )


def test_digits() -> None:
    X, y = load_digits(return_X_y=True)
    for n_images in (40, 600):  # fewer images than features, and more
        head = ShrinkageLDA().fit(X[:n_images], y[:n_images])
        wanted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        wanted.fit(X[:n_images], y[:n_images])
        np.testing.assert_array_equal(head.predict(X), wanted.predict(X))
        np.testing.assert_allclose(
            head.predict_proba(X), wanted.predict_proba(X), atol=1e-9
        )


def test_priors() -> None:
    X, y = load_digits(n_class=3, return_X_y=True)
    rare = ShrinkageLDA(priors=[0.01, 0.495, 0.495]).fit(X[:30], y[:30])
    even = ShrinkageLDA(priors=[1, 1, 1]).fit(X[:30], y[:30])
    assert rare.predict_proba(X)[:, 0].sum() < even.predict_proba(X)[:, 0].sum()
    for wrong in ([0.5, 0.5], [1, 1, -1], [1, 1, 0]):
        with pytest.raises(ValueError, match="priors: expected 3 positive numbers"):
            ShrinkageLDA(priors=wrong).fit(X[:30], y[:30])


def test_a_class_of_one_image() -> None:
    X, y = load_digits(n_class=3, return_X_y=True)
    rows = np.r_[np.flatnonzero(y[:100] < 2), np.flatnonzero(y == 2)[0]]
    head = ShrinkageLDA().fit(X[rows], y[rows])
    assert head.score(X[:100], y[:100]) > 0.7


def test_what_it_refuses() -> None:
    X = np.eye(4)
    for y in ([0, 1, 2, 3], [1, 1, 1, 1]):
        with pytest.raises(ValueError, match="expected at least 2 classes, and more"):
            ShrinkageLDA().fit(X, y)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_class_weights_are_other_priors_of_the_same_covariance(n_classes: int) -> None:
    X, y = load_digits(n_class=n_classes, return_X_y=True)
    X, y = np.r_[X[y > 0], X[y == 0][:9]], np.r_[y[y > 0], y[y == 0][:9]]
    plain = ShrinkageLDA().fit(X, y)
    head = ShrinkageLDA(class_weight="balanced").fit(X, y)
    np.testing.assert_array_equal(head.coef_, plain.coef_)
    np.testing.assert_allclose(head.priors_, 1 / n_classes)
    found = head.predict_proba(X)
    wanted = plain.predict_proba(X) / plain.priors_
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
