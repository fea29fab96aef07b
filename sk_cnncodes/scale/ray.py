"""Ray: codes of the batches of a Dataset, and `embed_to` on the workers of a cluster.

Ray itself is imported when it is needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes.backbones.catalogue import find_row
from sk_cnncodes.base.public import public
from sk_cnncodes.codes.saving import backbone_text
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.datasets.tables import import_parquet
from sk_cnncodes.images.addresses import allowed_prefixes, is_uri
from sk_cnncodes.images.remote import RemoteReader
from sk_cnncodes.scale.sources.stream import SourceImage
from sk_cnncodes.scale.unattended import reason, unattended

# How often a part is done again whose worker died. On machines that can be taken away
# at any time, Ray's own 3 are too few; finished shards are not computed again.
_RETRIES = 10
# Precisions and engine that run on a CPU, also where there is a GPU.
_CPU_PRECISIONS = ("bfloat16", "int8")


@public
class BatchEmbedder:
    """Codes of batches of images: a callable class for Ray's `Dataset.map_batches`.

    Each actor of Ray opens the network once, and keeps to its share of the machine: as
    many threads as its `num_cpus`, or its GPU, or fraction of one. A bad image gets a
    row of NaN and a text in the column ``error``; it never ends a job. Needs pyarrow.

    Parameters
    ----------
    transformer : CNNCodeTransformer
        Its ``n_jobs=-1`` stands for the CPUs of the actor, and ``device="auto"`` for
        its GPU if it has one, and otherwise for the CPU; other values are kept. Its
        cache is used if it is a file or a `CodeCache`. Fit it with
        ``store_backbone=True`` if other machines do not have the network's file.
    image_column : str
        The column with the images: paths, URIs, bytes of image files, structs
        ``{"bytes", "path"}``, or arrays of shape (height, width, 3).
    remote : bool, sequence of str or None, default=None
        Whether images at addresses (URIs) are fetched; see `embed_to`.

    See Also
    --------
    embed_to : Writes shards, and goes on after an interruption; ``engine="ray"``.

    Notes
    -----
    A batch is a dict of arrays or lists, a pyarrow table or a pandas frame, whatever
    `batch_format` is. What comes back is a pyarrow table with ``code``, a list of fixed
    size of float32, ``error``, a text that is null for good images, and the other
    columns. The column of images is kept only if it holds texts, such as paths: copies
    of all images would fill Ray's object store. Texts that are no valid Unicode are
    escaped.

    Outside of Ray it is an ordinary function of batches, for example for
    ``map(..., batched=True)`` of Hugging Face's datasets.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_cnncodes import BatchEmbedder, CNNCodeTransformer
    >>> X = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    >>> embed = BatchEmbedder(CNNCodeTransformer(), "image")
    >>> embed({"name": ["a", "b", "c"], "image": X}).column_names
    ['name', 'code', 'error']

    With Ray, two actors of four cores each::

        dataset = ray.data.read_parquet("s3://bucket/uris.parquet").map_batches(
            BatchEmbedder,
            fn_constructor_args=[CNNCodeTransformer("resnet50"), "uri"],
            fn_constructor_kwargs={"remote": ["s3://bucket/"]},
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=4,
            batch_size=256,
        )
        dataset.write_parquet("s3://bucket/codes")
    """

    def __init__(
        self,
        transformer: CNNCodeTransformer,
        image_column: str,
        *,
        remote: bool | Sequence[str] | None = None,
    ) -> None:
        import_parquet("BatchEmbedder")
        self._transformer = unattended(transformer)
        self._transformer.verbose = False
        keep_to_share(self._transformer, assigned_resources())
        self._image_column = image_column
        self._remote = RemoteReader(allowed_prefixes(remote))

    def __call__(self, batch: Any) -> Any:
        """Compute the codes of a batch.

        Parameters
        ----------
        batch : dict of arrays or lists, pyarrow.Table or pandas.DataFrame

        Returns
        -------
        pyarrow.Table
            With one row for each image, in order.

        Raises
        ------
        KeyError
            If the batch does not have the column of images.
        ValueError
            If other columns are called ``code`` or ``error``.
        """
        import pyarrow

        columns = _columns(batch)
        if self._image_column not in columns:
            raise KeyError(
                f"image_column={self._image_column!r}: expected one of {list(columns)}."
            )
        images = _cells(columns[self._image_column])
        if _holds_texts(columns[self._image_column], images):
            columns[self._image_column] = pyarrow.array(
                [_text(image) for image in images], pyarrow.string()
            )
        else:
            del columns[self._image_column]
        if {*columns} & {"code", "error"}:
            raise ValueError(
                f"batch: got the columns {list(columns)}. Expected other names than "
                "code and error, which are added."
            )
        items = [
            SourceImage(_key(image, row), image, position=row, remote=self._remote)
            for row, image in enumerate(images)
        ]
        pairs = ((item, item.element) for item in items)
        size = max(1, len(items))
        found = [*self._transformer.iter_codes(pairs, batch=size)]
        codes = found[0].codes if found else self._no_codes()
        faults = found[0].errors if found else []
        errors = [reason(each, item) for each, item in zip(faults, items, strict=True)]
        values = pyarrow.array(np.ascontiguousarray(codes, np.float32).ravel())
        table = {name: _arrow(column) for name, column in columns.items()}
        table["code"] = pyarrow.FixedSizeListArray.from_arrays(values, codes.shape[1])
        table["error"] = pyarrow.array(map(_text, errors), pyarrow.string())
        return pyarrow.table(table)

    def _no_codes(self) -> np.ndarray:
        """A matrix without rows: Ray also maps empty batches."""
        blank = np.zeros((1, 8, 8, 3), np.uint8)
        (batch,) = self._transformer.iter_codes(blank)
        return batch.codes[:0]


def _key(image: Any, row: int) -> str:
    return image if isinstance(image, str) else f"image {row}"


def _holds_texts(column: Any, cells: list[Any]) -> bool:
    """Whether a column is one of texts, by its type, or by a text if it has no type.

    Without a text, such as where all cells are null, the column is of images as others
    of its data set may be.
    """
    kind = str(getattr(column, "type", ""))
    return "string" in kind or any(isinstance(cell, str) for cell in cells)


def _text(cell: Any) -> str | None:
    """A text as UTF-8 can have it; None for anything else."""
    if not isinstance(cell, str):
        return None
    return cell.encode("utf-8", "backslashreplace").decode()


def _columns(batch: Any) -> dict[str, Any]:
    """The columns of a batch by name."""
    if isinstance(batch, Mapping):
        return dict(batch)
    names = batch.column_names if hasattr(batch, "column_names") else batch.columns
    return {name: batch[name] for name in names}


def _cells(column: Any) -> list[Any]:
    """The cells of a column as objects of Python and arrays."""
    if not hasattr(column, "to_pylist"):  # an array, a list, a Series
        return list(column)
    import pyarrow

    if not isinstance(column.type, pyarrow.BaseExtensionType):
        cells: list[Any] = column.to_pylist()
        return cells
    chunks = getattr(column, "chunks", [column])
    return [
        cell for chunk in chunks for cell in chunk.to_numpy(zero_copy_only=False)
    ]  # tensors of Ray


def _arrow(column: Any) -> Any:
    """A column for a pyarrow table; arrays become lists of fixed size."""
    import pyarrow

    if hasattr(column, "to_pylist"):
        return column
    if not isinstance(column, np.ndarray) or column.ndim == 1:
        try:
            return pyarrow.array(column)
        except UnicodeError:  # halves of surrogates, of which a table has none
            cells = [_text(c) if isinstance(c, str) else c for c in column]
            return pyarrow.array(cells)
    array = pyarrow.array(column.ravel())
    for size in reversed(column.shape[1:]):
        array = pyarrow.FixedSizeListArray.from_arrays(array, size)
    return array


def assigned_resources() -> dict[str, float] | None:
    """What Ray assigned to this worker; None outside of its workers."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_task_id() is None and context.get_actor_id() is None:
        return None
    found: dict[str, float] = context.get_assigned_resources()
    return found


def keep_to_share(
    transformer: CNNCodeTransformer, resources: Mapping[str, float] | None
) -> None:
    """Set threads and device to what a worker of Ray was assigned.

    Ray does not keep processes to their cores, and shows to each the GPUs that it was
    assigned alone, as the first ones (`CUDA_VISIBLE_DEVICES`).
    """
    if resources is None:
        return
    if transformer.n_jobs == -1:
        transformer.n_jobs = max(1, int(resources.get("CPU", 0)))
    if isinstance(transformer.device, str) and transformer.device == "auto":
        has_gpu = resources.get("GPU", 0) > 0 and _can_use_gpu(transformer)
        # Not "auto": a GPU that was reserved and does not work is an error.
        transformer.device = "cuda" if has_gpu else "cpu"


def _can_use_gpu(transformer: CNNCodeTransformer) -> bool:
    return (
        transformer.precision not in _CPU_PRECISIONS
        and transformer.engine != "openvino"
        and transformer.device != "cpu"
    )


def run_parts(
    embed: Callable[..., Any],
    transformer: CNNCodeTransformer,
    target: Any,
    source: Any,
    how: Mapping[str, Any],
    options: Mapping[str, Any] | None,
) -> list[Any]:
    """Call `embed_to` for each of n parts, as tasks of Ray.

    The source is opened by the tasks. Here, nothing of it is listed or held.

    Returns
    -------
    list of EmbedReport
        One for each part.

    Raises
    ------
    ImportError
        If Ray is not installed.
    Exception
        What a part raised; other parts are then cancelled.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "engine='ray': Ray is not installed: pip install 'sk-cnncodes[ray]'."
        ) from error
    if isinstance(source, Iterator):
        raise TypeError(
            f"engine='ray': source: got a {type(source).__name__}, which other "
            "processes cannot read. Expected a folder, a table, archives, a data set "
            "or a list."
        )
    if not ray.is_initialized():
        # Nobody asked for reports to Ray's makers.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init()
    workers, remote_args = share_out(transformer, options, ray.cluster_resources())
    own = unattended(transformer)
    own.verbose = False
    own.backbone = _backbone_elsewhere(own)
    if isinstance(own.cache, (str, os.PathLike)):
        own.cache = _absolute(own.cache)
    source = [*map(_absolute, source)] if _are_paths(source) else _absolute(source)
    arguments = ray.put((own, _absolute(target), source, dict(how)))
    task = ray.remote(_embed_part).options(**remote_args)
    parts = [task.remote(embed, arguments, (i, workers)) for i in range(workers)]
    try:
        reports: list[Any] = ray.get(parts)
    except BaseException as error:
        for part in parts:
            ray.cancel(part)  # no effect on those that are done
        for part in parts:
            with suppress(Exception):
                ray.get(part)
        if isinstance(error, ray.exceptions.RayTaskError):
            raise error.cause from error
        raise
    return reports


def _embed_part(
    embed: Callable[..., Any], arguments: tuple[Any, ...], part: tuple[int, int]
) -> Any:
    transformer, target, source, how = arguments
    keep_to_share(transformer, assigned_resources())
    return embed(transformer, target, source, **how, part=part)


def share_out(
    transformer: CNNCodeTransformer,
    options: Mapping[str, Any] | None,
    cluster: Mapping[str, float],
) -> tuple[int, dict[str, Any]]:
    """How many workers there are, and what each of them reserves.

    Parameters
    ----------
    transformer : CNNCodeTransformer
    options : mapping or None
        ``num_workers``, and options of `ray.remote`.
    cluster : mapping
        Resources of the cluster.
    """
    chosen = dict(options or {})
    workers = chosen.pop("num_workers", None)
    cpus, gpus = cluster.get("CPU", 1), cluster.get("GPU", 0)
    device = transformer.device
    asked = not isinstance(device, str) or device.startswith(("cuda", "tensorrt"))
    if asked or (gpus > 0 and _can_use_gpu(transformer)):
        chosen.setdefault("num_gpus", 1 if isinstance(device, str) else len(device))
    if "num_cpus" not in chosen:
        n_jobs = transformer.n_jobs
        chosen["num_cpus"] = n_jobs if n_jobs is not None and n_jobs > 0 else 1
        if n_jobs == -1 and chosen.get("num_gpus") and gpus:
            # The cores decode for the GPUs.
            chosen["num_cpus"] = max(1, int(cpus * chosen["num_gpus"] / gpus))
    if workers is None:
        fits = [cpus / chosen["num_cpus"]] if chosen["num_cpus"] else []
        if chosen.get("num_gpus"):
            fits.append(gpus / chosen["num_gpus"])
        workers = max(1, int(min(fits, default=1)))
    if not isinstance(workers, Integral) or workers < 1:
        raise ValueError(
            f"ray_options: num_workers={workers!r}: expected a number from 1 on."
        )
    return int(workers), {"max_retries": _RETRIES, "name": "embed_to"} | chosen


def _backbone_elsewhere(transformer: CNNCodeTransformer) -> Any:
    """The parameter `backbone` for workers in other folders.

    That of `fit` is kept: it is how a transformer knows that it has the same backbone,
    whose absolute path and SHA-256 it keeps too.
    """
    backbone = transformer.backbone
    reference = getattr(transformer, "fitted_backbone_", None)
    if reference is not None and reference["parameter"] == backbone_text(backbone):
        return backbone
    is_name = isinstance(backbone, str) and find_row(backbone) is not None
    return backbone if is_name or not Path(backbone).is_file() else _absolute(backbone)


def _are_paths(source: Any) -> bool:
    paths = (str, os.PathLike)
    return isinstance(source, (list, tuple)) and all(
        isinstance(each, paths) for each in source
    )


def _absolute(path: Any) -> Any:
    """A path that workers in other folders understand; anything else is unchanged."""
    if isinstance(path, os.PathLike) or (isinstance(path, str) and not is_uri(path)):
        return os.path.abspath(path)  # noqa: PTH100
    return path
