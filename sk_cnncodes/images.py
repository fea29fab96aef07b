"""Whatever X holds -> upright RGB images.

`as_image_sequence` accepts the containers that users and scikit-learn's splitters
hand over, and `read_rgb` turns one element into a `PIL.Image.Image` of mode RGB.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from sk_cnncodes.exceptions import ImageError, ImageNotFoundError

# Formats that are opened, MPO as JPEG; Pillow's rarer readers are left closed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Pillow warns above this size and refuses twice of it; here it is an error at once.
MAX_PIXELS = 89_478_485

_ACCEPTED = (
    "a path, the bytes of an image file, an open binary file, a PIL image, or an array "
    "of shape (height, width), (height, width, 1), (height, width, 3) or (height, "
    "width, 4) of uint8, bool, or floats in [0, 1]"
)
_CONTAINERS = (
    "a list, tuple, 1-D object or string array, pandas or polars Series or one-column "
    "frame of paths, bytes, open files, PIL images or arrays; or an array of shape "
    "(n_images, height, width, channels) or (n_images, height, width)"
)
_EXIF_ORIENTATION = 0x0112
T = TypeVar("T")
# One file object may stand in X twice, and be read by two threads.
_open_file_lock = threading.Lock()


# -- containers --------------------------------------------------------------


def as_image_sequence(X: Any) -> Sequence[Any]:
    """View X as a sequence of images; nothing is opened or copied.

    Raises
    ------
    ValueError
        If X is empty, a single image, a matrix of features, or no container.
    """
    images: Sequence[Any] = _as_sequence(X)
    if len(images) == 0:
        raise ValueError(
            "X: found 0 images (0 samples), while a minimum of 1 is required."
        )
    return images


def _as_sequence(X: Any) -> Any:
    if isinstance(X, (str, bytes, bytearray, PurePath, Image.Image)) or _is_file(X):
        raise ValueError(
            f"X: got a single image ({_written(X)}). Expected {_CONTAINERS}; for one "
            "image: [image]."
        )
    if hasattr(X, "columns") and hasattr(X, "shape"):  # a pandas or polars frame
        if X.shape[1] != 1:
            raise ValueError(
                f"X: got a frame with {X.shape[1]} columns {list(X.columns)[:10]}. "
                "Expected a single column of images."
            )
        column = X.iloc[:, 0] if hasattr(X, "iloc") else X[X.columns[0]]
        return _as_sequence(column)
    if isinstance(X, np.ndarray):
        return _from_array(X)
    if isinstance(X, (list, tuple)):
        return X
    if hasattr(X, "to_numpy") and getattr(X, "ndim", 1) == 1:
        # A Series of Python objects; `list` would box numbers of some dtypes.
        return list(X)
    if hasattr(X, "toarray") and hasattr(X, "shape"):
        raise ValueError(
            f"X: got a sparse matrix of shape {X.shape}. Expected {_CONTAINERS}."
        )
    if hasattr(X, "__array__"):
        return _from_array(np.asarray(X))
    if isinstance(X, Sequence):
        return X
    raise TypeError(f"X: got {type(X).__name__}. Expected {_CONTAINERS}.")


def _from_array(X: np.ndarray) -> Any:
    found = f"X: got an array of shape {X.shape} and dtype {X.dtype}"
    if X.dtype.kind in "OUST":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim == 1:
            return X
        if X.dtype != object or X.ndim == 0:
            raise ValueError(f"{found}. Expected {_CONTAINERS}.")
        # An object array of numbers, as numpy makes of mixed lists.
        raise ValueError(f"{found}. Expected a 1-D object array with one image each.")
    if X.ndim == 2:
        raise ValueError(
            f"{found}, a matrix of features (n_samples, n_features). Expected images: "
            f"{_CONTAINERS}. Rows of pixels can be reshaped: X.reshape(-1, height, "
            "width)."
        )
    if X.ndim == 3 and X.shape[2] in (1, 3, 4) and len(X) > 0:
        raise ValueError(
            f"{found}, which is a single image (height, width, channels). Expected "
            f"{_CONTAINERS}; for one image: X[None]."
        )
    if X.ndim not in (3, 4):
        raise ValueError(f"{found}. Expected {_CONTAINERS}.")
    if X.ndim == 4 and X.shape[3] not in (1, 3, 4):
        hint = ""
        if X.shape[1] in (1, 3, 4):
            hint = " The channels come last: X.transpose(0, 2, 3, 1)."
        raise ValueError(
            f"{found}. Expected 1, 3 or 4 channels on the last axis, got "
            f"{X.shape[3]}.{hint}"
        )
    return X


def describe_image(image: Any, index: int) -> str:
    """How messages name an element of X: its position, and its path if it has one."""
    return f"image {index} ({_written(image)})"


def _written(image: Any) -> str:
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


def _is_file(image: Any) -> bool:
    return callable(getattr(image, "read", None))


# -- one image ---------------------------------------------------------------


def read_rgb(image: Any, index: int) -> Image.Image:
    """One element of X as an upright image of mode RGB.

    EXIF orientation is applied; transparency is laid over white; of an animation,
    the first frame is taken.

    Raises
    ------
    ImageError
        If it is not an image; ImageNotFoundError if it is a path without a file.
    """
    if isinstance(image, np.ndarray):
        return _from_pixels(image, index)
    if isinstance(image, Image.Image):
        with _open_file_lock:  # it may still have to read its file
            return _converted(image, image, index)
    if isinstance(image, (str, os.PathLike)):
        return _from_path(
            os.fspath(image), index, lambda f: _from_file(f, image, index)
        )
    return decode_content(read_content(image, index), image, index)


def decode_content(content: bytes, image: Any, index: int) -> Image.Image:
    """The content of an image file as `read_rgb` gives it.

    Parameters
    ----------
    content : bytes
    image : object
        The element of X that it is the content of; messages name it.
    index : int
    """
    return _from_file(io.BytesIO(content), image, index)


def holds_content(image: Any) -> bool:
    """Whether an element of X is or names an image file, rather than pixels."""
    return not isinstance(image, (np.ndarray, Image.Image))


def read_content(image: Any, index: int) -> bytes:
    """The content of the image file that an element of X is or names.

    Raises
    ------
    ImageError
        If it cannot be read, or is nothing of the kind.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_path(os.fspath(image), index, lambda file: bytes(file.read()))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if _is_file(image):
        return _content(image, index)
    name = describe_image(image, index)
    if image is None or (isinstance(image, float) and np.isnan(image)):
        raise ImageError(f"{name}: missing value. Expected {_ACCEPTED}.", index)
    raise ImageError(
        f"{name}: got {type(image).__name__}. Expected {_ACCEPTED}.", index
    )


def _from_path(path: str, index: int, use: Callable[[Any], T]) -> T:
    """What `use` makes of the open file at a path."""
    name = describe_image(path, index)
    try:
        with open(path, "rb") as file:
            return use(file)
    except FileNotFoundError as error:
        raise ImageNotFoundError(
            f"{name}: no such file. Expected the path of an image; relative paths "
            f"start from {str(Path.cwd())!r}.",
            index,
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"{name}: cannot be read ({reason}).", index) from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: not a valid path ({error}).", index) from error


def _content(file: Any, index: int) -> bytes:
    """The whole content of an open file, which stays open."""
    name = describe_image(file, index)
    with _open_file_lock:
        try:
            if not file.seekable():
                # It would be empty when it is read again: by predict after fit, or
                # to decode what was looked up.
                raise ImageError(
                    f"{name}: the open file cannot be read twice. Expected a seekable "
                    "file, or its bytes.",
                    index,
                )
            file.seek(0)
            content = file.read()
        except ImageError:
            raise
        except (OSError, ValueError, AttributeError) as error:
            raise ImageError(f"{name}: cannot be read ({error}).", index) from error
    if not isinstance(content, bytes):
        raise ImageError(
            f"{name}: opened as text. Expected a file opened in binary mode, 'rb'.",
            index,
        )
    return content


def _from_file(file: Any, source: Any, index: int) -> Image.Image:
    """Decode an image file; `source` is what the user gave."""
    name = describe_image(source, index)
    try:
        with Image.open(file, formats=FORMATS) as opened:
            return _converted(opened, source, index)
    except ImageError:
        raise
    except Exception as error:
        # Pillow's readers raise nearly anything on a broken file.
        raise ImageError(f"{name}: {_fault(file, error)}", index) from error


def _fault(file: Any, error: Exception) -> str:
    file.seek(0, os.SEEK_END)
    size = file.tell()
    formats = ", ".join(FORMATS)
    if size == 0:
        return f"the file is empty. Expected an image file ({formats})."
    if isinstance(error, Image.UnidentifiedImageError):
        return (
            f"not an image file. Expected one of {formats}, got {size} bytes of none."
        )
    if isinstance(error, Image.DecompressionBombError):
        return f"{error}. Expected at most {MAX_PIXELS} pixels."
    detail = str(error) or type(error).__name__
    return f"the file is damaged or truncated after {size} bytes ({detail})."


def _converted(image: Image.Image, source: Any, index: int) -> Image.Image:
    """Upright, without transparency, in mode RGB."""
    name = describe_image(source, index)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} pixels. Expected at most {MAX_PIXELS} pixels.",
            index,
        )
    if width * height == 0:
        raise ImageError(
            f"{name}: {width} x {height}. Expected at least 1 pixel.", index
        )
    try:
        if image.mode == "RGB" and "transparency" not in image.info:
            rgb = image
            rgb.load()
        elif image.mode in ("I", "F") or image.mode.startswith("I;"):
            rgb = _from_deep_gray(image, name, index)
        elif image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            rgb = Image.alpha_composite(white, rgba).convert("RGB")
        else:
            rgb = image.convert("RGB")
        orientation = _orientation(image)
        if orientation != 1:
            rgb = _upright(rgb, orientation)
    except ImageError:
        raise
    except Exception as error:
        if isinstance(source, Image.Image):
            raise ImageError(f"{name}: cannot be decoded ({error}).", index) from error
        raise
    return rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or it is unreadable."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        # Damaged EXIF does not damage the pixels.
        return 1
    return orientation if orientation in range(2, 9) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn by an EXIF orientation, which conversions of the mode may have dropped."""
    image = image.copy()
    image.getexif()[_EXIF_ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _from_deep_gray(image: Image.Image, name: str, index: int) -> Image.Image:
    """16-bit, 32-bit and float gray: 16 bits become 8 by their high byte."""
    values = np.asarray(image)
    if image.mode == "F":
        return _from_pixels(values, index, name)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: gray values from {low} to {high}. Expected 16-bit values, 0 to "
            "65535.",
            index,
        )
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _from_pixels(pixels: np.ndarray, index: int, name: str = "") -> Image.Image:
    """An image from an array (H, W) or (H, W, 1|3|4) of uint8, bool or floats."""
    name = name or describe_image(pixels, index)
    if pixels.dtype == object:
        raise ImageError(f"{name}. Expected {_ACCEPTED}.", index)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        hint = ""
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
            hint = " The channels come last: image.transpose(1, 2, 0)."
        raise ImageError(
            f"{name}: wrong shape. Expected (height, width), (height, width, 1), "
            f"(height, width, 3) or (height, width, 4).{hint}",
            index,
        )
    if 0 in pixels.shape:
        raise ImageError(f"{name}: no pixels. Expected at least 1.", index)
    pixels = np.ascontiguousarray(_as_uint8(pixels, name, index))
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise ImageError(f"{name}: expected at most {MAX_PIXELS} pixels.", index)
    image = Image.fromarray(pixels)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _as_uint8(pixels: np.ndarray, name: str, index: int) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind != "f":
        raise ImageError(
            f"{name}: wrong dtype. Expected uint8, bool, or floats in [0, 1]; integers "
            "from 0 to 255 can be cast: image.astype(numpy.uint8).",
            index,
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite(low + high):
        kinds = "NaN" if np.isnan(pixels).any() else "infinity"
        raise ImageError(f"{name}: {kinds} among its values. Expected [0, 1].", index)
    if low < 0 or high > 1:
        raise ImageError(
            f"{name}: float values from {low:g} to {high:g}. Expected floats in [0, "
            "1]; divide by the largest possible value.",
            index,
        )
    rounded: np.ndarray = np.rint(pixels * 255).astype(np.uint8)
    return rounded
