"""Workers: threads that decode images and run them in batches; results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.base.threads import OrderedThreadPool
from sk_cnncodes.codes.digests import Digest, content_digest, pixel_digest
from sk_cnncodes.images.decode import decode_content, read_rgb
from sk_cnncodes.images.safe_open import MAX_PIXELS
from sk_cnncodes.images.sources import holds_content, read_content
from sk_cnncodes.images.views import VIEWS, average_views, take_views

# What an image is looked up by: nothing without a cache, or why it cannot be read.
Key = Digest | ImageError | None
T = TypeVar("T")


class Session(Protocol):
    """What workers need of a session; `sk_cnncodes.engines.session` has them."""

    @property
    def n_concurrent_runs(self) -> int: ...

    def run(self, images: np.ndarray) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Outcome:
    """What became of an image.

    Attributes
    ----------
    index : int
        Its position.
    digest : bytes or None
        What it was looked up by.
    changed : bytes or None
        Its digest now, if that is another one.
    fault : ImageError or None
        Why it has no code.
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
        Of all its images, in their order.
    outputs : list of ndarray of float32, shape (n_good, d)
        Codes of those without a fault, one array for each layer; empty where there
        are none, or where the batch was not run because of a fault.
    """

    outcomes: list[Outcome]
    outputs: list[np.ndarray]


class Workers:
    """Threads that decode the images of one X and run them; a context.

    Where a session can be called by as many threads as there are, each thread
    decodes a batch and runs it. Where it cannot (a GPU, or an engine that uses all
    cores by itself), all threads decode ahead of its few callers. Either way memory
    is bounded by a few batches, and results come in the order of the images.

    Parameters
    ----------
    images : sequence
        Elements as `sk_cnncodes.images.decode.read_rgb` takes them.
    spec : CodeSpec
        Its preprocessing, views and norm are used.
    n_threads : int
        With 1, everything is done by the thread that asks.
    stop_at_fault : bool
        Whether a batch with a bad image need not be run.
    max_pixels : int or None
        An image with more pixels is a bad image.
    """

    def __init__(
        self,
        images: Sequence[Any],
        spec: CodeSpec,
        n_threads: int,
        *,
        stop_at_fault: bool,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.n_threads = min(n_threads, len(images))
        self._images = images
        self._preprocessing = spec.preprocessing
        self._views, self._norm = spec.views, spec.norm
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
        """Wait for the threads; after an error they end at the next image."""
        self._stopping = True
        for threads in (self._workers, self._runners):
            if threads is not None:
                threads.__exit__(kind, error, trace)

    def map(
        self, function: Callable[[int], Any], indices: Sequence[int]
    ) -> Iterator[Any]:
        """What a function gives for each of some positions, in their order."""
        return self._workers.in_order(function, indices, len(indices))

    def run(
        self, items: Iterable[tuple[int, Key]], session: Session, batch_size: int
    ) -> Iterator[Batch]:
        """Decode and run images, given by position and key, in batches."""
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
        """Decode images and run them in this thread, as one batch."""
        prepared = []
        for index, key in items:
            outcome, pixels = self._prepare(index, key)
            prepared.append((outcome, pixels))
            if outcome.fault is not None and self._stop_at_fault:
                break
        return self._forward(prepared, session)

    def _prepare(self, index: int, key: Key) -> tuple[Outcome, np.ndarray | None]:
        """Decode and resize an image."""
        if self._stopping:
            raise RuntimeError("stopped")  # nobody waits for this result
        if isinstance(key, ImageError):
            return Outcome(index, fault=key), None
        image, digest, changed = self._images[index], key, None
        limit, min_decode_size = self._max_pixels, self._preprocessing.min_decode_size
        try:
            if digest is not None and holds_content(image):
                # The code must be stored under the digest of what is decoded here,
                # whatever happened to the file since it was looked up.
                content = read_content(image, index)
                now = content_digest(content)
                changed = now if now != digest else None
                rgb = decode_content(content, image, index, limit, min_decode_size).rgb
            else:
                if isinstance(image, np.ndarray) and digest is not None:
                    image = image.copy()  # its owner may fill it again meanwhile
                rgb = read_rgb(image, index, limit, min_decode_size)
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
        outcomes = [outcome for outcome, _ in prepared]
        good = [pixels for _, pixels in prepared if pixels is not None]
        stopped = self._stop_at_fault and len(good) < len(prepared)
        if not good or stopped or self._stopping:
            return Batch(outcomes, [])
        outputs = session.run(np.concatenate(good))
        if self._views != "center":
            n_views = VIEWS[self._views]
            outputs = [average_views(part, n_views, self._norm) for part in outputs]
        return Batch(outcomes, outputs)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
