"""Addresses (URIs) of files on other machines, and which of them may be read."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

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
# Schemes whose host may have a user before it, and a password; in abfs://x@y, x is a
# container.
_WITH_USERS = ("http", "https", "ftp", "sftp", "ssh", "smb")
_USER = re.compile(r"([^:/?#]+)://([^/?#]*)@")
# What fsspec would take apart as a chain: `zip::x`, `x::file://y`. The `::` of a name
# or of IPv6 is none.
_PROTOCOL = r"[A-Za-z][A-Za-z0-9+.-]*"
_CHAIN = re.compile(rf"{_PROTOCOL}::|.*::{_PROTOCOL}(::|://)", re.DOTALL)
# What needs no quotes in a path, beside letters and digits.
_PLAIN = "/!$&'()*+,;=:@"
# Addresses of IPv6 that stand for one of IPv4.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_uri(text: Any) -> bool:
    """Whether an element is an address."""
    return isinstance(text, str) and _URI.match(text) is not None


def is_http(uri: str) -> bool:
    """Whether an address is read by HTTP or HTTPS."""
    return uri.lower().startswith(("http://", "https://"))


def shown(uri: str) -> str:
    """An address for messages, without its password."""
    found = _USER.match(uri)
    if found is None or not (found[1].lower() in _WITH_USERS or ":" in found[2]):
        return uri
    return f"{found[1]}://***@{uri[found.end() :]}"


def shown_without_query(uri: str) -> str:
    """An address that a server named, for messages: signatures stand in its query."""
    return re.split(r"[?#]", shown(uri), maxsplit=1)[0]


def in_folder(folder: str, name: str) -> str:
    """The address of a file that a table in a folder names.

    In HTTP, signs such as ``#`` and ``?`` of a name would end the path. A name that
    leads out of the folder stays as it is, and is refused.

    Parameters
    ----------
    folder : str
        With a slash at its end.
    name : str
    """
    if is_http(folder) and not _leads_back(name) and "\\" not in name:
        name = quote(name, safe=_PLAIN, errors="surrogatepass")
    return folder + name


def _leads_back(text: str) -> bool:
    # Clients turn %2e into a dot, and leave out what `..` leads back from.
    return ".." in re.split(r"[/\\]", unquote(text))


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
    for prefix in remote:  # first: other messages repeat all of them
        if shown(prefix) != prefix:
            raise ValueError(
                f"{name.partition('=')[0]}: {shown(prefix)!r} has a user name or "
                "password. Expected the beginning of a URI without one."
            )
    for prefix in remote:
        scheme = _URI.match(prefix)
        if scheme is None or scheme[1].lower() in _LOCAL or _CHAIN.match(prefix):
            raise ValueError(
                f"{name}: got {prefix!r}. Expected the beginnings of URIs, such as "
                "'https://images.example.org/' or 's3://bucket/'."
            )
        if scheme.end() < len(prefix) and not prefix.endswith("/"):
            raise ValueError(f"{name}: {prefix!r}: expected a / last.")
    return tuple(remote)


def check_uri(uri: str, prefixes: Sequence[str], name: str | None = None) -> None:
    """Refuse an address that was not allowed.

    Parameters
    ----------
    uri : str
    prefixes : sequence of str
    name : str or None
        The address as messages show it; by default without its password.

    Raises
    ------
    ImageError
        If it begins with none of `prefixes`, or could mean another than it says.
    """
    name = shown(uri) if name is None else name
    reason = _reason_to_refuse(uri)
    if reason:
        raise ImageError(f"the address {name!r} is not read: {reason}.")
    if not uri.startswith(tuple(prefixes)):
        allowed = " or ".join(map(shown, prefixes)) or "none"
        raise ImageError(
            f"the address {name!r} is not among those that may be read. Expected one "
            f"that begins with {allowed}; remote=[...] or {VARIABLE} allows others."
        )


def _reason_to_refuse(uri: str) -> str:
    """Why an address is refused whatever is allowed, if it is."""
    try:
        parts = urlsplit(shown(uri))  # errors repeat what they are about
        user, host = parts.username, parts.hostname
    except ValueError as error:
        return f"it is not valid ({error})"
    if parts.scheme in _WITH_USERS and user is not None:
        return "it has a user name or password. Expected one without"
    if parts.scheme in _WITH_USERS and not host:
        return "it has no host. Expected one, as in https://images.example.org/1.png"
    if _leads_back(uri):
        return "it has a .. that leads to another folder. Expected one without"
    if "\\" in uri:
        return "it has a backslash, which clients read as a slash. Expected one without"
    if _CHAIN.match(uri):
        return "it has another address or protocol after ::. Expected a single one"
    return ""


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
