"""The package's logger; `SK_CNNCODES_LOG=debug` shows its messages."""

from __future__ import annotations

import logging
import os
import warnings

LOG_VARIABLE = "SK_CNNCODES_LOG"

logger = logging.getLogger("sk_cnncodes")
logger.addHandler(logging.NullHandler())


def configure_logging() -> None:
    """Log to standard error at the level in `SK_CNNCODES_LOG`, if it is set.

    A value that is not a level is reported by a warning: it must not end a program.
    """
    level = os.environ.get(LOG_VARIABLE, "").strip().upper()
    if not level:
        return
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        warnings.warn(
            f"{LOG_VARIABLE}={level.lower()!r}: nothing is logged. Expected 'debug', "
            "'info', 'warning' or 'error'.",
            stacklevel=3,
        )
        return
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(name)s %(levelname)s [%(process)d]: %(message)s")
    )
    logger.addHandler(handler)
    logger.setLevel(level)
