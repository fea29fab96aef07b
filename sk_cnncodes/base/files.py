"""Files that are there whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

# A file that changed less than this ago may change again without a new time stamp.
SETTLED_NS = 2_000_000_000
_TOO_LITTLE_DISK = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.EFBIG))

# Device and inode of the databases that are open in this process, by who opened them.
open_databases: dict[int, tuple[int, int] | None] = {}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when all went well.

    On an error, and on Ctrl-C, what was written is removed, and a file that was at
    `path` before is as it was. A link stays one: what it leads to is replaced. What is
    no file, such as ``/dev/stdout`` or a pipe, is written to as it is.

    Raises
    ------
    OSError
        If there is no such folder, or a folder of that name.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sk_cnncodes.base.files import atomic_write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "notes.txt")) as part:
    ...         _ = part.write_text("whole")
    ...     [place.name for place in Path(folder).iterdir()]
    ['notes.txt']
    """
    target = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Expected a file name.")
    if path.exists() and not path.is_file():
        yield path
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{str(path)!r}: there is no folder {str(target.parent)!r}. Make it first."
        )
    # The suffix stays: writers look at it. Threads may write to one path at once.
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    part = target.with_name(f".{path.stem}.{own}.part{path.suffix}")
    try:
        yield part
        part.replace(target)
    except OSError as error:
        if error.filename is None and error.errno in _TOO_LITTLE_DISK:
            error.filename = str(path)  # writing to an open file names none
        raise
    finally:
        part.unlink(missing_ok=True)


def working_folder() -> str:
    """Where relative paths start from, as messages say it."""
    try:
        return repr(os.getcwd())  # noqa: PTH109
    except OSError:
        return "a folder that was deleted"


def is_open_database(path: str) -> bool:
    """Whether a file, or what its log belongs to, is a database that is open here.

    To close such a file, after reading it, would end all locks of this process on it.
    """
    main = re.sub("-(wal|shm|journal)$", "", path)
    identity = file_identity(main) if open_databases else None
    return identity is not None and identity in list(open_databases.values())


def file_identity(path: str) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_not_an_input(output: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that would replace what it is made from.

    Parameters
    ----------
    output : Path
    inputs : iterable of path

    Raises
    ------
    ValueError
        Naming the output.
    """
    for path in inputs:
        if _is_same_file(output, path):
            raise ValueError(
                f"output {str(output)!r}: it is one of the inputs, which would be "
                "replaced. Expected another file name."
            )


def _is_same_file(path: Path, other: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to one file, or would if there were one."""
    try:
        return os.path.realpath(path) == os.path.realpath(other) or path.samefile(other)
    except (OSError, ValueError):  # one is not there, or no possible path
        return False


def reserve_disk(path: Path) -> None:
    """Have the disk hold a file as large as it claims to be.

    A file that is mapped into memory ends the process where the disk is too full.

    Raises
    ------
    OSError
        If the disk is too full.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered by all that changes with its content."""
    status = path.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    state = (status.st_dev, status.st_ino, status.st_size, *times)
    if time.time_ns() - max(times) < SETTLED_NS:
        return _sha256(os.path.realpath(path))
    return _remembered_sha256(os.path.realpath(path), state)


@lru_cache(maxsize=1024)
def _remembered_sha256(path: str, _state: tuple[int, ...]) -> str:
    return _sha256(path)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
