"""Each image is embedded once in what scikit-learn does with a transformer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import once


def test_each_image_is_embedded_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = once.rows(once.small_network(tmp_path), tmp_path)
    assert len(found) >= 20
    too_many = [(name, passes) for name, passes, most in found if passes > most + 1e-9]
    assert too_many == [], capsys.readouterr().out
