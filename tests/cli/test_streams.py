"""Closed streams, as under cron and in daemons, and signals that end a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import ROOT, only_posix, start, wait_until
from tests.cli.conftest import copies

pytestmark = only_posix


def run_closed(closed: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sk_cnncodes", *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-"])
def test_predict(
    closed: str, photos: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    """It neither prints a traceback nor ends without output."""
    rows = tmp_path / "rows.csv"
    images = (photos / "china" / "0000.jpg", "missing.jpg")
    printed = run_closed(closed, "predict", models["svm"], *images)
    assert printed.returncode == 3, printed.stderr
    assert "Traceback" not in printed.stderr
    if ">&-" not in closed.split():
        assert len(printed.stdout.splitlines()) == 3
    written = run_closed(closed, "predict", models["svm"], *images, "-o", rows)
    assert written.returncode == 3, written.stderr
    assert len(rows.read_text(encoding="utf-8").splitlines()) == 3


def test_train_without_streams(photos: Path, models: dict[str, Path]) -> None:
    model = models["svm"].with_name("closed.joblib")
    cache = ("--cache", models["svm"].with_name("codes.sqlite3"))
    options = ("--layer", "-1", "--head", "svm", "--cv", "3", "--jobs", "2", *cache)
    done = run_closed("<&- >&- 2>&-", "train", photos, "-o", model, *options)
    assert done.returncode == 0
    assert model.exists()


def test_no_input_to_read(models: dict[str, Path]) -> None:
    done = run_closed("<&-", "predict", models["svm"], "-")
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: found no images in the arguments."


@pytest.fixture
def many(photograph_files: list[Path], tmp_path: Path) -> Path:
    copies(photograph_files[:4], tmp_path / "many" / "china", 300)
    copies(photograph_files[4:], tmp_path / "many" / "flower", 300)
    return tmp_path / "many"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_file(name: str, many: Path, tmp_path: Path) -> None:
    """Neither partial output nor a temporary cache is left."""
    if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup")
    folder = tmp_path / "work"
    folder.mkdir()
    process = start(folder, "embed", many, "-o", "codes.npz")
    wait_until(process, lambda: any(folder.iterdir()))
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert list(folder.iterdir()) == []


def test_a_signal_ends_a_training(
    photos: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    """Neither a thread nor a process keeps its output open."""
    cache = ("--cache", models["svm"].with_name("codes.sqlite3"))
    options = ("--cv", "9", "--head", "logistic", "--jobs", "2", *cache)
    process = start(tmp_path, "train", photos, "-o", "model.joblib", *options)
    assert process.stderr is not None
    while "Ranking" not in (line := process.stderr.readline()):
        assert line
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not list(tmp_path.iterdir())
