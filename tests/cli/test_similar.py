"""The command that finds the images most similar to others."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics.pairwise import pairwise_distances
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from sk_cnncodes import CNNCodeTransformer, embed_to, load_backbone, to_onnx
from tests.cli.commands import invoke
from tests.forwards import counted_forwards


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_images(photos: Path, metric: str) -> None:
    query = str(photos / "flower" / "0001.jpg")
    paths = sorted(map(str, photos.glob("*/*.jpg")))
    options = ("-k", "6", "--metric", metric, "--layer", "-2", "--csv")
    result = invoke("similar", "cnncodes-mini", query, "--among", photos, *options)
    assert result.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert {row["query"] for row in rows} == {query}
    assert query in [row["path"] for row in rows[:3]]  # its copies are equally near
    codes = CNNCodeTransformer(layer=-2).transform(paths)
    row = pairwise_distances(codes[[paths.index(query)]], codes, metric=metric)[0]
    found = [float(row["distance"]) for row in rows]
    np.testing.assert_allclose(found, np.sort(row)[:6], atol=1e-4)
    of_paths = [row[paths.index(r["path"])] for r in rows]
    np.testing.assert_allclose(of_paths, found, atol=1e-4)


def test_table_and_json_of_several_queries(photos: Path) -> None:
    queries = [photos / "flower" / "0001.jpg", photos / "china" / "0002.jpg"]
    arguments = ("similar", "cnncodes-mini", *queries, "--among", photos, "-k", "4")
    head, *lines = invoke(*arguments).stdout.splitlines()
    assert head.split() == ["query", "rank", "path", "distance"]
    rows = [json.loads(x) for x in invoke(*arguments, "--json").stdout.splitlines()]
    assert len(lines) == len(rows) == 8
    for line, row in zip(lines, rows, strict=True):
        distance = f"{row['distance']:.4f}"
        assert line.split() == [row["query"], str(row["rank"]), row["path"], distance]
    near = [Path(row["path"]).parent.name for row in rows if row["rank"] <= 3]
    assert near == ["flower"] * 3 + ["china"] * 3


def test_table_of_one_query_does_not_repeat_it(photos: Path) -> None:
    query = photos / "flower" / "0001.jpg"
    result = invoke("similar", "cnncodes-mini", query, "--among", photos, "-k", "1")
    assert result.stdout.splitlines()[0].split() == ["rank", "path", "distance"]


def test_model_gives_backbone_and_layer(photos: Path, tmp_path: Path) -> None:
    codes = CNNCodeTransformer(layer=-3, norm="l2")
    model = make_pipeline(codes).fit([photos / "china" / "0000.jpg"])
    joblib.dump(model, tmp_path / "model.joblib")
    rest = (photos / "china" / "0000.jpg", "--among", photos, "--metric", "euclidean")
    cache = ("--cache", tmp_path / "codes.sqlite3", "--csv")
    by_model = invoke("similar", tmp_path / "model.joblib", *rest, *cache)
    rows = list(csv.DictReader(io.StringIO(by_model.stdout)))
    found = codes.transform([row["path"] for row in rows])
    far = np.linalg.norm(found - codes.transform([rest[0]]), axis=1)
    np.testing.assert_allclose([float(r["distance"]) for r in rows], far, atol=1e-4)
    with counted_forwards() as count:
        again = invoke("similar", tmp_path / "model.joblib", *rest, *cache)
    assert (again.stdout, count.images) == (by_model.stdout, 0)


def test_fewer_images_than_asked_for(photos: Path) -> None:
    image = photos / "china" / "0000.jpg"
    among = ("--among", image, "--among", photos / "china" / "0001.jpg")
    result = invoke("similar", "cnncodes-mini", image, *among, "--json")
    assert len(result.stdout.splitlines()) == 2


def test_bad_images_are_skipped(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    query = photos / "china" / "0000.jpg"
    result = invoke("similar", "cnncodes-mini", query, "--among", tmp_path, "--json")
    assert result.exit_code == 3
    (row,) = map(json.loads, result.stdout.splitlines())
    assert row["path"] == str(tmp_path / "red.png")
    assert f"{tmp_path / 'bad.jpg'}: not an image file" in result.stderr


def test_a_bad_query_does_not_stop_the_others(photos: Path) -> None:
    query = photos / "china" / "0000.jpg"
    arguments = ("gone.jpg", query, "--among", photos, "-k", "1", "--json")
    result = invoke("similar", "cnncodes-mini", *arguments)
    assert result.exit_code == 3
    (row,) = map(json.loads, result.stdout.splitlines())
    assert row["query"] == row["path"] == str(query)
    assert "gone.jpg: no such file" in result.stderr


@pytest.mark.parametrize(
    ("model", "query", "among", "message"),
    [
        ("cnncodes-mini", "missing.jpg", "{photos}", "QUERY: none of the images can"),
        ("cnncodes-mini", "{photo}", "missing.jpg", "none of the images can be read"),
        ("cnncodes-min", "{photo}", "{photos}", "backbone 'cnncodes-min'"),
        ("missing.joblib", "{photo}", "{photos}", "model 'missing.joblib': no such"),
        ("list.joblib", "{photo}", "{photos}", "contains 0 CNNCodeTransformers"),
    ],
)
def test_errors(
    model: str,
    query: str,
    among: str,
    message: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    joblib.dump([1], "list.joblib")
    names = {"photos": photos, "photo": photos / "china" / "0000.jpg"}
    arguments = (model, query.format(**names), "--among", among.format(**names))
    result = invoke("similar", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr


def test_exported_classifier_is_not_a_backbone(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx")
    images = sorted(photos.glob("*/*.jpg"))
    labels = [image.parent.name for image in images]
    codes = CNNCodeTransformer(norm="l2")
    model = make_pipeline(codes, LinearSVC()).fit(images, labels)
    to_onnx(model, tmp_path / "model.onnx")
    result = invoke("similar", tmp_path / "model.onnx", images[0], "--among", photos)
    assert result.exit_code == 1
    assert "is an exported classifier" in result.stderr


def test_layer_of_a_model_cannot_be_chosen(photos: Path) -> None:
    arguments = ("model.joblib", "a.jpg", "--among", photos, "--layer", "-1")
    result = invoke("similar", *arguments)
    assert result.exit_code == 2
    assert "has its own layer" in result.stderr


def test_among_codes_of_shards(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    query = photos / "flower" / "0001.jpg"
    invoke("embed", photos, "-o", f"{tmp_path / 'codes'}", "--shards")
    among = ("--among", tmp_path / "codes", "-k", "3", "--json")
    result = invoke("similar", "cnncodes-mini", query, *among)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    direct = invoke("similar", "cnncodes-mini", query, "--among", photos, *among[2:])
    same = [json.loads(line) for line in direct.stdout.splitlines()]
    assert [row["distance"] for row in rows] == [row["distance"] for row in same]
    assert len(rows) == 3
    assert all(row["path"].startswith("flower/") for row in rows)
    other = invoke("similar", "cnncodes-mini", query, *among, "--layer", "-2")
    assert other.exit_code == 1
    assert "code" in other.stderr


def test_a_saved_index(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    query, index = photos / "flower" / "0001.jpg", tmp_path / "codes.index"
    invoke("embed", photos, "-o", f"{tmp_path / 'codes'}", "--shards")
    first = ("similar", "cnncodes-mini", query, "--csv", "--among", tmp_path / "codes")
    written = invoke(*first, "--save-index", index)
    assert written.exit_code == 0, written.stderr
    again = ("similar", "cnncodes-mini", query, "--csv", "--among", index)
    assert invoke(*again).stdout == written.stdout
    # Before any query is read.
    unread = ("similar", "cnncodes-mini", tmp_path / "no.jpg", *again[3:])
    result = invoke(*unread, "--metric", "euclidean")
    assert result.exit_code == 2
    assert "Expected --metric cosine" in " ".join(result.stderr.split())
    other = invoke(*again, "--layer", "-2")
    assert other.exit_code == 1
    assert "code" in other.stderr
    result = invoke(*first[:-1], photos, "--save-index", tmp_path / "none.index")
    assert result.exit_code == 2
    assert not (tmp_path / "none.index").exists()


def test_an_index_that_would_replace_an_input(photos: Path, tmp_path: Path) -> None:
    """Refused before any image is read, for a backbone by path, name and model."""
    pytest.importorskip("pyarrow")
    query, codes = tmp_path / "query.jpg", tmp_path / "codes"
    backbone, cache = tmp_path / "net.onnx", tmp_path / "codes.sqlite3"
    shutil.copy(photos / "flower" / "0001.jpg", query)
    shutil.copy(load_backbone("cnncodes-mini").path, backbone)
    cache.touch()
    model = CNNCodeTransformer(backbone).fit([query])
    joblib.dump(model, tmp_path / "model.joblib")
    embed_to(model, codes, [query])
    (tmp_path / "link").symlink_to(codes)
    (shard,) = codes.glob("*.parquet")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    own = tmp_path / "model.joblib"
    inputs = [(backbone, query), (backbone, backbone), (backbone, cache)]
    inputs += [(own, own), (own, backbone)]
    inside = [shard, codes / "new.index", tmp_path / "link" / shard.name]
    for used, index in [*inputs, *((backbone, each) for each in inside)]:
        options = ("--among", codes, "--cache", cache, "--save-index", index)
        with counted_forwards() as count:
            result = invoke("similar", used, query, *options)
        assert (result.exit_code, count.images) == (1, 0)
        what = "is inside of --among" if index in inside else "is one of the inputs"
        assert f"output '{index}': it {what}" in result.stderr
    after = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert after == before


def test_among_codes_that_are_not_complete(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    codes = tmp_path / "codes"
    invoke("embed", photos, "-o", codes, "--shards", "--part", "0/2")
    image = photos / "china" / "0000.jpg"
    for _ in range(2):
        result = invoke("similar", "cnncodes-mini", image, "--among", codes)
        assert result.exit_code == 1
        message = " ".join(result.stderr.split())
        assert "not all codes are written. Run embed --shards again as" in message
        assert "partial" not in message
        # Now a shard that the manifest does not list.
        invoke("embed", photos, "-o", codes, "--shards")
        shutil.copy(*(codes / f"codes-00000-00000{n}.parquet" for n in (0, 9)))
