"""View X as a sequence of images, without opening any of them; and take one out."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import accumulate
from numbers import Integral
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from sk_cnncodes.base.exceptions import ImageError, is_scarcity
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.images.remote import RemoteReader
from sk_cnncodes.images.sources import (
    ACCEPTED,
    FileContent,
    describe_image,
    describe_source,
    fetched,
    is_file,
    is_opener,
    is_sample,
    opened_content,
    opener_name,
    reason_of,
    shorten,
)

_CONTAINERS = (
    "a list, tuple, 1-D object or string array, pandas or polars Series, pyarrow array "
    "or one-column table of paths, bytes, open files, PIL images or arrays; or an "
    "array of shape (n_images, height, width, channels) or (n_images, height, width)"
)
# Bytes of an array on disk that are read at once, and that are kept.
_BLOCK_BYTES = 2**24
_KEPT_BYTES = 2**26
# Rows read at once from an array whose rows have no known size.
_BLOCK_ROWS = 64


def as_image_sequence(X: Any) -> Sequence[Any]:
    """View X as a sequence of images, without opening or copying them.

    `fetch_element` takes an image out of it.

    Raises
    ------
    ValueError
        If X is empty, a single image, a feature matrix, or of another wrong shape.
    TypeError
        If X is of an unsupported type.
    """
    try:
        images: Sequence[Any] = _as_sequence(X)
        count = len(images)
    except (ValueError, TypeError) as error:
        if str(error).startswith("X: "):
            raise
        raise _unreadable(X, error) from error
    except Exception as error:
        if is_scarcity(error, "X"):
            raise
        # Objects of other libraries raise almost any exception.
        raise _unreadable(X, error) from error
    if count == 0:
        raise ValueError(
            "X: found 0 images (0 samples), while a minimum of 1 is required."
        )
    return images


def as_images(X: Any) -> Sequence[Any] | Iterator[Any]:
    """`as_image_sequence`, or an iterator of images for a generator."""
    return iter(X) if _is_stream(X) else as_image_sequence(X)


def column_name(X: Any) -> str | None:
    """The name of a Series or of the only column of a frame, if it has one."""
    # In a table of pyarrow, `columns` are the columns themselves.
    columns = getattr(X, "column_names" if _is_of_pyarrow(X) else "columns", None)
    name: Any = None
    if columns is not None:
        name = columns[0]
    elif hasattr(X, "to_numpy") and getattr(X, "ndim", 1) == 1:
        name = getattr(X, "name", None)
    return str(name) if isinstance(name, str) and name else None


def _unreadable(X: Any, error: Exception) -> TypeError:
    return TypeError(
        f"X: got {type(X).__name__}, which cannot be used ({reason_of(error)}). "
        f"Expected {_CONTAINERS}."
    )


def _is_stream(X: Any) -> bool:
    """Whether X can be iterated over, and has neither a length nor positions."""
    if isinstance(X, (str, bytes, Set, Mapping)) or is_file(X):
        return False
    if isinstance(X, Iterator):
        return True
    return isinstance(X, Iterable) and not (
        hasattr(X, "__getitem__") or hasattr(X, "__len__") or hasattr(X, "__array__")
    )


def _as_sequence(X: Any) -> Any:
    """`as_image_sequence` without the check for an empty X."""
    if isinstance(X, (list, tuple)):
        return X
    single = (str, bytes, bytearray, memoryview, PurePath, Image.Image, FileContent)
    is_cell = isinstance(X, Mapping) and {"bytes", "path"} <= {*X}
    if isinstance(X, single) or is_cell or is_file(X) or is_opener(X):
        raise ValueError(
            f"X: got a single image ({describe_source(X)}). Expected {_CONTAINERS}; "
            "for one image: [image]."
        )
    is_frame = hasattr(X, "iloc") or hasattr(X, "get_column")  # pandas or polars
    if is_frame and hasattr(X, "columns") and len(getattr(X, "shape", ())) == 2:
        _check_one_column(X.shape[1], X.columns)
        column = X.iloc[:, 0] if hasattr(X, "iloc") else X[X.columns[0]]
        return _as_sequence(column)
    if isinstance(X, np.ndarray):
        return _from_array(X)
    if _is_of_pyarrow(X):
        if hasattr(X, "column_names"):
            _check_one_column(X.num_columns, X.column_names)
            X = X.column(0)
        return X.to_pylist() if _holds_strings(X.type) else X
    if hasattr(X, "to_numpy") and getattr(X, "ndim", 1) == 1:
        # A Series. Iterating one of Python objects yields them; others would be copied.
        if hasattr(getattr(X, "dtype", None), "pyarrow_dtype"):
            return X.array
        if hasattr(X, "get_chunks") and not _holds_strings(X.dtype):  # of polars
            return X
        return list(X)
    if hasattr(X, "toarray") and hasattr(X, "shape"):
        raise ValueError(
            f"X: got a sparse matrix of shape {X.shape}. Expected {_CONTAINERS}."
        )
    if all(hasattr(X, name) for name in ("shape", "ndim", "dtype", "__getitem__")):
        _from_array(X)
        return ArrayRows(X)
    if hasattr(X, "__array__"):
        return _from_array(np.asarray(X))
    if isinstance(X, Sequence):
        return X
    hint = ""
    if _is_stream(X):
        hint = " transform_to and precompute take generators; here: list(X)."
    elif hasattr(X, "column_names"):  # a data set of Hugging Face
        hint = f" Select its column: X[name], of {shorten(str(X.column_names))}."
    raise TypeError(f"X: got {type(X).__name__}. Expected {_CONTAINERS}.{hint}")


def _is_of_pyarrow(X: Any) -> bool:
    return callable(getattr(X, "to_pylist", None))


def _holds_strings(dtype: Any) -> bool:
    """Whether a column of pyarrow or polars holds strings, or objects of Python.

    Paths are short and cheaper to take out all at once.
    """
    kinds = "string|large_string|dictionary|cat|enum|object"
    return bool(re.match(kinds, str(dtype), re.IGNORECASE))


def _check_one_column(count: int, names: Any) -> None:
    if count != 1:
        raise ValueError(
            f"X: got a frame with {count} columns {list(names)[:10]}. "
            "Expected a single column of images."
        )


def _from_array(X: Any) -> Any:
    """Check shape and dtype of an array of images, or of paths and other objects."""
    shape = tuple(X.shape)
    what = "an array" if isinstance(X, np.ndarray) else f"a {type(X).__name__}"
    found = f"X: got {what} of shape {shape} and dtype {X.dtype}"
    if not all(isinstance(length, Integral) for length in shape):
        raise ValueError(
            f"{found}. Expected a known shape, for arrays of dask: "
            "X.compute_chunk_sizes()."
        )
    if getattr(X.dtype, "kind", None) in {*"OUST"}:  # objects or strings
        if len(shape) == 2 and shape[1] == 1 and isinstance(X, np.ndarray):
            X, shape = X[:, 0], shape[:1]
        if len(shape) == 1:
            return X
        if X.dtype != object or not shape:
            raise ValueError(f"{found}. Expected {_CONTAINERS}.")
        # An object array of several dimensions, such as numpy makes from mixed lists.
        raise ValueError(f"{found}. Expected a 1-D object array with one image each.")
    if len(shape) == 2:
        raise ValueError(
            f"{found}, a feature matrix (n_samples, n_features). Expected images: "
            f"{_CONTAINERS}. Reshape rows of pixels: X.reshape(-1, height, width)."
        )
    if len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] > 0:
        raise ValueError(
            f"{found}, a single image (height, width, channels). Expected "
            f"{_CONTAINERS}; for one image: X[None]."
        )
    if len(shape) not in (3, 4):
        raise ValueError(f"{found}. Expected {_CONTAINERS}.")
    if len(shape) == 4 and shape[3] not in (1, 3, 4):
        hint = channels_last_hint(X, shape, "X")
        raise ValueError(
            f"{found}. Expected 1, 3 or 4 channels on the last axis, got "
            f"{shape[3]}.{hint}"
        )
    return X


class ArrayRows(Sequence[Any]):
    """The rows of an array of zarr, h5py, dask, torch and the like, read in blocks.

    A block is a chunk of the array, or a part of a large one. Blocks are kept until all
    their rows were taken, within a limit.

    Parameters
    ----------
    array : object
        With `shape`, `dtype` and slices; the chunks are its attribute `chunks`.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._count = int(array.shape[0])
        self._single = len(array.shape) == 1
        size = getattr(array.dtype, "itemsize", 1)
        row = size * int(np.prod(array.shape[1:], dtype=np.int64))
        self._most = max(1, _BLOCK_BYTES // max(1, row))
        if self._single:
            self._most = _BLOCK_ROWS
        chunks = getattr(array, "chunks", None)
        first = chunks[0] if isinstance(chunks, (tuple, list)) and chunks else None
        self._chunk = int(first) if isinstance(first, Integral) else 0
        # The ends of chunks of several lengths, as dask has them.
        self._ends = list(accumulate(first)) if isinstance(first, tuple) else []
        self._blocks: OrderedDict[int, tuple[np.ndarray, set[int]]] = OrderedDict()
        self._lock = fork_safe_lock()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        with self._lock:
            start, stop = self._block(index)
            if start not in self._blocks:
                block = np.asarray(self._array[start:stop])
                self._blocks[start] = (block, set(range(start, stop)))
                while sum(b.nbytes for b, _ in self._blocks.values()) > _KEPT_BYTES:
                    if len(self._blocks) == 1:
                        break
                    self._blocks.popitem(last=False)
            block, left = self._blocks[start]
            left.discard(index)
            if not left:
                del self._blocks[start]
        row = block[index - start]
        # A view would keep the whole block.
        return row if self._single else row.copy()

    def _block(self, index: int) -> tuple[int, int]:
        """First row, and row after the last, of the block of a row."""
        start, stop = 0, self._count
        if self._chunk > 0:
            start = index - index % self._chunk
            stop = min(stop, start + self._chunk)
        elif self._ends:
            position = bisect_right(self._ends, index)
            start = self._ends[position - 1] if position else 0
            stop = self._ends[position]
        start = index - (index - start) % self._most
        return start, min(stop, start + self._most)


# -- elements ------------------------------------------------------------------


def fetch_element(images: Sequence[Any], index: int) -> Any:
    """Take an image out of X, as `as_element` gives it.

    Raises
    ------
    ImageError
        If the container or the element fails.
    """
    try:
        cell = images[index]
    except ImageError:
        raise
    except Exception as error:
        name = f"image {index}"
        if is_scarcity(error, name):
            raise
        kind = type(images).__name__
        raise ImageError(
            f"{name}: {kind} does not give it ({reason_of(error)}).", index
        ) from error
    return as_element(cell, index)


def as_element(cell: Any, index: int, reader: RemoteReader | None = None) -> Any:
    """Turn an object of another library into a path, bytes, open file or pixels.

    Files of archives and remote file systems are read here, addresses where `fetched`
    does so, tensors become arrays, and the images of tables are taken out of their
    dicts and scalars. What is none of these is returned, and `read_content` refuses it.

    Raises
    ------
    ImageError
        If that fails.
    """
    if isinstance(cell, str):
        return fetched(cell, index, reader) if "://" in cell else cell
    if isinstance(cell, (bytes, np.ndarray, Image.Image)):
        return cell
    try:
        element = _as_element(cell, index)
        return fetched(element, index, reader) if type(element) is str else element
    except ImageError:
        raise
    except Exception as error:
        # Objects of other libraries raise almost any exception.
        name = describe_image(cell, index)
        if is_scarcity(error, name):
            raise
        reason = reason_of(error)
        raise ImageError(f"{name}: cannot be read ({reason}).", index) from error


def _as_element(cell: Any, index: int) -> Any:
    if isinstance(cell, (str, bytes, np.ndarray, Image.Image)):
        return cell
    if isinstance(cell, (type, np.generic, bytearray, memoryview, FileContent)):
        return cell
    if callable(getattr(cell, "as_py", None)):  # a scalar of pyarrow
        return _as_element(cell.as_py(), index)
    if isinstance(cell, Mapping):
        return _from_mapping(cell, index)
    if is_sample(cell):
        return _as_element(cell[0], index)
    if is_file(cell):
        return cell
    if is_opener(cell):
        return FileContent(opened_content(cell, index), opener_name(cell))
    if isinstance(cell, os.PathLike):
        return cell
    if callable(getattr(cell, "__array__", None)):
        return _from_tensor(cell, index)
    return cell


def _from_mapping(cell: Mapping[str, Any], index: int) -> Any:
    """The image of a dict {"bytes", "path"}, as Hugging Face's tables hold it."""
    name = describe_image(cell, index)
    if "bytes" not in cell and "path" not in cell:
        raise ImageError(
            f"{name}: got a {type(cell).__name__} without 'bytes' and 'path'. Expected "
            f"{ACCEPTED}, or a dict of these two keys.",
            index,
        )
    content: Any = cell.get("bytes")
    path: Any = cell.get("path")
    if callable(getattr(content, "as_py", None)):
        content = content.as_py()
    if callable(getattr(path, "as_py", None)):
        path = path.as_py()
    if isinstance(content, (bytes, bytearray, memoryview)):
        return FileContent(bytes(content), path if isinstance(path, str) else "")
    if content is not None:
        raise ImageError(
            f"{name}: 'bytes' is of type {type(content).__name__}. Expected bytes.",
            index,
        )
    if path is None:
        raise ImageError(
            f"{name}: missing value, 'bytes' and 'path' are None. Expected {ACCEPTED}.",
            index,
        )
    return path


def _from_tensor(cell: Any, index: int) -> np.ndarray:
    """Pixels of a tensor, or of another object with `__array__`."""
    pixels = np.asarray(cell)
    hint = channels_last_hint(cell, pixels.shape, "image")
    if hint:
        raise ImageError(
            f"{describe_image(cell, index)}: channels first. Expected (height, width), "
            f"or (height, width, 1, 3 or 4).{hint}",
            index,
        )
    return pixels


def channels_last_hint(array: Any, shape: tuple[int, ...], name: str) -> str:
    """How to move the channels of an image or images last; "" if they may be there."""
    axis = len(shape) - 3
    if axis not in (0, 1) or shape[-1] in (1, 3, 4) or shape[axis] not in (1, 3, 4):
        return ""
    order = (1, 2, 0) if axis == 0 else (0, 2, 3, 1)
    if callable(getattr(array, "permute", None)):  # of torch
        how = f"{name}.permute{order}"
    elif type(array).__module__.partition(".")[0] == "tensorflow":
        how = f"tf.transpose({name}, {order})"
    else:
        how = f"{name}.transpose{order}"
    return f" Move the channels last: {how}."
