"""Equal images have equal digests; everything that changes a code changes them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from sk_cnncodes import CNNCodeTransformer, CodeCache, ImageError
from sk_cnncodes.codes.digests import ImageDigests, image_digest
from sk_cnncodes.codes.elements import Elements

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def test_files_are_digested_by_content(tmp_path: Path) -> None:
    content = png(PIXELS)
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path in paths:
        path.write_bytes(content)
    sources: list[Any] = [*paths, str(paths[0]), content, io.BytesIO(content)]
    assert len({image_digest(source, 0) for source in sources}) == 1


def test_arrays_are_digested_by_dtype_shape_and_values() -> None:
    arrays = [
        PIXELS,
        PIXELS.reshape(2, 8, 3),
        PIXELS[::-1],
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        PIXELS.astype(bool),
        PIXELS[:, :, 0],
        PIXELS[:, :, :1],
    ]
    assert len({image_digest(array, 0) for array in arrays}) == len(arrays)
    assert image_digest(PIXELS.copy(), 0) == image_digest(PIXELS, 5)
    fortran = np.asfortranarray(PIXELS)
    assert image_digest(fortran, 0) == image_digest(PIXELS, 0)


def test_pil_images_are_digested_by_their_rgb_pixels() -> None:
    image = Image.fromarray(PIXELS)
    assert image_digest(image, 0) == image_digest(image.copy(), 0)
    turned = image.copy()
    turned.getexif()[0x0112] = 3
    assert image_digest(turned, 0) != image_digest(image, 0)


@given(
    hnp.arrays(np.uint8, (3, 4, 3)),
    hnp.arrays(np.uint8, (3, 4, 3)),
    st.sampled_from([np.asarray, Image.fromarray, png]),
)
def test_digests_are_equal_if_and_only_if_pixels_are(
    a: np.ndarray, b: np.ndarray, form: Any
) -> None:
    same = image_digest(form(a), 0) == image_digest(form(b), 1)
    assert same == np.array_equal(a, b)


@pytest.mark.parametrize(
    "image", [None, 3, "gone.png", np.zeros((2, 2), "M8[s]"), np.zeros(2, object)]
)
def test_invalid_images(image: Any) -> None:
    with pytest.raises(ImageError, match="image 4"):
        image_digest(image, 4)


def test_a_replaced_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if all its files have the same sizes and timestamps as before."""
    original = os.lstat

    def timeless(path: Any, **options: Any) -> Any:
        status = original(path, **options)
        fields = ("st_mode", "st_size", "st_dev", "st_ino")
        known = {name: getattr(status, name) for name in fields}
        return SimpleNamespace(**known, st_mtime_ns=1, st_ctime_ns=1)

    for name, pixels in (("a", PIXELS), ("b", PIXELS[::-1])):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "image.bmp")
    path = tmp_path / "a" / "image.bmp"
    own = image_digest(path, 0)
    monkeypatch.setattr(os, "lstat", timeless)
    digests = ImageDigests(Elements([path]), CodeCache(), map)
    assert digests.many([0]) == digests.many([0]) == [own]
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    assert image_digest(path, 0) != own
    assert digests.many([0]) == [image_digest(path, 0)]


def test_a_sequence_that_returns_another_path_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is remembered with the digest of another one."""
    monkeypatch.setattr("sk_cnncodes.codes.digests.SETTLED_NS", -(10**18))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, pixels in zip(paths, (PIXELS, PIXELS[::-1]), strict=True):
        path.write_bytes(png(pixels))

    class Alternating(Sequence[Path]):
        asked = 0

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: Any) -> Path:
            self.asked += 1
            return paths[1 - self.asked % 2]

    cache = CodeCache()
    for _ in range(4):
        ImageDigests(Elements(Alternating()), cache, map).many([0])
    found = ImageDigests(Elements(paths), cache, map).many([0, 1])
    assert found == [image_digest(path, 0) for path in paths]


def test_truncated_files_that_pillow_filled_up_stay_bad_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sk_cnncodes.codes.digests.SETTLED_NS", -(10**18))
    path = tmp_path / "cut.bmp"
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:-9])
    transformer = CNNCodeTransformer(cache=CodeCache())
    with monkeypatch.context() as lenient:
        lenient.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        transformer.transform([path, path.read_bytes()])
    for image in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="damaged or truncated"):
            transformer.transform([image])
