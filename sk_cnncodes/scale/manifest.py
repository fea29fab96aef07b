"""The plan of a folder of shards, and the manifest of those that are finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sk_cnncodes.base.files import atomic_write
from sk_cnncodes.scale.remote_paths import AnyPath, RemotePath
from sk_cnncodes.scale.shards import (
    MANIFEST,
    MAX_LISTED,
    PLAN,
    ShardId,
    listing_of,
    shard_id,
    shards_in,
)

# What each plan has.
_PLAN_NAMES = {"spec", "code_length", "shard_rows", "dtype", "columns", "pieces"}


@dataclass(frozen=True)
class PartDone:
    """What a part of `embed_to` has done.

    Attributes
    ----------
    part : tuple of int
        ``(i, n)``: it was part i of n.
    shards : list of ShardId
        Those of this part, also of earlier calls.
    written : mapping of ShardId to dict or None
        Those that it wrote, with what `ShardWriter.close` said of them.
    n_images : int or None
        Images of the whole source; None if the part saw its own archives alone.
    """

    part: tuple[int, int]
    shards: list[ShardId]
    written: Mapping[ShardId, dict[str, Any] | None]
    n_images: int | None


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
    before = read_plan(folder)
    for name, value in plan.items():
        if name != "version" and before.get(name) != value:
            cure = "for others, choose another folder"
            if not shards_in(folder):
                cure = f"it has no shards yet: for others, remove {str(path)!r}"
            raise ValueError(
                f"target {str(folder)!r}: its shards were written with {name}="
                f"{_short(before.get(name))}, got {_short(value)}. Expected the same "
                f"settings and source; {cure}."
            )


def read_plan(folder: AnyPath) -> dict[str, Any]:
    """The plan of a folder.

    Raises
    ------
    ValueError
        If it has none, or a damaged one.
    """
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if not {*plan} >= _PLAN_NAMES:
            raise ValueError
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"target {str(folder)!r}: expected a folder that embed_to wrote, got one "
            f"without a readable {PLAN}."
        ) from error
    found: dict[str, Any] = plan
    return found


def read_manifest(folder: AnyPath) -> dict[str, Any] | None:
    """The manifest of a folder; None if it has none.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if digest_of(manifest) != manifest["sha256"]:
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r}: expected the manifest that embed_to wrote, got a damaged "
            "one. Run embed_to again: finished shards are kept."
        ) from error
    found: dict[str, Any] = manifest
    return found


def is_complete(manifest: dict[str, Any] | None, files: set[str]) -> bool:
    """Whether a folder has no shards but those that its manifest lists."""
    if manifest is None:
        return False
    return files <= {shard["file"] for shard in manifest["shards"]}


def count_bad(folder: AnyPath, part: tuple[int, int]) -> int:
    """Count the bad images of a part that is done, also of those of earlier calls."""
    found = _read_part(folder, part) if part[1] > 1 else read_manifest(folder)
    assert found is not None
    return sum(shard["bad"] for shard in found["shards"])


def write_manifest(folder: AnyPath, done: PartDone) -> bool:
    """Write the manifest of a part, and that of all if all parts have theirs.

    Returns
    -------
    bool
        Whether all parts are done, of a source with the same number of images.

    Raises
    ------
    ValueError
        If a shard was changed since an earlier manifest was written.
    """
    before: dict[str, str] = {}
    with suppress(ValueError):  # a damaged one is replaced
        listed = (read_manifest(folder) or {"shards": []})["shards"]
        before = {shard["file"]: shard["sha256"] for shard in listed}
    listed = []
    for shard in done.shards:
        listing = done.written.get(shard) or listing_of(folder / shard.file)
        is_kept = shard not in done.written
        if is_kept and before.get(shard.file, listing["sha256"]) != listing["sha256"]:
            raise ValueError(
                f"{str(folder / shard.file)!r}: the shard is changed since it was "
                "written. Remove it, and run embed_to again."
            )
        listed.append(listing)
    _, count = done.part
    if count > 1:
        part = {"n_images": done.n_images, "shards": listed}
        _write_text(_part_file(folder, done.part), json.dumps(part))
        parts = [_read_part(folder, (number, count)) for number in range(count)]
        if any(each is None or each["n_images"] != done.n_images for each in parts):
            return False
        listed = [shard for each in parts if each for shard in each["shards"]]
    listed.sort(key=_position)
    bad = [each for shard in listed for each in shard.pop("bad_images")]
    manifest = {
        "rows": sum(shard["rows"] for shard in listed),
        "bad": sum(shard["bad"] for shard in listed),
        "shards": listed,
        "bad_images": bad[:MAX_LISTED],
    }
    manifest["sha256"] = digest_of(manifest)
    _write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    return True


def _position(listing: dict[str, Any]) -> ShardId:
    shard = shard_id(listing["file"])
    assert shard is not None
    return shard


def digest_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest, which it has in itself too."""
    stated = {name: each for name, each in manifest.items() if name != "sha256"}
    text = json.dumps(stated, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _part_file(folder: AnyPath, part: tuple[int, int]) -> AnyPath:
    index, count = part
    return folder / f"_part-{index:05}-of-{count:05}.json"


def _read_part(folder: AnyPath, part: tuple[int, int]) -> dict[str, Any] | None:
    """What a part wrote; None if it is not done."""
    path = _part_file(folder, part)
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write_text(path: AnyPath, text: str) -> None:
    """Write a file, whole or not at all."""
    if isinstance(path, RemotePath):
        path.write_bytes(text.encode())
        return
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
