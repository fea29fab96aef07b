"""Prepare images: from an element of X to its digest and the pixels of its views.

Python runs one thread at a time between the steps of a decoder. From about eight
threads on, that bounds the images a second, and a GPU waits. `DecodeProcess` is a
process that prepares images for one thread, which waits for it.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PosixPath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.base.logs import logger
from sk_cnncodes.codes.digests import Digest, content_digest, pixel_digest
from sk_cnncodes.images.decode import (
    MinDecodeSize,
    PlainJpeg,
    decode_content,
    plain_jpeg,
    read_rgb,
)
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.sources import holds_content, read_content
from sk_cnncodes.images.views import VIEWS, take_views

# Images that a process prepares at once, and the bytes of their pixels.
_CHUNK_SIZE, _CHUNK_BYTES = 8, 2**24
# Elements that cost little to send.
_SENT = (str, np.str_, bytes, PosixPath)
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from sk_cnncodes.codes.preparation import serve; serve(int(sys.argv[2]))"
)


@dataclass(frozen=True)
class Outcome:
    """Result of preparing an image.

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


Prepared = tuple[Outcome, np.ndarray | None]
# Views of a file; None if it must be decoded here.
TakeViews = Callable[[PlainJpeg, Preprocessing, str], np.ndarray | None]
# Position, element, and the digest by which it was looked up.
Task = tuple[int, Any, Digest | None]


@dataclass(frozen=True)
class Preparation:
    """How images are decoded, resized and cropped.

    Attributes
    ----------
    preprocessing : Preprocessing
    views : str
    max_pixels : int or None
        An image with more pixels is a bad image. None sets no limit.
    on_gpu : callable or None
        Takes the views of a JPEG file on a GPU; None for Pillow alone.
    """

    preprocessing: Preprocessing
    views: str
    max_pixels: int | None
    on_gpu: TakeViews | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of an image: views, height, width, channels."""
        return (VIEWS[self.views], *self.preprocessing.crop_size, 3)

    @property
    def chunk_size(self) -> int:
        """Number of images that a process prepares at once."""
        one = int(np.prod(self.shape))
        return max(1, min(_CHUNK_SIZE, _CHUNK_BYTES // one))

    def prepare(self, index: int, image: Any, digest: Digest | None) -> Prepared:
        """Decode an image and take its views; the pixels are None if it is bad."""
        changed = None
        how: tuple[int | None, MinDecodeSize | None, str] = (
            self.max_pixels,
            self.preprocessing.min_decode_size,
            self.preprocessing.color,
        )
        try:
            if holds_content(image):
                # The code must be stored under the digest of the content decoded
                # here: the file may have changed since the look-up.
                content = read_content(image, index)
                if digest is not None:
                    now = content_digest(content)
                    changed = now if now != digest else None
                jpeg = None
                if self.on_gpu is not None:
                    jpeg = plain_jpeg(content, self.max_pixels, how[2])
                if self.on_gpu is not None and jpeg is not None:
                    pixels = self.on_gpu(jpeg, self.preprocessing, self.views)
                    if pixels is not None:
                        return Outcome(index, digest, changed), pixels
                    # At full size, as the GPU would have decoded it.
                    how = (self.max_pixels, None, how[2])
                rgb = decode_content(content, image, index, *how).rgb
            else:
                if isinstance(image, np.ndarray) and digest is not None:
                    image = image.copy()  # the caller may overwrite it meanwhile
                rgb = read_rgb(image, index, *how)
                if digest is not None:
                    now = pixel_digest(image, rgb)
                    changed = now if now != digest else None
            pixels = take_views(rgb, self.preprocessing, self.views)
        except ImageError as error:
            return Outcome(index, digest, changed, error), None
        return Outcome(index, digest, changed), pixels


class DecodeProcess:
    """A process that prepares images for the thread that calls it.

    Pixels come through memory that both share, everything else through pipes. It ends
    when its input is closed, also if this process is killed. Nothing depends on it:
    until it has started, after it died, and for whatever it cannot prepare, `prepare`
    returns None.

    Parameters
    ----------
    preparation : Preparation
    """

    def __init__(self, preparation: Preparation) -> None:
        self._shape = (preparation.chunk_size, *preparation.shape)
        size = int(np.prod(self._shape))
        number = os.memfd_create("sk_cnncodes-pixels")
        try:
            os.ftruncate(number, size)
            self._memory = mmap.mmap(number, size)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-c", _PROGRAM),
                    *(json.dumps(sys.path), str(number)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(number,),
                start_new_session=True,  # Ctrl-C is for this process only
            )
        finally:
            os.close(number)
        self._pixels = np.frombuffer(self._memory, np.uint8).reshape(self._shape)
        self._is_ready = threading.Event()
        self._is_dead = False
        state = (preparation, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
        self._send(state)
        # Only this thread waits for the start.
        self._greeter = threading.Thread(target=self._greet, daemon=True)
        self._greeter.start()

    def _greet(self) -> None:
        if self._receive() is not None:
            self._is_ready.set()

    def prepare(self, tasks: Sequence[Task]) -> list[Prepared] | None:
        """Prepare some images; None if this process cannot."""
        if self._is_dead or not self._is_ready.is_set():
            return None
        if not all(type(image) in _SENT for _, image, _ in tasks):
            return None
        self._send(tasks)
        answer = self._receive()
        if answer is None:
            return None
        outcomes, caught = answer
        for message, category in caught:
            warnings.warn(message, category, stacklevel=2)
        return [
            (outcome, None if outcome.fault is not None else self._pixels[row].copy())
            for row, outcome in enumerate(outcomes)
        ]

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except OSError:
            self._is_dead = True

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            if not self._is_dead:
                logger.debug("a decoding process ended: threads decode its images")
            self._is_dead = True
            return None

    def close(self) -> None:
        """End the process at once: it holds nothing that is needed."""
        self._is_dead = True
        self._process.kill()
        self._process.wait()
        self._greeter.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # a broken pipe has data left
                pipe.close()


def can_start_processes() -> bool:
    """Whether this system has what `DecodeProcess` needs."""
    return hasattr(os, "memfd_create") and bool(sys.executable)


def serve(number: int) -> None:
    """Prepare images for the process at the other end of the standard streams.

    Parameters
    ----------
    number : int
        File descriptor of the shared memory.
    """
    requests, answers = os.fdopen(0, "rb"), _private_output()
    preparation, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = pickle.load(
        requests
    )
    shape = (preparation.chunk_size, *preparation.shape)
    memory = np.frombuffer(mmap.mmap(number, int(np.prod(shape))), np.uint8)
    pixels = memory.reshape(shape)
    _answer(answers, True)
    while True:
        try:
            tasks = pickle.load(requests)
        except (EOFError, OSError):
            return
        _answer(answers, _serve_once(preparation, tasks, pixels))


def _serve_once(
    preparation: Preparation, tasks: Sequence[Task], pixels: np.ndarray
) -> Any:
    """Outcomes and warnings; None if there was an error other than a bad image.

    The other process then meets it by itself.
    """
    outcomes = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for row, task in enumerate(tasks):
            try:
                outcome, views = preparation.prepare(*task)
            except Exception:
                return None
            if views is not None:
                pixels[row] = views
            outcomes.append(outcome)
    return outcomes, [(str(entry.message), entry.category) for entry in caught]


def _private_output() -> BinaryIO:
    """The standard output for answers; what libraries print goes to the errors."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _answer(answers: BinaryIO, message: Any) -> None:
    pickle.dump(message, answers, pickle.HIGHEST_PROTOCOL)
    answers.flush()
