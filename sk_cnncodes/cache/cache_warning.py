"""CacheWarning, and warnings of caches that are too small, of workers too."""

from __future__ import annotations

import atexit
import os
import warnings

from sk_cnncodes.base.public import public
from sk_cnncodes.cache.shared_folder import root_process, tell_root, told

# Names of caches that this process was warned of.
_too_small: set[str] = set()


@public
class CacheWarning(UserWarning):
    """A code cache does not work as requested; the codes are still computed."""


def report_size(name: str, message: str, shared: bool) -> bool:
    """Warn that a cache is too small; in a worker, let its parent do it.

    Parameters
    ----------
    name, message : str
    shared : bool
        Whether a cache of this name in another process is the same one.

    Returns
    -------
    bool
        Whether it is left to the parent.
    """
    if root_process() != os.getpid() and tell_root(name, message):
        return True
    if not shared or name not in _too_small:
        _warn(name, message)
    return False


def report_told() -> None:
    """Warn of the caches that workers of this process found too small."""
    for name, message in told():
        if name not in _too_small:
            _warn(name, message)


def _warn(name: str, message: str) -> None:
    _too_small.add(name)
    warnings.warn(message, CacheWarning, stacklevel=6)


# Before the folder of the workers' messages is removed: the last one registered is
# called first.
atexit.register(report_told)
