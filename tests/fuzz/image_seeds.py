"""Small photographs in all supported formats, modes and variants."""

from __future__ import annotations

import importlib
import io
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

HEIGHT, WIDTH = 40, 56


@lru_cache(maxsize=1)
def photographs() -> list[Image.Image]:
    """Twelve different crops of the two photographs that scikit-learn ships."""
    parts = []
    for pixels in load_sample_images().images:
        for top, left in [
            (0, 0),
            (60, 300),
            (150, 80),
            (200, 400),
            (280, 20),
            (330, 500),
        ]:
            part = Image.fromarray(
                pixels[top : top + 4 * HEIGHT, left : left + 4 * WIDTH]
            )
            parts.append(part.resize((WIDTH, HEIGHT)))
    return parts


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    # Saving as JPEG stores options in the image, so copies are saved.
    if "append_images" in options:
        options["append_images"] = [i.copy() for i in options["append_images"]]
    if format == "HEIF":
        # Without registering it in Pillow, which the library must not need.
        heif = importlib.import_module("pillow_heif")
        frames = [heif.from_pillow(i)[0] for i in options.pop("append_images", [])]
        heif.from_pillow(image.copy()).save(file, append_images=frames, **options)
    else:
        if format == "JXL":  # registers itself
            importlib.import_module("pillow_jxl")
        image.copy().save(file, format=format, **options)
    return file.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a maker of cameras"
    return exif


@lru_cache(maxsize=1)
def seeds() -> dict[str, bytes]:
    """Image files by name, all of which open without an error."""
    a, b, c = photographs()[:3]
    gray, alpha = a.convert("L"), a.convert("RGBA")
    alpha.putalpha(b.convert("L"))
    palette = a.quantize(64)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    real = Image.fromarray(np.asarray(gray) / np.float32(255))
    frames: dict[str, Any] = {"save_all": True, "append_images": [b, c]}
    found = {
        "baseline.jpg": encoded(a, "JPEG"),
        "progressive.jpg": encoded(b, "JPEG", progressive=True, quality=90),
        "gray.jpg": encoded(gray, "JPEG"),
        "cmyk.jpg": encoded(c.convert("CMYK"), "JPEG"),
        "444_restarts.jpg": encoded(a, "JPEG", subsampling=0, restart_marker_blocks=2),
        "turned.jpg": encoded(a, "JPEG", exif=oriented(6), comment=b"a comment"),
        "profile.jpg": encoded(a, "JPEG", icc_profile=b"p" * 300, dpi=(72, 72)),
        "two.mpo": encoded(a, "MPO", save_all=True, append_images=[b]),
        "rgb.png": encoded(a, "PNG"),
        "rgba.png": encoded(alpha, "PNG", exif=oriented(5)),
        "gray16.png": encoded(deep, "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=3),
        "palette_bits.png": encoded(a.quantize(4), "PNG", bits=2),
        "gray_alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "one_bit.png": encoded(gray.convert("1"), "PNG"),
        "key.png": encoded(a, "PNG", transparency=(255, 255, 255)),
        "animated.png": encoded(a, "PNG", **frames),
        "interlaced.png": interlaced_png(np.asarray(gray)),
        "lossy.webp": encoded(a, "WEBP", quality=60),
        "lossless.webp": encoded(b, "WEBP", lossless=True),
        "alpha.webp": encoded(alpha, "WEBP", quality=70, exif=oriented(3)),
        "animated.webp": encoded(a, "WEBP", quality=50, **frames),
        "still.gif": encoded(palette, "GIF"),
        "see_through.gif": encoded(palette, "GIF", transparency=5, comment=b"hello"),
        "animated.gif": encoded(palette, "GIF", **frames, duration=40, loop=0),
        "sequential.gif": encoded(palette, "GIF", interlace=False),
        "rgb.bmp": encoded(a, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "rgba.bmp": encoded(alpha, "BMP"),
        "one_bit.bmp": encoded(gray.convert("1"), "BMP"),
        "runs.bmp": run_length_bmp(),
        "plain.tif": encoded(a, "TIFF"),
        "turned.tif": encoded(a, "TIFF", exif=oriented(8)),
        "pages.tif": encoded(a, "TIFF", **frames),
        "gray16.tif": encoded(deep, "TIFF", compression="tiff_lzw"),
        "float.tif": encoded(real, "TIFF", compression="tiff_adobe_deflate"),
        "rgba.tif": encoded(alpha, "TIFF", compression="packbits"),
        "cmyk.tif": encoded(c.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "palette.tif": encoded(palette, "TIFF", compression="tiff_deflate"),
        "fax.tif": encoded(gray.convert("1"), "TIFF", compression="group4"),
        "jpeg.tif": encoded(a, "TIFF", compression="jpeg"),
        "big.tif": encoded(a, "TIFF", compression="tiff_lzw", big_tiff=True),
        "tiled.tif": tiled_tiff(np.asarray(gray)),
        "lossy.avif": encoded(a, "AVIF", max_threads=1),
        "gray.avif": encoded(gray, "AVIF", max_threads=1),
        "alpha.avif": encoded(alpha, "AVIF", exif=oriented(3), max_threads=1),
        "turned.avif": encoded(a, "AVIF", exif=oriented(6), max_threads=1),
        "animated.avif": encoded(a, "AVIF", **frames, max_threads=1),
        "rgb.ppm": encoded(a, "PPM"),
        "gray.pgm": encoded(gray, "PPM"),
        "one_bit.pbm": encoded(gray.convert("1"), "PPM"),
        "plain.pgm": b"P2\n# text\n56 40 15\n" + b"7 3\n" * (HEIGHT * WIDTH // 2),
        "deep.pgm": b"P5 56 40 4095\n" + bytes(2 * HEIGHT * WIDTH),
    }
    if find_spec("pillow_heif"):  # the extra `heif`
        exif = oriented(6).tobytes()
        found["lossy.heic"] = encoded(a, "HEIF", quality=60)
        found["gray.heic"] = encoded(gray, "HEIF")
        found["alpha.heic"] = encoded(alpha, "HEIF")
        found["turned.heic"] = encoded(a, "HEIF", exif=exif)
        found["tiled.heic"] = encoded(a, "HEIF", tile_size=32)
        found["several.heic"] = encoded(a, "HEIF", append_images=[b])
    if find_spec("pillow_jxl"):  # the extra `jxl`
        found["lossy.jxl"] = encoded(a, "JXL", num_threads=0)
        found["lossless.jxl"] = encoded(b, "JXL", num_threads=0, lossless=True)
        found["boxes.jxl"] = encoded(alpha, "JXL", num_threads=0, use_container=True)
    for compression in ("zstd", "webp", "lzma"):  # not in every build of libtiff
        try:
            found[f"{compression}.tif"] = encoded(a, "TIFF", compression=compression)
        except (OSError, ValueError):
            continue
    return found


def interlaced_png(gray: np.ndarray) -> bytes:
    """Adam7 interlacing, which Pillow reads but does not write."""
    from tests.fuzz.mutations import png_chunk

    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
    passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [
        b"\0" + row.tobytes()
        for top, left, down, across in passes
        for row in gray[top::down, left::across]
    ]
    header = (
        WIDTH.to_bytes(4, "big") + HEIGHT.to_bytes(4, "big") + bytes([8, 0, 0, 0, 1])
    )
    import zlib

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", zlib.compress(b"".join(rows))),
            png_chunk(b"IEND", b""),
        ]
    )


def run_length_bmp() -> bytes:
    """An 8-bit BMP with run-length encoding: runs, and ends of lines."""
    colors = b"".join(bytes([i, i, i, 0]) for i in range(256))
    rows = [bytes([WIDTH, 6 * row, 0, 0]) for row in range(HEIGHT)]
    data = b"".join(rows) + b"\0\1"
    start = 14 + 40 + len(colors)
    header = b"BM" + (start + len(data)).to_bytes(4, "little") + bytes(4)
    header += start.to_bytes(4, "little")
    values = [40, WIDTH, HEIGHT, 1 | 8 << 16, 1, len(data), 2835, 2835, 256, 0]
    header += b"".join(value.to_bytes(4, "little") for value in values)
    return header + colors + data


def tiled_tiff(gray: np.ndarray) -> bytes:
    """Uncompressed tiles of 16 x 16, which Pillow reads but does not write."""
    down, across = -(-HEIGHT // 16), -(-WIDTH // 16)
    padded = np.zeros((16 * down, 16 * across), np.uint8)
    padded[:HEIGHT, :WIDTH] = gray
    count = down * across
    tiles = padded.reshape(down, 16, across, 16).transpose(0, 2, 1, 3).tobytes()
    tags = [(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (258, 3, 1, 8), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 1), (277, 3, 1, 1), (322, 3, 1, 16), (323, 3, 1, 16)]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags += [(324, 4, count, start), (325, 4, count, start + 4 * count)]
    data = start + 8 * count
    content = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little")
    for tag, kind, number, value in tags:
        content += tag.to_bytes(2, "little") + kind.to_bytes(2, "little")
        content += number.to_bytes(4, "little") + value.to_bytes(4, "little")
    content += bytes(4)
    content += b"".join((data + 256 * i).to_bytes(4, "little") for i in range(count))
    return content + (256).to_bytes(4, "little") * count + tiles
