"""Files of the catalogue in the home folder: found there, or downloaded and checked.

A download goes to a file beside its place, is digested and run once, and only then
moved to its place, all under a lock that processes share: what lies in place is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from sk_cnncodes.backbone import Backbone
from sk_cnncodes.exceptions import BackboneError, DownloadError
from sk_cnncodes.forks import import_whole
from sk_cnncodes.model_files import file_sha256
from sk_cnncodes.progress import progress_bar

if TYPE_CHECKING:
    from typing import BinaryIO

    from sk_cnncodes.catalogue import CatalogueRow

HOME_VARIABLE = "SK_CNNCODES_HOME"
OFFLINE_VARIABLE = "SK_CNNCODES_OFFLINE"
MIRROR_VARIABLE = "SK_CNNCODES_MIRROR"
# Seconds to wait for a server to answer, and for each next piece of a file.
_TIMEOUT = 30.0
_CHUNK = 2**18
# Relative to the largest value: rounding stays below, other images lie far above.
_SAME_CODE = 1e-3


def home_folder() -> Path:
    """Where downloaded backbones lie: `SK_CNNCODES_HOME`, or the user's cache folder.

    The folder need not exist.

    Raises
    ------
    DownloadError
        If the user has no home, as in containers whose user has no name.
    """
    chosen = os.environ.get(HOME_VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        folder = Path(import_whole("pooch").os_cache("sk_cnncodes"))
        if not folder.is_absolute():
            raise RuntimeError(f"{str(folder)!r} is no absolute path")
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"there is no folder for downloaded backbones ({error}). Expected "
            f"{HOME_VARIABLE} to name one."
        ) from error
    return folder


def is_offline() -> bool:
    """Whether `SK_CNNCODES_OFFLINE` forbids the network."""
    value = os.environ.get(OFFLINE_VARIABLE, "").strip().lower()
    return value not in ("", "0", "false", "no", "off")


def download_addresses(row: CatalogueRow) -> list[str]:
    """Where to get a file, in order of preference, by way of the mirror if one is set.

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
    """The whole and checked file of a row in the home folder; downloaded if need be.

    Parameters
    ----------
    row : CatalogueRow
    progress : bool or None, default=None
        Whether to show a progress bar; None shows one on a terminal.

    Returns
    -------
    Path

    Raises
    ------
    DownloadError
        If the file is not there and cannot be downloaded, or does not work.
    """
    path = home_folder() / row.file
    if _is_whole(path, row):
        if _read_record(path).get("sha256") != row.sha256:
            _write_record(path, row, _check_once(path, row))
        return path
    if is_offline():
        raise DownloadError(
            f"backbone {row.name!r}: {_state(path, row)}, and {OFFLINE_VARIABLE} "
            f"forbids to download it. {_how_to_place(path, row)}"
        )
    addresses = download_addresses(row)
    if not addresses:
        raise DownloadError(
            f"backbone {row.name!r}: {_state(path, row)}, and no public address is "
            f"known for it. {_how_to_place(path, row)} {row.notes}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_name(f"{path.name}.lock")):
            if not _is_whole(path, row):  # else another process was faster
                _download(row, path, addresses, progress)
    except OSError as error:
        raise DownloadError(
            f"backbone {row.name!r}: cannot write to the folder {str(path.parent)!r} "
            f"({error}); nothing was left there. Expected a folder that can be written "
            f"and locked, with {row.size} bytes free; {HOME_VARIABLE} names another."
        ) from error
    return path


def _is_whole(path: Path, row: CatalogueRow) -> bool:
    if not path.is_file() or path.stat().st_size != row.size:
        return False
    return file_sha256(path) == row.sha256


def _state(path: Path, row: CatalogueRow) -> str:
    if not path.is_file():
        return f"its file {str(path)!r} is not there"
    size, digest = path.stat().st_size, file_sha256(path)
    return (
        f"its file {str(path)!r} is not the right one (expected {row.size} bytes, "
        f"sha256 {row.sha256}; got {size} bytes, sha256 {digest})"
    )


def _how_to_place(path: Path, row: CatalogueRow) -> str:
    sources = f" from {' or '.join(row.addresses)}" if row.addresses else ""
    return (
        f"Put the file{sources} ({row.size} bytes, sha256 {row.sha256}) at "
        f"{str(path)!r}; or set {HOME_VARIABLE} to the folder that holds {row.file!r}."
    )


# -- downloading -------------------------------------------------------------


def _download(
    row: CatalogueRow, path: Path, addresses: list[str], progress: bool | None
) -> None:
    """Try one address after the other, with the lock held."""
    for left in path.parent.glob(f"{path.name}.*.part"):
        left.unlink(missing_ok=True)  # of a process that was killed
    was_wrong = _state(path, row) if path.is_file() else None
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    faults = []
    try:
        for address in addresses:
            fault = _get(address, part, row, progress)
            if fault is not None:
                faults.append(f"{address}: {fault}")
                continue
            batch_size = check_backbone(part, row)
            part.replace(path)
            _write_record(path, row, batch_size)
            break
        else:
            raise DownloadError(
                f"backbone {row.name!r}: no address gave the right file; what arrived "
                f"was removed. Tried {'; '.join(faults)}. Check the connection and its "
                f"proxy, or set {MIRROR_VARIABLE} to a mirror. "
                f"{_how_to_place(path, row)}"
            )
    finally:
        part.unlink(missing_ok=True)
    if was_wrong:
        warnings.warn(
            f"backbone {row.name!r}: {was_wrong}; it was replaced by a download.",
            stacklevel=2,
        )


def _get(
    address: str, part: Path, row: CatalogueRow, progress: bool | None
) -> str | None:
    """Download to a file and digest it; what is wrong with it, if anything."""
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
        answer = str(error).partition(" for url")[0]  # such as 404 ... Not Found
        return f"HTTP status {answer}"
    except RequestException as error:
        # Of the nested reasons that such errors have, the last says most.
        reason = str(error).replace("\n", " ")[:300]
        got = part.stat().st_size if part.exists() else 0
        return f"broke off after {got} of {row.size} bytes ({reason})"
    finally:
        bar.close()
    size = part.stat().st_size
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if size < row.size:
        return f"ended after {size} of {row.size} bytes"
    if digest != row.sha256:
        return (
            f"another file (expected {row.size} bytes, sha256 {row.sha256}; got {size} "
            f"bytes, sha256 {digest}): it was changed by its publisher or on the way"
        )
    return None


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock that processes share; the system releases it if this one dies."""
    with open(path, "a+b") as file:
        _acquire(file)
        try:
            yield
        finally:
            _release(file)


if sys.platform == "win32":
    import msvcrt

    def _acquire(file: BinaryIO) -> None:
        file.seek(0)
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EDEADLK):
                    raise
                time.sleep(0.1)

    def _release(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _acquire(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    def _release(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


# -- the check on first use --------------------------------------------------


def check_backbone(path: Path, row: CatalogueRow) -> int | None:
    """Whether a file is the backbone that its row describes, by running it once.

    Input size and code length are compared with the row; codes of two different
    images must be finite, differ, and not depend on the batch.

    Returns
    -------
    int or None
        Number of images in each run, where the network does not take any number.

    Raises
    ------
    DownloadError
        If something is not as it should be.
    """
    from sk_cnncodes.devices import Device, usable_threads
    from sk_cnncodes.runtime import open_session

    backbone = Backbone(
        path, row.sha256, row.preprocessing, row.name, row.penultimate or None
    )
    try:
        spec = backbone.spec(-1, "auto", None)
        length = backbone.code_length(spec)
        if length != row.code_length:
            raise _failed(row, f"code length {row.code_length}", f"{length}")
        # Rows that depend on their batch make this choose single images.
        session = open_session(
            backbone.code_graphs([spec]),
            Device(None, required=True),
            usable_threads(-1),
        )
        photographs = [_photograph(0, slope=1.0), _photograph(1, slope=1.8)]
        images = np.stack([row.preprocessing.apply(p) for p in photographs])
        (together,) = session.run(images)
        alone = np.concatenate([session.run(images[i : i + 1])[0] for i in (0, 1)])
    except DownloadError:
        raise
    except BackboneError as error:
        size = " x ".join(map(str, row.preprocessing.crop_size))
        raise _failed(
            row, f"a network for images of {size} pixels that runs", str(error)
        ) from error
    if not np.isfinite(together).all():
        raise _failed(row, "finite codes", "infinite or undefined values")
    scale = np.abs(together).max(initial=1e-30)
    if np.abs(together - alone).max() > _SAME_CODE * scale:
        raise _failed(row, "codes that do not depend on the batch", "codes that do")
    if np.abs(together[0] - together[1]).max() <= _SAME_CODE * scale:
        raise _failed(row, "different codes of two different images", "equal ones")
    return session.batch_size


def _failed(row: CatalogueRow, expected: str, got: str) -> DownloadError:
    return DownloadError(
        f"backbone {row.name!r}: its file has the right sha256, but failed the check "
        f"on first use: expected {expected}, got {got}. If it was being downloaded, it "
        "was removed. Run `sk-cnncodes doctor`, and update onnxruntime; or choose "
        "another backbone."
    )


def _photograph(seed: int, slope: float) -> Any:
    """A picture with the spectrum of photographs: amplitudes fall with frequency."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    shape = (240, 320)
    down, across = np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1])
    frequency = np.hypot(down[:, None], across)
    frequency[0, 0] = 1 / max(shape)
    noise = np.fft.rfft2(rng.normal(size=(4, *shape))) / frequency**slope
    planes = np.fft.irfft2(noise, shape)
    planes = planes[:1] + 0.3 * planes[1:]  # mostly luminance
    low, high = np.percentile(planes, (1, 99))
    pixels = np.clip((planes - low) / (high - low) * 255, 0, 255)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0), np.uint8))


@lru_cache(maxsize=64)
def _check_once(path: Path, row: CatalogueRow) -> int | None:
    """Check a file that was put there by hand; once in a process at most."""
    return check_backbone(path, row)


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_record(path: Path) -> dict[str, Any]:
    """What the check on first use found; {} where there was none."""
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(path: Path, row: CatalogueRow, batch_size: int | None) -> None:
    record = {"name": row.name, "sha256": row.sha256, "batch_size": batch_size}
    try:
        _record_path(path).write_text(json.dumps(record), encoding="utf-8")
    except OSError:
        return  # a folder that others keep: each process checks for itself
