"""Files of the catalogue in the home folder, downloaded and checked if missing.

A download goes to a temporary file in the same folder. Its digest is compared and it is
run once before an atomic move into place. All of this holds a lock between processes,
so that a file in place is always complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from sk_cnncodes.backbones.catalogue import CatalogueRow
from sk_cnncodes.backbones.first_use import check_backbone
from sk_cnncodes.base.exceptions import DownloadError
from sk_cnncodes.base.files import file_sha256
from sk_cnncodes.base.home import (
    HOME_VARIABLE,
    OFFLINE_VARIABLE,
    cache_dir,
    is_offline,
)
from sk_cnncodes.base.logs import LOG_VARIABLE, logger
from sk_cnncodes.base.progress import progress_bar

MIRROR_VARIABLE = "SK_CNNCODES_MIRROR"
# Seconds to wait for the server's answer and for each chunk.
_TIMEOUT = 30.0
_CHUNK = 2**18


def download_addresses(row: CatalogueRow) -> list[str]:
    """Addresses of a file in order of preference, on the mirror if one is set.

    Raises
    ------
    DownloadError
        If `SK_CNNCODES_MIRROR` is not the beginning of an HTTP address.
    """
    mirror = os.environ.get(MIRROR_VARIABLE, "").rstrip("/")
    if not mirror:
        return list(row.addresses)
    if urlsplit(mirror).scheme not in ("http", "https") or not urlsplit(mirror).netloc:
        raise DownloadError(
            f"{MIRROR_VARIABLE}={mirror!r}: expected the beginning of an address that "
            "replaces scheme and host, such as 'https://mirror.example.org/models'."
        )
    paths = [urlunsplit(("", "", *urlsplit(a)[2:])) for a in row.addresses]
    return list(dict.fromkeys(mirror + path for path in paths))


def obtain_file(row: CatalogueRow, progress: bool | None = None) -> Path:
    """Return the checked file of a row in the home folder; download it if missing.

    Parameters
    ----------
    row : CatalogueRow
    progress : bool or None, default=None
        Whether to show a progress bar; None shows one on a terminal.

    Returns
    -------
    Path
        Path of the file.

    Raises
    ------
    DownloadError
        If the file is missing and cannot be downloaded, or fails its check.
    """
    path = cache_dir() / row.file
    if _is_intact(path, row):
        if _read_record(path).get("sha256") != row.sha256:
            _write_record(path, row, _check_once(path, row))
        return path
    if is_offline():
        raise _error(
            f"backbone {row.name!r}: {_fault(path)}, and {OFFLINE_VARIABLE} forbids "
            f"downloads. {_manual_install(path, row)}",
            f"{_file_fault(path, row)}. {_sources(row)}",
        )
    addresses = download_addresses(row)
    if not addresses:
        raise _error(
            f"backbone {row.name!r}: {_fault(path)}, and it has no public address. "
            f"{_manual_install(path, row)} {row.notes}",
            f"{_file_fault(path, row)}. {_sources(row)}",
        )
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not _is_intact(path, row):  # another process may have finished first
                _download(row, path, addresses, progress)
    except (OSError, NotImplementedError) as error:  # the latter: locks
        raise DownloadError(
            f"backbone {row.name!r}: cannot write to the folder {str(path.parent)!r} "
            f"({error}); nothing was left there. Expected a folder that can be written "
            f"and locked, with {row.size} bytes free. Set {HOME_VARIABLE} to another."
        ) from error
    return path


def _is_intact(path: Path, row: CatalogueRow) -> bool:
    """Whether a file exists with the size and digest of its row."""
    if not path.is_file() or path.stat().st_size != row.size:
        return False
    return file_sha256(path) == row.sha256


def _file_fault(path: Path, row: CatalogueRow) -> str:
    """What is wrong with a file, for a message."""
    if not path.is_file():
        return f"its file {str(path)!r} does not exist"
    size, digest = path.stat().st_size, file_sha256(path)
    return (
        f"its file {str(path)!r} is not the right one (expected {row.size} bytes, "
        f"sha256 {row.sha256}; got {size} bytes, sha256 {digest})"
    )


def _fault(path: Path) -> str:
    """The same in few words."""
    fault = "is not the right one" if path.is_file() else "does not exist"
    return f"its file {str(path)!r} {fault}"


def _manual_install(path: Path, row: CatalogueRow) -> str:
    """How to install a file by hand, for a message."""
    return (
        f"Put the file ({row.size / 1e6:.0f} MB) at {str(path)!r} yourself; "
        f"{LOG_VARIABLE}=info tells from where."
    )


def _sources(row: CatalogueRow) -> str:
    """Which file it is and where it comes from."""
    sources = f" from {' or '.join(row.addresses)}" if row.addresses else ""
    return (
        f"The file of {row.size} bytes, sha256 {row.sha256}{sources}, can also be in "
        f"another folder that {HOME_VARIABLE} names."
    )


def _error(message: str, details: str) -> DownloadError:
    """A short error; tracebacks and the log show the details."""
    logger.info("%s", details)
    error = DownloadError(message)
    error.add_note(details)
    return error


# -- downloading -------------------------------------------------------------


def _download(
    row: CatalogueRow, path: Path, addresses: list[str], progress: bool | None
) -> None:
    """Try the addresses in order; the caller holds the lock."""
    for stale in path.parent.glob(f"{path.name}.*.part"):
        stale.unlink(missing_ok=True)  # from a killed process
    old_fault = _file_fault(path, row) if path.is_file() else None
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    faults: list[tuple[str, _Fault]] = []
    try:
        for address in addresses:
            logger.info("backbone %r: downloading %s", row.name, address)
            fault = _fetch(address, part, row, progress)
            if fault is not None:
                faults.append((address, fault))
                continue
            batch_size = check_backbone(part, row)
            part.replace(path)
            _write_record(path, row, batch_size)
            break
        else:
            tried = "; ".join(
                f"{address}: {fault.details}" for address, fault in faults
            )
            raise _error(
                f"backbone {row.name!r}: cannot be downloaded: {_in_short(faults)}. "
                "Check the connection and its proxy, or set "
                f"{MIRROR_VARIABLE} to a mirror. {_manual_install(path, row)}",
                f"Tried {tried}; the downloads were removed. {_sources(row)}",
            )
    finally:
        part.unlink(missing_ok=True)
    if old_fault:
        warnings.warn(
            f"backbone {row.name!r}: {old_fault}; it was replaced by a download.",
            stacklevel=2,
        )


class _Fault(NamedTuple):
    """Why an address did not give a file, in few words and in all."""

    short: str
    details: str


def _in_short(faults: list[tuple[str, _Fault]]) -> str:
    """What the addresses answered, by their hosts."""
    hosts: dict[str, list[str]] = {}
    for address, fault in faults:
        hosts.setdefault(fault.short, []).append(urlsplit(address).netloc)
    return ", ".join(
        f"{short} {' and '.join(dict.fromkeys(names))}"
        for short, names in hosts.items()
    )


def _fetch(
    address: str, part: Path, row: CatalogueRow, progress: bool | None
) -> _Fault | None:
    """Download to a file and check its digest; return the fault, or None."""
    import pooch  # type: ignore[import-untyped]
    from requests import HTTPError, RequestException

    bar = progress_bar(
        disable=None if progress is None else not progress,
        total=row.size,
        desc=row.name,
        unit="B",
        unit_scale=True,
    )
    downloader = pooch.HTTPDownloader(
        progressbar=bar, chunk_size=_CHUNK, timeout=_TIMEOUT
    )
    try:
        downloader(address, os.fspath(part), None)
    except HTTPError as error:
        answer = str(error).partition(" for url")[0]  # e.g. 404 Client Error: Not Found
        return _Fault(f"status {answer[:3]} from", f"HTTP status {answer}")
    except RequestException as error:
        reason = str(error).replace("\n", " ")[:300]
        got = part.stat().st_size if part.exists() else 0
        short = "interrupted by" if got else "no connection to"
        details = f"interrupted after {got} of {row.size} bytes ({reason})"
        return _Fault(short, details)
    finally:
        bar.close()
    size = part.stat().st_size
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if size < row.size:
        details = f"ended after {size} of {row.size} bytes"
        return _Fault("a part of the file from", details)
    if digest != row.sha256:
        return _Fault(
            "another file from",
            f"another file (expected {row.size} bytes, sha256 {row.sha256}; got {size} "
            f"bytes, sha256 {digest}), changed by its publisher or in transit",
        )
    return None


# -- the record of the check --------------------------------------------------


@lru_cache(maxsize=64)
def _check_once(path: Path, row: CatalogueRow) -> int | None:
    """Check a file that was installed by hand, at most once per process."""
    return check_backbone(path, row)


def _record_path(path: Path) -> Path:
    """Path of the record of a file's check."""
    return path.with_name(f"{path.name}.json")


def _read_record(path: Path) -> dict[str, Any]:
    """The record of the check on first use; {} if there is none."""
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(path: Path, row: CatalogueRow, batch_size: int | None) -> None:
    """Record that a file passed the check, so that later processes skip it."""
    record = {"name": row.name, "sha256": row.sha256, "batch_size": batch_size}
    try:
        _record_path(path).write_text(json.dumps(record), encoding="utf-8")
    except OSError:
        return  # read-only folder: each process checks the file again
