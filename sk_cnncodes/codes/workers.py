"""Workers: threads that decode images and run them in batches; results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, islice
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.base.logs import logger
from sk_cnncodes.base.threads import OrderedThreadPool, ResourcePool
from sk_cnncodes.codes.digests import Digest
from sk_cnncodes.codes.elements import Elements
from sk_cnncodes.codes.preparation import (
    DecodeProcess,
    DecodeProcesses,
    Outcome,
    Preparation,
    Prepared,
    Task,
    can_start_processes,
)
from sk_cnncodes.codes.sessions import take_on_gpu
from sk_cnncodes.images.safe_open import MAX_PIXELS
from sk_cnncodes.images.views import VIEWS, average_views

# Cache key of an image: None without a cache; the error if it cannot be read.
Key = Digest | ImageError | None
T = TypeVar("T")
# Images and threads from which on processes decode for a GPU. Threads keep up with
# fewer cores, and the processes start within the time of some hundred images.
_MIN_IMAGES, _MIN_THREADS = 256, 4
# Threads for each core while a GPU decodes: they wait for it most of the time.
_WAITING_THREADS = 2


class Session(Protocol):
    """The part of `sk_cnncodes.engines.session.CodeSession` that workers need."""

    @property
    def n_concurrent_runs(self) -> int: ...

    @property
    def on_cpu(self) -> bool: ...

    def run(self, images: np.ndarray) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Batch:
    """Images that were run together.

    Attributes
    ----------
    outcomes : list of Outcome
        One for each image, in order.
    outputs : list of ndarray of float32, shape (n_good, code_length)
        Codes of the images without a fault, one array per layer. Empty if there are
        none, or if the batch was not run because of a fault.
    """

    outcomes: list[Outcome]
    outputs: list[np.ndarray]


class Workers:
    """Context manager for the threads that decode and run the images of one X.

    If the session supports as many concurrent runs as there are threads, each thread
    decodes a batch and runs it. Otherwise (a GPU, or an engine that uses all cores by
    itself) all threads decode ahead of the few threads that run batches; for many
    images and a GPU, each of them by a process of its own. Either way memory is bounded
    by a few batches, and results come in the order of the images.

    Parameters
    ----------
    elements : Elements
        Of X.
    spec : CodeSpec
        Provides the preprocessing and the views.
    n_threads : int
        With 1, everything runs in the calling thread.
    stop_at_fault : bool
        Whether to skip running a batch that contains a bad image.
    max_pixels : int or None
        An image with more pixels is a bad image. None sets no limit.
    decoding_gpu : int or None
        The GPU that decodes large JPEG files; None for Pillow alone.
    """

    def __init__(
        self,
        elements: Elements,
        spec: CodeSpec,
        n_threads: int,
        *,
        stop_at_fault: bool,
        max_pixels: int | None = MAX_PIXELS,
        decoding_gpu: int | None = None,
    ) -> None:
        if decoding_gpu is not None and n_threads > 1:
            n_threads *= _WAITING_THREADS
        self.n_threads = n_threads
        if not elements.is_stream:
            self.n_threads = min(n_threads, elements.count)
        self._elements = elements
        self._preparation = Preparation(
            spec.preprocessing,
            spec.views,
            max_pixels,
            None if decoding_gpu is None else take_on_gpu(decoding_gpu),
        )
        self._views = spec.views
        self._stop_at_fault = stop_at_fault
        self._started: DecodeProcesses | None = None
        self._processes: ResourcePool[DecodeProcess] | None = None
        self._workers = OrderedThreadPool(self.n_threads, "sk_cnncodes-worker")
        self._runners: OrderedThreadPool | None = None
        self._stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the threads; after an error they stop at the next image."""
        self._stopping = True
        for threads in (self._workers, self._runners):
            if threads is not None:
                threads.__exit__(kind, error, trace)
        if self._started is not None:
            self._started.close()

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[Any]:
        """Yield the results of a function for some positions, in order.

        Items that have no length are asked for as they are needed.
        """
        ahead = len(items) if isinstance(items, Sized) else 2 * self.n_threads
        return self._workers.in_order(function, items, ahead)

    def run(
        self, items: Iterable[tuple[int, Key]], session: Session, batch_size: int
    ) -> Iterator[Batch]:
        """Decode and run images, given by position and key; yield them in batches."""
        if session.n_concurrent_runs >= self.n_threads:
            yield from self._workers.in_order(
                lambda chunk: self.run_now(chunk, session),
                _chunks(items, batch_size),
                2 * self.n_threads,
            )
            return
        self._start_processes(session)
        size = 1 if self._processes is None else self._preparation.chunk_size
        chunks = self._workers.in_order(
            self._prepare,
            _chunks(items, size),
            2 * max(batch_size // size, self.n_threads),
        )
        prepared = chain.from_iterable(chunks)
        self._runners = OrderedThreadPool(
            session.n_concurrent_runs, "sk_cnncodes-runner"
        )
        yield from self._runners.in_order(
            lambda batch: self._forward(batch, session),
            _chunks(prepared, batch_size),
            session.n_concurrent_runs + 1,
        )

    def _start_processes(self, session: Session) -> None:
        """Start a decoding process for each thread, if a GPU would wait for them."""
        elements = self._elements
        many = elements.is_stream or elements.count >= _MIN_IMAGES
        if (
            self._started is not None
            or session.on_cpu
            or self._preparation.on_gpu is not None  # which belongs to this process
            or not (many and self.n_threads >= _MIN_THREADS)
            or not can_start_processes()
        ):
            return
        try:
            self._started = DecodeProcesses(self._preparation, self.n_threads)
        except OSError as error:
            logger.debug("threads decode: processes cannot be started (%s)", error)
            return
        self._processes = ResourcePool(self._started.members)

    def run_now(self, items: Iterable[tuple[int, Key]], session: Session) -> Batch:
        """Decode and run images as one batch in the calling thread."""
        prepared = []
        for item in items:
            ((outcome, pixels),) = self._prepare([item])
            prepared.append((outcome, pixels))
            if outcome.fault is not None and self._stop_at_fault:
                break
        return self._forward(prepared, session)

    def _prepare(self, items: Sequence[tuple[int, Key]]) -> list[Prepared]:
        """Decode images and take their views; the pixels are None of bad ones."""
        prepared: list[Prepared] = []
        tasks: list[Task] = []
        for index, key in items:
            if self._stopping:
                raise RuntimeError("stopped")  # this result is not used
            try:
                if isinstance(key, ImageError):
                    self._elements.drop(index)
                    raise key
                tasks.append((index, self._elements.take(index), key))
                prepared.append((Outcome(index, key), None))
            except ImageError as error:
                digest = None if isinstance(key, ImageError) else key
                prepared.append((Outcome(index, digest, fault=error), None))
        done = iter(self._prepare_elements(tasks))
        return [pair if pair[0].fault is not None else next(done) for pair in prepared]

    def _prepare_elements(self, tasks: list[Task]) -> list[Prepared]:
        if self._processes is not None and tasks:
            found = self._processes.use(lambda process: process.prepare(tasks))
            if found is not None:
                return found
        return [self._preparation.prepare(*task) for task in tasks]

    def _forward(
        self, prepared: list[tuple[Outcome, np.ndarray | None]], session: Session
    ) -> Batch:
        """Run decoded images as one batch, and average their views."""
        outcomes = [outcome for outcome, _ in prepared]
        good = [pixels for _, pixels in prepared if pixels is not None]
        stopped = self._stop_at_fault and len(good) < len(prepared)
        if not good or stopped or self._stopping:
            return Batch(outcomes, [])
        outputs = session.run(np.concatenate(good))
        if self._views != "center":
            n_views = VIEWS[self._views]
            outputs = [average_views(part, n_views) for part in outputs]
        return Batch(outcomes, outputs)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
