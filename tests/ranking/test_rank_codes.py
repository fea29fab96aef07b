"""Rank layers: scores are those of refits, and each image takes one forward pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut
from sklearn.preprocessing import KernelCenterer
from threadpoolctl import threadpool_limits

from sk_cnncodes import (
    CNNCodeTransformer,
    CodeCache,
    LayerError,
    RankedCodes,
    load_backbone,
    rank_codes,
)
from sk_cnncodes.ranking import rank_codes as module
from sk_cnncodes.ranking.scoring import ALPHAS
from tests.forwards import counted_forwards

N = 60
CACHE = CodeCache()


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    bunch = load_digits()
    return bunch.images[:N] / 16, bunch.target[:N] % 3


def bursts() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 12, N)


def codes_of(images: Any, row: RankedCodes) -> np.ndarray:
    parts = row.layer if isinstance(row.layer, list) else [row.layer]
    matrices = [
        CNNCodeTransformer(
            row.backbone, layer=part, norm=row.norm, cache=CACHE
        ).fit_transform(images)
        for part in parts
    ]
    return np.hstack(matrices).astype(float)


def refitted(row: RankedCodes, codes: np.ndarray, y: Any, groups: Any) -> np.ndarray:
    """What scikit-learn's models without a sample, or its group, predict for it."""
    threads = threadpool_limits(1)  # more of them slow small fits down
    targets = np.where(np.asarray(y)[:, None] == np.unique(y), 1.0, -1.0)
    found = np.empty_like(targets)
    splitter = LeaveOneOut() if groups is None else LeaveOneGroupOut()
    for train, test in splitter.split(codes, groups=groups):
        if row.kernel == "linear":
            model: Any = Ridge(row.alpha, solver="cholesky")
            found[test] = model.fit(codes[train], targets[train]).predict(codes[test])
            continue
        centre = KernelCenterer()
        kernel = centre.fit_transform(rbf_kernel(codes[train], gamma=row.gamma))
        mean = targets[train].mean(axis=0)
        model = KernelRidge(alpha=row.alpha, kernel="precomputed")
        model.fit(kernel, targets[train] - mean)
        across = rbf_kernel(codes[test], codes[train], gamma=row.gamma)
        found[test] = mean + model.predict(centre.transform(across))
    threads.restore_original_limits()
    return found


@pytest.mark.parametrize("gammas", [(), (0.5, 2.0)])
@pytest.mark.parametrize("groups", [None, bursts()], ids=["images", "groups"])
def test_scores_are_those_of_refits(
    groups: Any, gammas: Any, digits: tuple[Any, Any]
) -> None:
    images, y = digits
    layers = [-3, -8, [-4, -9]]
    ranking = rank_codes(
        images, y, layers=layers, groups=groups, gammas=gammas, cache=CACHE
    )
    assert len(ranking.rows) == 6
    assert {row.kernel for row in ranking.rows} <= {"linear", "rbf" if gammas else ""}
    for row in ranking.rows:
        codes = codes_of(images, row)
        assert row.code_length == codes.shape[1]
        wanted = refitted(row, codes, y, groups)
        np.testing.assert_allclose(ranking.predictions(row), wanted, rtol=0, atol=1e-8)
        assert row.score == pytest.approx((wanted.argmax(axis=1) == y).mean())


def test_the_alpha_of_a_row_has_the_least_error(digits: tuple[Any, Any]) -> None:
    images, y = digits
    row = rank_codes(
        images, y, layers=-3, norms="l2", groups=bursts(), gammas=(), cache=CACHE
    ).best
    codes = codes_of(images, row)
    errors, alphas = [], ALPHAS * codes.var(axis=0).sum()
    for alpha in alphas:
        other = RankedCodes(**vars(row) | {"alpha": alpha})
        targets = np.where(y[:, None] == np.unique(y), 1, -1)
        found = refitted(other, codes, y, bursts())
        errors.append(((found - targets) ** 2).mean())
    assert row.alpha == pytest.approx(alphas[int(np.argmin(errors))])


@pytest.mark.parametrize("cache", ["new", None, "file"])
def test_each_image_takes_one_forward_pass(
    cache: Any, digits: tuple[Any, Any], tmp_path: Path
) -> None:
    images, y = digits
    given = {"new": CodeCache(), None: None, "file": tmp_path / "codes.sqlite3"}[cache]
    with counted_forwards() as count:
        ranking = rank_codes(images, y, cache=given)
    assert count.images == N
    assert count.sessions == 1
    layers = load_backbone("cnncodes-mini").layers
    assert len(ranking.rows) == 2 * len(layers)
    assert {row.layer for row in ranking.rows} == {layer.position for layer in layers}
    assert {row.label for row in ranking.rows} == {layer.label for layer in layers}


def test_rows_are_sorted_and_the_cheapest_of_the_best_is_recommended(
    digits: tuple[Any, Any],
) -> None:
    ranking = rank_codes(*digits, cache=CACHE)
    scores = [row.score for row in ranking.rows]
    assert scores == sorted(scores, reverse=True)
    assert ranking.best is ranking.rows[0]
    assert ranking.best.indistinguishable
    near = [row for row in ranking.rows if row.indistinguishable]
    assert 1 < len(near) < len(ranking.rows)
    chosen = ranking.recommended
    assert chosen in near
    assert chosen.multiply_adds == min(row.multiply_adds for row in near)
    assert sum(row.recommended for row in ranking.rows) == 1
    by_layer = {row.layer: row for row in ranking.rows}
    assert by_layer[-1].compute_share > by_layer[-5].compute_share > 0
    p = ranking.best.score
    assert ranking.best.error == pytest.approx((p * (1 - p) / (N - 1)) ** 0.5)


def test_groups_make_the_score_that_on_new_groups(digits: tuple[Any, Any]) -> None:
    """Copies of an image, slightly changed, tell its class."""
    images, _ = digits
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 20)  # nothing to learn
    copies = np.repeat(images[:20], 4, axis=0)
    copies = np.clip(copies + rng.normal(0, 0.02, copies.shape), 0, 1)
    groups = np.repeat(np.arange(20), 4)
    alone = rank_codes(copies, np.repeat(y, 4), layers=[-1], cache=CACHE)
    grouped = rank_codes(
        copies, np.repeat(y, 4), layers=[-1], groups=groups.astype(str), cache=CACHE
    )
    assert alone.best.score > 0.95
    assert grouped.best.score < 0.75
    assert grouped.best.error > 1.5 * alone.best.error
    assert (alone.n_groups, grouped.n_groups) == (None, 20)


def test_labels_values_and_other_scores(digits: tuple[Any, Any]) -> None:
    images, y = digits
    several = np.column_stack([y == 0, y > 1, np.arange(N) % 2]).astype(int)
    options: dict[str, Any] = {"layers": [-1, -3], "cache": CACHE}
    labels = rank_codes(images, several, **options)
    assert (labels.kind, labels.scoring) == ("multilabel", "average_precision")
    found = labels.predictions(0)
    assert found is not None
    assert found.shape == (N, 3)
    brightness = images.mean(axis=(1, 2))
    values = rank_codes(images, brightness, **options)
    assert (values.kind, values.scoring) == ("regression", "r2")
    assert values.best.score > 0.8
    error = rank_codes(images, brightness, scoring="neg_mean_absolute_error", **options)
    assert -0.02 < error.best.score < 0
    loss = rank_codes(images, y, scoring="neg_log_loss", **options)
    assert -0.7 < loss.best.score < 0


def test_large_codes_are_read_in_chunks(
    digits: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, y = digits
    # Shorter than there are images, and longer; the first are read in chunks.
    options: dict[str, Any] = {"layers": [-1, -9, -10, [-8, -10]], "cache": CACHE}
    images = np.concatenate([images, images[:, ::-1], images[:, :, ::-1]])
    y = np.concatenate([y, y + 3, y + 6])
    small = rank_codes(images, y, gammas=(), **options)
    monkeypatch.setattr(module, "_LARGE_SIZE", 1)
    large = rank_codes(images, y, gammas=(), mmap_folder=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
    for one, other in zip(small.rows, large.rows, strict=True):
        assert one == other
        np.testing.assert_allclose(
            small.predictions(one), large.predictions(other), rtol=0, atol=1e-8
        )


def test_predictions_are_kept_in_bounded_memory(
    digits: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT_BYTES", 2 * N * 3 * 8)
    for gammas in [(), None]:
        ranking = rank_codes(*digits, layers=[-1, -3], gammas=gammas, cache=CACHE)
        kept = [ranking.predictions(row) is not None for row in ranking.rows]
        assert kept == [True, True, False, False]


def test_several_backbones(digits: tuple[Any, Any]) -> None:
    """One is a transformer; a layer of one alone is left out of the other."""
    flipped = CNNCodeTransformer(views="flip", pooling="gem", layer=-7, norm="l2")
    ranking = rank_codes(
        digits[0], digits[1], ["cnncodes-mini", flipped], [-2, "fire8"], "l2",
        cache=CACHE,
    )  # fmt: skip
    assert len(ranking.rows) == 4
    assert flipped.get_params()["layer"] == -7
    assert len({row.score for row in ranking.rows}) > 2
    assert {row.label for row in ranking.rows} == {"fire9", "fire8"}


def test_notes(digits: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    images, y = digits
    options: dict[str, Any] = {"layers": [-10], "cache": CACHE}
    assert rank_codes(images, y, **options).notes == ()
    y = np.array(["a", "b", "c"])[y]
    y = np.where(np.arange(N) == 5, "rare", y)
    monkeypatch.setattr(module, "MAX_KERNEL_IMAGES", 50)
    images = np.concatenate([images[:-2], images[1:3]])
    kernel, rare, copies = sorted(rank_codes(images, y, **options).notes)[::-1]
    assert kernel.startswith("RBF kernels were left out: more than 50 images")
    assert rare == (
        "Classes with one image only are never predicted: 1 of 4, such as 'rare'."
    )
    assert copies.startswith("2 images are copies of others")
    groups = np.arange(N)
    groups[-2:] = groups[1:3]
    found = rank_codes(images, y, groups=groups, **options).notes
    assert not any("copies" in note for note in found)
    assert all(row.kernel == "linear" for row in rank_codes(images, y, **options).rows)


def test_bars(digits: tuple[Any, Any], capfd: pytest.CaptureFixture[str]) -> None:
    rank_codes(*digits, layers=[-1, -3], cache=CodeCache())
    assert capfd.readouterr() == ("", "")
    rank_codes(*digits, layers=[-1, -3], cache=CodeCache(), verbose=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.findall(rf"(\d+)/{N}\b", err)[-1] == str(N)
    done, total = re.findall(r"Rank:.*?(\d+)/(\d+)", err)[-1]
    assert done == total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norms": ["l1"]}, r"norms: expected some of \['l2', 'power'\], got \['l1'\]"),
        ({"norms": []}, "norms: expected some of"),
        ({"layers": []}, "layers: expected 'all' or at least one layer"),
        ({"backbones": []}, "backbones: expected at least one"),
        ({"groups": [1, 2]}, r"groups: expected one for each of the 60 images"),
        ({"groups": [1] * N}, r"groups: expected at least 2, got \[1\]"),
        (
            {"groups": np.array(["a", None] * (N // 2), object)},
            r"groups: expected names of one type.*\['NoneType', 'str'\]",
        ),
        ({"scoring": "f1"}, "scoring: expected one of"),
        ({"gammas": [-1.0]}, "gammas: expected positive numbers"),
        ({"y": [0, 1]}, "y: expected a target for each of the 60 images, got 2"),
    ],
)
def test_errors(options: dict[str, Any], message: str, digits: tuple[Any, Any]) -> None:
    given = {"y": digits[1], "layers": [-1], "cache": CACHE} | options
    with (
        counted_forwards(keep_sessions=True) as count,
        pytest.raises(ValueError, match=message),
    ):
        rank_codes(digits[0], **given)
    assert count.images == 0


def test_a_layer_that_no_backbone_has(digits: tuple[Any, Any]) -> None:
    with pytest.raises(LayerError, match="-40"):
        rank_codes(*digits, layers=[-1, -40], cache=CACHE)
    with pytest.raises(LayerError, match="pooling='max' does not fit"):
        rank_codes(*digits, CNNCodeTransformer(pooling="max"), cache=CACHE)
