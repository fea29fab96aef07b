"""Decoding processes: the pixels and faults of threads, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
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


def ready_process(preparation: Preparation) -> DecodeProcess:
    process = DecodeProcess(preparation)
    assert process._is_ready.wait(60)
    return process


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
    process = ready_process(how)
    try:
        for _ in range(2):  # the memory is used again
            same(process.prepare(tasks), tasks, how)
        array = np.zeros((50, 50, 3), np.uint8)
        assert process.prepare([(7, array, None)]) is None
    finally:
        process.close()
    assert process._process.returncode is not None


def test_warnings_of_a_process_are_given(tmp_path: Path) -> None:
    how = Preparation(SMALL, "center", None)
    dark = tmp_path / "dark.png"
    Image.fromarray(np.full((8, 8), 900, np.uint16)).save(dark)
    process = ready_process(how)
    try:
        with pytest.warns(UserWarning, match="below 4096"):
            process.prepare([(0, str(dark), None)])
    finally:
        process.close()


def test_a_killed_process_prepares_nothing_more(photograph_files: list[Path]) -> None:
    how = Preparation(SMALL, "center", None)
    process = ready_process(how)
    try:
        os.kill(process._process.pid, signal.SIGKILL)
        process._process.wait()
        for _ in range(2):
            assert process.prepare([(0, photograph_files[0], None)]) is None
    finally:
        process.close()


def test_a_process_that_is_not_ready_makes_nobody_wait(
    photograph_files: list[Path],
) -> None:
    process = DecodeProcess(Preparation(SMALL, "center", None))
    try:
        assert process.prepare([(0, photograph_files[0], None)]) is None
    finally:
        process.close()


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
            for process in workers._started:
                process._is_ready.wait(60)
        started = [process._process for process in workers._started]
    return rows, np.concatenate(codes), faults, started


def test_many_images_for_a_gpu(
    photograph_files: list[Path], spec: CodeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, codes and faults are those of threads, and no process is left."""
    images: list[Any] = [str(path) for path in photograph_files] * 20
    images[3], images[77] = b"no image", "gone.jpg"
    images[40] = np.asarray(Image.open(images[40]))
    expected = run(spec, images, stop_at_fault=False)
    assert not expected[3]
    monkeypatch.setattr(workers_module, "_MIN_IMAGES", 100)
    found = run(spec, images, stop_at_fault=False)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])
    assert [str(fault) for fault in found[2]] == [str(fault) for fault in expected[2]]
    assert len(found[3]) == 4
    assert all(process.returncode is not None for process in found[3])


def test_the_first_fault_ends_all(
    photograph_files: list[Path], spec: CodeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_MIN_IMAGES", 100)
    images: list[Any] = [str(path) for path in photograph_files] * 30
    images[50] = images[51] = b"no image"
    _, _, faults, started = run(spec, images, stop_at_fault=True)
    assert faults[0].index == 50
    assert isinstance(faults[0], ImageError)
    assert all(process.returncode is not None for process in started)


def test_processes_that_cannot_be_started(
    photograph_files: list[Path], spec: CodeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_MIN_IMAGES", 10)
    images = [str(path) for path in photograph_files] * 2

    def no_memory(*_: Any) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(workers_module, "DecodeProcess", no_memory)
    rows, _, faults, _ = run(spec, images, stop_at_fault=True)
    assert rows == list(range(16))
    assert not faults


def test_a_killed_parent_leaves_no_process(photograph_files: list[Path]) -> None:
    program = (
        "import sys, time; from sk_cnncodes import Preprocessing; "
        "from sk_cnncodes.codes.preparation import DecodeProcess, Preparation; "
        "how = Preparation(Preprocessing(crop_size=(8, 8)), 'center', None); "
        "started = [DecodeProcess(how) for _ in range(2)]; "
        "print(*(p._process.pid for p in started), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    numbers = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{number}/cmdline").exists() for number in numbers):
        still = [Path(f"/proc/{n}/stat").read_text().split()[2] for n in numbers]
        if set(still) == {"Z"}:  # ended, and not collected by the first process
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
