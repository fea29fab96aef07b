"""The user's cache folder, and whether the network may be used."""

from __future__ import annotations

import os
from pathlib import Path

from sk_cnncodes.base.exceptions import DownloadError
from sk_cnncodes.base.forks import import_fork_safe

HOME_VARIABLE = "SK_CNNCODES_HOME"
OFFLINE_VARIABLE = "SK_CNNCODES_OFFLINE"


def cache_dir() -> Path:
    """Folder of downloaded backbones: `SK_CNNCODES_HOME` or the user's cache folder.

    The folder need not exist.

    Raises
    ------
    DownloadError
        If the user has no home folder, as in containers whose user has no name.
    """
    chosen = os.environ.get(HOME_VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        folder = Path(import_fork_safe("pooch").os_cache("sk_cnncodes"))
        if not folder.is_absolute():
            raise RuntimeError(f"{str(folder)!r} is not an absolute path")
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"there is no folder for downloaded backbones ({error}). Expected "
            f"{HOME_VARIABLE} to name one."
        ) from error
    return folder


def is_offline() -> bool:
    """Whether `SK_CNNCODES_OFFLINE` forbids the network."""
    value = os.environ.get(OFFLINE_VARIABLE, "").strip().lower()
    return value not in ("", "0", "false", "no", "off")
