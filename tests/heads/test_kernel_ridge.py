"""Kernel ridge: scikit-learn's checks, and what it chooses and predicts."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits, make_multilabel_classification
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import average_precision_score, r2_score
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_cnncodes import KernelRidgeClassifierCV, KernelRidgeCV

Codes = tuple[np.ndarray, np.ndarray]


@parametrize_with_checks([KernelRidgeClassifierCV(), KernelRidgeCV()])
def test_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> Codes:
    X, y = load_digits(return_X_y=True)
    return normalize(X).astype(np.float32), y


def refitted(X: np.ndarray, Y: np.ndarray, new: np.ndarray, head: Any) -> np.ndarray:
    """Predictions of scikit-learn's kernel ridge, with the kernel centred by hand."""
    gamma = head.gamma_
    kernel, other = rbf_kernel(X, gamma=gamma), rbf_kernel(new, X, gamma=gamma)
    own = kernel.mean(axis=0)
    other = other - own - other.mean(axis=1, keepdims=True) + own.mean()
    kernel = kernel - own - own[:, None] + own.mean()
    model = KernelRidge(alpha=head.alpha_, kernel="precomputed")
    predicted = model.fit(kernel, Y - Y.mean(axis=0)).predict(other)
    result: np.ndarray = predicted + Y.mean(axis=0)
    return result


def test_decision_values_are_those_of_kernel_ridge(digits: Codes) -> None:
    X, y = digits[0].astype(float), digits[1]
    head = KernelRidgeClassifierCV().fit(X[:90], y[:90])
    Y = np.where(y[:90, None] == np.arange(10), 1.0, -1.0)
    wanted = refitted(X[:90], Y, X[90:200], head)
    np.testing.assert_allclose(head.decision_function(X[90:200]), wanted, atol=1e-9)
    np.testing.assert_array_equal(head.predict(X[90:200]), wanted.argmax(axis=1))


def test_two_classes(digits: Codes) -> None:
    X, y = digits[0], np.where(digits[1] > 4, "large", "small")
    head = KernelRidgeClassifierCV().fit(X[:200], y[:200])
    values = head.decision_function(X[200:])
    assert values.shape == (len(X) - 200,)
    assert head.classes_.tolist() == ["large", "small"]
    np.testing.assert_array_equal(
        head.predict(X[200:]), head.classes_[(values > 0).astype(int)]
    )
    assert head.score(X[200:], y[200:]) > 0.85


def test_the_score_is_that_of_refits(digits: Codes) -> None:
    X, y = digits[0].astype(float)[:60], digits[1][:60]
    head = KernelRidgeClassifierCV().fit(X, y)
    Y = np.where(y[:, None] == np.arange(10), 1.0, -1.0)
    rows = np.arange(60)
    hits = [
        refitted(X[rows != i], Y[rows != i], X[[i]], head).argmax() == y[i]
        for i in rows
    ]
    assert head.best_score_ == pytest.approx(np.mean(hits))


def test_groups_are_left_out_together(digits: Codes) -> None:
    """Copies with little noise: left out one by one, they say nothing."""
    rng = np.random.default_rng(0)
    X = np.repeat(digits[0][:60].astype(float), 4, axis=0)
    X = X + rng.normal(0, 1e-3, X.shape)
    y, groups = rng.permutation(60).repeat(4) % 5, np.arange(60).repeat(4)
    assert KernelRidgeClassifierCV().fit(X, y).best_score_ > 0.9
    head = KernelRidgeClassifierCV().fit(X, y, groups=groups)
    assert head.best_score_ < 0.5
    with pytest.raises(ValueError, match="groups: expected one for each of the 240"):
        head.fit(X, y, groups=groups[:5])


def test_it_chooses_between_gammas_and_alphas(digits: Codes) -> None:
    X, y = digits
    gammas, alphas = (1e-3, 0.25, 50), (1e-3, 0.01, 1e5)
    head = KernelRidgeClassifierCV(gammas, alphas).fit(X[:300], y[:300])
    scores = {
        (gamma, alpha): KernelRidgeClassifierCV([gamma], [alpha])
        .fit(X[:300], y[:300])
        .score(X[300:], y[300:])
        for gamma in gammas
        for alpha in alphas
    }
    assert head.alpha_ < 1e5
    assert head.gamma_ * X[:300].var(axis=0).sum() == pytest.approx(0.25, rel=1e-5)
    assert head.score(X[300:], y[300:]) >= max(scores.values()) - 0.01


@pytest.mark.parametrize("factor", [1e-2, 1e2])
def test_codes_of_any_length(factor: float, digits: Codes) -> None:
    X, y = digits
    unit = KernelRidgeClassifierCV().fit(X[:300], y[:300])
    head = KernelRidgeClassifierCV().fit(X[:300] * factor, y[:300])
    assert (head.predict(X * factor) == unit.predict(X)).mean() > 0.995


def test_labels(digits: Codes) -> None:
    X, y = make_multilabel_classification(400, 30, n_classes=4, random_state=0)
    head = KernelRidgeClassifierCV().fit(X[:300], y[:300])
    assert head.classes_.tolist() == [0, 1, 2, 3]
    values = head.decision_function(X[300:])
    np.testing.assert_array_equal(head.predict(X[300:]), values > 0)
    assert average_precision_score(y[300:], values) > 0.7
    assert 0.6 < head.best_score_ < 1


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 2)])
def test_values(shape: tuple[int, ...], digits: Codes) -> None:
    X, y = digits[0], np.c_[digits[1], digits[1] ** 2].astype(float)
    y = y if shape == (-1, 2) else y[:, 0].reshape(shape)
    head = KernelRidgeCV().fit(X[:300], y[:300])
    predicted = head.predict(X[300:])
    assert predicted.shape == y[300:].shape
    assert head.best_score_ > 0.6
    assert r2_score(y[300:], predicted) > 0.6


def test_many_images(digits: Codes, caplog: pytest.LogCaptureFixture) -> None:
    X, y = digits
    whole = KernelRidgeClassifierCV().fit(X[:1000], y[:1000])
    head = KernelRidgeClassifierCV(max_loo_samples=150, max_kernel_samples=200)
    with caplog.at_level(logging.INFO, "sk_cnncodes"):
        head.fit(X[:1000], y[:1000])
    assert "200 of 1000 samples (max_kernel_samples)" in caplog.text
    assert head.X_fit_.shape == (200, 64)
    accuracy = head.score(X[1000:], y[1000:])
    assert accuracy > whole.score(X[1000:], y[1000:]) - 0.03
    # All images count, not those of the kernel alone.
    label_of = dict(zip(map(bytes, X), y, strict=True))
    few = KernelRidgeClassifierCV().fit(
        head.X_fit_, [label_of[bytes(row)] for row in head.X_fit_]
    )
    assert accuracy > few.score(X[1000:], y[1000:])


def test_the_basis_of_all_samples_is_exact(
    digits: Codes, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = digits
    exact = KernelRidgeClassifierCV([0.5], [0.1]).fit(X[:150], y[:150])
    monkeypatch.setattr(
        KernelRidgeClassifierCV, "_solve_all", KernelRidgeClassifierCV._solve_basis
    )
    other = KernelRidgeClassifierCV([0.5], [0.1]).fit(X[:150], y[:150])
    np.testing.assert_allclose(
        other.decision_function(X[150:]), exact.decision_function(X[150:]), atol=1e-4
    )


@pytest.mark.parametrize("size", [6000, 60])
def test_a_weight_of_two_is_every_sample_twice(
    size: int, digits: Codes, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = digits[0][:80], digits[1][:80] % 3
    weights = {0: 1, 1: 2, 2: 1}
    twice = np.r_[np.arange(80), np.flatnonzero(y == 1)]
    spread, other = X.var(axis=0).sum(), X[twice].var(axis=0).sum()
    head = KernelRidgeClassifierCV([0.5], [0.1], class_weight=weights)
    same = KernelRidgeClassifierCV([0.5 * other / spread], [0.1])
    if size == 60:  # the kernel to the same samples
        solve = KernelRidgeClassifierCV._solve_basis

        def with_basis(head: Any, X: np.ndarray, *values: np.ndarray) -> np.ndarray:
            head.X_fit_ = digits[0][:60]
            return solve(head, X, *values)

        monkeypatch.setattr(KernelRidgeClassifierCV, "_solve_all", with_basis)
    found, wanted = (
        each.decision_function(digits[0][80:])
        for each in (head.fit(X, y), same.fit(X[twice], y[twice]))
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    plain = KernelRidgeClassifierCV([0.5], [0.1]).fit(X, y)
    assert np.abs(plain.decision_function(digits[0][80:]) - found).max() > 0.01


def test_balanced_classes_win_for_rare_ones(digits: Codes) -> None:
    X, y = digits
    rows = np.flatnonzero((y[:600] == 8) | (y[:600] == 9))
    rare = rows[y[rows] == 9][:4]
    rows = np.r_[rows[y[rows] == 8], rare]
    new = np.flatnonzero(y[600:] == 9) + 600
    plain = KernelRidgeClassifierCV().fit(X[rows], y[rows])
    head = KernelRidgeClassifierCV(class_weight="balanced").fit(X[rows], y[rows])
    assert (head.predict(X[new]) == 9).mean() > (plain.predict(X[new]) == 9).mean()


def test_labels_have_no_class_weights(digits: Codes) -> None:
    y = np.eye(10, dtype=int)[digits[1][:50]]
    with pytest.raises(ValueError, match="class_weight: expected None for the multila"):
        KernelRidgeClassifierCV(class_weight="balanced").fit(digits[0][:50], y)


def test_chunks_change_nothing(digits: Codes, monkeypatch: pytest.MonkeyPatch) -> None:
    from sk_cnncodes.heads import kernel_ridge

    X, y = digits
    wanted = KernelRidgeClassifierCV().fit(X[:150], y[:150]).decision_function(X)
    monkeypatch.setattr(kernel_ridge, "_CHUNK_BYTES", 8 * 150 * 7)
    found = KernelRidgeClassifierCV().fit(X[:150], y[:150]).decision_function(X)
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_images_that_occur_twice_and_codes_without_differences(digits: Codes) -> None:
    X, y = np.r_[digits[0][:80], digits[0][:80]], np.r_[digits[1][:80], digits[1][:80]]
    for size in (6000, 100):
        head = KernelRidgeClassifierCV(max_kernel_samples=size).fit(X, y)
        assert head.score(X, y) > 0.9
    same = KernelRidgeClassifierCV().fit(np.ones((6, 3)), [0, 0, 0, 0, 1, 1])
    assert same.predict(np.ones((2, 3))).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gammas": ()}, "gammas and alphas: expected at least one"),
        ({"gammas": (-1,)}, "gammas: expected positive"),
        ({"alphas": (0,)}, "alphas: expected positive"),
        ({"max_loo_samples": 1}, "max_loo_samples: expected at least 2, got 1"),
        ({"max_kernel_samples": 0}, "max_kernel_samples: expected at least 2, got 0"),
    ],
)
def test_wrong_parameters(
    parameters: dict[str, Any], message: str, digits: Codes
) -> None:
    X, y = digits
    with pytest.raises(ValueError, match=message):
        KernelRidgeClassifierCV(**parameters).fit(X[:50], y[:50])


def test_one_class(digits: Codes) -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        KernelRidgeClassifierCV().fit(digits[0][:9], np.zeros(9))
