"""Workers: threads that decode images and run them in batches; results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.base.threads import OrderedThreadPool
from sk_cnncodes.codes.digests import Digest, content_digest, pixel_digest
from sk_cnncodes.codes.elements import Elements
from sk_cnncodes.images.decode import decode_content, read_rgb
from sk_cnncodes.images.safe_open import MAX_PIXELS
from sk_cnncodes.images.sources import holds_content, read_content
from sk_cnncodes.images.views import VIEWS, average_views, take_views

# Cache key of an image: None without a cache; the error if it cannot be read.
Key = Digest | ImageError | None
T = TypeVar("T")


class Session(Protocol):
    """The part of `sk_cnncodes.engines.session.CodeSession` that workers need."""

    @property
    def n_concurrent_runs(self) -> int: ...

    def run(self, images: np.ndarray) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Outcome:
    """Result of decoding an image.

    Attributes
    ----------
    index : int
        Position of the image.
    digest : bytes or None
        Digest by which it was looked up.
    changed : bytes or None
        Current digest, if it differs from `digest`.
    fault : ImageError or None
        Why the image cannot be decoded.
    """

    index: int
    digest: Digest | None = None
    changed: Digest | None = None
    fault: ImageError | None = None


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
    itself) all threads decode ahead of the few threads that run batches. Either way
    memory is bounded by a few batches, and results come in the order of the images.

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
    """

    def __init__(
        self,
        elements: Elements,
        spec: CodeSpec,
        n_threads: int,
        *,
        stop_at_fault: bool,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.n_threads = n_threads
        if not elements.is_stream:
            self.n_threads = min(n_threads, elements.count)
        self._elements = elements
        self._preprocessing = spec.preprocessing
        self._views = spec.views
        self._stop_at_fault = stop_at_fault
        self._max_pixels = max_pixels
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
        prepared = self._workers.in_order(
            lambda item: self._prepare(*item), items, 2 * batch_size
        )
        self._runners = OrderedThreadPool(
            session.n_concurrent_runs, "sk_cnncodes-runner"
        )
        yield from self._runners.in_order(
            lambda batch: self._forward(batch, session),
            _chunks(prepared, batch_size),
            session.n_concurrent_runs + 1,
        )

    def run_now(self, items: Iterable[tuple[int, Key]], session: Session) -> Batch:
        """Decode and run images as one batch in the calling thread."""
        prepared = []
        for index, key in items:
            outcome, pixels = self._prepare(index, key)
            prepared.append((outcome, pixels))
            if outcome.fault is not None and self._stop_at_fault:
                break
        return self._forward(prepared, session)

    def _prepare(self, index: int, key: Key) -> tuple[Outcome, np.ndarray | None]:
        """Decode an image and take its views; the pixels are None if it is bad."""
        if self._stopping:
            raise RuntimeError("stopped")  # this result is not used
        if isinstance(key, ImageError):
            self._elements.drop(index)
            return Outcome(index, fault=key), None
        digest, changed = key, None
        how = (
            self._max_pixels,
            self._preprocessing.min_decode_size,
            self._preprocessing.color,
        )
        try:
            image = self._elements.take(index)
            if digest is not None and holds_content(image):
                # The code must be stored under the digest of the content decoded
                # here: the file may have changed since the look-up.
                content = read_content(image, index)
                now = content_digest(content)
                changed = now if now != digest else None
                rgb = decode_content(content, image, index, *how).rgb
            else:
                if isinstance(image, np.ndarray) and digest is not None:
                    image = image.copy()  # the caller may overwrite it meanwhile
                rgb = read_rgb(image, index, *how)
                if digest is not None:
                    now = pixel_digest(image, rgb)
                    changed = now if now != digest else None
            pixels = take_views(rgb, self._preprocessing, self._views)
        except ImageError as error:
            return Outcome(index, digest, changed, error), None
        return Outcome(index, digest, changed), pixels

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
