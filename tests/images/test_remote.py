"""Addresses: read only where allowed, within limits, and again after faults."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import clone

from sk_cnncodes import CNNCodeTransformer, CodeCache, ImageError, ImageNotFoundError
from sk_cnncodes.base import remote_calls
from sk_cnncodes.images.addresses import allowed_prefixes, check_uri, is_public
from sk_cnncodes.images.remote import RemoteReader
from tests.forwards import counted_forwards
from tests.http_server import Server, running
from tests.scale.conftest import png, save_tiny


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as made:
        yield made


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("net") / "net.onnx")


def reader(server: Server, **how: float) -> RemoteReader:
    return RemoteReader([server.address], pause=0.01, seconds=0.4, **how)


@pytest.mark.parametrize(
    "kind", ["image", "busy", "cut", "stall", "drip", "late", "redirect"]
)
def test_faults_that_pass(server: Server, kind: str) -> None:
    name = "redirect-good" if kind == "redirect" else f"{kind}-3"
    assert reader(server).read(server.address + name) == png(3)
    assert server.asked[name] == (1 if kind in ("image", "redirect") else 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone-1", "HTTP status 404"),
        ("redirect-file", "'file:///etc/passwd' is not among those that may be read"),
        ("redirect-other", "localhost:.*is not among"),
        ("redirect-metadata", "169.254.169.254.*is not among"),
        ("redirect-loop", "redirected more than 5 times"),
        ("redirect-broken", "cannot be read"),
        ("a/../../secret", r"is not read: it has a \.\. that leads to another"),
        ("a/%2e%2E/secret", r"is not read: it has a \.\. that leads to another"),
        ("a\\secret", "is not read: it has a backslash"),
    ],
)
def test_what_is_refused(server: Server, name: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        reader(server).read(server.address + name)
    assert server.asked["secret"] == 0
    assert sum(server.asked.values()) <= 6


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("abfss://container@account.dfs.core.windows.net/photos/1.jpg", None),
        ("https://[2001:db8::1]/x.jpg", None),
        ("https://[2001:db8::cafe]:8080/x.jpg", None),
        ("s3://bucket/a/x::y.png", None),
        ("s3://bucket/x::file:///etc/passwd", "after ::"),
        ("s3://bucket/x::zip::y", "after ::"),
        ("s3://bucket/\nx::zip://y", "after ::"),
        ("simplecache::s3://bucket/x", "after ::"),
        ("https://bob@host.example/1.png", "has a user name or password"),
        ("sftp://bob:s3cret@host.example/1.png", "has a user name or password"),
        ("https://bob:s3cret@[::1/1.png", "is not valid"),
        ("https://host\u2100.example/1.png", "is not valid"),
        ("https:///1.png", "has no host"),
    ],
)
def test_each_refusal_says_its_rule(uri: str, reason: str | None) -> None:
    prefixes = allowed_prefixes(
        [
            "https://",
            "s3://",
            "sftp://",
            "abfss://container@account.dfs.core.windows.net/",
        ]
    )
    if reason is None:
        check_uri(uri, prefixes)
        return
    with pytest.raises(ImageError, match=f"is not read: it.* {reason}") as error:
        check_uri(uri, prefixes)
    assert "s3cret" not in str(error.value)


def test_a_host_of_ipv6() -> None:
    assert allowed_prefixes(["https://[2001:db8::1]/"]) == ("https://[2001:db8::1]/",)
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with running("::1") as made:
        uri = f"{made.address}image-3"
        assert RemoteReader([made.address]).read(uri) == png(3)
        with pytest.raises(ImageError, match="is inside of a network"):
            RemoteReader(["http://"]).read(uri)


def test_no_secrets_of_redirections_and_passwords(server: Server) -> None:
    """Messages have neither; they are kept beside the codes."""
    asking = RemoteReader([server.address, "http://localhost:"], pause=0.01)
    for kind in ("signed", "secret", "inside"):
        with pytest.raises(ImageError) as error:
            asking.read(f"{server.address}redirect-{kind}")
        assert not any(part in str(error.value) for part in ("bob", "s3cret", "sig"))
    with pytest.raises(ImageError, match="has a user name") as error:
        asking.read("http://bob:s3cret@localhost/?sig=1")
    assert "://***@localhost/?sig=1" in str(error.value)
    with pytest.raises(ValueError, match="remote: 'sftp://.*has a user name") as wrong:
        allowed_prefixes(["images", "sftp://bob:s3cret@host.example/"])
    assert "s3cret" not in str(wrong.value)


def test_an_address_without_a_host_is_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it was tried again"))
    with pytest.raises(ImageError, match="has no host"):
        RemoteReader(["http://"]).read("http:///1.png")


def test_a_redirection_to_a_store(server: Server) -> None:
    """Refused, also where addresses of that store may be read."""
    asking = RemoteReader([server.address, "s3://bucket/"])
    with pytest.raises(ImageError, match="redirected to 's3://bucket/secret.png'"):
        asking.read(f"{server.address}redirect-store")


def test_files_that_do_not_exist(server: Server) -> None:
    pytest.importorskip("fsspec")
    asking = RemoteReader([server.address, "memory://"])
    for uri in (f"{server.address}gone-1", "memory://no/file.png"):
        with pytest.raises(ImageNotFoundError, match="cannot be read"):
            asking.read(uri)


def test_inside_of_a_network(server: Server) -> None:
    for uri in (server.address, f"http://localhost:{server.server_port}/image-1"):
        with pytest.raises(ImageError, match="is inside of a network"):
            RemoteReader(["http://"]).read(uri)
    with pytest.raises(ImageError, match="is not among"):
        RemoteReader(["https://"]).read(server.address)
    assert not server.asked


def test_limits(server: Server) -> None:
    with pytest.raises(ImageError, match="file too large. Expected at most 20 bytes"):
        reader(server, largest=20).read(server.address + "image-1")
    with pytest.raises(ImageError, match="HTTP status 503, 1 times"):
        reader(server, tries=1).read(server.address + "busy-1")


def test_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SK_CNNCODES_REMOTE", raising=False)
    assert allowed_prefixes(None) == allowed_prefixes(False) == ()
    assert "https://" in allowed_prefixes(True)
    assert "http://" not in allowed_prefixes(True)
    monkeypatch.setenv("SK_CNNCODES_REMOTE", "1")
    assert allowed_prefixes(None) == allowed_prefixes(True)
    for wrong in ("file://", "images", "zip://x/", "simplecache::s3://", "s3://bucket"):
        with pytest.raises(ValueError, match="remote="):
            allowed_prefixes([wrong])
    with pytest.raises(ValueError, match="a list of beginnings"):
        allowed_prefixes("s3://")


def test_a_name_that_is_looked_up_differently_the_second_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile name server cannot lead a connection into the network."""
    answers = iter(["93.184.216.34", *["127.0.0.1"] * 9])
    real = socket.getaddrinfo

    def rebound(host: str, port: Any, *others: Any) -> Any:
        if host != "rebound.example":
            return real(host, port, *others)
        found = (next(answers), int(port or 0))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", found)]

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    uri = f"http://rebound.example:{server.server_port}/secret"
    with pytest.raises(ImageError, match="inside of a network"):
        RemoteReader(["http://"]).read(uri)
    assert not server.asked


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        *((inside, False) for inside in ("10.1.2.3", "127.0.0.1", "169.254.169.254")),
        *((inside, False) for inside in ("::1", "fe80::1%eth0", "fd00::1", "0.0.0.0")),
        *((inside, False) for inside in ("::ffff:10.0.0.1", "64:ff9b::a00:1")),
        *((inside, False) for inside in ("2002:a00:1::", "224.0.0.1", "100.64.0.1")),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_no_passwords_and_no_cookies_are_sent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    asking = reader(server)
    for number in range(3):
        assert asking.read(f"{server.address}image-{number}") == png(number)
    assert not any({"Authorization", "Cookie"} & {*each} for each in server.headers)


def test_parts_of_files(server: Server) -> None:
    server.files["x.tar"] = bytes(range(100))
    asking = reader(server)
    assert asking.read_part(server.address + "x.tar", 10, 20) == (
        bytes(range(10, 20)),
        100,
    )
    with pytest.raises(ImageError, match="does not send parts"):
        asking.read_part(server.address + "image-1", 0, 10)


def test_a_client_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is limited whatever the package of a scheme does; others are read."""
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    go_on = threading.Event()
    tried = []

    class Hanging(MemoryFileSystem):
        protocol = "hanging"

        def cat_file(self, path: str, **how: Any) -> bytes:
            tried.append(path)
            if path.endswith("1.png") and len(tried) == 1:
                go_on.wait(30)
            if path.endswith("2.png"):
                raise ConnectionError("reset by peer")
            return png(3)

    fsspec.register_implementation("hanging", Hanging, clobber=True)
    asking = RemoteReader(["hanging://"], pause=0.01, seconds=0.3)
    start = time.monotonic()
    assert asking.read("hanging://b/1.png") == png(3)
    assert 0.3 <= time.monotonic() - start < 10
    with pytest.raises(ImageError, match="reset by peer, 5 times"):
        asking.read("hanging://b/2.png")
    go_on.set()
    with pytest.raises(ImageError, match="at most 10 bytes"):
        asking.read("hanging://b/3.png", 10)


def test_a_client_that_hangs_while_it_connects() -> None:
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    go_on = threading.Event()
    made = []

    class Connecting(MemoryFileSystem):
        protocol = "connecting"

        def __init__(self, **how: Any) -> None:
            super().__init__(**how)
            made.append(threading.get_ident())
            if len(made) == 1:
                go_on.wait(30)

        def cat_file(self, path: str, **how: Any) -> bytes:
            return png(4)

    fsspec.register_implementation("connecting", Connecting, clobber=True)
    asking = RemoteReader(["connecting://"], pause=0.01, seconds=0.3)
    start = time.monotonic()
    # Once made, it is kept.
    assert [asking.read(f"connecting://b/{n}.png") for n in range(3)] == [png(4)] * 3
    assert time.monotonic() - start < 10
    assert len(made) == 2
    go_on.set()


def test_calls_that_end_while_others_are_given_up() -> None:
    class Ended(threading.Thread):
        def is_alive(self) -> bool:
            remote_calls._left.add(threading.Thread())  # another one, at this time
            return False

    before = {*remote_calls._left}
    remote_calls._left.add(Ended())
    try:
        assert remote_calls.within(10, lambda: 5) == 5
    finally:
        remote_calls._left.clear()
        remote_calls._left.update(before)


def test_uris_in_x(net: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment allows it; each is fetched once, in the order of X."""
    pandas = pytest.importorskip("pandas")
    monkeypatch.delenv("SK_CNNCODES_REMOTE", raising=False)
    uris = [f"{server.address}image-{number}" for number in (3, 1, 2)]
    expected = CNNCodeTransformer(net).transform([png(3), png(1), png(2)])
    for cache in (None, CodeCache()):
        transformer = CNNCodeTransformer(net, cache=cache, n_jobs=2)
        with pytest.raises(ImageError, match="not downloaded.*SK_CNNCODES_REMOTE=1"):
            transformer.transform(uris)
    assert not server.asked
    monkeypatch.setenv("SK_CNNCODES_REMOTE", "1")
    with pytest.raises(ImageError, match=r"image 0 \('http://127.*is not among"):
        CNNCodeTransformer(net).transform(uris)
    assert not server.asked

    monkeypatch.setenv("SK_CNNCODES_REMOTE", f"s3://bucket/ {server.address}")
    cells = [{"bytes": None, "path": uri} for uri in uris]
    frame = pandas.DataFrame({"image": uris})
    for X in (uris, np.array(uris), pandas.Series(uris), frame, cells):
        for cache in (None, CodeCache()):
            server.asked.clear()
            transformer = clone(CNNCodeTransformer(net, cache=cache, n_jobs=2))
            np.testing.assert_allclose(transformer.transform(X), expected, rtol=1e-5)
            assert [*server.asked.values()] == [1, 1, 1]
    # Found in the cache by what they contain, as files are.
    cache = CodeCache()
    CNNCodeTransformer(net, cache=cache).transform([png(3), png(1), png(2)])
    with counted_forwards(keep_sessions=True) as count:
        CNNCodeTransformer(net, cache=cache).transform(uris)
    assert count.images == 0

    bad = [uris[0], f"{server.address}gone-1", "file:///etc/passwd", uris[1]]
    with pytest.warns(UserWarning, match=r"gone-1'\): cannot be read \(HTTP status"):
        codes = CNNCodeTransformer(net, on_error="nan", n_jobs=2).transform(bad)
    np.testing.assert_allclose(codes[[0, 3]], expected[:2], rtol=1e-5)
    assert np.isnan(codes[1:3]).all()
    monkeypatch.setenv("SK_CNNCODES_REMOTE", "yes")
    with pytest.raises(ValueError, match="SK_CNNCODES_REMOTE='yes': got 'yes'"):
        CNNCodeTransformer(net).transform(uris)


def test_a_saved_model_brings_no_permission(
    net: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [f"{server.address}image-{number}" for number in (1, 2)]
    monkeypatch.setenv("SK_CNNCODES_REMOTE", server.address)
    transformer = CNNCodeTransformer(net).fit(uris)
    assert transformer.transform(uris).shape == (2, 5)
    joblib.dump(transformer, tmp_path / "model.joblib")
    monkeypatch.delenv("SK_CNNCODES_REMOTE")
    server.asked.clear()
    with pytest.raises(ImageError, match="not downloaded"):
        joblib.load(tmp_path / "model.joblib").transform(uris)
    assert not server.asked


def test_no_password_in_the_name_of_an_image() -> None:
    uri = "https://bob:s3cret@host.example/1.png"
    for image in (uri, {"bytes": None, "path": uri}):
        with pytest.raises(ImageError) as raised:
            CNNCodeTransformer().transform([image])
        assert "s3cret" not in str(raised.value)
        assert "'https://***@host.example/1.png'" in str(raised.value)
