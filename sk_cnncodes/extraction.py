"""Images -> codes: look up, decode, batch, run, store. The one loop of the library."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sk_cnncodes.backbone import CodeSpec
from sk_cnncodes.cache import CodeCache
from sk_cnncodes.digests import Digest, ImageDigests, content_digest
from sk_cnncodes.exceptions import BackboneError, ImageError
from sk_cnncodes.images import (
    decode_content,
    describe_image,
    holds_content,
    read_content,
    read_rgb,
)
from sk_cnncodes.runtime import CodeSession

# How many bad images a warning describes; of the others it gives the positions.
_LISTED = 20
# Images that are looked up at once: many where all are found, few where other
# processes may be computing the same ones.
_LOOKED_UP = 512
_LOOKED_UP_WHILE_COMPUTING = 64

OnError = Literal["raise", "nan"]
# What an image is looked up by: nothing without a cache, or why it cannot be read.
Key = Digest | ImageError | None
# The digest it was looked up by, another one if it changed, and its pixels.
Prepared = tuple[Digest | None, Digest | None, np.ndarray | ImageError]


@dataclass(frozen=True)
class ExtractionOptions:
    """What decides how codes are computed, but not what they are.

    Attributes
    ----------
    batch_size : int
        Images in each run.
    n_threads : int
        Threads that decode.
    on_error : {"raise", "nan"}
        What a bad image does.
    verbose : bool
        Whether to show a progress bar.
    """

    batch_size: int
    n_threads: int
    on_error: OnError
    verbose: bool


class Extraction:
    """Computes the codes of the images of one X.

    Threads decode ahead of the session, by at most two batches, so that memory does
    not grow with the number of images. The session is opened when the first image is
    not in the cache, and not before.

    Parameters
    ----------
    images : sequence
        Elements as `sk_cnncodes.images.read_rgb` takes them.
    specs : list of CodeSpec
        One for each output of the session. Their preprocessing is the same.
    wanted : int
        Position of the spec whose codes are returned; the others are stored only.
    code_length : int or None
        Length of these codes; None where all specs' codes are to be stored, and none
        returned.
    open_session : callable
        Gives the `CodeSession`.
    cache : CodeCache or None
    options : ExtractionOptions
    out : ndarray of float32, shape (n_images, code_length), or None
        Where to put the codes; NaN where no row may be left out. None makes one.
    """

    def __init__(
        self,
        images: Sequence[Any],
        specs: list[CodeSpec],
        wanted: int,
        code_length: int | None,
        open_session: Callable[[], CodeSession],
        cache: CodeCache | None,
        options: ExtractionOptions,
        out: np.ndarray | None = None,
    ) -> None:
        self._images = images
        self._digests_of_specs = [spec.digest for spec in specs]
        self._preprocessing = specs[wanted].preprocessing
        self._wanted = wanted
        self._open_session = open_session
        self._cache = cache
        self._options = options
        self._only_store = code_length is None
        if out is None:
            out = np.full((len(images), code_length or 0), np.nan, np.float32)
        self._codes = out
        self._faults: list[ImageError] = []
        # Rows that wait for the code of an equal image.
        self._followers: dict[Digest, list[int]] = {}
        self._computing = False

    def run(self) -> np.ndarray:
        """The codes: row i is that of image i.

        Returns
        -------
        ndarray of float32, shape (n_images, code_length)
            Of length 0 where codes are only stored.

        Raises
        ------
        ImageError
            At a bad image with ``on_error="raise"``.
        """
        with ExitStack() as stack:
            threads = self._options.n_threads
            pool = None
            if threads > 1 and len(self._images) > 1:
                pool = ThreadPoolExecutor(threads, "sk_cnncodes-decode")
                stack.callback(pool.shutdown, cancel_futures=True)
            self._advance = stack.enter_context(
                _progress_bar(len(self._images), self._options.verbose)
            )
            self._compute(self._missing(pool), pool)
        if self._faults:
            _warn_of(sorted(self._faults, key=_position), len(self._images))
        return self._codes

    # -- look up -------------------------------------------------------------

    def _missing(self, pool: ThreadPoolExecutor | None) -> Iterator[tuple[int, Key]]:
        """Fill rows from the cache; give the images that it does not have.

        Images that cannot be read are given too, so that the first fault is that of
        the first bad image.
        """
        count = len(self._images)
        if self._cache is None:
            yield from ((index, None) for index in range(count))
            return
        digests = ImageDigests(self._images, self._cache, pool.map if pool else map)
        for chunk in self._chunks(count):
            keys = digests.many(chunk)
            readable = [key for key in keys if isinstance(key, bytes)]
            found = dict(zip(readable, self._look_up(readable), strict=True))
            for index, digest in zip(chunk, keys, strict=True):
                if isinstance(digest, ImageError):
                    yield index, digest
                elif (code := found[digest]) is not None:
                    self._codes[index] = code
                    self._advance(1)
                elif digest in self._followers:
                    self._followers[digest].append(index)
                else:
                    self._followers[digest] = []
                    yield index, digest

    def _look_up(self, digests: list[Digest]) -> list[np.ndarray | None]:
        """Cached codes of the wanted spec; of length 0 where they are only stored."""
        assert self._cache is not None
        if not self._only_store:
            spec = self._digests_of_specs[self._wanted]
            return self._cache.get_many(spec, digests)
        specs = self._digests_of_specs
        found = [self._cache.get_many(spec, digests) for spec in specs]
        empty = np.empty(0, np.float32)
        return [
            None if any(code is None for code in codes) else empty
            for codes in zip(*found, strict=True)
        ]

    def _chunks(self, count: int) -> Iterator[list[int]]:
        """Positions in parts; beside other workers, the parts in an order of its own.

        Workers that need the same images then seldom compute the same ones: what one
        has stored, the others find.
        """
        size = _LOOKED_UP_WHILE_COMPUTING
        starts = list(range(0, count, size))
        if _is_one_of_several_workers():
            random.Random(f"{os.getpid()} {threading.get_ident()}").shuffle(starts)
            yield from (list(range(s, min(s + size, count))) for s in starts)
            return
        start = 0
        while start < count:
            step = size if self._computing else _LOOKED_UP
            yield list(range(start, min(start + step, count)))
            start += step

    # -- compute -------------------------------------------------------------

    def _compute(
        self,
        missing: Iterable[tuple[int, Key]],
        pool: ThreadPoolExecutor | None,
    ) -> None:
        """Decode, run and store images."""
        size = min(self._options.batch_size, len(self._images))
        batch = np.empty((size, *self._preprocessing.crop_size, 3), np.uint8)
        rows: list[tuple[int, Digest | None]] = []

        def flush() -> None:
            if rows:
                outputs = self._open_session().run(batch[: len(rows)])
                self._store(outputs, rows)
                rows.clear()

        for index, (digest, changed, pixels) in _read_ahead(
            self._prepare, missing, pool, 2 * size
        ):
            self._computing = True
            if isinstance(pixels, ImageError):
                self._note_fault(pixels)
                self._release_followers(digest)
                continue
            if changed:
                self._release_followers(digest)
                digest = changed
            batch[len(rows)] = pixels
            rows.append((index, digest))
            if len(rows) == size:
                flush()
        flush()

    def _prepare(self, index: int, key: Key) -> Prepared:
        """Pixels of an image; and its digest, if that is no longer the given one."""
        if isinstance(key, ImageError):
            return None, None, key
        image, digest, changed = self._images[index], key, None
        try:
            if digest is not None and holds_content(image):
                # The code must be stored under the digest of what is decoded here,
                # whatever happened to the file since it was looked up.
                content = read_content(image, index)
                now = content_digest(content)
                changed = now if now != digest else None
                rgb = decode_content(content, image, index)
            else:
                rgb = read_rgb(image, index)
            return digest, changed, self._preprocessing.apply(rgb)
        except ImageError as error:
            return digest, changed, error

    def _store(
        self, outputs: list[np.ndarray], rows: list[tuple[int, Digest | None]]
    ) -> None:
        """Write codes to their rows, and to the cache."""
        indices = [index for index, _ in rows]
        for part in outputs:
            _check_finite(part, indices, self._images)
        for (index, digest), code in zip(rows, outputs[self._wanted], strict=True):
            same = self._followers.pop(digest, []) if digest else []
            if not self._only_store:
                self._codes[[index, *same]] = code
            self._advance(1 + len(same))
        kept = [place for place, (_, digest) in enumerate(rows) if digest]
        if self._cache is not None and kept:
            keys = [digest for _, digest in rows if digest]
            self._cache.put_many(
                (spec, keys, part[kept])
                for spec, part in zip(self._digests_of_specs, outputs, strict=True)
            )

    # -- faults --------------------------------------------------------------

    def _note_fault(self, fault: ImageError) -> None:
        if self._options.on_error == "raise":
            raise fault
        self._faults.append(fault)
        self._advance(1)

    def _release_followers(self, digest: Digest | None) -> None:
        """Compute rows alone whose equal image turned out bad, or changed."""
        for follower in self._followers.pop(digest, []) if digest else []:
            _, _, pixels = self._prepare(follower, digest)
            if isinstance(pixels, ImageError):
                self._note_fault(pixels)
                continue
            outputs = self._open_session().run(pixels[None])
            self._store(outputs, [(follower, None)])


def _position(fault: ImageError) -> int:
    return -1 if fault.index is None else fault.index


def _is_one_of_several_workers() -> bool:
    """Whether joblib or another pool runs this beside others of its kind."""
    in_child = multiprocessing.parent_process() is not None
    return in_child or threading.current_thread() is not threading.main_thread()


def _read_ahead(
    prepare: Callable[[int, Key], Prepared],
    missing: Iterable[tuple[int, Key]],
    pool: ThreadPoolExecutor | None,
    ahead: int,
) -> Iterator[tuple[int, Prepared]]:
    """Results of `prepare` in order, computed by threads up to `ahead` in advance."""
    if pool is None:
        yield from ((index, prepare(index, key)) for index, key in missing)
        return
    waiting: deque[tuple[int, Future[Prepared]]] = deque()
    for index, key in missing:
        waiting.append((index, pool.submit(prepare, index, key)))
        if len(waiting) == ahead:
            done, future = waiting.popleft()
            yield done, future.result()
    for done, future in waiting:
        yield done, future.result()


class _progress_bar:
    """Context of a function that moves a progress bar, if there is one."""

    def __init__(self, count: int, verbose: bool) -> None:
        self._bar = None
        if verbose:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=count, unit="image", desc="CNN codes")

    def __enter__(self) -> Callable[[int], object]:
        return self._bar.update if self._bar is not None else (lambda count: None)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


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
        stacklevel=5,
    )
