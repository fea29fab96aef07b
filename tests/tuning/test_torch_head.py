"""The head in torch and as an estimator of scikit-learn: the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sk_cnncodes.backbones.norms import apply_norm
from sk_cnncodes.ranking.scoring import read_targets, softmax
from sk_cnncodes.tuning.head_weights import HeadWeights, random_hidden, ridge_start

torch = pytest.importorskip("torch")

from sk_cnncodes.tuning.torch_head import TorchHead  # noqa: E402

RNG = np.random.default_rng(0)
CODES = np.float32(RNG.gamma(0.5, 1, (60, 12)) * (RNG.random((60, 12)) > 0.3))
Y = np.arange(60) % 3


def weights_of(n_targets: int, hidden: tuple[int, ...]) -> HeadWeights:
    mean, spread = RNG.normal(size=(2, n_targets))
    if hidden:
        return random_hidden(12, hidden, RNG, mean, spread)
    return HeadWeights([(RNG.normal(size=(12, n_targets)), mean)])


def of_logits(weights: HeadWeights) -> TorchHead:
    n_targets = len(weights.layers[-1][1])
    magnitude = float(CODES.mean())
    return TorchHead(weights, magnitude, np.zeros(n_targets), np.ones(n_targets))


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_torch_and_scikit_learn_give_the_same(
    hidden: tuple[int, ...], n_classes: int
) -> None:
    weights = weights_of(n_classes, hidden)
    head = of_logits(weights)
    with torch.no_grad():
        logits = head(torch.from_numpy(CODES)).numpy()
    classes = np.array(["a", "b", "c"])[:n_classes]
    fitted = head.weights().classifier(classes)
    normed = apply_norm(CODES, "power")
    np.testing.assert_allclose(
        fitted.predict_proba(normed), softmax(logits.astype(float)), atol=1e-5
    )
    np.testing.assert_array_equal(fitted.predict(normed), classes[logits.argmax(1)])


@pytest.mark.parametrize("hidden", [(), (7,)])
@pytest.mark.parametrize("one", [True, False])
def test_values_keep_their_mean_and_spread(hidden: Any, one: bool) -> None:
    weights = weights_of(1 if one else 2, hidden)
    mean, spread = (np.full(1 if one else 2, each) for each in (500.0, 30.0))
    head = TorchHead(weights, float(CODES.mean()), mean, spread)
    with torch.no_grad():
        values = head(torch.from_numpy(CODES)).numpy()
    got = head.weights().regressor(one).predict(apply_norm(CODES, "power"))
    assert got.ndim == (1 if one else 2)
    np.testing.assert_allclose(got.reshape(values.shape), values, rtol=1e-4, atol=1e-2)


def test_slopes_are_finite_where_codes_are_zero() -> None:
    codes = torch.tensor(CODES, requires_grad=True)
    dead = torch.zeros(1, 12, requires_grad=True)
    head = of_logits(weights_of(3, ()))
    (head(codes).sum() + head(dead).sum()).backward()
    assert codes.grad is not None and dead.grad is not None
    assert torch.isfinite(codes.grad).all() and torch.isfinite(dead.grad).all()


def test_slopes_are_those_of_differences() -> None:
    codes = torch.rand(4, 12, generator=torch.Generator().manual_seed(0)) + 0.5
    codes.requires_grad_()
    head = of_logits(weights_of(3, ()))
    weights = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    (head(codes) * weights).sum().backward()
    step = 1e-3
    with torch.no_grad():
        for row, column in [(0, 0), (1, 5), (3, 11)]:
            moved = torch.zeros_like(codes)
            moved[row, column] = step
            more, less = head(codes + moved), head(codes - moved)
            wanted = ((more - less) * weights).sum() / (2 * step)
            assert codes.grad is not None
            assert float(codes.grad[row, column]) == pytest.approx(
                float(wanted), rel=0.02, abs=2e-3
            )


def test_the_start_is_ridge_with_a_temperature() -> None:
    targets, _ = read_targets(Y)
    codes = apply_norm(CODES, "power")
    start = ridge_start(codes, targets, None)
    probabilities = start.classifier(targets.classes).predict_proba(codes)
    # Random classes: the leave-one-out predictions are worth nothing, and say so.
    assert probabilities.max() < 0.8
    informative = codes.copy()
    informative[:, :3] += np.eye(3)[Y]
    start = ridge_start(informative, targets, None)
    probabilities = start.classifier(targets.classes).predict_proba(informative)
    assert probabilities[np.arange(60), Y].min() > 0.8
