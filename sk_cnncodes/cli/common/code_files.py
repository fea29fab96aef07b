"""Write files of codes and paths block by block, in bounded memory."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from sk_cnncodes.base.files import atomic_write

# Rows of codes, float32 (n_images, code_length), one block after the other.
Blocks = Iterable[np.ndarray]


def write_npz(path: Path, paths: list[str], length: int, blocks: Blocks) -> None:
    """Write arrays `codes` and `paths`, for `numpy.load`."""
    with (
        atomic_write(path) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open("codes.npy", "w", force_zip64=True) as file:
            _write_codes(file, len(paths), length, blocks)
        with archive.open("paths.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.array(paths))


def write_npy(path: Path, paths: list[str], length: int, blocks: Blocks) -> None:
    """Write codes that can be memory-mapped, and their paths in a JSON file beside."""
    with atomic_write(path) as part, atomic_write(paths_beside(path)) as part_of_paths:
        with open(part, "wb") as file:
            _write_codes(file, len(paths), length, blocks)
        part_of_paths.write_text(json.dumps(paths, indent=0), encoding="utf-8")


def paths_beside(path: Path) -> Path:
    """The JSON file with the image paths of an .npy file."""
    return path.with_suffix(".paths.json")


def _write_codes(file: IO[bytes], count: int, length: int, blocks: Blocks) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, length)}
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, "<f4").tobytes())


def write_parquet(path: Path, paths: list[str], length: int, blocks: Blocks) -> None:
    """Write columns `path` and `code`, a list of float32."""
    import pyarrow
    import pyarrow.parquet

    for name in paths:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name!r}: its name is not UTF-8, which Parquet requires. Expected "
                "an output that ends in .npz or .npy, or another name."
            ) from error
    code = pyarrow.list_(pyarrow.float32(), length)
    schema = pyarrow.schema([("path", pyarrow.string()), ("code", code)])
    start = 0
    with (
        atomic_write(path) as part,
        pyarrow.parquet.ParquetWriter(part, schema) as writer,
    ):
        for block in blocks:
            names = pyarrow.array(paths[start : start + len(block)], pyarrow.string())
            values = pyarrow.array(np.ascontiguousarray(block, np.float32).ravel())
            codes = pyarrow.FixedSizeListArray.from_arrays(values, length)
            writer.write_table(pyarrow.table([names, codes], schema))
            start += len(block)


WRITERS: dict[str, Callable[[Path, list[str], int, Blocks], Any]] = {
    ".npz": write_npz,
    ".npy": write_npy,
    ".parquet": write_parquet,
}
