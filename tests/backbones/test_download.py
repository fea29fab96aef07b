"""Downloads: an incomplete or wrong file is never used."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sk_cnncodes import CNNCodeTransformer, download_backbone, load_backbone
from sk_cnncodes.backbones import catalogue, download
from sk_cnncodes.base.exceptions import BackboneError, DownloadError
from sk_cnncodes.cli import diagnosis as doctor
from tests import networks

ROW = """
["{name}"]
file = "{name}.onnx"
aliases = ["{name}-alias"]
addresses = {addresses}
sha256 = "{sha256}"
size = {size}
license = "MIT"
source = "tests"
architecture = "small"
code_length = {code_length}
["{name}".preprocessing]
crop_size = [{side}, {side}]
resize_size = 36
scale = 0.00784
mean = [1, 1, 1]
"""
# Run in a separate process: the same catalogue, and the download of one name.
PROGRAM = """
import sys, time
from pathlib import Path
from sk_cnncodes import load_backbone
from sk_cnncodes.backbones import catalogue
catalogue.MODELS = Path(sys.argv[1])
while not (catalogue.MODELS / "go").exists():
    time.sleep(0.01)
print(load_backbone("net").layer(-1).n_channels)
"""

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@dataclass
class Server:
    """A local server; `answers` maps paths to handlers."""

    address: str
    answers: dict[str, Answer] = field(default_factory=dict)
    gets: list[str] = field(default_factory=list)
    body: bytes = b""
    half_sent: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.gets.append(self.path)
            with contextlib.suppress(ConnectionError):
                state.answers.get(self.path, missing)(self, state.body)

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    state = Server(f"http://127.0.0.1:{httpd.server_port}")
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SK_CNNCODES_MIRROR", state.address)
    monkeypatch.setattr(download, "_TIMEOUT", 0.5)
    yield state
    state.resume.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def missing(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_error(404)


def _head(handler: BaseHTTPRequestHandler, length: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


def whole(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    _head(handler, len(body))
    handler.wfile.write(body)


def changed(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    whole(handler, body[:-1] + b"?")


def shorter(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    whole(handler, body[: len(body) // 2])


def truncated(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    _head(handler, len(body))
    handler.wfile.write(body[: len(body) // 2])


def stalled(server: Server) -> Answer:
    """Send half of the body, and the rest once the test continues."""

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        truncated(handler, body)
        handler.wfile.flush()
        server.half_sent.set()
        server.resume.wait(20)
        handler.wfile.write(body[len(body) // 2 :])

    return answer


class Catalogue:
    """A catalogue for the test in a folder, with a home folder in it."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.home = folder / "home"
        self.file = self.home / "net.onnx"
        self.sha256 = ""

    def add(
        self,
        model: onnx.ModelProto | bytes | None = None,
        *,
        name: str = "net",
        paths: tuple[str, ...] = ("/a/net.onnx",),
        answer: Answer | None = whole,
        code_length: int = 16,
        side: int = 32,
    ) -> bytes:
        """Add a row for a network, served at the first of its paths."""
        if model is None:
            model = networks.resnet()
            model.doc_string = " " * 2**20  # several chunks
        body = model if isinstance(model, bytes) else model.SerializeToString()
        self.sha256 = hashlib.sha256(body).hexdigest()
        self.server.body = body
        if answer is not None:
            self.server.answers[paths[0]] = answer
        row = ROW.format(
            name=name,
            addresses=json.dumps([f"https://models.invalid{path}" for path in paths]),
            sha256=self.sha256,
            size=len(body),
            code_length=code_length,
            side=side,
        )
        with open(self.folder / "catalogue.toml", "a") as file:
            file.write(row)
        catalogue.read_catalogue.cache_clear()
        return body

    def home_files(self) -> list[str]:
        """Files in the home folder, except locks."""
        names = [p.name for p in self.home.iterdir()] if self.home.exists() else []
        return sorted(name for name in names if not name.endswith(".lock"))


@pytest.fixture
def known(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Catalogue]:
    created = Catalogue(tmp_path, server)
    monkeypatch.setattr(catalogue, "MODELS", tmp_path)
    monkeypatch.setenv("SK_CNNCODES_HOME", str(created.home))
    monkeypatch.delenv("SK_CNNCODES_OFFLINE", raising=False)
    yield created
    catalogue.read_catalogue.cache_clear()


# -- successful downloads ------------------------------------------------------


@pytest.mark.parametrize("name", ["net", "net-alias"])
def test_a_name_is_downloaded_once_and_then_works_offline(
    known: Catalogue,
    server: Server,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known.add()
    backbone = load_backbone(name)
    assert (backbone.name, backbone.path) == ("net", known.file)
    assert backbone.layer(-1).n_channels == 16
    assert known.home_files() == ["net.onnx", "net.onnx.json"]
    monkeypatch.setenv("SK_CNNCODES_OFFLINE", "1")
    assert load_backbone(name) == backbone
    assert server.gets == ["/a/net.onnx"]
    assert capsys.readouterr().err == ""  # a progress bar only on a terminal


def test_progress_is_shown_on_request(
    known: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    known.add()
    assert download_backbone("net", progress=True) == known.file
    assert "net: 100%" in capsys.readouterr().err


def test_the_mirror_replaces_scheme_and_host(
    known: Catalogue, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.add(paths=("/x/net.onnx",), answer=None)
    server.answers["/models/zoo/x/net.onnx"] = whole
    monkeypatch.setenv("SK_CNNCODES_MIRROR", f"{server.address}/models/zoo/")
    load_backbone("net")
    assert server.gets == ["/models/zoo/x/net.onnx"]


def test_a_mirror_that_is_not_an_address(
    known: Catalogue, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.add()
    monkeypatch.setenv("SK_CNNCODES_MIRROR", "mirror.example.org")
    with pytest.raises(DownloadError, match=r"SK_CNNCODES_MIRROR.*expected.*https://"):
        load_backbone("net")
    assert server.gets == []


# -- failed downloads ------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (changed, r"another file \(expected \d+ bytes, sha256 [0-9a-f]{64}; got \d+"),
        (truncated, r"interrupted after \d+ of \d+ bytes"),
        (shorter, r"ended after \d+ of \d+ bytes"),
        (missing, r"HTTP status 404"),
    ],
)
def test_a_bad_answer_leaves_nothing(
    known: Catalogue, server: Server, answer: Answer, fault: str
) -> None:
    known.add(answer=answer)
    with pytest.raises(DownloadError, match=fault) as caught:
        load_backbone("net")
    assert known.home_files() == []
    message = str(caught.value)
    for hint in (" 127.0.0.1:", "SK_CNNCODES_MIRROR", str(known.file)):
        assert hint in message
    (details,) = caught.value.__notes__
    for hint in (
        f"{server.address}/a/net.onnx: ",
        "the downloads were removed",
        known.sha256,
    ):
        assert hint in details

    server.answers["/a/net.onnx"] = whole
    assert load_backbone("net").layer(-1).n_channels == 16


def test_a_failed_download_is_told_in_a_few_words(
    known: Catalogue, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the rest, and so has the error after a process passed it on."""
    known.add(paths=tuple(f"/{n}/net.onnx" for n in range(9)), answer=None)
    with (
        caplog.at_level("INFO", "sk_cnncodes"),
        pytest.raises(DownloadError) as caught,
    ):
        load_backbone("net")
    host = server.address.removeprefix("http://")
    assert str(caught.value) == (
        f"backbone 'net': cannot be downloaded: status 404 from {host}. Check the "
        "connection and its proxy, or set SK_CNNCODES_MIRROR to a mirror. Put the file "
        f"(1 MB) at {str(known.file)!r} yourself; SK_CNNCODES_LOG=info tells from "
        "where."
    )
    (details,) = pickle.loads(pickle.dumps(caught.value)).__notes__
    assert f"{server.address}/8/net.onnx: HTTP status 404" in details
    assert details in caplog.text


def test_a_server_that_stalls(known: Catalogue, server: Server) -> None:
    known.add(answer=stalled(server))
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"interrupted after \d+ of .*timed out"):
        load_backbone("net")
    assert time.monotonic() - started < 5
    assert known.home_files() == []


def test_no_server(known: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    known.add()
    monkeypatch.setenv("SK_CNNCODES_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="interrupted after 0 of .*connection"):
        load_backbone("net")


@pytest.mark.parametrize("first", [missing, changed, truncated])
def test_the_next_address_is_tried(
    known: Catalogue, server: Server, first: Answer
) -> None:
    known.add(paths=("/a/net.onnx", "/b/net.onnx", "/c/net.onnx"), answer=first)
    server.answers["/b/net.onnx"] = whole
    assert load_backbone("net").layer(-1).n_channels == 16
    assert server.gets == ["/a/net.onnx", "/b/net.onnx"]


def test_all_addresses_are_named_when_none_works(known: Catalogue) -> None:
    known.add(paths=("/a/net.onnx", "/b/net.onnx"), answer=None)
    with pytest.raises(DownloadError, match=r"/a/net.onnx: HTTP.*; .*/b/net.onnx: H"):
        load_backbone("net")


def test_a_home_folder_that_cannot_be_written(
    known: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.add()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SK_CNNCODES_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(
        DownloadError, match=r"cannot write.*SK_CNNCODES_HOME to another"
    ):
        load_backbone("net")


@pytest.mark.parametrize(
    ("fault", "expected", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left"),
            DownloadError,
            r"No space.*bytes free",
        ),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_an_interrupted_download_leaves_nothing(
    known: Catalogue,
    fault: BaseException,
    expected: type[BaseException],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pooch

    def cut_short(self: object, url: str, file: str, pooch: None) -> None:
        Path(file).write_bytes(b"half")
        raise fault

    known.add()
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", cut_short)
    with pytest.raises(expected, match=message):
        load_backbone("net")
    assert known.home_files() == []


@pytest.fixture
def start(known: Catalogue) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start processes that load "net" as soon as the file "go" exists."""
    processes: list[subprocess.Popen[str]] = []

    def start_one() -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(known.folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()
        process.communicate(timeout=10)


def test_eight_processes_download_once(
    known: Catalogue, server: Server, start: Callable[[], subprocess.Popen[str]]
) -> None:
    def slow(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        time.sleep(1)  # the other processes ask meanwhile
        whole(handler, body)

    known.add(answer=slow)
    processes = [start() for _ in range(8)]
    (known.folder / "go").touch()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (out, err) == ("16\n", "")
    assert len(server.gets) == 1
    assert known.home_files() == ["net.onnx", "net.onnx.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_killed_during_the_download(
    known: Catalogue, server: Server, start: Callable[[], subprocess.Popen[str]]
) -> None:
    known.add(answer=stalled(server))
    (known.folder / "go").touch()
    process = start()
    assert server.half_sent.wait(30)
    deadline = time.monotonic() + 10
    while not [p for p in known.home.glob("*.part") if p.stat().st_size]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait(10)
    assert not known.file.exists()  # only the temporary file exists

    server.answers["/a/net.onnx"] = whole
    assert load_backbone("net").layer(-1).n_channels == 16
    assert known.home_files() == ["net.onnx", "net.onnx.json"]
    assert len(server.gets) == 2


# -- files in the home folder -----------------------------------------------------


def test_offline_error_names_the_file_and_its_path(
    known: Catalogue, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = known.add()
    monkeypatch.setenv("SK_CNNCODES_OFFLINE", "1")
    with pytest.raises(DownloadError, match="SK_CNNCODES_OFFLINE forbids") as caught:
        load_backbone("net")
    assert str(known.file) in str(caught.value)
    (details,) = caught.value.__notes__
    assert known.sha256 in details
    assert "https://models.invalid/a/net.onnx" in details

    known.home.mkdir()
    known.file.write_bytes(body)
    assert load_backbone("net").path == known.file
    record = json.loads((known.home / "net.onnx.json").read_text())
    assert record == {"name": "net", "sha256": known.sha256, "batch_size": None}
    assert server.gets == []


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_offline_can_be_disabled(
    known: Catalogue, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.add()
    monkeypatch.setenv("SK_CNNCODES_OFFLINE", value)
    assert load_backbone("net").path == known.file


def test_a_corrupted_file_is_never_used(
    known: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = known.add()
    known.home.mkdir()
    known.file.write_bytes(changed_bytes := body[:-1] + b"?")
    monkeypatch.setenv("SK_CNNCODES_OFFLINE", "1")
    with pytest.raises(DownloadError, match="is not the right one .*expected.*got"):
        load_backbone("net")
    assert known.file.read_bytes() == changed_bytes

    monkeypatch.delenv("SK_CNNCODES_OFFLINE")
    with pytest.warns(UserWarning, match="not the right one.*replaced by a download"):
        load_backbone("net")
    assert known.file.read_bytes() == body


def test_a_row_without_addresses(
    known: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = known.add(paths=(), answer=None)
    with pytest.raises(DownloadError, match="no public address.*Put the file"):
        load_backbone("net")
    known.home.mkdir()
    known.file.write_bytes(body)
    assert load_backbone("net").name == "net"


# -- the check on first use ---------------------------------------------------------


def dead() -> onnx.ModelProto:
    """A network with the same codes for all images."""
    model = networks.resnet()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(array * 0, tensor.name))
    return model


def infinite() -> onnx.ModelProto:
    model = networks.resnet()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 4:
            huge = np.full_like(array, 3e38)
            tensor.CopyFrom(numpy_helper.from_array(huge, tensor.name))
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (networks.resnet, {"code_length": 17}, "expected code length 17, got 16"),
        (networks.resnet, {"side": 40}, "a network for images of 40 x 40 pixels.*32"),
        (dead, {}, "expected different codes for two different images"),
        (infinite, {}, "expected finite codes"),
        (lambda: b"not a network" * 99, {}, "that runs, got .*not an ONNX file"),
    ],
)
def test_a_backbone_that_does_not_match_its_row_is_removed(
    known: Catalogue,
    server: Server,
    model: Callable[[], Any],
    options: dict[str, int],
    message: str,
) -> None:
    known.add(model(), **options)
    with pytest.raises(DownloadError, match=message) as caught:
        load_backbone("net")
    assert "'net': its file has the right sha256" in str(caught.value)
    assert known.home_files() == []


def test_a_file_installed_by_hand_is_checked(
    known: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = known.add(dead())
    known.home.mkdir()
    known.file.write_bytes(body)
    with pytest.raises(BackboneError, match="two different images"):
        load_backbone("net")
    assert known.home_files() == ["net.onnx"]


def test_a_fixed_batch_size_is_recorded(
    known: Catalogue,
) -> None:
    known.add(networks.vit(baked=True))
    load_backbone("net")
    record = json.loads((known.home / "net.onnx.json").read_text())
    assert record["batch_size"] == 1


def test_network_packages_are_imported_only_when_needed() -> None:
    program = (
        "import sys, sk_cnncodes; sk_cnncodes.load_backbone('cnncodes-mini')\n"
        "assert not {'pooch', 'requests', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_default_home_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    monkeypatch.delenv("SK_CNNCODES_HOME", raising=False)
    assert download.cache_dir() == Path(os.fspath(pooch.os_cache("sk_cnncodes")))


def test_only_downloads_need_a_home_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Containers may run as a user without a name or a home directory."""
    import pooch

    def no_home(_: str) -> str:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("SK_CNNCODES_HOME", raising=False)
    monkeypatch.setattr(pooch, "os_cache", no_home)
    image = np.zeros((1, 9, 9, 3), np.uint8)
    transformer = CNNCodeTransformer(cache=None).fit(image)
    assert np.isfinite(pickle.loads(pickle.dumps(transformer)).transform(image)).all()
    row = catalogue.find_row("resnet50")
    assert row is not None
    assert catalogue.local_file(row) is None
    assert any("SK_CNNCODES_HOME" in p for p in doctor.diagnose().problems)
    with pytest.raises(DownloadError, match=r"determine the home.*SK_CNNCODES_HOME"):
        load_backbone("resnet50")
    monkeypatch.setenv("SK_CNNCODES_HOME", "~nobody-of-this-name/x")
    with pytest.raises(DownloadError, match="SK_CNNCODES_HOME"):
        load_backbone("resnet50")
