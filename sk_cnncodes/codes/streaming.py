"""Codes of a stream of images: batch by batch, in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.base.public import public
from sk_cnncodes.codes.extraction import Extraction
from sk_cnncodes.codes.workers import Key
from sk_cnncodes.images.containers import as_images

# Images after which all that were begun are finished, and their claims in the cache
# are given up: it bounds the rows that wait for one before them.
_ROUND = 8192
# Rows by which a window grows.
_ROWS = 1024


@public
@dataclass(frozen=True)
class CodeBatch:
    """Codes of some images of a stream, as `CNNCodeTransformer.iter_codes` yields.

    Attributes
    ----------
    keys : list
        One for each image.
    codes : ndarray of float32, shape (n_images, n_features)
        A row of NaN for an image that could not be read.
    errors : list of ImageError or None
        Why an image could not be read; None for all others.
    """

    keys: list[Any]
    codes: np.ndarray
    errors: list[ImageError | None]

    def __len__(self) -> int:
        return len(self.keys)


def keyed_images(source: Any) -> Iterator[tuple[Any, Any]]:
    """Yield key and image of a stream of pairs, or position and image of an X.

    Raises
    ------
    TypeError, ValueError
        At once, if it is neither.
    """
    images: Iterable[Any] = as_images(source)
    return (
        cell if _is_pair(cell) else (position, cell)
        for position, cell in enumerate(_elements(images))
    )


def _is_pair(cell: Any) -> bool:
    """Whether it is (key, image); in (path, label), an image, the label is a number."""
    return (
        isinstance(cell, tuple)
        and len(cell) == 2
        and not isinstance(cell[1], (int, np.integer))
    )


def _elements(images: Any) -> Iterator[Any]:
    if isinstance(images, Iterator):
        yield from images
        return
    for position in range(len(images)):
        yield images[position]


class _Window:
    """Rows of a stream that were begun and not yet handed over.

    `Extraction` writes to it by positions in the whole stream.
    """

    def __init__(self, length: int) -> None:
        self._rows = np.empty((0, length), np.float32)
        self._done = np.empty(0, bool)
        # Position of the first row of the arrays, and of the first that is left.
        self._origin = 0
        self.first = 0
        self.faults: dict[int, ImageError] = {}

    def __len__(self) -> int:
        return self._origin + len(self._rows)

    def grow(self, count: int) -> Any:
        """Make room for `count` rows of the stream."""
        start = self.first - self._origin
        left = self._rows[start:]
        shape = (count - self.first + max(_ROWS, len(left) // 2), left.shape[1])
        rows, done = np.full(shape, np.nan, np.float32), np.zeros(shape[0], bool)
        rows[: len(left)] = left
        done[: len(left)] = self._done[start:]
        self._rows, self._done, self._origin = rows, done, self.first
        return self

    def __getitem__(self, row: int) -> Any:
        return self._rows[row - self._origin]

    def __setitem__(self, rows: Any, codes: np.ndarray) -> None:
        places = np.asarray(rows) - self._origin
        self._rows[places] = codes
        self._done[places] = True

    def fail(self, row: int, fault: ImageError) -> None:
        """Note that an image is bad."""
        self.faults[row] = fault
        self._done[row - self._origin] = True

    def n_ready(self, most: int) -> int:
        """How many of the first rows are finished, at most `most`."""
        start = self.first - self._origin
        done = self._done[start : start + most]
        return len(done) if done.all() else int(np.argmin(done))

    def take(self, count: int) -> tuple[np.ndarray, list[ImageError | None]]:
        """Hand over the first rows."""
        start = self.first - self._origin
        codes = self._rows[start : start + count].copy()
        rows = range(self.first, self.first + count)
        faults = [self.faults.pop(row, None) for row in rows]
        self.first += count
        return codes, faults


class StreamExtraction(Extraction):
    """Computes the codes of a stream, and yields them as they are finished.

    Parameters
    ----------
    images : iterator
        Of pairs (key, image).
    outputs, specs, code_length, open_session, cache, options
        As those of `Extraction`.
    """

    def __init__(
        self,
        images: Iterator[tuple[Any, Any]],
        outputs: Any,
        specs: Any,
        code_length: int | None,
        open_session: Any,
        cache: Any,
        options: Any,
        out: None = None,
    ) -> None:
        self._keys: deque[Any] = deque()
        self._window = _Window(code_length or 0)
        make_room: Callable[[int], Any] = self._window.grow
        elements = self._without_keys(images)
        how = (open_session, cache, options, make_room)
        super().__init__(elements, outputs, specs, code_length, *how)
        self._is_over = False

    def _without_keys(self, pairs: Iterator[tuple[Any, Any]]) -> Iterator[Any]:
        for key, image in pairs:
            self._keys.append(key)
            yield image

    def batches(self, size: int) -> Iterator[CodeBatch]:
        """Yield batches of `size` images in order; the last one may be smaller.

        Raises
        ------
        ImageError
            If an image is bad and ``on_error="raise"``.
        """
        try:
            with self._bar, self._open_workers() as workers:
                look_ups = self._look_ups(workers)
                while not self._is_over:
                    for _ in self._run(self._round(look_ups), workers):
                        yield from self._finished_batches(size)
                    self._release()
                    yield from self._finished_batches(size)
        finally:
            self._release()
        if self._keys:
            yield self._take(len(self._keys))

    def _round(
        self, look_ups: Iterator[Iterator[tuple[int, Key]]]
    ) -> Iterator[tuple[int, Key]]:
        """Yield the images to compute, until all that were begun should be finished.

        After a look-up that found all codes, since its rows wait for nothing else.
        """
        start = self.count
        for missing in look_ups:
            first = next(missing, None)
            if first is not None:
                yield from chain([first], missing)
            if first is None or self.count - start >= _ROUND:
                return
        self._is_over = True

    def _finished_batches(self, size: int) -> Iterator[CodeBatch]:
        while self._window.n_ready(size) == size:
            yield self._take(size)

    def _take(self, count: int) -> CodeBatch:
        codes, faults = self._window.take(count)
        keys = [self._keys.popleft() for _ in range(count)]
        first = self._window.first
        self._finished = {d: row for d, row in self._finished.items() if row >= first}
        return CodeBatch(keys, codes, faults)

    def _record_fault(self, fault: ImageError) -> None:
        if self._options.on_error == "raise" or fault.index is None:
            raise fault
        self._window.fail(fault.index, fault)
        self._bar.advance(1)
