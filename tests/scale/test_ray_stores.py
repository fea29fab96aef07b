"""Ray's workers with a bucket that answers badly, and while they are killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes
from tests.scale.clusters import cluster, same, workers_killed
from tests.scale.runs import FACTOR
from tests.scale.s3_server import BUCKET, Faults, put_images, server

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def s3() -> Iterator[Faults]:
    with server() as started:
        yield started


@pytest.fixture(scope="module")
def ray(s3: Faults) -> Iterator[Any]:
    """Ray with the environment of the server."""
    with cluster() as started:
        yield started


def test_faults_of_a_store(s3: Faults, ray: Any, tiny: str, tmp_path: Path) -> None:
    """503 at every tenth request, one that stalls, 1% corrupt, and killed workers.

    50 kills, of 5,000 images, by ``SK_CNNCODES_FUZZ=10``, which takes 8 minutes.
    """
    count, n_kills = (100, 2) if FACTOR < 10 else (5000, 50)
    keys = put_images("faulty", count, corrupt=True)
    transformer = CNNCodeTransformer(tiny, n_jobs=1, batch_size=4)
    source, how = f"{BUCKET}faulty/", {"shard_rows": 10 if FACTOR < 10 else 50}
    embed_to(transformer, tmp_path / "quiet", source, **how)
    target = tmp_path / "ray"
    with s3.on(), workers_killed(target, n_kills) as killed:
        report = None
        while report is None:
            # A part whose worker died eleven times ends the run; the next one goes on.
            with suppress(ray.exceptions.WorkerCrashedError):
                report = embed_to(transformer, target, source, engine="ray", **how)
    assert report.complete and len(killed) >= 0.9 * n_kills
    assert s3.n_busy >= count // 10 and s3.n_stalled == 1
    same(target, tmp_path / "quiet")
    codes = open_codes(target, verify=True)
    assert codes.keys.tolist() == keys
    assert codes.errors.astype(bool).sum() == count // 100
