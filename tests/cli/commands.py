"""Run the command in this process or in a new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sk_cnncodes.cli import app

ROOT = Path(__file__).parents[2]
# Processes of `start`, which end with the test, also if it fails.
STARTED: list[subprocess.Popen[str]] = []

only_posix = pytest.mark.skipif(
    sys.platform == "win32", reason="sends the signal of Ctrl-C to a process group"
)


def invoke(
    *arguments: str | Path, given: str | None = None, **variables: str
) -> Result:
    """Run in this process; raise errors that the command does not handle."""
    words = [str(argument) for argument in arguments]
    result = CliRunner(env=variables).invoke(app, words, input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "sk_cnncodes", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment() | variables,
    )


def start(
    folder: Path,
    *arguments: str | Path,
    stdin: Any = subprocess.DEVNULL,
    stdout: Any = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Start a process group that Ctrl-C can be sent to."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sk_cnncodes", *map(str, arguments)],
        cwd=folder,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Send Ctrl-C as a terminal does; return the remaining output."""
    assert process.poll() is None, f"ended too early: {process.communicate()}"
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=60)


def wait_until(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    """Wait until a condition holds while the process runs."""
    deadline = time.monotonic() + 60
    while not done():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """Variables with which a new process finds the package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}
