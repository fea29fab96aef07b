"""Shards: Parquet files of codes in a folder, its plan and its manifest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sk_cnncodes.base.files import atomic_write, is_running
from sk_cnncodes.datasets.tables import import_parquet
from sk_cnncodes.scale.remote_paths import (
    AnyPath,
    RemotePath,
    content_sha256,
    opened,
)

PLAN, MANIFEST = "_plan.json", "_manifest.json"
# Where the facts of a shard stand in its metadata.
_KEY = b"sk_cnncodes"
# Bad images that a manifest lists; the column `error` has all of them.
_MAX_LISTED = 1000
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
    if not isinstance(shard_rows, Integral) or shard_rows < 1:
        raise ValueError(
            f"shard_rows={shard_rows!r}: expected a number of images from 1 on."
        )
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype={dtype!r}: expected 'float32' or 'float16'.")
    if isinstance(columns, str) or {*columns} & {"key", "code", "error", "digest"}:
        raise ValueError(
            f"columns={columns!r}: expected a list of names, other than key, code, "
            "error and digest."
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
        encoded = key.encode("utf-8", "surrogateescape")
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
                "Expected dtype='float32' for these codes."
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
            listing = _listing(self._part) | {"file": self.shard.file}
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
    """A text with escapes for what is not UTF-8, as some names of files are not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"
        )
    return text


def read_facts(path: AnyPath) -> ShardFacts:
    """What a shard says of itself.

    Raises
    ------
    ValueError
        If it is no shard.
    """
    parquet = import_parquet(repr(str(path)))
    import pyarrow

    try:
        metadata = parquet.read_metadata(opened(path)).metadata or {}
        stated = json.loads(metadata[_KEY])
        fields = ShardFacts.__dataclass_fields__
        return ShardFacts(**{name: stated[name] for name in fields})
    except (pyarrow.ArrowException, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r}: expected a shard written by embed_to, got another or a "
            "damaged file. Remove it, and run embed_to again."
        ) from error


def shards_in(folder: AnyPath) -> dict[ShardId, AnyPath]:
    """The finished shards of a folder, in the order of the source."""
    paths: Iterable[AnyPath]
    if isinstance(folder, Path):
        paths = folder.glob("codes-*.parquet")
    else:
        paths = folder.walk("codes-")
    found: dict[ShardId, AnyPath] = {}
    for path in paths:
        match = re.fullmatch(r"codes-(\d+)-(\d+)\.parquet", path.name)
        if match:
            found[ShardId(int(match[1]), int(match[2]))] = path
    return dict(sorted(found.items()))


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


def settle_plan(folder: AnyPath, plan: dict[str, Any]) -> None:
    """Write the plan of a folder, or check that it has the same.

    Raises
    ------
    ValueError
        If it was made by another plan, or is no folder of shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    if not path.exists():
        if shards_in(folder):
            raise ValueError(
                f"target {str(folder)!r}: it has shards, but not their {PLAN}. "
                "Expected an empty folder, or one that embed_to wrote."
            )
        _write_text(path, json.dumps(plan, indent=1))
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, value in plan.items():
        if name != "version" and before.get(name) != value:
            raise ValueError(
                f"target {str(folder)!r}: its shards were written with {name}="
                f"{_short(before.get(name))}, got {_short(value)}. Expected the same "
                "settings and source; for others, choose another folder."
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def write_manifest(
    folder: AnyPath,
    shards: list[ShardId],
    part: tuple[int, int],
    known: Mapping[ShardId, dict[str, Any]] = MappingProxyType({}),
) -> bool:
    """Write the manifest of a part, and that of all if all parts have theirs.

    Parameters
    ----------
    folder : Path or RemotePath
    shards : list of ShardId
        Of this part.
    part : tuple of int
    known : mapping
        What `ShardWriter.close` said of them; other shards are read.

    Returns
    -------
    bool
        Whether all parts are done.
    """
    index, count = part
    listed = [known.get(shard) or _listing(folder / shard.file) for shard in shards]
    if count > 1:
        _write_text(_part_file(folder, index, count), json.dumps(listed))
        files = [_part_file(folder, number, count) for number in range(count)]
        if not all(file.exists() for file in files):
            return False
        listed = [
            shard
            for file in files
            for shard in json.loads(file.read_text(encoding="utf-8"))
        ]
    listed.sort(key=lambda shard: shard["file"])
    bad = [each for shard in listed for each in shard.pop("bad_images")]
    manifest = {
        "rows": sum(shard["rows"] for shard in listed),
        "bad": sum(shard["bad"] for shard in listed),
        "shards": listed,
        "bad_images": bad[:_MAX_LISTED],
    }
    text = json.dumps(manifest, sort_keys=True)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    _write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    return True


def _write_text(path: AnyPath, text: str) -> None:
    """Write a file, whole or not at all."""
    if isinstance(path, RemotePath):
        path.write_bytes(text.encode())
        return
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def _part_file(folder: AnyPath, index: int, count: int) -> AnyPath:
    return folder / f"_part-{index:05}-of-{count:05}.json"


def _listing(path: AnyPath) -> dict[str, Any]:
    """What the manifest says of a shard."""
    facts = read_facts(path)
    bad = []
    if facts.bad:
        table = import_parquet(str(path)).read_table(
            opened(path), columns=["key", "error"]
        )
        rows = table.filter(table["error"].is_valid()).slice(0, _MAX_LISTED)
        bad = rows.to_pylist()
    return {
        "file": path.name,
        "rows": facts.rows,
        "bad": facts.bad,
        "sha256": content_sha256(path),
        "bad_images": bad,
    }
