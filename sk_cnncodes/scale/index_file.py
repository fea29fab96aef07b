"""The file of an index: content, keys, and at its end what describes them.

One file: the codes or their graph, the keys, and a description in JSON with the place
and SHA-256 of each part. Nothing in it is code, and nothing of it is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sk_cnncodes.base.files import atomic_write, remove_unfinished

# The last bytes of a file: SHA-256 and length of the description, and this.
_MAGIC = b"sk-cnncodes-index-1\n"
_TAIL = 32 + 8 + len(_MAGIC)
# Parts begin at multiples of it.
_ALIGNED = 64
# Bytes that are hashed at once.
_CHUNK = 2**22
# Of keys that are no valid text, as names of files can be.
_ENCODING = ("utf-8", "surrogatepass")


class StoredKeys:
    """Keys by number, read from the file of an index one by one.

    Parameters
    ----------
    ends : ndarray of int64, shape (n_numbers,)
        Where each key ends in the text.
    text : ndarray of uint8
        All keys, in UTF-8.
    present : ndarray of uint8, shape (n_numbers,)
        0 for the numbers of removed keys.
    """

    def __init__(self, ends: np.ndarray, text: np.ndarray, present: np.ndarray) -> None:
        self._ends, self._text, self._present = ends, text, present

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str | None:
        if not self._present[number]:
            return None
        start = self._ends[number - 1] if number else 0
        return self._text[start : self._ends[number]].tobytes().decode(*_ENCODING)

    @property
    def numbers(self) -> np.ndarray:
        """The numbers that have a key."""
        return np.flatnonzero(self._present)

    def all(self) -> list[str | None]:
        """All keys; None for numbers that have none."""
        return [self[number] for number in range(len(self))]


def write_index(
    path: Path,
    facts: dict[str, Any],
    keys: Sequence[str | None] | StoredKeys,
    write_content: Callable[[Path], None],
) -> None:
    """Write the file of an index; one that is there is replaced once all is written.

    Parameters
    ----------
    path : Path
    facts : dict
        What JSON can hold.
    keys : sequence of str or None
        By number.
    write_content : callable
        Writes the codes or their graph to a path.
    """
    remove_unfinished(path)
    with atomic_write(path) as part:
        write_content(part)
        places = {"content": _place(0, part.stat().st_size, "uint8")}
        with open(part, "r+b") as file:
            file.seek(0, os.SEEK_END)
            for name, values in _key_parts(keys).items():
                file.write(bytes(-file.tell() % _ALIGNED))
                places[name] = _place(file.tell(), values.nbytes, values.dtype.name)
                values.tofile(file)
            file.flush()
            for place in places.values():
                place["sha256"] = _sha256_of(file, place)
            file.seek(0, os.SEEK_END)
            text = json.dumps({**facts, "parts": places}).encode()
            file.write(text + hashlib.sha256(text).digest())
            file.write(len(text).to_bytes(8, "little") + _MAGIC)


def _place(offset: int, size: int, dtype: str) -> dict[str, Any]:
    return {"offset": offset, "bytes": size, "dtype": dtype}


def _key_parts(keys: Sequence[str | None] | StoredKeys) -> dict[str, np.ndarray]:
    count = len(keys)
    ends, present = np.empty(count, np.int64), np.empty(count, np.uint8)
    text = bytearray()
    for number in range(count):
        key = keys[number]
        present[number] = key is not None
        text += (key or "").encode(*_ENCODING)
        ends[number] = len(text)
    return {"ends": ends, "present": present, "text": np.frombuffer(text, np.uint8)}


def is_index(path: Path) -> bool:
    """Whether `write_index` wrote a file, by its last bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - len(_MAGIC)))
        return file.read() == _MAGIC


def read_index(
    path: Path, verify: bool
) -> tuple[dict[str, Any], np.ndarray, StoredKeys]:
    """Open the file of an index: its facts, its content, mapped, and its keys.

    Raises
    ------
    FileNotFoundError
    ValueError
        If it is no such file, or it is damaged.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _TAIL))
        tail = file.read()
        if len(tail) < _TAIL or not tail.endswith(_MAGIC):
            raise ValueError(
                f"{str(path)!r}: expected a file that CodeIndex.save wrote, got "
                "another one, or one that is cut off."
            )
        length = int.from_bytes(tail[32:40], "little")
        file.seek(max(0, size - _TAIL - length))
        text = file.read(min(length, size))
        if hashlib.sha256(text).digest() != tail[:32]:
            raise _damaged(path)
        facts = json.loads(text)
        places = facts.pop("parts")
        if verify and any(_sha256_of(file, p) != p["sha256"] for p in places.values()):
            raise _damaged(path)
        parts = {name: _mapped(file, place) for name, place in places.items()}
    content = parts.pop("content")
    return facts, content, StoredKeys(**parts)


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"{str(path)!r}: the index is damaged: its content is not what was written. "
        "Copy it again, or build it again from the codes."
    )


def _mapped(file: BinaryIO, place: dict[str, Any]) -> np.ndarray:
    if not place["bytes"]:
        return np.empty(0, place["dtype"])
    dtype = np.dtype(place["dtype"])
    shape = (place["bytes"] // dtype.itemsize,)
    return np.memmap(file, dtype, "r", place["offset"], shape)


def _sha256_of(file: BinaryIO, place: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    file.seek(place["offset"])
    left = place["bytes"]
    while left and (chunk := file.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()
