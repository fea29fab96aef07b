"""Views against torchvision's documented crops, and explicitly averaged codes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sk_cnncodes import CNNCodeTransformer, Preprocessing, PreprocessingError
from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.images import decode, safe_open
from sk_cnncodes.images.views import VIEWS, take_views
from tests import networks


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, plain: Preprocessing) -> str:
    model = networks.resnet()
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return networks.save(model, tmp_path_factory.mktemp("net") / "net.onnx")


def torchvision_five(image: Image.Image, size: int, crop: int) -> list[np.ndarray]:
    """Resize(size) and FiveCrop(crop) as documented by torchvision."""
    short = min(image.size)
    scaled = (int(size * image.width / short), int(size * image.height / short))
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    width, height = image.size
    left, top = round((width - crop) / 2.0), round((height - crop) / 2.0)
    boxes = [
        (0, 0, crop, crop),
        (width - crop, 0, width, crop),
        (0, height - crop, crop, height),
        (width - crop, height - crop, width, height),
        (left, top, left + crop, top + crop),
    ]
    return [np.asarray(image.crop(box)) for box in boxes]


def test_crops_match_torchvision(
    photographs: list[np.ndarray], plain: Preprocessing
) -> None:
    for pixels in photographs:
        image = Image.fromarray(pixels)
        five = np.stack(torchvision_five(image, 36, 32))
        np.testing.assert_array_equal(take_views(image, plain, "five_crop"), five)
        ten = take_views(image, plain, "ten_crop")
        np.testing.assert_array_equal(ten[:5], five)
        np.testing.assert_array_equal(ten[5:], five[:, :, ::-1])
        flip = take_views(image, plain, "flip")
        np.testing.assert_array_equal(flip[0], plain.apply(image))
        np.testing.assert_array_equal(flip[1], flip[0][:, ::-1])


def test_image_smaller_than_the_crop_is_padded_with_black() -> None:
    preprocessing = Preprocessing(crop_size=(32, 32), resize="none")
    image = Image.fromarray(np.full((20, 40, 3), 200, np.uint8))
    views = take_views(image, preprocessing, "five_crop")
    assert views.shape == (5, 32, 32, 3)
    for view in views:
        np.testing.assert_array_equal(view, preprocessing.apply(image))


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("norm", [None, "l2"])
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_codes_are_averages(
    views: str,
    norm: str | None,
    n_jobs: int,
    net: str,
    plain: Preprocessing,
    photographs: list[np.ndarray],
) -> None:
    crops = [take_views(Image.fromarray(p), plain, views) for p in photographs]
    without_resize = Preprocessing(
        crop_size=(32, 32), resize="none", scale=1 / 127.5, mean=(1, 1, 1)
    )
    one_by_one = CNNCodeTransformer(net, preprocessing=without_resize)
    expected = np.stack([one_by_one.transform(list(c)).mean(0) for c in crops])
    if norm == "l2":
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    codes = CNNCodeTransformer(net, views=views, norm=norm, n_jobs=n_jobs)
    np.testing.assert_allclose(
        codes.transform(photographs), expected, rtol=1e-4, atol=1e-6
    )


def test_views_are_decoded_once_and_cached_separately(
    net: str, photograph_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    open_image = safe_open.open_image

    def counting(content: bytes, max_pixels: int | None) -> object:
        opened.append(len(content))
        return open_image(content, max_pixels)

    monkeypatch.setattr(decode, "open_image", counting)
    results = {}
    for views in VIEWS:
        opened.clear()
        codes = CNNCodeTransformer(net, views=views)
        results[views] = codes.transform(photograph_files)
        assert len(opened) == len(photograph_files)
        codes.transform(photograph_files)
        assert len(opened) == len(photograph_files)
    assert not np.allclose(results["flip"], results["center"], rtol=1e-3)
    assert not np.allclose(results["ten_crop"], results["five_crop"], rtol=1e-3)


def test_identical_crops_are_refused(net: str) -> None:
    exact = Preprocessing(crop_size=(32, 32), resize="exact")
    X = np.zeros((1, 9, 9, 3), np.uint8)
    for views in ("five_crop", "ten_crop"):
        with pytest.raises(PreprocessingError, match="all five crops.*resize_size"):
            CNNCodeTransformer(net, preprocessing=exact, views=views).fit(X)
    CNNCodeTransformer(net, preprocessing=exact, views="flip").fit(X)
    with pytest.raises(ValueError, match="views: expected one of.*'ten_crop'"):
        CNNCodeTransformer(net, views="nine").fit(X)


def test_stored_backbone_keeps_its_views(
    net: str, photographs: list[np.ndarray]
) -> None:
    codes = CNNCodeTransformer(net, views="ten_crop", norm="l2", store_backbone=True)
    expected = codes.fit_transform(photographs)
    loaded = pickle.loads(pickle.dumps(codes)).set_params(cache=None)
    np.testing.assert_allclose(loaded.transform(photographs), expected, rtol=1e-5)


def test_views_cannot_be_exported(net: str, photographs: list[np.ndarray]) -> None:
    pytest.importorskip("skl2onnx")
    from sk_cnncodes import to_onnx

    codes = CNNCodeTransformer(net, views="flip")
    model = make_pipeline(codes, LogisticRegression()).fit(photographs, [0, 1] * 4)
    with pytest.raises(ExportError, match="views='flip'.*Expected views='center'"):
        to_onnx(model)


@pytest.mark.parametrize(
    "size", [(220, 330), (40, 900), (900, 40), (20, 60), (60, 20), (20, 30)]
)
@pytest.mark.parametrize("resize", ["shorter", "none"])
def test_crops_without_resizing_the_whole_image(
    size: tuple[int, int],
    resize: str,
    photographs: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resize_size = None if resize == "none" else 40
    five = Preprocessing(crop_size=(32, 32), resize=resize, resize_size=resize_size)
    image = Image.fromarray(photographs[0]).resize(size[::-1])
    whole = five.apply_five(image)
    monkeypatch.setattr("sk_cnncodes.images.resizing._MAX_RESIZED_PIXELS", 0)
    parts = five.apply_five(image)
    assert parts.shape == whole.shape
    assert np.abs(parts.astype(int) - whole).max() <= 1


def test_crops_of_an_image_of_one_row() -> None:
    five = Preprocessing(crop_size=(224, 224), resize_size=256)
    line = np.arange(1_000_000, dtype=np.uint8)[None]
    crops = five.apply_five(Image.fromarray(line).convert("RGB"))
    assert crops.shape == (5, 224, 224, 3)
