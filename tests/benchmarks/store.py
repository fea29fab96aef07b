"""The code cache against raw sqlite3 on the same rows, and a warm transform.

    python -m tests.benchmarks.store

Raw: one table with a key and a blob, WAL, synchronous=NORMAL, the same rows in the
same transactions, `IN` of 500 keys when reading. Medians of pairs in one run.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sk_cnncodes import CNNCodeTransformer, CodeCache
from tests.benchmarks.timing import machine, seconds

ROWS, LENGTH, PER_COMMIT, IMAGES = 20_000, 1280, 256, 1000


def raw_connection(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("CREATE TABLE IF NOT EXISTS codes (key BLOB PRIMARY KEY, code BLOB)")
    return db


def raw_write(path: Path, keys: list[bytes], codes: np.ndarray) -> None:
    db = raw_connection(path)
    for start in range(0, len(keys), PER_COMMIT):
        part = slice(start, start + PER_COMMIT)
        blobs = [code.tobytes() for code in codes[part]]
        db.execute("BEGIN IMMEDIATE")
        rows = zip(keys[part], blobs, strict=True)
        db.executemany("INSERT OR REPLACE INTO codes VALUES (?, ?)", rows)
        db.execute("COMMIT")
    db.close()


def raw_read(path: Path, keys: list[bytes]) -> list[np.ndarray]:
    db = raw_connection(path)
    found: dict[bytes, np.ndarray] = {}
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        marks = ",".join("?" * len(part))
        rows = db.execute(f"SELECT key, code FROM codes WHERE key IN ({marks})", part)
        for key, code in rows:
            found[key] = np.frombuffer(code, np.float32)
    db.close()
    return [found[key] for key in keys]


def ours_write(path: Path, keys: list[bytes], codes: np.ndarray) -> None:
    cache = CodeCache(path)
    for start in range(0, len(keys), PER_COMMIT):
        part = slice(start, start + PER_COMMIT)
        cache.put_many([("spec", keys[part], codes[part])])


def ours_read(path: Path, keys: list[bytes]) -> None:
    found = CodeCache(path).get_many("spec", keys)
    assert all(code is not None for code in found)


def warm_transform(folder: Path) -> tuple[float, float]:
    """Seconds of a warm transform of paths, and of raw reads of the same rows."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(IMAGES)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(path)
    time.sleep(2.5)  # files this old are remembered by their time stamps
    transformer = CNNCodeTransformer(cache=folder / "codes.sqlite3")
    codes = transformer.transform(paths)
    keys = [i.to_bytes(32, "little") for i in range(IMAGES)]
    raw_write(folder / "raw.sqlite3", keys, codes)
    pairs = [
        (
            seconds(lambda: transformer.transform(paths)),
            seconds(lambda: raw_read(folder / "raw.sqlite3", keys)),
        )
        for _ in range(9)
    ]
    warm, raw = zip(*pairs, strict=True)
    return statistics.median(warm), statistics.median(raw)


def main() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(ROWS, LENGTH)).astype(np.float32)
    keys = [rng.bytes(32) for _ in range(ROWS)]
    order = [keys[i] for i in rng.permutation(ROWS)]
    print(f"{machine()}; {ROWS} rows of {LENGTH} float32\n")
    print("| what | times raw sqlite3 |\n| --- | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ratios = []
        for number in range(3):
            ours, raw = folder / f"ours{number}", folder / f"raw{number}"
            ratios.append(
                seconds(lambda path=ours: ours_write(path, keys, codes))
                / seconds(lambda path=raw: raw_write(path, keys, codes))
            )
        print(f"| write | {statistics.median(ratios):.2f} |", flush=True)
        ratios = [
            seconds(lambda: ours_read(folder / "ours0", order))
            / seconds(lambda: raw_read(folder / "raw0", order))
            for _ in range(5)
        ]
        print(f"| read | {statistics.median(ratios):.2f} |", flush=True)
        warm, raw = warm_transform(folder)
    beyond = 1e6 * (warm - raw) / IMAGES
    print(
        f"\nA warm transform of {IMAGES} paths: {1e6 * warm / IMAGES:.0f} microseconds "
        f"an image, {beyond:.0f} beyond raw reads of the same rows."
    )


if __name__ == "__main__":
    main()
