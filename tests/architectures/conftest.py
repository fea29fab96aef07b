"""Decides what happens where a source library, or a part of one, is missing."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from tests.without_operators import import_torchvision

# Set where all libraries are installed: a test that is skipped then fails.
NO_SKIP = "SK_CNNCODES_ARCHITECTURES_NO_SKIP"

pytest.register_assert_rewrite("tests.architectures.helpers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    if report.skipped and os.environ.get(NO_SKIP):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """torchvision, without its compiled operators where they do not load."""
    pytest.importorskip("torch")
    try:
        return import_torchvision()
    except ImportError as error:
        pytest.skip(f"could not import 'torchvision': {error}")
