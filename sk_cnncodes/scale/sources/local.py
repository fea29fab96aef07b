"""Folders, tables and archives of this machine; which source an object stands for."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from sk_cnncodes.datasets.image_files import walk_images
from sk_cnncodes.datasets.tables import (
    SUFFIXES,
    TableStream,
    as_text,
    check_columns,
    is_image_name,
    open_table,
)
from sk_cnncodes.images.addresses import is_uri
from sk_cnncodes.scale.remote_paths import AnyPath
from sk_cnncodes.scale.sources.archives import (
    TAR_SUFFIXES,
    BadMember,
    Row,
    read_tar,
    read_zip,
)
from sk_cnncodes.scale.sources.lance_images import (
    is_lance,
    lance_image_field,
    lance_table,
    open_lance,
    read_lance_images,
)
from sk_cnncodes.scale.sources.objects import DatasetSource, IterableSource
from sk_cnncodes.scale.sources.parquet_images import image_field, read_parquet_images
from sk_cnncodes.scale.sources.stream import Source, SourceImage, Wanted

# Rows of a table by which its column of images is found.
_TRIED = 1000
_ARCHIVES = " ".join((*TAR_SUFFIXES, ".zip", ".parquet", ".lance"))


class FolderSource:
    """The image files of a folder, recursively; keys are their paths inside of it."""

    image_column: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pieces = [""]

    def read(self, piece: int, wanted: Wanted) -> Iterator[SourceImage]:
        start = len(os.path.join(self.folder, ""))  # noqa: PTH118
        for path in walk_images(self.folder):
            key = path[start:]
            yield SourceImage(key if os.sep == "/" else Path(key).as_posix(), path)


class TableSource:
    """The files that a table lists, from its folder on; keys are its own paths.

    Rows without a path have their number as the key, ``row 7``.

    Rows are read as they are asked for, in each `read` anew.

    Parameters
    ----------
    table : TableStream
    path : Path or RemotePath
        Where the table is, for messages.
    columns : sequence of str
    image_column : str or None
    """

    def __init__(
        self,
        table: TableStream,
        path: AnyPath,
        columns: Sequence[str],
        image_column: str | None,
    ) -> None:
        self._folder = path.parent if isinstance(path, Path) else ""
        self._columns = columns
        self._table = table
        tried = [row for _, row, _ in islice(self._table.read(None), _TRIED)]
        if not tried:
            raise ValueError(f"{str(path)!r}: expected a table with rows, got none.")
        names = self._table.columns
        if names is None:
            names = [*dict.fromkeys(name for row in tried for name in row)]
        self._image = image_column or _column_of_images(tried, names, path)
        self.image_column: str | None = self._image
        needed = [self._image, *columns]
        if self._table.columns is None and not {*needed} <= {*names}:
            # Rows name their columns: further ones may have others.
            rows = (row for _, row, _ in self._table.read(None))
            names = [*dict.fromkeys(name for row in rows for name in row)]
        check_columns(needed, names, repr(str(path)))
        self.pieces = [""]

    def read(self, piece: int, wanted: Wanted) -> Iterator[SourceImage]:
        rows = self._table.read([self._image, *self._columns])
        for position, (number, row, is_broken) in enumerate(rows):
            path = as_text(row.get(self._image)) or ""
            key = path or f"row {number}"
            if not wanted(position):
                yield SourceImage(key, None)
                continue
            columns = {each: as_text(row.get(each)) for each in self._columns}
            reason = ""
            if is_broken:
                reason = f"row {number} of the table has more cells than its header."
            elif not path:
                reason = (
                    f"row {number} of the table has no path in column {self._image!r}."
                )
            if reason:
                yield SourceImage(key, BadMember(key, reason), columns)
                continue
            if not is_uri(path):
                path = os.path.join(self._folder, path)  # noqa: PTH118
            yield SourceImage(key, {"bytes": None, "path": path}, columns)


class FileSource:
    """Files that hold many images each: tar or zip archives, Parquet, Lance tables.

    Keys are the name of the file, a slash, and the name or number inside of it.

    Parameters
    ----------
    paths : sequence of Path or RemotePath
    columns : sequence of str
    image_column : str or None
    lance : mapping of Path to lance.LanceDataset, or None
        Those of them that are Lance tables, opened in the version that is read.
    """

    def __init__(
        self,
        paths: Sequence[AnyPath],
        columns: Sequence[str],
        image_column: str | None,
        lance: Mapping[AnyPath, Any] | None = None,
    ) -> None:
        self._paths = paths
        self._lance = lance or {}
        self._columns = columns
        self._given = image_column
        for path in paths if image_column else []:
            if not _is_parquet(path) and path not in self._lance:
                _refuse_columns(
                    f"{str(path)!r} has no columns of images", (), image_column
                )
        self.image_column = self._column_of_images()
        self.pieces = [f"{path.name} ({self._state_of(path)})" for path in paths]
        if len({path.name for path in paths}) < len(paths):
            raise ValueError(
                f"source: got files of the same name among {len(paths)} files. "
                "Expected different names, since keys begin with them."
            )

    def read(self, piece: int, wanted: Wanted) -> Iterator[SourceImage]:
        path = self._paths[piece]
        if _is_parquet(path):
            rows = read_parquet_images(path, self._columns, self._given, wanted)
        elif isinstance(path, Path) and path in self._lance:
            rows = read_lance_images(
                self._lance[path], path, self._columns, self._given, wanted
            )
        elif path.suffix.lower() == ".zip":
            rows = read_zip(path, self._columns, wanted)
        else:
            rows = read_tar(path, self._columns, wanted)
            if piece == 0:
                rows = self._with_values(rows, path)
        for name, image, columns in rows:
            yield SourceImage(f"{path.name}/{name}", image, columns)

    def _with_values(self, rows: Iterator[Row], path: AnyPath) -> Iterator[Row]:
        """Refuse columns without a single value: most likely, there is none so called.

        In the first archive only, as others may well have no values of their own.
        """
        missing, is_empty = {*self._columns}, True
        for row in rows:
            missing -= {name for name, value in row[2].items() if value is not None}
            is_empty = False
            yield row
        if missing and not is_empty:
            raise ValueError(
                f"{str(path)!r}: columns={list(self._columns)!r}: no image has a value "
                f"of {min(missing)!r}. Expected suffixes of members beside the images, "
                "or keys of their JSON members."
            )

    def _column_of_images(self) -> str | None:
        """That of the first file with columns; others name theirs by their schemas."""
        for path in self._paths:
            if isinstance(path, Path) and path in self._lance:
                return lance_image_field(self._lance[path], path, self._given)
            if _is_parquet(path):
                return image_field(path, self._given)
        return None

    def _state_of(self, path: AnyPath) -> str:
        """What changes with a file, or with a Lance table."""
        if path in self._lance:
            return f"version {self._lance[path].version}"
        return f"{path.stat().st_size} bytes"


def open_source(
    source: Any, columns: Sequence[str] = (), image_column: str | None = None
) -> Source:
    """The source that an object or a path stands for; no image is opened.

    Raises
    ------
    TypeError, ValueError, OSError
        If it is none.
    """
    if callable(getattr(source, "read", None)) and hasattr(source, "pieces"):
        found: Source = source
        return found
    if hasattr(source, "features") and hasattr(source, "cast_column"):
        return DatasetSource(source, columns, image_column)
    paths = _paths(source)
    if not paths:
        _check_list(source)
        _refuse_columns("this source has no columns", columns, image_column)
        return IterableSource(source)
    if len(paths) == 1 and paths[0].is_dir() and not is_lance(paths[0]):
        _refuse_columns("a folder has no columns", columns, image_column)
        return FolderSource(paths[0])
    lance: dict[AnyPath, Any] = {p: open_lance(p) for p in paths if is_lance(p)}
    if all(_holds_images(path, image_column, lance.get(path)) for path in paths):
        return FileSource(paths, columns, image_column, lance)
    if len(paths) == 1 and paths[0].suffix.lower() in (*SUFFIXES, ".lance"):
        (path,) = paths
        table = lance_table(lance[path]) if path in lance else open_table(path)
        return TableSource(table, path, columns, image_column)
    raise ValueError(
        f"source: got {str(paths[0])!r}. Expected a folder, a table "
        f"({' '.join((*SUFFIXES, '.lance'))}), or files that hold many images each: "
        f"{_ARCHIVES}."
    )


def _refuse_columns(
    fault: str, columns: Sequence[str], image_column: str | None
) -> None:
    for name, value in (("columns", list(columns)), ("image_column", image_column)):
        if value:
            raise ValueError(
                f"{name}={value!r}: {fault}. Expected none, or a table or a data set "
                "as the source."
            )


def _check_list(source: Any) -> None:
    """Refuse a list with a folder, a table or an archive among its beginnings."""
    if not isinstance(source, (list, tuple)):
        return
    found = list[tuple[bool, int, str]]()
    for number, each in enumerate(source[:_TRIED]):
        text = str(each) if isinstance(each, (str, PurePath)) else ""
        if not text or "://" in text or is_image_name(text):
            continue
        may_be = text.lower().endswith(SUFFIXES) or is_archive(text)
        if os.path.isdir(text) or (may_be and os.path.isfile(text)):  # noqa: PTH112, PTH113
            found.append((is_archive(text), number, text))
    if found:
        # An archive is at fault only where all else is images.
        _, number, text = min(found)
        raise ValueError(
            f"source: element {number} of the list is {text!r}. Expected images alone, "
            f"or files alone that hold many images each: {_ARCHIVES}. A folder or a "
            "table is a source by itself."
        )


def _paths(source: Any) -> list[Path]:
    """The paths that a source names: of a folder, a table, or archives."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return _expanded(str(text))
    if isinstance(source, (list, tuple)) and source:
        named = all(
            isinstance(each, (str, os.PathLike)) and is_archive(each) for each in source
        )
        if named:
            return [path for each in source for path in _expanded(os.fspath(each))]
    return []


def _expanded(text: str) -> list[Path]:
    """The files of a pattern: ``shard-{000..012}.tar``, or with ``*`` and ``?``."""
    paths = [Path(text)]
    if not paths[0].exists():
        paths = [Path(each) for each in expanded_braces(text)]
    if len(paths) == 1 and glob.has_magic(text) and not paths[0].exists():
        paths = [Path(name) for name in sorted(glob.glob(text))]  # noqa: PTH207
        if not paths:
            raise FileNotFoundError(f"source: no file is called like {text!r}.")
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"source: {str(path)!r}: no such file or folder. Expected a folder, a "
                "table, or archives."
            )
    return paths


def expanded_braces(text: str) -> list[str]:
    """The names that a pattern such as ``shard-{000..012}.tar`` stands for."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if braces is None:
        return [text]
    first, last = braces.groups()
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        raise ValueError(
            f"source: {text!r}: expected a range from the lower number to the higher."
        )
    if len(numbers) > 10**6:
        raise ValueError(f"source: {text!r}: expected at most a million files.")
    start, end = braces.span()
    return [f"{text[:start]}{n:0{len(first)}}{text[end:]}" for n in numbers]


def _is_parquet(path: AnyPath) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path ends like a file that can hold many images."""
    name = os.fspath(path).lower()
    return name.endswith((*TAR_SUFFIXES, ".zip", ".parquet", ".pq", ".lance"))


def _holds_images(path: Path, image_column: str | None, lance: Any) -> bool:
    """Whether a file holds images itself, rather than paths."""
    if _is_parquet(path):
        return image_field(path, image_column) is not None
    if lance is not None:
        return lance_image_field(lance, path, image_column) is not None
    return is_archive(path) and path.is_file()


def _column_of_images(
    rows: list[dict[str, Any]], names: list[str], path: AnyPath
) -> str:
    """The only column with names of image files."""
    found = [
        name
        for name in names
        if 2 * sum(is_image_name(row.get(name)) for row in rows) > len(rows)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{str(path)!r}: found {len(found)} columns of image files among {names}. "
            "Name one by image_column=NAME."
        )
    return found[0]
