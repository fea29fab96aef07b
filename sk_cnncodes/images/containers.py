"""View X as a sequence of images, without opening any of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from sk_cnncodes.images.sources import describe_source, is_file

_CONTAINERS = (
    "a list, tuple, 1-D object or string array, pandas or polars Series or one-column "
    "frame of paths, bytes, open files, PIL images or arrays; or an array of shape "
    "(n_images, height, width, channels) or (n_images, height, width)"
)


def as_image_sequence(X: Any) -> Sequence[Any]:
    """View X as a sequence of images, without opening or copying them.

    Raises
    ------
    ValueError
        If X is empty, a single image, a feature matrix, or of another wrong shape.
    TypeError
        If X is of an unsupported type.
    """
    images: Sequence[Any] = _as_sequence(X)
    if len(images) == 0:
        raise ValueError(
            "X: found 0 images (0 samples), while a minimum of 1 is required."
        )
    return images


def _as_sequence(X: Any) -> Any:
    """`as_image_sequence` without the check for an empty X."""
    single = (str, bytes, bytearray, memoryview, PurePath, Image.Image)
    if isinstance(X, single) or is_file(X):
        raise ValueError(
            f"X: got a single image ({describe_source(X)}). Expected {_CONTAINERS}; "
            "for one image: [image]."
        )
    is_frame = hasattr(X, "iloc") or hasattr(X, "get_column")  # pandas or polars
    if is_frame and hasattr(X, "columns") and len(getattr(X, "shape", ())) == 2:
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
        # A Series; iterating it yields Python objects.
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
    """Check shape and dtype of an array of images, or of paths and other objects."""
    found = f"X: got an array of shape {X.shape} and dtype {X.dtype}"
    if X.dtype.kind in "OUST":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim == 1:
            return X
        if X.dtype != object or X.ndim == 0:
            raise ValueError(f"{found}. Expected {_CONTAINERS}.")
        # An object array of several dimensions, such as numpy makes from mixed lists.
        raise ValueError(f"{found}. Expected a 1-D object array with one image each.")
    if X.ndim == 2:
        raise ValueError(
            f"{found}, a feature matrix (n_samples, n_features). Expected images: "
            f"{_CONTAINERS}. Reshape rows of pixels: X.reshape(-1, height, width)."
        )
    if X.ndim == 3 and X.shape[2] in (1, 3, 4) and len(X) > 0:
        raise ValueError(
            f"{found}, a single image (height, width, channels). Expected "
            f"{_CONTAINERS}; for one image: X[None]."
        )
    if X.ndim not in (3, 4):
        raise ValueError(f"{found}. Expected {_CONTAINERS}.")
    if X.ndim == 4 and X.shape[3] not in (1, 3, 4):
        hint = ""
        if X.shape[1] in (1, 3, 4):
            hint = " Move the channels last: X.transpose(0, 2, 3, 1)."
        raise ValueError(
            f"{found}. Expected 1, 3 or 4 channels on the last axis, got "
            f"{X.shape[3]}.{hint}"
        )
    return X
