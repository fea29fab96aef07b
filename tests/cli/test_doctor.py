"""The command that checks what works on a machine."""

from __future__ import annotations

import json
from pathlib import Path

import sk_cnncodes
from tests.cli.commands import invoke


def test_doctor(tmp_path: Path) -> None:
    result = invoke("doctor", SK_CNNCODES_HOME=str(tmp_path))
    assert result.stderr == ""
    assert f"sk-cnncodes   {sk_cnncodes.__version__}" in result.stdout
    assert "CPUExecutionProvider: works" in result.stdout
    assert str(tmp_path) in result.stdout
    assert result.exit_code == ("Problem:" in result.stdout)

    found = json.loads(invoke("doctor", "--json").stdout)
    assert found["providers"]["CPUExecutionProvider"] is True
    assert isinstance(found["problems"], list)
