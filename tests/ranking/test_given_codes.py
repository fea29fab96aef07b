"""rank_codes of codes: those of a folder of shards, by chunks, and of a matrix."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes, rank_codes
from sk_cnncodes.backbones.norms import apply_norm
from sk_cnncodes.ranking import given_codes, leave_one_out, ridge_scores
from sk_cnncodes.ranking import rank_codes as module
from sk_cnncodes.scale.stored_codes import StoredCodes
from tests.scale.conftest import png, save_tiny

pytest.importorskip("pyarrow")


def stored(
    folder: Path,
    count: int,
    bad: tuple[int, ...] = (),
    dtype: str = "float32",
    **how: Any,
) -> StoredCodes:
    """Codes of a network of one convolution."""
    net = CNNCodeTransformer(save_tiny(folder / "net.onnx"), **how)
    images = [b"bad" if row in bad else png(row) for row in range(count)]
    embed_to(net, folder / "codes", images, shard_rows=64, dtype=dtype)
    return open_codes(folder / "codes")


def made(codes: Any, seed: int = 0) -> np.ndarray:
    """Classes that the codes tell something about."""
    values = np.nan_to_num(np.asarray(codes, float))
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    noise = np.random.default_rng(seed).normal(size=len(values))
    return np.digitize(values[:, 0] + 0.5 * noise, [-0.5, 0.5])


def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read few rows at a time, as of large codes."""
    monkeypatch.setattr(module, "_LARGE_SIZE", 0)
    monkeypatch.setattr(given_codes, "_CHUNK_BYTES", 4 * 5 * 17)
    monkeypatch.setattr(leave_one_out, "_CHUNK_BYTES", 16 * 5 * 19)


def check_same(found: Any, expected: Any) -> None:
    assert [(r.norm, r.kernel) for r in found.rows] == [
        (r.norm, r.kernel) for r in expected.rows
    ]
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert row.score == pytest.approx(other.score, abs=1e-8)
        assert row.error == pytest.approx(other.error, abs=1e-8)
        assert row.alpha == pytest.approx(other.alpha, rel=1e-8)
        np.testing.assert_allclose(
            found.predictions(row), expected.predictions(other), atol=1e-8
        )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("gammas", [None, ()])
def test_the_same_as_of_the_whole_matrix(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    groups: bool,
    gammas: Any,
) -> None:
    codes = stored(tmp_path, 150, dtype=dtype)
    y = made(codes)
    how: Any = {"gammas": gammas, "scoring": "neg_log_loss"}
    if groups:
        how["groups"] = np.arange(150) // 3
    expected = rank_codes(np.asarray(codes), y, **how)
    in_chunks(monkeypatch)
    check_same(rank_codes(codes, y, **how), expected)
    assert expected.n_images == 150 and len(expected.rows) == 2


def test_leave_one_out_is_that_of_scikit_learn(tmp_path: Path) -> None:
    codes = stored(tmp_path, 120)
    y = np.asarray(codes)[:, 0] + np.random.default_rng(0).normal(size=120)
    ranking = rank_codes(codes, y, norms="l2", gammas=(), scoring="r2")
    (row,) = ranking.rows
    ridge = RidgeCV([row.alpha], store_cv_results=True)
    ridge.fit(apply_norm(np.asarray(codes), "l2").astype(float), y)
    errors = ridge.cv_results_.ravel()
    assert row.score == pytest.approx(1 - errors.mean() / y.var(), abs=1e-6)
    assert (row.backbone, row.layer, row.code_length) == ("codes", "codes", 5)


def test_bad_images_are_left_out_with_a_note(tmp_path: Path) -> None:
    bad = (3, 70)
    codes = stored(tmp_path, 150, bad)
    y = made(codes)
    groups = np.arange(150) // 2
    ranking = rank_codes(codes, list(y), groups=list(groups), gammas=())
    assert ranking.n_images == 148
    (note,) = [each for each in ranking.notes if "not finite" in each]
    assert note.startswith("2 of 150 rows are not finite") and note.endswith("row 3.")
    good = np.setdiff1d(np.arange(150), bad)
    _, numbers = np.unique(groups[good], return_inverse=True)
    expected = rank_codes(codes[good], y[good], groups=numbers, gammas=())
    check_same(ranking, expected)
    assert "codes.iter_batches()" in str(ranking.advice())
    assert "not finite" in repr(ranking)


def test_a_stored_norm_is_not_applied_again(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    codes = stored(tmp_path / "raw", 100)
    y = made(codes)
    (tmp_path / "power").mkdir()
    normed = stored(tmp_path / "power", 100, norm="power")
    ranking = rank_codes(normed, y, gammas=())
    assert any('stored with norm="power"' in note for note in ranking.notes)
    expected = rank_codes(codes, y, norms="power", gammas=())
    assert [row.norm for row in ranking.rows] == ["power"]
    # Nor is it advised a second time.
    assert ranking.advice().next_command.startswith("fit a head to the codes, such as")
    assert expected.advice().next_command.startswith("normalise the codes (power) and")
    assert ranking.best.score == pytest.approx(expected.best.score, abs=1e-6)


def test_memory_does_not_hold_the_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGE_SIZE", 0)
    for where in (given_codes, leave_one_out, ridge_scores):
        monkeypatch.setattr(where, "_CHUNK_BYTES", 2**20)
    path = tmp_path / "codes.npy"
    rng = np.random.default_rng(0)
    codes = np.lib.format.open_memmap(path, "w+", np.float32, (12_000, 256))
    codes[:] = rng.normal(size=codes.shape)
    y = codes[:, 0] + rng.normal(size=len(codes))
    tracemalloc.start()
    rank_codes(codes, y, norms="l2", gammas=(), scoring="r2")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert codes.nbytes > 12e6
    assert peak < 2 * codes.nbytes  # in float64


def test_what_cannot_be_ranked(tmp_path: Path) -> None:
    codes = stored(tmp_path, 20)
    with pytest.raises(ValueError, match="y: expected one for each of the 20 codes"):
        rank_codes(codes, [0, 1])
    with pytest.raises(ValueError, match="expected the defaults for an X of codes"):
        rank_codes(codes, [0, 1] * 10, layers=[-1])
