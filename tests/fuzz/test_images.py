"""No image file crashes, hangs, exhausts memory, or gives another image's row."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sk_cnncodes import ImageError
from sk_cnncodes.images.decode import read_rgb
from sk_cnncodes.images.sources import read_content
from tests.fuzz import image_bombs, image_seeds, images
from tests.fuzz.pool import ROOT, asked_cases, run_cases

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs limits on processes")


def test_undamaged_files_are_decoded() -> None:
    """Otherwise the cases would test nothing."""
    size = (image_seeds.WIDTH, image_seeds.HEIGHT)
    for name, content in image_seeds.seeds().items():
        assert read_rgb(content, 0).size in (size, size[::-1]), name


def test_damaged_files() -> None:
    outcome = run_cases("tests.fuzz.images", asked_cases(10_000))
    print(outcome)
    assert not outcome.failures, str(outcome)
    assert outcome.counts["codes"] > sum(outcome.counts.values()) / 10
    assert outcome.counts["errors"] > sum(outcome.counts.values()) / 10


def test_bombs() -> None:
    count = len(image_bombs.CASES) * len(image_bombs.PREPROCESSINGS)
    outcome = run_cases("tests.fuzz.image_bombs", count)
    assert not outcome.failures, str(outcome)
    assert sum(outcome.counts.values()) == count


def test_rows_beside_damaged_files() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.image_rows", str(asked_cases(200))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_endless_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pipe.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    faults: list[Exception] = []

    def read() -> None:
        try:
            read_content(str(path), 4)
        except Exception as error:
            faults.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    (fault,) = faults
    assert isinstance(fault, ImageError)
    assert "image 4" in str(fault) and "not a regular file" in str(fault)


def test_a_case_can_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Crashes, hangs, exceptions, and slow and large cases."""
    import tests.fuzz.pool as pool

    module = tmp_path / "failing.py"
    module.write_text(
        "import __main__ as pool, os, time\n"
        "pool.MAX_SECONDS = 0.5\n"
        "kept = []\n"
        "def check(case):\n"
        "    if case == 1: os.abort()\n"
        "    if case == 2: time.sleep(60)\n"
        "    if case == 3: raise KeyError('lost')\n"
        "    if case == 4: kept.append(b'1' * 1_100_000_000)\n"
        "    if case == 6:\n"
        "        end = time.process_time() + 0.7\n"
        "        while time.process_time() < end: pass\n"
        "    return 'codes'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(pool, "_SILENCE", 10)
    outcome = pool.run_cases("failing", 8, processes=1)
    faults = dict(outcome.failures)
    assert sorted(faults) == [1, 2, 3, 4, 6]
    assert "exit status -6" in faults[1] and "no answer" in faults[2]
    assert "KeyError: 'lost'" in faults[3]
    assert "GB" in faults[4], faults
    assert "took 0." in faults[6], faults
    assert outcome.counts == {"codes": 3}


def test_damaged_files_are_reproducible() -> None:
    assert images.damaged_file(123) == images.damaged_file(123)
