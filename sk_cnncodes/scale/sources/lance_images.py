"""Lance tables: columns of image files, or of their paths, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sk_cnncodes.datasets.tables import Row as TableRow
from sk_cnncodes.datasets.tables import TableStream, as_text, check_columns
from sk_cnncodes.scale.sources.archives import Row
from sk_cnncodes.scale.sources.parquet_images import as_image, image_field_of

# Rows that are asked for at once, and rows of a batch: of images, and of paths.
_CHUNK, _ROWS, _PATHS = 4096, 64, 1024
# Bytes that Lance reads ahead.
_AHEAD = 2**27


def is_lance(path: Path) -> bool:
    """Whether a path is that of a Lance table, which is a folder."""
    return path.suffix.lower() == ".lance" and (path / "_versions").is_dir()


def open_lance(path: Path) -> Any:
    """A table in its newest version, which what is returned stays with.

    Raises
    ------
    ImportError
        If pylance is not installed.
    ValueError
        If it is no Lance table.
    """
    try:
        import lance
    except ImportError as error:
        raise ImportError(
            f"{str(path)!r}: Lance tables need the package pylance, which is not "
            "installed: pip install pylance."
        ) from error
    try:
        return lance.dataset(str(path))
    except (ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r}: expected a Lance table: {error}") from error


def lance_image_field(dataset: Any, path: Path, name: str | None) -> str | None:
    """The column with image files, as `parquet_images.image_field`.

    Parameters
    ----------
    dataset : lance.LanceDataset
    path : Path
        For messages.
    name : str or None

    Raises
    ------
    ValueError
        If it is a column of blobs, which can lie anywhere, and are not opened.
    """
    schema = dataset.schema
    found = image_field_of(schema, name, path)
    names = [name] if name in schema.names else [found] if found else schema.names
    for each in names:
        field = schema.field(each)
        is_blob = "blob" in str(field.type) or any(
            b"blob" in key for key in field.metadata or {}
        )
        if is_blob:
            raise ValueError(
                f"{str(path)!r}: column {each!r} has blobs, which can be addresses and "
                "are not opened. Expected a column of bytes, or of paths; choose it by "
                "image_column=NAME."
            )
    return found


def lance_table(dataset: Any) -> TableStream:
    """A Lance table of paths."""
    import pyarrow

    types = pyarrow.types
    names = [
        field.name
        for field in dataset.schema
        if types.is_string(field.type)
        or types.is_large_string(field.type)
        or types.is_dictionary(field.type)
        or types.is_primitive(field.type)
    ]

    def read(needed: Sequence[str] | None) -> Iterator[TableRow]:
        taken = names if needed is None else [name for name in names if name in needed]
        number = 0
        for batch in _batches(dataset, taken, _PATHS):
            for row in batch.to_pylist():
                number += 1
                yield number, row, False

    return TableStream(names, "Lance", read)


def read_lance_images(
    dataset: Any,
    path: Path,
    columns: Sequence[str],
    image_column: str | None,
    wanted: Callable[[int], bool],
) -> Iterator[Row]:
    """Yield the images of a Lance table; what is not wanted is not read.

    Names are numbers of rows.

    Raises
    ------
    ValueError
        If it does not have the columns.
    """
    name = lance_image_field(dataset, path, image_column)
    check_columns([name, *columns], dataset.schema.names, repr(str(path)))
    total = dataset.count_rows()
    for start in range(0, total, _CHUNK):
        positions = range(start, min(start + _CHUNK, total))
        if not any(map(wanted, positions)):
            yield from ((str(position), None, {}) for position in positions)
            continue
        position = start
        limits = {"offset": start, "limit": len(positions)}
        for batch in _batches(dataset, [name, *columns], _ROWS, **limits):
            for row in batch.to_pylist():
                others = {column: as_text(row[column]) for column in columns}
                image = as_image(row[name]) if wanted(position) else None
                yield str(position), image, others
                position += 1


def _batches(dataset: Any, columns: Any, rows: int, **limits: int) -> Iterator[Any]:
    scanner = dataset.scanner(
        columns=columns,
        batch_size=rows,
        batch_readahead=2,
        fragment_readahead=1,
        io_buffer_size=_AHEAD,
        scan_in_order=True,
        **limits,
    )
    found: Iterator[Any] = scanner.to_batches()
    return found
