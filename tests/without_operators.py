"""Imports torchvision, also beside a build of torch that its wheel is not for."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any


def import_torchvision() -> Any:
    """torchvision, without its compiled operators where they do not load.

    The wheel of torchvision is built for one build of torch. Beside another, such as
    the one for CPUs alone, its import fails because operators are missing that it
    describes; no classifier needs them, so that empty ones do.

    Raises
    ------
    ImportError
        If torch or torchvision is not installed.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed", name="torchvision")
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
