"""Sessions that compute codes, and GPU decoders, in tables of the process."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.backbones.stored import StoredBackbone
from sk_cnncodes.base.exceptions import BackboneError, DeviceError, first_line
from sk_cnncodes.base.logs import logger
from sk_cnncodes.engines.execution import Execution
from sk_cnncodes.engines.jpeg_decoder import JpegDecoder
from sk_cnncodes.engines.matrix_resizer import MatrixResizer
from sk_cnncodes.engines.quantisation import Calibration
from sk_cnncodes.engines.session import CodeSession, open_session
from sk_cnncodes.engines.session_table import SessionTable
from sk_cnncodes.images.decode import PlainJpeg, upright
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.views import take_views, view_resize

SESSIONS: SessionTable[CodeSession] = SessionTable()
_GPU_VIEWS: SessionTable[GpuViews] = SessionTable()
# Largest difference of a smooth image decoded by Pillow, in levels of 255.
_TOLERANCE = 8


def code_session(
    backbone: Backbone | StoredBackbone,
    specs: list[CodeSpec],
    execution: Execution,
    n_threads: int,
    calibration: Calibration | None,
    *,
    single_run_uses_all_threads: bool,
) -> CodeSession:
    """The session of some code specs, opened only once per process.

    On the CPU, the highest throughput comes from concurrent runs with one thread each;
    for fewer images than threads, a single run uses all threads.

    Raises
    ------
    BackboneError
        If the engine cannot run the network. The message names the backbone.
    DeviceError
        If a required GPU does not work.
    """
    single_run = single_run_uses_all_threads or not execution.on_cpu
    n_concurrent_runs = 1 if single_run else n_threads
    key = (
        tuple(spec.digest for spec in specs),
        execution,
        n_threads,
        n_concurrent_runs,
    )

    def open_new() -> CodeSession:
        try:
            graphs = backbone.code_graphs(specs)
            session = open_session(
                graphs, execution, n_threads, n_concurrent_runs, calibration
            )
            logger.debug(
                "session of %s on %s, %d concurrent runs, batch size %s",
                backbone.description,
                session.provider,
                session.n_concurrent_runs,
                session.batch_size or "any",
            )
            return session
        except BackboneError as error:
            prefix = f"{backbone.description}: "
            named = str(error).startswith(prefix)
            raise BackboneError(f"{'' if named else prefix}{error}") from error

    return SESSIONS.get(key, open_new)


# -- decoding on a GPU ---------------------------------------------------------


class GpuViews:
    """Decodes JPEG files on a GPU, and takes their views there; thread-safe.

    Parameters
    ----------
    decoder : JpegDecoder
    resizer : MatrixResizer or None
        None resizes with Pillow.
    """

    def __init__(self, decoder: JpegDecoder, resizer: MatrixResizer | None) -> None:
        self._decoder = decoder
        self.resizer = resizer
        self.engines = decoder.engines

    def take(
        self, jpeg: PlainJpeg, preprocessing: Preprocessing, views: str
    ) -> np.ndarray | None:
        """The views, as by `take_views`; None if Pillow must decode the file."""
        resize = view_resize(preprocessing, views, jpeg.size, jpeg.orientation)
        if resize is None:
            return None
        image = self._decoder.decode(jpeg.content)
        if image is None or tuple(image.shape) != (*jpeg.size, 3):
            return None
        try:
            if self.resizer is None:
                pixels = image if isinstance(image, np.ndarray) else image.cpu()
                rgb = upright(Image.fromarray(np.asarray(pixels)), jpeg.orientation)
                return take_views(rgb, preprocessing, views)
            part = self.resizer.resize(
                image, resize.rows, resize.columns, turned=resize.turned
            )
        except Exception as error:  # such as too little memory
            logger.debug("resizing on the GPU failed: %s", first_line(error))
            return None
        return resize.take(part)

    def check(self) -> None:
        """Compare a smooth image with Pillow's.

        Raises
        ------
        DeviceError
            If it differs, or cannot be decoded.
        """
        rng = np.random.default_rng(0)
        coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
        crop = Preprocessing((56, 48), resize_size=64)
        expected = take_views(Image.open(file).convert("RGB"), crop, "center")
        got = self.take(PlainJpeg(file.getvalue(), (480, 640), 1), crop, "center")
        fault = "it decoded no file"
        if got is not None:
            difference = np.abs(got.astype(int) - expected.astype(int)).max()
            if difference <= _TOLERANCE:
                return
            fault = f"its pixels differ from Pillow's by {difference} levels"
        raise DeviceError(
            f"decoder='gpu': nvImageCodec ({self.engines}) does not work here: "
            f"{fault}. Expected decoder='auto' or 'pillow' here."
        )


def gpu_views(gpu: int) -> GpuViews:
    """What decodes on a GPU, opened and checked once per process.

    Raises
    ------
    DeviceError
        If it does not work; the message says what to install.
    """
    return _GPU_VIEWS.get(gpu, lambda: open_gpu_views(gpu))


def take_on_gpu(
    gpu: int,
) -> Callable[[PlainJpeg, Preprocessing, str], np.ndarray | None]:
    """`GpuViews.take` of a GPU, which is opened when the first file comes."""
    return lambda *how: gpu_views(gpu).take(*how)


def open_gpu_views(gpu: int | None) -> GpuViews:
    """Open the decoder and the resizer of a GPU, and check them.

    None is for tests: it uses the CPU.
    """
    decoder = JpegDecoder(gpu)
    try:
        found = GpuViews(decoder, MatrixResizer(gpu))
        found.check()
    except DeviceError as error:
        logger.debug("images are not resized on the GPU: %s", first_line(error))
        found = GpuViews(decoder, None)
        found.check()
    resized = "Pillow" if found.resizer is None else "ONNX Runtime"
    logger.debug("decoding on GPU %s: %s, resized by %s", gpu, found.engines, resized)
    return found
