"""Images in tar and zip archives, read in order; nothing is unpacked to the disk."""

from __future__ import annotations

import errno
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from sk_cnncodes.base.exceptions import ImageError, reason_of
from sk_cnncodes.datasets.image_files import is_system_path
from sk_cnncodes.datasets.tables import is_image_name
from sk_cnncodes.images.safe_open import LARGEST_FILE
from sk_cnncodes.images.sources import FileContent
from sk_cnncodes.scale.remote_paths import AnyPath, StoreError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Largest member that is taken for a column, such as `cls`, `txt` or `json`.
_LARGEST_TEXT = 2**20
# Largest header of a member, and what no member reaches: an exbibyte.
_LARGEST_HEADER, _LARGEST_MEMBER = 2**24, 2**60
# Members, and bytes, of one sample of a tar archive that are held for its columns.
_LARGEST_SAMPLE, _HELD = 1000, 2**28
# What is raised where an archive is damaged.
_DAMAGED: tuple[type[Exception], ...] = (
    *(EOFError, zlib.error, OSError, tarfile.TarError, zipfile.BadZipFile),
)
with suppress(ImportError):  # Python can be built without it
    from lzma import LZMAError

    _DAMAGED += (LZMAError,)
# And by members with hostile headers, encrypted ones, other methods of compression, or
# names that cannot be decoded.
_BAD_MEMBER: tuple[type[Exception], ...] = (
    *(*_DAMAGED, RuntimeError, ValueError, LookupError, ArithmeticError),
)
# Members of tar archives that say something about the next one.
_ABOUT_NEXT = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)

# Name, image, and columns as text.
Row = tuple[str, Any, dict[str, str | None]]


class _TarInfo(tarfile.TarInfo):
    """A header of a tar archive; tarfile would read on from any size that it states."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> Any:
        member = super().frombuf(buf, encoding, errors)
        most = _LARGEST_HEADER if member.type in _ABOUT_NEXT else _LARGEST_MEMBER
        if not 0 <= member.size <= most:
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        return member


class BadMember:
    """A member of an archive that cannot be read, as an element of X.

    Parameters
    ----------
    name : str
    reason : str
    """

    def __init__(self, name: str, reason: str) -> None:
        self.full_name = name
        self._reason = reason

    def read_bytes(self) -> bytes:
        raise ImageError(self._reason)


def read_tar(
    path: AnyPath, columns: Sequence[str], wanted: Callable[[int], bool]
) -> Iterator[Row]:
    """Yield the images of a tar archive.

    Members that share their name up to its first dot are a sample, as those of
    WebDataset: ``0007.jpg`` with ``0007.cls`` and ``0007.json``. A column is a member
    with its name as the suffix, or a value in the JSON member. Without columns, images
    are not held; with them, those of a sample are, up to a limit: of images beyond it,
    columns that come later have no values.

    Raises
    ------
    ValueError
        If the archive is damaged.
    OSError
        If it is at an address, and cannot be read any more.
    """
    position = held = 0
    sample, images, texts = "", list[tuple[str, Any]](), dict[str, bytes]()
    try:
        with (
            _file(path) as file,
            tarfile.open(fileobj=file, mode="r:*", tarinfo=_TarInfo) as archive,
        ):
            for member in _tar_members(archive):
                if not member.isfile() or is_system_path(member.name):
                    continue
                stem, _, suffix = _sample_name(member.name)
                if stem != sample:
                    yield from _rows(images, columns, texts)
                    sample, images, texts, held = stem, [], {}, 0
                if is_image_name(member.name):
                    image = None
                    if wanted(position):
                        image = _tar_image(archive, member)
                        held += member.size
                    images.append((member.name, image))
                    position += 1
                    if not columns or len(images) >= _LARGEST_SAMPLE or held > _HELD:
                        yield from _rows(images, columns, texts)
                        images, held = [], 0
                elif (
                    columns
                    and suffix in (*columns, "json")
                    and member.size <= _LARGEST_TEXT
                    and not member.issparse()
                ):
                    texts[suffix] = _tar_content(archive, member, member.size)
            _check_end(archive)
    except StoreError:
        raise
    except _BAD_MEMBER as error:
        raise ValueError(
            f"{str(path)!r}: the archive cannot be read ({reason_of(error)}). Expected "
            "a whole tar file."
        ) from error
    yield from _rows(images, columns, texts)


def _file(path: AnyPath) -> Any:
    return open(path, "rb") if isinstance(path, Path) else path.open()


def _tar_members(archive: Any) -> Iterator[tarfile.TarInfo]:
    """Yield the members, each of which must end behind the one before."""
    end = 0
    while (member := archive.next()) is not None:
        vars(archive)["members"].clear()  # it would keep all of them
        if member.size < 0 or archive.offset <= end:
            raise tarfile.ReadError(f"a member of {member.size} bytes at byte {end}")
        end = archive.offset
        yield member


def _tar_image(archive: Any, member: tarfile.TarInfo) -> Any:
    if member.issparse():
        # A few bytes of the archive can state gigabytes of zeros.
        reason = "a sparse file. Expected one that was stored without --sparse."
        return BadMember(member.name, reason)
    read = partial(_tar_content, archive, member)
    return _member(member.name, member.size, read)


def _tar_content(archive: Any, member: tarfile.TarInfo, size: int) -> bytes:
    file = archive.extractfile(member)
    content: bytes = file.read(size)
    if len(content) < size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _check_end(archive: Any) -> None:
    """Refuse an archive that is cut, or damaged; tarfile takes that for its end."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no member and no end at byte {archive.offset}")


def _sample_name(name: str) -> tuple[str, str, str]:
    folder, _, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return f"{folder}/{stem}", dot, suffix


def _rows(
    images: list[tuple[str, Any]], columns: Sequence[str], texts: dict[str, bytes]
) -> Iterator[Row]:
    if not images:
        return
    values = _values(texts)
    for name, image in images:
        yield name, image, {column: values.get(column) for column in columns}


def _values(texts: dict[str, bytes]) -> dict[str, str | None]:
    """The columns of a sample."""
    values: dict[str, str | None] = {}
    if "json" in texts:
        try:
            found = json.loads(texts["json"])
        except (ValueError, RecursionError):
            found = None  # of a column, which says nothing about the image
        if isinstance(found, dict):
            values = {
                name: value if isinstance(value, str) else json.dumps(value)
                for name, value in found.items()
                if value is not None
            }
    others = {name: text.decode("utf-8", "replace") for name, text in texts.items()}
    return values | {name: text.strip() for name, text in others.items()}


def _member(name: str, size: int, read: Callable[[int], bytes]) -> Any:
    """The image of a member, or what says why there is none."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        return BadMember(name, "a name that leaves the archive. Expected one inside.")
    if size > LARGEST_FILE:
        return BadMember(
            name, f"file too large. Expected at most {LARGEST_FILE} bytes, got {size}."
        )
    return FileContent(read(size), name)


def read_zip(
    path: AnyPath, columns: Sequence[str], wanted: Callable[[int], bool]
) -> Iterator[Row]:
    """Yield the images of a zip archive, in the order of its directory.

    Raises
    ------
    ValueError
        If the archive is damaged, or columns are asked for.
    OSError
        If it cannot be read any more.
    """
    if columns:
        raise ValueError(
            f"{str(path)!r}: columns={list(columns)!r}: a zip file has none."
        )
    try:
        archive = zipfile.ZipFile(path if isinstance(path, Path) else path.open())
    except _BAD_MEMBER as error:
        for fault in (error, error.__context__):
            if isinstance(fault, StoreError):  # zipfile takes it for no archive
                raise fault from None
        raise ValueError(
            f"{str(path)!r}: the archive cannot be read ({reason_of(error)}). Expected "
            "a whole zip file."
        ) from error
    position = 0
    with archive:
        for member in archive.infolist():
            name = member.filename
            if member.is_dir() or not is_image_name(name) or is_system_path(name):
                continue
            image = None
            if wanted(position):
                image = _zip_image(archive, member)
            position += 1
            yield name, image, {}


def _zip_image(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    def content(size: int) -> bytes:
        # A hostile archive states less than it unpacks.
        with archive.open(member) as file:
            return file.read(size + 1)[:size]

    try:
        return _member(member.filename, member.file_size, content)
    except _BAD_MEMBER as error:
        if isinstance(error, OSError) and not _is_damage(error):
            raise
        return BadMember(member.filename, f"cannot be read ({reason_of(error)}).")


def _is_damage(error: OSError) -> bool:
    """Whether an error says that a member is damaged, and not that its file is gone.

    Of bz2 it has no number; a place before the beginning of the file is invalid.
    """
    return error.errno in (None, errno.EINVAL) and not isinstance(error, StoreError)
