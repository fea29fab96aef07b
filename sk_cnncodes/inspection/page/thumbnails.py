"""Thumbnails of images: each is embedded once, as a class of CSS."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from PIL import Image, features

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.base.threads import OrderedThreadPool
from sk_cnncodes.engines.devices import usable_threads
from sk_cnncodes.images.containers import fetch_element
from sk_cnncodes.images.decode import read_rgb

# Longer side in pixels, of thumbnails and of images that are to be looked at.
SMALL, LARGE = 96, 224
_QUALITY = 60
# A page with so many has about 2 MB of thumbnails.
MOST, MOST_BYTES = 1000, 4_000_000


class Thumbnails:
    """Collects the images that a page shows, and writes them as CSS.

    Parameters
    ----------
    most : int, default=1000
        Number of thumbnails; what is asked for later is left out, and counted.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._numbers: dict[Any, int] = {}
        self._sources: list[tuple[Sequence[Any], int]] = []
        self._sides: list[int] = []
        self._left_out = set[Any]()

    @property
    def left_out(self) -> int:
        """Number of images that were asked for and have no thumbnail."""
        return len(self._left_out)

    def add(self, images: Sequence[Any], index: int, side: int = SMALL) -> str:
        """Ask for an image; returns its class in CSS, empty if there are too many."""
        image = images[index]
        named = isinstance(image, (str, PurePath))
        key = str(image) if named else (id(images), index)
        number = self._numbers.get(key)
        if number is None:
            if len(self._sources) >= self._most:
                self._left_out.add(key)
                return ""
            number = self._numbers[key] = len(self._sources)
            self._sources.append((images, index))
            self._sides.append(side)
        self._sides[number] = max(self._sides[number], side)
        return f"t{number}"

    def css(self) -> str:
        """One rule for each thumbnail, without those that cannot be read.

        Images without large even parts take more bytes: those that would pass a limit,
        which are the last that were asked for, are left out.
        """
        classes: dict[str, list[str]] = {}
        size, numbers = 0, range(len(self._sources))
        with OrderedThreadPool(usable_threads(-1), "sk_cnncodes-thumbnails") as threads:
            for number, uri in enumerate(threads.in_order(self._uri, numbers, 64)):
                size += 0 if uri in classes else len(uri)
                if size > MOST_BYTES:
                    self._left_out.update(numbers[number:])
                    break
                classes.setdefault(uri, []).append(f".t{number}")
        classes.pop("", None)
        return "".join(
            f"{','.join(names)}{{background-image:url({uri})}}\n"
            for uri, names in classes.items()
        )

    def _uri(self, number: int) -> str:
        images, index = self._sources[number]
        side = self._sides[number]

        def least(height: int, width: int) -> tuple[int, int]:
            factor = min(1, side / max(height, width))
            return max(1, round(factor * height)), max(1, round(factor * width))

        try:
            image = read_rgb(fetch_element(images, index), index, None, least)
        except (ImageError, OSError):
            return ""  # moved or damaged since it was predicted
        image.thumbnail((side, side), reducing_gap=2)
        return data_uri(image)


def data_uri(image: Image.Image) -> str:
    """An image as it stands in a page."""
    kind = "webp" if features.check("webp") else "jpeg"
    options: dict[str, Any] = {"method": 1} if kind == "webp" else {}
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=_QUALITY, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
