"""Resize and crop against reference implementations; validation of parameters."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from sk_cnncodes import Preprocessing, PreprocessingError
from sk_cnncodes.images.decode import read_rgb
from sk_cnncodes.images.preprocessing import INTERPOLATIONS


def torchvision(image: Image.Image, size: int, crop: int) -> np.ndarray:
    """Resize(size) and CenterCrop(crop) as documented by torchvision, step by step."""
    width, height = image.size
    if width <= height:
        scaled = (size, int(size * height / width))
    else:
        scaled = (int(size * width / height), size)
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left = round((image.width - crop) / 2.0)
    top = round((image.height - crop) / 2.0)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@given(
    width=st.integers(40, 400),
    height=st.integers(40, 400),
    size=st.integers(32, 80),
    share=st.floats(0.5, 1),
    seed=st.integers(0, 99),
)
def test_crop_inside_of_the_resize_equals_resize_then_crop(
    width: int, height: int, size: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    crop = max(1, int(size * share))
    ours = Preprocessing(crop_size=(crop, crop), resize_size=size).apply(image)
    reference = torchvision(image, size, crop)
    assert np.abs(ours.astype(int) - reference).max() <= 1


def test_photographs_match_within_one_level(photographs: list[np.ndarray]) -> None:
    for pixels in photographs:
        image = Image.fromarray(pixels)
        ours = Preprocessing(crop_size=(96, 96), resize_size=110).apply(image)
        reference = torchvision(image, 110, 96)
        assert np.abs(ours.astype(int) - reference).max() <= 1


@given(
    width=st.integers(40, 300),
    height=st.integers(40, 300),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
    seed=st.integers(0, 99),
)
@example(width=206, height=40, interpolation="bicubic", seed=0)  # two levels
def test_noise_matches_within_one_or_two_levels(
    width: int, height: int, interpolation: str, seed: int
) -> None:
    """The reference resizes the rows, then the columns, and then crops."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    record = Preprocessing(
        crop_size=(40, 40), resize_size=48, interpolation=interpolation
    )
    ours = record.apply(image).astype(int)
    full_height, full_width = record.resized_size(height, width)
    method = Image.Resampling(INTERPOLATIONS[interpolation])
    if interpolation != "nearest":  # which has no separate passes
        image = image.resize((full_width, height), method)
    whole = np.asarray(image.resize((full_width, full_height), method))
    top, left = round((full_height - 40) / 2), round((full_width - 40) / 2)
    reference = whole[top : top + 40, left : left + 40]
    difference = np.abs(ours - reference)
    overshoots = interpolation in ("bicubic", "lanczos")
    assert difference.max() <= (2 if overshoots else 1)
    assert (difference > 1).mean() < 0.001


# -- Keras ---------------------------------------------------------------------


def weights(length: int, resized: int) -> np.ndarray:
    """Share of each pixel in each resized one, as `tf.image.resize` computes them.

    Its default: the two nearest pixels, at half-pixel centres, whatever the scale.
    """
    shares = np.zeros((resized, length))
    for position in range(resized):
        at = (position + 0.5) * length / resized - 0.5
        before = math.floor(at)
        for pixel, share in ((before, 1 - (at - before)), (before + 1, at - before)):
            shares[position, min(max(pixel, 0), length - 1)] += share
    return shares


def tf_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`image_dataset_from_directory(image_size=(height, width))`; it gives floats."""
    rows = np.einsum("yr,rcd->ycd", weights(pixels.shape[0], height), pixels)
    return np.einsum("xc,ycd->yxd", weights(pixels.shape[1], width), rows)


def smart_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same with `crop_to_aspect_ratio=True`."""
    full_height, full_width = pixels.shape[:2]
    part_height = max(min(full_height, int(float(full_width * height) / width)), 1)
    part_width = max(min(full_width, int(float(full_height * width) / height)), 1)
    top = int(float(full_height - part_height) / 2)
    left = int(float(full_width - part_width) / 2)
    part = pixels[top : top + part_height, left : left + part_width]
    return tf_resize(part, height, width)


def load_img(
    image: Image.Image, height: int, width: int, interpolation: str, keep: bool
) -> np.ndarray:
    """`load_img(target_size=(height, width))` with `keep_aspect_ratio=keep`.

    It resizes with Pillow, by default "nearest".
    """
    box = None
    if keep:
        part_height = min(image.height, image.width * height // width)
        part_width = min(image.width, image.height * width // height)
        top = (image.height - part_height) // 2
        left = (image.width - part_width) // 2
        box = (left, top, left + part_width, top + part_height)
    method = Image.Resampling(INTERPOLATIONS[interpolation])
    return np.asarray(image.resize((width, height), method, box=box))


@pytest.mark.parametrize("size", [(96, 96), (60, 100), (240, 350)])
@pytest.mark.parametrize("crops", [False, True])
def test_image_dataset_from_directory_of_keras(
    size: tuple[int, int], crops: bool, photographs: list[np.ndarray]
) -> None:
    record = Preprocessing(
        crop_size=size,
        resize="crop_to_aspect_ratio" if crops else "exact",
        antialias=False,
    )
    noise = np.random.default_rng(0).integers(0, 256, (151, 333, 3), np.uint8)
    for pixels in (*photographs, noise, noise[:1, :1], noise[:, :1]):
        found = record.apply(Image.fromarray(pixels))
        expected = (smart_resize if crops else tf_resize)(pixels, *size)
        assert np.abs(found - expected).max() <= 0.51  # rounded to whole levels
    antialiased = replace(record, antialias=True).apply(Image.fromarray(noise))
    if size[0] < 151:
        assert (
            np.abs(antialiased.astype(int) - record.apply(Image.fromarray(noise))).max()
            > 50
        )


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("keep", [False, True])
def test_load_img_of_keras(
    interpolation: str, keep: bool, photographs: list[np.ndarray]
) -> None:
    record = Preprocessing(
        crop_size=(60, 100),
        resize="crop_to_aspect_ratio" if keep else "exact",
        interpolation=interpolation,
    )
    for pixels in photographs:
        image = Image.fromarray(pixels)
        expected = load_img(image, 60, 100, interpolation, keep).astype(int)
        difference = np.abs(record.apply(image) - expected)
        if (
            interpolation == "bicubic"
        ):  # Pillow's order of passes depends on its version
            assert (difference > 1).mean() < 0.01
        else:
            assert difference.max() == 0


def test_crops_without_antialiasing(photographs: list[np.ndarray]) -> None:
    image = Image.fromarray(photographs[2])
    record = Preprocessing(crop_size=(40, 50), resize_size=60, antialias=False)
    height, width = record.resized_size(image.height, image.width)
    whole = tf_resize(np.asarray(image), height, width)
    top, left = record.crop_corner(height, width)
    corners = [(0, 0), (0, width - 50), (height - 40, 0), (height - 40, width - 50)]
    crops = record.apply_five(image)
    for crop, (y, x) in zip(crops, [*corners, (top, left)], strict=True):
        assert np.abs(crop - whole[y : y + 40, x : x + 50]).max() <= 0.51
    np.testing.assert_array_equal(record.apply(image), crops[4])
    padded = replace(record, crop_size=(100, 400))
    top, left = padded.crop_corner(height, width)
    inside = padded.apply(image)[-top : height - top, -left : width - left]
    assert np.abs(inside - whole).max() <= 0.51
    assert padded.apply(image).sum() == inside.sum()  # black around it


@pytest.mark.parametrize(
    "values", [{"antialias": False}, {"resize": "crop_to_aspect_ratio"}]
)
def test_jpegs_are_decoded_in_full_where_single_pixels_count(values: dict) -> None:
    record = Preprocessing(**({"crop_size": (20, 20), "resize": "exact"} | values))
    file = io.BytesIO()
    Image.new("RGB", (640, 640)).save(file, "JPEG")
    found = read_rgb(file.getvalue(), 0, min_decode_size=record.min_decode_size)
    assert found.size == (640, 640)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_large_jpegs_are_decoded_smaller_without_a_visible_difference(
    orientation: int, tmp_path: Path
) -> None:
    from sklearn.datasets import load_sample_images

    record = Preprocessing(crop_size=(96, 96), resize_size=104)
    path = tmp_path / "large.jpg"
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels).resize((1280, 864), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, quality=92, exif=exif)
        whole = read_rgb(str(path), 0)
        small = read_rgb(str(path), 0, min_decode_size=record.min_decode_size)
        # The largest factor that leaves 2 * 104 pixels along the shorter side.
        assert small.size == (whole.width // 4, whole.height // 4)
        difference = record.apply(small).astype(int) - record.apply(whole)
        assert np.abs(difference).mean() < 1
        assert np.abs(difference).max() <= 16


@pytest.mark.parametrize(
    ("size", "smaller"),
    [
        ((832, 832), (208, 208)),  # exactly twice the target
        ((830, 832), (415, 416)),  # 1/4 would be too small, with fractions of a pixel
        ((1281, 864), (1281, 864)),  # fractions of a pixel
        ((400, 400), (400, 400)),
    ],
)
def test_which_jpegs_are_decoded_smaller(
    size: tuple[int, int], smaller: tuple[int, int]
) -> None:
    record = Preprocessing(crop_size=(96, 96), resize_size=104)
    for format, expected in (("JPEG", smaller), ("PNG", size)):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, format)
        content = file.getvalue()
        assert (
            read_rgb(content, 0, min_decode_size=record.min_decode_size).size
            == expected
        )


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_squash_and_exact(interpolation: str, photographs: list[np.ndarray]) -> None:
    image = Image.fromarray(photographs[2])
    method = Image.Resampling(INTERPOLATIONS[interpolation])
    exact = Preprocessing(
        crop_size=(40, 60), resize="exact", interpolation=interpolation
    )
    rows = image
    if interpolation in ("bicubic", "lanczos"):
        rows = image.resize((60, image.height), method)
    np.testing.assert_array_equal(
        exact.apply(image), np.asarray(rows.resize((60, 40), method))
    )
    squash = Preprocessing(
        crop_size=(40, 40),
        resize="squash",
        resize_size=(50, 60),
        interpolation=interpolation,
    )
    whole = image.resize((60, 50), method).crop((10, 5, 50, 45))
    difference = squash.apply(image).astype(int) - np.asarray(whole)
    assert np.abs(difference).max() <= 1


def test_resize_none_crops_and_pads(photographs: list[np.ndarray]) -> None:
    pixels = photographs[0][:50, :70]
    out = Preprocessing(crop_size=(60, 60), resize="none").apply(
        Image.fromarray(pixels)
    )
    np.testing.assert_array_equal(out[5:55], pixels[:, 5:65])
    assert not out[:5].any()
    assert not out[55:].any()


@pytest.mark.parametrize(
    ("rounding", "above"), [("torchvision", 1), ("huggingface", 2)]
)
def test_padding_is_rounded_like_the_corner(rounding: str, above: int) -> None:
    """For three missing rows, torchvision adds one above, transformers two."""
    record = Preprocessing(crop_size=(10, 10), resize="none", rounding=rounding)
    image = Image.new("RGB", (7, 7), "white")
    inside = record.apply(image).any(axis=2)
    assert inside[above : above + 7, above : above + 7].all()
    assert inside.sum() == 49
    np.testing.assert_array_equal(record.apply_five(image)[4].any(axis=2), inside)


@pytest.mark.parametrize("interpolation", ["nearest", "box"])
def test_discontinuous_filters_get_the_full_size_jpeg(
    interpolation: str, photographs: list[np.ndarray]
) -> None:
    record = Preprocessing(
        crop_size=(20, 20), resize="exact", interpolation=interpolation
    )
    file = io.BytesIO()
    Image.fromarray(photographs[0][:160, :160]).save(file, "JPEG")
    found = record.apply(
        read_rgb(file.getvalue(), 0, min_decode_size=record.min_decode_size)
    )
    whole = record.apply(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(found, whole)


def test_rounding_conventions() -> None:
    def corner(rounding: str, width: int) -> tuple[tuple[int, int], int]:
        record = Preprocessing(crop_size=(10, 10), rounding=rounding, resize_size=10)
        return record.resized_size(100, width), record._corner(3)

    assert corner("torchvision", 178) == ((10, 17), 2)
    assert corner("huggingface", 178) == ((10, 17), 1)
    assert corner("nearest", 178) == ((10, 18), 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_size": (0, 4)}, "crop_size.*at least one pixel.*(0, 4)"),
        ({"crop_size": "224"}, "crop_size.*'224'"),
        ({"resize": "fit"}, r"resize: expected one of \['shorter'.*'fit'"),
        ({"interpolation": "area"}, "interpolation.*'bilinear'.*'area'"),
        ({"channels": "RBG"}, "channels.*'RBG'"),
        ({"layout": "CHW"}, "layout.*'CHW'"),
        ({"rounding": "up"}, "rounding.*'up'"),
        ({"mean": (1, 2)}, r"mean: expected 3 finite numbers, got \(1, 2\)"),
        ({"mean": (1, 2, float("nan"))}, "mean: expected 3 finite"),
        ({"channels": "GRAY", "mean": ([1], [2])}, "mean: expected 1 finite"),
        ({"scale": 10**400}, "scale: expected a number other than 0"),
        ({"std": (1, 0, 1)}, "std: expected no zero"),
        ({"scale": 0}, "scale: expected a number other than 0"),
        ({"resize_size": (4, 4)}, "resize_size: expected an int"),
        ({"resize_size": -1}, "resize_size: expected an int from 1"),
        ({"resize": "exact", "resize_size": 4}, "resize_size: expected None"),
        (
            {"resize": "crop_to_aspect_ratio", "resize_size": 4},
            "resize_size: expected None with resize='crop_to_aspect_ratio'",
        ),
        ({"antialias": 0}, "antialias: expected True or False, got 0"),
        (
            {"antialias": False, "interpolation": "bicubic"},
            "antialias: expected True with interpolation='bicubic'",
        ),
        ({"color": "sRGB"}, r"color: expected one of \['ignore', 'srgb'\], got 'sRGB'"),
    ],
)
def test_invalid_parameters(values: dict, message: str) -> None:
    with pytest.raises(PreprocessingError, match=message):
        Preprocessing(**({"crop_size": (32, 32)} | values))


def test_dict_and_metadata_round_trip() -> None:
    record = Preprocessing(
        crop_size=(224, 192),
        resize="squash",
        resize_size=(256, 256),
        interpolation="bicubic",
        scale=1 / 255,
        mean=(0.1, 0.2, 0.3),
        channels="BGR",
        layout="NHWC",
    )
    assert Preprocessing.from_dict(record.to_dict()) == record
    assert Preprocessing.from_metadata(record.to_metadata()) == record
    assert Preprocessing.from_metadata({"author": "me"}) is None
    assert hash(record) == hash(Preprocessing.from_dict(record.to_dict()))
    with pytest.raises(PreprocessingError, match="'size'.*Expected crop_size"):
        Preprocessing.from_dict({"crop_size": (3, 3), "size": 3})
    with pytest.raises(PreprocessingError, match="crop_size is missing"):
        Preprocessing.from_dict({})
    with pytest.raises(PreprocessingError, match="not JSON"):
        Preprocessing.from_metadata({"sk_cnncodes.preprocessing": "{"})


def test_gray_takes_one_value() -> None:
    record = Preprocessing(crop_size=(28, 28), channels="GRAY", scale=1 / 255)
    assert record.n_channels == 1
    assert record.mean == (0.0,)
    assert record.input_shape == (1, 1, 28, 28)
