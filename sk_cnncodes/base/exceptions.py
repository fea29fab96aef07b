"""Errors of the library, all of them subclasses of `ValueError` or `RuntimeError`."""

from __future__ import annotations

from sk_cnncodes.base.public import public


@public
class ImageError(ValueError):
    """An element of X cannot be turned into an RGB image.

    Attributes
    ----------
    index : int or None
        Position of the image in X, where it is known.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        # Both arguments go to the base class so that the error pickles, as it
        # must to travel from a worker process to its parent.
        super().__init__(message, index)
        self.message = message
        self.index = index

    def __str__(self) -> str:
        return self.message


@public
class ImageNotFoundError(ImageError, FileNotFoundError):
    """An element of X is a path at which there is no file."""

    def __str__(self) -> str:
        return self.message


@public
class BackboneError(ValueError):
    """A file is not an ONNX image network that can give codes."""


@public
class LayerError(BackboneError):
    """A layer does not exist in the backbone, or a pooling does not fit it."""


@public
class PreprocessingError(BackboneError):
    """The preprocessing of a backbone is unknown, incomplete or contradictory."""


@public
class DownloadError(BackboneError):
    """A known backbone is missing and cannot be downloaded, or fails its check."""


@public
class ExportError(ValueError):
    """A pipeline cannot be exported to ONNX, or a file was not written by `to_onnx`."""


@public
class SavedModelError(ValueError):
    """A saved pipeline is damaged, was edited, or a newer version saved it."""


@public
class DeviceError(RuntimeError):
    """The device that was asked for does not work on this machine."""


class CacheError(RuntimeError):
    """A code cache cannot be used; callers go on without it."""


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, cut off if it is long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
