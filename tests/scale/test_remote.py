"""Addresses: read only where allowed, within limits, and again after faults."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, ImageError, embed_to, open_codes
from sk_cnncodes.scale import embed
from sk_cnncodes.scale.remote import RemoteReader, allowed_prefixes
from tests.scale.conftest import png

pytest.importorskip("pyarrow")


class Server(ThreadingHTTPServer):
    """Serves images, with faults; `asked` counts the paths that were asked for."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = Counter[str]()
        self.address = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked[name] += 1
        kind, _, number = name.partition("-")
        first = self.server.asked[name] == 1
        if kind == "redirect":
            target = {
                "file": "file:///etc/passwd",
                "other": f"http://localhost:{self.server.server_port}/secret",
                "metadata": "http://169.254.169.254/latest",
                "loop": "/redirect-loop",
                "good": "/image-3",
            }[number]
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
        elif kind == "gone" or (kind == "busy" and first):
            self.send_error(404 if kind == "gone" else 503)
        else:
            content = png(int(number)) if number.isdecimal() else b"secret"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if kind == "stall" and first:
                time.sleep(0.6)
            for byte in content if kind == "drip" and first else b"":
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            cut = kind == "cut" and first
            self.wfile.write(content[: len(content) // 2] if cut else content)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def reader(server: Server, **how: float) -> RemoteReader:
    return RemoteReader([server.address], pause=0.01, seconds=0.4, **how)


@pytest.mark.parametrize("kind", ["image", "busy", "cut", "stall", "drip", "redirect"])
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
        ("a/../../secret", "is not among"),
    ],
)
def test_what_is_refused(server: Server, name: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        reader(server).read(server.address + name)
    assert server.asked["secret"] == 0
    assert sum(server.asked.values()) <= 6


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


def test_a_table_of_addresses(
    tiny: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SK_CNNCODES_REMOTE", raising=False)
    uris = [server.address + f"busy-{number}" for number in range(6)]
    uris += ["file:///etc/passwd", server.address + "gone-1", "s3://other/x.png"]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["file,y", *(f"{uri},1" for uri in uris)]))
    transformer = CNNCodeTransformer(tiny)
    how = {"image_column": "file"}
    embed_to(transformer, tmp_path / "off", table, **how)
    assert not server.asked
    assert all(open_codes(tmp_path / "off").errors)

    monkeypatch.setattr(
        embed, "RemoteReader", lambda prefixes: RemoteReader(prefixes, pause=0.01)
    )
    report = embed_to(
        transformer, tmp_path / "on", table, remote=[server.address], **how
    )
    assert report.n_bad == 3
    codes = open_codes(tmp_path / "on")
    assert codes.keys.tolist() == uris
    expected = transformer.transform([png(number) for number in range(6)])
    np.testing.assert_allclose(codes[:6], expected, rtol=1e-5)
    assert ["is not among" in (error or "") for error in codes.errors[6:]] == [1, 0, 1]
    assert codes.errors[7] == "cannot be read (HTTP status 404)."


def test_other_schemes_by_fsspec(tiny: str, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://bucket/1.png", "wb") as file:
        file.write(png(1))
    uris = [f"memory://{name}.png" for name in ("bucket/1", "bucket/2", "other/1")]
    remote = ["memory://bucket/"]
    pairs = [(uri, uri) for uri in uris]
    transformer = CNNCodeTransformer(tiny)
    assert embed_to(transformer, tmp_path, pairs, remote=remote).n_bad == 2
    codes = open_codes(tmp_path)
    np.testing.assert_allclose(codes[:1], transformer.transform([png(1)]), rtol=1e-5)
    assert "is not among" in codes.errors[2]
