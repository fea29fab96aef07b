"""Codes and keys as they are given to an index, checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.scale.embed import spec_of
from sk_cnncodes.scale.stored_codes import StoredCodes, open_codes

# Rows that are added at once.
_ROWS = 8192


def with_spec(codes: Any, spec: Any) -> tuple[Any, str | None]:
    """Codes, opened if they are a folder, and the digest of what they are of."""
    if isinstance(codes, (str, os.PathLike)):
        codes = open_codes(codes)
    if isinstance(codes, StoredCodes):
        if spec is not None:
            raise ValueError("spec: stored codes have their own. Expected None.")
        return codes, str(codes.plan["spec"])
    if isinstance(spec, CNNCodeTransformer):
        spec = spec_of(spec)
    if spec is not None and not isinstance(spec, str):
        raise TypeError(
            f"spec: got {type(spec).__name__}. Expected a digest or a "
            "CNNCodeTransformer."
        )
    return codes, spec


def matrix_of(codes: Any) -> Any:
    """Codes as a matrix, not yet read if they are in a file."""
    matrix = codes if hasattr(codes, "shape") else np.asarray(codes)
    if len(matrix.shape) != 2 or matrix.dtype.kind not in "fiu":
        raise ValueError(
            f"codes: got an array of shape {matrix.shape} and {matrix.dtype}. Expected "
            "numbers of shape (n_images, n_features); of one code, codes[None]."
        )
    return matrix


def checked_keys(keys: Any, count: int) -> list[str]:
    if keys is None or isinstance(keys, str):
        raise ValueError(f"keys={keys!r}: expected a text for each of {count} codes.")
    found = list(keys)
    for row, key in enumerate(found):
        if not isinstance(key, str):
            raise ValueError(f"keys[{row}]={key!r}: expected a str.")
    if len(found) != count:
        raise ValueError(f"keys: got {len(found)}. Expected one for each of {count}.")
    return [str(key) for key in found]


def code_batches(codes: Any, keys: Any) -> Iterator[tuple[list[str], Any]]:
    if isinstance(codes, StoredCodes):
        for batch in codes.iter_batches(_ROWS):
            yield batch.keys, batch.codes
        return
    for start in range(0, len(keys), _ROWS):
        part = slice(start, start + _ROWS)
        yield keys[part], codes[part]
