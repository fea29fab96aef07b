"""Every example runs and prints the expected results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(
    folder: Path, *arguments: str, example: str = "choose_layer_and_classifier.py"
) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_tested() -> None:
    assert sorted(p.name for p in EXAMPLES.glob("*.py")) == [
        "choose_layer_and_classifier.py",
        "report_on_photographs.py",
        "train_in_chunks.py",
    ]


def test_digits(tmp_path: Path) -> None:
    output = run(tmp_path)
    assert (tmp_path / "classifier.joblib").exists()
    assert len(re.findall(r"^cnncodes-mini +-\d", output, re.MULTILINE)) == 3
    held_out = float(re.search(r"Held-out accuracy: ([\d.]+)%", output).group(1))
    assert held_out > 90
    assert "A new process loaded it" in output


def test_chunks(tmp_path: Path) -> None:
    output = run(tmp_path, example="train_in_chunks.py")
    assert "1437 codes of length 800" in output
    held_out = float(re.search(r"Held-out accuracy: ([\d.]+)%", output).group(1))
    assert held_out > 90
    codes = np.load(tmp_path / "codes_in.npy", mmap_mode="r")
    assert codes.shape == (1437, 800)


def test_report(tmp_path: Path) -> None:
    output = run(tmp_path, example="report_on_photographs.py")
    assert re.search("40 pieces to train on, 120 to test on; [1-9][0-9]? wrong", output)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Parts of photographs" in page
    assert (EXAMPLES / "report_on_photographs.webp").stat().st_size < 150_000


def test_caltech(shared: Path, tmp_path: Path) -> None:
    train = shared / "data" / "caltech20" / "train"
    for path in sorted(train.glob("*/*.jpg"))[::2]:  # 15 of each of 20 classes
        link = tmp_path / "images" / path.relative_to(train)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    arguments = ["--images", str(tmp_path / "images")]
    for name in ("squeezenet1.1.onnx", "mobilenet_v2.onnx"):
        arguments += ["--backbone", str(shared / "backbones" / name)]
    output = run(tmp_path, *arguments)
    chosen = re.search(r"Chosen: (\S+), layer .*: ([\d.]+)% in cross-val", output)
    assert chosen.group(1) == "mobilenet_v2.onnx"
    assert float(chosen.group(2)) >= 96


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="found no images"):
        run(tmp_path, "--images", str(tmp_path))
