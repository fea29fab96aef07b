"""Networks of the Hugging Face Hub: from `hf://owner/name` to files in its cache.

huggingface_hub fetches the files into the user's usual cache, and only those that are
needed. A **pin** in the home folder says which commit and which files an address stood
for when it was first used, with their digests: later uses take these from the cache and
ask nobody, in worker processes too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sk_cnncodes.backbones import hub_faults
from sk_cnncodes.backbones.hub_address import (
    CHOICE,
    HubAddress,
    choose_file,
    is_safe,
    parse_address,
)
from sk_cnncodes.base.exceptions import BackboneError, DownloadError
from sk_cnncodes.base.files import atomic_write, file_sha256
from sk_cnncodes.base.forks import import_fork_safe
from sk_cnncodes.base.home import cache_dir, is_offline
from sk_cnncodes.base.logs import logger
from sk_cnncodes.graphs.reading import COMMIT, external_data_files, read_outline
from sk_cnncodes.images.preprocessing_formats import (
    CONFIGURATION_FILES,
    configuration_folders,
)


@dataclass
class HubFile:
    """What an address of the Hub stands for on this machine.

    Attributes
    ----------
    path : Path
        The ONNX file in the Hub's cache.
    pinned : HubAddress
        With commit and file.
    pin : dict
        Digests of the files by name, and of the network that passed the check on first
        use, if any.
    pin_path : Path or None
        Where the pin is; None if it is not kept.
    """

    path: Path
    pinned: HubAddress
    pin: dict[str, Any] = field(default_factory=dict)
    pin_path: Path | None = None

    def save_pin(self) -> None:
        """Write the pin; in a folder that cannot be written there is none."""
        if self.pin_path is not None:
            with suppress(OSError), atomic_write(self.pin_path) as part:
                part.write_text(json.dumps(self.pin, indent=1), encoding="utf-8")


def obtain_hub_file(
    text: str, *, newest: bool = False, progress: bool | None = None
) -> HubFile:
    """Find the file of an address in the Hub's cache, or fetch it.

    Parameters
    ----------
    text : str
    newest : bool, default=False
        Whether to ask the Hub even if the files are in the cache, unless it is offline.
    progress : bool or None, default=None
        Whether to show progress bars; None shows them on a terminal.

    Raises
    ------
    BackboneError
        If the address is malformed, or it is not clear which file it means.
    DownloadError
        If files are missing and cannot be fetched, or have changed.
    ImportError
        If huggingface_hub is not installed.
    """
    address = parse_address(text)
    hub = _import_hub(text)
    cannot_ask = is_offline() or hub.constants.HF_HUB_OFFLINE
    pin_path = _pin_path(address)
    if not newest or cannot_ask:
        found = _pinned(hub, address, pin_path)
        if found is not None:
            return found
    if cannot_ask:
        return _cached(hub, address)
    with _locked(pin_path):
        found = None if newest else _pinned(hub, address, pin_path)
        return found or _fetch_all(hub, address, pin_path, progress)


def _import_hub(text: str) -> Any:
    try:
        for module in ("constants", "errors", "utils"):
            import_fork_safe(f"huggingface_hub.{module}")
        return import_fork_safe("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"backbone={text!r} needs huggingface_hub, which is not installed: "
            "pip install 'sk-cnncodes[hub]'."
        ) from error


# -- pins --------------------------------------------------------------------


def _pin_path(address: HubAddress) -> Path | None:
    digest = hashlib.sha256(str(address).encode()).hexdigest()[:16]
    name = address.repository.replace("/", "--")
    with suppress(DownloadError):
        return cache_dir() / "hub" / f"{name[:100]}-{digest}.json"
    return None


@contextmanager
def _locked(pin_path: Path | None) -> Iterator[None]:
    """Hold a lock between processes, where the folder allows one.

    huggingface_hub has locks of its own; this one spares the others asking.
    """
    from filelock import FileLock

    with ExitStack() as stack:
        if pin_path is not None:
            with suppress(OSError, NotImplementedError):
                pin_path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(pin_path.with_suffix(".lock")))
        yield


def _pinned(hub: Any, address: HubAddress, pin_path: Path | None) -> HubFile | None:
    """What an address was pinned to, if all of its files are still in the cache.

    Raises
    ------
    DownloadError
        If a file has changed.
    """
    if pin_path is None:
        return None
    try:
        pin = json.loads(pin_path.read_text(encoding="utf-8"))
        if pin["address"] != str(address):
            return None
        pinned = HubAddress(address.repository, pin["commit"], pin["file"])
        digests = dict(pin["files"])
        paths = {name: _in_cache(hub, pinned, name) for name in digests}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no pin, or a damaged one
    if not all(paths.values()) or not paths.get(pinned.file):
        return None
    for name, path in paths.items():
        digest = file_sha256(path)
        if digest != digests[name]:
            raise DownloadError(
                f"backbone='{address}': its file {str(path)!r} changed after it was "
                f"fetched. Expected sha256 {digests[name]}, got {digest}. "
                f"`sk-cnncodes download {address}` fetches it again."
            )
    return HubFile(paths[pinned.file], pinned, pin, pin_path)


def _in_cache(hub: Any, address: HubAddress, name: str) -> Any:
    """Path of a file in the Hub's cache; None if it is not there."""
    path = hub.try_to_load_from_cache(
        address.repository, name, revision=address.revision
    )
    return Path(path) if isinstance(path, str) and Path(path).is_file() else None


def _cached(hub: Any, address: HubAddress) -> HubFile:
    """What the Hub's cache has, fetched by whomever; without a pin, for now.

    Without a list of the repository's files, only the usual ones are chosen among.
    """
    for name in [address.file] if address.file else CHOICE:
        path = _in_cache(hub, address, name)
        if path is None:
            continue
        commit = path.parents[len(PurePosixPath(name).parts) - 1].name
        return HubFile(path, HubAddress(address.repository, commit, name))
    raise hub_faults.offline(hub, str(address), address.file or " or ".join(CHOICE))


# -- fetching ----------------------------------------------------------------


def _fetch_all(
    hub: Any, address: HubAddress, pin_path: Path | None, progress: bool | None
) -> HubFile:
    """Fetch the network, its configuration and its external data, and pin them."""
    text = str(address)
    with hub_faults.in_plain_words(hub, address):
        info = hub.HfApi().model_info(
            address.repository,
            revision=address.revision,
            files_metadata=True,
            timeout=hub.constants.HF_HUB_ETAG_TIMEOUT,
        )
    listed = {s.rfilename: _etag(s) for s in info.siblings or []}
    file = choose_file(address, list(listed))
    if not COMMIT.fullmatch(str(info.sha)):
        raise DownloadError(
            f"backbone={text!r}: the Hub states no commit of revision "
            f"{address.revision!r}, got {info.sha!r}."
        )
    pinned = HubAddress(address.repository, info.sha, file)
    logger.info("backbone %r: fetching %s", text, pinned)
    # By the revision's name, which the Hub's cache remembers for offline use.
    revision, bar = address.revision, _progress_bar(hub, progress)
    path = _fetch(hub, address, file, revision, listed[file], bar)
    if path.parents[len(PurePosixPath(file).parts) - 1].name != info.sha:
        raise DownloadError(
            f"backbone={text!r}: revision {address.revision!r} moved while it was "
            "fetched. Try again."
        )
    digests = {file: file_sha256(path)}
    for name in [
        *_configurations(file, listed),
        *_data_files(text, path, file, listed),
    ]:
        other = _fetch(hub, address, name, info.sha, listed[name], bar)
        digests[name] = file_sha256(other)
    pin = {"address": text, "commit": info.sha, "file": file, "files": digests}
    found = HubFile(path, pinned, pin, pin_path)
    found.save_pin()
    return found


def _etag(sibling: Any) -> str | None:
    """Digest that the Hub states for a file: SHA-256, or git's of a small file."""
    etag: str | None = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    return etag


def _configurations(file: str, listed: Mapping[str, Any]) -> list[str]:
    """The configuration files of a network that a repository has."""
    folders = configuration_folders(PurePosixPath(file).parent)
    names = [str(folder / name) for folder in folders for name in CONFIGURATION_FILES]
    return [name for name in names if name in listed]


def _data_files(
    text: str, path: Path, file: str, listed: Mapping[str, Any]
) -> list[str]:
    """The files in the repository that hold a network's weights."""
    found = []
    for location in external_data_files(read_outline(path)):
        name = str(PurePosixPath(file).parent / location)
        if not is_safe(location) or name not in listed:
            raise BackboneError(
                f"backbone={text!r}: the weights of {file!r} are in {location!r}, "
                "which is no file in its folder of the repository."
            )
        found.append(name)
    return found


def _fetch(
    hub: Any,
    address: HubAddress,
    name: str,
    revision: str,
    etag: str | None,
    bar: dict[str, Any],
) -> Path:
    """Fetch a file into the Hub's cache, unless it is there, and compare its digest."""
    if etag is None:
        raise DownloadError(
            f"backbone='{address}': the Hub, or a mirror (HF_ENDPOINT), states no "
            f"digest of the file {name!r}. Expected one, which it is compared with."
        )
    digest = ""
    for force in (False, True):  # a damaged file in the cache is fetched again, once
        with hub_faults.in_plain_words(hub, address, name):
            path = hub.hf_hub_download(
                address.repository,
                name,
                revision=revision,
                force_download=force,
                **bar,
                etag_timeout=hub.constants.HF_HUB_ETAG_TIMEOUT,
            )
        digest = _digest_like(Path(path), etag)
        if digest == etag:
            return Path(path)
    with suppress(OSError):
        Path(os.path.realpath(path)).unlink()
        Path(path).unlink(missing_ok=True)
    raise DownloadError(
        f"backbone='{address}': the file {name!r} that was sent is not the one that "
        f"the Hub states. Expected digest {etag}, got {digest}: it was changed in "
        "transit, or by a proxy or a mirror (HF_ENDPOINT). It was removed."
    )


def _digest_like(path: Path, etag: str) -> str:
    """Digest of a file, of the kind that the Hub states."""
    if len(etag) == 64:
        return file_sha256(path)
    content = path.read_bytes()
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def _progress_bar(hub: Any, progress: bool | None) -> dict[str, Any]:
    """The option for the class of progress bars; by default a terminal has them."""
    if progress is None:
        return {}

    class Bar(hub.utils.tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": not progress}))

    return {"tqdm_class": Bar}
