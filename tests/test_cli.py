"""The sk-cnncodes command."""

from __future__ import annotations

import subprocess
import sys

import sk_cnncodes


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from sk_cnncodes.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_version() -> None:
    assert run("--version").stdout.strip() == sk_cnncodes.__version__


def test_layers() -> None:
    result = run("layers", "cnncodes-mini")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("layer  name")
    assert lines[-1].split()[0] == "-1"
    assert len(lines) == 1 + len(sk_cnncodes.load_backbone("cnncodes-mini").layers)


def test_errors_are_one_line() -> None:
    result = run("layers", "nothing.onnx")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: backbone='nothing.onnx': no such file")
    assert "Traceback" not in result.stderr
