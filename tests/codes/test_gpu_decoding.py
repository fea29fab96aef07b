"""`decoder="gpu"`: rows, errors and caches, with a stand-in for the GPU."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import (
    CNNCodeTransformer,
    CodeCache,
    DeviceError,
    ExportError,
    ImageError,
    Preprocessing,
    load_backbone,
)
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.codes import plan, sessions, workers
from sk_cnncodes.codes.preparation import Preparation
from sk_cnncodes.codes.sessions import GpuViews, open_gpu_views
from sk_cnncodes.engines import jpeg_decoder
from sk_cnncodes.engines.devices import count_gpus
from sk_cnncodes.engines.session_table import SessionTable
from sk_cnncodes.images.decode import plain_jpeg, read_rgb
from sk_cnncodes.images.views import take_views
from tests.engines import pillow_codec

VALUES = Preprocessing((56, 56), resize_size=64)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> GpuViews:
    """What decodes in place of a GPU, here and in each `CNNCodeTransformer`."""
    monkeypatch.setattr(jpeg_decoder, "_import_codec", lambda: pillow_codec)
    monkeypatch.setattr(pillow_codec.Decoder, "n_given", 0)
    opened = open_gpu_views(None)
    assert opened.resizer is not None
    monkeypatch.setattr(sessions, "_GPU_VIEWS", SessionTable())
    monkeypatch.setattr(sessions, "open_gpu_views", lambda gpu: opened)
    monkeypatch.setattr(plan, "check_gpu_decoding", lambda: None)
    pillow_codec.Decoder.n_given = 0
    return opened


@pytest.fixture(scope="module")
def large(photographs: list[np.ndarray]) -> list[Image.Image]:
    """Photographs of 1.3 megapixels, upright and lying."""
    sizes = [(1280, 1024), (1025, 1283)]
    return [
        Image.fromarray(pixels).resize(sizes[number % 2], Image.Resampling.BICUBIC)
        for number, pixels in enumerate(photographs)
    ]


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


def n_decoded() -> int:
    return pillow_codec.Decoder.n_given


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("views", ["center", "ten_crop"])
def test_pixels_are_those_of_the_full_size(
    on_gpu: GpuViews, large: list[Image.Image], orientation: int, views: str
) -> None:
    content = with_orientation(large[orientation % 2], orientation)
    prepare = Preparation(VALUES, views, None, on_gpu.take).prepare
    outcome, pixels = prepare(0, content, None)
    assert outcome.fault is None
    assert pixels is not None
    expected = take_views(read_rgb(content, 0), VALUES, views)
    assert np.abs(pixels.astype(int) - expected).max() <= 2
    assert n_decoded() == 1


def test_which_files_the_gpu_decodes(large: list[Image.Image]) -> None:
    image = large[0]
    decoded = [encoded(image), encoded(image.convert("L"))]
    decoded += [encoded(image, subsampling=name) for name in ("4:4:4", "4:2:2")]
    decoded += [encoded(image) + b"more data", encoded(image, comment=b"x" * 9999)]
    profile = encoded(image, icc_profile=b"a profile" * 99)
    for content in [*decoded, profile]:
        found = plain_jpeg(content, None)
        assert found is not None
        assert found.size == (1024, 1280)
    not_decoded = [
        encoded(image, "PNG"),
        encoded(image, "WEBP"),
        encoded(image, progressive=True),
        encoded(image.convert("CMYK")),
        encoded(image, keep_rgb=True),
        encoded(image.resize((640, 480))),
        encoded(image)[:-2000],
        with_orientation(image, 6)[:300],
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff",
        b"",
    ]
    for content in not_decoded:
        assert plain_jpeg(content, None) is None
    assert plain_jpeg(profile, None, "srgb") is None
    assert plain_jpeg(decoded[0], None, "srgb") is not None
    # At full size it takes 8 bytes a pixel, half of what the limit allows.
    assert plain_jpeg(decoded[0], 1280 * 1024 // 2) is not None
    assert plain_jpeg(decoded[0], 1280 * 1024 // 2 - 1) is None


def test_a_truncated_file_with_a_thumbnail_is_not_decoded(
    large: list[Image.Image],
) -> None:
    exif = b"Exif\0\0" + encoded(large[0].resize((64, 64)))
    content = encoded(large[0], exif=exif)
    assert plain_jpeg(content, None) is not None
    assert plain_jpeg(content[:-2000], None) is None


@pytest.mark.parametrize("n_jobs", [1, 5])
@pytest.mark.parametrize("cached", [False, True])
def test_rows_of_all_kinds(
    on_gpu: GpuViews,
    large: list[Image.Image],
    photograph_files: list[Path],
    tmp_path: Path,
    n_jobs: int,
    cached: bool,
) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(len(large))]
    for number, (path, image) in enumerate(zip(paths, large, strict=True)):
        path.write_bytes(with_orientation(image, number % 8 + 1))
    refused = encoded(large[2], comment=pillow_codec.Decoder.refused)
    gray = encoded(large[1].convert("L"))
    others = [encoded(large[3], progressive=True), large[4], np.asarray(large[5])]
    images = [*paths, refused, gray, *others, *photograph_files, encoded(large[6])]
    cache = CodeCache() if cached else None
    transformer = CNNCodeTransformer(decoder="gpu", cache=cache, n_jobs=n_jobs)
    codes = transformer.fit_transform(images)
    # Also where Pillow decodes what the GPU refuses: these are decoded in full.
    arrays = [*(np.asarray(read_rgb(image, 0)) for image in images[: len(paths) + 2])]
    expected = CNNCodeTransformer().transform(
        [
            *arrays,
            *others,
            *photograph_files,
            np.asarray(Image.open(io.BytesIO(images[-1]))),
        ]
    )
    close = (codes * expected).sum(1)
    close /= np.linalg.norm(codes, axis=1) * np.linalg.norm(expected, axis=1)
    exact = [len(paths), *range(len(paths) + 3, len(images) - 1)]
    assert close.min() > 0.9995
    np.testing.assert_allclose(codes[exact], expected[exact], rtol=1e-4, atol=1e-4)
    assert n_decoded() >= len(paths) + 2


def test_errors_are_those_of_pillow(
    on_gpu: GpuViews, large: list[Image.Image], tmp_path: Path
) -> None:
    good = encoded(large[0])
    for content in (good[: len(good) // 2], good[:500], b"no image"):
        path = tmp_path / "bad.jpg"
        path.write_bytes(content)
        texts = set()
        for decoder in ("pillow", "gpu"):
            with pytest.raises(ImageError) as caught:
                CNNCodeTransformer(decoder=decoder).transform([good, path])
            assert caught.value.index == 1
            texts.add(str(caught.value))
        assert len(texts) == 1
    with pytest.raises(ImageError, match="pixels"):
        CNNCodeTransformer(decoder="gpu", max_pixels=1000).transform([good])


def test_codes_are_cached_apart(
    on_gpu: GpuViews, large: list[Image.Image], tmp_path: Path
) -> None:
    cache = CodeCache(tmp_path / "codes.sqlite3")
    images = [encoded(large[0], quality=80)]
    pillow = CNNCodeTransformer(cache=cache).fit_transform(images)
    gpu = CNNCodeTransformer(cache=cache, decoder="gpu").fit_transform(images)
    assert n_decoded() == 1
    assert not np.array_equal(gpu, pillow)
    again = CNNCodeTransformer(cache=cache, decoder="gpu").transform(images)
    np.testing.assert_array_equal(again, gpu)
    assert n_decoded() == 1
    for decoder in ("auto", "pillow"):
        found = CNNCodeTransformer(cache=cache, decoder=decoder).transform(images)
        np.testing.assert_array_equal(found, pillow)


def test_only_the_gpu_changes_a_digest() -> None:
    spec = CodeSpec("0" * 64, "features", "avg", None, VALUES)
    gpu = CodeSpec("0" * 64, "features", "avg", None, VALUES, decoder="gpu")
    assert (
        spec.digest
        == "1ec81d1bc994a9ddb16914221d47b2c83cec0cbbeca391c5245f4100924985cb"
    )
    assert gpu.digest != spec.digest


def test_other_layers_of_a_pass_have_the_same_decoder(
    on_gpu: GpuViews, large: list[Image.Image]
) -> None:
    images = [encoded(large[0], quality=70)]
    cache = CodeCache()
    CNNCodeTransformer(decoder="gpu", cache=cache, cache_layers=[-1, -2]).fit_transform(
        images
    )
    before = n_decoded()
    earlier = CNNCodeTransformer(decoder="gpu", cache=cache, layer=-2)
    earlier.fit_transform(images)
    assert n_decoded() == before
    CNNCodeTransformer(cache=cache, layer=-2).fit_transform(images)
    assert n_decoded() == before


def test_the_decoder_is_part_of_a_fitted_transformer(
    on_gpu: GpuViews, large: list[Image.Image]
) -> None:
    images = [encoded(large[0])]
    transformer = CNNCodeTransformer(decoder="gpu", store_backbone=True).fit(images)
    copied = pickle.loads(pickle.dumps(transformer))
    assert copied.decoder == "gpu"
    np.testing.assert_array_equal(
        copied.set_params(cache=None).transform(images), transformer.transform(images)
    )
    spec = copied.fitted_specs()[1][0]
    assert spec.decoder == "gpu"
    pillow = pickle.loads(
        pickle.dumps(CNNCodeTransformer(store_backbone=True).fit(images))
    )
    assert "decoder" not in pillow._stored_graph["spec"]
    assert "decoder" not in pillow._stored_graph["parameters"]


def test_an_export_of_gpu_codes_is_refused(
    on_gpu: GpuViews, large: list[Image.Image], tmp_path: Path
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from sk_cnncodes import to_onnx

    pytest.importorskip("skl2onnx")
    codes = CNNCodeTransformer(decoder="gpu")
    images = [encoded(image) for image in large[:4]]
    model = make_pipeline(codes, LogisticRegression()).fit(images, [0, 1, 0, 1])
    with pytest.raises(ExportError, match=r"decoder='gpu'.*Expected decoder='auto'"):
        to_onnx(model, tmp_path / "model.onnx")


def test_explain_shows_what_the_gpu_decoded(
    on_gpu: GpuViews, large: list[Image.Image]
) -> None:
    content = with_orientation(large[0], 6)
    transformer = CNNCodeTransformer(decoder="gpu").fit([content])
    found = transformer.explain(content)
    assert found.decode_scale == 1
    assert "on the GPU" in str(found)
    values = load_backbone("cnncodes-mini").preprocessing
    expected = values.apply(read_rgb(content, 0))
    assert np.abs(found.crop.astype(int) - expected).max() <= 2
    assert "GPU (" not in str(transformer.explain(large[0]))


def test_resize_by_pillow_if_it_fails_on_the_gpu(
    on_gpu: GpuViews, large: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(gpu: int | None) -> Any:
        raise DeviceError("no CUDA")

    monkeypatch.setattr(sessions, "MatrixResizer", broken)
    opened = open_gpu_views(None)
    assert opened.resizer is None
    content = with_orientation(large[0], 5)
    jpeg = plain_jpeg(content, None)
    assert jpeg is not None
    expected = take_views(read_rgb(content, 0), VALUES, "flip")
    np.testing.assert_array_equal(opened.take(jpeg, VALUES, "flip"), expected)


def test_a_decoder_with_other_pixels_is_refused(
    on_gpu: GpuViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = pillow_codec.Decoder._decode

    def swapped(self: Any, content: bytes) -> Any:
        decoded = decode(self, content)
        assert decoded is not None
        return pillow_codec.Decoded(decoded.cpu()[:, :, ::-1])

    monkeypatch.setattr(pillow_codec.Decoder, "_decode", swapped)
    with pytest.raises(DeviceError, match=r"pixels differ.*by \d+ levels.*'pillow'"):
        open_gpu_views(None)


def test_a_decoder_that_decodes_nothing_is_refused(
    on_gpu: GpuViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pillow_codec.Decoder, "_decode", lambda self, content: None)
    with pytest.raises(DeviceError, match="it decoded no file"):
        open_gpu_views(None)


def test_a_wrong_decoder_is_an_error(photograph_files: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"decoder: expected one of.*got 'cpu'"):
        CNNCodeTransformer(decoder="cpu").fit(photograph_files)


def test_without_a_gpu_it_is_an_error(photograph_files: list[Path]) -> None:
    if count_gpus():
        pytest.skip("there is one")
    transformer = CNNCodeTransformer(decoder="gpu")
    for method in (transformer.fit, transformer.transform):
        with pytest.raises(DeviceError, match=r"decoder='gpu'.*no GPU"):
            method(photograph_files)


def test_no_process_decodes_beside_a_gpu(on_gpu: GpuViews) -> None:
    elements = workers.Elements([np.zeros((8, 8, 3), np.uint8)] * 2000)
    spec = CodeSpec("0" * 64, "features", "avg", None, VALUES, decoder="gpu")

    class OnGpu:
        n_concurrent_runs, on_cpu = 2, False

        def run(self, images: np.ndarray) -> list[np.ndarray]:
            return [images.mean((1, 2)).astype(np.float32)]

    with workers.Workers(elements, spec, 4, stop_at_fault=True, decoding_gpu=0) as pool:
        items = ((index, None) for index in range(2000))
        n_images = sum(len(batch.outcomes) for batch in pool.run(items, OnGpu(), 64))
        assert pool._processes is None
    assert n_images == 2000


# -- on a GPU ------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(count_gpus() == 0, reason="needs a GPU")
def test_a_real_gpu(large: list[Image.Image]) -> None:
    """Prints the largest difference from Pillow's pixels, before and after a resize."""
    pytest.importorskip("nvidia.nvimgcodec")
    opened = sessions.gpu_views(0)
    print(f"\n{opened.engines}; resized on the GPU: {opened.resizer is not None}")
    files = [with_orientation(image, n % 8 + 1) for n, image in enumerate(large)]
    files += [encoded(large[0], subsampling=name) for name in ("4:4:4", "4:2:2")]
    files += [encoded(large[1].convert("L"))]
    largest, larger = 0, 0
    for content in files:
        jpeg = plain_jpeg(content, None)
        assert jpeg is not None
        image = opened._decoder.decode(content)
        assert image is not None
        pixels = np.asarray(image.cpu()).astype(int)
        stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        largest = max(largest, int(np.abs(pixels - stored).max()))
        views = opened.take(jpeg, VALUES, "flip")
        assert views is not None
        expected = take_views(read_rgb(content, 0), VALUES, "flip")
        larger = max(larger, int(np.abs(views.astype(int) - expected).max()))
    print(f"largest difference: {largest} levels of the pixels, {larger} of the crops")
    assert larger <= 8
    gpu = CNNCodeTransformer(decoder="gpu", cache=None).fit_transform(files)
    full = [np.asarray(read_rgb(content, 0)) for content in files]
    for expected_codes, bound in (
        (CNNCodeTransformer(cache=None).transform(full), 0.9995),
        (CNNCodeTransformer(cache=None).transform(files), 0.995),
    ):
        cosine = (gpu * expected_codes).sum(1) / (
            np.linalg.norm(gpu, axis=1) * np.linalg.norm(expected_codes, axis=1)
        )
        print(f"smallest cosine: {cosine.min():.5f}")
        assert cosine.min() >= bound
