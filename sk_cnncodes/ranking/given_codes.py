"""Codes that are given to `rank_codes` in place of images."""

from __future__ import annotations

from typing import Any

import numpy as np

from sk_cnncodes.ranking.layer_codes import ComparedLayer

# The name of the backbone and the layer of given codes in a ranking.
GIVEN = "codes"
# Bytes of the codes that are read at once.
_CHUNK_BYTES = 2**26


def is_matrix(X: Any) -> bool:
    """Whether X is a matrix of codes: of floats, with a dtype and a shape."""
    dtype = getattr(X, "dtype", None)
    return getattr(X, "ndim", 0) == 2 and getattr(dtype, "kind", "") == "f"


class GivenCodes:
    """A matrix of codes in the place of a `ComparedBackbone`, and its good rows.

    Parameters
    ----------
    codes : StoredCodes, ndarray or memmap, shape (n_images, n_features)
        Rows are read in chunks, all of them once here.

    Attributes
    ----------
    name : str
    layers : list of ComparedLayer
        One.
    images_per_second : None
    notes : list of str
        On rows that were left out since they are not finite: those of bad images.
    """

    images_per_second = None

    def __init__(self, codes: Any) -> None:
        self.name = GIVEN
        self.layers = [ComparedLayer(GIVEN, [GIVEN], 0, 0.0)]
        self.n_given = len(codes)
        self._matrix = CodeMatrix(codes)
        # Norms of the stored codes, which are not applied a second time.
        specs = getattr(codes, "plan", {}).get("specs", [])
        self._norms = {spec.get("norm") for spec in specs}
        good = np.ones(len(codes), bool)
        for start, part in self._matrix.chunks():
            good[start : start + len(part)] = np.isfinite(part).all(axis=1)
        self._rows = None if good.all() else np.flatnonzero(good)
        self.notes = list[str]()
        if self._rows is not None:
            self._matrix = CodeMatrix(codes, self._rows)
            first = int(np.argmin(good))
            self.notes.append(
                f"{self.n_given - len(self._rows)} of {self.n_given} rows are not "
                f"finite, as those of bad images, and were left out; the first is row "
                f"{first}."
            )

    def __len__(self) -> int:
        return len(self._matrix)

    def keep(self, values: Any, name: str) -> Any:
        """What belongs to the rows that are ranked.

        Raises
        ------
        ValueError
            If there is not one for each row.
        """
        if values is None:
            return None
        values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        if values.shape[:1] != (self.n_given,):
            raise ValueError(
                f"{name}: expected one for each of the {self.n_given} codes, got the "
                f"shape {values.shape}."
            )
        return values if self._rows is None else values[self._rows]

    def norms(self, norms: list[str]) -> list[str]:
        """Those of the norms that can be told from each other here."""
        if "power" not in self._norms:
            return norms
        self.notes.append('The codes were stored with norm="power", and have no other.')
        return ["power"]

    def applied(self, norm: str) -> str | None:
        """The norm that is left to apply."""
        return None if self._norms == {norm} else norm

    def configure(self, **_: Any) -> None:
        """Nothing: no code is computed."""

    def compute(self, *_: Any) -> list[Any]:
        """The codes, which are not read yet."""
        return [self._matrix]


class CodeMatrix:
    """Rows of a matrix as float32, read when they are asked for.

    Parameters
    ----------
    codes : StoredCodes, ndarray or memmap, shape (n_images, n_features)
    rows : ndarray of int or None, default=None
        The rows that are meant; None are all.
    """

    ndim = 2

    def __init__(self, codes: Any, rows: np.ndarray | None = None) -> None:
        self._codes, self._rows = codes, rows
        self.shape = len(codes) if rows is None else len(rows), codes.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        rows = rows if self._rows is None else self._rows[rows]
        return np.asarray(self._codes[rows], np.float32)

    def chunks(self) -> Any:
        """Yield the first row of each chunk, and the chunk."""
        step = max(1, _CHUNK_BYTES // (4 * self.shape[1]))
        for start in range(0, len(self), step):
            yield start, self[start : start + step]
