"""Atomic writes, file identities and checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

# A file modified more recently than this may change again within one time stamp.
SETTLED_NS = 2_000_000_000
# Seconds without a write after which a part of a file is nobody's.
_ABANDONED = 3600
_DISK_FULL_ERRORS = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.EFBIG))

# Device and inode of the databases open in this process, by the id of their owner.
open_databases: dict[int, tuple[int, int] | None] = {}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it on success.

    On any error, Ctrl-C included, the temporary file is removed and an existing file
    at `path` is left unchanged. If `path` is a symlink, its target is replaced. If it
    is not a regular file, such as ``/dev/stdout`` or a pipe, it is yielded itself.

    Raises
    ------
    OSError
        If the parent folder does not exist, or `path` is a folder.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sk_cnncodes.base.files import atomic_write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "notes.txt")) as part:
    ...         _ = part.write_text("whole")
    ...     [file.name for file in Path(folder).iterdir()]
    ['notes.txt']
    """
    target = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Expected a file name.")
    if path.exists() and not path.is_file():
        with _naming(path, path):
            yield path
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{str(path)!r}: there is no folder {str(target.parent)!r}. "
            "Create it first."
        )
    # Writers choose a format by the suffix. The token separates concurrent threads.
    # `remove_unfinished` knows this name.
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    part = target.with_name(f".{path.stem}.{unique}.part{path.suffix}")
    try:
        with _naming(path, part):
            yield part
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what processes left that were killed in an `atomic_write` of a file."""
    if os.name != "posix":
        return
    name = re.compile(
        rf"\.{re.escape(path.stem)}\.(\d+)-[0-9a-f]+\.part{re.escape(path.suffix)}"
    )
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        return  # atomic_write says so
    for other in folder.glob(".*.part*"):
        match = name.fullmatch(other.name)
        if not match or is_running(int(match[1])):
            continue
        # A process of another machine writes all the time.
        with suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > _ABANDONED:
                other.unlink()


def is_running(process: int) -> bool:
    """Whether this machine has a process of that number, or cannot say it."""
    if os.name == "nt":
        return True  # there, a signal of 0 is no question
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        pass
    return True


@contextmanager
def _naming(path: Path, part: Path) -> Iterator[None]:
    """Make errors name a file, not the temporary one, or none."""
    try:
        yield
    except OSError as error:
        # Write errors of open files carry no name.
        is_full = error.filename is None and error.errno in _DISK_FULL_ERRORS
        if is_full or error.filename == str(part):
            error.filename = str(path)
            del error.filename2  # None would be printed, as "-> None"
        raise


def working_folder() -> str:
    """The working directory, as it appears in error messages."""
    try:
        return repr(os.getcwd())  # noqa: PTH109
    except OSError:
        return "a folder that was deleted"


def is_open_database(path: str) -> bool:
    """Whether a file, or the database that its log belongs to, is open here.

    Reading and closing such a file would release all locks of this process on it.
    """
    main = re.sub("-(wal|shm|journal)$", "", path)
    identity = file_identity(main) if open_databases else None
    return identity is not None and identity in list(open_databases.values())


def file_identity(path: str) -> tuple[int, int] | None:
    """Device and inode of a file, or None if it does not exist."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_not_an_input(output: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that would replace one of its inputs.

    Parameters
    ----------
    output : Path
    inputs : iterable of str or path-like

    Raises
    ------
    ValueError
        If `output` is one of the inputs.
    """
    for path in inputs:
        if _is_same_file(output, path):
            raise ValueError(
                f"output {str(output)!r}: it is one of the inputs, which would be "
                "replaced. Expected another file name."
            )


def _is_same_file(path: Path, other: str | os.PathLike[str]) -> bool:
    """Whether two paths refer to one file, or would if it existed."""
    try:
        return os.path.realpath(path) == os.path.realpath(other) or path.samefile(other)
    except (OSError, ValueError):  # a path is missing or invalid
        return False


def reserve_disk(path: Path) -> None:
    """Allocate disk space for the full size of a sparse file.

    Writing to a memory-mapped file on a full disk would kill the process.

    Raises
    ------
    OSError
        If the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, cached by its path, inode, size and time stamps."""
    status = path.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    state = (status.st_dev, status.st_ino, status.st_size, *times)
    if time.time_ns() - max(times) < SETTLED_NS:
        return _sha256(os.path.realpath(path))
    return _cached_sha256(os.path.realpath(path), state)


@lru_cache(maxsize=1024)
def _cached_sha256(path: str, _state: tuple[int, ...]) -> str:
    return _sha256(path)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
