"""JPEG files decoded on a GPU by nvImageCodec, several at once."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from types import ModuleType
from typing import Any

import numpy as np

from sk_cnncodes.base.exceptions import DeviceError, first_line
from sk_cnncodes.base.forks import fork_lock, import_fork_safe
from sk_cnncodes.base.logs import logger
from sk_cnncodes.base.threads import ResourcePool
from sk_cnncodes.engines.devices import count_gpus, cuda_driver

INSTALL = "pip install 'sk-cnncodes[nvimgcodec]'"
# Decoders that work at the same time, each on a CUDA stream of its own, and the CPU
# threads of each, for files that the GPU's decoding engines do not read. An H100 with 7
# engines decoded 710 files of 12 megapixels a second with 16 decoders that are given a
# file each, and 500 with two that are given 16 files at once.
_N_DECODERS = 16
_CPU_THREADS = 4
# Of the CUDA driver.
_NON_BLOCKING, _RELEASE_THRESHOLD = 1, 4
# GPU memory that is kept for the next images.
_KEPT_BYTES = 2**30


def has_nvimgcodec() -> bool:
    """Whether nvImageCodec is installed; it is not imported."""
    try:
        return importlib.util.find_spec("nvidia.nvimgcodec") is not None
    except ModuleNotFoundError:  # no NVIDIA package at all
        return False


def check_gpu_decoding() -> None:
    """Check that this machine has a GPU and nvImageCodec, without starting either.

    Raises
    ------
    DeviceError
        If one of them is missing; the message says what to install.
    """
    if count_gpus() == 0:
        raise DeviceError(
            "decoder='gpu': the NVIDIA driver reports no GPU on this machine. Expected "
            "'auto' or 'pillow' here."
        )
    if not has_nvimgcodec():
        raise DeviceError(
            "decoder='gpu': the package nvidia-nvimgcodec-cu13 is not installed. "
            f"Expected it ({INSTALL}), or decoder='auto' or 'pillow'."
        )


class JpegDecoder:
    """Decodes JPEG files on a GPU; thread-safe.

    Parameters
    ----------
    gpu : int or None
        Index of the GPU. None is for tests: nvImageCodec's decoder for CPUs.

    Attributes
    ----------
    engines : str
        What decodes.

    Raises
    ------
    DeviceError
        If nvImageCodec cannot be used; the message says what to install.
    """

    def __init__(self, gpu: int | None) -> None:
        try:
            codec = _import_codec()
            with fork_lock:
                decoders = [_Decoder(codec, gpu) for _ in range(_N_DECODERS)]
        except Exception as error:
            raise DeviceError(
                "decoder='gpu': nvImageCodec does not work here "
                f"({first_line(error)}). Expected its libraries ({INSTALL}), or "
                "decoder='auto' or 'pillow'."
            ) from error
        self.engines = decoders[0].engines
        self._decoders = ResourcePool(decoders)

    def decode(self, content: bytes) -> Any:
        """Decode a file at full size, as it is stored, whatever its orientation.

        Returns
        -------
        nvimgcodec.Image or None
            RGB pixels on the GPU, complete; None if the GPU does not read the file. An
            array without a GPU.
        """
        return self._decoders.use(lambda decoder: decoder.decode(content))


class _Decoder:
    """The decoders of one CUDA stream: of the GPU's engines, and of its other cores."""

    def __init__(self, codec: ModuleType, gpu: int | None) -> None:
        self._codec = codec
        self._stream = None if gpu is None else _Stream(gpu)
        self._params = codec.DecodeParams(
            apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB
        )
        kinds = codec.BackendKind
        if gpu is None:
            device = codec.NVIMGCODEC_DEVICE_CPU_ONLY
            self._decoders = [self._open(device, [kinds.CPU_ONLY])]
            self.engines = "CPU"
            return
        # Apart, as the two differ by a few levels: which of them decodes a file must
        # not depend on how busy the other is.
        self._decoders, names, fault = [], [], RuntimeError("no decoder")
        for name, of_kind in (
            ("JPEG engines", [kinds.HW_GPU_ONLY]),
            ("CUDA", [kinds.HYBRID_CPU_GPU, kinds.GPU_ONLY]),
        ):
            try:
                self._decoders.append(self._open(gpu, of_kind))
                names.append(name)
            except RuntimeError as error:
                fault = error
        if not self._decoders:
            raise fault
        self.engines = ", ".join(names)

    def _open(self, device: int, kinds: list[Any]) -> Any:
        backends = [self._codec.Backend(kind) for kind in kinds]
        return self._codec.Decoder(
            device_id=device, max_num_cpu_threads=_CPU_THREADS, backends=backends
        )

    def decode(self, content: bytes) -> Any:
        """The image in a file; None if no decoder reads it."""
        for decoder in self._decoders:
            image = self._attempt(decoder, content)
            if image is not None:
                return image
        return None

    def _attempt(self, decoder: Any, content: bytes) -> Any:
        stream = 0 if self._stream is None else self._stream.handle
        try:
            sources = [self._codec.CodeStream(content)]
            (image,) = decoder.decode(sources, params=self._params, cuda_stream=stream)
            if self._stream is not None:
                self._stream.wait()  # other streams use the pixels next
                return image
            return None if image is None else np.asarray(image.cpu())
        except Exception as error:
            logger.debug("decoding on the GPU failed: %s", first_line(error))
            return None


class _Stream:
    """A CUDA stream of a GPU, in the context that all libraries of a process share."""

    def __init__(self, gpu: int) -> None:
        driver = cuda_driver()
        if driver is None:
            raise RuntimeError("the NVIDIA driver does not work")
        self._driver = driver
        self._context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        device = ctypes.c_int()
        self._check(driver.cuDeviceGet(ctypes.byref(device), gpu))
        self._check(
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device)
        )
        self._check(driver.cuCtxSetCurrent(self._context))
        self._check(driver.cuStreamCreate(ctypes.byref(stream), _NON_BLOCKING))
        self.handle: int = stream.value or 0
        _keep_memory(driver, device)

    def wait(self) -> None:
        """Wait until everything on the stream is done."""
        self._check(self._driver.cuCtxSetCurrent(self._context))
        self._check(self._driver.cuStreamSynchronize(ctypes.c_void_p(self.handle)))

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"the NVIDIA driver reports error {status}")


def _keep_memory(driver: ctypes.CDLL, device: ctypes.c_int) -> None:
    """Have the pool of a GPU's memory keep what images had, unless a limit is set.

    It would return it after each batch, and getting it again takes milliseconds.
    """
    pool, kept = ctypes.c_void_p(), ctypes.c_uint64(0)
    if driver.cuDeviceGetDefaultMemPool(ctypes.byref(pool), device) != 0:
        return  # slower, but it works
    attribute, value = _RELEASE_THRESHOLD, ctypes.byref(kept)
    if driver.cuMemPoolGetAttribute(pool, attribute, value) == 0 and kept.value == 0:
        kept.value = _KEPT_BYTES
        driver.cuMemPoolSetAttribute(pool, attribute, value)


def _import_codec() -> ModuleType:
    """Import nvImageCodec. It prints a line for each codec whose library is missing.

    Of files that it cannot decode it says nothing: Pillow decodes them.
    """
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    return import_fork_safe("nvidia.nvimgcodec")
