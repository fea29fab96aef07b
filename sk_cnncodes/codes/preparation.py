"""Prepare images: from an element of X to its digest and the pixels of its views.

Python runs one thread at a time between the steps of a decoder. From about eight
threads on, that bounds the images a second, and a GPU waits. So, for a GPU,
each thread has a `DecodeProcess` do its work; all of them are forked from one that has
imported what they need.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import PosixPath
from typing import Any

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
    "from sk_cnncodes.codes.preparation import serve; serve(json.loads(sys.argv[2]))"
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
                if self.on_gpu is not None and (
                    jpeg := plain_jpeg(content, self.max_pixels, how[2])
                ):
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


class DecodeProcesses:
    """Processes that prepare images, all forked from one.

    They end when their pipes are closed, also if this process is killed.

    Parameters
    ----------
    preparation : Preparation
    count : int

    Attributes
    ----------
    members : list of DecodeProcess
    """

    def __init__(self, preparation: Preparation, count: int) -> None:
        self.members: list[DecodeProcess] = []
        ends: list[list[int]] = []
        try:
            try:
                for _ in range(count):
                    ends.append([])
                    self.members.append(DecodeProcess(preparation, ends[-1]))
                self._process = _start(ends)
            finally:
                for number in chain.from_iterable(ends):
                    os.close(number)
        except BaseException:
            for member in self.members:
                member.close()
            raise
        self._greeter = threading.Thread(target=self._greet, daemon=True)
        self._greeter.start()

    def _greet(self) -> None:
        """Wait until the processes have started."""
        for member in self.members:
            if member.receive() is not None:
                member.is_ready.set()

    def close(self) -> None:
        """End the processes at once: they hold nothing that is needed."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._greeter.join()
        for member in self.members:
            member.close()


class DecodeProcess:
    """A process that prepares images for the thread that calls it.

    Pixels come through memory that both share, everything else through pipes. Nothing
    depends on it: until it has started, after it died, and for whatever it cannot
    prepare, `prepare` returns None.

    Parameters
    ----------
    preparation : Preparation
    ends : list of int
        Receives the file descriptors for the process: memory, requests and answers.
    """

    def __init__(self, preparation: Preparation, ends: list[int]) -> None:
        shape = (preparation.chunk_size, *preparation.shape)
        ends.append(os.memfd_create("sk_cnncodes-pixels"))
        os.ftruncate(ends[0], int(np.prod(shape)))
        self._pixels = _shared_pixels(ends[0], shape)
        theirs, ours = os.pipe()
        ends.append(theirs)
        self._requests = os.fdopen(ours, "wb")
        ours, theirs = os.pipe()
        ends.append(theirs)
        self._answers = os.fdopen(ours, "rb")
        self.is_ready = threading.Event()
        self._is_dead = False
        self._send(
            (preparation, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
        )

    def prepare(self, tasks: Sequence[Task]) -> list[Prepared] | None:
        """Prepare some images; None if this process cannot."""
        if self._is_dead or not self.is_ready.is_set():
            return None
        if not all(type(image) in _SENT for _, image, _ in tasks):
            return None
        self._send(tasks)
        answer = self.receive()
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
        try:
            pickle.dump(message, self._requests, pickle.HIGHEST_PROTOCOL)
            self._requests.flush()
        except OSError:
            self._is_dead = True

    def receive(self) -> Any:
        """The next answer; None if there is none."""
        try:
            return pickle.load(self._answers)
        except (EOFError, OSError, pickle.UnpicklingError):
            if not self._is_dead:
                logger.debug("a decoding process ended: threads decode its images")
            self._is_dead = True
            return None

    def close(self) -> None:
        """Close the pipes, when the process has ended."""
        self._is_dead = True
        with suppress(OSError):
            self._answers.read()  # until it has
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # a broken pipe has data left
                pipe.close()


def _start(ends: list[list[int]]) -> subprocess.Popen[bytes]:
    """Start the process that the others are forked from."""
    arguments = (json.dumps(sys.path), json.dumps(ends))
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, *arguments],
        # Threads of OpenBLAS would be lost in the forks.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=list(chain.from_iterable(ends)),
        start_new_session=True,  # Ctrl-C is for the starting process only
    )


def can_start_processes() -> bool:
    """Whether this system has what `DecodeProcesses` needs."""
    return hasattr(os, "memfd_create") and bool(sys.executable)


def serve(ends: list[list[int]]) -> None:
    """Fork a process for each list of file descriptors, and wait for all."""
    Image.preinit()
    first, *others = ends
    for end in others:
        if os.fork() == 0:
            first = end
            others = []
            break
    for number in chain.from_iterable(ends):
        if number not in first:
            os.close(number)
    _serve_one(*first)
    for _ in others:
        os.wait()


def _serve_one(memory: int, requests: int, answers: int) -> None:
    """Prepare images for the thread at the other end of the pipes."""
    with os.fdopen(requests, "rb") as source, os.fdopen(answers, "wb") as target:
        state = pickle.load(source)
        preparation, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = state
        pixels = _shared_pixels(memory, (preparation.chunk_size, *preparation.shape))
        answer: Any = True
        while True:
            try:
                pickle.dump(answer, target, pickle.HIGHEST_PROTOCOL)
                target.flush()
                tasks = pickle.load(source)
            except (EOFError, OSError):
                return
            answer = _prepare_all(preparation, tasks, pixels)


def _shared_pixels(memory: int, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels in the memory of a file descriptor."""
    mapped = mmap.mmap(memory, int(np.prod(shape)))
    return np.frombuffer(mapped, np.uint8).reshape(shape)


def _prepare_all(
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
