"""Sources: the same codes from folders, tables, archives and data sets."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes, read_labels
from sk_cnncodes.scale.sources import archives
from sk_cnncodes.scale.sources.local import open_source
from tests.scale.conftest import COUNT, png
from tests.scale.runs import check, tar_of

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_tables(tiny: str, tmp_path: Path, expected: np.ndarray, form: str) -> None:
    (tmp_path / "images").mkdir()
    keys = [f"images/{number}.png" for number in range(COUNT)]
    for number, key in enumerate(keys):
        (tmp_path / key).write_bytes(png(number))
    rows = [{"file": key, "label": f"c{i % 2}"} for i, key in enumerate(keys)]
    path = tmp_path / f"table.{form}"
    if form == "csv":
        lines = ["file,label", *(f"{row['file']},{row['label']}" for row in rows)]
        path.write_text("\n".join(lines))
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    check(tiny, tmp_path / "codes", path, keys, expected, columns=["label"])
    labels = open_codes(tmp_path / "codes" / "whole").column("label")
    assert labels.tolist() == [row["label"] for row in rows]
    with pytest.raises(ValueError, match="column 'no': expected one of"):
        embed_to(CNNCodeTransformer(tiny), tmp_path / "x", path, columns=["no"])


def write_rows(path: Path, count: int) -> Path:
    """A table of any form, of images that do not exist."""
    rows = [{"file": f"images/{i:09}.png", "label": f"c{i % 7}"} for i in range(count)]
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=5000)
    elif path.suffix == ".csv":
        lines = ["file,label", *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_rows_of_a_table_are_not_held(tmp_path: Path, form: str) -> None:
    count = 30_000
    path = write_rows(tmp_path / f"table.{form}", count)
    tracemalloc.start()
    source = open_source(path, ["label"])
    keys = [sum(1 for _ in source.read(0, lambda _: True)) for _ in range(2)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert keys == [count, count]
    # The rows themselves would take 15 MB.
    assert peak < 5e6


@pytest.mark.parametrize(
    ("rows", "number"),
    [
        (['0.png,"a 6 inch ruler', "1.png,b", "2.png,c"], 2),
        (['0.png,"two\nlines"', '1.png,"a, 6 inch', "2.png,c"], 3),
        (["0.png,a", '1.png,"b'], 3),
        (['0.png,"a 6 inch', "1.png,b", '2.png,"c, d"', "3.png,d"], 2),
        (['0.png,"a 6 inch', "1.png,b", '2.png,of 7 inch"'], 2),
        (["0.png,a", '1.png,"' + "b" * 2**18], 3),
    ],
)
@pytest.mark.parametrize("end", ["", "\n"])
def test_quotes_that_are_not_closed(
    tiny: str, tmp_path: Path, rows: list[str], number: int, end: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["file,label", *rows]) + end)
    message = rf"table.csv.*row {number}: (a quote opens a cell|field larger)"
    with pytest.raises(ValueError, match=message):
        embed_to(CNNCodeTransformer(tiny), tmp_path / "codes", path)
    with pytest.raises(ValueError, match=message):
        read_labels(path)


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_cells_of_several_lines(tmp_path: Path, end: str) -> None:
    texts = ["two\nlines", "one, two,\n\n3.png\n", 'a 6" ruler\r\nand, 7.png, too', ""]
    texts += ["end of the text", "\n", 'a\n"quoted, 1.png", line\nb', '"']
    quoted = [text.replace('"', '""') for text in texts]
    rows = [f'{number}.png,"{text}"' for number, text in enumerate(quoted)]
    path = tmp_path / "table.csv"
    path.write_bytes(("\n".join(["file,label", *rows]) + end).encode())
    found = [
        item.columns["label"] for item in open_source(path, ["label"]).read(0, all_)
    ]
    assert found == [text.strip() for text in texts]
    path.write_text("0.png\nend of the text" + end)
    keys = [item.key for item in open_source(path, (), "column 1").read(0, all_)]
    assert keys == ["0.png", "end of the text"]


def all_(_: int) -> bool:
    return True


def test_a_list_of_paths(tiny: str, tmp_path: Path, expected: np.ndarray) -> None:
    keys = [f"{number}.png" for number in range(COUNT)]
    for number, key in enumerate(keys):
        (tmp_path / key).write_bytes(png(number))
    path = tmp_path / "list.txt"
    path.write_text("\n".join(keys))
    check(tiny, tmp_path / "codes", path, keys, expected)


def test_rows_with_too_many_cells_are_bad_images(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    path = tmp_path / "table.csv"
    path.write_text("file,label\n0.png,a\n0.png,a,b\n")
    embed_to(CNNCodeTransformer(tiny), tmp_path / "codes", path)
    codes = open_codes(tmp_path / "codes")
    assert codes.keys.tolist() == ["0.png", "0.png"]
    assert codes.errors.tolist() == [
        None,
        "row 3 of the table has more cells than its header.",
    ]


def test_a_column_that_only_later_rows_have(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    rows = [{"file": "0.png"}] * 1001 + [{"file": "0.png", "note": "last"}]
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    embed_to(CNNCodeTransformer(tiny), tmp_path / "codes", path, columns=["note"])
    notes = open_codes(tmp_path / "codes").column("note")
    assert notes.tolist() == [None] * 1001 + ["last"]
    with pytest.raises(ValueError, match="column 'no': expected one of"):
        embed_to(CNNCodeTransformer(tiny), tmp_path / "x", path, columns=["no"])


def test_a_table_that_is_cut_or_changes(tiny: str, tmp_path: Path) -> None:
    transformer = CNNCodeTransformer(tiny)
    path = write_rows(tmp_path / "table.jsonl", 30)
    embed_to(transformer, tmp_path / "codes", path, shard_rows=10)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match="table.jsonl.*what cannot be read"):
        embed_to(transformer, tmp_path / "codes", path, shard_rows=10)
    write_rows(path, 20)
    with pytest.raises(ValueError, match="has fewer images than it had"):
        embed_to(transformer, tmp_path / "codes", path, shard_rows=10)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.write_bytes(tar_of(members, mode))
    return path


def samples(first: int, last: int) -> dict[str, bytes]:
    found = {}
    for number in range(first, last):
        found[f"{number:04}.png"] = png(number)
        found[f"{number:04}.cls"] = f"{number % 3}\n".encode()
        found[f"{number:04}.json"] = json.dumps({"n": number}).encode()
    return found


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_shards(tiny: str, tmp_path: Path, expected: np.ndarray, mode: str) -> None:
    suffix = ".tar.gz" if mode == "w:gz" else ".tar"
    for piece in range(2):
        part = samples(6 * piece, 6 * piece + 6)
        write_tar(tmp_path / f"train-{piece:03}{suffix}", part, mode)
    keys = [f"train-{i // 6:03}{suffix}/{i:04}.png" for i in range(COUNT)]
    source = tmp_path / f"train-{{000..001}}{suffix}"
    check(tiny, tmp_path / "a", source, keys, expected, columns=["cls", "n"])
    codes = open_codes(tmp_path / "a" / "whole")
    assert codes.column("cls").tolist() == [str(i % 3) for i in range(COUNT)]
    assert codes.column("n").tolist() == [str(i) for i in range(COUNT)]
    paths = [tmp_path / f"train-{piece:03}{suffix}" for piece in range(2)]
    check(tiny, tmp_path / "b", paths, keys, expected)
    check(tiny, tmp_path / "c", str(tmp_path / f"*{suffix}"), keys, expected)
    write_tar(paths[0], samples(0, 3), mode)
    with pytest.raises(ValueError, match="shards were written with pieces="):
        embed_to(CNNCodeTransformer(tiny), tmp_path / "c" / "p", paths, shard_rows=5)


def test_zip(tiny: str, tmp_path: Path, expected: np.ndarray) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "none")
        for number in range(COUNT):
            archive.writestr(f"a/{number}.png", png(number))
    keys = [f"images.zip/a/{number}.png" for number in range(COUNT)]
    check(tiny, tmp_path / "codes", path, keys, expected)


def test_archives_leave_out_what_folders_do(tiny: str, tmp_path: Path) -> None:
    names = ["p/1.png", "2.png", "__MACOSX/p/._1.png", "p/.hidden/3.png", ".4.png"]
    names += ["p/@eaDir/1.png", "p/._1.png"]
    members = {name: png(number) for number, name in enumerate(names)}
    write_tar(tmp_path / "x.tar", {f"./{name}": m for name, m in members.items()})
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.extractall(tmp_path / "x")
    for suffix, start in (("", ""), (".zip", "x.zip/"), (".tar", "x.tar/./")):
        target = tmp_path / f"codes{suffix}"
        embed_to(CNNCodeTransformer(tiny), target, tmp_path / f"x{suffix}")
        assert {*open_codes(target).keys} == {f"{start}p/1.png", f"{start}2.png"}


@pytest.mark.parametrize("kind", ["fixed", "view"])
@pytest.mark.parametrize("named", [True, False])
def test_other_binary_columns_of_parquet(
    tiny: str, tmp_path: Path, expected: np.ndarray, kind: str, named: bool
) -> None:
    contents = [png(number).ljust(600, b"\0") for number in range(COUNT)]
    image = pyarrow.binary(600) if kind == "fixed" else pyarrow.binary_view()
    digest = [bytes([number]) * 64 for number in range(COUNT)]
    columns = {
        "digest": pyarrow.array(digest, pyarrow.binary(64)),
        "image": pyarrow.array(contents, image),
    }
    path = tmp_path / "images.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=5)
    keys = [f"images.parquet/{number}" for number in range(COUNT)]
    how = {"image_column": "image" if named else None}
    check(tiny, tmp_path / "codes", path, keys, expected, **how)


@pytest.mark.parametrize("form", ["csv", "parquet", "lance"])
def test_rows_without_a_path(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "0.png").write_bytes(png(0))
    names = ["0.png", "gone.png", "", None, "0.png"]
    path = Path("x") / f"t.{form}"
    monkeypatch.chdir(tmp_path)
    first = 1
    if form == "csv":
        first = 2  # the header is a row
        path.write_text("\n".join(["file,y", *(f"{name or ''},1" for name in names)]))
    else:
        table = pyarrow.table({"file": pyarrow.array(names).dictionary_encode()})
        if form == "parquet":
            parquet.write_table(table, path)
        else:
            pytest.importorskip("lance").write_dataset(table, path)
    bad = errors_of(tiny, tmp_path / "codes", path)
    keys = [f"row {first + 2}", f"row {first + 3}"]
    assert open_codes(tmp_path / "codes").keys.tolist() == [
        *("0.png", "gone.png", *keys, "0.png"),
    ]
    joined = str(tmp_path / "x" / "gone.png")
    assert bad == {
        "gone.png": f"no such file: {joined!r}. Expected the path of an image.",
        **{key: f"{key} of the table has no path in column 'file'." for key in keys},
    }


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_parquet(tiny: str, tmp_path: Path, expected: np.ndarray, kind: str) -> None:
    path = tmp_path / "images.parquet"
    contents = [png(number) for number in range(COUNT)]
    images: list[Any] = contents
    if kind == "struct":
        images = [{"bytes": content, "path": "/etc/passwd"} for content in contents]
    table = pyarrow.table({"image": images, "label": list(range(COUNT))})
    parquet.write_table(table, path, row_group_size=5)
    keys = [f"images.parquet/{number}" for number in range(COUNT)]
    check(tiny, tmp_path / "codes", path, keys, expected, columns=["label"])
    column = open_codes(tmp_path / "codes" / "whole").column("label")
    assert column.tolist() == [str(number) for number in range(COUNT)]


class Image:
    """Stands in for `datasets.Image`."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class Streaming:
    """Stands in for `datasets.IterableDataset`."""

    def __init__(self, rows: list[dict[str, Any]], decode: bool = True) -> None:
        self.rows, self.decode = rows, decode
        self.features = {"img": Image(), "label": object()}

    def cast_column(self, name: str, feature: Image) -> Any:
        assert name == "img"
        return type(self)(self.rows, feature.decode)

    def with_format(self, name: None) -> Any:
        return self

    def select_columns(self, names: list[str]) -> Any:
        rows = [{name: row[name] for name in names} for row in self.rows]
        return type(self)(rows, self.decode)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert not self.decode
        yield from self.rows


class MapStyle(Streaming):
    """Stands in for `datasets.Dataset`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        assert not self.decode
        return self.rows[position]


ROWS = [
    {"img": {"bytes": png(number), "path": None}, "label": number}
    for number in range(COUNT)
]


@pytest.mark.parametrize("kind", [Streaming, MapStyle])
def test_data_sets(tiny: str, tmp_path: Path, expected: np.ndarray, kind: Any) -> None:
    keys = [str(number) for number in range(COUNT)]
    check(tiny, tmp_path, kind(ROWS), keys, expected, columns=["label"])
    assert open_codes(tmp_path / "whole").column("label").tolist() == keys


@pytest.mark.parametrize("streaming", [True, False])
def test_data_sets_of_hugging_face(
    tiny: str, tmp_path: Path, expected: np.ndarray, streaming: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.Value("int64")}
    )
    made = datasets.Dataset.from_list(ROWS, features=features)
    made = made.to_iterable_dataset() if streaming else made
    keys = [str(number) for number in range(COUNT)]
    check(tiny, tmp_path, made, keys, expected, columns=["label"])


def hugging_face(count: int = COUNT) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.Value("int64")}
    )
    return datasets.Dataset.from_list(ROWS[:count], features=features)


@pytest.mark.parametrize("form", ["pandas", "arrow", "numpy"])
@pytest.mark.parametrize("streaming", [True, False])
def test_data_sets_with_a_format(
    tiny: str, tmp_path: Path, expected: np.ndarray, form: str, streaming: bool
) -> None:
    made = hugging_face()
    made = (made.to_iterable_dataset() if streaming else made).with_format(form)
    keys = [str(number) for number in range(COUNT)]
    check(tiny, tmp_path, made, keys, expected, columns=["label"])
    assert open_codes(tmp_path / "whole").column("label").tolist() == keys


@pytest.mark.parametrize("kind", ["cells", "pixels"])
@pytest.mark.parametrize("named", [True, False])
def test_streams_of_unknown_features(
    tiny: str, tmp_path: Path, expected: np.ndarray, kind: str, named: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    if kind == "cells":
        made = datasets.IterableDataset.from_generator(lambda: iter(ROWS))
    else:  # `map` forgets the features, and images are then decoded by datasets
        made = hugging_face().to_iterable_dataset().map(lambda row: row)
    assert made.features is None
    keys = [str(number) for number in range(COUNT)]
    how = {"columns": ["label"], "image_column": "img" if named else None}
    check(tiny, tmp_path, made, keys, expected, **how)
    with pytest.raises(ValueError, match="column 'no': expected one of .'img', 'lab"):
        embed_to(CNNCodeTransformer(tiny), tmp_path / "x", made, columns=["no"])


def test_a_data_set_in_another_order_is_refused(tiny: str, tmp_path: Path) -> None:
    made, transformer = hugging_face(), CNNCodeTransformer(tiny)
    made.save_to_disk(str(tmp_path / "saved"))
    saved = pytest.importorskip("datasets").load_from_disk(str(tmp_path / "saved"))
    for name, dataset in (("memory", made), ("saved", saved)):
        target = tmp_path / name
        embed_to(transformer, target, dataset, shard_rows=5)
        (target / "codes-00000-000001.parquet").unlink()
        for other in (dataset.shuffle(seed=1), dataset.select(range(6))):
            with pytest.raises(ValueError, match="written with pieces=.*data set"):
                embed_to(transformer, target, other, shard_rows=5)
        # Another process has the same.
        copied = pickle.loads(pickle.dumps(dataset))
        again = embed_to(transformer, target, copied, shard_rows=5)
        assert again.n_images == 5
    program = (
        "import sys, datasets; from sk_cnncodes.scale.sources.local import open_source;"
        "print(open_source(datasets.load_from_disk(sys.argv[1])).pieces[0])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "saved")]
    pieces = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert open_source(saved).pieces == [pieces.stdout.strip()]


def test_sources_name_the_column_of_images(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    (table := tmp_path / "t.csv").write_text("y,file\n1,0.png\n")
    images = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"a": [png(0)], "b": [png(1)]}), images)
    tar = write_tar(tmp_path / "t.tar", {"0.png": png(0)})
    for source, given, expected in (
        *((tmp_path, None, None), (tar, None, None), ([png(0)], None, None)),
        *((table, None, "file"), (table, "y", "y"), (images, "b", "b")),
        (MapStyle(ROWS), None, "img"),
    ):
        assert open_source(source, (), given).image_column == expected


# -- hostile and damaged -----------------------------------------------------


def errors_of(tiny: str, target: Path, source: Any, **how: Any) -> dict[str, str]:
    embed_to(CNNCodeTransformer(tiny), target, source, **how)
    codes = open_codes(target)
    bad = {k: e for k, e in zip(codes.keys, codes.errors, strict=True) if e}
    assert np.isnan(codes[:]).all(axis=1).sum() == len(bad)
    return bad


def test_members_of_tar_archives_that_leave_it(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {"../a.png": png(0), "/b.png": png(1), "c.png": png(2)})
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    bad = errors_of(tiny, tmp_path / "codes", path)
    assert list(bad) == ["x.tar/../a.png", "x.tar//b.png"]
    assert all(e.startswith("a name that leaves the archive") for e in bad.values())
    assert open_codes(tmp_path / "codes").shape == (3, 5)


def tar_with_sparse(path: Path, count: int, size: int) -> Path:
    """A tar archive whose members state a size, and store a block each (GNU)."""
    content = b""
    for number in range(count):
        info = tarfile.TarInfo(f"a.{number}.png")
        info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"%011o\0%011o\0" % (0, 512)  # the only part with bytes
        header[483:495] = b"%011o\0" % size
        content += with_checksum(header) + bytes(512)
    path.write_bytes(content + tar_of({"b.png": png(0)}))
    return path


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


def test_sparse_members_of_tar_archives_are_not_read(tiny: str, tmp_path: Path) -> None:
    path = tar_with_sparse(tmp_path / "x.tar", 3, 100 * 2**20)
    tracemalloc.start()
    bad = errors_of(tiny, tmp_path / "codes", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(bad) == [f"x.tar/a.{number}.png" for number in range(3)]
    assert all(error.startswith("a sparse file. Expected") for error in bad.values())
    assert peak < 50e6


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header of a tar archive that states any size (GNU's base 256)."""
    info = tarfile.TarInfo(name)
    info.type = kind
    found = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    sign = b"\xff" if size < 0 else b"\x80"
    found[124:136] = sign + size.to_bytes(11, "big", signed=True)
    return with_checksum(found)


def pax(size: int) -> bytes:
    """A member whose size is stated as text, by a header before its own."""
    text = f" size={size}\n".encode()
    record = b"%d%b" % (len(text) + 2, text)
    about = header("n", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")
    return about + header("x.png", 0)


@pytest.mark.parametrize(
    "member",
    [
        *(header("n.txt", -512), header("n.png", -512), header("n.png", -(2**40))),
        *(header("n.txt", 2**70), header("n.png", 2**62), header("n.png", 2**70)),
        *(header("n", -1, tarfile.XHDTYPE), header("n", 2**40, tarfile.XHDTYPE)),
        *(header("n", -1, tarfile.GNUTYPE_LONGNAME), header("n", 5, tarfile.XHDTYPE)),
        *(pax(-2048), pax(2**70), header("n", 0, tarfile.GNUTYPE_SPARSE)),
        header("n", 512, tarfile.XHDTYPE) + b"12 size=" * 64,
        (header("n", 512, tarfile.XHDTYPE) + bytes(512)) * 2000,
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_hostile_sizes_in_tar_archives(
    tmp_path: Path, member: bytes, first: bool
) -> None:
    one = b"" if first else tar_of({"a.png": png(0)}).rstrip(b"\0")
    path = tmp_path / "x.tar"
    path.write_bytes(one + bytes(-len(one) % 512) + member)
    with pytest.raises(
        ValueError, match="(?s)x.tar': the archive cannot be read .*whole"
    ):
        for count, _ in enumerate(archives.read_tar(path, [], lambda _: True)):
            assert count < 10


@pytest.mark.parametrize("columns", [[], ["cls"]])
def test_samples_of_many_images_are_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: list[str]
) -> None:
    size, count = 2**20, 40
    monkeypatch.setattr(archives, "_HELD", 3 * size)
    members = {"v1.cls": b"7"} | {f"v1.{i:04}.png": bytes(size) for i in range(count)}
    write_tar(path := tmp_path / "x.tar", members)
    tracemalloc.start()
    rows = archives.read_tar(path, columns, lambda _: True)
    found = [(name, values) for name, _, values in rows]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [
        (name, {"cls": "7"} if columns else {}) for name in list(members)[1:]
    ]
    assert peak < 12 * size


def test_zip_bombs(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST_FILE", 100_000)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(1_000_000))
        archive.writestr("liar.png", bytes(1_000_000))
        archive.writestr("good.png", png(0))
    content = path.read_bytes()
    # The sizes that it states, in the directory and before the member.
    where = content.rindex(b"liar.png") - 46
    assert content[where : where + 4] == b"PK\x01\x02"
    size = (1000).to_bytes(4, "little")
    path.write_bytes(content[: where + 24] + size + content[where + 28 :])
    bad = errors_of(tiny, tmp_path / "codes", path)
    assert list(bad) == ["x.zip/bomb.png", "x.zip/liar.png"]
    assert bad["x.zip/bomb.png"].startswith("file too large. Expected at most 100000")


def test_damaged_archives_are_named(tiny: str, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", samples(0, 8)).read_bytes()
    for name, length in (("cut", 4096), ("cut-2", 4096 + 100), ("cut-3", 512 + 20)):
        (tmp_path / f"{name}.tar").write_bytes(whole[:length])
    header = whole.index(b"0004.png")
    damaged = whole[:header] + bytes([255]) + whole[header + 1 :]
    (tmp_path / "damaged.tar").write_bytes(damaged)
    (tmp_path / "no.tar").write_bytes(b"no archive at all")
    for suffix in ("gz", "bz2", "xz"):
        content = bytearray(tar_of(samples(0, 8), f"w:{suffix}"))
        content[len(content) // 2 :: 7] = bytes(len(content[len(content) // 2 :: 7]))
        (tmp_path / f"bits.tar.{suffix}").write_bytes(content)
    (tmp_path / "no.zip").write_bytes(b"no archive at all")
    (tmp_path / "no.parquet").write_bytes(b"no archive at all")
    transformer = CNNCodeTransformer(tiny)
    names = ["cut.tar", "cut-2.tar", "cut-3.tar", "damaged.tar", "no.tar"]
    names += [f"bits.tar.{suffix}" for suffix in ("gz", "bz2", "xz")]
    for name in (*names, "no.zip", "no.parquet"):
        with pytest.raises(ValueError, match=f"{name}.*(cannot be read|a Parquet)"):
            embed_to(transformer, tmp_path / "codes" / name, tmp_path / name)
    assert list((tmp_path / "codes").glob("*/*.parquet")) == []


@pytest.mark.parametrize("method", ["DEFLATED", "BZIP2", "LZMA"])
def test_damaged_members_of_zip_archives(
    tiny: str, tmp_path: Path, method: str
) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", getattr(zipfile, f"ZIP_{method}")) as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", png(number))
        middle = archive.getinfo("1.png")
    content = bytearray(path.read_bytes())
    start = middle.header_offset + 30 + len("1.png")
    for place in range(start + 9, start + middle.compress_size):
        content[place] ^= 255
    path.write_bytes(content)
    bad = errors_of(tiny, tmp_path / "codes", path)
    assert list(bad) == ["x.zip/1.png"]
    assert bad["x.zip/1.png"].startswith("cannot be read (")


def test_names_and_versions_of_zip_archives(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"ü{number}.png", png(number))
    whole = path.read_bytes()
    content = bytearray(whole)
    content[content.index("ü1".encode())] = 0xFF  # before the member alone
    path.write_bytes(content)
    bad = errors_of(tiny, tmp_path / "codes", path)
    assert list(bad) == ["x.zip/ü1.png"]
    assert bad["x.zip/ü1.png"].startswith("cannot be read ('utf-8' codec")
    # In the directory: a version, and a name.
    for place, value in ((6, 99), (46, 0xFF)):
        content = bytearray(whole)
        content[content.index(b"PK\x01\x02") + place] = value
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x.zip': the archive cannot be read"):
            embed_to(CNNCodeTransformer(tiny), tmp_path / "other", path)


def test_addresses_are_not_fetched(tiny: str, tmp_path: Path) -> None:
    transformer = CNNCodeTransformer(tiny)
    for uri in ("s3://bucket/images", "https://127.0.0.1:1/x.tar", "file:///etc"):
        with pytest.raises(ValueError, match="is not among those that may be read"):
            embed_to(transformer, tmp_path / "new", uri)
    table = tmp_path / "table.csv"
    table.write_text("file,y\nfile:///etc/passwd.png,1\nhttp://127.0.0.1:1/a.png,2\n")
    bad = errors_of(tiny, tmp_path / "codes", table)
    assert len(bad) == 2


def test_lists_of_what_is_no_image(tiny: str, tmp_path: Path) -> None:
    transformer, target = CNNCodeTransformer(tiny), tmp_path / "codes"
    (image := tmp_path / "0.png").write_bytes(png(0))
    (table := tmp_path / "t.csv").write_text("image,y\n0.png,a\n")
    archive = write_tar(tmp_path / "t.tar", samples(0, 2))
    for number, source in (
        *((0, [table]), (0, [str(tmp_path)]), (1, [archive, tmp_path])),
        *((1, [image, archive]), (1, (archive, str(table)))),
    ):
        message = rf"element {number} of the list is .*Expected images alone.*tar.gz"
        with pytest.raises(ValueError, match=message):
            embed_to(transformer, target, source)
    bad = errors_of(
        tiny, target, [str(image), "gone.csv", "s3://bucket/x.csv", "x" * 999]
    )
    assert list(bad) == ["1", "2", "3"]


def test_columns_of_what_has_none(tiny: str, tmp_path: Path) -> None:
    transformer, target = CNNCodeTransformer(tiny), tmp_path / "codes"
    (folder := tmp_path / "x").mkdir()
    (folder / "0.png").write_bytes(png(0))
    tar = write_tar(tmp_path / "t.tar", samples(0, 12))
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.write(folder / "0.png", "0.png")
    for source in (folder, tar, tmp_path / "t.zip", [png(0)], iter([png(0)])):
        with pytest.raises(ValueError, match="image_column='no': .* has no columns"):
            embed_to(transformer, target, source, image_column="no")
    assert not target.exists()
    # Of an archive they are known at its end.
    how: dict[str, Any] = {"columns": ["cls", "clas"], "shard_rows": 5}
    with pytest.raises(ValueError, match="t.tar.*no image has a value of 'clas'"):
        embed_to(transformer, target, tar, **how)
    # Other archives can be without.
    other = write_tar(tmp_path / "u.tar", {"0.png": png(0)})
    embed_to(transformer, tmp_path / "two", [tar, other], columns=["cls"])
    labels = open_codes(tmp_path / "two").column("cls").tolist()
    assert labels == [*map(str, [0, 1, 2] * 4), None]


def test_what_is_no_source(tiny: str, tmp_path: Path) -> None:
    transformer = CNNCodeTransformer(tiny)
    (tmp_path / "x.exe").write_bytes(b"")
    for source, kind, message in (
        (tmp_path / "gone", FileNotFoundError, "no such file or folder"),
        (
            tmp_path / "x.exe",
            ValueError,
            "Expected a folder, a table",
        ),
        (str(tmp_path / "*.tar"), FileNotFoundError, "no file is called like"),
        (str(tmp_path / "{5..3}.tar"), ValueError, "from the lower number to the high"),
        (3, TypeError, "X: got int"),
    ):
        with pytest.raises(kind, match=message):
            embed_to(transformer, tmp_path / "new", source)
    assert not (tmp_path / "new").exists()
