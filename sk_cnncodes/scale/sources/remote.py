"""Sources at addresses: folders of object stores, archives and tables."""

from __future__ import annotations

import fnmatch
import glob
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sk_cnncodes.base.threads import OrderedThreadPool
from sk_cnncodes.datasets.image_files import is_image_file, is_system_path
from sk_cnncodes.datasets.tables import SUFFIXES, is_image_name, open_table
from sk_cnncodes.images.addresses import in_folder, is_uri
from sk_cnncodes.images.remote import RemoteReader
from sk_cnncodes.scale.remote_paths import RemotePath, any_path
from sk_cnncodes.scale.sources.local import (
    FileSource,
    TableSource,
    expanded_braces,
    is_archive,
    open_source,
)
from sk_cnncodes.scale.sources.parquet_images import image_field
from sk_cnncodes.scale.sources.stream import Source, SourceImage, Wanted

# Files whose sizes are asked for at once.
_AT_ONCE = 16
# Images at addresses that are read at once, before it is their turn.
_AHEAD = 32
# Bytes of a table, which is copied to the temporary folder.
_LARGEST_TABLE = 2**34


class PrefixSource:
    """The image files of a folder of a store, recursively; keys are paths inside.

    Parameters
    ----------
    folder : RemotePath

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If its files cannot be listed.
    """

    image_column: str | None = None

    def __init__(self, folder: RemotePath) -> None:
        self._folder = folder
        self.pieces = [""]
        # Goes on in the first `read`: a list costs time, and money.
        self._begun: Iterator[RemotePath] | None = self._begin()

    def _begin(self) -> Iterator[RemotePath]:
        paths = self._folder.walk()
        first = list(islice(paths, 1))
        if not first and not self._folder.exists():
            raise FileNotFoundError(
                f"source: {self._folder.uri!r}: no such folder, or nothing in it. "
                "Expected the address of a folder, a table, or archives."
            )
        return chain(first, paths)

    def read(self, piece: int, wanted: Wanted) -> Iterator[SourceImage]:
        paths, self._begun = self._begun, None
        start = len(self._folder.uri.rstrip("/")) + 1
        for path in paths or self._folder.walk():
            key = path.uri[start:]
            if is_image_file(path.name) and not is_system_path(key):
                yield SourceImage(key, path.uri)


class RemoteTableSource:
    """The images that a table lists, from its folder on; never files of this machine.

    Parameters
    ----------
    path : RemotePath
    columns, image_column
        As those of `TableSource`.
    """

    def __init__(
        self, path: RemotePath, columns: Sequence[str], image_column: str | None
    ) -> None:
        size = path.stat().st_size
        if size > _LARGEST_TABLE:
            raise ValueError(
                f"{path.uri!r}: expected a table of at most {_LARGEST_TABLE} bytes, "
                f"got {size}."
            )
        self._folder = path.folder
        copies = tempfile.mkdtemp(prefix="sk_cnncodes-")
        # When nothing uses this source any more.
        weakref.finalize(self, shutil.rmtree, copies, ignore_errors=True)
        copy = Path(copies, f"table{path.suffix.lower()}")
        with path.open() as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        table = open_table(copy, path.uri)
        self._table = TableSource(table, path, columns, image_column)
        self.image_column = self._table.image_column
        self.pieces = [""]

    def read(self, piece: int, wanted: Wanted) -> Iterator[SourceImage]:
        for item in self._table.read(piece, wanted):
            cell = item.image
            if isinstance(cell, dict) and cell["path"] is not None:
                is_absolute = is_uri(item.key)
                uri = item.key if is_absolute else in_folder(self._folder, item.key)
                item.image = {"bytes": None, "path": uri}
            yield item


@contextmanager
def read_ahead(
    pairs: Iterable[tuple[tuple[Any, SourceImage], Any]], reader: RemoteReader
) -> Iterator[Iterable[Any]]:
    """The same pairs, whose images at addresses are read by more threads than decode.

    Parameters
    ----------
    pairs : iterable
        Of ((shard, item), element).
    reader : RemoteReader
    """

    def fetch(pair: tuple[tuple[Any, SourceImage], Any]) -> Any:
        pair[0][1].fetch()
        return pair

    if not reader.prefixes:
        yield pairs
        return
    with OrderedThreadPool(_AHEAD, "sk_cnncodes-reader") as threads:
        yield threads.in_order(fetch, pairs, _AHEAD)


def open_any_source(
    source: Any,
    columns: Sequence[str],
    image_column: str | None,
    reader: RemoteReader,
) -> Source:
    """`open_source`, also for addresses of folders, archives and tables.

    Raises
    ------
    TypeError, ValueError, OSError
        If it is no source, or an address is not allowed.
    """
    given = source if isinstance(source, (list, tuple)) else [source]
    several = given is source
    if not given or not all(is_uri(each) for each in given[:1000]):
        return open_source(source, columns, image_column)
    if several and not all(is_archive(RemotePath(u, reader).name) for u in given):
        return open_source(source, columns, image_column)  # images
    paths = [path for uri in given for path in _expanded(uri, reader)]
    first = paths[0]
    suffix = first.suffix.lower()
    if suffix == ".lance":
        raise ValueError(
            f"source: got {first.uri!r}. Lance tables are read from paths."
        )
    if not is_archive(first.name) and suffix not in SUFFIXES:
        if several or is_image_name(first.name):
            raise ValueError(
                f"source: got {first.uri!r}. Expected the address of a folder, a table "
                "or archives; of images: an iterable of pairs of keys and addresses."
            )
        if columns:
            raise ValueError(f"columns={list(columns)!r}: a folder has no columns.")
        return PrefixSource(first)

    def holds(path: RemotePath) -> bool:
        path.stat()
        if path.suffix.lower() in (".parquet", ".pq"):
            return image_field(path, image_column) is not None
        return is_archive(path.name)

    with OrderedThreadPool(_AT_ONCE, "sk_cnncodes-sizes") as threads:
        if all([*threads.in_order(holds, paths, 2 * _AT_ONCE)]):
            return FileSource(paths, columns, image_column)
    if len(paths) == 1 and suffix in SUFFIXES:
        return RemoteTableSource(first, columns, image_column)
    raise ValueError(
        f"source: got {first.uri!r} among {len(paths)} files. Expected one table, or "
        "archives alone."
    )


def _expanded(uri: str, reader: RemoteReader) -> list[RemotePath]:
    """The files of a pattern: ``shard-{000..012}.tar``, or with ``*`` and ``?``.

    A file or folder whose own name looks like a pattern is itself, as on this machine.
    """
    literal = any_path(uri, reader)
    assert isinstance(literal, RemotePath)
    if not literal.is_http and ("{" in uri or glob.has_magic(uri)):
        # Who may read, but not list, does not learn what is there.
        with suppress(OSError):
            literal.stat()
            return [literal]
    found = []
    for text in expanded_braces(uri):
        path = any_path(text, reader)
        assert isinstance(path, RemotePath)
        found.append(path)
    (path, *others) = found
    if others or path.is_http or not glob.has_magic(uri):
        return found
    scheme, _, place = uri.partition("://")
    parts = place.split("/")
    fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    folder = any_path(f"{scheme}://{'/'.join(parts[:fixed])}/", reader)
    assert isinstance(folder, RemotePath)
    beginning = parts[fixed][: _first_magic(parts[fixed])]
    matching = [
        each
        for each in folder.walk(beginning)
        if _matches(each.uri.partition("://")[2].split("/"), parts)
    ]
    if not matching:
        raise FileNotFoundError(f"source: no file is called like {uri!r}.")
    return matching


def _first_magic(part: str) -> int:
    return min(part.find(sign) for sign in "*?[" if sign in part)


def _matches(names: list[str], patterns: list[str]) -> bool:
    return len(names) == len(patterns) and all(
        fnmatch.fnmatchcase(name, pattern)
        for name, pattern in zip(names, patterns, strict=True)
    )
