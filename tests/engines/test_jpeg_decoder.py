"""Decoding for several threads at once, by a stand-in or by nvImageCodec's CPU code."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from sk_cnncodes import DeviceError
from sk_cnncodes.engines import jpeg_decoder
from sk_cnncodes.engines.devices import count_gpus
from sk_cnncodes.engines.jpeg_decoder import JpegDecoder
from tests.engines import pillow_codec


@pytest.fixture(params=["stand-in", "nvimgcodec"])
def codec(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> ModuleType | None:
    """The stand-in; None for the real one, if it is installed."""
    if request.param == "nvimgcodec":
        pytest.importorskip("nvidia.nvimgcodec")
        return None
    monkeypatch.setattr(jpeg_decoder, "_import_codec", lambda: pillow_codec)
    return pillow_codec


def jpeg(number: int, comment: bytes = b"") -> bytes:
    """A file of a colour and a size of its own."""
    color = (number * 37 % 256, number * 91 % 256, 128)
    file = io.BytesIO()
    image = Image.new("RGB", (40 + number, 30), color)
    image.save(file, "JPEG", quality=95, comment=comment)
    return file.getvalue()


def check(pixels: np.ndarray | None, number: int) -> None:
    assert pixels is not None
    assert pixels.shape == (30, 40 + number, 3)
    expected = np.array([number * 37 % 256, number * 91 % 256, 128])
    assert np.abs(pixels.astype(int) - expected).max() <= 3


def test_each_thread_gets_its_image(codec: ModuleType | None) -> None:
    decoder = JpegDecoder(None)
    files = [jpeg(number) for number in range(200)]
    with ThreadPoolExecutor(24) as threads:
        decoded = list(threads.map(decoder.decode, files))
    for number, pixels in enumerate(decoded):
        check(pixels, number)


def test_what_is_refused_is_none_and_nothing_else(codec: ModuleType | None) -> None:
    decoder = JpegDecoder(None)
    kinds = [b"", pillow_codec.Decoder.refused, pillow_codec.Decoder.fatal]
    files = [jpeg(number, kinds[number % 3]) for number in range(60)]
    if codec is None:
        files = [f if n % 3 == 0 else f[:150] for n, f in enumerate(files)]
    with ThreadPoolExecutor(12) as threads:
        decoded = list(threads.map(decoder.decode, files))
    for number, pixels in enumerate(decoded):
        if number % 3 == 0:
            check(pixels, number)
        else:
            assert pixels is None


def test_no_image_at_all(codec: ModuleType | None) -> None:
    decoder = JpegDecoder(None)
    for content in (b"", b"\xff\xd8\xff", b"GIF89a", jpeg(1)[:100]):
        assert decoder.decode(content) is None


def test_gray_becomes_rgb(codec: ModuleType | None) -> None:
    file = io.BytesIO()
    Image.new("L", (50, 20), 77).save(file, "JPEG")
    pixels = JpegDecoder(None).decode(file.getvalue())
    assert pixels.shape == (20, 50, 3)
    assert np.abs(pixels.astype(int) - 77).max() <= 1


def test_the_stored_orientation_is_left(codec: ModuleType | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (50, 20)).save(file, "JPEG", exif=exif)
    assert JpegDecoder(None).decode(file.getvalue()).shape == (20, 50, 3)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if not count_gpus():
        with pytest.raises(DeviceError, match=r"reports no GPU.*'auto' or 'pillow'"):
            jpeg_decoder.check_gpu_decoding()
    monkeypatch.setattr(jpeg_decoder, "count_gpus", lambda: 1)
    monkeypatch.setattr(jpeg_decoder, "has_nvimgcodec", lambda: False)
    with pytest.raises(DeviceError, match=r"pip install 'sk-cnncodes\[nvimgcodec\]'"):
        jpeg_decoder.check_gpu_decoding()

    def missing() -> ModuleType:
        raise ImportError("libcuda.so: no such file")

    monkeypatch.setattr(jpeg_decoder, "_import_codec", missing)
    with pytest.raises(DeviceError, match=r"no such file.*sk-cnncodes\[nvimgcodec\]"):
        JpegDecoder(0)


def test_nvimgcodec_without_a_gpu() -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    if count_gpus():
        pytest.skip("there is one")
    with pytest.raises(DeviceError, match="does not work here"):
        JpegDecoder(0)
