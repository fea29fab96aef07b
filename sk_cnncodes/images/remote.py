"""RemoteReader: the content of files on other machines, within limits."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from sk_cnncodes.base.exceptions import (
    ImageError,
    ImageNotFoundError,
    is_scarcity,
    reason_of,
)
from sk_cnncodes.base.remote_calls import PassingFault, open_session, within
from sk_cnncodes.images.addresses import (
    VARIABLE,
    check_uri,
    is_http,
    is_public,
    named_hosts,
    prefixes_of,
    public_addresses,
    shown_without_query,
)
from sk_cnncodes.images.safe_open import LARGEST_FILE

_MOST_REDIRECTS = 5
_PART = 2**16
# Errors that an error was raised from, one from the other.
_MOST_CAUSES = 10

T = TypeVar("T")


class TooLarge(ImageError):
    """A file has more bytes than were asked for."""


class RemoteReader:
    """Reads the content of addresses, with limits, and again after passing faults.

    Parameters
    ----------
    prefixes : sequence of str
        The beginnings of the addresses that may be read, redirections included. A host
        inside of a network is read only if one of them names it.
    tries : int
        How often an address is read.
    pause : float
        Seconds before the second try; they double.
    seconds : float
        Time limit of a try.
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
        self.largest = largest
        self._tries, self._pause, self._seconds = tries, pause, seconds
        self._named = named_hosts(prefixes)
        # By process: connections must not be shared with a forked one.
        self._sessions: dict[int, Any] = {}
        # Clients of stores, by process and settings; and of those that threads cannot
        # share, by thread.
        self._systems: dict[tuple[Any, ...], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_sessions": {}, "_systems": {}}

    def read(self, uri: str, largest: int | None = None) -> bytes:
        """Read the content of an address, of at most `largest` bytes.

        Raises
        ------
        ImageError
            If it is not allowed, too large, or cannot be read.
        """
        most = self.largest if largest is None else largest
        if is_http(uri):
            content, _ = self._over_http(uri, None, most)
        else:
            content = self._over_fsspec(uri, 0, most + 1)
            _check_length(len(content), most)
        return content

    def read_part(self, uri: str, start: int, stop: int) -> tuple[bytes, int | None]:
        """Read some bytes of an address; with the size of all, if the answer says it.

        Raises
        ------
        ImageError
            If it is not allowed, or cannot be read in parts.
        """
        if is_http(uri):
            return self._over_http(uri, (start, stop), stop - start)
        return self._over_fsspec(uri, start, stop), None

    def _over_http(
        self, uri: str, bounds: tuple[int, int] | None, most: int
    ) -> tuple[bytes, int | None]:
        def read() -> tuple[bytes, int | None]:
            return within(self._seconds, lambda: self._by_http(uri, bounds, most))

        return self.again(read)

    def _over_fsspec(self, uri: str, start: int, stop: int) -> bytes:
        system, path = self.file_system(uri)

        def read() -> bytes:
            content: bytes = self.call(system, "cat_file", path, start=start, end=stop)
            return content

        return self.again(read)

    def check(self, uri: str) -> None:
        """Refuse an address that was not allowed.

        Raises
        ------
        ImageError
            If it was not.
        """
        check_uri(uri, self.prefixes)

    def again(self, function: Callable[[], T]) -> T:
        """Call a function until it succeeds, or a fault does not pass.

        Raises
        ------
        ImageError
            After the last try.
        """
        for number in range(self._tries):
            if number:
                pause = self._pause * 2 ** (number - 1)
                time.sleep(pause * random.uniform(0.5, 1.5))
            try:
                return function()
            except PassingFault as error:
                fault = error
        raise ImageError(
            f"cannot be read ({fault}, {self._tries} times)."
        ) from fault.__cause__

    # -- http ------------------------------------------------------------------

    def _by_http(
        self, uri: str, bounds: tuple[int, int] | None, most: int
    ) -> tuple[bytes, int | None]:
        """Read a file of at most `most` bytes, or its bytes between bounds."""
        import requests
        import urllib3

        # Not compressed: it could unpack to any size.
        headers = {"Accept-Encoding": "identity"}
        if bounds is not None:
            headers["Range"] = f"bytes={bounds[0]}-{bounds[1] - 1}"
        name = None
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                check_uri(uri, self.prefixes, name)
                if not is_http(uri):
                    raise ImageError(
                        f"redirected to {name!r}. Expected an address of HTTP there."
                    )
                self._check_host(uri, name or uri)
                with self._session().get(
                    uri,
                    stream=True,
                    allow_redirects=False,
                    timeout=self._seconds,
                    headers=headers,
                ) as answer:
                    if answer.is_redirect:
                        uri = _redirection(uri, answer.headers["location"])
                        name = shown_without_query(uri)
                        continue
                    _check_status(answer.status_code, bounds)
                    size = None
                    if bounds is not None:
                        size = _stated_size(answer, bounds[0])
                    return _content(answer, most), size
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            _raise_scarcity(error)
            raise PassingFault(type(error).__name__) from error
        except ImageError:
            raise
        except ValueError as error:  # of a port or a host's name
            raise ImageError(f"cannot be read ({reason_of(error)}).") from error
        raise ImageError(f"redirected more than {_MOST_REDIRECTS} times.")

    def _session(self) -> Any:
        session = self._sessions.get(os.getpid())
        if session is None:
            session = open_session(self._check_peer)
            self._sessions = {os.getpid(): session}
        return session

    def _check_host(self, uri: str, name: str) -> None:
        """Refuse hosts inside of a network that no prefix names."""
        parts = urlsplit(uri)
        host = parts.hostname or ""
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        if (host, port) in self._named:
            return
        try:
            public = public_addresses(host)
        except OSError as error:
            raise PassingFault(f"no address of {host!r} found") from error
        if not public:
            raise _inside(name, f"{parts.scheme}://{parts.netloc}/")

    def _check_peer(self, host: str, port: int, address: str) -> None:
        """Refuse a connection: the name may have been looked up differently."""
        if (host, port) not in self._named and not is_public(address):
            raise _inside(host, f"http://{host}:{port}/")

    # -- fsspec ----------------------------------------------------------------

    def file_system(self, uri: str) -> tuple[Any, str]:
        """The file system of fsspec for an address that may be read, and the path.

        Raises
        ------
        ImageError
            If the address is not allowed, fsspec or a package is missing, or there is
            no connection.
        """
        self.check(uri)
        try:
            import fsspec
        except ImportError as error:
            raise ImageError(
                "needs fsspec, which is not installed: pip install "
                "'sk-cnncodes[remote]', and the package of its scheme."
            ) from error
        scheme = uri.partition("://")[0]
        try:
            kind = fsspec.get_filesystem_class(scheme)
            options = dict(kind._get_kwargs_from_urls(uri))
            path: str = kind._strip_protocol(uri)
        except (ImportError, ValueError) as error:
            raise ImageError(f"cannot be read ({reason_of(error)}).") from error
        # Lists of millions of files would be kept.
        options |= {"use_listings_cache": False}
        thread = None if kind.async_impl else threading.get_ident()
        key = os.getpid(), thread, scheme, repr(sorted(options.items()))
        if key not in self._systems:
            # fsspec would give it to another thread too.
            options["skip_instance_cache"] = not kind.async_impl
            make = partial(fsspec.filesystem, scheme, **options)
            self._systems[key] = self.again(lambda: self._made(make))
        return self._systems[key], path

    def _made(self, make: Callable[[], Any]) -> Any:
        # Some connect when they are made.
        with _translated(self._seconds):
            return within(self._seconds, make)

    def call(
        self,
        system: Any,
        name: str,
        *arguments: Any,
        seconds: float | None = None,
        **options: Any,
    ) -> Any:
        """Call a method of a file system of fsspec, within the time limit.

        Raises
        ------
        ImageError
            If the fault will not pass.
        """
        from fsspec.asyn import AsyncFileSystem, sync

        limit = self._seconds if seconds is None else seconds
        with _translated(limit):
            # Some methods of asynchronous stores are not, such as `mv`.
            method = getattr(system, f"_{name}", None)
            if isinstance(system, AsyncFileSystem) and method is not None:
                return sync(system.loop, method, *arguments, timeout=limit, **options)
            plain = getattr(system, name)
            return within(limit, lambda: plain(*arguments, **options))


def environment_reader() -> RemoteReader:
    """The reader of what the environment variable allows.

    Raises
    ------
    ValueError
        If the variable has no addresses.
    """
    return _reader(os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=16)
def _reader(variable: str) -> RemoteReader:
    return RemoteReader(prefixes_of(variable))


# -- faults --------------------------------------------------------------------


@contextmanager
def _translated(limit: float) -> Iterator[None]:
    """Turn the errors of clients of stores into ours: which of them may pass."""
    try:
        yield
    except (PassingFault, ImageError, FileExistsError):
        raise
    except FileNotFoundError as error:
        reason = f"cannot be read ({reason_of(error)})."
        raise ImageNotFoundError(reason) from error
    except (PermissionError, ImportError, ValueError) as error:
        raise ImageError(f"cannot be read ({reason_of(error)}).") from error
    except Exception as error:
        _raise_scarcity(error)
        if getattr(error, "errno", None) == errno.EINVAL:  # such as empty files
            raise ImageError(f"cannot be read ({reason_of(error)}).") from error
        if type(error).__name__ == "FSTimeoutError":
            raise PassingFault(f"longer than {limit:g} seconds") from error
        if type(error).__name__ == "NoCredentialsError":  # of botocore
            raise ImageError(f"cannot be read ({reason_of(error)}).") from error
        raise PassingFault(reason_of(error)) from error


def _raise_scarcity(error: BaseException) -> None:
    """Raise what this process lacks, if that is the cause: no image is at fault."""
    cause: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if cause is None:
            return
        if is_scarcity(cause):
            raise cause
        cause = cause.__cause__ or cause.__context__


# -- http ----------------------------------------------------------------------


def _inside(name: str, prefix: str) -> ImageError:
    return ImageError(
        f"the host of {name!r} is inside of a network. Expected a public one; "
        f"remote=[{prefix!r}] allows it."
    )


def _redirection(uri: str, location: str) -> str:
    try:
        return urljoin(uri, location)
    except ValueError as error:  # whose text can have what is secret in the address
        raise ImageError(
            "cannot be read (redirected to an address that is not valid)."
        ) from error


def _check_status(status: int, bounds: tuple[int, int] | None) -> None:
    if status in (408, 425, 429) or status >= 500:
        raise PassingFault(f"HTTP status {status}")
    if bounds is not None and status == 200:
        raise ImageError("its server does not send parts of files (HTTP ranges).")
    if status == 404:
        raise ImageNotFoundError(f"cannot be read (HTTP status {status}).")
    if status != (200 if bounds is None else 206):
        raise ImageError(f"cannot be read (HTTP status {status}).")


def _stated_size(answer: Any, start: int) -> int:
    """The size of a file, as the answer to a request for a part says it."""
    stated = str(answer.headers.get("content-range", ""))
    unit, _, rest = stated.partition(" ")
    span, _, size = rest.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes" or first != str(start) or not _is_number(size):
        raise ImageError(f"got another part than asked for ({stated[:100]!r}).")
    return int(size)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _content(answer: Any, most: int) -> bytes:
    """The body of an answer."""
    stated = answer.headers.get("content-length", "")
    if _is_number(stated):
        _check_length(int(stated), most)
    parts, length = list[bytes](), 0
    # `read` waits until it has all that it was asked for, however slowly they come.
    read = getattr(answer.raw, "read1", answer.raw.read)
    while part := read(_PART, decode_content=False):
        parts.append(part)
        length += len(part)
        _check_length(length, most)
    if _is_number(stated) and length < int(stated):
        raise PassingFault(f"{length} of {stated} bytes")
    return b"".join(parts)


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise TooLarge(f"file too large. Expected at most {most} bytes.")
