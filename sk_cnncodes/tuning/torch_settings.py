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
def repeatable(device: torch.device, n_threads: int) -> Iterator[None]:
    """Some threads, and the same results each time; as before afterwards.

    What a caller set for torch in all of the process, such as no gradients, autocast
    or another default type or device, does not hold inside.
    """
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
    dtype = torch.get_default_dtype()
    torch.set_num_threads(n_threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast(device.type, enabled=False),
            torch.device("cpu"),
        ):
            yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
        torch.set_default_dtype(dtype)
