"""Shards: Parquet files of codes in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes.base.files import is_running
from sk_cnncodes.datasets.tables import import_parquet
from sk_cnncodes.scale.remote_paths import (
    AnyPath,
    RemotePath,
    content_sha256,
    opened,
)

PLAN, MANIFEST = "_plan.json", "_manifest.json"
# Bad images that a manifest lists; the column `error` has all of them.
MAX_LISTED = 1000
_COLUMNS = {"key", "code", "error", "digest"}
# Where the facts of a shard stand in its metadata.
_KEY = b"sk_cnncodes"
_HOST = re.sub(r"\W", "_", socket.gethostname())
_UNFINISHED = re.compile(rf"\.codes-[\d-]+\.{_HOST}\.(\d+)\.\w+\.part")


def check_shards(
    shard_rows: Any, part: tuple[int, int] | None, dtype: Any, columns: Sequence[str]
) -> None:
    """Refuse invalid arguments of `embed_to` that say what shards there are.

    Raises
    ------
    ValueError
        If one is.
    """
    is_number = isinstance(shard_rows, Integral) and not isinstance(shard_rows, bool)
    if not is_number or shard_rows < 1:
        raise ValueError(
            f"shard_rows={shard_rows!r}: expected a number of images from 1 on."
        )
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype={dtype!r}: expected 'float32' or 'float16'.")
    names = None if columns is None or isinstance(columns, str) else [*columns]
    if (
        names is None
        or not all(isinstance(name, str) for name in names)
        or {*names} & _COLUMNS
        or len({*names}) < len(names)
    ):
        raise ValueError(
            f"columns={columns!r}: expected a list of different names, other than key, "
            "code, error and digest."
        )
    if part is not None:
        fits = isinstance(part, (tuple, list)) and len(part) == 2
        if not fits or not all(isinstance(each, Integral) for each in part):
            raise ValueError(f"part={part!r}: expected a tuple (i, n), or None.")
        if not 0 <= part[0] < part[1]:
            raise ValueError(
                f"part={part!r}: expected a part from 0 to {part[1] - 1} of {part[1]}."
            )


@dataclass(frozen=True, order=True)
class ShardId:
    """Which piece of the source a shard is from, and which shard of it.

    Attributes
    ----------
    piece : int
    number : int
    """

    piece: int
    number: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"codes-{self.piece:05}-{self.number:06}.parquet"


@dataclass(frozen=True)
class ShardFacts:
    """What a shard says of itself.

    Attributes
    ----------
    spec : str
        Digest of the code specs.
    rows, bad : int
        Number of images, and of those that could not be read.
    keys_sha256 : str
        Of all keys, in order.
    """

    spec: str
    rows: int
    bad: int
    keys_sha256: str


class KeyDigest:
    """SHA-256 of keys in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.count = 0

    def add(self, key: str) -> None:
        """Take the next key."""
        try:  # bytes of names that are not UTF-8, as they are
            encoded = key.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # of a damaged text
            encoded = key.encode("utf-8", "surrogatepass")
        self._digest.update(b"%d:%b" % (len(encoded), encoded))
        self.count += 1

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class ShardWriter:
    """Writes one shard, whole or not at all.

    Parameters
    ----------
    folder : Path or RemotePath
    shard : ShardId
    spec : str
        Digest of the code specs.
    metadata : dict
        What else is stated in the file.
    length : int
        Of a code.
    dtype : {"float32", "float16"}
    columns : sequence of str
    """

    def __init__(
        self,
        folder: AnyPath,
        shard: ShardId,
        spec: str,
        metadata: dict[str, Any],
        length: int,
        dtype: str,
        columns: Sequence[str],
    ) -> None:
        import pyarrow

        parquet = import_parquet(repr(str(folder)))
        self.shard = shard
        self._path = folder / shard.file
        unique = f"{_HOST}.{os.getpid()}.{secrets.token_hex(4)}"
        # Sent as a whole when it is finished.
        beside = folder if isinstance(folder, Path) else Path(tempfile.gettempdir())
        self._part = beside / f".{self._path.stem}.{unique}.part"
        if beside is not folder:  # others may read the folder
            self._part.touch(mode=0o600, exist_ok=False)
        self._spec, self._metadata = spec, metadata
        self._dtype, self._length, self._columns = dtype, length, columns
        value = pyarrow.float16() if dtype == "float16" else pyarrow.float32()
        text = pyarrow.string()
        self._schema = pyarrow.schema(
            [
                pyarrow.field("key", text, nullable=False),
                pyarrow.field("code", pyarrow.list_(value, length)),
                *(pyarrow.field(name, text) for name in ("error", "digest", *columns)),
            ]
        )
        self._keys, self._bad = KeyDigest(), 0
        self._writer = parquet.ParquetWriter(
            self._part, self._schema, compression="NONE", use_dictionary=False
        )

    @property
    def rows(self) -> int:
        """How many were written."""
        return self._keys.count

    def write(
        self,
        keys: list[str],
        codes: np.ndarray,
        errors: list[str | None],
        digests: list[str | None],
        columns: list[list[str | None]],
    ) -> None:
        """Add rows, as one row group."""
        import pyarrow

        for key in keys:
            self._keys.add(key)
        self._bad += sum(error is not None for error in errors)
        kind = np.float16 if self._dtype == "float16" else np.float32
        with np.errstate(over="ignore"):  # an error follows
            values = np.ascontiguousarray(codes, kind)
        if self._dtype == "float16" and (np.isinf(values) & np.isfinite(codes)).any():
            row = int(np.argmax(np.isinf(values).any(axis=1)))
            raise ValueError(
                f"dtype='float16': the code of {keys[row]!r} has values beyond 65504. "
                "Expected dtype='float32' for these codes, and another folder."
            )
        arrays = [
            pyarrow.array([_utf8(key) for key in keys], pyarrow.string()),
            pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(values.ravel()), self._length
            ),
        ]
        for cells in (errors, digests, *columns):
            valid = [None if cell is None else _utf8(cell) for cell in cells]
            arrays.append(pyarrow.array(valid, pyarrow.string()))
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> dict[str, Any] | None:
        """Give the shard its name.

        Returns
        -------
        dict or None
            What the manifest says of it, if reading it again would cost a download.
        """
        facts = ShardFacts(self._spec, self.rows, self._bad, self._keys.hexdigest())
        stated = {**self._metadata, **asdict(facts)}
        self._writer.add_key_value_metadata({_KEY: json.dumps(stated).encode()})
        self._writer.close()
        if isinstance(self._path, RemotePath):
            listing = listing_of(self._part) | {"file": self.shard.file}
            is_mine = self._path.upload(self._part)
            self._part.unlink()
            return listing if is_mine else None
        with open(self._part, "rb+") as file:
            os.fsync(file.fileno())
        self._part.replace(self._path)
        return None

    def abandon(self) -> None:
        """Leave nothing of the shard."""
        with suppress(Exception):
            self._writer.close()
        self._part.unlink(missing_ok=True)


def _utf8(text: str) -> str:
    """A text with escapes for what is not UTF-8, as in names and damaged texts."""
    try:
        return text.encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"
        )
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def read_facts(path: AnyPath) -> ShardFacts:
    """What a shard says of itself.

    Raises
    ------
    ValueError
        If it is no shard.
    """
    parquet = import_parquet(repr(str(path)))
    with reading(path):
        metadata = parquet.read_metadata(opened(path)).metadata or {}
    try:
        stated = json.loads(metadata[_KEY])
        fields = ShardFacts.__dataclass_fields__
        return ShardFacts(**{name: stated[name] for name in fields})
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path) from error


@contextmanager
def reading(path: AnyPath) -> Iterator[None]:
    """Name the shard in what pyarrow says of damaged files."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowInvalid, EOFError) as error:
        raise _damaged(path) from error
    except OSError as error:
        if error.errno is not None or not isinstance(path, Path):
            raise
        raise _damaged(path) from error


def _damaged(path: AnyPath) -> ValueError:
    return ValueError(
        f"{str(path)!r}: expected a shard written by embed_to, got another or a "
        "damaged file. Remove it, and run embed_to again."
    )


def shard_id(file: str) -> ShardId | None:
    """Which shard a file is, by its name; None if it is none."""
    match = re.fullmatch(r"codes-(\d+)-(\d+)\.parquet", file)
    return ShardId(int(match[1]), int(match[2])) if match else None


def shards_in(folder: AnyPath) -> dict[ShardId, AnyPath]:
    """The finished shards of a folder, in the order of the source."""
    paths: Iterable[AnyPath]
    if isinstance(folder, Path):
        paths = folder.glob("codes-*.parquet")
    else:
        paths = folder.walk("codes-")
    named = ((shard_id(path.name), path) for path in paths)
    return dict(sorted((shard, path) for shard, path in named if shard is not None))


def remove_unfinished(folder: AnyPath) -> None:
    """Remove what processes of this machine left that were killed."""
    if os.name != "posix":
        return
    beside = folder if isinstance(folder, Path) else Path(tempfile.gettempdir())
    for path in beside.glob(".codes-*.part"):
        match = _UNFINISHED.fullmatch(path.name)
        if match and not is_running(int(match[1])):
            with suppress(PermissionError):  # of another user
                path.unlink(missing_ok=True)


def listing_of(path: AnyPath) -> dict[str, Any]:
    """What the manifest says of a shard."""
    facts = read_facts(path)
    bad = []
    if facts.bad:
        table = import_parquet(str(path)).read_table(
            opened(path), columns=["key", "error"]
        )
        rows = table.filter(table["error"].is_valid()).slice(0, MAX_LISTED)
        bad = rows.to_pylist()
    return {
        "file": path.name,
        "rows": facts.rows,
        "bad": facts.bad,
        "sha256": content_sha256(path),
        "bad_images": bad,
    }
