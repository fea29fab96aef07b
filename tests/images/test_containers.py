"""Containers and cells of other libraries: each becomes the image that it holds."""

from __future__ import annotations

import base64
import importlib.resources
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sk_cnncodes import CNNCodeTransformer, ImageError
from sk_cnncodes.base.exceptions import ImageNotFoundError
from sk_cnncodes.images.containers import (
    ArrayRows,
    as_element,
    as_image_sequence,
    fetch_element,
)
from sk_cnncodes.images.decode import read_rgb

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 12, 10, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


FILES = [png(pixels) for pixels in PIXELS]
CELLS = [{"bytes": file, "path": f"{i}.png"} for i, file in enumerate(FILES)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pixels_of(X: Any) -> np.ndarray:
    images = as_image_sequence(X)
    each = [read_rgb(fetch_element(images, i), i) for i in range(len(images))]
    return np.stack([np.asarray(image) for image in each])


# -- cells -------------------------------------------------------------------


def tables() -> dict[str, Any]:
    array = pa.array(CELLS, STRUCT)
    return {
        "list": CELLS,
        "tuple": tuple(CELLS),
        "objects": np.array(CELLS, object),
        "pandas": pd.Series(CELLS, index=range(3, 7)),
        "pandas frame": pd.DataFrame({"image": CELLS}),
        "pandas struct": pd.Series(CELLS, dtype=pd.ArrowDtype(STRUCT)),
        "pandas binary": pd.Series(FILES, dtype=pd.ArrowDtype(pa.binary())),
        "polars": pl.Series("image", CELLS),
        "polars frame": pl.DataFrame({"image": CELLS}),
        "polars binary": pl.Series("image", FILES),
        "pyarrow": array,
        "pyarrow chunks": pa.chunked_array([array[:1], array[1:]]),
        "pyarrow table": pa.table({"image": array}),
        "pyarrow batch": pa.record_batch({"image": array}),
        "pyarrow scalars": list(array),
        "pyarrow binary": pa.array(FILES),
        "scalars in dicts": [{"bytes": pa.scalar(file)} for file in FILES],
        "views": [{"bytes": memoryview(file), "path": None} for file in FILES],
    }


@pytest.mark.parametrize("name", tables())
def test_images_of_tables(name: str) -> None:
    np.testing.assert_array_equal(pixels_of(tables()[name]), PIXELS)


@pytest.mark.parametrize("reader", ["pandas", "pandas of pyarrow", "polars", "pyarrow"])
def test_parquet_files_of_the_hub(reader: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "train.parquet"
    table = pa.table({"image": pa.array(CELLS, STRUCT), "label": [0, 1, 0, 1]})
    parquet.write_table(table, file, row_group_size=2)
    read = {
        "pandas": lambda: pd.read_parquet(file),
        "pandas of pyarrow": lambda: pd.read_parquet(file, dtype_backend="pyarrow"),
        "polars": lambda: pl.read_parquet(file),
        "pyarrow": lambda: parquet.read_table(file),
    }
    np.testing.assert_array_equal(pixels_of(read[reader]()["image"]), PIXELS)


@pytest.mark.parametrize("form", [pa.array, pa.chunked_array, pl.Series, pd.Series])
def test_paths_in_columns(form: Any) -> None:
    paths = ["a.png", "b.png"]
    made = form([paths]) if form is pa.chunked_array else form(paths)
    assert list(as_image_sequence(made)) == paths


def test_paths_of_hugging_face_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(FILES[0])
    cell = {"bytes": None, "path": str(path)}
    np.testing.assert_array_equal(pixels_of([cell])[0], PIXELS[0])
    samples = [(str(path), 3), (path, np.int64(0))]
    np.testing.assert_array_equal(pixels_of(samples), PIXELS[[0, 0]])


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=9)
        | st.binary(max_size=9)
        | st.just(pd.NA)
        | st.just(np.float32("nan"))
        | st.just(pa.scalar(3)),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, min_size=2, max_size=2).map(tuple)
            | st.dictionaries(
                st.sampled_from(["bytes", "path", "image"]), inner, max_size=3
            )
        ),
        max_leaves=4,
    )
)
@settings(deadline=None)
def test_any_other_cell_is_a_bad_image(cell: Any) -> None:
    with pytest.raises(ImageError, match="image 5"):
        read_rgb(as_element(cell, 5), 5)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": None, "path": None}, "missing value"),
        ({"image": FILES[0]}, r"dict \['image'\].*without 'bytes' and 'path'"),
        ({"bytes": "text", "path": "a.png"}, "'a.png'.*'bytes' is of type str"),
        ({"bytes": b"no image", "path": "a.png"}, r"image 7 \('a.png'\)"),
        (pd.NA, "missing value"),
        (pa.scalar(None, STRUCT), "missing value"),
        (("a.png", "b.png"), "got tuple"),
        (("missing.png", 3), r"image 7 \('missing.png'\): no such file"),
    ],
)
def test_messages_of_bad_cells(cell: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_rgb(as_element(cell, 7), 7)
    assert caught.value.index == 7


def test_single_cells_are_no_containers() -> None:
    for cell in (CELLS[0], zipfile.Path(archive(), "0.png")):
        with pytest.raises(ValueError, match=r"X: got a single image \('.*0.png'\)"):
            as_image_sequence(cell)


# -- tensors -----------------------------------------------------------------


class Tensor:
    """As much of a tensor as is used."""

    def __init__(self, pixels: np.ndarray, error: Exception | None = None) -> None:
        self.pixels, self.error = pixels, error
        self.shape, self.dtype, self.ndim = pixels.shape, pixels.dtype, pixels.ndim

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.error is not None:
            raise self.error
        return self.pixels

    def __getitem__(self, index: Any) -> Tensor:
        return Tensor(self.pixels[index], self.error)


class TorchTensor(Tensor):
    def permute(self, *axes: int) -> None: ...


def test_tensors_in_lists() -> None:
    np.testing.assert_array_equal(pixels_of([Tensor(p) for p in PIXELS]), PIXELS)
    first = PIXELS.transpose(0, 3, 1, 2)
    with pytest.raises(ImageError, match=r"image 2 .*image.transpose\(1, 2, 0\)"):
        as_element(Tensor(first[0]), 2)
    with pytest.raises(ImageError, match=r"shape \(3, 12, 10\).*permute\(1, 2, 0\)"):
        as_element(TorchTensor(first[0]), 2)
    with pytest.raises(ValueError, match=r"X.permute\(0, 2, 3, 1\)"):
        as_image_sequence(TorchTensor(first))
    with pytest.raises(ImageError, match="Tensor.*on a GPU"):
        as_element(Tensor(PIXELS[0], TypeError("on a GPU")), 0)
    assert len(as_image_sequence(Tensor(PIXELS))) == 4


def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    tensors = torch.from_numpy(PIXELS)
    np.testing.assert_array_equal(pixels_of(tensors), PIXELS)
    np.testing.assert_array_equal(pixels_of(list(tensors)), PIXELS)
    with pytest.raises(ImageError, match=r"image.permute\(1, 2, 0\)"):
        as_element(tensors[0].permute(2, 0, 1), 0)
    with pytest.raises(ImageError, match="detach"):
        as_element(tensors[0].float().requires_grad_(), 0)


def test_tensors_of_tensorflow() -> None:
    tf = pytest.importorskip("tensorflow")
    tensors = tf.constant(PIXELS)
    np.testing.assert_array_equal(pixels_of(tensors), PIXELS)
    np.testing.assert_array_equal(pixels_of(list(tensors)), PIXELS)
    with pytest.raises(ImageError, match=r"tf.transpose\(image, \(1, 2, 0\)\)"):
        as_element(tf.transpose(tensors[0], (2, 0, 1)), 0)


# -- paths of other libraries ------------------------------------------------


def archive() -> zipfile.ZipFile:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for cell in CELLS:
            file.writestr(str(cell["path"]), cell["bytes"])
    return zipfile.ZipFile(stream)


class OnlyBytes:
    def read_bytes(self) -> bytes:
        return FILES[0]


class OnlyOpen:
    def open(self, mode: str = "r") -> Any:
        return io.BytesIO(FILES[0]) if mode == "rb" else io.StringIO("text")

    def __str__(self) -> str:
        return "cloud/0.png"


class WithoutMode:
    full_name = "memory://0.png"

    def open(self) -> Any:
        return io.BytesIO(FILES[0])


class Failing:
    """Any use of it fails."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(f"no {name}")

    def __str__(self) -> str:
        raise ZeroDivisionError("no text")


class FailingOpen(OnlyOpen):
    def open(self, mode: str = "r") -> Any:
        raise KeyError("credentials")


def test_paths_of_zip_files() -> None:
    root = zipfile.Path(archive())
    paths = sorted(root.iterdir(), key=lambda path: path.name)
    np.testing.assert_array_equal(pixels_of(paths), PIXELS)
    with pytest.raises(ImageError, match=r"nothing.png'\): cannot be read"):
        as_element(root / "nothing.png", 0)


@pytest.mark.parametrize("path", [OnlyBytes(), OnlyOpen(), WithoutMode()])
def test_objects_that_open_or_read_a_file(path: Any) -> None:
    np.testing.assert_array_equal(pixels_of([path])[0], PIXELS[0])


def test_package_resources() -> None:
    folder = importlib.resources.files("tests")
    with pytest.raises(ImageError, match=r"README.md'\): "):
        read_rgb(as_element(folder / "README.md", 0), 0)


def test_other_peoples_errors_are_ours() -> None:
    for cell in (Failing(), FailingOpen(), Failing, int):
        with pytest.raises(ImageError, match="image 3 "):
            read_rgb(as_element(cell, 3), 3)


def test_containers_that_fail() -> None:
    with pytest.raises(TypeError, match="X: got Failing, which cannot be used"):
        as_image_sequence(Failing())

    class Sequence(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            raise KeyError("gone")

    with pytest.raises(ImageError, match="image 1: Sequence does not give it"):
        fetch_element(Sequence([1, 2]), 1)


def test_open_files_of_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for cell in CELLS:
        memory.pipe(f"/photographs/{cell['path']}", cell["bytes"])
    files = fsspec.open_files("memory://photographs/*.png", "rb")
    np.testing.assert_array_equal(pixels_of(list(files)), PIXELS)
    np.testing.assert_array_equal(pixels_of(files), PIXELS)
    missing = fsspec.open("memory://photographs/nothing.png", "rb")
    with pytest.raises(ImageError, match="memory:/.*nothing.png'.*cannot be read"):
        as_element(missing, 0)


# -- strings that are no paths -----------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://a.org/b.png", r"a URL.*Download it, or give fsspec.open\(url\)"),
        (Path("https://a.org/b.png"), "a URL"),
        ("s3://bucket/" + "b" * 5000, "a URL"),
        ("file:///a.png", "without 'file://'"),
        (
            "data:image/png;base64," + base64.b64encode(FILES[0]).decode(),
            r"a data URI.*base64.b64decode\(uri",
        ),
        (base64.b64encode(FILES[0] * 9).decode(), "may be an image in base64"),
        ("a" * 100 + "\0" * 5000, "not a valid path"),
        ("a/" * 5000, r"image 1 \('a/a/.*10002 characters\)\): "),
    ],
)
def test_strings_that_are_no_paths(text: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_rgb(as_element(text, 1), 1)
    assert len(str(caught.value)) < 700


def test_addresses_are_files_that_are_not_found() -> None:
    for text in ("http://a.org", "data:image/png;base64,AAAA"):
        with pytest.raises(ImageNotFoundError):
            read_rgb(text, 0)


# -- arrays on disk ----------------------------------------------------------


class Disk:
    """An array that counts what is read from it."""

    ndim, dtype = 4, PIXELS.dtype

    def __init__(self, pixels: np.ndarray, chunks: Any = None) -> None:
        self.pixels, self.shape = pixels, pixels.shape
        self.reads: list[tuple[int, int]] = []
        if chunks is not None:
            self.chunks = chunks

    def __getitem__(self, index: slice) -> np.ndarray:
        assert isinstance(index, slice)
        self.reads.append((index.start, index.stop))
        return self.pixels[index]

    def __array__(self, *arguments: Any) -> np.ndarray:
        raise AssertionError("all of it was read")


CHUNKS = st.one_of(
    st.none(),
    st.integers(1, 40).map(lambda rows: (rows, 8, 8, 3)),
    st.lists(st.integers(1, 9), min_size=1).map(lambda rows: (tuple(rows), (8,))),
)


@given(CHUNKS, st.integers(1, 30), st.randoms())
@settings(deadline=None)
def test_rows_are_read_by_chunk_and_once(chunks: Any, count: int, random: Any) -> None:
    if chunks is not None and isinstance(chunks[0], tuple):
        count = sum(chunks[0])
    pixels = np.arange(count * 192, dtype=np.uint32).view(np.uint8)[: count * 192]
    pixels = pixels.reshape(count, 8, 8, 3)
    disk = Disk(pixels, chunks)
    images = as_image_sequence(disk)
    assert (len(images), disk.reads) == (count, [])
    order = list(range(count))
    random.shuffle(order)
    for index in order:
        np.testing.assert_array_equal(images[index], pixels[index])
    read = [row for start, stop in disk.reads for row in range(start, stop)]
    assert sorted(read) == list(range(count))
    with pytest.raises(IndexError):
        images[count]


def test_blocks_of_large_chunks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sk_cnncodes.images.containers._BLOCK_BYTES", 192 * 5)
    monkeypatch.setattr("sk_cnncodes.images.containers._KEPT_BYTES", 192 * 12)
    disk = Disk(np.zeros((40, 8, 8, 3), np.uint8), (23, 8, 8, 3))
    rows = ArrayRows(disk)
    for index in range(0, 40, 2):
        rows[index]
    assert max(stop - start for start, stop in disk.reads) == 5
    assert sum(block.nbytes for block, _ in rows._blocks.values()) <= 192 * 12


def test_arrays_of_unknown_shape() -> None:
    disk = Disk(PIXELS)
    disk.shape = (float("nan"), 12, 10, 3)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        as_image_sequence(disk)


@pytest.fixture(params=["zarr", "h5py", "dask", "memmap"])
def on_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), np.uint8)
    if request.param == "zarr":
        zarr = pytest.importorskip("zarr")
        array = zarr.open(
            str(tmp_path / "a.zarr"),
            mode="w",
            shape=pixels.shape,
            chunks=(7, 16, 16, 3),
            dtype="u1",
        )
        array[:] = pixels
        yield array, pixels
    elif request.param == "h5py":
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            array = file.create_dataset("images", data=pixels, chunks=(7, 16, 16, 3))
            yield array, pixels
    elif request.param == "dask":
        array = pytest.importorskip("dask.array").from_array(pixels, (7, 16, 16, 3))
        yield array, pixels
    else:
        np.save(tmp_path / "a.npy", pixels)
        yield np.load(tmp_path / "a.npy", mmap_mode="r"), pixels


def test_codes_of_arrays_on_disk(on_disk: Any) -> None:
    array, pixels = on_disk
    for cache in (None, "memory"):
        transformer = CNNCodeTransformer(cache=cache)
        np.testing.assert_array_equal(
            transformer.fit_transform(array), transformer.fit_transform(pixels)
        )
