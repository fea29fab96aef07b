"""Extraction: the loop that looks up, decodes, runs and stores images in batches."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from sk_cnncodes.backbones.norms import side_by_side
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.exceptions import BackboneError, ImageError
from sk_cnncodes.base.logs import logger
from sk_cnncodes.base.progress import OptionalBar
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.cache.file_store import Owner
from sk_cnncodes.cache.memory_store import new_owner
from sk_cnncodes.codes.digests import Digest, ImageDigests
from sk_cnncodes.codes.elements import Elements
from sk_cnncodes.codes.workers import Batch, Key, Workers
from sk_cnncodes.engines.session import CodeSession
from sk_cnncodes.images.safe_open import MAX_PIXELS
from sk_cnncodes.images.views import VIEWS

# Number of bad images described in a warning; only the positions of others are listed.
_MAX_DESCRIBED = 20
# Images looked up at once.
_LOOKUP_SIZE = 512
# Images of an iterator, for the choice of the batch size.
_MANY = 2**20
# Images claimed at once: few, since other processes may need the same ones.
_CLAIM_SIZE = 64
# Seconds between two looks at images that another process computes.
_POLL_SECONDS = 0.05
# Finished images of one X that are remembered, to find their duplicates.
_MAX_FINISHED = 2**17
# Codes stored in the cache at once; each time, a file commits a transaction.
_STORE_SIZE = 16

OnError = Literal["raise", "nan"]


@dataclass(frozen=True)
class ExtractionOptions:
    """Options that affect how codes are computed, but not their values.

    Attributes
    ----------
    batch_size : int or None
        Images per run. None lets the session choose.
    n_threads : int
        Total number of threads.
    on_error : {"raise", "nan"}
        What to do about a bad image.
    verbose : bool
        Whether to show a progress bar.
    show : callable or None
        Is called with the share of the images that are done, from 0 to 1.
    max_pixels : int or None
        An image with more pixels is a bad image. None sets no limit.
    decoding_gpu : int or None
        The GPU that decodes large JPEG files; None for Pillow alone.
    """

    batch_size: int | None
    n_threads: int
    on_error: OnError
    verbose: bool
    show: Callable[[float], None] | None = None
    max_pixels: int | None = MAX_PIXELS
    decoding_gpu: int | None = None


class Extraction:
    """Computes the codes of the images of one X, each different image once.

    `Workers` decode and run the images that are not in the cache; everything else
    happens in the thread that calls `run`. Rows are written in two places, both in
    that thread: `_missing_of` writes those found in the cache while it passes the
    others to the workers, and `_store` writes those that the workers return. The
    session is opened only when the first image is missing from the cache.

    Images are claimed in the cache before they are computed. Those that another process
    or thread has claimed are left until the end, and then looked up again.

    Parameters
    ----------
    images : sequence or iterator
        Elements of X. The number of those of an iterator need not be known.
    outputs : list of CodeSpec
        One for each output of the session, without norm. They differ in layer and
        pooling only.
    specs : list of CodeSpec
        Of the codes that are returned, side by side; without their norm, each is one of
        the outputs. The others are only stored.
    code_length : int or None
        Length of the returned codes. None stores the codes of all specs and returns
        none.
    open_session : callable
        Returns the `CodeSession`: with True, one that uses all threads in each run,
        for fewer images than threads; with False, the one with the highest throughput.
    cache : CodeCache or None
    options : ExtractionOptions
    out : ndarray of float32, shape (n_images, code_length), callable or None
        Array that receives the codes. Rows of bad images are not written. None
        creates an array of NaN. For an iterator, a function that returns the array
        with at least as many rows as it is called with, or None to store only.
    """

    def __init__(
        self,
        images: Sequence[Any] | Iterator[Any],
        outputs: list[CodeSpec],
        specs: list[CodeSpec],
        code_length: int | None,
        open_session: Callable[[bool], CodeSession],
        cache: CodeCache | None,
        options: ExtractionOptions,
        out: np.ndarray | Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self._elements = Elements(images)
        self._spec_digests = [output.digest for output in outputs]
        self._spec = specs[0]  # they differ in layer and pooling only
        self._wanted = [outputs.index(spec.without_norm) for spec in specs]
        self._open_session = open_session
        self._session: CodeSession | None = None
        self._cache = cache
        # Made by the first claim: a transform that finds all codes writes nothing.
        self._claims: Owner | None = None
        self._options = options
        self._only_store = code_length is None
        self._make_room = out if callable(out) else None
        if out is None or callable(out):
            n_rows = self._elements.count
            out = np.full((n_rows, code_length or 0), np.nan, np.float32)
        self._codes = out
        self._faults: list[ImageError] = []
        # Rows waiting for the code of an equal image, by its digest.
        self._followers: dict[Digest, list[int]] = {}
        # Rows of finished images, by their digests.
        self._finished: dict[Digest, int] = {}
        # Images that another process or thread computes.
        self._deferred: list[tuple[int, Digest | ImageError]] = []
        self._unstored: list[tuple[Digest, list[np.ndarray]]] = []
        total = None if self._elements.is_stream else self._elements.count
        self._bar = OptionalBar(
            options.verbose,
            total=total,
            show=options.show,
            unit="image",
            desc="CNN codes",
        )
        self._n_cached = 0
        self.n_computed = 0

    def run(self) -> np.ndarray:
        """Compute the codes.

        Returns
        -------
        ndarray of float32, shape (n_images, code_length)
            Row i is the code of image i. Rows have length 0 if codes are only stored.

        Raises
        ------
        ImageError
            If an image is bad and ``on_error="raise"``.
        """
        with self._bar, self._open_workers() as workers:
            self._compute(workers)
        logger.debug(
            "%d images: %d codes from the cache, %d bad images",
            self._elements.count,
            self._n_cached,
            len(self._faults),
        )
        if self._faults:
            _warn_of_faults(sorted(self._faults, key=_position), self._elements.count)
        return self._codes

    def _open_workers(self) -> Workers:
        options = self._options
        return Workers(
            self._elements,
            self._spec,
            options.n_threads,
            stop_at_fault=options.on_error == "raise",
            max_pixels=options.max_pixels,
            decoding_gpu=options.decoding_gpu,
        )

    def _compute(self, workers: Workers) -> None:
        """Compute what is not in the cache, and wait for what others compute."""
        try:
            deque(self._run(chain.from_iterable(self._look_ups(workers)), workers), 0)
            while self._deferred:
                # Others wait for what was claimed here, if the cache did not keep it.
                self._release()
                waiting, self._deferred = self._deferred, []
                before = len(waiting)
                deque(self._run(self._missing_of(waiting), workers), 0)
                if len(self._deferred) == before:
                    time.sleep(_POLL_SECONDS)
        finally:
            self._release()

    def _release(self) -> None:
        """Give up the claims of this extraction."""
        if self._cache is not None and self._claims is not None:
            self._cache.release(self._claims)
            self._claims = None

    def _run(
        self, missing: Iterator[tuple[int, Key]], workers: Workers
    ) -> Iterator[None]:
        """Decode, run and store images; yield after each batch."""
        # With fewer images than threads, all threads share each run.
        first = list(islice(missing, workers.n_threads))
        if not first:
            return
        session = self._open_session(len(first) < self._options.n_threads)
        self._session = session
        size = self._options.batch_size
        if size is None:
            total = _MANY if self._elements.is_stream else self._elements.count
            size = session.choose_batch_size(total)
        size = max(1, size // VIEWS[self._spec.views])
        logger.debug("batches of %d images on %s", size, session.provider)
        try:
            for batch in workers.run(chain(first, missing), session, size):
                self._finish(batch, workers, session)
                yield
        finally:
            self._flush()

    # -- look up -------------------------------------------------------------

    def _look_ups(self, workers: Workers) -> Iterator[Iterator[tuple[int, Key]]]:
        """Write the rows found in the cache; yield index and key of all other images.

        In chunks that are looked up together. Unreadable images are yielded too, so
        that the first fault reported is that of the first bad image.
        """
        elements = self._elements
        if self._cache is None:
            yield self._draw()
            return
        limit, color = self._options.max_pixels, self._spec.preprocessing.color
        digests = ImageDigests(elements, self._cache, workers.map, limit, color)
        for chunk in elements.chunks(_LOOKUP_SIZE, workers.map):
            self._grow(chunk[-1] + 1)
            self._flush()
            yield self._missing_of(list(zip(chunk, digests.many(chunk), strict=True)))

    def _draw(self) -> Iterator[tuple[int, Key]]:
        for index in self._elements.draw():
            self._grow(index + 1)
            yield index, None

    def _grow(self, count: int) -> None:
        """Make room for the rows of an iterator's images."""
        if self._make_room is not None and len(self._codes) < count:
            self._codes = self._make_room(count)

    def _missing_of(
        self, keyed: list[tuple[int, Digest | ImageError]]
    ) -> Iterator[tuple[int, Key]]:
        """Write the rows found in the cache; yield the images to be computed here."""
        missing = self._write_found(keyed)
        for start in range(0, len(missing), _CLAIM_SIZE):
            group = missing[start : start + _CLAIM_SIZE]
            if start > 0:
                self._flush()
            claimed = self._claim(group)
            # Others have stored what they had claimed before they give it up.
            group = self._write_found(group, again=True)
            for index, digest in group:
                if isinstance(digest, ImageError):
                    yield index, digest
                elif digest in self._followers:
                    self._followers[digest].append(index)
                elif digest in self._finished:
                    if not self._only_store:
                        self._codes[index] = self._codes[self._finished[digest]]
                    self._elements.drop(index)
                    self._bar.advance(1)
                elif digest in claimed or self._elements.is_stream:
                    # The elements of a generator cannot be left until the end.
                    self._followers[digest] = []
                    yield index, digest
                else:
                    self._elements.drop(index)
                    self._deferred.append((index, digest))

    def _write_found(
        self, keyed: list[tuple[int, Digest | ImageError]], *, again: bool = False
    ) -> list[tuple[int, Digest | ImageError]]:
        """Write the rows found in the cache; return the other images."""
        readable = [key for _, key in keyed if isinstance(key, bytes)]
        found = dict(zip(readable, self._look_up(readable, again), strict=True))
        missing, rows, codes = [], [], []
        for index, digest in keyed:
            code = None if isinstance(digest, ImageError) else found[digest]
            if code is None:
                missing.append((index, digest))
            else:
                rows.append(index)
                codes.append(code)
                self._elements.drop(index)
        if rows and not self._only_store:
            parts = [np.stack(part) for part in zip(*codes, strict=True)]
            self._codes[rows] = side_by_side(parts, self._spec.norm)
        self._n_cached += len(rows)
        self._bar.advance(len(rows))
        return missing

    def _claim(self, group: list[tuple[int, Digest | ImageError]]) -> set[Digest]:
        """The images of a group that are to be computed here."""
        assert self._cache is not None
        new = [key for _, key in group if isinstance(key, bytes)]
        # Candidates that share their passes have the first output in common.
        images = list(dict.fromkeys(new))
        self._claims = self._claims or new_owner()
        return self._cache.claim(self._spec_digests[0], images, self._claims)

    def _look_up(
        self, digests: list[Digest], again: bool
    ) -> list[tuple[np.ndarray, ...] | None]:
        """Cached codes of the wanted specs; of all outputs if codes are only stored."""
        assert self._cache is not None
        specs = self._spec_digests
        if not self._only_store:
            specs = [specs[number] for number in self._wanted]
        found = [
            self._cache.get_many(spec, digests, counted=not again) for spec in specs
        ]
        return [
            None if any(code is None for code in codes) else codes
            for codes in zip(*found, strict=True)
        ]

    # -- write and store -----------------------------------------------------

    def _finish(self, batch: Batch, workers: Workers, session: CodeSession) -> None:
        """Write the codes of a batch to their rows, and record its bad images."""
        rows: list[tuple[int, Digest | None]] = []
        for outcome in batch.outcomes:
            if outcome.fault is not None:
                self._record_fault(outcome.fault)
                self._run_followers(outcome.digest, workers, session)
                continue
            if outcome.changed is not None:
                self._run_followers(outcome.digest, workers, session)
            rows.append((outcome.index, outcome.changed or outcome.digest))
        if rows:
            self._store(batch.outputs, rows)

    def _store(
        self, outputs: list[np.ndarray], rows: list[tuple[int, Digest | None]]
    ) -> None:
        """Write codes to their rows, and queue them for the cache."""
        indices = [index for index, _ in rows]
        for part in outputs:
            _check_finite(part, indices, self._elements)
        wanted = [outputs[number] for number in self._wanted]
        codes = side_by_side(wanted, self._spec.norm)
        self.n_computed += len(rows)
        for position, (index, digest) in enumerate(rows):
            followers = self._followers.pop(digest, []) if digest else []
            if not self._only_store:
                self._codes[[index, *followers]] = codes[position]
            for follower in followers:
                self._elements.drop(follower)
            self._bar.advance(1 + len(followers))
            if digest:
                if len(self._finished) < _MAX_FINISHED:
                    self._finished[digest] = index
                self._unstored.append((digest, [part[position] for part in outputs]))
        if len(self._unstored) >= _STORE_SIZE:
            self._flush()

    def _flush(self) -> None:
        """Store the queued codes in the cache."""
        if self._cache is not None and self._unstored:
            digests = [digest for digest, _ in self._unstored]
            layers = zip(*(codes for _, codes in self._unstored), strict=True)
            self._cache.put_many(
                (spec, digests, np.stack(layer))
                for spec, layer in zip(self._spec_digests, layers, strict=True)
            )
        self._unstored.clear()

    @property
    def count(self) -> int:
        """Number of images; of an iterator, of those that were taken from it."""
        return self._elements.count

    # -- faults --------------------------------------------------------------

    def _record_fault(self, fault: ImageError) -> None:
        """Raise a fault, or keep it for the warning."""
        if self._options.on_error == "raise":
            raise fault
        self._faults.append(fault)
        self._bar.advance(1)

    def _run_followers(
        self, digest: Digest | None, workers: Workers, session: CodeSession
    ) -> None:
        """Compute rows individually if their equal image was bad or has changed."""
        for follower in self._followers.pop(digest, []) if digest else []:
            batch = workers.run_now([(follower, digest)], session)
            fault = batch.outcomes[0].fault
            if fault is not None:
                self._record_fault(fault)
            else:
                self._store(batch.outputs, [(follower, None)])


def _position(fault: ImageError) -> int:
    return -1 if fault.index is None else fault.index


def _check_finite(part: np.ndarray, rows: list[int], elements: Elements) -> None:
    """Raise a `BackboneError` that names the first image whose code is not finite."""
    good = np.isfinite(part).all(axis=1)
    if not good.all():
        index = rows[int(np.argmin(good))]
        raise BackboneError(
            f"{elements.describe(index)}: the backbone computed a code "
            "that is not finite. Expected finite numbers. Half-precision files can "
            "overflow, and wrong preprocessing can cause this too."
        )


def _warn_of_faults(faults: list[ImageError], count: int) -> None:
    described = "\n".join(f"- {fault}" for fault in faults[:_MAX_DESCRIBED])
    others = ", ".join(str(fault.index) for fault in faults[_MAX_DESCRIBED:])
    more = f"\n- and images {others}" if others else ""
    warnings.warn(
        f"{len(faults)} of {count} images could not be read; their codes are NaN:\n"
        f"{described}{more}",
        UserWarning,
        stacklevel=5,
    )
