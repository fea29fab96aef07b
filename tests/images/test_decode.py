"""Every kind of element of X becomes correct RGB or an error that names it."""

from __future__ import annotations

import errno
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sk_cnncodes import CNNCodeTransformer, ImageError, ImageNotFoundError
from sk_cnncodes.images.containers import as_image_sequence
from sk_cnncodes.images.decode import read_rgb


def rgb(image: Any) -> np.ndarray:
    result = read_rgb(image, 0)
    assert result.mode == "RGB"
    return np.asarray(result)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.fixture
def photograph(photographs: list[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(photographs[0][:60, :80])


# -- sources -----------------------------------------------------------------


def test_every_source_gives_the_same_pixels(
    photograph: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "photograph.png"
    Image.fromarray(photograph).save(path)
    content = path.read_bytes()
    with open(path, "rb") as file:
        for source in [
            str(path),
            path,
            content,
            bytearray(content),
            memoryview(content),
            io.BytesIO(content),
            file,
            file,  # a second time: it is read from the start
            Image.open(io.BytesIO(content)),
            photograph,
            photograph / 255,
            (photograph / 255).astype(np.float32),
            np.str_(path),
        ]:
            np.testing.assert_array_equal(rgb(source), photograph)
        assert not file.closed


def test_gray_arrays(photograph: np.ndarray) -> None:
    gray = photograph[:, :, 0]
    expected = np.repeat(gray[:, :, None], 3, axis=2)
    for source in (gray, gray[:, :, None], gray / 255):
        np.testing.assert_array_equal(rgb(source), expected)
    mask = gray > gray.mean()
    assert set(np.unique(rgb(mask))) == {0, 255}


# -- modes -------------------------------------------------------------------


def test_transparency_is_composited_over_white(photograph: np.ndarray) -> None:
    alpha = np.zeros(photograph.shape[:2], np.uint8)
    alpha[:, :40] = 255
    pixels = np.dstack([photograph, alpha])
    for source in (pixels, encoded(Image.fromarray(pixels), format="PNG")):
        result = rgb(source)
        np.testing.assert_array_equal(result[:, :40], photograph[:, :40])
        assert (result[:, 40:] == 255).all()
    half = np.dstack([np.zeros_like(photograph), np.full_like(alpha, 128)])
    assert abs(int(rgb(half)[0, 0, 0]) - 127) <= 1


def test_palette_with_transparency(photograph: np.ndarray) -> None:
    image = Image.fromarray(photograph).quantize(16)
    plain = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(rgb(encoded(image, format="PNG")), plain)
    see_through = encoded(image, format="PNG", transparency=0)
    where = np.asarray(image) == 0
    assert where.any()
    assert (rgb(see_through)[where] == 255).all()
    np.testing.assert_array_equal(rgb(see_through)[~where], plain[~where])


def test_gray_with_alpha() -> None:
    image = Image.new("LA", (4, 4), (10, 0))
    assert (rgb(encoded(image, format="PNG")) == 255).all()


def test_cmyk_jpeg(photograph: np.ndarray) -> None:
    cmyk = Image.fromarray(photograph).convert("CMYK")
    result = rgb(encoded(cmyk, format="JPEG", quality=95))
    assert np.abs(result.astype(int) - photograph).mean() < 6


def test_16_bit_files_keep_their_high_byte() -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        result = rgb(encoded(Image.fromarray(ramp), format=format))
        np.testing.assert_array_equal(result[:, :, 0].ravel(), np.arange(256))


def test_one_bit_and_float_files() -> None:
    bits = np.eye(8, dtype=bool)
    result = rgb(encoded(Image.fromarray(bits), format="PNG"))
    np.testing.assert_array_equal(result[:, :, 1], bits * 255)
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    result = rgb(encoded(Image.fromarray(values), format="TIFF"))
    np.testing.assert_array_equal(result[:, :, 2], np.rint(values * 255))
    with pytest.raises(ImageError, match="float values from 0 to 300"):
        rgb(encoded(Image.fromarray(values * 300), format="TIFF"))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(
        frames[0], format=format, save_all=True, append_images=frames[1:], **options
    )
    np.testing.assert_array_equal(rgb(content)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_exif_orientation(orientation: int, mode: str) -> None:
    # A white corner that this orientation stores in another place.
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :8] = 255
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(turned)).convert(mode)
    contents = [
        encoded(image, format="JPEG", exif=exif, quality=100),
        encoded(image, format="TIFF", exif=exif),
        encoded(image, format="TIFF", exif=exif, compression="tiff_lzw"),
    ]
    if mode != "CMYK":
        contents.append(encoded(image, format="PNG", exif=exif))
    for content in contents:
        for source in (content, Image.open(io.BytesIO(content))):
            result = rgb(source)
            assert result.shape == upright.shape
            assert np.abs(result.astype(int) - upright).max() < 60


def test_damaged_exif_is_ignored(photograph: np.ndarray) -> None:
    image = Image.fromarray(photograph)
    content = encoded(image, format="PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(rgb(content), photograph)


# -- bad images --------------------------------------------------------------


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError, match="image 7 .*gone.jpg.*no such file"):
        read_rgb(tmp_path / "gone.jpg", 7)
    with pytest.raises(FileNotFoundError):
        read_rgb(str(tmp_path / "gone.jpg"), 7)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "the file is empty"),
        (
            "text.jpg",
            b"not an image at all\n" * 9,
            "not an image file. Expected one of",
        ),
    ],
)
def test_files_that_are_not_images(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"image 3 .*{name}.*{message}"):
        read_rgb(str(path), 3)
    with pytest.raises(ImageError, match=f"image 3 .*{message}"):
        read_rgb(content, 3)


def test_truncated_jpeg(photograph: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    content = encoded(Image.fromarray(photograph), format="JPEG")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="image 0 .*half.jpg.*damaged or truncated"):
        read_rgb(path, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_half_a_file_is_an_error_at_any_decode_size(
    format: str, photograph: np.ndarray
) -> None:
    content = encoded(Image.fromarray(photograph), format=format)
    half = content[: len(content) // 2]
    for min_decode_size in (None, lambda height, width: (8, 8)):
        for _ in range(2):
            with pytest.raises(ImageError, match="image 3"):
                read_rgb(half, 3, min_decode_size=min_decode_size)


def test_pipe_is_refused() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with (
        open(reading, "rb") as file,
        pytest.raises(ImageError, match="cannot be read twice"),
    ):
        read_rgb(file, 0)


def test_folder_and_invalid_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="image 0 .*cannot be read"):
        read_rgb(str(tmp_path), 0)
    with pytest.raises(ImageError, match="image 0 .*not a valid path"):
        read_rgb("a\0b", 0)


class RemotePath:
    """A path whose file must be fetched first, which fails."""

    def __fspath__(self) -> str:
        raise RuntimeError("no connection")


@pytest.mark.parametrize("cache", ["memory", None])
def test_paths_and_files_that_raise_other_exceptions(
    photograph: np.ndarray, tmp_path: Path, cache: str | None
) -> None:
    content = encoded(Image.fromarray(photograph), format="PNG")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("good.png", content)
        archive.writestr("damaged.png", content)
    whole = (tmp_path / "images.zip").read_bytes()
    start = whole.rindex(content)
    (tmp_path / "images.zip").write_bytes(
        whole[: start + 100] + bytes(20) + whole[start + 120 :]
    )
    transformer = CNNCodeTransformer(on_error="nan", cache=cache)
    with (
        zipfile.ZipFile(tmp_path / "images.zip") as archive,
        archive.open("good.png") as good,
        archive.open("damaged.png") as damaged,
    ):
        X = [good, damaged, RemotePath()]
        with pytest.raises(ImageError, match="image 1 .*damaged.png.*Bad CRC-32"):
            transformer.set_params(on_error="raise").transform(X)
        transformer.set_params(on_error="nan")
        with pytest.warns(UserWarning, match=r"image 2 \(RemotePath\).*no connection"):
            codes = transformer.transform(X)
    np.testing.assert_array_equal(np.isnan(codes[:, 0]), [False, True, True])
    np.testing.assert_allclose(codes[0], transformer.transform([photograph])[0])


def test_running_out_of_file_handles_is_not_an_image_error() -> None:
    class Scarce(io.BytesIO):
        def read(self, *arguments: Any) -> bytes:
            raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        read_rgb(Scarce(b"content"), 0)


def test_max_pixels_is_a_parameter(photograph: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(photograph).save(path)  # 60 x 80
    for image in (str(path), path.read_bytes(), photograph, Image.open(path)):
        with pytest.raises(ImageError, match="image 3 .*80 x 60.*max_pixels=4799"):
            read_rgb(image, 3, 4799)
        for limit in (4800, None):
            assert read_rgb(image, 3, limit).size == (80, 60)


def test_global_limit_of_pillow_is_unchanged(
    photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    content = encoded(Image.fromarray(photograph), format="JPEG")
    assert read_rgb(content, 0).size == (80, 60)  # without a warning
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("format", ["ICO", "PCX", "TGA", "PDF", "EPS", "JPEG2000"])
def test_other_formats_are_refused(photograph: np.ndarray, format: str) -> None:
    content = encoded(Image.fromarray(photograph), format=format)
    message = "image 0 .*not an image file(. Expected one|, but a P)"
    with pytest.raises(ImageError, match=message):
        read_rgb(content, 0)


def test_too_many_pixels() -> None:
    # A small file that claims 20,000 x 20,000 pixels.
    content = bytearray(encoded(Image.new("L", (8, 8)), format="BMP"))
    content[18:26] = (20_000).to_bytes(4, "little") * 2
    with pytest.raises(ImageError, match="image 0"):
        read_rgb(bytes(content), 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "missing value"),
        (float("nan"), "missing value"),
        (17, "got int. Expected a path"),
        ({"path": "x"}, "got dict"),
        ([[0, 1]], "got list"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\).*wrong shape"),
        (np.zeros((3, 8, 8), np.uint8), "Move the channels last"),
        (np.zeros((4, 4, 3, 1), np.uint8), "wrong shape"),
        (np.zeros(4, np.uint8), "wrong shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4), np.int64), "int64.*wrong dtype.*astype"),
        (np.zeros((4, 4), np.uint16), "wrong dtype"),
        (np.zeros((4, 4), "M8[s]"), "wrong dtype"),
        (np.zeros((4, 4), complex), "wrong dtype"),
        (np.zeros((4, 4), object), "dtype object"),
        (np.full((4, 4), np.nan), "contains NaN"),
        (np.full((4, 4), np.inf), "contains infinity"),
        (np.full((4, 4), 200.0), r"float values from 200 to 200.*\[0, 1\]"),
        (np.full((4, 4), -0.1), "float values from -0.1"),
        (io.StringIO("text"), "opened as text"),
        # 8-bit values in a 32-bit mode: the image would become black.
        (Image.new("L", (4, 4), 200).convert("I"), r"200 in mode 'I'.*convert\('L'\)"),
    ],
)
def test_elements_that_are_not_images(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=f"image 5 .*{message}") as caught:
        read_rgb(image, 5)
    assert caught.value.index == 5
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.index) == (str(caught.value), 5)


# -- containers --------------------------------------------------------------


def containers(paths: list[str]) -> list[Any]:
    return [
        paths,
        tuple(paths),
        np.array(paths),
        np.array(paths, object),
        np.array(paths)[:, None],
        pd.Series(paths, index=range(5, 5 + len(paths))),
        pd.Series(paths, dtype="category"),
        pd.DataFrame({"path": paths}),
        pl.Series("path", paths),
        pl.DataFrame({"path": paths}),
    ]


def test_containers_keep_order() -> None:
    paths = [f"{i}.jpg" for i in range(5)]
    for container in containers(paths):
        assert list(as_image_sequence(container)) == paths


def test_arrays_are_not_copied(photographs: list[np.ndarray]) -> None:
    X = np.zeros((5, 8, 8, 3), np.uint8)
    assert np.shares_memory(as_image_sequence(X)[2], X)
    gray = np.zeros((5, 8, 8), np.uint8)
    assert as_image_sequence(gray)[2].shape == (8, 8)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], "0 images"),
        (np.zeros((0, 8, 8, 3), np.uint8), "0 images"),
        ("photo.jpg", "single image"),
        (Path("photo.jpg"), "single image"),
        (b"abc", "single image"),
        (memoryview(b"abc"), "single image"),
        (Image.new("RGB", (2, 2)), "single image"),
        (np.zeros((8, 8, 3), np.uint8), r"single image.*X\[None\]"),
        (np.zeros((10, 64)), r"\(10, 64\).*a feature matrix.*reshape"),
        (np.zeros(10), r"\(10,\)"),
        (np.zeros((10, 3, 8, 8)), "Move the channels last"),
        (np.zeros((10, 8, 8, 2)), "Expected 1, 3 or 4 channels.*got 2"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), r"2 columns \['a', 'b'\]"),
    ],
)
def test_invalid_containers(X: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_image_sequence(X)


@pytest.mark.parametrize("X", [{"a.jpg"}, {"a": 1}, (p for p in ["a.jpg"]), 3, None])
def test_objects_that_are_not_containers(X: Any) -> None:
    with pytest.raises(TypeError, match="X: got .*Expected a list"):
        as_image_sequence(X)


@given(
    hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).flatmap(
            lambda shape: st.sampled_from([shape, (*shape, 1), (*shape, 3)])
        ),
    )
)
def test_any_array_keeps_its_values(pixels: np.ndarray) -> None:
    expected = pixels if pixels.ndim == 3 else pixels[:, :, None]
    expected = np.broadcast_to(expected, (*pixels.shape[:2], 3))
    np.testing.assert_array_equal(rgb(pixels), expected)
    np.testing.assert_array_equal(rgb(pixels / 255), expected)
