"""Scores of predictions, their errors, and which kind of targets y has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics
from sklearn.utils import resample

from sk_cnncodes.ranking.scoring import (
    Targets,
    alpha_losses,
    is_worse,
    read_targets,
    sample_scores,
    standard_error,
    temperature_factors,
)

N = 400


def made(kind: str) -> tuple[Any, np.ndarray]:
    """Targets, and predictions of two models, which are often right."""
    rng = np.random.default_rng(0)
    if kind == "classification":
        y: Any = rng.choice(["a", "b", "c"], N, p=[0.6, 0.3, 0.1])
        values = np.where(y[:, None] == np.array(["a", "b", "c"]), 1, -1)
    elif kind == "multilabel":
        y = (rng.random((N, 3)) < [0.5, 0.2, 0.05]).astype(int)
        values = 2 * y - 1
    else:
        y = values = rng.normal(size=(N, 2)) * [1, 10] + 3
    noise = rng.normal(size=(2, N, values.shape[1])) * [[[1.0]], [[1.5]]]
    return y, values + noise * values.std(axis=0)


def scikit_learns(
    kind: str, scoring: str, y: Any, z: np.ndarray, targets: Targets
) -> float:
    if scoring == "r2":
        return metrics.r2_score(y, z)
    if scoring == "neg_mean_absolute_error":
        return -metrics.mean_absolute_error(y, z)
    if scoring == "average_precision":
        return metrics.average_precision_score(y, z, average="macro")
    if kind == "multilabel":
        return metrics.accuracy_score(y, z > 0)
    predicted = targets.classes[z.argmax(axis=1)]
    if scoring == "f1_macro":
        return metrics.f1_score(y, predicted, average="macro")
    if scoring == "balanced_accuracy":
        return metrics.balanced_accuracy_score(y, predicted)
    return metrics.accuracy_score(y, predicted)


@pytest.mark.parametrize(
    ("kind", "scoring"),
    [
        ("classification", "accuracy"),
        ("classification", "balanced_accuracy"),
        ("classification", "f1_macro"),
        ("multilabel", "accuracy"),
        ("multilabel", "average_precision"),
        ("regression", "r2"),
        ("regression", "neg_mean_absolute_error"),
    ],
)
def test_scores_and_their_errors(kind: str, scoring: str) -> None:
    y, predictions = made(kind)
    predictions = predictions.round(1)  # some are equal
    targets, name = read_targets(y, scoring)
    assert (targets.kind, name) == (kind, scoring)
    found = sample_scores(predictions, targets, scoring)
    assert found.shape == (2, N)
    wanted = [scikit_learns(kind, scoring, y, z, targets) for z in predictions]
    np.testing.assert_allclose(found.mean(axis=1), wanted, rtol=0, atol=1e-12)
    # The error is that of the bootstrap.
    drawn = [resample(np.arange(N), random_state=seed) for seed in range(500)]
    scores = [
        scikit_learns(kind, scoring, y[rows], predictions[0][rows], targets)
        for rows in drawn
    ]
    assert standard_error(found[0]) == pytest.approx(np.std(scores), rel=0.15)


def test_log_loss_is_that_of_the_best_temperature() -> None:
    y, predictions = made("classification")
    targets, _ = read_targets(y, "neg_log_loss")
    found = sample_scores(predictions, targets, "neg_log_loss").mean(axis=1)
    for z, score in zip(predictions, found, strict=True):
        losses = []
        for factor in np.geomspace(0.1, 10, 200):
            powers = np.exp(factor * z)
            p = powers / powers.sum(axis=1, keepdims=True)
            losses.append(-metrics.log_loss(y, p, labels=targets.classes))
        assert 0 <= score - max(losses) < 1e-4
    # All right: the probabilities are as sure as they may be. All wrong: as unsure.
    factors = temperature_factors(
        np.stack([targets.values, -targets.values]).astype(float), targets.numbers
    )
    assert factors[0] > 15
    assert factors[1] == pytest.approx(0.01, rel=0.01)


def test_a_label_that_no_image_has_does_not_count() -> None:
    y, predictions = made("multilabel")
    y[:, 1] = 0
    targets, scoring = read_targets(y)
    found = sample_scores(predictions[0], targets, scoring).mean()
    kept = [0, 2]
    wanted = metrics.average_precision_score(y[:, kept], predictions[0][:, kept])
    assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("y", "scoring", "kind", "default"),
    [
        (["dog", "cat", "dog"], None, "classification", "accuracy"),
        ([[3], [1], [3]], None, "classification", "accuracy"),
        ([True, False, True], None, "classification", "accuracy"),
        ([[1, 0], [1, 1], [0, 0]], None, "multilabel", "average_precision"),
        ([0.5, 1.25, 3], None, "regression", "r2"),
        ([30, 40, 50], "r2", "regression", "r2"),
        ([[0.5, 1], [1, 2], [3, 4]], None, "regression", "r2"),
    ],
)
def test_kinds(y: Any, scoring: str | None, kind: str, default: str) -> None:
    targets, name = read_targets(y, scoring)
    assert (targets.kind, name) == (kind, default)
    assert targets.values.shape == (3, len(targets.classes))


@pytest.mark.parametrize(
    ("y", "scoring", "message"),
    [
        (["a", "a", "a"], None, r"y: expected at least 2 classes, got 1: \['a'\]"),
        (["a", "b"], "r2", r"scoring: expected one of \['accuracy', "),
        ([0.5, 1.5, 2.5], "accuracy", r"scoring: expected one of \['r2', "),
        ([[1, 2], [3, 4]], None, r"got multiclass-multioutput of type int"),
        ([1.0, np.nan, 2.0], None, "y: expected finite numbers"),
        ([1.0, np.nan, 2.0], "r2", "y: expected finite numbers"),
        ([2.5, 2.5, 2.5], None, "y: expected values that differ"),
        ([[0, 0], [0, 0]], None, "y: expected labels, got a matrix of zeros"),
        (["a"], None, r"at least 2 images, got the shape \(1,\)"),
        ("cat", None, r"got the shape \(\)"),
    ],
)
def test_errors(y: Any, scoring: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_targets(y, scoring)


def test_errors_of_groups() -> None:
    """Copies of an image say nothing new about a model."""
    samples = np.random.default_rng(0).random(50)
    repeated, groups = np.repeat(samples, 8), np.repeat(np.arange(50), 8)
    assert standard_error(repeated, groups) == pytest.approx(standard_error(samples))
    assert standard_error(repeated) < 0.4 * standard_error(samples)


def test_worse_by_more_than_chance() -> None:
    rng = np.random.default_rng(0)
    wrong, trials = 0, 400
    for _ in range(trials):
        one, other = rng.random((2, 60)) < 0.8
        wrong += is_worse(one.astype(float), other.astype(float))
    assert 0 < wrong / trials < 0.05  # two-sided 5%, of which one side
    best = np.ones(60)
    assert not is_worse(best, best)
    assert not is_worse(np.where(np.arange(60) < 3, 0.0, 1), best)
    assert is_worse(np.where(np.arange(60) < 8, 0.0, 1), best)
    # All of it in one group of eight is one event.
    groups = np.arange(60) // 8
    assert not is_worse(np.where(np.arange(60) < 8, 0.0, 1), best, groups)


def test_what_an_alpha_is_chosen_by() -> None:
    y, predictions = made("classification")
    targets, _ = read_targets(y)
    samples = sample_scores(predictions, targets, "accuracy")
    errors = (predictions - targets.values) ** 2
    found = alpha_losses(predictions, targets, "accuracy", samples)
    np.testing.assert_allclose(found, errors.mean(axis=(1, 2)))
    found = alpha_losses(predictions, targets, "balanced_accuracy", samples)
    of_classes = [errors[:, y == name].mean(axis=(1, 2)) for name in "abc"]
    np.testing.assert_allclose(found, np.mean(of_classes, axis=0))
    found = alpha_losses(predictions, targets, "neg_log_loss", samples)
    np.testing.assert_allclose(found, -samples.mean(axis=1))


def test_r2_leaves_out_targets_that_do_not_vary() -> None:
    values = np.c_[np.arange(9.0), np.full(9, 0.1)]
    predictions = values + np.random.default_rng(0).normal(size=(2, *values.shape))
    targets = Targets("regression", values, np.arange(2), np.zeros(0, int))
    found = sample_scores(predictions, targets, "r2")
    assert found.mean(axis=1) == pytest.approx(
        [metrics.r2_score(values[:, 0], each[:, 0]) for each in predictions]
    )
    constant = replace(targets, values=values[:, 1:])
    assert not sample_scores(predictions[..., 1:], constant, "r2").any()


@pytest.mark.parametrize("weight", [-1, np.nan, np.inf, "2"])
def test_bad_weights_of_classes(weight: Any) -> None:
    with pytest.raises(ValueError, match=r"class_weight\['b'\]: expected a finite num"):
        read_targets(["a", "b"] * 3, class_weight={"a": 1, "b": weight})


def test_an_unknown_name_of_class_weights() -> None:
    with pytest.raises(ValueError, match="class_weight: expected .* got 'balance'"):
        read_targets(["a", "b"] * 3, class_weight="balance")
