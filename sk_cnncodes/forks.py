"""What a process must finish before it forks.

A child has the locks of its parent, as they are at that moment, but not the threads
that would give them back.
"""

from __future__ import annotations

import importlib

# Before a fork, hooks run in reverse: that of logging, which is registered first, must
# not have its lock when ours wait for a thread that imports something and wants to log.
import logging  # noqa: F401
import os
import sys
import threading
from types import ModuleType

# Packages that this one imports where they are first needed, perhaps in a thread.
_IMPORTED_LATE = {"PIL", "onnx", "onnxruntime", "openvino", "sk_cnncodes", "tqdm"}


# Held by what a fork must not cut in two, such as the loading of a network: ONNX
# Runtime has locks for that.
unforked = threading.RLock()


def import_whole(name: str) -> ModuleType:
    """Import a module; a fork waits until it is there."""
    with unforked:
        return importlib.import_module(name)


def finish_imports() -> None:
    """Wait for imports that other threads have begun: modules have locks."""
    for name, module in list(sys.modules.items()):
        if module is not None and name.partition(".")[0] in _IMPORTED_LATE:
            importlib.import_module(name)


def _before_fork() -> None:
    unforked.acquire()
    finish_imports()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=unforked.release,
        after_in_child=unforked.release,
    )
