"""Ctrl-C: no partial output, exit code 130, and a hint on how to resume."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import CNNCodeTransformer, CodeCache
from tests.cli.commands import interrupt, only_posix, start, wait_until
from tests.cli.conftest import copies

pytestmark = only_posix


@pytest.fixture(scope="module")
def many(
    photograph_files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of images that take some seconds to embed."""
    folder = tmp_path_factory.mktemp("many")
    copies(photograph_files[:4], folder / "china", 400)
    copies(photograph_files[4:], folder / "flower", 400)
    return folder


@pytest.fixture(scope="module")
def distinct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of which none is a copy of another."""
    folder = tmp_path_factory.mktemp("distinct")
    rng = np.random.default_rng(0)
    for number in range(400):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        path = folder / "ab"[number % 2] / f"{number:03}.png"
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def codes_of_distinct(distinct: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with their codes."""
    cache = tmp_path_factory.mktemp("cache") / "codes.sqlite3"
    transformer = CNNCodeTransformer(norm="l2", cache=cache)
    transformer.transform(sorted(distinct.glob("*/*.png")))
    return cache


def left(folder: Path) -> set[str]:
    """Names of files in a folder, except those of a cache."""
    return {p.name for p in folder.iterdir() if not p.name.startswith("codes.sqlite3")}


def has_rows(cache: Path) -> bool:
    return cache.exists() and CodeCache(cache).info().rows > 0


def test_embed_resumes_from_its_cache(many: Path, tmp_path: Path) -> None:
    arguments = ("embed", many / "china", "-o", "out.npz", "--cache", "codes.sqlite3")
    (tmp_path / "out.npz").write_text("before")
    process = start(tmp_path, *arguments)
    wait_until(process, lambda: has_rows(tmp_path / "codes.sqlite3"))
    _, message = interrupt(process)
    assert process.returncode == 130
    assert (
        "Interrupted. 'out.npz' was not written. Run the same command again" in message
    )
    assert "Traceback" not in message
    assert left(tmp_path) == {"out.npz"}
    assert (tmp_path / "out.npz").read_text() == "before"
    stored = CodeCache(tmp_path / "codes.sqlite3").info().rows
    assert 0 < stored < 400

    cache = CodeCache(tmp_path / "codes.sqlite3")
    paths = sorted(map(str, many.glob("china/*.jpg")))[:stored]
    CNNCodeTransformer(cache=cache).transform(paths)
    assert cache.info().hits >= stored - 16  # stored codes are cache hits

    process = start(tmp_path, *arguments)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 0, message
    with np.load(tmp_path / "out.npz") as archive:
        codes, paths = archive["codes"][::100], archive["paths"][::100]
    expected = CNNCodeTransformer().transform(paths.tolist())
    np.testing.assert_allclose(codes, expected, atol=1e-5)


def test_embed_without_a_cache(many: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "embed", many, "-o", "out.npy")
    wait_until(process, lambda: any(n.startswith(".out.") for n in left(tmp_path)))
    _, message = interrupt(process)
    assert process.returncode == 130
    assert "with --cache FILE" in message
    assert left(tmp_path) == set()


def test_predict(many: Path, models: dict[str, Path], tmp_path: Path) -> None:
    process = start(tmp_path, "predict", models["svm"], many, "-o", "labels.csv")
    wait_until(process, lambda: any(n.startswith(".labels") for n in left(tmp_path)))
    _, message = interrupt(process)
    assert process.returncode == 130
    assert "'labels.csv' was not written." in message
    assert left(tmp_path) == set()


def test_printed_rows_are_whole(
    many: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    with open(tmp_path / "rows.jsonl", "w+", encoding="utf-8") as rows_file:
        arguments = ("predict", models["svm"], many, "--json")
        process = start(tmp_path, *arguments, stdout=rows_file)
        wait_until(process, lambda: (tmp_path / "rows.jsonl").stat().st_size > 0)
        _, message = interrupt(process)
    assert process.returncode == 130
    assert "The printed rows are complete." in message
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    rows = [json.loads(line) for line in text.splitlines()]
    assert 0 < len(rows) < 800
    in_order = sorted(map(str, many.glob("*/*.jpg")))
    assert [row["path"] for row in rows] == in_order[: len(rows)]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_train_during_its_search(
    distinct: Path, codes_of_distinct: Path, tmp_path: Path, jobs: str
) -> None:
    options = ("--cv", "100", "--layer", "-1", "--head", "svc", "--jobs", jobs)
    arguments = ("train", distinct, "-o", "model.joblib", *options)
    process = start(tmp_path, *arguments, "--cache", codes_of_distinct)
    assert process.stderr is not None
    while "Ranking 1 layer, and" not in (line := process.stderr.readline()):
        assert line
    time.sleep(2)  # during the search, which takes longer
    printed, message = interrupt(process)
    assert (process.returncode, printed) == (130, "")
    assert "'model.joblib' was not written. Run the same command again" in message
    assert "Traceback" not in message
    assert left(tmp_path) == set()


def test_similar(many: Path, tmp_path: Path) -> None:
    query = many / "china" / "0000.jpg"
    options = ("--among", many, "--cache", "codes.sqlite3")
    process = start(tmp_path, "similar", "cnncodes-mini", query, *options)
    wait_until(process, lambda: has_rows(tmp_path / "codes.sqlite3"))
    printed, message = interrupt(process)
    assert (process.returncode, printed) == (130, "")
    assert "Run the same command again to resume" in message
