"""The package's logger; `SK_CNNCODES_LOG=debug` shows it in any program."""

from __future__ import annotations

import logging
import os

LOG_VARIABLE = "SK_CNNCODES_LOG"

logger = logging.getLogger("sk_cnncodes")
logger.addHandler(logging.NullHandler())


def show_log() -> None:
    """Write the log to standard error, as `SK_CNNCODES_LOG` says.

    Raises
    ------
    ValueError
        If it names no level.
    """
    level = os.environ.get(LOG_VARIABLE, "").strip().upper()
    if not level:
        return
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError(
            f"{LOG_VARIABLE}={level.lower()!r}: expected 'debug', 'info', 'warning' or "
            "'error'."
        )
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(name)s %(levelname)s [%(process)d]: %(message)s")
    )
    logger.addHandler(handler)
    logger.setLevel(level)
