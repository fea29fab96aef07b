"""Lance tables as sources, of image files and of paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, embed_to, open_codes
from sk_cnncodes.scale.sources import lance_images
from sk_cnncodes.scale.sources.local import open_source
from tests.scale.conftest import COUNT, png
from tests.scale.runs import check

lance = pytest.importorskip("lance", reason="needs pylance")
pyarrow = pytest.importorskip("pyarrow")


def write(path: Path, images: list[Any], **options: Any) -> Path:
    labels = [number % 3 for number in range(len(images))]
    table = pyarrow.table({"image": images, "label": labels})
    lance.write_dataset(table, path, max_rows_per_file=5, **options)
    return path


@pytest.mark.parametrize("kind", ["binary", "struct", "paths"])
def test_lance(
    tiny: str,
    tmp_path: Path,
    expected: np.ndarray,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lance_images, "_CHUNK", 4)
    keys = [f"table.lance/{number}" for number in range(COUNT)]
    images: list[Any] = [png(number) for number in range(COUNT)]
    if kind == "struct":
        images = [{"bytes": image, "path": "/etc/passwd"} for image in images]
    if kind == "paths":
        keys = [f"{number}.png" for number in range(COUNT)]
        for key, image in zip(keys, images, strict=True):
            (tmp_path / key).write_bytes(image)
        images = keys
    path = write(tmp_path / "table.lance", images)
    check(tiny, tmp_path / "codes", path, keys, expected, columns=["label"])
    labels = open_codes(tmp_path / "codes" / "whole").column("label")
    assert labels.tolist() == [str(number % 3) for number in range(COUNT)]
    with pytest.raises(ValueError, match="column 'no': expected one of"):
        embed_to(CNNCodeTransformer(tiny), tmp_path / "x", path, columns=["no"])


def test_rows_that_were_removed_and_a_table_that_changed(
    tiny: str, tmp_path: Path, expected: np.ndarray
) -> None:
    images: list[Any] = [png(number) for number in range(COUNT)]
    images[3] = None
    path = write(tmp_path / "table.lance", images)
    lance.dataset(path).delete("label = 1")
    left = [number for number in range(COUNT) if number % 3 != 1]
    transformer = CNNCodeTransformer(tiny)
    report = embed_to(transformer, tmp_path / "codes", path, shard_rows=3)
    assert (report.n_images, report.n_bad) == (len(left), 1)
    codes = open_codes(tmp_path / "codes")
    good = np.array([number != 3 for number in left])
    np.testing.assert_allclose(codes[good], expected[left][good], rtol=1e-5)
    write(path, images, mode="append")
    with pytest.raises(ValueError, match="table.lance .version 2.*version 3"):
        embed_to(transformer, tmp_path / "codes", path, shard_rows=3)


def test_blobs_are_not_opened(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "table.lance"
    metadata = {"lance-encoding:blob": "true"}
    field = pyarrow.field("image", pyarrow.large_binary(), metadata=metadata)
    table = pyarrow.table({"image": [png(0)]}, schema=pyarrow.schema([field]))
    lance.write_dataset(table, path)
    with pytest.raises(ValueError, match="column 'image' has blobs"):
        embed_to(CNNCodeTransformer(tiny), tmp_path / "codes", path)


def test_folders_that_are_no_tables(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos.lance"
    folder.mkdir()
    (folder / "0.png").write_bytes(png(0))
    embed_to(CNNCodeTransformer(tiny), tmp_path / "codes", folder)
    assert open_codes(tmp_path / "codes").keys.tolist() == ["0.png"]
    (folder / "_versions").mkdir()
    with pytest.raises(ValueError, match="photos.lance': expected a Lance table"):
        embed_to(CNNCodeTransformer(tiny), tmp_path / "other", folder)


@pytest.mark.parametrize("kind", ["images", "paths"])
def test_a_table_stays_with_the_version_that_was_planned(
    tmp_path: Path, kind: str
) -> None:
    images: list[Any] = [png(0), png(1)] if kind == "images" else ["0.png", "1.png"]
    path = write(tmp_path / "table.lance", images)
    source = open_source(path)
    write(path, images * 3, mode="append")
    assert len([*source.read(0, lambda _: True)]) == 2
    assert kind == "paths" or source.pieces == ["table.lance (version 1)"]
