"""The command that measures the fastest configuration of a backbone."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.commands import invoke


def test_benchmark(photograph_files: list[Path]) -> None:
    folder = photograph_files[0].parent
    quick = ("cnncodes-mini", folder, "--batch-size", "4", "--rounds", "1")
    result = invoke("benchmark", *quick)
    assert result.exit_code == 0
    assert "onnxruntime" in result.stdout
    assert "In float32:  CNNCodeTransformer('cnncodes-mini'" in result.stdout
    found = json.loads(invoke("benchmark", *quick, "--json").stdout)
    assert {"device", "engine", "precision", "code"} <= set(found[0])


def test_benchmark_without_images(tmp_path: Path) -> None:
    result = invoke("benchmark", "cnncodes-mini", tmp_path)
    assert result.exit_code == 1
    assert "Error:" in result.stderr
