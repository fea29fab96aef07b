"""No damaged file of `to_onnx` crashes, hangs, or gives wrong outputs."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.exported_models import OLD_RUNTIME
from tests.fuzz.pool import asked_cases, run_cases


@pytest.mark.skipif(os.name == "nt", reason="needs limits on processes")
def test_damaged_exported_models() -> None:
    outcome = run_cases("tests.fuzz.exported_models", asked_cases(250))
    print(outcome)
    assert not outcome.failures, str(outcome)
    if not OLD_RUNTIME:
        assert outcome.counts["predictions"] > sum(outcome.counts.values()) / 20
    assert outcome.counts["errors"] > sum(outcome.counts.values()) / 10
