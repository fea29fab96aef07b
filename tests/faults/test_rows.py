"""Row i is the code of image i, under all conditions."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sk_cnncodes import CacheWarning, CNNCodeTransformer, CodeCache, ImageError
from sk_cnncodes.base.exceptions import CacheError
from sk_cnncodes.codes import extraction as module
from tests.faults.conftest import check_rows
from tests.fuzz.pool import asked_cases

# -- X -----------------------------------------------------------------------


def opened(path: str) -> Image.Image:
    """A PIL image that has not read its pixels yet."""
    return Image.open(io.BytesIO(Path(path).read_bytes()))


# Forms of an image in X, made from its pixels and its file.
FORMS: dict[str, Callable[[np.ndarray, str], Any]] = {
    "array": lambda pixels, path: pixels,
    "floats": lambda pixels, path: pixels / 255,
    "fortran": lambda pixels, path: np.asfortranarray(pixels),
    "PIL": lambda pixels, path: Image.fromarray(pixels),
    "opened PIL": lambda pixels, path: opened(path),
    "str": lambda pixels, path: path,
    "Path": lambda pixels, path: Path(path),
    "bytes": lambda pixels, path: Path(path).read_bytes(),
    "file in memory": lambda pixels, path: io.BytesIO(Path(path).read_bytes()),
    "file": lambda pixels, path: open(path, "rb"),  # noqa: SIM115
}


# Elements of X that are not valid images.
BAD: dict[str, Callable[[str], Any]] = {
    "gone": lambda path: path + ".gone",
    "text": lambda path: b"no image",
    "empty": lambda path: b"",
    "cut off": lambda path: Path(path).read_bytes()[:-150],
    "opened and cut off": lambda path: Image.open(
        io.BytesIO(Path(path).read_bytes()[:-150])
    ),
    "nothing": lambda path: None,
    "dates": lambda path: np.zeros((2, 2), "M8[s]"),
    "a folder": lambda path: str(Path(path).parent),
}
Item = tuple[str, int]
ITEMS = st.one_of(
    st.tuples(st.sampled_from(sorted(FORMS)), st.integers(0, 11)),
    # A few images only, so that there are duplicates.
    st.tuples(st.sampled_from(["bytes", "array", "str"]), st.integers(0, 1)),
    st.tuples(st.sampled_from(sorted(BAD)), st.integers(0, 2)),
)


def container(kind: str, images: list[Any]) -> Any:
    if kind == "tuple":
        return tuple(images)
    array = np.empty(len(images), object)
    for number, image in enumerate(images):  # one by one: NumPy would load PIL images
        array[number] = image
    if kind == "object array":
        return array
    if kind == "Series":
        return pd.Series(array, index=range(5, 5 + len(images)))
    return images


# -- caches ------------------------------------------------------------------


def failing_cache(folder: Path) -> CodeCache:
    """A file whose disk is full from the third commit on."""
    cache = CodeCache(folder / "full.sqlite3")
    store = cache._open()
    put, calls = store.put, [0]

    def put_or_fail(rows: Any) -> None:
        calls[0] += 1
        if calls[0] > 2:
            raise CacheError("the disk is full")
        put(rows)

    store.put = put_or_fail  # type: ignore[method-assign]
    return cache


CACHES: dict[str, Callable[[Path], Any]] = {
    "none": lambda folder: None,
    "memory": lambda folder: CodeCache(),
    "small memory": lambda folder: CodeCache(max_bytes=3000),
    "file": lambda folder: folder / "codes.sqlite3",
    "small file": lambda folder: CodeCache(folder / "small.sqlite3", max_bytes=30_000),
    "failing file": failing_cache,
}

CASES = given(
    items=st.lists(ITEMS, min_size=1, max_size=40),
    kind=st.sampled_from(["list", "tuple", "object array", "Series"]),
    batch_size=st.one_of(st.just("auto"), st.integers(1, 9)),
    n_jobs=st.sampled_from([1, 2, 4]),
    cache=st.sampled_from(sorted(CACHES)),
    filled=st.lists(ITEMS.filter(lambda item: item[0] in FORMS), max_size=12),
    layers=st.sampled_from([None, [-1], [-2], [-1, -2, -3]]),
    filled_layers=st.sampled_from([None, [-2], [-1, -2]]),
    in_thread=st.booleans(),
)


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Any:
    """Process few images at a time instead of hundreds."""
    with (
        mock.patch.object(module, "_LOOKUP_SIZE", 7),
        mock.patch.object(module, "_CLAIM_SIZE", 3),
        mock.patch.object(module, "_STORE_SIZE", 4),
    ):
        yield


@settings(
    max_examples=asked_cases(100),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@CASES
def test_row_i_is_the_code_of_image_i(
    items: list[Item],
    kind: str,
    batch_size: int | str,
    n_jobs: int,
    cache: str,
    filled: list[Item],
    layers: list[int] | None,
    filled_layers: list[int] | None,
    in_thread: bool,
    net: str,
    pixels: list[np.ndarray],
    files: list[str],
    alone: np.ndarray,
) -> None:
    def image(item: Item) -> Any:
        form, number = item
        if form in BAD:
            return BAD[form](files[number])
        made = FORMS[form](pixels[number], files[number])
        return opened_files.enter_context(made) if form == "file" else made

    expected = np.array(
        [
            alone[number] if form in FORMS else np.full(alone.shape[1], np.nan)
            for form, number in items
        ]
    )
    bad = [i for i, (form, _) in enumerate(items) if form in BAD]
    with (
        tempfile.TemporaryDirectory() as folder,
        ExitStack() as opened_files,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)
        used = CACHES[cache](Path(folder))
        if filled and used is not None:
            CNNCodeTransformer(
                net, layer=(filled_layers or [-1])[-1], cache=used, cache_layers=layers
            ).transform([image(item) for item in filled])
        transformer = CNNCodeTransformer(
            net,
            cache=used,
            cache_layers=layers,
            batch_size=batch_size,
            n_jobs=n_jobs,
            on_error="nan",
        )
        for _ in range(2):  # the second time from the cache
            X = container(kind, [image(item) for item in items])
            if in_thread:  # where images are looked up in another order
                with ThreadPoolExecutor(1) as thread:
                    codes = thread.submit(transformer.transform, X).result()
            else:
                codes = transformer.transform(X)
            assert codes.shape == expected.shape
            check_rows(codes, expected)
        transformer.set_params(on_error="raise")
        if not bad:
            check_rows(transformer.transform(X), expected)
            return
        with pytest.raises(ImageError) as caught:
            transformer.transform(X)
        assert caught.value.index == bad[0]


def test_many_rows_with_duplicates_and_bad_ones(net: str) -> None:
    """More images than are looked up at once, in larger chunks."""
    count = asked_cases(3000)
    rng = np.random.default_rng(5)
    distinct = list(rng.integers(0, 256, (count // 2, 6, 5, 3), np.uint8))
    rows = rng.integers(0, len(distinct), count)
    bad = rng.random(count) < 0.03
    X = [b"no image" if b else distinct[r] for r, b in zip(rows, bad, strict=True)]
    reference = CNNCodeTransformer(net, cache=None, n_jobs=1, batch_size=1)
    expected = reference.transform(distinct)[rows]
    expected[bad] = np.nan
    for parameters in ({"n_jobs": 3}, {"n_jobs": 1}, {"cache": None, "n_jobs": 4}):
        given = {"cache": CodeCache()} | parameters
        transformer = CNNCodeTransformer(net, on_error="nan", **given)
        with pytest.warns(UserWarning, match=f"{bad.sum()} of {count} images"):
            check_rows(transformer.transform(X), expected)


def test_a_cache_that_fails_in_the_middle_is_reported(
    net: str, pixels: list[np.ndarray], alone: np.ndarray, tmp_path: Path
) -> None:
    cache = failing_cache(tmp_path)
    transformer = CNNCodeTransformer(net, cache=cache, n_jobs=2)
    with pytest.warns(CacheWarning, match="the disk is full") as caught:
        check_rows(transformer.transform(pixels), alone)
    assert len(caught) == 1
    assert 0 < cache.info().rows < len(pixels)


def test_files_that_change_constantly(
    net: str, pixels: list[np.ndarray], alone: np.ndarray, tmp_path: Path
) -> None:
    """Every row is the code of one of the contents that its file had."""
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    contents = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        contents.append(file.getvalue())
    cache, stop = CodeCache(), threading.Event()

    def write(number: int, content: bytes) -> None:
        # Atomically, since a half-written file is a bad image.
        fresh = tmp_path / f"fresh {number}"
        fresh.write_bytes(content)
        os.replace(fresh, paths[number])  # noqa: PTH105

    def change() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            number = int(rng.integers(6))
            write(number, contents[number + 6 * int(rng.integers(2))])

    for number in range(6):
        write(number, contents[number])
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for n_jobs in (1, 4) * asked_cases(10):
            transformer = CNNCodeTransformer(net, cache=cache, n_jobs=n_jobs)
            codes = transformer.transform([*paths, *paths])
            for row, code in enumerate(codes):
                number = row % 6
                one, other = alone[number], alone[number + 6]
                near = min(np.abs(code - one).max(), np.abs(code - other).max())
                assert near <= 1e-5 * np.abs(alone).max()
    finally:
        stop.set()
        thread.join()
    # No code was stored under the digest of another content.
    codes = CNNCodeTransformer(net, cache=cache).transform(contents)
    check_rows(codes, alone)
