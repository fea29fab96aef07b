"""The log: silent by default, shown by an environment variable."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer
from sk_cnncodes.base.logs import configure_logging, logger
from tests.conftest import run_python

PROGRAM = (
    "import numpy as np; from sk_cnncodes import CNNCodeTransformer\n"
    "X = np.zeros((3, 9, 9, 3), np.uint8)\n"
    "CNNCodeTransformer(n_jobs=1, device='cpu').fit(X).transform(X)\n"
)


def test_nothing_is_logged_by_default() -> None:
    assert run_python(PROGRAM, SK_CNNCODES_LOG="") == ""


def test_debug_shows_what_decides_the_codes_and_the_speed() -> None:
    log = run_python(PROGRAM, SK_CNNCODES_LOG="debug")
    for part in (
        "cnncodes-mini.onnx",
        "preprocessing from the file's metadata",
        "layer /codes/Concat_output_0",
        "onnxruntime on cpu in float32",
        "CPUExecutionProvider",
        "batches of 2 images",
        "3 images: 0 codes from the cache, 0 bad images",
    ):
        assert part in log, log


def test_info_shows_less() -> None:
    assert run_python(PROGRAM, SK_CNNCODES_LOG="info") == ""


@pytest.fixture
def _handlers() -> Iterator[None]:
    before, level = list(logger.handlers), logger.level
    yield
    logger.handlers, logger.level = before, level


@pytest.mark.usefixtures("_handlers")
def test_an_unknown_level_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not end the program that imports the package."""
    monkeypatch.setenv("SK_CNNCODES_LOG", "loud")
    with pytest.warns(UserWarning, match="SK_CNNCODES_LOG='loud'.*Expected 'debug'"):
        configure_logging()
    monkeypatch.setenv("SK_CNNCODES_LOG", "Debug")
    configure_logging()
    assert logger.level == logging.DEBUG


def test_the_logger_is_an_ordinary_one(caplog: pytest.LogCaptureFixture) -> None:
    images = np.zeros((2, 9, 9, 3), np.uint8)
    with caplog.at_level(logging.DEBUG, "sk_cnncodes"):
        CNNCodeTransformer(cache=None).transform(images)
    assert any("codes from the cache" in message for message in caplog.messages)
