"""Exceptions of the library, all subclasses of `ValueError` or `RuntimeError`."""

from __future__ import annotations

import errno

from sk_cnncodes.base.public import public

# Longer strings are shortened in messages: they may be whole images in base64.
_LONGEST_NAME = 300
# The process is out of resources; the image is not at fault.
_RESOURCE_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@public
class ImageError(ValueError):
    """An element of X cannot be turned into an RGB image.

    Attributes
    ----------
    index : int or None
        Position of the image in X; None if it is unknown.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        # Both arguments go to the base class so that the error can be pickled, as
        # worker processes do.
        super().__init__(message, index)
        self.message = message
        self.index = index

    def __str__(self) -> str:
        return self.message


@public
class ImageNotFoundError(ImageError, FileNotFoundError):
    """An element of X is a path to a file that does not exist."""

    def __str__(self) -> str:
        return self.message


@public
class BackboneError(ValueError):
    """A file is not an ONNX image network that codes can be computed with."""


@public
class LayerError(BackboneError):
    """A backbone has no such layer, or a pooling does not apply to it."""


@public
class PreprocessingError(BackboneError):
    """The preprocessing of a backbone is unknown, incomplete or contradictory."""


@public
class DownloadError(BackboneError):
    """A known backbone cannot be downloaded, or its checksum is wrong.

    Notes (``__notes__``), which tracebacks show, say what each address answered.
    """


@public
class ExportError(ValueError):
    """A pipeline cannot be exported to ONNX, or a file was not written by `to_onnx`."""


@public
class SavedModelError(ValueError):
    """A saved pipeline is damaged, was edited, or is from a newer version."""


@public
class DeviceError(RuntimeError):
    """The requested device does not work on this machine."""


class CacheError(RuntimeError):
    """A code cache cannot be used; callers continue without it."""


def first_line(error: BaseException) -> str:
    """First line of another library's error, truncated to 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def shorten(text: str) -> str:
    """A text without its middle if it is long."""
    if len(text) <= _LONGEST_NAME:
        return text
    return f"{text[:100]}...{text[-100:]} ({len(text)} characters)"


def reason_of(error: Exception) -> str:
    """What another library's error says."""
    try:
        text = str(error)
    except Exception:  # `zipfile` cannot name an archive that has no name
        text = ""
    return shorten(text or type(error).__name__)


def is_scarcity(error: BaseException, name: str = "") -> bool:
    """Whether an error means that the process is out of memory or file handles.

    If so, a note names the image. Such an error must be raised unchanged: as an
    `ImageError` it could turn a valid image into a row of NaN.
    """
    scarce = isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in _RESOURCE_ERRNOS
    )
    if scarce and name:
        error.add_note(f"This happened to {name}.")
    return scarce
