"""What torch trains on: device, number format and threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sk_cnncodes.engines.devices import cpu_features


def torch_device(device: str) -> torch.device:
    """The device that weights are trained on; "auto" is a GPU if torch has one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device.replace("tensorrt", "cuda"))


def training_precision(precision: str, device: torch.device) -> str:
    """The number format of the training; "auto" is bfloat16 where it is fast."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        is_fast = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        is_fast = "bfloat16" in (cpu_features() or ())
    return "bfloat16" if is_fast else "float32"


@contextmanager
def repeatable(n_threads: int) -> Iterator[None]:
    """Some threads, and the same results each time; as before afterwards."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(n_threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
