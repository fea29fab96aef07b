"""A stand-in for nvImageCodec without a GPU: Pillow decodes, at full size."""

from __future__ import annotations

import io
import threading
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

NVIMGCODEC_DEVICE_CPU_ONLY = -99999


class BackendKind(Enum):
    CPU_ONLY = 1
    GPU_ONLY = 2
    HYBRID_CPU_GPU = 3
    HW_GPU_ONLY = 4


class ColorSpec(Enum):
    SRGB = 1


class Backend(NamedTuple):
    kind: BackendKind


class CodeStream(NamedTuple):
    content: bytes


class DecodeParams:
    def __init__(self, *, apply_exif_orientation: bool, color_spec: ColorSpec) -> None:
        assert not apply_exif_orientation
        assert color_spec is ColorSpec.SRGB


class Decoded:
    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels

    def cpu(self) -> np.ndarray:
        return self._pixels


class Decoder:
    """Refuses files that contain `refused`, and fails with `fatal`.

    Attributes
    ----------
    n_given : int
        Number of files that all decoders were given.
    """

    refused, fatal = b"refused by the GPU", b"fatal for the decoder"
    n_given = 0
    _lock = threading.Lock()

    def __init__(
        self, *, device_id: int, max_num_cpu_threads: int, backends: list[Backend]
    ) -> None:
        assert device_id == NVIMGCODEC_DEVICE_CPU_ONLY
        assert [backend.kind for backend in backends] == [BackendKind.CPU_ONLY]

    def decode(
        self, sources: list[CodeStream], *, params: DecodeParams, cuda_stream: int
    ) -> list[Any]:
        with self._lock:
            Decoder.n_given += len(sources)
        if any(self.fatal in source.content for source in sources):
            raise RuntimeError("the decoder failed")
        return [self._decode(source.content) for source in sources]

    def _decode(self, content: bytes) -> Decoded | None:
        if self.refused in content:
            return None
        try:
            image = Image.open(io.BytesIO(content)).convert("RGB")
        except OSError:
            return None
        return Decoded(np.asarray(image))
