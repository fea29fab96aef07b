"""Elements of X: their names in messages, and the content of their image files."""

from __future__ import annotations

import inspect
import io
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from sk_cnncodes.base.exceptions import (
    ImageError,
    ImageNotFoundError,
    is_scarcity,
    reason_of,
    shorten,
)
from sk_cnncodes.base.files import is_open_database, working_folder
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.images.addresses import VARIABLE, is_uri, shown
from sk_cnncodes.images.remote import RemoteReader, environment_reader
from sk_cnncodes.images.safe_open import LARGEST_FILE

ACCEPTED = (
    "a path, the bytes of an image file, an open binary file, a PIL image, or an array "
    "of shape (height, width), (height, width, 1), (height, width, 3) or (height, "
    "width, 4) of uint8, bool, or floats in [0, 1]"
)
# Shorter texts are no images in base64.
_SHORTEST_IMAGE = 300
# A file object may occur in X twice and be read by two threads.
open_file_lock = fork_safe_lock()
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{100,}={0,2}\s*")
# Bytes read at once from the files of other libraries.
_PART = 2**20


@dataclass(frozen=True)
class FileContent:
    """The content of an image file, as a table or an archive holds it, and its name."""

    content: bytes
    name: str = ""


def describe_image(image: Any, index: int) -> str:
    """Name an element of X in messages: its position, and its path if it has one."""
    return f"image {index} ({describe_source(image)})"


def describe_source(image: Any) -> str:
    """Name an element of X in messages, without its position."""
    try:
        return _description(image)
    except Exception:  # properties of other libraries' objects
        return type(image).__name__


def _description(image: Any) -> str:
    if isinstance(image, (str, PurePath)):
        return _named(str(image))
    if isinstance(image, (bytes, bytearray)):
        return f"{len(image)} bytes"
    if isinstance(image, FileContent):
        named = _named(image.name) if image.name else ""
        return named or f"{len(image.content)} bytes"
    if isinstance(image, np.ndarray):
        return f"array of shape {image.shape}, dtype {image.dtype}"
    if isinstance(image, Image.Image):
        file = getattr(image, "filename", "")
        return f"PIL image {image.size}{' of ' + repr(file) if file else ''}"
    kind = type(image).__name__
    if isinstance(image, type):
        return kind
    if isinstance(image, Mapping):
        path = image.get("path")
        keys = shorten(str(list(image)))
        return _named(path) if isinstance(path, str) else f"{kind} {keys}"
    if is_sample(image):
        return _description(image[0])
    if _is_opener(image):
        return _named(opener_name(image))
    name = getattr(image, "name", None)
    if isinstance(name, str):
        return _named(name)
    if hasattr(image, "__array__") and hasattr(image, "shape"):
        return f"{kind} of shape {tuple(image.shape)}, dtype {image.dtype}"
    return kind


def _named(name: str) -> str:
    return shorten(repr(shown(name)))


def is_file(image: Any) -> bool:
    """Whether an element of X is an open file."""
    return callable(getattr(image, "read", None))


def is_opener(image: Any) -> bool:
    """Whether an element is a path of another library, which opens its file."""
    try:
        return _is_opener(image)
    except Exception:  # properties of other libraries' objects
        return False


def _is_opener(image: Any) -> bool:
    if isinstance(image, (type, Image.Image)) or is_file(image):
        return False
    if hasattr(image, "__array__"):  # an array of zarr has `open` too
        return False
    if type(image).__module__.partition(".")[0] == "pathlib":
        return False
    if isinstance(image, os.PathLike):
        # Some remote paths of `upath` are subclasses of `Path`.
        is_remote = isinstance(image, PurePath) and "://" in str(image)
        if not is_remote:
            return False
    return any(callable(getattr(image, name, None)) for name in ("open", "read_bytes"))


def _with_slashes(path: str) -> str:
    """`pathlib` has reduced the slashes of a URL to one."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", path)


def opener_name(image: Any) -> str:
    """Path of an element that opens its file, or its type."""
    name = getattr(image, "full_name", None)  # of fsspec
    if isinstance(name, str):
        return name
    if type(image).__str__ is not object.__str__:
        try:
            return str(image)
        except Exception:  # of an archive without a name
            name = getattr(image, "name", None)
    return name if isinstance(name, str) else type(image).__name__


def is_sample(image: Any) -> bool:
    """Whether it is a pair (path, label), an element of `ImageFolder.samples`."""
    return (
        isinstance(image, tuple)
        and len(image) == 2
        and isinstance(image[0], (str, os.PathLike))
        and isinstance(image[1], Integral)
    )


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
    if isinstance(image, FileContent):
        return image.content
    if is_file(image):
        return _content(image, index)
    name = describe_image(image, index)
    if _is_missing(image):
        raise ImageError(f"{name}: missing value. Expected {ACCEPTED}.", index)
    raise ImageError(f"{name}: got {type(image).__name__}. Expected {ACCEPTED}.", index)


def _is_missing(image: Any) -> bool:
    if image is None or type(image).__name__ in ("NAType", "NaTType"):  # of pandas
        return True
    return isinstance(image, (float, np.floating)) and bool(np.isnan(image))


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
        raise ImageError(
            f"{name}: gives no path ({reason_of(error)}).", index
        ) from error


def fetched(
    text: str, index: int, reader: RemoteReader | None = None
) -> str | FileContent:
    """What is at an address, where the user allowed it; other texts are returned.

    Parameters
    ----------
    text : str
    index : int
    reader : RemoteReader or None
        None is that of the environment variable.

    Raises
    ------
    ImageError
        If the address is not among those that are allowed, or cannot be read.
    """
    if not is_uri(text):
        return text
    reader = reader or environment_reader()
    if not reader.prefixes:
        return text
    try:
        return FileContent(reader.read(text), text)
    except Exception as error:
        name = describe_image(text, index)
        if is_scarcity(error, name):
            raise
        raise ImageError(f"{name}: {reason_of(error)}", index) from error


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
        check_length(status.st_size, name, index)
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        _refuse_no_path(path, name, index, error)
        raise ImageNotFoundError(
            f"{name}: no such file. Expected the path of an image; relative paths "
            f"start from {working_folder()}.",
            index,
        ) from error
    except OSError as error:
        if is_scarcity(error, name):
            raise
        _refuse_no_path(path, name, index, error)
        reason = error.strerror or reason_of(error)
        raise ImageError(f"{name}: cannot be read ({reason}).", index) from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        _refuse_no_path(path, name, index, error)
        reason = reason_of(error)
        raise ImageError(f"{name}: not a valid path ({reason}).", index) from error


def _refuse_no_path(path: str, name: str, index: int, error: Exception) -> None:
    """Raise an error for a string that is an address or an image, and no path."""
    if _URL.match(_with_slashes(path)):
        what = (
            "a URL, which is not downloaded. Expected the path of an image file, or "
            "its bytes. Download it, or give fsspec.open(url); the environment "
            f"variable {VARIABLE}=1 allows downloads."
        )
        if path.lower().startswith("file:"):
            what = "a URL of a file. Expected its path, without 'file://'."
    elif _DATA_URI.match(path):
        what = (
            "a data URI, which is not decoded. Expected the path of an image file, or "
            "its bytes: base64.b64decode(uri.partition(',')[2])."
        )
    elif _BASE64.fullmatch(path) and len(path) > _SHORTEST_IMAGE:
        what = (
            "no such file; it may be an image in base64. Expected the path of an image "
            "file, or its bytes: base64.b64decode(text)."
        )
    else:
        return
    raise ImageNotFoundError(f"{name}: {what}", index) from error


def check_length(length: int, name: str, index: int) -> None:
    if length > LARGEST_FILE:
        raise ImageError(
            f"{name}: file too large. Expected at most {LARGEST_FILE} bytes.", index
        )


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
            reason = reason_of(error)
            raise ImageError(f"{name}: cannot be read ({reason}).", index) from error
    check_binary(content, name, index)
    return bytes(content)


def check_binary(content: Any, name: str, index: int) -> None:
    """Raise an error if a file was opened as text."""
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise ImageError(
            f"{name}: opened as text. Expected a file opened in binary mode, 'rb'.",
            index,
        )


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
    check_length(status.st_size, name, index)
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
    check_length(file.tell(), name, index)
    file.seek(0)
    return file.read()


def opened_content(image: Any, index: int) -> bytes:
    """Read the file of a path object of another library."""
    name = describe_image(image, index)
    if not callable(getattr(image, "open", None)):
        content = image.read_bytes()
        check_binary(content, name, index)
        check_length(len(content), name, index)
        return bytes(content)
    with image.open("rb") if _takes_mode(image.open) else image.open() as file:
        parts, length = [], 0
        while part := file.read(_PART):
            check_binary(part, name, index)
            parts.append(part)
            length += len(part)
            check_length(length, name, index)
    return b"".join(parts)


def _takes_mode(function: Any) -> bool:
    """Whether `open` takes a mode; that of fsspec's `OpenFile` takes nothing."""
    try:
        inspect.signature(function).bind("rb")
    except TypeError:
        return False
    except ValueError:  # written in C
        return True
    return True
