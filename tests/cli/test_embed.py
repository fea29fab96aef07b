"""The command that writes the codes of images to a file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, open_codes
from sk_cnncodes.cli import embed as embed_module
from sk_cnncodes.cli.common import image_arguments as images_module
from tests.cli.commands import invoke
from tests.forwards import counted_forwards


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read codes and paths from a file that embed wrote."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            assert archive.files == ["codes", "paths"]
            return archive["codes"], archive["paths"].tolist()
    if path.suffix == ".npy":
        beside = path.with_suffix(".paths.json").read_text(encoding="utf-8")
        return np.load(path, mmap_mode="r"), json.loads(beside)
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(path)
    assert list(frame.columns) == ["path", "code"]
    return np.stack(frame["code"]), frame["path"].tolist()


@pytest.fixture(params=["npz", "npy", "parquet"])
def output(request: Any, tmp_path: Path) -> Path:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"codes.{request.param}"


def test_codes_and_paths(
    photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "CHUNK_SIZE", 7)
    result = invoke("embed", photos, "-o", output)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"Wrote 24 codes of length 800 to {output}." in result.stderr
    codes, paths = read(output)
    assert paths == sorted(map(str, photos.glob("*/*.jpg")))
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes, CNNCodeTransformer().transform(paths))
    left = {p.name for p in output.parent.iterdir()} - {"codes.paths.json"}
    assert left == {output.name}


def test_bad_images_are_rows_of_nan(photos: Path, output: Path) -> None:
    good = photos / "china" / "0000.jpg"
    result = invoke("embed", "missing.jpg", good, photos / "README.txt", "-o", output)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[0].startswith("missing.jpg: no such file.")
    assert result.stderr.splitlines()[-1] == "2 images could not be read."
    codes, paths = read(output)
    assert paths == ["missing.jpg", str(good), str(photos / "README.txt")]
    assert np.isnan(codes).all(axis=1).tolist() == [True, False, True]
    assert np.isfinite(codes[1]).all()


def test_several_layers(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "codes.npz"
    arguments = ["--layer", "-1,fire9", "--norm", "l2"]
    assert invoke("embed", photos, "-o", output, *arguments).exit_code == 0
    codes, paths = read(output)
    transformer = CNNCodeTransformer(layer=[-1, "fire9"], norm="l2")
    np.testing.assert_array_equal(codes, transformer.transform(paths))


def test_options_of_the_code(photos: Path, tmp_path: Path) -> None:
    options = {"layer": "-3", "pooling": "max", "norm": "power"}
    arguments = [part for name in options for part in (f"--{name}", options[name])]
    output = tmp_path / "codes.npz"
    assert invoke("embed", photos, "-o", output, *arguments).exit_code == 0
    codes, paths = read(output)
    transformer = CNNCodeTransformer(layer=-3, pooling="max", norm="power")
    np.testing.assert_array_equal(codes, transformer.transform(paths))


def test_cache_is_used_again(photos: Path, tmp_path: Path) -> None:
    cache = ("--cache", tmp_path / "cache.sqlite3")
    with counted_forwards() as count:
        invoke("embed", photos / "china", "-o", tmp_path / "part.npz", *cache)
        assert count.images == 12
        invoke("embed", photos, "-o", tmp_path / "all.npz", *cache)
        assert count.images == 24
    codes, _ = read(tmp_path / "all.npz")
    np.testing.assert_array_equal(read(tmp_path / "part.npz")[0], codes[:12])


@pytest.mark.skipif(os.name != "posix", reason="needs file names of bytes")
def test_names_that_are_not_utf8(photos: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    try:
        with open(path, "wb") as file:
            file.write((photos / "china" / "0000.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    for name in ("codes.npz", "codes.npy"):
        assert invoke("embed", tmp_path, "-o", tmp_path / name).exit_code == 0
        assert [os.fsencode(p) for p in read(tmp_path / name)[1]] == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "-99"], "--layer -99"),
        (["--backbone", "no-such.onnx"], "--backbone no-such.onnx"),
        (["--pooling", "median"], "--pooling: expected one of"),
        (["--norm", "l1"], "--norm: expected one of"),
        (["--device", "tpu"], "--device: expected"),
    ],
)
def test_errors_write_nothing(
    arguments: list[str], message: str, photos: Path, tmp_path: Path
) -> None:
    result = invoke("embed", photos, "-o", tmp_path / "codes.npz", *arguments)
    assert result.exit_code == 1
    assert f"Error: {message}" in result.stderr
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_module, "find_spec", lambda name: None)
    result = invoke("embed", photos, "-o", tmp_path / "codes.parquet")
    assert result.exit_code == 1
    assert "pip install 'sk-cnncodes[pandas]'" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_parquet_refuses_a_path_that_is_not_utf8(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    image = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(photos / "china" / "0000.jpg", image)
    result = invoke("embed", image, "-o", tmp_path / "codes.parquet")
    assert result.exit_code == 1
    assert "caf\\udce9.jpg': its name is not UTF-8" in result.stderr
    assert not (tmp_path / "codes.parquet").exists()
    result = invoke("embed", image, "-o", tmp_path / "codes.npz")
    assert result.exit_code == 0


def test_output_that_is_an_image(photos: Path, tmp_path: Path) -> None:
    image = tmp_path / "photo.npz"
    shutil.copy(photos / "china" / "0000.jpg", image)
    result = invoke("embed", image, "-o", image)
    assert result.exit_code == 1
    assert "it is one of the inputs" in result.stderr
    assert image.read_bytes() == (photos / "china" / "0000.jpg").read_bytes()


# -- shards --------------------------------------------------------------------


def test_shards(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    target = tmp_path / "codes"
    arguments = ["embed", photos, "-o", target, "--shards", "--shard-rows", "10"]
    result = invoke(*arguments, "--part", "0/2")
    assert result.exit_code == 0
    assert result.stderr.endswith(
        f"in 2 shards to {target}; other parts are missing.\n"
    )
    result = invoke(*arguments, "--part", "1/2")
    assert f"10 codes in 1 shards to {target}, which is complete." in result.stderr
    codes = open_codes(target)
    paths = sorted(map(str, photos.glob("*/*.jpg")))
    assert [str(photos / key) for key in codes.keys] == paths
    expected = CNNCodeTransformer().transform(paths)
    np.testing.assert_allclose(codes[:], expected, rtol=1e-4, atol=1e-5)
    assert "Wrote 0 codes in 0 shards" in invoke(*arguments).stderr


def test_shards_of_listed_paths(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    paths = [str(path) for path in sorted(photos.glob("*/*.jpg"))[:3]] + ["gone.jpg"]
    given = "".join(f"{path}\n" for path in paths)
    result = invoke("embed", "-", "-o", tmp_path / "codes", "--shards", given=given)
    assert result.exit_code == 3
    codes = open_codes(tmp_path / "codes")
    assert codes.keys.tolist() == paths
    assert codes.errors[3].startswith("no such file")


@pytest.mark.parametrize("part", [[], ["--part", "1/2"]])
def test_a_run_that_goes_on_counts_bad_images_of_finished_shards(
    photos: Path, tmp_path: Path, part: list[str]
) -> None:
    pytest.importorskip("pyarrow")
    images = sorted(photos.glob("*/*.jpg"))[:8]
    given = "".join(f"{path}\n" for path in [*images, tmp_path / "gone.jpg"])
    options = ["-o", f"{tmp_path / 'codes'}", "--shards", "--shard-rows", "3"]
    for shard in (None, "codes-00000-000001.parquet"):
        if shard is not None:
            (tmp_path / "codes" / shard).unlink()
        result = invoke("embed", "-", *options, *part, given=given)
        bad = 0 if part else 1
        assert result.exit_code == (3 if bad else 0)
        assert ("1 image could not be read." in result.stderr) == bool(bad)
    # The other part has the bad image, whenever it runs.
    for _ in range(2 if part else 0):
        result = invoke("embed", "-", *options, "--part", "0/2", given=given)
        assert result.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "", "--shards"], "'': expected a folder"),
        (["-o", "codes.npz", "--part", "0/2"], "expected with --shards"),
        (["-o", "codes.npz", "--engine", "ray"], "expected with --shards"),
        (["-o", "codes", "--shards", "--engine", "x"], "expected 'local' or 'ray'"),
        (["-o", "codes", "--shards", "--part", "2/2"], "the parts of 16 are 0/16"),
        (["-o", "codes", "--shards", "more"], "got 2 arguments"),
        (["-o", "README.txt", "--shards"], "expected a folder"),
    ],
)
def test_wrong_use_of_shards(
    photos: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    result = invoke("embed", photos, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", "").split())
