"""RemotePath: files and folders at addresses, as those of this machine are used."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from sk_cnncodes.base.exceptions import ImageError, ImageNotFoundError
from sk_cnncodes.base.files import file_sha256
from sk_cnncodes.images.addresses import is_http, is_uri, shown
from sk_cnncodes.images.remote import RemoteReader

# What is read at once of a file that is read from its start to its end.
_BUFFER = 2**23
# Time limit of a try to write a file.
_WRITING_SECONDS = 900
# Stores in which a file appears under its name when all of it was sent.
_ATOMIC = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")


class StoreError(OSError):
    """A file at an address that cannot be read or written."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """A file at an address that does not exist."""


class RemotePath:
    """A file or folder at an address, with the methods of `Path` that are needed.

    Parameters
    ----------
    uri : str
    reader : RemoteReader
        Says what is allowed, and within which limits.
    size : int or None
        Of the file, if it is known.
    """

    def __init__(self, uri: str, reader: RemoteReader, size: int | None = None) -> None:
        self.uri = uri
        self._reader = reader
        self._size = size

    def __str__(self) -> str:
        return self.uri

    def __repr__(self) -> str:
        return f"RemotePath({self.uri!r})"

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.uri.rstrip('/')}/{name}", self._reader)

    @property
    def is_http(self) -> bool:
        return is_http(self.uri)

    @property
    def name(self) -> str:
        """The last part of the path; that of HTTP ends before a question mark."""
        path = urlsplit(self.uri).path if self.is_http else self.uri
        return path.rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def folder(self) -> str:
        """The address of its folder, with a slash at its end."""
        uri = self.uri.partition("?")[0] if self.is_http else self.uri
        return uri.rstrip("/").rpartition("/")[0] + "/"

    # -- reading ---------------------------------------------------------------

    def stat(self) -> Any:
        """An object with its size, as `st_size`.

        Raises
        ------
        OSError
            If it cannot be found.
        """
        if self._size is None:
            with naming(self):
                if self.is_http:
                    _, size = self._reader.read_part(self.uri, 0, 1)
                else:
                    size = self._info().get("size")
            self._size = int(size or 0)
        return SimpleNamespace(st_size=self._size)

    def exists(self) -> bool:
        """Whether there is such a file, or a folder where the store has folders."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def _info(self) -> Any:
        reader = self._reader
        system, path = reader.file_system(self.uri)
        return reader.again(lambda: reader.call(system, "info", path))

    def open(self, *, buffer: int = _BUFFER) -> Any:
        """Open the file for reading in parts; with 0, as they are asked for."""
        raw = _Parts(self, self._reader, self.stat().st_size)
        return io.BufferedReader(raw, buffer) if buffer else raw

    def read_text(self, encoding: str = "utf-8") -> str:
        """Read the whole file."""
        with naming(self):
            return self._reader.read(self.uri).decode(encoding)

    def sha256(self) -> str:
        """SHA-256 of the content."""
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def walk(self, beginning: str = "") -> Iterator[RemotePath]:
        """Yield the files of this folder and those in it, in a fixed order.

        S3 is listed page by page, other stores one folder after the other. Of a folder
        that does not exist, there are none.

        Parameters
        ----------
        beginning : str
            Of their paths inside of this folder.

        Raises
        ------
        OSError
            If it cannot be listed.
        """
        if self.is_http:
            raise ValueError(
                f"{self.uri!r}: HTTP has no lists of files. Expected a table, or tar, "
                "zip or Parquet files; or a folder of an object store."
            )
        with naming(self):
            system, path = self._reader.file_system(self.uri)
        pages = self._pages if hasattr(system, "call_s3") else self._folders
        # Paths of some stores do not have the host that the address has.
        length = len(path.strip("/"))
        for name, size in pages(system, path.rstrip("/"), beginning):
            below = name.lstrip("/")[length:].removeprefix("/")
            yield RemotePath(f"{self.uri.rstrip('/')}/{below}", self._reader, size)

    def _pages(
        self, system: Any, path: str, beginning: str
    ) -> Iterator[tuple[str, int]]:
        bucket, _, key = path.partition("/")
        prefix = f"{key}/{beginning}" if key else beginning
        more: dict[str, str] = {}
        while True:
            options = {"Bucket": bucket, "Prefix": prefix, **more}
            page = self._list(system, "call_s3", "list_objects_v2", **options)
            for each in page.get("Contents", ()):
                yield f"{bucket}/{each['Key']}", each["Size"]
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _folders(
        self, system: Any, path: str, beginning: str
    ) -> Iterator[tuple[str, int]]:
        folder, _, start = beginning.rpartition("/")
        root = f"{path}/{folder}".rstrip("/")
        try:
            entries = self._list(system, "ls", root, detail=True)
        except FileNotFoundError:
            return
        found = {}
        for each in entries:
            name, is_folder = each["name"].rstrip("/"), each["type"] == "directory"
            # A folder of some stores lists itself. Slashes, for the order of paths.
            if name.strip("/") != root.strip("/"):
                found[f"{name}/" if is_folder else name] = int(each["size"] or 0)
        for name in sorted(found):
            if not name.rstrip("/").rpartition("/")[2].startswith(start):
                continue
            if name.endswith("/"):
                yield from self._folders(system, name.rstrip("/"), "")
            else:
                yield name, found[name]

    def _list(self, system: Any, *call: Any, **options: Any) -> Any:
        with naming(self):
            return self._reader.again(
                lambda: self._reader.call(system, *call, **options)
            )

    # -- writing ---------------------------------------------------------------

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Make a folder where the store has folders; buckets are never made.

        Raises
        ------
        ValueError
            If nothing can be written there.
        """
        if self.is_http:
            raise ValueError(
                f"target {self.uri!r}: HTTP takes no files. Expected a folder, or an "
                "address of an object store, such as 's3://bucket/codes/'."
            )
        with naming(self):
            system, path = self._reader.file_system(self.uri)
            if not self._is_atomic:
                self._write(system, "makedirs", path, exist_ok=True)

    @property
    def _is_atomic(self) -> bool:
        return self.uri.partition("://")[0].lower() in _ATOMIC

    def write_bytes(self, content: bytes) -> None:
        """Write a file, whole or not at all; an existing one is replaced."""
        with naming(self):
            system, path = self._reader.file_system(self.uri)
            if self._is_atomic:
                self._write(system, "pipe_file", path, content)
                return
            part = _part_of(path)
            self._write(system, "pipe_file", part, content)
            self._write(system, "mv", part, path)

    def upload(self, file: Path) -> bool:
        """Write a file of this machine, whole or not at all, unless it is there.

        Of two processes that compute the same, the first one has its file stored.

        Returns
        -------
        bool
            Whether it was written.
        """
        if self.exists():
            return False
        with naming(self):
            system, path = self._reader.file_system(self.uri)
            if not self._is_atomic:
                part = _part_of(path)
                self._write(system, "put_file", str(file), part)
                self._write(system, "mv", part, path)
            elif not hasattr(system, "call_s3"):
                self._write(system, "put_file", str(file), path)
            else:
                return self._upload_to_s3(system, str(file), path)
        return True

    def _upload_to_s3(self, system: Any, file: str, path: str) -> bool:
        try:
            self._write(system, "put_file", file, path, mode="create")
        except FileExistsError:
            return False  # another process; or an earlier try whose answer was lost
        except ImageError as error:
            if "NotImplemented" not in str(error):
                raise
            # Some stores do not know the condition.
            self._write(system, "put_file", file, path)
        return True

    def _write(self, system: Any, *call: Any, **options: Any) -> None:
        reader, limit = self._reader, _WRITING_SECONDS
        reader.again(lambda: reader.call(system, *call, seconds=limit, **options))


class _Parts(io.RawIOBase):
    """A file that is read in parts, each within the limits of a `RemoteReader`."""

    def __init__(self, path: RemotePath, reader: RemoteReader, size: int) -> None:
        self._path, self._reader, self._size = path, reader, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start, stop = self._position, min(self._position + len(view), self._size)
        if start >= stop:
            return 0
        with naming(self._path):
            content, size = self._reader.read_part(self._path.uri, start, stop)
        if len(content) < stop - start or size not in (None, self._size):
            raise StoreError(f"{self._path.uri!r}: the file changed while it was read.")
        view[: len(content)] = content
        self._position = stop
        return len(content)


# A place of sources or shards.
AnyPath = Path | RemotePath


def any_path(place: str | os.PathLike[str], reader: RemoteReader) -> AnyPath:
    """A path of this machine, or an address that is allowed.

    Raises
    ------
    ValueError
        If the address is not allowed.
    """
    if not is_uri(place):
        return Path(place)
    try:
        reader.check(str(place))
    except ImageError as error:
        raise ValueError(str(error)) from error
    return RemotePath(str(place), reader)


def opened(path: AnyPath) -> Any:
    """What pyarrow reads: a path, or a file that is read as it is asked for."""
    return path if isinstance(path, Path) else path.open(buffer=0)


def content_sha256(path: AnyPath) -> str:
    """SHA-256 of a file."""
    return file_sha256(path) if isinstance(path, Path) else path.sha256()


@contextmanager
def naming(path: RemotePath) -> Iterator[None]:
    """Turn the errors of a reader into those of a file system, with the address."""
    try:
        yield
    except ImageError as error:
        is_missing = isinstance(error, ImageNotFoundError)
        kind = StoreNotFoundError if is_missing else StoreError
        raise kind(f"{shown(path.uri)!r}: {error}") from error


def _part_of(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{secrets.token_hex(4)}.part"
