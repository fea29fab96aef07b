"""Images at addresses of other machines: only those that the user allowed."""

from __future__ import annotations

import ipaddress
import os
import random
import re
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.images.safe_open import LARGEST_FILE
from sk_cnncodes.images.sources import reason_of

VARIABLE = "SK_CNNCODES_REMOTE"
# What "yes" allows: public hosts by HTTPS, and object stores with the user's own keys.
_USUAL = ("https://", "s3://", "gs://", "gcs://", "az://", "abfs://", "abfss://")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# Schemes of fsspec that read this machine, or other addresses inside of the URI.
_LOCAL = ("file", "local", "github", "git", "jupyter", "reference", "zip", "tar")
_MOST_REDIRECTS = 5
_PART = 2**16


def is_uri(text: Any) -> bool:
    """Whether an element is an address."""
    return isinstance(text, str) and _URI.match(text) is not None


def allowed_prefixes(remote: bool | Sequence[str] | None) -> tuple[str, ...]:
    """The beginnings of the addresses that may be read.

    Raises
    ------
    ValueError
        If one is no address, or one of this machine's files.
    """
    if remote is None:
        remote = os.environ.get(VARIABLE, "") == "1"
    if isinstance(remote, bool):
        return _USUAL if remote else ()
    if isinstance(remote, str):
        raise ValueError(f"remote={remote!r}: expected a list of beginnings of URIs.")
    for prefix in remote:
        scheme = _URI.match(prefix)
        if scheme is None or scheme[1].lower() in _LOCAL or "::" in prefix:
            raise ValueError(
                f"remote={list(remote)!r}: got {prefix!r}. Expected the beginnings of "
                "URIs, such as 'https://images.example.org/' or 's3://bucket/'."
            )
        if scheme.end() < len(prefix) and not prefix.endswith("/"):
            raise ValueError(f"remote={list(remote)!r}: {prefix!r}: expected a / last.")
    return tuple(remote)


class _Again(Exception):
    """A fault that may pass."""


class RemoteReader:
    """Reads the content of addresses, with limits, and again after passing faults.

    Parameters
    ----------
    prefixes : sequence of str
        The beginnings of the addresses that may be read, redirections included. An
        address inside of a network is read only if one of them names its host.
    tries : int
        How often an address is read.
    pause : float
        Seconds before the second try; they double.
    seconds : float
        Time limit of a try over HTTP.
    largest : int
        Bytes of a file.
    """

    def __init__(
        self,
        prefixes: Sequence[str],
        *,
        tries: int = 5,
        pause: float = 0.5,
        seconds: float = 60,
        largest: int = LARGEST_FILE,
    ) -> None:
        self.prefixes = tuple(prefixes)
        self._tries, self._pause = tries, pause
        self._seconds, self._largest = seconds, largest

    def read(self, uri: str) -> bytes:
        """Read the content of an address.

        Raises
        ------
        ImageError
            If it is not allowed, or cannot be read.
        """
        is_http = uri.lower().startswith(("http://", "https://"))
        fetch: Callable[[str], bytes] = self._by_http if is_http else self._by_fsspec
        for number in range(self._tries):
            if number:
                pause = self._pause * 2 ** (number - 1)
                time.sleep(pause * random.uniform(0.5, 1.5))
            try:
                return fetch(uri)
            except _Again as error:
                fault = error
        raise ImageError(
            f"cannot be read ({fault}, {self._tries} times)."
        ) from fault.__cause__

    def _check(self, uri: str) -> None:
        """Refuse an address that was not allowed."""
        parts = urlsplit(uri)
        plain = ".." not in uri.split("/") and "\\" not in uri and "::" not in uri
        if not plain or parts.username or not uri.startswith(self.prefixes):
            raise ImageError(
                f"the address {uri!r} is not among those that may be read. Expected "
                f"one that begins with {' or '.join(self.prefixes) or 'none'}; "
                "remote=[...] allows others."
            )

    def _check_host(self, uri: str) -> None:
        """Refuse hosts inside of a network that no prefix names."""
        if uri.startswith(tuple(p for p in self.prefixes if urlsplit(p).netloc)):
            return
        host = urlsplit(uri).hostname or ""
        try:
            found = socket.getaddrinfo(host, None)
        except OSError as error:
            raise _Again(f"no address of {host!r} found") from error
        for *_, address in found:
            if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
                raise ImageError(
                    f"the host of {uri!r} is inside of a network. Expected a public "
                    f"one; remote=['{urlsplit(uri).scheme}://{host}/'] allows it."
                )

    def _by_http(self, uri: str) -> bytes:
        import requests
        import urllib3

        end = time.monotonic() + self._seconds
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                self._check(uri)
                self._check_host(uri)
                with requests.get(
                    uri,
                    stream=True,
                    allow_redirects=False,
                    timeout=self._seconds,
                    headers={"Accept-Encoding": "identity"},
                ) as answer:
                    if answer.is_redirect:
                        uri = urljoin(uri, answer.headers["location"])
                        continue
                    if answer.status_code in (408, 425, 429) or (
                        answer.status_code >= 500
                    ):
                        raise _Again(f"HTTP status {answer.status_code}")
                    if answer.status_code != 200:
                        raise ImageError(
                            f"cannot be read (HTTP status {answer.status_code})."
                        )
                    return self._content(answer, end)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _Again(type(error).__name__) from error
        raise ImageError(f"redirected more than {_MOST_REDIRECTS} times.")

    def _content(self, answer: Any, end: float) -> bytes:
        """The body of an answer. Not decompressed: it could unpack to any size."""
        stated = answer.headers.get("content-length", "")
        parts, length = list[bytes](), 0
        # `read` waits until it has all that it was asked for, however slowly they come.
        read = getattr(answer.raw, "read1", answer.raw.read)
        while part := read(_PART, decode_content=False):
            parts.append(part)
            length += len(part)
            self._check_length(length)
            if time.monotonic() > end:
                raise _Again(f"longer than {self._seconds:g} seconds")
        if stated.isdecimal() and length < int(stated):
            raise _Again(f"{length} of {stated} bytes")
        return b"".join(parts)

    def _by_fsspec(self, uri: str) -> bytes:
        self._check(uri)
        try:
            import fsspec
        except ImportError as error:
            raise ImageError(
                "needs fsspec, which is not installed: pip install "
                "'sk-cnncodes[remote]', and the package of its scheme."
            ) from error
        try:
            system, path = fsspec.core.url_to_fs(uri)
            with system.open(path, "rb") as file:
                content: bytes = file.read(self._largest + 1)
        except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:
            raise ImageError(f"cannot be read ({reason_of(error)}).") from error
        except Exception as error:  # of the clients of object stores
            raise _Again(reason_of(error)) from error
        self._check_length(len(content))
        return content

    def _check_length(self, length: int) -> None:
        if length > self._largest:
            raise ImageError(f"file too large. Expected at most {self._largest} bytes.")
