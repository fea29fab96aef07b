"""OpenVINO: networks on the CPU, also in bfloat16 and int8 if the CPU supports them."""

from __future__ import annotations

import importlib
import os
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from sk_cnncodes.base.forks import fork_lock
from sk_cnncodes.base.threads import ResourcePool


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    On import it sends an event to Google Analytics and creates a folder in the user's
    home, unless the package `openvino_telemetry` is missing, so the import hides it.
    """
    with fork_lock:
        if "openvino" in sys.modules:
            return sys.modules["openvino"]
        name = "openvino_telemetry"
        hidden: dict[str, Any] = sys.modules
        previous = hidden.get(name, hidden)  # `hidden` itself if it was not imported
        hidden[name] = None  # makes importing it fail
        try:
            return importlib.import_module("openvino")
        finally:
            if previous is hidden:
                del hidden[name]
            else:
                hidden[name] = previous


@lru_cache(maxsize=2)
def _core(process: int) -> Any:
    """OpenVINO's core, one per process: a forked child creates its own."""
    return import_openvino().Core()


def cpu_capabilities() -> list[str]:
    """Capabilities that OpenVINO reports for this CPU, such as "BF16" and "INT8"."""
    return list(_core(os.getpid()).get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class OpenVinoRunner:
    """A network on the CPU; several threads may run it at once.

    Parameters
    ----------
    model : bytes
        With one uint8 input [N, height, width, 3] and float32 outputs [N, d].
    n_threads : int
        Number of CPU threads of all concurrent runs together.
    n_concurrent_runs : int
        Number of concurrent runs; each has its own stream.
    bfloat16 : bool
        Whether operators that are not int8 run in bfloat16; otherwise in float32.
    """

    provider = "OpenVINO"

    def __init__(
        self, model: bytes, *, n_threads: int, n_concurrent_runs: int, bfloat16: bool
    ) -> None:
        self.n_concurrent_runs = n_concurrent_runs
        core = _core(os.getpid())
        self._compiled = core.compile_model(
            core.read_model(model),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
                "INFERENCE_NUM_THREADS": max(n_threads, n_concurrent_runs),
                "NUM_STREAMS": str(n_concurrent_runs),
                # Pinned threads compete with those of other processes for the cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._requests: ResourcePool[Any] = ResourcePool(
            self._compiled.create_infer_request() for _ in range(n_concurrent_runs)
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an input image."""
        shape = self._compiled.input(0).partial_shape
        height, width, channels = (shape[i].get_length() for i in (1, 2, 3))
        return height, width, channels

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Codes of a batch, one array for each layer."""

        def infer(request: Any) -> list[np.ndarray]:
            outputs = request.infer([np.ascontiguousarray(images)], share_inputs=True)
            return [outputs[port].copy() for port in self._compiled.outputs]

        return self._requests.use(infer)
