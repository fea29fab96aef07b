"""Decides what happens where a source library, or a part of one, is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

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
    """torchvision, without its compiled operators where they do not load.

    The wheel of torchvision is built for one build of torch. Beside another, such as
    the one for CPUs alone, its import fails because operators are missing that it
    describes; no classifier needs them, so that empty ones do.
    """
    torch = pytest.importorskip("torch")
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        pytest.skip("could not import 'torchvision': not installed")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    text = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    names = re.findall(r"torchvision::(\w+)", text)
    names += re.findall(r'register_meta\("(\w+)"', text)
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(names)):
        library.define(f"{name}(Tensor a) -> Tensor")
    # Kept: the operators go when it goes.
    torch._sk_cnncodes_torchvision_library = library
    return importlib.import_module("torchvision")
