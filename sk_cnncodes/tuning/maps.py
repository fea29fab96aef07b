"""Maps: activations of the frozen layers, computed once for each image and view.

The trained part of a network reads them in every epoch, in random order, so that they
lie in a file that is mapped into memory. The network runs in ONNX Runtime, through the
same extraction and cache as codes.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes.base.files import reserve_disk
from sk_cnncodes.base.logs import logger
from sk_cnncodes.base.progress import OptionalBar
from sk_cnncodes.cache.code_cache import resolve_cache
from sk_cnncodes.cache.shared_folder import make_folder, root_process
from sk_cnncodes.codes.transformer import CNNCodeTransformer

# Views of an image for each value of the parameter `views`, as the transformer's.
TRAINING_VIEWS = {"center": ("center",), "flip": ("center", "mirror")}
# Largest error of float16, relative to the largest value of some images: networks that
# were measured had 3e-5 to 3e-4.
_TOLERANCE = 1e-3
# Images that are computed and written at once.
_BATCH = 128
# Bytes that stay free on the disk.
_MARGIN = 2**26


class Maps:
    """Activations at one layer, a row for each image and view, in a mapped file.

    Parameters
    ----------
    path : Path
        The file is created, with its whole size on the disk.
    n_images, n_views : int
    shape : tuple of int
        Of one map.
    dtype : {"float16", "float32"}

    Attributes
    ----------
    n_bytes : int
        Size of the file.
    """

    def __init__(
        self,
        path: Path,
        n_images: int,
        n_views: int,
        shape: tuple[int, ...],
        dtype: str,
    ) -> None:
        self.path = path
        self.n_views = n_views
        self.shape = shape
        self.dtype = np.dtype(dtype)
        size = (n_images, n_views, math.prod(shape))
        self.n_bytes = math.prod(size) * self.dtype.itemsize
        with open(path, "wb") as file:
            file.truncate(self.n_bytes)
        reserve_disk(path)
        self._rows: Any = np.memmap(path, self.dtype, "r+", shape=size)

    def __len__(self) -> int:
        return len(self._rows)

    def fits(self, codes: np.ndarray) -> bool:
        """Whether values are kept with a small error."""
        with np.errstate(over="ignore"):
            error = np.abs(codes.astype(self.dtype).astype(np.float32) - codes).max()
        return bool(error <= _TOLERANCE * np.abs(codes).max())  # infinite ones are not

    def write(self, start: int, view: int, codes: np.ndarray) -> None:
        """Write the maps of some images from `start` on."""
        self._rows[start : start + len(codes), view] = codes

    def read(self, images: np.ndarray, views: np.ndarray | int = 0) -> np.ndarray:
        """The maps of some images, each of one view, as float32."""
        rows = np.asarray(self._rows[images, views], np.float32)
        return rows.reshape(len(rows), *self.shape)

    def digests(self, images: np.ndarray) -> np.ndarray:
        """Numbers that tell images apart, in later processes too."""
        found = []
        for image in images:
            with np.errstate(over="ignore"):
                row = self._rows[image, 0].astype(np.float16)
            found.append(hashlib.blake2b(row, digest_size=8).digest())
        return np.frombuffer(b"".join(found), np.uint64)

    def copy_to(self, other: Maps) -> None:
        """Write all rows to maps of another type."""
        for start in range(0, len(self), _BATCH):
            other._rows[start : start + _BATCH] = self._rows[start : start + _BATCH]

    def close(self) -> None:
        """Remove the file."""
        self._rows = None  # Windows removes no file that is mapped
        self.path.unlink(missing_ok=True)


@contextmanager
def computed_maps(
    images: Sequence[Any],
    transformer: CNNCodeTransformer,
    shape: tuple[int, ...],
    *,
    views: str,
    dtype: str,
    verbose: bool,
) -> Iterator[Maps]:
    """Compute the maps of images; their file is removed at the end, whatever happens.

    Parameters
    ----------
    images : sequence
    transformer : CNNCodeTransformer
        With the layer, device, cache and so on; it is changed. Its cache keeps the
        maps for the next call, if all of them fit into a half of it.
    shape : tuple of int
        Of the activations at the layer.
    views : {"center", "flip"}
    dtype : {"float16", "float32"}
        float16 becomes float32 if that loses too much of the values.
    verbose : bool

    Raises
    ------
    OSError
        If the disk has no room for them; before anything is computed.
    ImageError
        If an image cannot be read.
    """
    names = TRAINING_VIEWS[views]
    n_values = len(images) * len(names) * math.prod(shape)
    cache = resolve_cache(transformer.cache)
    cached = 0 if cache is None else 4 * n_values
    if cache is not None and cached > cache.capacity / 2:
        transformer.set_params(cache=None)
        cached = 0
    folder = make_folder(root_process())
    needed = np.dtype(dtype).itemsize * n_values
    _check_disk(folder, needed, len(images), names)
    logger.info(
        "maps of %d images, %d views: %s in %s, and up to %s in the cache",
        *(len(images), len(names), size_text(needed), folder, size_text(cached)),
    )
    what = f"Maps ({size_text(needed)})"
    total = len(images) * len(names)
    bar = OptionalBar(verbose, total=total, desc=what, unit="image")
    maps = _new_maps(folder, len(images), len(names), shape, dtype)
    try:
        with bar:
            for view, name in enumerate(names):
                transformer.set_params(views=name, verbose=False)
                start = 0
                # Numbered, so that no element is taken for a pair of key and image.
                for batch in transformer.iter_codes(enumerate(images), batch=_BATCH):
                    if not np.isfinite(batch.codes).all():
                        raise ValueError(
                            f"X: the backbone gives NaN or infinity at layer "
                            f"{transformer.layer!r} for one of the images {start} to "
                            f"{start + len(batch) - 1}. Expected finite activations."
                        )
                    if not maps.fits(batch.codes):
                        maps = _as_float32(maps, folder, names)
                    maps.write(start, view, batch.codes)
                    start += len(batch)
                    bar.advance(len(batch))
        yield maps
    finally:
        maps.close()


def _new_maps(
    folder: Path, n_images: int, n_views: int, shape: tuple[int, ...], dtype: str
) -> Maps:
    handle, name = tempfile.mkstemp(".maps", dir=folder)
    os.close(handle)
    try:
        return Maps(Path(name), n_images, n_views, shape, dtype)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _as_float32(maps: Maps, folder: Path, names: Sequence[str]) -> Maps:
    """The same maps as float32; the file of the others is removed."""
    logger.info("maps: float16 loses too much of these values; float32 is used")
    needed = maps.n_bytes * 4 // maps.dtype.itemsize
    _check_disk(folder, needed, len(maps), names)
    wide = _new_maps(folder, len(maps), maps.n_views, maps.shape, "float32")
    try:
        maps.copy_to(wide)
    except BaseException:
        wide.close()
        raise
    maps.close()
    return wide


def _check_disk(folder: Path, needed: int, n_images: int, names: Sequence[str]) -> None:
    """Refuse maps that the disk has no room for."""
    free = shutil.disk_usage(folder).free
    if needed + _MARGIN <= free:
        return
    views = "" if len(names) == 1 else f" in {len(names)} views"
    raise OSError(
        errno.ENOSPC,
        f"the maps of {n_images} images{views} need {size_text(needed)}, and "
        f"{size_text(free)} are free. Expected more room (the environment variable "
        "TMPDIR names another folder), a later layer in train_from, fewer images"
        + ("" if len(names) == 1 else ", or views='center'"),
        str(folder),
    )


def size_text(n_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"
