"""Sources and targets in S3 and over HTTP: a server of moto, and one of our own."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes
from sk_cnncodes.images.remote import RemoteReader
from sk_cnncodes.scale import embed
from sk_cnncodes.scale.manifest import digest_of
from sk_cnncodes.scale.remote_paths import RemotePath
from sk_cnncodes.scale.sources.archives import read_tar, read_zip
from tests.cli.commands import invoke
from tests.forwards import counted_forwards
from tests.http_server import running
from tests.scale.conftest import png
from tests.scale.runs import FACTOR, check_killed, rows, shards, tar_of
from tests.scale.s3_server import BUCKET, Faults, put, put_images, server, system

pa = pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")
stores = pytest.importorskip("fsspec.implementations.memory")
asynchronous = pytest.importorskip("fsspec.asyn")


@pytest.fixture(scope="module")
def s3() -> Iterator[Faults]:
    with server() as started:
        yield started


def test_a_bucket_as_source_and_target(
    s3: Faults, transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    keys = put_images("a", 47)
    put("a/notes.txt", b"text")
    put("a/.hidden/1.png", png(1))
    put("a/@eaDir/1.png", png(1))
    put("ab/1.png", png(1))
    put("a/2/odd name #1?.png", png(5))
    keys = sorted([*keys, "2/odd name #1?.png"])
    local = tmp_path / "local"
    before = s3.lists
    report = embed_to(transformer, local, f"{BUCKET}a/", shard_rows=10)
    assert s3.lists - before == 3  # page by page
    assert (report.n_images, report.n_bad, report.n_shards) == (48, 0, 5)
    codes = open_codes(local)
    assert codes.keys.tolist() == keys
    images = [
        png(5) if "odd" in key else png(int(key.partition("/")[2][:5])) for key in keys
    ]
    np.testing.assert_allclose(codes[:], transformer.transform(images), rtol=1e-5)

    target = f"{BUCKET}codes/"
    report = embed_to(transformer, target, f"{BUCKET}a", shard_rows=10)
    assert (report.n_images, report.n_shards, report.complete) == (48, 5, True)
    stored = open_codes(target, verify=True)
    assert stored.keys.tolist() == keys
    np.testing.assert_allclose(stored[:], codes[:], rtol=1e-5)
    assert stored[7:33].shape == (26, 5) and stored[[40, 3]].shape == (2, 5)
    assert [len(batch) for batch in stored.iter_batches(8)] == [8, 2] * 4 + [8]
    assert stored.column("digest").tolist() == codes.column("digest").tolist()
    names = [path.rpartition("/")[2] for path in system().find("pictures/codes")]
    assert sorted(names) == ["_manifest.json", "_plan.json", *shards(local)]
    with counted_forwards() as count:
        report = embed_to(transformer, target, f"{BUCKET}a/", shard_rows=10)
    assert (count.images, report.n_images, report.complete) == (0, 0, True)
    system().rm_file(f"pictures/codes/{shards(local)[2]}")
    with pytest.raises(ValueError, match="s3://.*the shard is missing"):
        open_codes(target)
    report = embed_to(transformer, target, f"{BUCKET}a/", shard_rows=10)
    assert (report.n_images, report.n_shards, report.complete) == (10, 1, True)
    assert open_codes(target, verify=True).shape == (48, 5)
    with pytest.raises(ValueError, match="other keys than it had"):
        embed_to(transformer, target, f"{BUCKET}ab/", shard_rows=10)


def test_what_was_not_allowed_is_neither_read_nor_written(
    s3: Faults, transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    put("x/1.png", png(1))
    with pytest.raises(ValueError, match=r"not among.*SK_CNNCODES_REMOTE allows"):
        embed_to(transformer, tmp_path / "a", f"{BUCKET}x/", remote=False)
    with pytest.raises(ValueError, match="not among those that may be read"):
        embed_to(transformer, "s3://other/codes/", [png(1)])
    with pytest.raises(ValueError, match="not among those that may be read"):
        embed_to(transformer, (tmp_path / "codes").as_uri(), [png(1)])
    with pytest.raises(ValueError, match="not among those that may be read"):
        open_codes(f"{BUCKET}codes/", remote=False)
    with pytest.raises(ValueError, match="HTTP takes no files"):
        http = ["http://127.0.0.1:9/"]
        embed_to(transformer, f"{http[0]}codes/", [png(1)], remote=http)
    with pytest.raises(OSError, match=r"'s3://missing/x.tar': cannot be read"):
        source = "s3://missing/x.tar"
        embed_to(transformer, tmp_path / "b", source, remote=["s3://missing/"])
    assert not (tmp_path / "a").exists()


def archive_files() -> dict[str, bytes]:
    """An archive of each kind, by name; each has 4 images."""
    images = {f"{number}.png": png(number) for number in range(4)}
    zipped, table = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, content in images.items():
            archive.writestr(name, content)
    cells = [{"bytes": content, "path": name} for name, content in images.items()]
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"image": cells}), table)
    tars = {f"part-{number}.tar": tar_of(images) for number in range(3)}
    return {"x.zip": zipped.getvalue(), "y.parquet": table.getvalue(), **tars}


def test_archives(s3: Faults, transformer: CNNCodeTransformer, tmp_path: Path) -> None:
    expected = transformer.transform([png(number) for number in range(4)])
    files = archive_files()
    for name, content in files.items():
        put(f"sets/{name}", content)
    targets = (tmp_path / str(number) for number in itertools.count())
    with running() as server:
        server.files |= {f"sets/{name}": content for name, content in files.items()}
        for base in (f"{BUCKET}sets/", f"{server.address}sets/"):
            sources = {name: [name] for name in files}
            sources |= {"part-{0..2}.tar": [f"part-{n}.tar" for n in range(3)]}
            if base == f"{BUCKET}sets/":
                sources |= {"p*.tar": [f"part-{n}.tar" for n in range(3)]}
            for source, names in sources.items():
                target = next(targets)
                remote = [BUCKET, server.address]
                embed_to(transformer, target, f"{base}{source}", remote=remote)
                codes = open_codes(target)
                assert codes.keys[0].startswith(f"{names[0]}/")
                every = np.concatenate([expected] * len(names))
                np.testing.assert_allclose(codes[:], every, rtol=1e-5)
        several = [f"{BUCKET}sets/part-1.tar", f"{server.address}sets/x.zip?version=3"]
        target = next(targets)
        embed_to(transformer, target, several, remote=remote)
        assert len(open_codes(target)) == 8
        assert {*open_codes(target).keys[4:]} == {f"x.zip/{n}.png" for n in range(4)}
        target = next(targets)
        with pytest.raises(ValueError, match="HTTP has no lists of files"):
            embed_to(transformer, target, server.address, remote=remote)
        assert not target.exists()
    with pytest.raises(FileNotFoundError, match="no file is called like"):
        embed_to(transformer, tmp_path / "none", f"{BUCKET}sets/q*.tar")


def test_hostile_tables_and_archives(
    s3: Faults, transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    """Nothing is read that was not asked for, whatever the table or server says."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(9))
    put("private/1.png", png(9))
    put("public/1.png", png(1))
    with running() as server:
        names = ["1.png", f"{BUCKET}public/1.png", str(secret), f"file://{secret}"]
        names += ["../private/1.png", f"{BUCKET}private/1.png"]
        names += [f"{BUCKET}public/../private/1.png"]
        names += ["%2e%2e/private/1.png", f"simplecache::{BUCKET}private/1.png"]
        names += [f"zip://x.png::file://{secret}", f"local://{secret}"]
        names += [server.address + "secret.png", "http://169.254.169.254/x.png"]
        put("public/table.csv", "\n".join(["file", *names]).encode())
        allowed = [f"{BUCKET}public/"]
        embed_to(transformer, tmp_path / "a", f"{allowed[0]}table.csv", remote=allowed)
        assert not server.asked
    codes = open_codes(tmp_path / "a")
    assert codes.keys.tolist() == names
    expected = transformer.transform([png(1)] * 2)
    np.testing.assert_allclose(codes[:2], expected, rtol=1e-5)
    assert np.isnan(codes[2:]).all() and all(codes.errors[2:])

    # Archives whose server leads elsewhere, and members that lead outside.
    with running() as server:
        server.files["x.tar"] = tar_of(
            {"good.png": png(1), "../../secret.png": png(2), "/etc/x.png": png(3)}
        )
        embed_to(
            transformer,
            tmp_path / "b",
            f"{server.address}x.tar",
            remote=[server.address],
        )
        errors = open_codes(tmp_path / "b").errors
        assert errors[0] is None
        assert all("leaves the archive" in error for error in errors[1:])
        for kind in ("file", "metadata", "other"):
            source = f"{server.address}redirect-{kind}"
            with pytest.raises(OSError, match="is not among those that may be read"):
                RemotePath(source, RemoteReader([server.address])).stat()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(2**26))
    put("public/bomb.zip", (tmp_path / "bomb.zip").read_bytes())
    embed_to(transformer, tmp_path / "c", f"{BUCKET}public/bomb.zip")
    (error,) = open_codes(tmp_path / "c").errors
    assert "not an image file" in error

    # A folder of codes whose manifest names other files.
    embed_to(transformer, f"{BUCKET}hostile/", [png(1)])
    manifest = json.loads(system().cat_file("pictures/hostile/_manifest.json"))
    for name in ("../codes/codes-00000-000000.parquet", "/etc/passwd", "_plan.json"):
        manifest["shards"][0]["file"] = name
        manifest["sha256"] = digest_of(manifest)
        put("hostile/_manifest.json", json.dumps(manifest).encode())
        with pytest.raises(ValueError, match="the shard is missing"):
            open_codes(f"{BUCKET}hostile/")


def test_a_folder_that_is_not_there(
    s3: Faults, transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    fsspec.filesystem("memory").pipe_file("/there/1.png", png(1))
    remote = [BUCKET, "s3://no-bucket/", "memory://there/"]
    put("there/1.png", png(1))
    put("empty/notes.txt", b"text")
    for base in (BUCKET, "memory://there/", "s3://no-bucket/"):
        with pytest.raises(FileNotFoundError, match=f"'{base}ther/'"):
            embed_to(transformer, tmp_path / "new", f"{base}ther/", remote=remote)
    assert not (tmp_path / "new").exists()
    # A folder without images is one.
    with pytest.raises(ValueError, match=f"found no images in '{BUCKET}empty'"):
        embed_to(transformer, tmp_path / "empty", f"{BUCKET}empty", remote=remote)


def test_names_with_two_slashes(s3: Faults) -> None:
    put("slashes/2//twice.png", png(1))
    put("slashes//first.png", png(2))
    reader = RemoteReader([BUCKET])
    found = [path.uri for path in RemotePath(f"{BUCKET}slashes/", reader).walk()]
    assert found == [f"{BUCKET}slashes//first.png", f"{BUCKET}slashes/2//twice.png"]
    assert reader.read(found[0]) == png(2)


def test_names_in_a_table_over_http(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    """Signs that end the path of an address are those of a name."""
    names = {"a#1.png": "a%231.png", "b?2.png": "b%3F2.png", "10%25.png": "10%2525.png"}
    names |= {"ü &+=.png": "%C3%BC%20&+=.png"}
    with running() as server:
        server.files |= {f"d/{name}": png(9) for name in ("a", "b", "10%25.png")}
        for number, name in enumerate(names.values()):
            server.files[f"d/{name}"] = png(number)
        absolute = f"{server.address}d/b%3F2.png?version=1"
        outside = ["%2e%2e/d/a", "x\\..\\a"]
        lines = ["file", *names, absolute, *outside]
        server.files["d/table.csv"] = "\n".join(lines).encode()
        source, remote = f"{server.address}d/table.csv", [server.address]
        embed_to(transformer, tmp_path, source, remote=remote, image_column="file")
    codes = open_codes(tmp_path)
    assert codes.keys.tolist() == lines[1:]
    expected = transformer.transform([png(number) for number in (0, 1, 2, 3, 1)])
    np.testing.assert_allclose(codes[:5], expected, rtol=1e-5)
    assert all("is not read: it has a" in error for error in codes.errors[5:])


@pytest.mark.parametrize("name", ["br[1]", "what?", "{1..2}", "a*"])
def test_folders_that_are_called_like_patterns(
    s3: Faults, name: str, transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    tars = {"x.tar": tar_of({"1.png": png(1)}), "1.png": png(1), "br1/2.png": png(2)}
    for file, content in tars.items():
        memory.pipe_file(f"/like/{name}/{file}", content)
        put(f"like/{name}/{file}", content)
    memory.pipe_file(f"/like/{name}.tar", tars["x.tar"])
    put(f"like/{name}.tar", tars["x.tar"])
    for number, base in enumerate(("memory://like/", f"{BUCKET}like/")):
        for source, keys in (
            (f"{name}/", ["1.png", "br1/2.png"]),
            (f"{name}.tar", [f"{name}.tar/1.png"]),
        ):
            target = tmp_path / f"{number}-{len(keys)}"
            embed_to(transformer, target, f"{base}{source}", remote=[base])
            assert open_codes(target).keys.tolist() == keys


class Hosted(stores.MemoryFileSystem):
    """Paths without the host, as those of FTP, SFTP and WebHDFS."""

    protocol = "hosted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def __init__(self, host: str = "", **how: Any) -> None:
        super().__init__(**how)
        self.host = host

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = path.removeprefix("hosted://host.example:21").strip("/")
        return path and f"/{path}"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": path.partition("://")[2].partition("/")[0]}


def test_addresses_with_a_host(transformer: CNNCodeTransformer, tmp_path: Path) -> None:
    fsspec.register_implementation("hosted", Hosted, clobber=True)
    base = "hosted://host.example:21/"
    for number in range(3):
        Hosted("host.example:21").pipe_file(
            f"/pub/{number % 2}/{number}.png", png(number)
        )
    for source, keys in (
        ("pub/", ["0/0.png", "0/2.png", "1/1.png"]),
        ("", ["pub/0/0.png", "pub/0/2.png", "pub/1/1.png"]),
    ):
        target = tmp_path / f"of-{source.strip('/')}"
        report = embed_to(transformer, target, f"{base}{source}", remote=[base])
        assert (report.n_images, report.n_bad) == (3, 0)
        assert open_codes(target).keys.tolist() == keys
    Hosted("host.example:21").pipe_file("/sets/x-1.tar", tar_of({"1.png": png(1)}))
    embed_to(transformer, tmp_path / "tar", f"{base}sets/x-*.tar", remote=[base])
    assert open_codes(tmp_path / "tar").keys.tolist() == ["x-1.tar/1.png"]


def test_the_same_files_are_images_in_a_folder_and_in_a_store(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    names = ["a.png", "B.PNG", "raw.cr2", ".hidden.png", "Thumbs.db", "@eaDir/1.png"]
    names += ["c/._d.png", ".git/e.png", "f.png/g.txt", "h"]
    memory = fsspec.filesystem("memory")
    for name in names:
        memory.pipe_file(f"/both/{name}", png(1))
        (tmp_path / "both" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "both" / name).write_bytes(png(1))
    for number, source in enumerate((tmp_path / "both", "memory://both/")):
        target = tmp_path / str(number)
        embed_to(transformer, target, source, remote=["memory://both/"])
        assert open_codes(target).keys.tolist() == ["B.PNG", "a.png"]


def test_an_archive_that_is_gone_while_it_is_read() -> None:
    """No image is bad, nor is the archive: the store has the fault."""
    memory = fsspec.filesystem("memory")
    reader = RemoteReader(["memory://gone/"])
    zipped = archive_files()["x.zip"]
    uri = "memory://gone/x.zip"

    def remove(position: int) -> bool:
        memory.rm("/gone/x.zip")
        return True

    memory.pipe_file("/gone/x.zip", zipped)
    with pytest.raises(FileNotFoundError, match=f"'{uri}'"):
        [*read_zip(RemotePath(uri, reader), (), remove)]
    for read in (read_zip, read_tar):  # its size is known of a list
        with pytest.raises(FileNotFoundError, match=f"'{uri}'"):
            [*read(RemotePath(uri, reader, len(zipped)), (), lambda _: True)]


def test_errors_of_a_table_name_its_address(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    for name, content in {
        "twice.csv": "file,file\n1.png,2\n",
        "empty.csv": "file\n",
        "no-images.csv": "a,b\n1,2\n",
        "broken.jsonl": '{"file": "1.png"}\n{"file"',
        "columns.csv": "file,y\n1.png,2\n",
        "no.parquet": "no table",
    }.items():
        memory.pipe_file(f"/tables/{name}", content.encode())
        uri = f"memory://tables/{name}"
        how = {"remote": ["memory://tables/"]}
        columns = ["x"] if name == "columns.csv" else []
        with pytest.raises(ValueError, match=f"^'{uri}': "):
            embed_to(transformer, tmp_path / "new", uri, columns=columns, **how)
    assert not (tmp_path / "new").exists()


class Renaming(asynchronous.AsyncFileSystem):
    """Asynchronous, but for `mv`, as most such clients; files are in a dict."""

    protocol = "renaming"
    async_impl = True
    files: ClassVar[dict[str, bytes]] = {}

    async def _info(self, path: str, **how: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.files:
            return {"name": path, "size": len(self.files[path]), "type": "file"}
        if not any(name.startswith(f"{path}/") for name in self.files):
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}

    async def _ls(self, path: str, detail: bool = True, **how: Any) -> list[Any]:
        names = [name for name in self.files if name.rpartition("/")[0] == path]
        found = [await self._info(name) for name in names]
        return found if detail else names

    async def _cat_file(self, path: str, start: Any = None, end: Any = None) -> bytes:
        return self.files[path][start:end]

    async def _pipe_file(self, path: str, value: bytes, **how: Any) -> None:
        self.files[path] = value

    async def _put_file(self, lpath: str, rpath: str, **how: Any) -> None:
        self.files[rpath] = Path(lpath).read_bytes()

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def mv(self, path1: str, path2: str, **how: Any) -> None:
        self.files[path2] = self.files.pop(path1)


def test_a_store_that_is_asynchronous_but_for_some_calls(
    transformer: CNNCodeTransformer,
) -> None:
    fsspec.register_implementation("renaming", Renaming, clobber=True)
    target, remote = "renaming://codes/tiny/", ["renaming://codes/"]
    report = embed_to(transformer, target, [png(0), png(1)], remote=remote)
    assert (report.n_images, report.complete) == (2, True)
    codes = open_codes(target, remote=remote, verify=True)
    assert codes.keys.tolist() == ["0", "1"]
    names = sorted(name.rpartition("/")[2] for name in Renaming.files)
    assert names == ["_manifest.json", "_plan.json", "codes-00000-000000.parquet"]


def test_other_stores_write_and_move(
    transformer: CNNCodeTransformer, tmp_path: Path
) -> None:
    remote = ["memory://codes/", "memory://images/"]
    memory = fsspec.filesystem("memory")
    for number in range(9):
        memory.pipe_file(f"/images/{'ab'[number % 2]}/{number}.png", png(number))
    source, target = "memory://images/", "memory://codes/tiny/"
    report = embed_to(transformer, target, source, shard_rows=4, remote=remote)
    assert (report.n_images, report.n_bad, report.n_shards) == (9, 0, 3)
    codes = open_codes(target, remote=remote, verify=True)
    assert codes.keys.tolist() == [
        *(f"a/{number}.png" for number in range(0, 9, 2)),
        *(f"b/{number}.png" for number in range(1, 9, 2)),
    ]
    names = [path.rpartition("/")[2] for path in memory.find("/codes")]
    assert {name.partition("-")[0] for name in names} == {
        *("_manifest.json", "_plan.json", "codes")
    }


def test_the_command(s3: Faults, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SK_CNNCODES_REMOTE")
    keys = put_images("command", 5)
    source, target = f"{BUCKET}command/", f"{BUCKET}command-codes/"
    command = ["embed", source, "-o", target, "--shards", "--backbone", tiny]
    refused = invoke(*command)
    assert refused.exit_code != 0
    assert "is not among those that may be read" in refused.output
    result = invoke(*command, "--remote", BUCKET)
    assert result.exit_code == 0, result.output
    assert f"Wrote 5 codes in 1 shards to {target}, which is complete" in result.output
    codes = open_codes(target, remote=[BUCKET])
    assert codes.keys.tolist() == keys
    with pytest.raises(ValueError, match="not among those that may be read"):
        open_codes(target)


def test_faults_of_a_store(
    s3: Faults,
    transformer: CNNCodeTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """503 at every tenth request, one that stalls, 1% corrupt: nothing is lost."""
    count = 200 if FACTOR < 10 else 5000
    keys = put_images("faulty", count, corrupt=True)
    put("faulty/0/empty.png", b"")
    keys = sorted([*keys, "0/empty.png"])
    how = {"pause": 0.01, "seconds": 1}
    monkeypatch.setattr(
        embed, "RemoteReader", lambda prefixes: RemoteReader(prefixes, **how)
    )
    embed_to(transformer, tmp_path / "quiet", f"{BUCKET}faulty/", shard_rows=50)
    with s3.on():
        embed_to(transformer, tmp_path / "faults", f"{BUCKET}faulty/", shard_rows=50)
    assert s3.n_busy >= count // 10 and s3.n_stalled == 1
    quiet, faults = open_codes(tmp_path / "quiet"), open_codes(tmp_path / "faults")
    assert faults.keys.tolist() == keys
    np.testing.assert_allclose(faults[:], quiet[:], rtol=1e-5)
    assert faults.errors.tolist() == quiet.errors.tolist()
    bad = {key: error for key, error in zip(keys, faults.errors, strict=True) if error}
    assert len(bad) == count // 100 + 1
    assert all(f"'{BUCKET}faulty/{key}': " in error for key, error in bad.items())


def test_more_reads_at_once_than_threads_that_decode(tiny: str, tmp_path: Path) -> None:
    """A far store does not make the cores wait; the order stays."""
    now, most = 0, 0
    lock = threading.Lock()

    class Far(stores.MemoryFileSystem):
        protocol = "far"

        def cat_file(self, path: str, **how: Any) -> bytes:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            number = int(path.rpartition("/")[2].partition(".")[0])
            time.sleep(0.02 + 0.05 * (number % 7 == 0))
            with lock:
                now -= 1
            return png(number)

    fsspec.register_implementation("far", Far, clobber=True)
    transformer = CNNCodeTransformer(tiny, n_jobs=1, batch_size=4)
    pairs = [(number, f"far://x/{number}.png") for number in range(100)]
    embed_to(transformer, tmp_path, pairs, remote=["far://x/"])
    assert 16 <= most <= 32
    codes = open_codes(tmp_path)
    assert codes.keys.tolist() == [str(number) for number in range(100)]
    expected = transformer.transform([png(number) for number in range(100)])
    np.testing.assert_allclose(codes[:], expected, rtol=1e-5)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("to_store", [True, False])
def test_killed_at_random_points(
    s3: Faults, tiny: str, tmp_path: Path, to_store: bool
) -> None:
    """2 kills; 50 of 5,000 images in 50 shards by ``SK_CNNCODES_FUZZ=10``."""
    count, n_rows, times = (120, 15, 2) if FACTOR < 10 else (5000, 100, 50)
    name = f"killed-{to_store}"
    keys = put_images(name, count, corrupt=True)
    source = f"{BUCKET}{name}/"
    target = f"{BUCKET}{name}-codes/" if to_store else tmp_path / "codes"
    check_killed(tiny, source, target, tmp_path / "whole", keys, n_rows, times)
    assert open_codes(target).errors.astype(bool).sum() == sum(
        number % 100 == 50 for number in range(count)
    )


PART = """
import sys
from sk_cnncodes import CNNCodeTransformer, embed_to
net, target, source, *parts = sys.argv[1:]
for part in parts:
    transformer = CNNCodeTransformer(net, n_jobs=1)
    embed_to(transformer, target, source, shard_rows=2, part=(int(part), 16))
"""


def test_parts_in_processes(s3: Faults, tiny: str, tmp_path: Path) -> None:
    """16 parts in any order, some twice at once: the rows of one run."""
    keys = put_images("parts", 66)
    source = f"{BUCKET}parts/"
    order = [*range(16), 0, 15]
    random.Random(0).shuffle(order)
    target = f"{BUCKET}parts-codes/"
    command = [sys.executable, "-c", PART, tiny, target, source]
    parts = [order[0::2], order[1::2], [15]]
    processes = [subprocess.Popen([*command, *map(str, each)]) for each in parts]
    assert [process.wait() for process in processes] == [0, 0, 0]
    embed_to(CNNCodeTransformer(tiny), tmp_path, source, shard_rows=2)
    assert list(rows(target, verify=True)) == keys
    np.testing.assert_allclose(
        open_codes(target)[:], open_codes(tmp_path)[:], rtol=1e-5
    )
