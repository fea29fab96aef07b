"""The README's figures are those that were measured."""

from __future__ import annotations

from pathlib import Path

from tests.gpu.table import table


def test_the_readme_has_the_measured_table() -> None:
    readme = Path(__file__).parents[2] / "README.md"
    assert table() in readme.read_text(encoding="utf-8")
