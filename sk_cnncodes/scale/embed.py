"""embed_to: the codes of a source as a folder of Parquet shards."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sk_cnncodes._version import __version__
from sk_cnncodes.base.public import public
from sk_cnncodes.codes.plan import CodePlan, plan_transform, state_of
from sk_cnncodes.codes.streaming import CodeBatch
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.datasets.tables import import_parquet
from sk_cnncodes.images.addresses import allowed_prefixes
from sk_cnncodes.images.remote import RemoteReader
from sk_cnncodes.scale.manifest import PartDone, settle_plan, write_manifest
from sk_cnncodes.scale.ray import run_parts
from sk_cnncodes.scale.remaining import RemainingImages
from sk_cnncodes.scale.remote_paths import AnyPath, any_path
from sk_cnncodes.scale.shards import (
    ShardId,
    ShardWriter,
    check_shards,
    remove_unfinished,
)
from sk_cnncodes.scale.sources.remote import open_any_source, read_ahead
from sk_cnncodes.scale.sources.stream import Source, SourceImage
from sk_cnncodes.scale.unattended import reason, unattended

# Codes that are written at once.
_BATCH = 1024


@public
@dataclass(frozen=True)
class EmbedReport:
    """What a call of `embed_to` did.

    Attributes
    ----------
    n_images : int
        Images whose codes it computed; those of finished shards are not among them.
    n_bad : int
        Those of them that could not be read.
    n_shards : int
        Shards that it wrote.
    complete : bool
        Whether the folder has the codes of all images: all parts are done, and found
        the same number of images in the source.
    """

    n_images: int
    n_bad: int
    n_shards: int
    complete: bool


@public
def embed_to(
    transformer: CNNCodeTransformer,
    target: str | os.PathLike[str],
    source: Any,
    *,
    shard_rows: int = 8192,
    part: tuple[int, int] | None = None,
    dtype: str = "float32",
    columns: Sequence[str] = (),
    image_column: str | None = None,
    remote: bool | Sequence[str] | None = None,
    engine: str = "local",
    ray_options: Mapping[str, Any] | None = None,
) -> EmbedReport:
    """Write the codes of any number of images to a folder of Parquet files.

    Each file, a shard, is written whole or not at all. A second call with the same
    arguments skips finished shards, so that after an interruption at most the shards
    that were being written are computed again. Needs pyarrow.

    Memory use does not grow with the number of images, but for two things: the names in
    one folder, which are sorted, so that ten million of 24 bytes in a single folder
    take 260 MB; and a JSON array, which is read whole, as JSON lines are not.

    Parameters
    ----------
    transformer : CNNCodeTransformer
        Bad images never stop it, whatever its `on_error`. Its cache is used if it is a
        file or a `CodeCache`; codes are not collected in memory.
    target : str or path-like
        The folder, which is made if it is missing, or its address (URI) in an object
        store, such as ``"s3://bucket/codes/"``.
    source : str, path-like, list of them, data set or iterable
        - A folder: its image files, recursively; keys are paths in it.
        - A table (CSV, JSON lines, JSON, Parquet, Lance) with a column of paths, which
          start from its folder; keys are these paths. Lance needs pylance.
        - Tar archives (with WebDataset's names: ``0007.jpg`` and ``0007.cls`` are one
          sample), zip files, or Parquet files or Lance tables with a column of bytes or
          of structs ``{"bytes", "path"}``: one path, a list, or a pattern such as
          ``"train-{000..127}.tar"`` or ``"*.parquet"``. Keys are the file's name, a
          slash, and the member's name or the number of the row.
        - A data set of Hugging Face, map-style or streaming; keys are positions.
        - An iterable of pairs (key, image), or of images, whose keys are positions. For
          a second call, it must give the same images in the same order.

        Folders of object stores, tables and archives may be addresses, the latter two
        also of HTTP servers that send parts of files.
    shard_rows : int, default=8192
        Images of a shard; the last one of the source, or of each archive, has fewer.
    part : tuple of int or None, default=None
        ``(i, n)``: do part i, from 0 to n - 1, of n parts. They need not know of each
        other, run in any order or at once on machines that share the folder, and may
        run twice. At least n archives are divided as wholes; otherwise shards are.
    dtype : {"float32", "float16"}, default="float32"
        Of the codes in the files.
    columns : sequence of str, default=()
        Columns of a table or data set, or suffixes or JSON values of tar archives, that
        are written too, as text.
    image_column : str or None, default=None
        The column of a table or data set with the images; None finds it.
    remote : bool, sequence of str or None, default=None
        Whether addresses (URIs) are read, and written to; images at others are bad
        images. A sequence has the beginnings of the addresses that may be, such as
        ``["https://images.example.org/", "s3://bucket/"]``; True allows public hosts by
        HTTPS, and S3, Google and Azure storage; None asks the environment variable
        `SK_CNNCODES_REMOTE`: 1 is True, and beginnings may be separated by spaces. Up
        to 32 images are read at once, ahead of the threads that decode, and again, up
        to five times, after faults that may pass. Schemes other than http and https
        need fsspec, and its package for the scheme.
    engine : {"local", "ray"}, default="local"
        ``"ray"``: the parts are tasks of the Ray cluster that this process is connected
        to, or of this machine, and are done again if their worker dies. All machines
        must reach target and source; this process does not list the source.
    ray_options : mapping or None, default=None
        ``num_workers``, by default as many as the cluster has room for, and options of
        ``ray.remote``, such as ``num_cpus`` (by default `n_jobs`, 1 for -1) and
        ``num_gpus`` (1 if `device` is, or may be and finds, a GPU), of each of them.

    Returns
    -------
    EmbedReport
        What was done; `open_codes` reads the codes.

    Raises
    ------
    ValueError
        If an argument is invalid; if the source has no images; if the folder has codes
        of other settings or of another source; or if the source has changed since
        shards were written. A source is known by its keys and their order: that a file
        of the same name has another content is not noticed.
    ImportError
        If pyarrow is not installed.
    OSError
        If the source cannot be listed, or the folder cannot be written.

    See Also
    --------
    open_codes : Read the codes.
    CNNCodeTransformer.iter_codes : Codes of a stream without files.

    Notes
    -----
    The columns of the shards are ``key``, ``code`` (a list of fixed size; NaN for a bad
    image), ``error`` (why an image is bad, otherwise null), ``digest`` (SHA-256 of the
    image file; null for pixels) and `columns`. In the folder, ``_plan.json`` has the
    code specs and the version of the library, and ``_manifest.json``, written at the
    end, the shards with their SHA-256, the numbers of rows, and the bad images. Other
    readers of Parquet ignore both.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes
    >>> X = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = embed_to(CNNCodeTransformer(), folder, X, shard_rows=2)
    ...     codes = open_codes(folder)
    ...     report.n_shards, codes.shape, codes[3:5].shape, codes.keys[-1]
    (3, (5, 800), (2, 800), '4')
    """
    check_shards(shard_rows, part, dtype, columns)
    if engine != "local":
        _check_engine(engine, part)
        how = {"shard_rows": shard_rows, "dtype": dtype, "columns": columns}
        how |= {"image_column": image_column, "remote": allowed_prefixes(remote)}
        reports = run_parts(embed_to, transformer, target, source, how, ray_options)
        return EmbedReport(
            sum(report.n_images for report in reports),
            sum(report.n_bad for report in reports),
            sum(report.n_shards for report in reports),
            any(report.complete for report in reports),
        )
    reader = RemoteReader(allowed_prefixes(remote))
    import_parquet("embed_to")
    own = unattended(transformer)
    plan = plan_transform(state_of(own))
    folder = any_path(target, reader)
    opened = open_any_source(source, columns, image_column, reader)
    settle_plan(folder, _plan_of(plan, opened, shard_rows, dtype, columns))
    remove_unfinished(folder)
    part, spec = part or (0, 1), _spec_digest(plan)
    stream = RemainingImages(opened, folder, spec, shard_rows, part, reader)
    writer = _Writer(folder, plan, dtype, columns, stream)
    with writer, read_ahead(stream, reader) as images:
        for batch in own.iter_codes(images, batch=min(_BATCH, shard_rows)):
            writer.write(batch)
        if stream.fault is not None:
            raise stream.fault
        writer.finish()
    if stream.n_images == 0:
        raise ValueError(_without_images(source))
    done = PartDone(part, stream.shards, writer.written, stream.n_images)
    complete = write_manifest(folder, done)
    return EmbedReport(writer.n_images, writer.n_bad, writer.n_shards, complete)


def spec_of(transformer: CNNCodeTransformer) -> str:
    """The digest of a transformer's code specs, as shards have it."""
    return _spec_digest(plan_transform(state_of(unattended(transformer))))


def _check_engine(engine: Any, part: Any) -> None:
    if engine != "ray":
        raise ValueError(f"engine={engine!r}: expected 'local' or 'ray'.")
    if part is not None:
        raise ValueError(
            f"part={part!r}: expected None with engine='ray', which makes its own."
        )


def _plan_of(
    plan: CodePlan, source: Source, shard_rows: int, dtype: str, columns: Sequence[str]
) -> dict[str, Any]:
    """What all shards of a folder have in common."""
    specs = [
        asdict(spec) | {"preprocessing": spec.preprocessing.to_dict()}
        for spec in plan.specs
    ]
    values = {
        "spec": _spec_digest(plan),
        "code_length": sum(plan.code_lengths),
        "shard_rows": int(shard_rows),
        "dtype": dtype,
        "columns": list(columns),
        "pieces": source.pieces,
        "image_column": source.image_column,
        "specs": specs,
        "version": __version__,
    }
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def _spec_digest(plan: CodePlan) -> str:
    return ",".join(spec.digest for spec in plan.specs)


def _without_images(source: Any) -> str:
    """What is said of a source that has no images."""
    name = type(source).__name__
    advice = "Expected at least one."
    if isinstance(source, (str, os.PathLike)):
        name = repr(str(source))
        inside = Path(source)
        if inside.is_dir() and any(inside.glob("*.parquet")):
            advice = f"For its Parquet files: {str(inside / '*.parquet')!r}."
    return f"source: found no images in {name}. {advice}"


class _Writer:
    """Writes batches to the shards that they belong to, one after the other."""

    def __init__(
        self,
        folder: AnyPath,
        plan: CodePlan,
        dtype: str,
        columns: Sequence[str],
        stream: RemainingImages,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._dtype, self._columns = dtype, columns
        self._stream = stream
        self._shard: ShardWriter | None = None
        # Shards that were finished, with what `close` said of them.
        self.written: dict[ShardId, dict[str, Any] | None] = {}
        self.n_images = self.n_bad = self.n_shards = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shard is not None:
            self._shard.abandon()

    def write(self, batch: CodeBatch) -> None:
        """Write a batch, in as many parts as it has shards."""
        start = 0
        while start < len(batch):
            shard = batch.keys[start][0]
            stop = start
            while stop < len(batch) and batch.keys[stop][0] == shard:
                stop += 1
            self._write(shard, batch, start, stop)
            start = stop

    def _write(self, shard: ShardId, batch: CodeBatch, start: int, stop: int) -> None:
        if self._shard is None or self._shard.shard != shard:
            self.finish()
            metadata = {"version": __version__, "piece": shard.piece}
            self._shard = ShardWriter(
                self._folder,
                shard,
                _spec_digest(self._plan),
                metadata | {"number": shard.number},
                sum(self._plan.code_lengths),
                self._dtype,
                self._columns,
            )
        items: list[SourceImage] = [item for _, item in batch.keys[start:stop]]
        faults = batch.errors[start:stop]
        errors = [reason(each, item) for each, item in zip(faults, items, strict=True)]
        self._shard.write(
            [item.key for item in items],
            batch.codes[start:stop],
            errors,
            [item.digest for item in items],
            [[item.columns.get(name) for item in items] for name in self._columns],
        )
        self.n_images += len(items)
        self.n_bad += sum(error is not None for error in errors)

    def finish(self) -> None:
        """Finish the shard that is being written."""
        if self._shard is not None:
            self.written[self._shard.shard] = self._shard.close()
            self._shard = None
            self.n_shards += 1
