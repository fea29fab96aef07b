"""Elements: the images of one X, each fetched once, and held until it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sk_cnncodes.base.exceptions import ImageError, is_scarcity
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.images.containers import as_element, fetch_element
from sk_cnncodes.images.sources import (
    FileContent,
    describe_image,
    reason_of,
)

# Bytes of elements that are fetched for one look-up. Elements of a lazy sequence beyond
# twice as many are not held, but fetched again.
_CHUNK_BYTES = 2**27
# Bytes of an element that is a path or an open file.
_SMALL = 256


class Elements:
    """The images of one X, each fetched once, and held until it is decoded.

    Elements of lists and arrays in memory are not held, unless they were read from the
    file of another library. Those of other sequences are fetched in chunks, which the
    cache is asked for, and released when they are decoded or not needed. A generator's
    are always held until then.

    Parameters
    ----------
    images : sequence or iterator
    """

    def __init__(self, images: Sequence[Any] | Iterator[Any]) -> None:
        self.is_stream = isinstance(images, Iterator)
        self._images: Any = images
        self._in_memory = isinstance(images, (list, tuple, np.ndarray))
        # Number of images; of a generator, of those drawn so far.
        self.count: int = 0 if isinstance(images, Iterator) else len(images)
        self._held: dict[int, Any] = {}
        self._n_bytes = 0
        self._lock = fork_safe_lock()

    def chunks(
        self, size: int, run: Callable[..., Iterable[Any]]
    ) -> Iterator[Sequence[int]]:
        """Yield all positions in order, in chunks whose elements fit in memory.

        Parameters
        ----------
        size : int
            Largest length of a chunk.
        run : callable
            Maps a function over an iterable in threads, in order.
        """
        start = 0
        while start < self.count or self.is_stream:
            stop = start + size if self.is_stream else min(start + size, self.count)
            if not self._in_memory:
                stop = self._load(start, stop, run)
            if stop == start:
                return
            yield range(start, stop)
            start = stop

    def _load(self, start: int, stop: int, run: Callable[..., Iterable[Any]]) -> int:
        """Fetch and hold elements, and return the position after the last one."""
        loaded = 0

        def wanted() -> Iterator[tuple[int, Any]]:
            for index in range(start, stop):
                if loaded > _CHUNK_BYTES:
                    return
                if not self.is_stream:
                    yield index, None
                elif (cells := self._next()) is not None:
                    yield index, cells[0]
                else:
                    return

        def fetch(item: tuple[int, Any]) -> Any:
            index, cell = item
            try:
                if self.is_stream:
                    return as_element(cell, index)
                return fetch_element(self._images, index)
            except ImageError as error:
                return error

        index = start
        for element in run(fetch, wanted()):
            loaded += _size(element)
            self._hold(index, element)
            index += 1
        return index

    def draw(self) -> Iterator[int]:
        """Yield all positions in order; elements of a generator are held."""
        if not self.is_stream:
            yield from range(self.count)
            return
        while (cells := self._next()) is not None:
            self._hold(self.count - 1, cells[0])
            yield self.count - 1

    def _next(self) -> list[Any] | None:
        """The next element of a generator in a list; None at its end."""
        try:
            cell = next(self._images)
        except StopIteration:
            return None
        except Exception as error:
            name = f"image {self.count}"
            if isinstance(error, ImageError) or is_scarcity(error, name):
                raise
            reason = reason_of(error)
            raise ImageError(
                f"{name}: the generator X failed ({reason}).", self.count
            ) from error
        self.count += 1
        return [cell]

    def peek(self, index: int) -> Any:
        """An element, or what it will be read from if that is in memory.

        Raises
        ------
        ImageError
            If it cannot be fetched.
        """
        if not self._in_memory:
            return self.fetch(index)
        cell = self._images[index]
        return as_element(cell, index) if isinstance(cell, tuple) else cell

    def fetch(self, index: int) -> Any:
        """An element, which is held for `take`.

        Raises
        ------
        ImageError
            If it cannot be fetched.
        """
        found = self._held.get(index, self)
        if found is self:
            found = fetch_element(self._images, index)
            if not self._in_memory or isinstance(found, FileContent):
                self._hold(index, found)
        if isinstance(found, ImageError):
            raise found
        return found

    def take(self, index: int) -> Any:
        """An element, which is no longer held.

        Raises
        ------
        ImageError
            If it cannot be fetched.
        """
        found = self.drop(index)
        if found is self:
            return fetch_element(self._images, index)
        if isinstance(found, ImageError):
            raise found
        return as_element(found, index)

    def drop(self, index: int) -> Any:
        """Release an element that is not needed; itself if it was not held."""
        if not self._held:
            return self
        with self._lock:
            found = self._held.pop(index, self)
            if found is not self:
                self._n_bytes -= _size(found)
        return found

    def _hold(self, index: int, element: Any) -> None:
        size = _size(element)
        with self._lock:
            if self._n_bytes + size <= 2 * _CHUNK_BYTES or self.is_stream:
                self._held[index] = element
                self._n_bytes += size

    def describe(self, index: int) -> str:
        """Name of an image for messages."""
        try:
            return describe_image(self.fetch(index), index)
        except ImageError:
            return f"image {index}"


def _size(element: Any) -> int:
    """About how many bytes an element takes."""
    if isinstance(element, FileContent):
        return len(element.content) + _SMALL
    if isinstance(element, (bytes, bytearray)):
        return len(element) + _SMALL
    if isinstance(element, Image.Image):
        # Decoded by the look-up, if it is not yet.
        return 4 * element.width * element.height + _SMALL
    return int(getattr(element, "nbytes", 0)) + _SMALL
