"""Images in Parquet files: columns of bytes, or of structs with bytes and path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sk_cnncodes.datasets.tables import as_text, check_columns, import_parquet
from sk_cnncodes.scale.remote_paths import AnyPath, opened
from sk_cnncodes.scale.sources.archives import Row

# Rows that are read at once.
_ROWS = 64
# Bytes of the longest digest; columns of fixed size that are no longer hold no images.
_LONGEST_DIGEST = 64


def image_field(path: AnyPath, name: str | None) -> str | None:
    """The column of images: the named one, or the only one that can be; or None.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    ValueError
        If it is no Parquet file, or several columns can be it.
    """
    parquet = import_parquet(repr(str(path)))
    import pyarrow

    try:
        schema = parquet.read_schema(opened(path))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{str(path)!r}: expected a Parquet file: {error}") from error
    return image_field_of(schema, name, path)


def image_field_of(schema: Any, name: str | None, path: AnyPath) -> str | None:
    """`image_field` of the schema of any table of pyarrow's types."""
    from pyarrow import types

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(
                each.name == "bytes" and holds_images(each.type) for each in kind
            )
        if types.is_fixed_size_binary(kind):
            return bool(kind.byte_width > _LONGEST_DIGEST)
        tests = (types.is_binary, types.is_large_binary, types.is_binary_view)
        return any(test(kind) for test in tests)

    found = [field.name for field in schema if holds_images(field.type)]
    if name is not None:
        return name if name in found else None
    if len(found) > 1:
        raise ValueError(
            f"{str(path)!r}: several columns can have the images: {found}. Name one "
            "by image_column=NAME."
        )
    return found[0] if found else None


def read_parquet_images(
    path: AnyPath,
    columns: Sequence[str],
    image_column: str | None,
    wanted: Callable[[int], bool],
) -> Iterator[Row]:
    """Yield the images of a Parquet file; row groups that are not wanted are not read.

    Names are numbers of rows.

    Raises
    ------
    ValueError
        If it does not have the columns.
    """
    parquet = import_parquet(repr(str(path)))
    name = image_field(path, image_column)
    with parquet.ParquetFile(opened(path)) as file:
        names = file.schema_arrow.names
        check_columns([name, *columns], names, repr(str(path)))
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            if not any(map(wanted, range(start, stop))):
                for position in range(start, stop):
                    yield str(position), None, {}
                start = stop
                continue
            batches = file.iter_batches(
                _ROWS, row_groups=[group], columns=[name, *columns]
            )
            for batch in batches:
                for row in batch.to_pylist():
                    image = as_image(row[name])
                    others = {column: as_text(row[column]) for column in columns}
                    yield str(start), image if wanted(start) else None, others
                    start += 1


def as_image(cell: Any) -> Any:
    """An element of X of a cell of bytes, or of a struct."""
    if cell is None or (isinstance(cell, dict) and cell.get("bytes") is None):
        # A path of another machine; nothing beside the file is read.
        return {"bytes": None, "path": None}
    return cell
