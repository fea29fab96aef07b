"""embed_to: every key once, whole shards, and what was interrupted goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, CodeCache, embed_to, open_codes
from tests.forwards import counted_forwards
from tests.scale.conftest import png
from tests.scale.runs import FACTOR, check_killed, rows, shards, tar_of

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def test_a_folder(
    transformer: CNNCodeTransformer, folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "codes"
    report = embed_to(transformer, target, folder, shard_rows=10)
    assert (report.n_images, report.n_bad, report.n_shards) == (37, 1, 4)
    assert report.complete
    assert len(shards(target)) == 4
    codes = open_codes(target, verify=True)
    assert codes.shape == (37, 5)
    paths = sorted(folder.glob("[abc]/*.png"))
    assert codes.keys.tolist() == [p.relative_to(folder).as_posix() for p in paths]
    good = [path for path in paths if path.name != "010.png"]
    expected = transformer.transform(good)
    bad = codes.keys == "b/010.png"
    np.testing.assert_allclose(codes[~bad], expected, rtol=1e-5)
    assert np.isnan(codes[bad]).all()
    (error,) = codes.errors[bad]
    assert error.startswith("not an image file.")
    assert [each for each in codes.errors if each] == [error]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert codes.column("digest").tolist() == digests
    manifest = json.loads((target / "_manifest.json").read_text())
    assert (manifest["rows"], manifest["bad"]) == (37, 1)
    assert manifest["bad_images"] == [{"key": "b/010.png", "error": error}]
    plan = json.loads((target / "_plan.json").read_text())
    assert plan["specs"][0]["layer"] == "conv_0" and plan["version"]
    assert {path.name[0] for path in target.iterdir()} == {"c", "_"}


def test_a_second_run_computes_nothing(
    transformer: CNNCodeTransformer, folder: Path, tmp_path: Path
) -> None:
    embed_to(transformer, tmp_path, folder, shard_rows=10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with counted_forwards() as count:
        report = embed_to(transformer, tmp_path, folder, shard_rows=10)
    assert (count.images, report.n_images, report.complete) == (0, 0, True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / shards(tmp_path)[1]).unlink()
    with pytest.raises(ValueError, match="shard is missing.*run embed_to again"):
        open_codes(tmp_path)
    report = embed_to(transformer, tmp_path, folder, shard_rows=10)
    assert (report.n_images, report.n_shards) == (10, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("count", [2, 16])
def test_parts_in_any_order_and_some_twice_at_once(
    tiny: str, folder: Path, tmp_path: Path, count: int
) -> None:
    whole, target = tmp_path / "whole", tmp_path / "parts"
    embed_to(CNNCodeTransformer(tiny, n_jobs=1), whole, folder, shard_rows=3)
    order = [*range(count), 0, 1, count - 1]
    random.Random(count).shuffle(order)
    faults = []

    def work(numbers: Iterator[int]) -> None:
        try:
            for number in numbers:
                transformer = CNNCodeTransformer(tiny, n_jobs=1)
                part = (number, count)
                embed_to(transformer, target, folder, shard_rows=3, part=part)
        except BaseException as error:
            faults.append(error)

    numbers = iter(order)
    threads = [threading.Thread(target=work, args=(numbers,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert shards(target) == shards(whole)
    assert rows(target).keys() == rows(whole).keys()
    np.testing.assert_array_equal(open_codes(target)[:], open_codes(whole)[:])
    manifests = [(each / "_manifest.json").read_text() for each in (target, whole)]
    assert manifests[0] == manifests[1]


def test_a_part_is_not_complete(
    transformer: CNNCodeTransformer, folder: Path, tmp_path: Path
) -> None:
    report = embed_to(transformer, tmp_path, folder, shard_rows=10, part=(1, 3))
    assert (report.n_images, report.complete) == (10, False)
    with pytest.raises(ValueError, match="not all codes are written.*partial=True"):
        open_codes(tmp_path)
    assert open_codes(tmp_path, partial=True).shape == (10, 5)
    # Shards do not depend on the parts: the rest at once.
    report = embed_to(transformer, tmp_path, folder, shard_rows=10)
    assert (report.n_images, report.complete) == (27, True)


def test_other_settings_and_changed_sources_are_refused(
    transformer: CNNCodeTransformer, tiny: str, tmp_path: Path
) -> None:
    images = [(f"key {number}", png(number)) for number in range(8)]
    embed_to(transformer, tmp_path, images, shard_rows=3)
    with pytest.raises(ValueError, match="written with shard_rows=3, got 4"):
        embed_to(transformer, tmp_path, images, shard_rows=4)
    with pytest.raises(ValueError, match="shards were written with spec="):
        other = CNNCodeTransformer(tiny, norm="l2")
        embed_to(other, tmp_path, images, shard_rows=3)
    for changed, what in (
        ([*images, ("more", png(9))], "other keys than it had"),
        ([*images[1:], images[0]], "other keys than it had"),
        (images[:5], "other keys than it had"),
        (images[:3], "fewer images than it had"),
        ([], "fewer images|found 0 images"),
    ):
        with pytest.raises(ValueError, match=what):
            embed_to(transformer, tmp_path, changed, shard_rows=3)
    assert open_codes(tmp_path, verify=True).shape == (8, 5)


def test_a_source_that_fails_leaves_whole_shards(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    def images(fails: bool) -> Iterator[tuple[str, bytes]]:
        for number in range(20):
            if fails and number == 15:
                raise ConnectionError("gone")
            yield f"{number}", png(number)

    with pytest.raises(ConnectionError, match="gone"):
        embed_to(transformer, tmp_path, images(True), shard_rows=6)
    assert len(shards(tmp_path)) == 2
    assert [p for p in tmp_path.iterdir() if p.name.endswith(".part")] == []
    report = embed_to(transformer, tmp_path, images(False), shard_rows=6)
    assert (report.n_images, report.complete) == (8, True)
    assert list(rows(tmp_path)) == [str(number) for number in range(20)]


def test_float16_columns_and_pixels(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    embed_to(transformer, tmp_path, pixels, dtype="float16")
    codes = open_codes(tmp_path)
    assert codes.dtype == np.float16
    np.testing.assert_allclose(codes[:], transformer.transform(pixels), rtol=2e-3)
    assert codes.column("digest").tolist() == [None] * 5
    (batch,) = codes.iter_batches()
    assert batch.codes.dtype == np.float32


def test_float16_does_not_overflow(
    transformer: CNNCodeTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = CNNCodeTransformer.iter_codes

    def large(self: Any, *arguments: Any, **how: Any) -> Iterator[Any]:
        for batch in compute(self, *arguments, **how):
            batch.codes[1] *= 1e6
            yield batch

    monkeypatch.setattr(CNNCodeTransformer, "iter_codes", large)
    with pytest.raises(ValueError, match="the code of '1' has values beyond"):
        embed_to(transformer, tmp_path, [png(0), png(1)], dtype="float16")
    assert shards(tmp_path) == []


def test_the_memory_cache_is_left_alone_and_a_given_one_is_used(
    tiny: str, tmp_path: Path
) -> None:
    images = [png(number) for number in range(6)]
    transformer = CNNCodeTransformer(tiny, cache=CodeCache())
    transformer.precompute(images)
    with counted_forwards(keep_sessions=True) as count:
        embed_to(transformer, tmp_path / "a", images)
        assert count.images == 0
    # No codes are collected in memory, and none are asked for there.
    embed_to(CNNCodeTransformer(tiny), tmp_path / "b", images)
    with counted_forwards(keep_sessions=True) as count:
        embed_to(CNNCodeTransformer(tiny), tmp_path / "c", images)
        assert count.images == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_rows": 0}, "shard_rows=0: expected a number"),
        ({"dtype": "float64"}, "dtype='float64': expected 'float32' or"),
        ({"part": (3, 3)}, r"part=\(3, 3\): expected a part from 0 to 2 of 3"),
        ({"part": 3}, "part=3: expected a tuple"),
        ({"columns": ["key"]}, "columns=.*other than key"),
        ({"columns": ["label"]}, "this source has no columns"),
    ],
)
def test_wrong_arguments(
    transformer: CNNCodeTransformer, tmp_path: Path, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        embed_to(transformer, tmp_path / "new", [png(0)], **options)
    assert not (tmp_path / "new").exists()


# -- killed ------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_at_random_points(tiny: str, tmp_path: Path) -> None:
    """5 kills; 50 of 5,000 images in 50 shards by ``SK_CNNCODES_FUZZ=10``."""
    count, n_rows = (300, 15) if FACTOR < 10 else (5000, 100)
    source, target = tmp_path / "images", tmp_path / "codes"
    source.mkdir()
    keys = [f"{number:05}.png" for number in range(count)]
    for number, key in enumerate(keys):
        content = b"no image" if number % 100 == 50 else png(number % 500)
        (source / key).write_bytes(content)
    whole, times = tmp_path / "whole", 5 * FACTOR
    check_killed(tiny, source, target, whole, keys, n_rows, times)
    assert [p.name for p in target.iterdir() if p.name.startswith(".")] == []


def test_iterables_of_any_kind(transformer: CNNCodeTransformer, tmp_path: Path) -> None:
    pairs = zip(itertools.count(), (png(number) for number in range(9)), strict=False)
    embed_to(transformer, tmp_path, pairs, shard_rows=4)
    assert list(rows(tmp_path)) == [str(number) for number in range(9)]


def test_a_source_that_grew_is_not_complete_by_old_parts(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    images = [(f"key {number}", png(number)) for number in range(8)]
    for number in range(2):
        part = (number, 2)
        embed_to(transformer, tmp_path, images[:4], shard_rows=1, part=part)
    assert open_codes(tmp_path).shape == (4, 5)
    report = embed_to(transformer, tmp_path, images, shard_rows=1, part=(0, 2))
    assert (report.n_images, report.complete) == (2, False)
    with pytest.raises(ValueError, match="not all codes are written"):
        open_codes(tmp_path)
    assert embed_to(transformer, tmp_path, images, shard_rows=1, part=(1, 2)).complete
    assert open_codes(tmp_path).keys.tolist() == [key for key, _ in images]


def test_a_changed_shard_is_not_taken_for_a_finished_one(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    images = [(f"key {number}", png(number)) for number in range(8)]
    embed_to(transformer, tmp_path, images, shard_rows=3)
    before = open_codes(tmp_path)[:]
    shard = tmp_path / "codes-00000-000001.parquet"
    content = shard.read_bytes()
    place = content.index(before[4].tobytes())
    shard.write_bytes(content[:place] + bytes(4) + content[place + 4 :])
    with pytest.raises(ValueError, match="000001.*the shard is changed"):
        embed_to(transformer, tmp_path, images, shard_rows=3)
    shard.unlink()
    assert embed_to(transformer, tmp_path, images, shard_rows=3).n_images == 3
    np.testing.assert_array_equal(open_codes(tmp_path, verify=True)[:], before)


def test_another_column_of_images_is_refused(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    table = tmp_path / "images.parquet"
    sides = {
        side: [png(10 * n + row) for row in range(4)] for n, side in enumerate("ab")
    }
    parquet.write_table(pyarrow.table(sides), table)
    target = tmp_path / "codes"
    embed_to(transformer, target, table, image_column="a", shard_rows=2)
    (target / "codes-00000-000001.parquet").unlink()
    with pytest.raises(ValueError, match='written with image_column="a", got "b"'):
        embed_to(transformer, target, table, image_column="b", shard_rows=2)


@pytest.mark.parametrize("form", ["list", "iterator", "folder", "parquet folder"])
def test_no_images(transformer: CNNCodeTransformer, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    source: object = {"list": [], "iterator": iter([])}.get(form, folder)
    if form == "parquet folder":
        (folder / "part-0.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match="found (no|0) images") as raised:
        embed_to(transformer, tmp_path / "codes", source)
    assert ("*.parquet" in str(raised.value)) == (form == "parquet folder")


def test_texts_that_are_no_utf_8(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    archive = tmp_path / "samples.tar"
    caption = rb'{"caption": "cut \ud83d"}'
    archive.write_bytes(tar_of({"1.png": png(1), "1.json": caption, "2.png": png(2)}))
    embed_to(transformer, tmp_path / "a", archive, columns=["caption"])
    assert open_codes(tmp_path / "a").column("caption").tolist() == [
        "cut \\ud83d",
        None,
    ]
    pairs = [("\ud83d", png(1)), ("\udc80", "\ud83d.png"), ("c", png(3))]
    assert embed_to(transformer, tmp_path / "b", pairs).n_bad == 1
    assert open_codes(tmp_path / "b").keys.tolist() == ["\\ud83d", "\\x80", "c"]


def test_a_folder_without_shards_can_be_begun_anew(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    embed_to(transformer, tmp_path, [png(1)], dtype="float16")
    (tmp_path / "codes-00000-000000.parquet").unlink()
    with pytest.raises(ValueError, match=r"no shards yet.*remove .*_plan\.json"):
        embed_to(transformer, tmp_path, [png(1)])


@pytest.mark.parametrize("columns", ["label", None, [1], ["a", "a"], ["key"]])
def test_columns_are_different_names(
    transformer: CNNCodeTransformer, tmp_path: Path, columns: object
) -> None:
    with pytest.raises(ValueError, match="expected a list of different names"):
        embed_to(transformer, tmp_path, [png(1)], columns=columns)
