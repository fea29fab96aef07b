"""What tests of `embed_to` share: sources, what was written, killed runs."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes

FACTOR = int(os.environ.get("SK_CNNCODES_FUZZ", "1"))


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def shards(target: Path | str) -> list[str]:
    """Names of the finished shards, in a folder or at an address of S3."""
    if isinstance(target, Path):
        return sorted(path.name for path in target.glob("codes-*.parquet"))
    import fsspec

    system, path = fsspec.core.url_to_fs(target, use_listings_cache=False)
    names = [name.rpartition("/")[2] for name in system.find(path)]
    return sorted(name for name in names if name.startswith("codes-"))


def rows(target: Path | str, **options: Any) -> dict[str, np.ndarray]:
    """Codes by key; each key must be there once."""
    codes = open_codes(target, **options)
    keys = codes.keys.tolist()
    assert len({*keys}) == len(keys)
    return dict(zip(keys, codes[:], strict=True))


def check(
    tiny: str, target: Path, source: Any, keys: list[str], codes: np.ndarray, **how: Any
) -> None:
    """The codes of a source in one run, and in parts."""
    transformer = CNNCodeTransformer(tiny)
    report = embed_to(transformer, target / "whole", source, shard_rows=5, **how)
    assert (report.complete, report.n_bad) == (True, 0)
    whole = open_codes(target / "whole")
    assert whole.keys.tolist() == keys
    np.testing.assert_allclose(whole[:], codes, rtol=1e-5)
    for number in (1, 0, 1):
        part = (number, 2)
        embed_to(transformer, target / "p", source, shard_rows=5, part=part, **how)
    parts = open_codes(target / "p")
    assert parts.keys.tolist() == keys
    np.testing.assert_array_equal(parts[:], whole[:])
    report = embed_to(transformer, target / "p", source, shard_rows=5, **how)
    assert report.n_images == 0


# -- killed ------------------------------------------------------------------

_PROGRAM = """
import sys
from sk_cnncodes import CNNCodeTransformer, embed_to
net, target, source, rows = sys.argv[1:]
print("start", flush=True)
transformer = CNNCodeTransformer(net, n_jobs=2, batch_size=4)
report = embed_to(transformer, target, source, shard_rows=int(rows))
print(report.n_images, flush=True)
"""


def check_killed(
    tiny: str,
    source: Path | str,
    target: Path | str,
    whole: Path,
    keys: list[str],
    n_rows: int,
    times: int,
) -> None:
    """Kill runs at random times, look at what they leave, finish, and compare.

    Parameters
    ----------
    whole : Path
        Where the codes of one run go that is not killed.
    keys : list of str
        Of the source.
    """
    _killed_runs(tiny, source, target, len(keys), n_rows, times)
    embed_to(CNNCodeTransformer(tiny), whole, source, shard_rows=n_rows)
    assert list(rows(target)) == keys
    found, expected = open_codes(target, verify=True), open_codes(whole)
    np.testing.assert_allclose(found[:], expected[:], rtol=1e-5, atol=1e-6)
    assert found.errors.tolist() == expected.errors.tolist()


def _killed_runs(
    tiny: str,
    source: Path | str,
    target: Path | str,
    total: int,
    n_rows: int,
    times: int,
) -> None:
    command = [sys.executable, "-c", _PROGRAM, tiny, str(target), str(source)]
    rng = random.Random(total)
    for _ in range(times):
        with subprocess.Popen(
            [*command, str(n_rows)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            wanted = len(shards(target)) + rng.randrange(4)
            end = time.monotonic() + 60
            # Around the end of a shard, or while it is begun.
            while process.poll() is None and time.monotonic() < end:
                if len(shards(target)) >= wanted:
                    break
                time.sleep(0.002 if isinstance(target, Path) else 0.05)
            time.sleep(rng.random() * 0.15)
            process.send_signal(signal.SIGKILL)
        if shards(target):
            left = rows(target, partial=True)  # all shards that there are, are whole
            assert len(left) == min(total, n_rows * len(shards(target)))
    done = len(shards(target))
    finished = subprocess.run(
        [*command, str(n_rows)], stdout=subprocess.PIPE, text=True, check=True
    )
    # Nothing that was finished is computed again.
    assert int(finished.stdout.split()[-1]) == max(0, total - done * n_rows)
