"""Marks of tests that need low-precision arithmetic, which not every CPU has."""

from __future__ import annotations

import pytest

from sk_cnncodes.engines.execution import working_precisions

needs_int8 = pytest.mark.skipif(
    bool(working_precisions()["int8"]), reason="needs 8-bit arithmetic in the CPU"
)
needs_bfloat16 = pytest.mark.skipif(
    bool(working_precisions()["bfloat16"]), reason="needs bfloat16 in the CPU"
)
