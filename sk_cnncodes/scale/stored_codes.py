"""open_codes: the codes of a folder of shards, read as they are asked for."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np

from sk_cnncodes.base.public import public
from sk_cnncodes.codes.streaming import CodeBatch
from sk_cnncodes.datasets.tables import import_parquet
from sk_cnncodes.images.addresses import allowed_prefixes
from sk_cnncodes.images.remote import RemoteReader
from sk_cnncodes.scale.manifest import is_complete, read_manifest, read_plan
from sk_cnncodes.scale.remote_paths import AnyPath, any_path, content_sha256, opened
from sk_cnncodes.scale.shards import PLAN, read_facts, reading, shards_in

# Row groups that are kept, each of at most 1,024 codes.
_KEPT = 8


@public
class StoredCodes:
    """The codes that `embed_to` wrote, as a matrix that is read in parts.

    Rows are in the order of the source, whatever the order in which they were written.
    ``codes[i]``, ``codes[i:j]``, ``codes[indices]`` and ``codes[mask]`` read rows;
    ``numpy.asarray(codes)`` reads all of them. `open_codes` makes it.

    Parameters
    ----------
    folder : Path or RemotePath
    files : list of Path or RemotePath
        The shards, in order.
    counts : list of int
        Their numbers of rows.
    plan : dict
        Of the folder.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        As stored.
    plan : dict
        Settings of the codes: ``_plan.json``.
    """

    ndim = 2

    def __init__(
        self,
        folder: AnyPath,
        files: list[AnyPath],
        counts: list[int],
        plan: dict[str, Any],
    ) -> None:
        self._folder = folder
        self._files = files
        self._ends = list(accumulate(counts))
        self.plan = plan
        self.shape = (sum(counts), int(plan["code_length"]))
        self.dtype = np.dtype(plan["dtype"])
        # Ends of the row groups of each shard that was opened.
        self._groups: dict[int, list[int]] = {}
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<StoredCodes {self.shape} of {self.dtype} in {str(self._folder)!r}>"

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Rows as an array of the stored dtype."""
        if isinstance(rows, tuple):
            rows = _rows_of(rows)
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            if step == 1:
                return self._span(first, max(first, last))
            rows = np.arange(first, last, step)
        indices = np.asarray(rows)
        if indices.dtype == bool:
            if indices.shape != (len(self),):
                raise IndexError(
                    f"got a mask of shape {indices.shape}. Expected ({len(self)},)."
                )
            indices = np.flatnonzero(indices)
        if indices.shape == (0,):
            indices = indices.astype(np.intp)
        if indices.ndim > 1 or indices.dtype.kind not in "iu":
            raise _no_rows(rows)
        wrong = (indices < -len(self)) | (indices >= len(self))
        if wrong.any():
            bad = np.atleast_1d(indices)[np.atleast_1d(wrong)][0]
            raise IndexError(f"row {bad} of {len(self)} codes.")
        places = np.atleast_1d(np.where(indices < 0, indices + len(self), indices))
        out = np.empty((len(places), self.shape[1]), self.dtype)
        # Sorted, so that each row group is read once.
        order = np.argsort(places, kind="stable")
        done = 0
        while done < len(order):
            codes, start = self._group_of(int(places[order[done]]))
            end = np.searchsorted(places, start + len(codes), sorter=order)
            taken = order[done:end]
            out[taken] = codes[places[taken] - start]
            done = int(end)
        return out[0] if indices.ndim == 0 else out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def iter_batches(self, batch: int = 1024) -> Iterator[CodeBatch]:
        """Read all rows in order, in bounded memory.

        Parameters
        ----------
        batch : int, default=1024
            Largest number of rows at once. Batches end with their shard's row groups.

        Yields
        ------
        CodeBatch
            With `keys`, `codes` as float32, and `errors` as text.
        """
        if batch < 1:
            raise ValueError(f"batch={batch!r}: expected a number of rows from 1 on.")
        for file in self._files:
            with self._parquet(file) as shard:
                names = ["key", "code", "error"]
                for part in shard.iter_batches(batch, columns=names):
                    codes = self._matrix(part.column("code")).astype(np.float32)
                    keys, errors = (
                        part.column(name).to_pylist() for name in ("key", "error")
                    )
                    yield CodeBatch(keys, codes, errors)

    @property
    def keys(self) -> np.ndarray:
        """All keys, read at each access: an array of str objects."""
        return self.column("key")

    @property
    def errors(self) -> np.ndarray:
        """Why images could not be read; None for all others."""
        return self.column("error")

    def column(self, name: str) -> np.ndarray:
        """All values of a column: ``"key"``, ``"error"``, ``"digest"``, or another.

        Parameters
        ----------
        name : str

        Returns
        -------
        ndarray of object, shape (n_images,)
        """
        names = ["key", "error", "digest", *self.plan["columns"]]
        if name not in names:
            raise ValueError(f"column {name!r}: expected one of {names}.")
        out = np.empty(len(self), object)
        start = 0
        for file, end in zip(self._files, self._ends, strict=True):
            with self._parquet(file) as shard:
                out[start:end] = shard.read([name]).column(name).to_pylist()
            start = end
        return out

    # -- row groups ----------------------------------------------------------

    @contextmanager
    def _parquet(self, file: AnyPath) -> Iterator[Any]:
        parquet = import_parquet(repr(str(file)))
        with reading(file), parquet.ParquetFile(opened(file), memory_map=True) as shard:
            yield shard

    def _matrix(self, column: Any) -> np.ndarray:
        values = column.flatten().to_numpy(zero_copy_only=False)
        codes: np.ndarray = values.reshape(-1, self.shape[1])
        return codes

    def _span(self, first: int, last: int) -> np.ndarray:
        out = np.empty((last - first, self.shape[1]), self.dtype)
        row = first
        while row < last:
            codes, start = self._group_of(row)
            part = codes[row - start : last - start]
            out[row - first : row - first + len(part)] = part
            row += len(part)
        return out

    def _group_of(self, row: int) -> tuple[np.ndarray, int]:
        """The row group of a row, and the row that it begins with."""
        shard = bisect_right(self._ends, row)
        start = self._ends[shard - 1] if shard else 0
        if shard not in self._groups:
            with self._parquet(self._files[shard]) as file:
                metadata = file.metadata
                sizes = [
                    metadata.row_group(number).num_rows
                    for number in range(metadata.num_row_groups)
                ]
            self._groups[shard] = list(accumulate(sizes))
        ends = self._groups[shard]
        group = bisect_right(ends, row - start)
        start += ends[group - 1] if group else 0
        codes = self._kept.get((shard, group))
        if codes is None:
            with self._parquet(self._files[shard]) as file:
                table = file.read_row_group(group, columns=["code"])
                codes = self._matrix(table.column("code").combine_chunks())
            self._kept[shard, group] = codes
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return codes, start


def _rows_of(place: tuple[Any, ...]) -> Any:
    """The rows of a place in a matrix, as scikit-learn indexes: ``[rows, ...]``."""
    if len(place) == 2 and place[1] in (Ellipsis, slice(None)):
        return place[0]
    raise _no_rows(place)


def _no_rows(rows: Any) -> IndexError:
    return IndexError(
        f"got {type(rows).__name__}. Expected a row, a slice, or a list of rows; "
        "columns are chosen afterwards: codes[rows][:, columns]."
    )


@public
def open_codes(
    target: str | os.PathLike[str],
    *,
    partial: bool = False,
    verify: bool = False,
    remote: bool | Sequence[str] | None = None,
) -> StoredCodes:
    """Open the codes that `embed_to` wrote to a folder; rows are read when needed.

    Parameters
    ----------
    target : str or path-like
        The folder, or its address.
    partial : bool, default=False
        Whether to open the shards that there are, if not all of them are finished.
    verify : bool, default=False
        Whether to compare the SHA-256 of each shard with the manifest, which reads all.
    remote : bool, sequence of str or None, default=None
        Whether the folder may be at an address, as `embed_to` has it. Rows are then
        read over the network, at most a few row groups of them are kept.

    Returns
    -------
    StoredCodes
        A matrix of shape (n_images, n_features), with the keys of its rows.

    Raises
    ------
    ValueError
        If it is no such folder, it is not complete, or a shard is missing or changed.
    ImportError
        If pyarrow is not installed.

    See Also
    --------
    embed_to : Write the codes.

    Examples
    --------
    A classifier that learns in bounded memory:

    >>> import tempfile
    >>> import numpy as np
    >>> from sklearn.linear_model import SGDClassifier
    >>> from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes
    >>> X = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    >>> y = {str(row): row % 2 for row in range(6)}
    >>> classifier = SGDClassifier(random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = embed_to(CNNCodeTransformer(), folder, X)
    ...     for batch in open_codes(folder).iter_batches(4):
    ...         labels = [y[key] for key in batch.keys]
    ...         _ = classifier.partial_fit(batch.codes, labels, classes=[0, 1])
    >>> classifier.coef_.shape
    (1, 800)
    """
    folder = any_path(target, RemoteReader(allowed_prefixes(remote)))
    plan = read_plan(folder)
    manifest = read_manifest(folder)
    # Only what is called like a shard is opened, whatever the manifest names.
    there = {path.name: path for path in shards_in(folder).values()}
    shards = [] if manifest is None else manifest["shards"]
    listed = {shard["file"]: shard for shard in shards}
    for name, shard in listed.items():
        path = there.get(name)
        if path is None or (verify and content_sha256(path) != shard["sha256"]):
            raise ValueError(
                f"{str(folder / name)!r}: the shard is "
                f"{'missing' if path is None else 'changed'}. Remove it if it is "
                "there, and run embed_to again."
            )
    if not partial and not is_complete(manifest, {*there}):
        raise ValueError(
            f"target {str(folder)!r}: not all codes are written. Run embed_to again, "
            "or its other parts; partial=True opens what there is."
        )
    counts = []
    for name, path in there.items():
        if name in listed and not verify:
            counts.append(listed[name]["rows"])
            continue
        facts = read_facts(path)
        if facts.spec != plan["spec"]:
            raise ValueError(
                f"{str(path)!r}: the shard has codes of other settings than the "
                f"folder's {PLAN}. Remove it, and run embed_to again."
            )
        counts.append(facts.rows)
    return StoredCodes(folder, [*there.values()], counts, plan)
