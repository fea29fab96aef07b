"""What the Hugging Face Hub and its library refuse, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sk_cnncodes.backbones.hub_address import HubAddress
from sk_cnncodes.base.exceptions import DownloadError
from sk_cnncodes.base.home import OFFLINE_VARIABLE, is_offline

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def in_plain_words(hub: Any, address: HubAddress, file: str = "") -> Iterator[None]:
    """Turn errors of huggingface_hub into a `DownloadError` that says what to do.

    A note keeps what the library said.
    """
    try:
        yield
    except (hub.errors.HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".strip()
        fault = DownloadError(
            f"backbone='{address}': {_said(hub, error, address, file)}"
        )
        fault.add_note(" ".join(reason.split())[:500])
        raise fault from error


def offline(hub: Any, address: str, files: str) -> DownloadError:
    """The error for files that are not in the cache, when the network is forbidden."""
    who = f"{OFFLINE_VARIABLE}=1" if is_offline() else "HF_HUB_OFFLINE=1"
    return DownloadError(
        f"backbone={address!r}: {files} is not in the Hub's cache "
        f"({str(hub.constants.HF_HUB_CACHE)!r}), and {who} forbids fetching. "
        f"`sk-cnncodes download {address}` fetches it where that is allowed."
    )


def _said(hub: Any, error: BaseException, address: HubAddress, file: str) -> str:
    """What an error means, and what to do."""
    errors, repository = hub.errors, address.repository
    where = str(hub.constants.ENDPOINT)
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # why the Hub could not be asked
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the repository is gated. Accept its terms at {where}/{repository}, and "
            f"{_LOG_IN}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{where} has no repository {repository!r}, or it is private. Expected "
            f"hf://owner/name; for a private one, {_LOG_IN}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"the repository has no revision {address.revision!r}. Expected a branch, "
            "a tag or a commit."
        )
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return f"the repository has no file {file!r} at this revision."
    if status in (401, 403):
        return f"{where} refuses access (HTTP status {status}). {_LOG_IN.capitalize()}."
    if status == 429:
        return f"{where} was asked too often (HTTP status 429). Try again later."
    if status is not None:
        return f"{where} answered with HTTP status {status}. Try again later."
    what = f"the file {file!r}" if file else "the repository"
    return (
        f"{what} cannot be fetched from {where}: no connection, or it broke off. Check "
        "the connection and its proxy, and HF_ENDPOINT; what arrived is not used."
    )
