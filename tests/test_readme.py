"""The README's code runs, and its commands are those that are documented."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_code_runs(
    photographs: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(24):
        pixels = photographs[number % 8][number:, number:]
        folder = tmp_path / "photos" / ("china" if number % 8 < 4 else "flower")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    codes = blocks("python")
    assert codes
    names: dict[str, object] = {}  # later blocks use what earlier ones define
    for code in codes:
        exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "classifier.joblib").exists()
    assert "china" in capsys.readouterr().out


def test_two_commands_of_one_line() -> None:
    main, tests = blocks("bash")[:2]
    assert main.count("\n") == tests.count("\n") == 1
    assert "pip install ." in main
    assert "examples/choose_layer_and_classifier.py" in main
    assert tests.rstrip().endswith("-m pytest")
