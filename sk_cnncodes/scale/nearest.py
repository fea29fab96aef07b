"""Nearest codes: exactly, and by a graph (HNSW) that visits a few of them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from sk_cnncodes.engines.devices import usable_threads

Metric = Literal["cosine", "euclidean"]

# Distances that an exact search holds at once.
_DISTANCES = 2**25
# Rows whose distances are computed at once.
_ROWS = 2**16
# By how much products in float32 may be wrong, relative to the lengths of the codes.
_SLACK = 1e-5
# Lengths of codes beyond which squares in float32 vanish or overflow.
_SHORTEST, _LONGEST = 1e-15, 1e18
# The graph: neighbours of a code, and codes that are compared when one is added and in
# a search. `tests/benchmarks/index.py` measures what they give.
_CONNECTIVITY, _EXPANSION_ADD, _EXPANSION_SEARCH = 16, 128, 128
# Codes that a graph returns beyond those asked for, to be put in order by distances
# that are computed anew.
_EXTRA = 10
# Where the largest value of the first codes is put in float16, of at most 65,504.
_LARGEST = 64.0


class Codes(Protocol):
    """Codes under numbers, and the search for the nearest ones."""

    kind: str

    def __len__(self) -> int: ...
    def check(self, codes: np.ndarray) -> None:
        """Refuse finite codes that cannot be added."""

    def add(self, numbers: np.ndarray, codes: np.ndarray) -> None:
        """Add finite codes under new numbers."""

    def remove(self, numbers: np.ndarray) -> None:
        """Remove the codes of numbers that there are."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and distances of the k nearest codes; equal ones by number."""

    def facts(self) -> dict[str, Any]:
        """What `open` needs beside the content."""

    def write(self, path: Path) -> None:
        """Write the content to a file, in the order of numbers."""


def distances(query: np.ndarray, codes: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances of a code to others, in float64, the same for equal codes."""
    query, codes = query.astype(float), codes.astype(float)
    if metric == "euclidean":
        found: np.ndarray = np.sqrt(((codes - query) ** 2).sum(axis=1))
        return found
    lengths = np.sqrt((codes**2).sum(axis=1) * (query**2).sum())
    # The cosine of a code of zeros is 0, as in scikit-learn.
    products = (codes * query).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    clipped: np.ndarray = np.clip(1 - products, 0, 2)
    return clipped


def _in_order(
    query: np.ndarray, codes: np.ndarray, numbers: np.ndarray, k: int, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    far = distances(query, codes, metric)
    order = np.lexsort((numbers, far))[:k]
    return numbers[order], far[order]


def _lengths(codes: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        found: np.ndarray = np.linalg.norm(codes, axis=1)
    return found


def _for_cosines(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes, the extreme ones scaled, and their lengths, by which they are divided."""
    lengths = _lengths(codes)
    extreme = (lengths < _SHORTEST) | (lengths > _LONGEST)
    if extreme.any():
        largest = np.abs(codes[extreme]).max(axis=1, keepdims=True)
        codes = codes.copy()
        codes[extreme] /= np.where(largest == 0, 1, largest)
        lengths[extreme] = _lengths(codes[extreme])
    return codes, np.where(lengths == 0, 1, lengths)


class ExactCodes:
    """Codes in float32 that are all compared.

    Parameters
    ----------
    metric : {"cosine", "euclidean"}
    numbers : ndarray of int64, shape (n_codes,)
    codes : ndarray or memmap of float32, shape (n_codes, n_features)
    """

    kind = "exact"

    def __init__(self, metric: Metric, numbers: np.ndarray, codes: np.ndarray) -> None:
        self._metric: Metric = metric
        self._count = len(numbers)
        # With room for more codes.
        self._numbers, self._codes = numbers, codes

    def __len__(self) -> int:
        return self._count

    @property
    def numbers(self) -> np.ndarray:
        return self._numbers[: self._count]

    @property
    def codes(self) -> np.ndarray:
        return self._codes[: self._count]

    def check(self, codes: np.ndarray) -> None:
        """All are compared as they are."""

    def add(self, numbers: np.ndarray, codes: np.ndarray) -> None:
        needed = self._count + len(numbers)
        if needed > len(self._numbers) or not self._codes.flags.writeable:
            room = max(needed, self._count * 3 // 2)
            grown = np.empty(room, np.int64), np.empty((room, codes.shape[1]), "f4")
            grown[0][: self._count], grown[1][: self._count] = self.numbers, self.codes
            self._numbers, self._codes = grown
        self._numbers[self._count : needed] = numbers
        self._codes[self._count : needed] = codes
        self._count = needed

    def remove(self, numbers: np.ndarray) -> None:
        kept = ~np.isin(self.numbers, numbers)
        self._numbers, self._codes = self.numbers[kept], self.codes[kept]
        self._count = len(self._numbers)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = np.empty((len(queries), k), np.int64)
        far = np.empty((len(queries), k), np.float32)
        group = max(1, _DISTANCES // self._count)
        for start in range(0, len(queries), group):
            part = queries[start : start + group]
            for row, near in enumerate(self._candidates(part, k), start):
                found[row], far[row] = _in_order(
                    queries[row], self.codes[near], self.numbers[near], k, self._metric
                )
        return found, far

    def _candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """Rows that can be among the k nearest, by products in float32."""
        near = np.empty((len(queries), self._count), np.float32)
        slack = np.full((len(queries), 1), _SLACK)
        if self._metric == "cosine":
            queries, sizes = _for_cosines(queries)
            queries = queries / sizes[:, None]
        else:
            sizes = _lengths(queries)
        for start in range(0, self._count, _ROWS):
            part = slice(start, min(start + _ROWS, self._count))
            if self._metric == "cosine":
                codes, lengths = _for_cosines(self.codes[part])
                near[:, part] = -(queries @ codes.T) / lengths
                continue
            codes = self.codes[part]
            lengths = _lengths(codes)
            if max(lengths.max(), sizes.max()) > _LONGEST:
                # Only float64 can tell.
                return [np.arange(self._count)] * len(queries)
            near[:, part] = lengths**2 - 2 * (queries @ codes.T)
            largest = sizes[:, None] ** 2 + lengths.max() ** 2
            slack = np.maximum(slack, _SLACK * largest)
        kth = np.partition(near, k - 1, axis=1)[:, k - 1 : k]
        return [np.flatnonzero(row) for row in near <= kth + slack]

    def facts(self) -> dict[str, Any]:
        return {}

    def write(self, path: Path) -> None:
        order = np.argsort(self.numbers)
        with open(path, "wb") as file:
            for start in range(0, self._count, _ROWS):
                file.write(self.codes[order[start : start + _ROWS]].tobytes())


def import_usearch() -> Any:
    """usearch.index, or an ImportError that says how to install it."""
    try:
        import usearch.index
    except ImportError as error:
        raise ImportError(
            "an index of many codes needs usearch, which is not installed: pip install "
            "'sk-cnncodes[index]'. Without it, exact=True compares all codes."
        ) from error
    return usearch.index


class GraphCodes:
    """Codes in float16 in a graph of near codes (HNSW), by usearch.

    Parameters
    ----------
    metric : {"cosine", "euclidean"}
    length : int
        Features of a code.
    scale : float
        By which codes are multiplied before they become float16; of no meaning for
        cosines, where codes get unit length.
    n_threads : int
    content : memmap, default=None
        Of a saved graph, which is read from the file as it is needed.
    """

    kind = "graph"

    def __init__(
        self,
        metric: Metric,
        length: int,
        scale: float,
        n_threads: int,
        content: np.ndarray | None = None,
    ) -> None:
        self._metric: Metric = metric
        self._scale = scale
        self._threads = n_threads
        self._content = content
        # usearch has one search a thread of its own, whoever calls.
        self._lock = threading.Lock()
        self._graph = import_usearch().Index(
            ndim=length,
            metric="ip" if metric == "cosine" else "l2sq",
            dtype="f16",
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD,
            expansion_search=_EXPANSION_SEARCH,
        )
        if content is not None:
            self._graph.view(content)
            self._graph.expansion_search = _EXPANSION_SEARCH

    def __len__(self) -> int:
        return len(self._graph)

    def check(self, codes: np.ndarray) -> None:
        """Refuse values that are too large.

        Raises
        ------
        ValueError
            If there are some.
        """
        if self._metric == "cosine":
            return
        largest = float(np.abs(codes * np.float32(self._scale)).max(initial=0))
        if largest > float(np.finfo(np.float16).max):
            raise ValueError(
                f"codes: the value {largest / self._scale:.3g} is too large beside "
                f"those that the index began with, of at most "
                f"{_LARGEST / self._scale:.3g}. Expected codes of one kind."
            )

    def add(self, numbers: np.ndarray, codes: np.ndarray) -> None:
        stored = self._stored(codes)
        with self._lock:
            self._own()
            self._graph.add(numbers, stored, threads=self._threads)

    def remove(self, numbers: np.ndarray) -> None:
        with self._lock:
            self._own()
            self._graph.remove(numbers, threads=self._threads)

    def _own(self) -> None:
        """Read a graph that is mapped from its file into memory, to change it."""
        if self._content is not None:
            self._graph.load(self._content)
            self._graph.expansion_add = _EXPANSION_ADD
            self._graph.expansion_search = _EXPANSION_SEARCH
            self._content = None

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = np.empty((len(queries), k), np.int64)
        far = np.empty((len(queries), k), np.float32)
        stored = self._stored(queries)
        with self._lock:
            near, counts = self._near(stored, k + _EXTRA, exact=False)
            for row in range(len(queries)):
                numbers = near[row, : counts[row]]
                if len(numbers) < k:  # some of a graph may be out of reach
                    found_exactly, (count,) = self._near(stored[row : row + 1], k, True)
                    numbers = found_exactly[0, :count]
                codes = np.stack(self._graph.get(numbers))
                found[row], far[row] = _in_order(
                    stored[row], codes, numbers.astype(np.int64), k, self._metric
                )
        return found, far if self._metric == "cosine" else far / self._scale

    def _near(
        self, stored: np.ndarray, k: int, exact: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Numbers, and how many were found, of each query."""
        threads = min(self._threads, len(stored))
        count = min(k, len(self._graph))
        found = self._graph.search(stored, count, threads=threads, exact=exact)
        keys = np.atleast_2d(found.keys)
        counts = getattr(found, "counts", None)  # of one query there are none
        return keys, np.array([keys.shape[1]]) if counts is None else counts

    def _stored(self, codes: np.ndarray) -> np.ndarray:
        """Codes as the graph has them."""
        if self._metric == "cosine":
            codes, lengths = _for_cosines(codes)
            codes = codes / lengths[:, None]
        else:
            self.check(codes)
            codes = codes * np.float32(self._scale)
        return codes.astype(np.float16)

    def facts(self) -> dict[str, Any]:
        return {"scale": self._scale, "library": "usearch"}

    def write(self, path: Path) -> None:
        with self._lock:
            if self._content is not None:
                self._content.tofile(path)
            else:
                self._graph.save(path)


def graph_of(codes: ExactCodes, metric: Metric, n_jobs: int | None) -> GraphCodes:
    """A graph of codes that were compared exactly."""
    largest = float(np.abs(codes.codes).max(initial=0)) or 1.0
    # A factor that float32 can hold.
    power = min(np.floor(np.log2(_LARGEST / largest)), 126)
    scale = 1.0 if metric == "cosine" else 2.0**power
    length = codes.codes.shape[1]
    graph = GraphCodes(metric, length, float(scale), usable_threads(n_jobs))
    for start in range(0, len(codes), _ROWS):
        part = slice(start, start + _ROWS)
        graph.add(codes.numbers[part], codes.codes[part])
    return graph
