"""Addresses (URIs) of files on other machines, and which of them may be read."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from sk_cnncodes.base.exceptions import ImageError

VARIABLE = "SK_CNNCODES_REMOTE"
# What "yes" allows: public hosts by HTTPS, and object stores with the user's own keys.
_USUAL = ("https://", "s3://", "gs://", "gcs://", "az://", "abfs://", "abfss://")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# Schemes of fsspec that read this machine, or other addresses inside of the URI.
_LOCAL = {
    *("file", "local", "data", "dir", "github", "git", "jupyter", "reference"),
    *("zip", "tar", "libarchive", "root", "dask", "generic", "asynclocal"),
    *("cached", "blockcache", "filecache", "simplecache"),
}
# Addresses of IPv6 that stand for one of IPv4.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_uri(text: Any) -> bool:
    """Whether an element is an address."""
    return isinstance(text, str) and _URI.match(text) is not None


def is_http(uri: str) -> bool:
    """Whether an address is read by HTTP or HTTPS."""
    return uri.lower().startswith(("http://", "https://"))


def allowed_prefixes(remote: bool | Sequence[str] | None) -> tuple[str, ...]:
    """The beginnings of the addresses that may be read.

    Parameters
    ----------
    remote : bool, sequence of str or None
        None asks the environment variable: ``1``, or beginnings separated by spaces.

    Raises
    ------
    ValueError
        If one is no address, or one of this machine's files.
    """
    if remote is None:
        return prefixes_of(os.environ.get(VARIABLE, ""))
    name = f"remote={remote!r}"
    if isinstance(remote, str):
        raise ValueError(f"{name}: expected a list of beginnings of URIs.")
    return _checked(remote, name)


def prefixes_of(variable: str) -> tuple[str, ...]:
    """The beginnings of addresses that a value of the environment variable allows.

    Raises
    ------
    ValueError
        As `allowed_prefixes`.
    """
    is_switch = variable in ("", "0", "1")
    remote = variable == "1" if is_switch else variable.split()
    return _checked(remote, f"{VARIABLE}={variable!r}")


def _checked(remote: bool | Sequence[str], name: str) -> tuple[str, ...]:
    if isinstance(remote, bool):
        return _USUAL if remote else ()
    for prefix in remote:
        scheme = _URI.match(prefix)
        if scheme is None or scheme[1].lower() in _LOCAL or "::" in prefix:
            raise ValueError(
                f"{name}: got {prefix!r}. Expected the beginnings of URIs, such as "
                "'https://images.example.org/' or 's3://bucket/'."
            )
        if scheme.end() < len(prefix) and not prefix.endswith("/"):
            raise ValueError(f"{name}: {prefix!r}: expected a / last.")
    return tuple(remote)


def check_uri(uri: str, prefixes: Sequence[str]) -> None:
    """Refuse an address that was not allowed.

    Raises
    ------
    ImageError
        If it begins with none of `prefixes`, or could mean another than it says.
    """
    try:
        user = urlsplit(uri).username
    except ValueError as error:
        raise ImageError(f"{uri!r} is not a valid address ({error}).") from error
    # Clients turn %2e into a dot, and leave out what `..` leads back from.
    plain = "\\" not in uri and "::" not in uri
    plain = plain and ".." not in re.split(r"[/\\]", unquote(uri))
    if not plain or user or not uri.startswith(tuple(prefixes)):
        raise ImageError(
            f"the address {uri!r} is not among those that may be read. Expected one "
            f"that begins with {' or '.join(prefixes) or 'none'}; remote=[...] or "
            f"{VARIABLE} allows others."
        )


def named_hosts(prefixes: Sequence[str]) -> set[tuple[str, int]]:
    """Hosts and ports that beginnings of addresses name: those may be inside."""
    ports = {"http": 80, "https": 443}
    split = [urlsplit(prefix) for prefix in prefixes]
    return {
        (each.hostname, each.port or ports[each.scheme])
        for each in split
        if each.hostname and each.scheme in ports
    }


def is_public(address: str) -> bool:
    """Whether an address of IP is outside of all private networks."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            found = inner
    return found.is_global and not found.is_multicast


def public_addresses(host: str) -> bool:
    """Whether all addresses of a host are outside of private networks.

    Raises
    ------
    OSError
        If it has none.
    """
    found = socket.getaddrinfo(host, None)
    return all(is_public(str(address[0])) for *_, address in found)
