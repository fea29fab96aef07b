"""Run programs in separate processes, which limits and signals may end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_HEAD = """
import errno, os, resource, signal, sys, threading, time, warnings
import numpy as np
from sk_cnncodes import CacheWarning, CNNCodeTransformer, CodeCache
net, files, reference, folder = sys.argv[1:5]
files = [os.path.join(files, f"{number}.png") for number in range(12)]
expected = np.load(reference)
def right(codes, expected=expected):
    largest = np.abs(expected).max()
    return codes.shape == expected.shape and np.allclose(
        codes, expected, rtol=1e-5, atol=1e-5 * largest
    )
def own_threads():
    return [t for t in threading.enumerate() if t.name.startswith("sk_cnncodes")]
"""


def run_program(
    source: str, *arguments: object, timeout: float = 240, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run Python source after the common head; raises if the process hangs."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", _HEAD + source, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def output_of(source: str, *arguments: object, **options: float) -> str:
    """Standard output of a program that must succeed."""
    done = run_program(source, *arguments, **options)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout.strip()


def bound_by_permissions() -> list[str]:
    """Command prefix that makes file permissions apply to root, too."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv, or a user other than root")
    return ["setpriv", "--bounding-set", "-dac_override"]
