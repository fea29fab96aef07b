"""No ONNX file crashes, hangs, reads files elsewhere, or gives wrong codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.hostile_models import NAMES
from tests.fuzz.pool import ROOT, asked_cases, run_cases

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs limits on processes")


def test_damaged_models() -> None:
    outcome = run_cases("tests.fuzz.models", asked_cases(500))
    print(outcome)
    assert not outcome.failures, str(outcome)
    assert outcome.counts["codes"] > sum(outcome.counts.values()) / 50
    assert outcome.counts["errors"] > sum(outcome.counts.values()) / 10


def test_hostile_models() -> None:
    outcome = run_cases("tests.fuzz.hostile_models", len(NAMES))
    faults = [f"{NAMES[case]}: {fault}" for case, fault in outcome.failures]
    assert not faults, "\n".join(faults)
    assert sum(outcome.counts.values()) == len(NAMES)


@pytest.mark.skipif(sys.platform != "linux", reason="needs strace on Linux")
def test_no_library_and_no_outside_file_is_opened(tmp_path: Path) -> None:
    """Traces opened files with strace, for models that refer to them."""
    strace = next(
        (p for p in ("/usr/bin/strace", "/bin/strace") if Path(p).exists()), ""
    )
    if not strace:
        pytest.skip("needs strace")
    log = tmp_path / "log"
    command = [strace, "-f", "-e", "trace=open,openat", "-o", str(log), sys.executable]
    names = ["parent", "absolute", "symlink", "hard_link", "body_parent", "custom"]
    code = (
        "from tests.fuzz.hostile_models import NAMES, check\n"
        f"print([check(NAMES.index(name)) for name in {names}])"
    )
    done = subprocess.run(
        [*command, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("strace is not permitted here")
    assert done.returncode == 0, done.stderr[-2000:]
    opened = [line for line in log.read_text().splitlines() if "= -1" not in line]
    assert any("net.onnx" in line for line in opened)
    secret = [line for line in opened if "secret.bin" in line]
    assert all("O_WRONLY" in line for line in secret), secret  # the test writes it
    assert not [line for line in opened if "custom.operators" in line]
