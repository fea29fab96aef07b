"""Closed-form leave-one-out predictions: those of models that are fitted again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut
from sklearn.preprocessing import KernelCenterer

from sk_cnncodes.ranking import leave_one_out
from sk_cnncodes.ranking.leave_one_out import (
    ridge_decompositions,
)
from sk_cnncodes.ranking.scoring import signed_targets

ALPHAS = [1e-4, 0.03, 1.0, 100.0]
# Fewer features than samples, and more; without a centre of 0.
SHAPES = [(30, 7), (30, 40), (30, 30)]
GROUPS = {
    "none": None,
    "bursts": np.repeat(np.arange(10), 3)[np.random.default_rng(1).permutation(30)],
    # Of 1, of 2, and of more samples than there are features.
    "uneven": np.repeat(["c", "a", "b", "d"], [1, 2, 15, 12]),
    "mostly alone": np.array([*range(24), 0, 0, 1, 25, 26, 1]),
}


def made(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=shape) + rng.normal(size=shape[1])
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    codes[4] = codes[3]  # equal images
    return codes.astype(np.float32), rng.integers(0, 3, shape[0])


def refitted(
    codes: np.ndarray,
    targets: Any,
    alpha: float,
    gamma: float | None,
    groups: Any,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Predictions of models that scikit-learn fits without each group."""
    codes, targets = codes.astype(float), np.asarray(targets, float)
    found = np.empty((len(targets), 1 if targets.ndim == 1 else targets.shape[1]))
    splitter = LeaveOneOut() if groups is None else LeaveOneGroupOut()
    for train, test in splitter.split(codes, groups=groups):
        if weights is not None:
            found[test] = weighted_fit(
                *(codes[train], targets[train], weights[train], alpha, gamma),
                codes[test],
            )
            continue
        if gamma is None:
            model = Ridge(alpha, solver="cholesky").fit(codes[train], targets[train])
            part = model.predict(codes[test])
        else:
            centre = KernelCenterer()
            kernel = centre.fit_transform(rbf_kernel(codes[train], gamma=gamma))
            mean = targets[train].mean(axis=0)
            model = KernelRidge(alpha=alpha, kernel="precomputed")
            model.fit(kernel, targets[train] - mean)
            across = rbf_kernel(codes[test], codes[train], gamma=gamma)
            part = mean + model.predict(centre.transform(across))
        found[test] = part.reshape(len(test), -1)
    return found


def weighted_fit(
    codes: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    alpha: float,
    gamma: float | None,
    asked: np.ndarray,
) -> np.ndarray:
    """What a model of weighted samples predicts; with a kernel, from its features."""
    if gamma is None:
        model = Ridge(alpha, solver="cholesky")
        return model.fit(codes, targets, sample_weight=weights).predict(asked)
    every = np.vstack([codes, asked])
    values, vectors = np.linalg.eigh(rbf_kernel(every, gamma=gamma))
    features = vectors * np.sqrt(np.maximum(values, 0))  # products are the kernel
    model = Ridge(alpha, solver="cholesky")
    model.fit(features[: len(codes)], targets, sample_weight=weights)
    return model.predict(features[len(codes) :])


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("gamma", [None, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_predictions_are_those_of_weighted_refits(
    shape: tuple[int, int], gamma: float | None, groups: str
) -> None:
    codes, y = made(shape)
    codes = codes.astype(float)
    targets, _ = signed_targets(y)
    weights = np.random.default_rng(3).uniform(0.1, 5, len(y))
    (ridge,) = ridge_decompositions(codes, [gamma], weights=weights)
    found = ridge.predictions(targets, ALPHAS, GROUPS[groups])
    for alpha, each in zip(ALPHAS, found, strict=True):
        wanted = refitted(codes, targets, alpha, gamma, GROUPS[groups], weights)
        np.testing.assert_allclose(each, wanted, rtol=0, atol=1e-7)
        fitted = weighted_fit(codes, targets, weights, alpha, gamma, codes)
        np.testing.assert_allclose(ridge.fitted(targets, alpha), fitted, atol=1e-7)
    (plain,) = ridge_decompositions(codes, [gamma])
    (equal,) = ridge_decompositions(codes, [gamma], weights=np.ones(len(y)))
    np.testing.assert_allclose(
        plain.predictions(targets, ALPHAS, GROUPS[groups]),
        equal.predictions(targets, ALPHAS, GROUPS[groups]),
        atol=1e-9,
    )


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("gamma", [None, 0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_are_those_of_refits(
    shape: tuple[int, int], gamma: float | None, groups: str
) -> None:
    codes, y = made(shape)
    targets, _ = signed_targets(y)
    (ridge,) = ridge_decompositions(codes, [gamma])
    found = ridge.predictions(targets, ALPHAS, GROUPS[groups])
    assert found.shape == (len(ALPHAS), 30, 3)
    for alpha, each in zip(ALPHAS, found, strict=True):
        wanted = refitted(codes, targets, alpha, gamma, GROUPS[groups])
        np.testing.assert_allclose(each, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_target(shape: tuple[int, int]) -> None:
    codes, _ = made(shape)
    values = np.random.default_rng(2).normal(1000, 1, shape[0])
    for ridge, gamma in zip(
        ridge_decompositions(codes, [None, 1.0]), [None, 1.0], strict=True
    ):
        (found,) = ridge.predictions(values, [0.1])
        wanted = refitted(codes, values, 0.1, gamma, None)
        np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_noise_is_not_predicted() -> None:
    """Without the centre of the kernel, all left-out samples would seem right."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(200, 600))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    targets, _ = signed_targets(rng.permutation(np.repeat(["a", "b"], 100)))
    for ridge in ridge_decompositions(codes, [None, 1.0]):
        for each in ridge.predictions(targets, [1e-6, 1.0]):
            right = (each.argmax(axis=1) == targets.argmax(axis=1)).mean()
            assert right < 0.65


def test_several_labels_and_classes() -> None:
    targets, classes = signed_targets(np.array(["b", "a", "b"]))
    assert targets.tolist() == [[-1, 1], [1, -1], [-1, 1]]
    assert classes.tolist() == ["a", "b"]
    targets, classes = signed_targets(np.array([[1, 0, 1], [0, 0, 1]]))
    assert targets.tolist() == [[1, -1, 1], [-1, -1, 1]]
    assert classes.tolist() == [0, 1, 2]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("gamma", [None, 1.0])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_chunks_change_nothing(
    shape: tuple[int, int],
    gamma: float | None,
    groups: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes, y = made(shape)
    targets, _ = signed_targets(y)
    (ridge,) = ridge_decompositions(codes, [gamma])
    wanted = ridge.predictions(targets, ALPHAS, GROUPS[groups])
    np.save(tmp_path / "codes.npy", codes)
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    monkeypatch.setattr(leave_one_out, "_CHUNK_BYTES", 2000)
    (ridge,) = ridge_decompositions(mapped, [gamma])
    blocks = list(ridge.blocks(targets, ALPHAS, GROUPS[groups]))
    rows = np.concatenate([np.arange(30)[rows] for rows, _ in blocks])
    assert sorted(rows) == list(range(30))
    assert len(blocks) > 3
    found = np.concatenate([block for _, block in blocks], axis=1)
    np.testing.assert_allclose(found, wanted[:, rows], rtol=0, atol=1e-9)


def test_equal_codes() -> None:
    """Each is predicted as the mean of the others."""
    codes = np.full((4, 6), 0.1, np.float32)
    values = np.array([1.0, 2, 3, 6])
    for ridge in ridge_decompositions(codes, [None, 1.0]):
        (found,) = ridge.predictions(values, [1.0])
        np.testing.assert_allclose(found[:, 0], (12 - values) / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alphas": [1.0, 0.0]}, "alphas: expected positive"),
        ({"targets": np.zeros(7)}, "targets: expected one row for each of the 30"),
        ({"groups": np.zeros(30)}, "groups: expected at least 2"),
        ({"groups": np.zeros(3)}, "groups: expected one for each of the 30"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    (ridge,) = ridge_decompositions(made(SHAPES[0])[0])
    given: dict[str, Any] = {"targets": np.zeros(30), "alphas": [1.0]} | arguments
    with pytest.raises(ValueError, match=message):
        ridge.predictions(**given)


def test_invalid_codes() -> None:
    codes, _ = made(SHAPES[0])
    with pytest.raises(ValueError, match="at least 2 rows, got the shape"):
        list(ridge_decompositions(codes[:1]))
    with pytest.raises(ValueError, match=r"gammas: expected positive.*got -1"):
        list(ridge_decompositions(codes, [None, -1.0]))
    with pytest.raises(ValueError, match="30 samples need .* max_bytes=9000 allows"):
        list(ridge_decompositions(codes, [None, 1.0], max_bytes=9000))
    codes[20, 3] = np.nan
    for gamma in (None, 1.0):
        with pytest.raises(ValueError, match="finite numbers, got others in row 20"):
            list(ridge_decompositions(codes, [gamma]))
