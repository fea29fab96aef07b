"""Digests of images, by which a code cache identifies them.

The digest of a file, bytes or an open file is that of its content; the digest of an
array covers its pixels, shape and dtype; that of a PIL image covers its RGB pixels,
converted to sRGB if the preprocessing does so.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from sk_cnncodes.base.exceptions import ImageError
from sk_cnncodes.base.files import SETTLED_NS
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.cache.file_store import FileState
from sk_cnncodes.codes.elements import Elements
from sk_cnncodes.images.decode import read_rgb
from sk_cnncodes.images.halftones import header_hints_at_halftone
from sk_cnncodes.images.safe_open import MAX_PIXELS
from sk_cnncodes.images.sources import path_of, read_content

Digest = bytes
# Part of the keys of remembered digests: the kinds of content that digests tell apart.
_KINDS = "file, scan"


def image_digest(
    image: Any,
    index: int,
    max_pixels: int | None = MAX_PIXELS,
    color: str = "ignore",
) -> Digest:
    """Digest of one element of X.

    `color` is that of the preprocessing.

    Raises
    ------
    ImageError
        If the element cannot be read.
    """
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "buif":
            read_rgb(image, index, max_pixels)  # raises the error
        return pixel_digest(image)
    if isinstance(image, Image.Image):
        return pixel_digest(image, read_rgb(image, index, max_pixels, color=color))
    return content_digest(read_content(image, index))


def pixel_digest(image: Any, rgb: Image.Image | None = None) -> Digest:
    """Digest of an array, or of a PIL image by its RGB pixels `rgb`."""
    if rgb is not None and not isinstance(image, np.ndarray):
        return _sha256(f"rgb {rgb.size}", rgb.tobytes())
    head = f"array {image.dtype.str} {image.shape}"
    return _sha256(head, np.ascontiguousarray(image).data)


def content_digest(content: bytes) -> Digest:
    """Digest of the content of an image file.

    JPEG files that may be halftones have digests of their own: caches may hold codes of
    the versions that decoded all of them at a smaller size.
    """
    is_jpeg = content.startswith(b"\xff\xd8\xff")
    kind = "scan" if is_jpeg and header_hints_at_halftone(content) else "file"
    return _sha256(f"{_truncation_prefix()}{kind}", content)


def _truncation_prefix() -> str:
    """Prefix of digests while Pillow fills up truncated files; otherwise empty.

    Such files are bad images otherwise, and their codes must not be found then.
    """
    return "truncated " if ImageFile.LOAD_TRUNCATED_IMAGES else ""


def _sha256(head: str, content: Any) -> Digest:
    digest = hashlib.sha256(f"{head}\n".encode())
    digest.update(content)
    return digest.digest()


class ImageDigests:
    """Digests of the images of one X; files whose digest is remembered are not read.

    Parameters
    ----------
    elements : Elements
        Of X.
    cache : CodeCache
        Cache that remembers the digests of files.
    run : callable
        Maps a function over a sequence, possibly in threads.
    max_pixels : int or None
        An image with more pixels is a bad image. None sets no limit.
    color : {"ignore", "srgb"}
        Of the preprocessing.
    """

    def __init__(
        self,
        elements: Elements,
        cache: CodeCache,
        run: Callable[[Callable[[int], Any], Sequence[int]], Iterable[Any]],
        max_pixels: int | None = MAX_PIXELS,
        color: str = "ignore",
    ) -> None:
        self._elements = elements
        self._cache = cache
        self._run = run
        self._max_pixels = max_pixels
        self._color = color
        self._folders: dict[str, str] = {}

    def many(self, indices: Sequence[int]) -> list[Digest | ImageError]:
        """For each index, the digest of the image or the error of reading it."""
        paths = {i: path for i in indices if (path := self._path(i)) is not None}
        states = {
            index: state
            for index, path in paths.items()
            if (state := self._file_state(path)) is not None
        }
        remembered = self._cache.file_digests(list(states.values()))
        found: dict[int, Digest | ImageError] = {
            index: digest
            for index, digest in zip(states, remembered, strict=True)
            if digest is not None
        }
        unknown = [index for index in indices if index not in found]

        def attempt(index: int) -> Digest | ImageError:
            try:
                known = index in states
                image = paths[index] if known else self._elements.fetch(index)
                return image_digest(image, index, self._max_pixels, self._color)
            except ImageError as error:
                return error

        found |= dict(zip(unknown, self._run(attempt, unknown), strict=True))
        now = time.time_ns()
        self._cache.remember_files(
            [
                (states[index], digest)
                for index in unknown
                if isinstance(digest := found[index], bytes)
                and index in states
                and self._file_state(paths[index]) == states[index]
                and now - max(states[index].mtime_ns, states[index].ctime_ns)
                > SETTLED_NS
            ]
        )
        return [found[index] for index in indices]

    def _path(self, index: int) -> str | None:
        """Path of an image; None if it is no path or an invalid one."""
        try:
            image = self._elements.peek(index)
            if not isinstance(image, (str, os.PathLike)):
                return None
            return path_of(image, index)
        except ImageError:
            return None

    def _file_state(self, path: str) -> FileState | None:
        """Key of a path's remembered digest; None if the path cannot be read."""
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                path, status = os.path.realpath(path), os.stat(path)  # noqa: PTH116
            else:
                path = self._real_path(path)
        except (OSError, ValueError):
            return None
        # With the inode, since a folder of that name may have been replaced.
        prefix = f"{_truncation_prefix()}{status.st_dev}:{status.st_ino}:{_KINDS}:"
        file = prefix.encode() + os.fsencode(path)
        return FileState(file, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def _real_path(self, path: str) -> str:
        """Real path of a file that is no symlink; each folder is resolved once."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return f"{self._folders[folder]}{os.sep}{name}"
