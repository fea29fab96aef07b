"""Ray on this machine, and what dies there."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def cluster() -> Iterator[Any]:
    """Ray with two cores, ended with all its processes and files."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster_environment().items():
            patch.setenv(name, value)
        ray = pytest.importorskip("ray", reason="Ray is not installed")
        pytest.importorskip("ray.data")
        # Not pytest's folder: the names of sockets are limited to 107 bytes.
        folder = tempfile.mkdtemp(prefix="ray-")
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=2**27,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=folder,
            )
            yield ray
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def cluster_environment() -> dict[str, str]:
    """No reports to Ray's makers, no bars, and workers that import this checkout."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_DEDUP_LOGS": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def same(target: Path, expected: Path) -> None:
    """Assert that two folders have the same shards and manifest, byte for byte."""
    names = {path.name for path in expected.iterdir()}
    assert {p.name for p in target.iterdir() if not p.match("_part-*")} == names
    for name in names:
        assert (target / name).read_bytes() == (expected / name).read_bytes(), name


@contextmanager
def workers_killed(target: Path, most: int) -> Iterator[list[int]]:
    """SIGKILL for whichever worker is at it, again after every second shard.

    Yields the processes that were killed. What the last of them left is removed.
    """
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.05) and len(killed) < most:
            shards = [*target.glob("codes-*.parquet")]
            parts = [part.name.split(".")[3] for part in target.glob(".codes-*.part")]
            if parts and len(shards) >= 2 * len(killed):
                process = int(parts[-1])
                if process in killed:
                    continue
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()
    for part in target.glob(".codes-*.part"):
        assert int(part.name.split(".")[3]) in killed
        part.unlink()
