"""Decoding processes: the pixels and faults of threads, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import ImageError, Preprocessing
from sk_cnncodes.backbones.loading import load_backbone
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.codes import workers as workers_module
from sk_cnncodes.codes.digests import content_digest
from sk_cnncodes.codes.elements import Elements
from sk_cnncodes.codes.preparation import (
    DecodeProcess,
    DecodeProcesses,
    Preparation,
    Prepared,
    Task,
    can_start_processes,
)
from sk_cnncodes.codes.workers import Workers

pytestmark = pytest.mark.skipif(
    not can_start_processes(), reason="decoding processes need Linux"
)
SMALL = Preprocessing(crop_size=(24, 32), resize_size=40, scale=1 / 255)


@contextmanager
def two_processes(how: Preparation) -> Iterator[list[DecodeProcess]]:
    processes = DecodeProcesses(how, 2)
    try:
        for member in processes.members:
            assert member.is_ready.wait(60)
        yield processes.members
    finally:
        processes.close()
    assert all_end(processes)


def all_end(processes: Any) -> bool:
    """Whether no process of a group is left; one that was killed takes a moment."""
    deadline = time.monotonic() + 60
    while children(processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not children(processes)


def children(processes: Any) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == processes._process.pid and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def same(found: list[Prepared] | None, tasks: list[Task], how: Preparation) -> None:
    """Assert that a process found what this one finds."""
    assert found is not None
    for (outcome, pixels), task in zip(found, tasks, strict=True):
        expected, expected_pixels = how.prepare(*task)
        assert (outcome.index, outcome.digest) == (expected.index, expected.digest)
        assert outcome.changed == expected.changed
        assert str(outcome.fault) == str(expected.fault)
        assert type(outcome.fault) is type(expected.fault)
        if expected_pixels is None:
            assert pixels is None
        else:
            np.testing.assert_array_equal(pixels, expected_pixels)


@pytest.mark.parametrize("views", ["center", "ten_crop"])
def test_a_process_prepares_what_a_thread_does(
    photograph_files: list[Path], tmp_path: Path, views: str
) -> None:
    how = Preparation(SMALL, views, 10**6)
    content = photograph_files[0].read_bytes()
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(content[:900])
    large = tmp_path / "large.png"
    Image.new("L", (2000, 1000)).save(large)
    tasks: list[Task] = [
        (0, photograph_files[0], None),
        (1, str(photograph_files[1]), content_digest(b"changed since")),
        (2, content, content_digest(content)),
        (3, str(tmp_path / "gone.jpg"), None),
        (4, truncated, None),
        (5, str(large), None),
        (6, np.str_(photograph_files[2]), None),
    ]
    with two_processes(how) as members:
        for member in [*members, *members]:  # the memory is used again
            same(member.prepare(tasks), tasks, how)
        array = np.zeros((50, 50, 3), np.uint8)
        assert members[0].prepare([(7, array, None)]) is None


def test_warnings_of_a_process_are_given(tmp_path: Path) -> None:
    how = Preparation(SMALL, "center", None)
    dark = tmp_path / "dark.png"
    Image.fromarray(np.full((8, 8), 900, np.uint16)).save(dark)
    with (
        two_processes(how) as members,
        pytest.warns(UserWarning, match="below 4096"),
    ):
        members[1].prepare([(0, str(dark), None)])


def test_a_killed_process_prepares_nothing_more(photograph_files: list[Path]) -> None:
    how = Preparation(SMALL, "center", None)
    processes = DecodeProcesses(how, 2)
    try:
        assert processes.members[1].is_ready.wait(60)
        first = processes._process.pid
        while len(forked := set(children(processes)) - {first}) < 1:
            time.sleep(0.01)
        os.kill(forked.pop(), signal.SIGKILL)
        tasks: list[Task] = [(0, photograph_files[0], None)]
        while processes.members[1].prepare(tasks) is not None:
            time.sleep(0.01)
        assert processes.members[1].prepare(tasks) is None
        same(processes.members[0].prepare(tasks), tasks, how)
    finally:
        processes.close()


def test_a_process_that_is_not_ready_makes_nobody_wait(
    photograph_files: list[Path],
) -> None:
    processes = DecodeProcesses(Preparation(SMALL, "center", None), 2)
    try:
        assert processes.members[0].prepare([(0, photograph_files[0], None)]) is None
    finally:
        processes.close()


class GpuStandIn:
    """A session that takes batches as one on a GPU does; its code is the mean."""

    n_concurrent_runs = 2
    on_cpu = False

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        return [images.mean((1, 2)).astype(np.float32)]


@pytest.fixture(scope="module")
def spec() -> CodeSpec:
    return load_backbone("cnncodes-mini").spec(-1, "auto", None)


def run(spec: CodeSpec, images: list[Any], *, stop_at_fault: bool) -> Any:
    """Codes and faults of images, and the process numbers of what decoded them."""
    rows, codes, faults = [], [], []
    with Workers(Elements(images), spec, 4, stop_at_fault=stop_at_fault) as workers:
        items = ((index, None) for index in range(len(images)))
        for batch in workers.run(items, GpuStandIn(), 16):
            rows += [o.index for o in batch.outcomes if o.fault is None]
            faults += [o.fault for o in batch.outcomes if o.fault is not None]
            if faults and stop_at_fault:
                break
            codes += batch.outputs
            if workers._started is not None:
                workers._started.members[-1].is_ready.wait(60)
    started = workers._started
    ended = None if started is None else all_end(started)
    return rows, np.concatenate(codes), faults, ended


def test_many_images_for_a_gpu(
    photograph_files: list[Path], spec: CodeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, codes and faults are those of threads, and no process is left."""
    images: list[Any] = [str(path) for path in photograph_files] * 20
    images[3], images[77] = b"no image", "gone.jpg"
    images[40] = np.asarray(Image.open(images[40]))
    expected = run(spec, images, stop_at_fault=False)
    assert expected[3] is None  # too few
    monkeypatch.setattr(workers_module, "_MIN_IMAGES", 100)
    found = run(spec, images, stop_at_fault=False)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])
    assert [str(fault) for fault in found[2]] == [str(fault) for fault in expected[2]]
    assert found[3]


def test_the_first_fault_ends_all(
    photograph_files: list[Path], spec: CodeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_MIN_IMAGES", 100)
    images: list[Any] = [str(path) for path in photograph_files] * 30
    images[50] = images[51] = b"no image"
    _, _, faults, ended = run(spec, images, stop_at_fault=True)
    assert faults[0].index == 50
    assert isinstance(faults[0], ImageError)
    assert ended


def test_processes_that_cannot_be_started(
    photograph_files: list[Path], spec: CodeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_MIN_IMAGES", 10)
    images = [str(path) for path in photograph_files] * 2

    def no_memory(*_: Any) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(workers_module, "DecodeProcesses", no_memory)
    rows, _, faults, _ = run(spec, images, stop_at_fault=True)
    assert rows == list(range(16))
    assert not faults


def test_a_killed_parent_leaves_no_process() -> None:
    program = (
        "import time; from sk_cnncodes import Preprocessing; "
        "from sk_cnncodes.codes.preparation import DecodeProcesses, Preparation; "
        "how = Preparation(Preprocessing(crop_size=(8, 8)), 'center', None); "
        "started = DecodeProcesses(how, 3); started.members[-1].is_ready.wait(60); "
        "print(started._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    group = SimpleNamespace(_process=SimpleNamespace(pid=int(parent.stdout.readline())))
    assert len(children(group)) == 3
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all_end(group)
