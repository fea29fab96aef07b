"""Images -> codes: decode, batch, run. The one loop of the library."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sk_cnncodes.exceptions import BackboneError, ImageError
from sk_cnncodes.images import describe_image, read_rgb
from sk_cnncodes.preprocessing import Preprocessing
from sk_cnncodes.runtime import CodeSession

# Larger batches are slower on CPUs, where they leave the caches.
CPU_BATCH_SIZE = 16
GPU_BATCH_SIZE = 64
# How many bad images a warning describes; of the others it gives the positions.
_LISTED = 20

OnError = Literal["raise", "nan"]


@dataclass(frozen=True)
class ExtractionOptions:
    """What decides how codes are computed, but not what they are.

    Attributes
    ----------
    batch_size : int or None
        Images in each run; None for what suits the device.
    n_threads : int
        Threads that decode.
    on_error : {"raise", "nan"}
        What a bad image does.
    verbose : bool
        Whether to show a progress bar.
    """

    batch_size: int | None
    n_threads: int
    on_error: OnError
    verbose: bool


def extract_codes(
    images: Sequence[Any],
    session: CodeSession,
    preprocessing: Preprocessing,
    code_lengths: list[int],
    options: ExtractionOptions,
) -> list[np.ndarray]:
    """Codes of images, row i for image i.

    Threads decode ahead of the session, by at most two batches, so that memory does
    not grow with the number of images.

    Parameters
    ----------
    images : sequence
        Elements as `sk_cnncodes.images.read_rgb` takes them.
    session : CodeSession
    preprocessing : Preprocessing
    code_lengths : list of int
        Length of the codes of each output.
    options : ExtractionOptions

    Returns
    -------
    list of ndarray of float32, shape (n_images, code_length)

    Raises
    ------
    ImageError
        At the first bad image with ``on_error="raise"``.
    """
    codes = [np.full((len(images), n), np.nan, np.float32) for n in code_lengths]
    batch_size = options.batch_size or (
        CPU_BATCH_SIZE if session.provider == "CPUExecutionProvider" else GPU_BATCH_SIZE
    )
    faults: list[ImageError] = []
    rows: list[int] = []
    batch = np.empty((min(batch_size, len(images)), *session.image_shape), np.uint8)

    def flush() -> None:
        for matrix, part in zip(codes, session.run(batch[: len(rows)]), strict=True):
            _check_finite(part, rows, images)
            matrix[rows] = part
        rows.clear()

    def prepare(index: int) -> np.ndarray:
        return preprocessing.apply(read_rgb(images[index], index))

    for index, pixels in _progress(
        _read_ahead(prepare, len(images), options.n_threads, 2 * batch_size),
        len(images),
        options.verbose,
    ):
        if isinstance(pixels, ImageError):
            if options.on_error == "raise":
                raise pixels
            faults.append(pixels)
            continue
        batch[len(rows)] = pixels
        rows.append(index)
        if len(rows) == len(batch):
            flush()
    if rows:
        flush()
    if faults:
        _warn_of(faults, len(images))
    return codes


def _read_ahead(
    prepare: Callable[[int], np.ndarray], count: int, n_threads: int, ahead: int
) -> Iterator[tuple[int, np.ndarray | ImageError]]:
    """Results of `prepare` in order, computed by threads up to `ahead` in advance."""

    def attempt(index: int) -> np.ndarray | ImageError:
        try:
            return prepare(index)
        except ImageError as error:
            return error

    if n_threads == 1 or count == 1:
        yield from ((index, attempt(index)) for index in range(count))
        return
    waiting: deque[Future[np.ndarray | ImageError]] = deque()
    pool = ThreadPoolExecutor(n_threads, "sk_cnncodes-decode")
    try:
        submitted = 0
        for index in range(count):
            while submitted < min(count, index + ahead):
                waiting.append(pool.submit(attempt, submitted))
                submitted += 1
            yield index, waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _progress(
    results: Iterator[tuple[int, np.ndarray | ImageError]], count: int, verbose: bool
) -> Iterator[tuple[int, np.ndarray | ImageError]]:
    if not verbose:
        yield from results
        return
    from tqdm.auto import tqdm

    with tqdm(total=count, unit="image", desc="CNN codes") as bar:
        for result in results:
            yield result
            bar.update()


def _check_finite(part: np.ndarray, rows: list[int], images: Sequence[Any]) -> None:
    good = np.isfinite(part).all(axis=1)
    if not good.all():
        index = rows[int(np.argmin(good))]
        raise BackboneError(
            f"{describe_image(images[index], index)}: the backbone gave codes that are "
            "not finite. Expected finite numbers; half-precision files overflow so, "
            "and wrong preprocessing can cause it."
        )


def _warn_of(faults: list[ImageError], count: int) -> None:
    listed = "\n".join(f"- {fault}" for fault in faults[:_LISTED])
    others = ", ".join(str(fault.index) for fault in faults[_LISTED:])
    more = f"\n- and images {others}" if others else ""
    warnings.warn(
        f"{len(faults)} of {count} images could not be read; their codes are NaN:\n"
        f"{listed}{more}",
        UserWarning,
        stacklevel=4,
    )
