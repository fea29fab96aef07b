"""Images at addresses in tables and iterables; sources and targets elsewhere."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes
from sk_cnncodes.images.remote import RemoteReader
from sk_cnncodes.scale import embed
from tests.http_server import Server, running
from tests.scale.conftest import png

pytest.importorskip("pyarrow")


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as made:
        yield made


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


def test_a_lack_of_memory_or_threads_makes_no_image_bad(
    tiny: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    lacks = [MemoryError(), OSError(errno.EMFILE, "Too many open files")]

    class Lacking(MemoryFileSystem):
        protocol = "lacking"

        def cat_file(self, path: str, **how: object) -> bytes:
            if path.endswith("/3.png") and lacks:
                raise lacks.pop()
            return png(3)

    fsspec.register_implementation("lacking", Lacking, clobber=True)
    transformer = CNNCodeTransformer(tiny)
    remote = ["lacking://b/", server.address]
    pairs = [(number, f"lacking://b/{number}.png") for number in range(5)]
    # When its turn comes, it is read again; what is then lacking ends the run.
    with pytest.raises(MemoryError):
        embed_to(transformer, tmp_path / "codes", pairs, remote=remote)
    report = embed_to(transformer, tmp_path / "codes", pairs, remote=remote)
    assert (report.n_images, report.n_bad) == (5, 0)

    start, refusals = threading.Thread.start, ["can't start new thread"]

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name == "sk_cnncodes-remote" and refusals:
            raise RuntimeError(refusals.pop())
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    pairs = [(number, f"{server.address}image-{number}") for number in range(5)]
    report = embed_to(transformer, tmp_path / "others", pairs, remote=remote)
    assert (report.n_images, report.n_bad, refusals) == (5, 0, [])
