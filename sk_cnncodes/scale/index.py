"""CodeIndex: the nearest codes among millions, by key."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes._version import __version__
from sk_cnncodes.base.public import public
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.engines.devices import check_n_jobs, usable_threads
from sk_cnncodes.scale.given_codes import (
    checked_keys,
    code_batches,
    matrix_of,
    with_spec,
)
from sk_cnncodes.scale.index_file import StoredKeys, read_index, write_index
from sk_cnncodes.scale.nearest import (
    ExactCodes,
    GraphCodes,
    Metric,
    graph_of,
    import_usearch,
)
from sk_cnncodes.scale.stored_codes import StoredCodes

# Codes beyond which a graph is searched, if `exact` does not say.
MOST_EXACT = 20_000


@public
class CodeIndex:
    """The nearest codes among many, by key.

    Up to 20,000 codes are all compared. Beyond, codes are searched by a graph of near
    codes (HNSW, by usearch, of the extra `index`), which finds nearly all of the
    nearest where codes have some structure; among codes of independent noise it finds
    few. Both give the same form.

    Parameters
    ----------
    metric : {"cosine", "euclidean"}, default="cosine"
        Distance between codes. Euclidean distances are of codes as they are.
    exact : bool or None, default=None
        True: all codes are compared, however many; False: never; None: up to 20,000,
        and beyond where usearch is not installed, with a warning.
    n_jobs : int or None, default=None
        Threads that add, and that search for several codes: None is one, -1 all cores.
        With one, the same codes in the same order give the same index.

    Attributes
    ----------
    spec : str or None
        Digest of the code specs, where it is known: of shards, or as it was given.
    code_length : int or None
        Features of a code; None while there are none.
    n_left_out : int
        Codes of NaN, those of bad images, that were left out.

    See Also
    --------
    embed_to : Write the codes of any number of images.
    open_codes : Open them.

    Notes
    -----
    A graph has codes in float16: with unit length for cosines, otherwise multiplied by
    a power of two. Distances are computed from these, in float64, which changes them by
    less than 0.001 of what two unlike codes have; equal codes have a distance of 0.

    Searches may come from several threads; changes may not, nor during a search.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sk_cnncodes import CodeIndex
    >>> codes = np.eye(4, 8) + 0.1
    >>> index = CodeIndex().add(codes, ["a", "b", "c", "d"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     index.save(Path(folder, "photos.index"))
    ...     index = CodeIndex.open(Path(folder, "photos.index"))
    ...     keys, distances = index.search(codes[:1], k=2)
    >>> keys
    array([['a', 'b']], dtype=object)
    >>> distances.round(3)
    array([[0.   , 0.781]], dtype=float32)
    """

    def __init__(
        self,
        metric: Metric = "cosine",
        *,
        exact: bool | None = None,
        n_jobs: int | None = None,
    ) -> None:
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric={metric!r}: expected 'cosine' or 'euclidean'.")
        if exact not in (True, False, None):
            raise ValueError(f"exact={exact!r}: expected True, False or None.")
        check_n_jobs(n_jobs)
        if exact is False:
            import_usearch()
        self.metric: Metric = metric
        self.exact = exact
        self.n_jobs = n_jobs
        self.spec: str | None = None
        self.code_length: int | None = None
        self.n_left_out = 0
        self._codes: ExactCodes | GraphCodes | None = None
        # By number, in the order in which keys were added; None for removed ones.
        self._keys: list[str | None] | StoredKeys = []
        # Numbers by key; None while keys are read from a file.
        self._numbers: dict[str, int] | None = {}
        self._warned = False

    def __len__(self) -> int:
        return 0 if self._codes is None else len(self._codes)

    def __contains__(self, key: object) -> bool:
        return key in self._own_keys()[1]

    def __repr__(self) -> str:
        if self._codes is None:
            return f"<CodeIndex: no codes, {self.metric}>"
        kind = "all compared" if self._codes.kind == "exact" else "in a graph"
        shape = (len(self), self.code_length)
        return f"<CodeIndex: codes of shape {shape}, {self.metric}, {kind}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a CodeIndex is not pickled: save(path) writes it, and "
            "CodeIndex.open(path) maps it into any number of processes."
        )

    @property
    def keys(self) -> list[str]:
        """All keys, in the order in which they were first added."""
        return list(self._own_keys()[1])

    def add(
        self,
        codes: Any,
        keys: Iterable[str] | None = None,
        *,
        spec: str | CNNCodeTransformer | None = None,
    ) -> CodeIndex:
        """Add codes, a part at a time; the code of a key that is there is replaced.

        Parameters
        ----------
        codes : array-like of shape (n_images, n_features), StoredCodes, str or path
            A path is that of a folder that `embed_to` wrote; if its keys are positions
            and replace others, a warning says how many. Rows with values that are
            not finite are left out and counted; what their keys had stays.
        keys : iterable of str, default=None
            One for each row; stored codes have their own.
        spec : str or CNNCodeTransformer, default=None
            What the codes are of, where it is known: codes of another one are refused.
            Stored codes have their own.

        Returns
        -------
        CodeIndex
            Itself.

        Raises
        ------
        ValueError
            If keys or codes do not fit, or codes are of another spec. Codes are added
            some thousands at a time: those before a value that is too large stay, and
            are replaced if they are added again.
        ImportError
            If `exact` is False, and usearch is not installed.
        """
        codes, spec = with_spec(codes, spec)
        stored = isinstance(codes, StoredCodes)
        if stored and keys is not None:
            raise ValueError("keys: stored codes have their own. Expected None.")
        if not stored:
            codes = matrix_of(codes)
            keys = checked_keys(keys, len(codes))
        self._check_length(codes.shape[1])
        if len(self) and self.spec is None:
            spec = None  # some codes there have no known spec
        self._check_spec(spec)
        n_replaced, has_positions = 0, stored
        for part_keys, part in code_batches(codes, keys):
            n_replaced += self._add(part_keys, np.asarray(part, np.float32), spec)
            has_positions = has_positions and all(map(str.isdecimal, part_keys))
        self.spec, self.code_length = spec, codes.shape[1]
        if n_replaced and has_positions:
            warnings.warn(
                f"{n_replaced:,} codes of the index were replaced: keys of {codes!r} "
                "are positions, such as '0', which other codes have too. To keep all, "
                "add(codes[:], keys) with keys of your own.",
                stacklevel=2,
            )
        return self

    def _add(self, keys: list[str], codes: np.ndarray, spec: str | None) -> int:
        """Add a part; return how many codes it replaced."""
        finite = np.isfinite(codes).all(axis=1)
        # The last row of a key.
        rows = {key: row for row, key in enumerate(keys) if finite[row]}
        if self._codes is not None:
            # Before anything is changed: then the old codes of these keys stay.
            self._codes.check(codes[list(rows.values())])
        self.spec, self.code_length = spec, codes.shape[1]
        self.n_left_out += int((~finite).sum())
        if not rows:
            return 0
        names, numbers = self._own_keys()
        replaced = [numbers[key] for key in rows if key in numbers]
        if replaced:
            assert self._codes is not None
            self._codes.remove(np.array(replaced))
        for key in rows:
            if key not in numbers:
                numbers[key] = len(names)
                names.append(key)
        added = np.array([numbers[key] for key in rows])
        order = np.argsort(added)
        self._store().add(added[order], codes[list(rows.values())][order])
        self._choose_search()
        return len(replaced)

    def _store(self) -> ExactCodes | GraphCodes:
        if self._codes is None:
            nothing = np.empty(0, np.int64), np.empty((0, self.code_length or 0), "f4")
            self._codes = ExactCodes(self.metric, *nothing)
        return self._codes

    def _choose_search(self) -> None:
        """Begin with a graph where there are too many codes to compare them all."""
        codes = self._codes
        most = 0 if self.exact is False else MOST_EXACT
        if not isinstance(codes, ExactCodes) or self.exact or len(codes) <= most:
            return
        try:
            self._codes = graph_of(codes, self.metric, self.n_jobs)
        except ImportError as error:
            if not self._warned:
                warnings.warn(
                    f"More than {MOST_EXACT:,} codes are searched by comparing all of "
                    f"them, which takes longer: {error}",
                    stacklevel=4,
                )
            self._warned = True

    def remove(self, keys: Iterable[str]) -> CodeIndex:
        """Remove codes.

        Parameters
        ----------
        keys : iterable of str

        Returns
        -------
        CodeIndex
            Itself.

        Raises
        ------
        KeyError
            If a key is not there; then none is removed.
        """
        if isinstance(keys, str):
            raise ValueError(f"keys={keys!r}: expected a list of keys.")
        names, numbers = self._own_keys()
        gone = dict.fromkeys(keys)
        for key in gone:
            if key not in numbers:
                raise KeyError(f"key {key!r}: it is not in the index.")
        if gone:
            assert self._codes is not None
            self._codes.remove(np.array([numbers[key] for key in gone]))
            for key in gone:
                names[numbers.pop(key)] = None
        return self

    def search(
        self, codes: Any, k: int = 10, *, spec: str | CNNCodeTransformer | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest codes of each code.

        Parameters
        ----------
        codes : array-like of shape (n_queries, n_features), or StoredCodes
        k : int, default=10
            Of fewer codes, all are found.
        spec : str or CNNCodeTransformer, default=None
            What the codes are of, where it is known.

        Returns
        -------
        keys : ndarray of str objects, shape (n_queries, k)
            The nearest first; of equally near ones, the one that was added first.
        distances : ndarray of float32, shape (n_queries, k)

        Raises
        ------
        ValueError
            If codes do not fit, are not finite, or are of another spec.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k={k!r}: expected a number of codes from 1 on.")
        codes, spec = with_spec(codes, spec)
        queries = np.asarray(matrix_of(codes), np.float32)
        self._check_length(queries.shape[1])
        self._check_spec(spec)
        bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
        if len(bad):
            raise ValueError(
                f"codes: row {bad[0]} has values that are not finite, as those of a "
                "bad image. Expected codes without such rows."
            )
        if self._codes is None or not len(self):
            empty = len(queries), 0
            return np.empty(empty, object), np.empty(empty, np.float32)
        numbers, distances = self._codes.search(queries, min(int(k), len(self)))
        found = np.empty(numbers.shape, object)
        for place, number in enumerate(numbers.ravel().tolist()):
            found.ravel()[place] = self._keys[number]
        return found, distances

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one file, whole or not at all.

        Parameters
        ----------
        path : str or path-like
            What is there is replaced. A process that has it open goes on with the old
            one.
        """
        facts = {
            "version": __version__,
            "metric": self.metric,
            "exact": self.exact,
            "spec": self.spec,
            "code_length": self.code_length,
            "n_left_out": self.n_left_out,
            "count": len(self),
            "kind": self._store().kind,
            "content": self._store().facts(),
        }
        write_index(Path(path), facts, self._keys, self._store().write)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        n_jobs: int | None = None,
    ) -> CodeIndex:
        """Open an index that was saved; it is read from its file as it is needed.

        Several processes share the memory of one file. A change reads it into memory;
        the file stays as it is until `save`.

        Parameters
        ----------
        path : str or path-like
        verify : bool, default=True
            Whether to compare its content with its SHA-256, which reads all of it.
            A damaged graph that is not compared can end the process.
        n_jobs : int or None, default=None
            As in the constructor.

        Returns
        -------
        CodeIndex

        Raises
        ------
        FileNotFoundError
        ValueError
            If it is no index, or it is damaged.
        ImportError
            If it needs usearch, and that is not installed.
        """
        facts, content, keys = read_index(Path(path), verify)
        if facts["kind"] == "graph":
            import_usearch()
        index = cls(facts["metric"], exact=None, n_jobs=n_jobs)
        index.exact = facts["exact"]
        for name in ("spec", "code_length", "n_left_out"):
            setattr(index, name, facts[name])
        index._keys, index._numbers = keys, None
        length = index.code_length or 0
        if facts["kind"] == "graph":
            threads, scale = usable_threads(n_jobs), facts["content"]["scale"]
            index._codes = GraphCodes(index.metric, length, scale, threads, content)
        elif facts["count"]:
            matrix = content.view(np.float32).reshape(-1, length)
            index._codes = ExactCodes(index.metric, keys.numbers, matrix)
        if len(index) != facts["count"]:
            raise ValueError(
                f"{str(path)!r}: the index is damaged: it has {len(index)} codes. "
                f"Expected {facts['count']}."
            )
        return index

    def _own_keys(self) -> tuple[list[str | None], dict[str, int]]:
        """Keys by number and numbers by key, in memory."""
        if isinstance(self._keys, StoredKeys):
            self._keys = self._keys.all()
        if self._numbers is None:
            pairs = enumerate(self._keys)
            self._numbers = {key: number for number, key in pairs if key is not None}
        return self._keys, self._numbers

    def _check_length(self, length: int) -> None:
        if self.code_length not in (None, length):
            raise ValueError(
                f"codes: got {length} features. Expected {self.code_length}, as those "
                "of the index."
            )

    def _check_spec(self, spec: str | None) -> None:
        if spec is not None and self.spec is not None and spec != self.spec:
            raise ValueError(
                f"codes: they are of another code spec ({spec[:12]}...) than those "
                f"of the index ({self.spec[:12]}...): of another backbone, layer, "
                "pooling, norm or preprocessing. Distances between them mean nothing."
            )
