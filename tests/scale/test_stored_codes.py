"""open_codes: a lazy matrix."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score, train_test_split

from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes
from sk_cnncodes.scale import stored_codes
from tests.scale.conftest import png

pytest.importorskip("pyarrow")
COUNT = 23


@pytest.fixture(scope="module")
def target(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = [(f"k{number}", png(number)) for number in range(COUNT)]
    folder = tmp_path_factory.mktemp("codes")
    embed_to(CNNCodeTransformer(tiny), folder, images, shard_rows=5)
    return folder


def test_rows(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_codes, "_KEPT", 2)
    codes = open_codes(target)
    whole = np.asarray(codes)
    assert (codes.shape, len(codes), codes.ndim) == ((COUNT, 5), COUNT, 2)
    assert whole.dtype == codes.dtype == np.float32
    assert np.isfinite(whole).all() and len(np.unique(whole, axis=0)) == COUNT
    rng = np.random.default_rng(0)
    for rows in (
        *(0, -1, 7, np.int64(22)),
        *(slice(None), slice(3, 17), slice(20, 2), slice(20, 2, -3), slice(-4, None)),
        *([3, 3, -1, 0], [], np.arange(COUNT)[::-1], rng.permutation(COUNT)),
        rng.random(COUNT) < 0.5,
    ):
        np.testing.assert_array_equal(codes[rows], whole[rows])
    for wrong in (COUNT, -COUNT - 1, [0, COUNT]):
        with pytest.raises(IndexError, match="of 23 codes"):
            codes[wrong]
    with pytest.raises(IndexError, match="columns are chosen afterwards"):
        codes[0, 1]
    with pytest.raises(IndexError, match="a mask of shape"):
        codes[np.ones(3, bool)]


def test_batches_and_columns(target: Path) -> None:
    codes = open_codes(target)
    batches = list(codes.iter_batches(4))
    assert max(map(len, batches)) == 4
    keys = [key for batch in batches for key in batch.keys]
    assert keys == codes.keys.tolist() == [f"k{number}" for number in range(COUNT)]
    np.testing.assert_array_equal(
        np.concatenate([batch.codes for batch in batches]), codes[:]
    )
    assert codes.errors.tolist() == [None] * COUNT
    with pytest.raises(ValueError, match="column 'label': expected one of"):
        codes.column("label")


def test_what_is_no_target(target: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder that embed_to wrote"):
        open_codes(tmp_path)
    (shard, *_) = sorted(target.glob("codes-*"))
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-1] + b"?")
        with pytest.raises(ValueError, match="shard is changed"):
            open_codes(target, verify=True)
    finally:
        shard.write_bytes(content)
    open_codes(target, verify=True)


def test_in_scikit_learn(target: Path) -> None:
    codes = open_codes(target)
    whole, y = codes[:], np.arange(COUNT) % 2
    split = train_test_split(codes, y, random_state=0)
    for found, expected in zip(
        split, train_test_split(whole, y, random_state=0), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        cross_val_score(LogisticRegression(), codes, y, cv=3),
        cross_val_score(LogisticRegression(), whole, y, cv=3),
    )


def test_damaged_files_are_named(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "codes"
    shutil.copytree(target, folder)
    shard, *_, last = sorted(folder.glob("codes-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    codes = open_codes(folder)
    for read in (codes.__getitem__, codes.column):
        with pytest.raises(ValueError, match=f"{shard.name}.*a damaged file"):
            read(0 if read == codes.__getitem__ else "key")
    shard.write_bytes(content)
    for name, text in itertools.product(
        ("_plan.json", "_manifest.json"), ("", "[]", "{}", '{"shards": 3}')
    ):
        whole = (folder / name).read_text()
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=f"{folder}.*({name}|damaged)"):
            open_codes(folder)
        (folder / name).write_text(whole)
    # One that says less than it did.
    manifest = json.loads((folder / "_manifest.json").read_text())
    manifest["shards"].pop()
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="a damaged one"):
        open_codes(folder)
    (folder / "_manifest.json").unlink()
    last.unlink()
    assert open_codes(folder, partial=True).shape == (20, 5)


def test_a_shard_of_other_settings_is_refused(
    target: Path, tiny: str, tmp_path: Path
) -> None:
    images = [(f"k{number}", png(number)) for number in range(COUNT)]
    embed_to(CNNCodeTransformer(tiny, norm="l2"), tmp_path, images, shard_rows=5)
    (tmp_path / "_manifest.json").unlink()
    shutil.copy(target / "codes-00000-000001.parquet", tmp_path)
    with pytest.raises(ValueError, match="000001.*codes of other settings"):
        open_codes(tmp_path, partial=True)
