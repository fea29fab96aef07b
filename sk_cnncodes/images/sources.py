"""Elements of X: their names in messages, and the content of their image files."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from sk_cnncodes.base.exceptions import ImageError, ImageNotFoundError
from sk_cnncodes.base.files import is_open_database, working_folder
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.images.safe_open import LARGEST_FILE

ACCEPTED = (
    "a path, the bytes of an image file, an open binary file, a PIL image, or an array "
    "of shape (height, width), (height, width, 1), (height, width, 3) or (height, "
    "width, 4) of uint8, bool, or floats in [0, 1]"
)
# A file object may occur in X twice and be read by two threads.
open_file_lock = fork_safe_lock()
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# The process is out of resources; the image is not at fault.
_RESOURCE_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def describe_image(image: Any, index: int) -> str:
    """Name an element of X in messages: its position, and its path if it has one."""
    return f"image {index} ({describe_source(image)})"


def describe_source(image: Any) -> str:
    """Name an element of X in messages, without its position."""
    if isinstance(image, (str, PurePath)):
        return repr(str(image))
    if isinstance(image, (bytes, bytearray)):
        return f"{len(image)} bytes"
    if isinstance(image, np.ndarray):
        return f"array of shape {image.shape}, dtype {image.dtype}"
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "")
        return f"PIL image {image.size}{' of ' + repr(name) if name else ''}"
    name = getattr(image, "name", None)
    return repr(name) if isinstance(name, str) else type(image).__name__


def is_file(image: Any) -> bool:
    """Whether an element of X is an open file."""
    return callable(getattr(image, "read", None))


def holds_content(image: Any) -> bool:
    """Whether an element of X is an image file or its path, rather than pixels."""
    return not isinstance(image, (np.ndarray, Image.Image))


def read_content(image: Any, index: int) -> bytes:
    """Read the image file that an element of X is, or is the path of.

    Raises
    ------
    ImageError
        If it cannot be read, or the element is of another type.
    ImageNotFoundError
        If it is the path of a file that does not exist.
    """
    if isinstance(image, (str, os.PathLike)):
        return _path_content(path_of(image, index), index)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if is_file(image):
        return _content(image, index)
    name = describe_image(image, index)
    if image is None or (isinstance(image, float) and np.isnan(image)):
        raise ImageError(f"{name}: missing value. Expected {ACCEPTED}.", index)
    raise ImageError(f"{name}: got {type(image).__name__}. Expected {ACCEPTED}.", index)


def path_of(image: str | os.PathLike[Any], index: int) -> str:
    """Path of an element of X; an `os.PathLike` may have to fetch its file first.

    Raises
    ------
    ImageError
        If getting the path from the object fails.
    """
    try:
        return os.fsdecode(image)
    except Exception as error:
        name = describe_image(image, index)
        if is_scarcity(error, name):
            raise
        raise ImageError(f"{name}: gives no path ({_reason(error)}).", index) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _path_content(path: str, index: int) -> bytes:
    """Read a regular file within the size limit."""
    name = describe_image(path, index)
    try:
        status = os.stat(path)  # noqa: PTH116
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            # Reading a pipe or a device may never end.
            raise ImageError(
                f"{name}: not a regular file. Expected the path of an image.", index
            )
        if is_open_database(path):
            raise ImageError(
                f"{name}: a code cache in use. Expected the path of an image.",
                index,
            )
        # `read` would allocate a limit passed to it.
        _check_length(status.st_size, name, index)
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        if _URL.match(path):
            raise ImageNotFoundError(
                f"{name}: a URL, which is not downloaded. Expected the path of an "
                "image file, or its bytes.",
                index,
            ) from error
        raise ImageNotFoundError(
            f"{name}: no such file. Expected the path of an image; relative paths "
            f"start from {working_folder()}.",
            index,
        ) from error
    except OSError as error:
        if is_scarcity(error, name):
            raise
        reason = error.strerror or str(error)
        raise ImageError(f"{name}: cannot be read ({reason}).", index) from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: not a valid path ({error}).", index) from error


def _check_length(length: int, name: str, index: int) -> None:
    if length > LARGEST_FILE:
        raise ImageError(
            f"{name}: file too large. Expected at most {LARGEST_FILE} bytes.", index
        )


def is_scarcity(error: Exception, name: str) -> bool:
    """Whether an error means that the process is out of memory or file handles.

    If so, a note names the image. Such an error must be raised unchanged: as an
    `ImageError` it could turn a valid image into a row of NaN.
    """
    scarce = isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in _RESOURCE_ERRNOS
    )
    if scarce:
        error.add_note(f"This happened to {name}.")
    return scarce


def _content(file: Any, index: int) -> bytes:
    """Read the whole content of an open file, and leave it open."""
    name = describe_image(file, index)
    with open_file_lock:
        try:
            content = _content_on_disk(file, name, index)
            if content is None:
                content = _content_by_seeking(file, name, index)
        except ImageError:
            raise
        except Exception as error:
            if is_scarcity(error, name):
                raise
            # Files in archives or of other libraries raise almost any exception.
            reason = _reason(error)
            raise ImageError(f"{name}: cannot be read ({reason}).", index) from error
    if not isinstance(content, bytes):
        raise ImageError(
            f"{name}: opened as text. Expected a file opened in binary mode, 'rb'.",
            index,
        )
    return content


def _content_on_disk(file: Any, name: str, index: int) -> bytes | None:
    """Read a file returned by `open`, without its position or lock; otherwise None.

    Forked processes share the position and may be reading too, and a thread of the
    parent may have held the lock.
    """
    is_builtin = type(file) is io.BufferedReader and type(file.raw) is io.FileIO
    if not is_builtin or not hasattr(os, "pread"):
        return None
    descriptor = file.fileno()
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    _check_length(status.st_size, name, index)
    parts, length = [], 0
    while part := os.pread(descriptor, status.st_size + 1, length):
        parts.append(part)
        length += len(part)
    return b"".join(parts)


def _content_by_seeking(file: Any, name: str, index: int) -> Any:
    if not file.seekable():
        # It would be empty when read again: by predict after fit, or to decode it
        # after a cache lookup.
        raise ImageError(
            f"{name}: the open file cannot be read twice. Expected a seekable file, or "
            "its bytes.",
            index,
        )
    file.seek(0, os.SEEK_END)
    _check_length(file.tell(), name, index)
    file.seek(0)
    return file.read()
