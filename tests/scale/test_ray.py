"""Ray itself, a local cluster of two workers: the same codes, whatever dies."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import BatchEmbedder, CNNCodeTransformer, embed_to, open_codes
from sk_cnncodes.scale import ray as on_ray
from tests.cli.commands import invoke
from tests.scale.clusters import cluster, cluster_environment, same, workers_killed
from tests.scale.conftest import png, save_tiny
from tests.scale.runs import FACTOR

pytest.importorskip("pyarrow")
# Ray's own, in its modules.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}:ray")
    for kind in ("DeprecationWarning", "FutureWarning")
]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with cluster() as started:
        yield started


@pytest.fixture
def one_core(tiny: str) -> CNNCodeTransformer:
    return CNNCodeTransformer(tiny, n_jobs=1, batch_size=8)


def save_images(folder: Path, count: int, bad: int = 100) -> None:
    """Image files, of which each `bad`th is damaged."""
    for number in range(count):
        path = folder / f"{number // 100:03}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if number % bad == 7 else png(number))


# -- BatchEmbedder ---------------------------------------------------------------


def table_of(embedded: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = embedded.to_pydict()
    return found


@pytest.mark.parametrize("kind", ["dict", "pyarrow", "pandas"])
def test_a_batch(one_core: CNNCodeTransformer, tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "image.png").write_bytes(png(0))
    files = [png(0) + b"\0", png(1), b"no image", None, b""]
    batch: Any = {"number": np.arange(5), "file": np.array(files, object)}
    if kind == "pyarrow":
        batch = pyarrow.table({"number": range(5), "file": files})
    elif kind == "pandas":
        batch = pytest.importorskip("pandas").DataFrame(batch)
    table = BatchEmbedder(one_core, "file")(batch)
    assert table.column_names == ["number", "code", "error"]
    assert table.schema.field("code").type == pyarrow.list_(pyarrow.float32(), 5)
    found = table_of(table)
    assert found["number"] == [0, 1, 2, 3, 4]
    expected = one_core.transform(files[:2])
    np.testing.assert_allclose(found["code"][:2], expected, rtol=1e-5)
    assert np.isnan(np.array(found["code"][2:])).all()
    assert found["error"][:2] == [None, None]
    assert found["error"][2].startswith("not an image file.")
    assert found["error"][3].startswith("missing value.")
    assert found["error"][4].startswith("the file is empty.")


def test_paths_are_kept_and_arrays_are_not(
    one_core: CNNCodeTransformer, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(3))
    paths = [str(path), str(tmp_path / "none.png"), "https://example.org/x.jpg"]
    table = BatchEmbedder(one_core, "path")({"path": np.array(paths)})
    found = table_of(table)
    assert found["path"] == paths
    assert found["error"][0] is None
    assert "no such file" in found["error"][1]
    assert "URL, which is not downloaded" in found["error"][2]
    arrays = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
    boxes = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    table = BatchEmbedder(one_core, "image")({"image": arrays, "box": boxes})
    assert table.column_names == ["box", "code", "error"]
    assert table_of(table)["box"] == boxes.tolist()
    np.testing.assert_allclose(
        table_of(table)["code"], one_core.transform(arrays), rtol=1e-5
    )
    with pytest.raises(KeyError, match="image_column='x'.*'image', 'box'"):
        BatchEmbedder(one_core, "x")({"image": arrays, "box": boxes})
    for name in ("code", "error"):
        with pytest.raises(
            ValueError, match=f"got the columns .*'{name}'.*Expected ot"
        ):
            BatchEmbedder(one_core, "image")({"image": arrays, name: [1, 2]})
    assert BatchEmbedder(one_core, "code")({"code": arrays}).num_rows == 2
    empty = BatchEmbedder(one_core, "image")({"image": np.array([], object)})
    assert (empty.num_rows, empty.schema.field("code").type.list_size) == (0, 5)


def test_the_schema_does_not_depend_on_the_batch(one_core: CNNCodeTransformer) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    embed = BatchEmbedder(one_core, "x")
    cell = {"bytes": png(0), "path": "a.png"}
    images: list[Any] = [[png(0)], [cell], [cell, None], [None], []]
    images += [np.array([None]), np.zeros((2, 9, 9, 3), np.uint8)]
    texts: list[Any] = [["a.png"], [None, "a.png"], np.array(["a.png"])]
    texts += [pyarrow.array(each, pyarrow.string()) for each in ([None], [])]
    for batches, names in ((images, []), (texts, ["x"])):
        tables = [embed({"x": batch}) for batch in batches]
        assert len({str(table.schema) for table in tables}) == 1
        assert tables[0].column_names == [*names, "code", "error"]


def test_texts_that_are_no_unicode(one_core: CNNCodeTransformer) -> None:
    for kind in (list, np.array):
        batch = {"x": kind(["\ud83d.png"]), "note": kind(["cut \ud83d"])}
        found = table_of(BatchEmbedder(one_core, "x")(batch))
        assert (found["x"], found["note"]) == (["\\ud83d.png"], ["cut \\ud83d"])
        assert found["error"][0].startswith("not a valid path")


def test_the_given_transformer_does_not_change(one_core: CNNCodeTransformer) -> None:
    before = dict(vars(one_core))
    BatchEmbedder(one_core, "image")({"image": [png(0), b""]})
    assert vars(one_core) == before
    with pytest.raises(TypeError, match="transformer: got str"):
        BatchEmbedder("resnet50", "image")  # type: ignore[arg-type]


def test_map_batches(
    ray: Any, tiny: str, one_core: CNNCodeTransformer, tmp_path: Path
) -> None:
    files = [b"no image" if n == 7 else png(n) for n in range(40)]
    fitted = CNNCodeTransformer(shutil.copy(tiny, tmp_path / "net.onnx"))
    fitted.set_params(store_backbone=True).fit(files)
    fitted = pickle.loads(pickle.dumps(fitted))
    (tmp_path / "net.onnx").unlink()  # other machines do not have it
    rows = [{"number": n, "file": file} for n, file in enumerate(files)]
    codes = ray.data.from_items(rows, override_num_blocks=4).map_batches(
        BatchEmbedder,
        fn_constructor_args=[fitted, "file"],
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=6,
    )
    codes.write_parquet(str(tmp_path / "codes"))
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "codes").sort_by("number")
    assert str(table.schema.field("code").type).startswith("fixed_size_list<")
    found = table_of(table)
    assert found["number"] == [*range(40)]
    good = [n for n in range(40) if n != 7]
    expected = one_core.transform([files[n] for n in good])
    np.testing.assert_allclose(np.array(found["code"])[good], expected, rtol=1e-5)
    assert [n for n, error in enumerate(found["error"]) if error] == [7]
    pairs = list(enumerate(files))
    embed_to(fitted, tmp_path / "shards", pairs, engine="ray")
    np.testing.assert_array_equal(open_codes(tmp_path / "shards")[:], found["code"])


def test_an_actor_keeps_to_its_share(ray: Any, tiny: str) -> None:
    transformer = CNNCodeTransformer(tiny)

    class Shown(BatchEmbedder):
        def __call__(self, batch: Any) -> Any:
            own = self._transformer
            return {"n_jobs": [own.n_jobs], "device": [own.device]}

    def shown(**resources: Any) -> Any:
        (row,) = (
            ray.data.from_items([0])
            .map_batches(
                Shown,
                fn_constructor_args=[transformer, "item"],
                compute=ray.data.ActorPoolStrategy(size=1),
                **resources,
            )
            .take_all()
        )
        return row["n_jobs"], row["device"]

    assert shown(num_cpus=2) == (2, "cpu")
    # Outside of Ray's workers, nothing changes.
    own = Shown(transformer, "item")._transformer
    assert (own.n_jobs, own.device) == (-1, "auto")


@pytest.mark.parametrize(
    ("resources", "parameters", "expected"),
    [
        ({"CPU": 4.0}, {}, (4, "cpu")),
        ({"CPU": 2.0, "GPU": 0.25}, {}, (2, "cuda")),
        ({"GPU": 1.0}, {}, (1, "cuda")),
        ({"CPU": 8.0, "GPU": 1.0}, {"n_jobs": 3}, (3, "cuda")),
        ({"CPU": 1.0, "GPU": 1.0}, {"device": "tensorrt"}, (1, "tensorrt")),
        ({"CPU": 1.0, "GPU": 1.0}, {"device": "cpu"}, (1, "cpu")),
        ({"CPU": 1.0, "GPU": 1.0}, {"precision": "int8"}, (1, "cpu")),
        ({"CPU": 1.0, "GPU": 1.0}, {"engine": "openvino"}, (1, "cpu")),
        ({"CPU": 1.0, "GPU": 1.0}, {"precision": "float16"}, (1, "cuda")),
        ({}, {"n_jobs": None}, (None, "cpu")),
        (None, {}, (-1, "auto")),
    ],
)
def test_threads_and_device(
    resources: dict[str, float] | None, parameters: Any, expected: Any
) -> None:
    transformer = CNNCodeTransformer(**parameters)
    on_ray.keep_to_share(transformer, resources)
    assert (transformer.n_jobs, transformer.device) == expected


@pytest.mark.parametrize(
    ("parameters", "options", "cluster", "expected"),
    [
        ({}, None, {"CPU": 8.0}, (8, 1, None)),
        ({"n_jobs": 4}, None, {"CPU": 10.0}, (2, 4, None)),
        ({"n_jobs": 16}, None, {"CPU": 8.0}, (1, 16, None)),
        ({}, {"num_cpus": 2}, {"CPU": 8.0}, (4, 2, None)),
        ({}, {"num_workers": 3}, {"CPU": 8.0}, (3, 1, None)),
        ({}, None, {"CPU": 64.0, "GPU": 8.0}, (8, 8, 1)),
        ({}, {"num_gpus": 0.5}, {"CPU": 64.0, "GPU": 8.0}, (16, 4, 0.5)),
        ({"n_jobs": 2}, {"num_gpus": 0.25}, {"CPU": 8.0, "GPU": 4.0}, (4, 2, 0.25)),
        ({"device": "cpu"}, None, {"CPU": 64.0, "GPU": 8.0}, (64, 1, None)),
        ({"precision": "int8"}, None, {"CPU": 64.0, "GPU": 8.0}, (64, 1, None)),
        ({"device": "cuda"}, None, {"CPU": 8.0}, (1, 1, 1)),
        ({"device": ["cuda:0", "cuda:1"]}, None, {"CPU": 8.0, "GPU": 4.0}, (2, 4, 2)),
        ({}, {"num_cpus": 0}, {"CPU": 8.0}, (1, 0, None)),
    ],
)
def test_workers_of_a_cluster(
    parameters: Any, options: Any, cluster: dict[str, float], expected: Any
) -> None:
    transformer = CNNCodeTransformer(**parameters)
    workers, chosen = on_ray.share_out(transformer, options, cluster)
    assert (workers, chosen["num_cpus"], chosen.get("num_gpus")) == expected
    assert chosen["max_retries"] >= 3


# -- embed_to(engine="ray") --------------------------------------------------------


def test_the_same_shards_as_without_ray(
    ray: Any,
    one_core: CNNCodeTransformer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embed_to(one_core, tmp_path / "local", folder, shard_rows=8)
    # Relative paths are those of this process.
    monkeypatch.chdir(tmp_path)
    source = os.path.relpath(folder, tmp_path)
    how: dict[str, Any] = {"shard_rows": 8, "engine": "ray"}
    report = embed_to(one_core, "ray", source, **how)
    assert (report.n_images, report.n_bad, report.n_shards) == (37, 1, 5)
    assert report.complete
    same(tmp_path / "ray", tmp_path / "local")
    # Finished shards are skipped, those that are missing are written.
    (tmp_path / "ray" / "codes-00000-000002.parquet").unlink()
    report = embed_to(one_core, "ray", source, **how)
    assert (report.n_images, report.n_shards, report.complete) == (8, 1, True)
    same(tmp_path / "ray", tmp_path / "local")
    with pytest.raises(ValueError, match="written with shard_rows=8, got 9"):
        embed_to(one_core, "ray", source, shard_rows=9, engine="ray")


@pytest.mark.filterwarnings("ignore:backbone='cnncodes-mini' is taken as the name")
def test_the_backbone_is_the_one_that_is_meant_here(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of the catalogue, a path of this folder, or what was fitted."""
    monkeypatch.chdir(tmp_path)
    images = [png(number) for number in range(3)]
    save_tiny(tmp_path / "net.onnx")
    save_tiny(tmp_path / "stored.onnx")
    (tmp_path / "cnncodes-mini").write_bytes(b"no network")
    stored = CNNCodeTransformer("stored.onnx", n_jobs=1, store_backbone=True)
    stored = pickle.loads(pickle.dumps(stored.fit(images)))
    (tmp_path / "stored.onnx").write_bytes(b"no network")
    named, relative = (
        CNNCodeTransformer(name, n_jobs=1) for name in ("cnncodes-mini", "net.onnx")
    )
    how: Any = {"engine": "ray", "ray_options": {"num_workers": 1}}
    for number, transformer in enumerate([named, relative, stored]):
        embed_to(transformer, tmp_path / str(number), images, **how)
        codes = open_codes(tmp_path / str(number))[:]
        np.testing.assert_allclose(codes, transformer.transform(images), rtol=1e-5)


def test_tables_archives_and_lists(
    ray: Any, one_core: CNNCodeTransformer, folder: Path, tmp_path: Path
) -> None:
    paths = sorted(path.relative_to(folder) for path in folder.glob("[abc]/*.png"))
    table = folder / "table.csv"
    table.write_text("\n".join(["image,site", *(f"{path},x" for path in paths)]))
    archives = []
    for name in "abc":
        made = shutil.make_archive(str(tmp_path / name), "zip", folder / name)
        archives.append(Path(made))
    pairs = [(path.name, (folder / path).read_bytes()) for path in paths]
    for number, (source, how) in enumerate(
        [(table, {"columns": ["site"]}), (archives, {}), (pairs, {})]
    ):
        targets = [tmp_path / f"{engine}{number}" for engine in ("local", "ray")]
        for target in targets:
            how |= {"engine": target.name[:-1], "shard_rows": 5, "dtype": "float16"}
            report = embed_to(one_core, target, source, **how)
            assert (report.n_images, report.n_bad, report.complete) == (37, 1, True)
        if number != 1:
            same(targets[1], targets[0])
            continue
        # Batches without Ray reach across archives.
        local, ray_s = map(open_codes, targets)
        assert ray_s.keys.tolist() == local.keys.tolist()
        assert ray_s.errors.tolist() == local.errors.tolist()
        np.testing.assert_allclose(ray_s[:], local[:], rtol=1e-3)
    table.unlink()


def test_the_command(
    ray: Any, one_core: CNNCodeTransformer, folder: Path, tmp_path: Path
) -> None:
    embed_to(one_core, tmp_path / "local", folder)
    arguments = ["--backbone", one_core.backbone, "--shards", "--engine", "ray"]
    result = invoke("embed", folder, "-o", tmp_path / "ray", *arguments)
    assert result.exit_code == 3  # for the bad image
    assert "Wrote 37 codes in 1 shards" in result.stderr
    local, by_ray = open_codes(tmp_path / "local"), open_codes(tmp_path / "ray")
    assert by_ray.keys.tolist() == local.keys.tolist()
    np.testing.assert_allclose(by_ray[:], local[:], rtol=1e-5)


def test_what_is_refused(
    ray: Any, one_core: CNNCodeTransformer, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="engine='spark': expected 'local' or 'ray'"):
        embed_to(one_core, tmp_path, folder, engine="spark")
    with pytest.raises(ValueError, match=r"part=\(0, 2\): expected None with"):
        embed_to(one_core, tmp_path, folder, engine="ray", part=(0, 2))
    with pytest.raises(TypeError, match="source: got a generator, which other proc"):
        embed_to(one_core, tmp_path, (each for each in [png(0)]), engine="ray")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        embed_to(one_core, tmp_path, tmp_path / "none", engine="ray")


def test_without_ray(
    monkeypatch: pytest.MonkeyPatch,
    one_core: CNNCodeTransformer,
    folder: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'sk-cnncodes\[ray\]'"):
        embed_to(one_core, tmp_path, folder, engine="ray")


def test_killed_workers(ray: Any, tiny: str, tmp_path: Path) -> None:
    """SIGKILL for whichever worker is at it, several times; 1% of images are bad."""
    images, count = tmp_path / "images", 600 * FACTOR
    save_images(images, count)
    transformer = CNNCodeTransformer(tiny, n_jobs=1, batch_size=4)
    how: dict[str, Any] = {"shard_rows": 25}
    embed_to(transformer, tmp_path / "local", images, **how)
    target = tmp_path / "ray"
    report = None
    with workers_killed(target, 4 * FACTOR) as killed:
        while report is None:
            # A part whose worker died eleven times ends the run; the next one goes on.
            with suppress(ray.exceptions.WorkerCrashedError):
                report = embed_to(transformer, target, images, engine="ray", **how)
    assert len(killed) >= 2
    assert report.complete
    same(target, tmp_path / "local")
    assert open_codes(target, verify=True).shape == (count, 5)


_DRIVER = """
import sys, ray
from sk_cnncodes import CNNCodeTransformer, embed_to
net, images, target, temporary = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
    object_store_memory=2**27, logging_level="error", _temp_dir=temporary)
transformer = CNNCodeTransformer(net, n_jobs=1, batch_size=1)
embed_to(transformer, target, images, shard_rows=20, engine="ray")
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_driver(ray: Any, tiny: str, tmp_path: Path) -> None:
    images, target = tmp_path / "images", tmp_path / "ray"
    count, n_shards = 1000, 50
    save_images(images, count)
    temporary = tempfile.mkdtemp(prefix="ray-")
    with subprocess.Popen(
        [sys.executable, "-c", _DRIVER, tiny, images, target, temporary],
        env=os.environ | cluster_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        end = time.monotonic() + 120
        while len([*target.glob("codes-*.parquet")]) < 4:
            assert driver.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        others = descendants(driver.pid)
        driver.kill()
    # Workers would go on for seconds, and some of Ray's other processes for minutes.
    for process in others:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    while any(Path(f"/proc/{process}").exists() for process in others):
        assert time.monotonic() < end
        time.sleep(0.1)
    shutil.rmtree(temporary, ignore_errors=True)
    before = {p: p.stat().st_mtime_ns for p in target.glob("codes-*.parquet")}
    assert 4 <= len(before) < n_shards
    transformer = CNNCodeTransformer(tiny, n_jobs=1, batch_size=64)
    report = embed_to(transformer, target, images, shard_rows=20, engine="ray")
    assert report.complete
    assert report.n_shards == n_shards - len(before)
    codes = open_codes(target, verify=True)
    assert codes.shape == (count, 5)
    assert len({*codes.keys}) == count
    assert json.loads((target / "_manifest.json").read_text())["bad"] == count // 100
    assert {path.name[0] for path in target.iterdir()} == {"c", "_"}
    for path, changed in before.items():
        assert path.stat().st_mtime_ns == changed


def descendants(process: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
    found = [process]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def test_the_driver_does_not_open_the_source(
    ray: Any,
    one_core: CNNCodeTransformer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sk_cnncodes.scale import embed

    def opened(*_: object) -> None:
        raise AssertionError("opened by the driver")

    monkeypatch.setattr(embed, "open_any_source", opened)
    monkeypatch.setattr("os.scandir", opened)
    report = embed_to(one_core, tmp_path / "codes", folder, engine="ray")
    monkeypatch.undo()
    assert report.complete
