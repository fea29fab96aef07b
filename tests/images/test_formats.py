"""Which formats are recognised, and what is said of those that nothing reads."""

from __future__ import annotations

import re
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from sk_cnncodes import ImageError, LabelledImages, find_labelled_images
from sk_cnncodes.datasets.image_files import find_images
from sk_cnncodes.images import formats
from sk_cnncodes.images.decode import read_image, read_rgb
from sk_cnncodes.images.file_parts import jxl_codestream, jxl_header
from tests.fuzz.image_seeds import encoded, oriented, photographs


@pytest.fixture
def without_readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the extras `heif` and `jxl` were not installed."""
    caches = (formats._reader, formats.image_suffixes, formats.unreadable_suffixes)
    for module in ("pillow_heif", "pillow_jxl.JpegXLImagePlugin"):
        monkeypatch.setitem(sys.modules, module, None)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def branded(content: bytes, major: bytes, *others: bytes) -> bytes:
    """An AVIF or HEIF file with other brands, as many as it had."""
    size = int.from_bytes(content[:4], "big")
    listed = [major, *others, *[b"miaf"] * ((size - 16) // 4)][: (size - 16) // 4]
    return content[:8] + major + content[12:16] + b"".join(listed) + content[size:]


TASKS = Path("/proc/self/task")  # one entry for each thread
HEIC_BRANDS = struct.pack(">L4s4sL4s4s", 24, b"ftyp", b"mif1", 0, b"mif1", b"heic")


def heic() -> bytes:
    pytest.importorskip("pillow_heif", reason="needs the extra heif")
    return encoded(photographs()[0], "HEIF", quality=95)


# -- what is read ------------------------------------------------------------


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_photographs_of_phones(format: str) -> None:
    if format == "HEIF":
        pytest.importorskip("pillow_heif", reason="needs the extra heif")
    photograph = photographs()[0]
    for mode in ("RGB", "L"):
        stored = photograph.convert(mode)
        found = read_image(encoded(stored, format, quality=95), 0)
        assert found.format == f"{format} {mode}"
        difference = np.asarray(found.rgb, int) - np.asarray(stored.convert("RGB"), int)
        assert np.abs(difference).mean() < 4
    see_through = photograph.convert("RGBA")
    see_through.putalpha(Image.new("L", photograph.size, 0))
    assert (np.asarray(read_rgb(encoded(see_through, format), 0)) > 250).all()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_orientation_is_applied_once(format: str, turn: int) -> None:
    if format == "HEIF":
        pytest.importorskip("pillow_heif", reason="needs the extra heif")
    photograph = photographs()[0]
    exif = oriented(turn)
    as_jpeg = encoded(photograph, "JPEG", quality=95, exif=exif)
    expected = np.asarray(read_rgb(as_jpeg, 0), int)
    content = encoded(photograph, format, quality=95, exif=exif.tobytes())
    found = np.asarray(read_rgb(content, 0), int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 6


def test_shared_brands_are_told_apart_by_the_codec() -> None:
    """AVIF and HEIF files may both call themselves mif1, and list each other's."""
    avif = encoded(photographs()[0], "AVIF")
    expected = np.asarray(read_rgb(avif, 0))
    for brands in ((b"mif1", b"avif"), (b"avif",), (b"mif1", b"avif", b"heic")):
        content = branded(avif, *brands)
        assert read_image(content, 0).format == "AVIF RGB"
        np.testing.assert_array_equal(np.asarray(read_rgb(content, 0)), expected)
    content = heic()
    expected = np.asarray(read_rgb(content, 0))
    for brands in ((b"mif1", b"heic"), (b"mif1",), (b"heix",)):
        found = read_image(branded(content, *brands), 0)
        assert found.format == "HEIF RGB"
        np.testing.assert_array_equal(np.asarray(found.rgb), expected)


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_one_thread_decodes(format: str) -> None:
    """Regression: Pillow's AVIF decoder starts one thread for each core."""
    if format == "HEIF":
        pytest.importorskip("pillow_heif", reason="needs the extra heif")
    if not TASKS.exists():
        pytest.skip("counts threads in /proc")
    large = photographs()[0].resize((1600, 1600))
    content = encoded(large, format)
    before = AvifImagePlugin.DEFAULT_MAX_THREADS
    counts, done = [len([*TASKS.iterdir()])], threading.Event()

    def count() -> None:
        while not done.is_set():
            counts.append(len([*TASKS.iterdir()]))
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    for _ in range(3):
        read_rgb(content, 0)
    done.set()
    counter.join()
    # The counter, and at most one that decodes.
    assert max(counts) <= counts[0] + 2
    assert before == AvifImagePlugin.DEFAULT_MAX_THREADS


def test_pillow_is_left_as_it_is() -> None:
    """The reader of HEIC is not registered in Pillow, for others in the process."""
    before = set(Image.OPEN)
    read_rgb(heic(), 0)
    assert "HEIF" not in set(Image.OPEN) - before


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_limits_hold(format: str) -> None:
    if format == "HEIF":
        pytest.importorskip("pillow_heif", reason="needs the extra heif")
    content = encoded(photographs()[0], format)
    with pytest.raises(ImageError, match=r"image 0 .*56 x 40 pixels.*max_pixels=2239"):
        read_rgb(content, 0, 2239)
    for size in re.finditer(b"ispe", content):
        # Also the size of an image that is then cropped.
        where = size.start() + 8
        head, tail = content[:where], content[where + 8 :]
        claimed = head + (9000).to_bytes(4, "big") * 2 + tail
        with pytest.raises(ImageError, match="image 0 .*9000 x 9000 pixels"):
            read_rgb(claimed, 0)
    for length in (len(content) // 2, len(content) - 50):
        with pytest.raises(ImageError, match="image 0 .*damaged or truncated"):
            read_rgb(content[:length], 0)


# -- JPEG XL -----------------------------------------------------------------


def jxl(image: Image.Image, **options: Any) -> bytes:
    pytest.importorskip("pillow_jxl", reason="needs the extra jxl")
    return encoded(image, "JXL", **options)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
@pytest.mark.parametrize("in_boxes", [False, True])
def test_jpeg_xl(mode: str, in_boxes: bool) -> None:
    stored = photographs()[0].convert(mode)
    found = read_image(jxl(stored, lossless=True, use_container=in_boxes), 0)
    assert found.format == f"JXL {mode}"
    np.testing.assert_array_equal(np.asarray(found.rgb), stored.convert("RGB"))


def test_metadata_of_jpeg_xl_decide_nothing() -> None:
    """The orientation is a property of the pixels, as the standard says."""
    stored = photographs()[0]
    exif = oriented(6)
    content = jxl(stored, lossless=True, use_container=True, exif=exif.tobytes())
    assert b"Exif" in content
    start = content.index(b"Exif")
    for broken in (content, content[: start + 8] + bytes(20) + content[start + 28 :]):
        found = read_image(broken, 0)
        assert found.orientation == 1
        np.testing.assert_array_equal(np.asarray(found.rgb), stored)


def test_jpeg_xl_that_holds_a_jpeg(tmp_path: Path) -> None:
    """Its pixels are decoded as those of any other, and turned once."""
    pytest.importorskip("pillow_jxl", reason="needs the extra jxl")
    Image.init()
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(photographs()[0], "JPEG", quality=95, exif=oriented(6)))
    with Image.open(path) as jpeg:
        jpeg.save(tmp_path / "turned.jxl", lossless_jpeg=True)
    expected = np.asarray(read_rgb(path, 0), int)
    found = np.asarray(read_rgb(tmp_path / "turned.jxl", 0), int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 2


@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (16, 9), (56, 40), (2, 700), (257, 99)]
)
@pytest.mark.parametrize("mode", ["RGB", "LA", "I;16"])
def test_sizes_in_jpeg_xl_headers(size: tuple[int, int], mode: str) -> None:
    content = jxl(Image.new(mode, size), lossless=True)
    assert jxl_header(jxl_codestream(content)) == ([size], int(mode == "LA"))
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels.*max_pixels"):
        read_rgb(content, 0, size[0] * size[1] - 1)
    assert read_rgb(content, 0, size[0] * size[1]).size == size


def test_boxes_of_jpeg_xl_with_long_sizes() -> None:
    """Regression: the codestream was taken to begin 8 bytes too early."""
    start = b"\0\0\0\x0cJXL \r\n\x87\n"
    for size in (
        struct.pack(">L4s", 11, b"jxlc"),
        struct.pack(">L4sQ", 1, b"jxlc", 19),
    ):
        assert jxl_codestream(start + size + b"abc") == b"abc"
    part = struct.pack(">L4sQL", 1, b"jxlp", 23, 0)
    assert jxl_codestream(start + part + b"abc") == b"abc"


def test_truncated_jpeg_xl() -> None:
    content = jxl(photographs()[0], lossless=True)
    for length in (len(content) - 1, len(content) // 2, 40, 12, 3):
        with pytest.raises(ImageError, match="image 0 .*damaged or truncated"):
            read_rgb(content[:length], 0)


# -- what is not read --------------------------------------------------------


def test_heic_without_its_reader(without_readers: None, tmp_path: Path) -> None:
    path = tmp_path / "IMG_0001.jpg"
    path.write_bytes(HEIC_BRANDS + bytes(100))
    message = (
        r"image 2 .*IMG_0001.jpg.*a HEIC \(HEIF\) file, whatever its name.*"
        r"pip install 'sk-cnncodes\[heif\]'.*convert it to JPEG"
    )
    with pytest.raises(ImageError, match=message):
        read_rgb(path, 2)


@pytest.mark.parametrize("start", [b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a\xba\x5d"])
def test_jpeg_xl_without_its_reader(without_readers: None, start: bytes) -> None:
    message = r"image 0 .*a JPEG XL file.*pip install 'sk-cnncodes\[jxl\]'"
    with pytest.raises(ImageError, match=message):
        read_rgb(start + bytes(100), 0)


def test_avif_without_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(photographs()[0], "AVIF")
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    with pytest.raises(ImageError, match="an AVIF file.*built without AVIF.*pip"):
        read_rgb(content, 0)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"FUJIFILMCCD-RAW 0201", r"a raw photograph \(RAF\)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", r"a raw photograph \(CR3\)"),
        (b"IIU\0\x08\0\0\0", r"a raw photograph \(RW2\)"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "a video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a video"),
        (b"%PDF-1.7\n", r"a PDF document\. Save its pages as PNG"),
        (b"<!DOCTYPE html><title>404", r"a web page\. .*download it again"),
        (b"\xef\xbb\xbf\n<HTML>", "a web page"),
        (b"PK\3\4\x14", "a ZIP archive"),
        (b"\x89???", "bytes of an unknown format"),
    ],
)
def test_other_files_are_named(start: bytes, what: str) -> None:
    with pytest.raises(ImageError, match=f"image 0 .*not an image file.*{what}"):
        read_rgb(start + bytes(100), 0)


# -- in folders --------------------------------------------------------------


def test_folders_name_photographs_that_cannot_be_read(
    without_readers: None, tmp_path: Path
) -> None:
    for name in ("a.HEIC", "b.heic", "c.heif", "d.NEF", "e.dng", "f.jpg", "g.txt"):
        for folder in ("cat", "cat/nested", "."):
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.touch()
    for find in (find_images, find_labelled_images):
        with pytest.warns(UserWarning) as caught:
            found = find(tmp_path)
        texts = sorted(str(warning.message) for warning in caught)
        convert, install = texts if "Convert" in texts[0] else texts[::-1]
        assert "left out 3 .dng files, 3 .nef files" in convert
        assert "Convert them to JPEG" in convert
        assert "left out 6 .heic files, 3 .heif files" in install
        assert "pip install 'sk-cnncodes[heif]'" in install
        if isinstance(found, LabelledImages):
            left_out = {each.what: len(each.items) for each in found.left_out}
            counts = {".heic": 6, ".heif": 3, ".nef": 3, ".dng": 3, ".txt": 3}
            assert left_out == {f"{s} files": n for s, n in counts.items()} | {
                "image": 1
            }
            assert len(found) == 2
        else:
            counts = {suffix: len(names) for suffix, names in found.unreadable.items()}
            assert counts == {".heic": 6, ".heif": 3, ".nef": 3, ".dng": 3}
            assert (found.ignored, len(found.paths)) == (3, 3)


def test_folders_take_what_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="needs the extra heif")
    for name in ("a.HEIC", "b.avif", "c.mpo", "d.hif"):
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert len(found.paths) == 4 and not found.unreadable
