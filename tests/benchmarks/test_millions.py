"""The page on millions of images says what its simulation prints."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import millions

ROWS = 2048


def row_bytes(folder: Path, length: int, dtype: str) -> float:
    """Bytes of a row of a shard, written as `embed_to` does."""
    from sk_cnncodes.scale.shards import ShardId, ShardWriter

    shard = ShardId(0, 0)
    writer = ShardWriter(folder, shard, "", {}, length, dtype, [])
    codes = np.random.default_rng(0).random((1024, length), np.float32)
    for start in range(0, ROWS, 1024):
        keys = [f"images/{start:06}/{start + row:012}.jpg" for row in range(1024)]
        assert {*map(len, keys)} == {30}
        digests: list[str | None] = [
            hashlib.sha256(key.encode()).hexdigest() for key in keys
        ]
        writer.write(keys, codes, [None] * 1024, digests, [])
    writer.close()
    return (folder / shard.file).stat().st_size / ROWS


def test_the_page_has_the_tables_that_are_printed() -> None:
    page = millions.PAGE.read_text(encoding="utf-8")
    assert millions.filled(page) == page
    for name, make in millions.TABLES.items():
        assert f"<!-- {name} -->\n{make()}\n" in page


@pytest.mark.parametrize(("length", "dtype"), millions.ROW_BYTES)
def test_bytes_of_a_row(tmp_path: Path, length: int, dtype: str) -> None:
    pytest.importorskip("pyarrow")
    found = row_bytes(tmp_path, length, dtype)
    assert found == pytest.approx(millions.ROW_BYTES[length, dtype], rel=0.02)


def test_more_parts_than_workers_even_out_their_speeds() -> None:
    times = [millions.finish_time(1000, 16, parts, 0) for parts in (16, 64, 256)]
    assert times[0] > times[1] > times[2] > 0.9
