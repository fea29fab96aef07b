"""Ways to damage a file: at random, or by the parts of its format."""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections.abc import Callable

# Numbers that break readers: zero, sign changes and implausible sizes.
_ODD = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 999_999]
_ODD += [2**24, 2**28 + 1, 2**30, 2**31 - 1, 2**31, 2**32 - 1]


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a file; parts of `other` may be spliced in."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        damage = rng.choice(_DAMAGES)
        content = damage(content, other, rng) or content
    return content


def _position(content: bytes, rng: random.Random) -> int:
    """A random position, half of the time in the header."""
    end = min(len(content), 200) if rng.random() < 0.5 else len(content)
    return rng.randrange(max(1, end))


def flip_bits(content: bytes, other: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if changed:
            changed[_position(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def put_number(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Overwrite 1, 2, 4 or 8 bytes with one of the odd numbers."""
    size, position = rng.choice([1, 2, 2, 4, 4, 8]), _position(content, rng)
    number = rng.choice(_ODD) % 256**size
    return (
        content[:position]
        + number.to_bytes(size, rng.choice(["big", "little"]))
        + content[position + size :]
    )


def truncate(content: bytes, other: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def lose(content: bytes, other: bytes, rng: random.Random) -> bytes:
    start = _position(content, rng)
    return content[:start] + content[start + rng.choice([1, 2, 4, 16, 200]) :]


def repeat(content: bytes, other: bytes, rng: random.Random) -> bytes:
    start = _position(content, rng)
    part = content[start : start + rng.choice([1, 4, 12, 64, 500])]
    return content[:start] + part * rng.choice([2, 3, 50]) + content[start:]


def insert(content: bytes, other: bytes, rng: random.Random) -> bytes:
    start = _position(content, rng)
    return content[:start] + rng.randbytes(rng.choice([1, 4, 40])) + content[start:]


def swap(content: bytes, other: bytes, rng: random.Random) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(content) + 1) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def splice(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Join the head of one file to the tail of another."""
    return content[: _position(content, rng)] + other[_position(other, rng) :]


def shuffle_parts(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Swap, drop or repeat parts of the format, or take one from the other file."""
    parts = split(content)
    if len(parts) < 3:
        return flip_bits(content, other, rng)
    which = rng.randrange(5)
    i, j = rng.randrange(1, len(parts)), rng.randrange(1, len(parts))
    if which == 0:
        parts[i], parts[j] = parts[j], parts[i]
    elif which == 1:
        del parts[i]
    elif which == 2:
        parts.insert(i, parts[j])
    elif which == 3:
        parts[i:i] = [parts[j]] * rng.choice([2, 20, 300])
    else:
        parts.insert(i, rng.choice(split(other)))
    return b"".join(parts)


def damage_part(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage one part and correct its checksum, so that decoders read it."""
    parts = split(content)
    i = rng.randrange(len(parts))
    damage = rng.choice([flip_bits, put_number, put_number, lose, repeat])
    if content.startswith(b"\x89PNG") and i > 0 and len(parts[i]) > 12:
        data = damage(parts[i][8:-4], other, rng)
        parts[i] = png_chunk(parts[i][4:8], data)
    else:
        parts[i] = damage(parts[i], other, rng)
    return b"".join(parts)


def claim_size(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change the width or height in the header."""
    number = rng.choice([*_ODD, 5000, 7000, 16383])
    changed = bytearray(content)

    def put(position: int, size: int, order: str) -> None:
        changed[position : position + size] = (number % 256**size).to_bytes(
            size, "big" if order == "big" else "little"
        )

    if content.startswith(b"\x89PNG"):
        put(rng.choice([16, 20]), 4, "big")
        changed[29:33] = zlib.crc32(changed[12:29]).to_bytes(4, "big")
    elif content.startswith(b"\xff\xd8"):
        if frame := re.search(rb"\xff[\xc0\xc1\xc2]", content):
            put(frame.start() + rng.choice([5, 7]), 2, "big")
    elif content.startswith(b"GIF8"):
        frame_at = content.find(b",", 13)
        put(rng.choice([6, 8, frame_at + 5, frame_at + 7]), 2, "little")
    elif content.startswith(b"BM"):
        put(rng.choice([18, 22]), 4, "little")
    elif content.startswith(b"RIFF"):
        position = rng.choice([24, 27]) if content[12:16] == b"VP8X" else 26
        put(position, rng.choice([2, 3]), "little")
    elif content.startswith(b"P"):
        return re.sub(rb"56|40", str(number).encode(), content, count=1)
    elif content[:2] in (b"II", b"MM"):
        order = "little" if content[:2] == b"II" else "big"
        tag = rng.choice([256, 257, 258, 277, 278, 279, 273, 322, 323, 324])
        found = content.find(tag.to_bytes(2, "big" if order == "big" else "little"))
        put(found + rng.choice([4, 8]), 4, order)
    return bytes(changed)


_Damage = Callable[[bytes, bytes, random.Random], bytes]
_DAMAGES: list[_Damage] = [
    *[flip_bits, flip_bits, put_number, put_number, truncate, lose, repeat, insert],
    *[swap, splice, shuffle_parts, shuffle_parts, damage_part, damage_part],
    *[damage_part, claim_size, claim_size],
]


# -- parts of formats --------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + check


def split(content: bytes) -> list[bytes]:
    """Split a file into the parts of its format."""
    if content.startswith(b"\x89PNG"):
        return _cut(
            content, 8, lambda i: 12 + int.from_bytes(content[i : i + 4], "big")
        )
    if content.startswith(b"RIFF"):

        def chunk(i: int) -> int:
            size = int.from_bytes(content[i + 4 : i + 8], "little")
            return 8 + size + size % 2

        return _cut(content, 12, chunk)
    if content.startswith(b"\xff\xd8"):
        starts = [m.start() for m in re.finditer(rb"\xff[\xc0-\xcf\xd9-\xfe]", content)]
    elif content.startswith(b"GIF8"):
        starts = [m.start() for m in re.finditer(rb"\0[!,;]", content)]
    elif content[:2] in (b"II", b"MM"):
        starts = list(range(10, min(len(content), 400), 12))
    else:
        starts = list(range(2, min(len(content), 60), 4))
    bounds = [0, *starts, len(content)]
    return [content[a:b] for a, b in itertools.pairwise(bounds)]


def _cut(content: bytes, start: int, length: Callable[[int], int]) -> list[bytes]:
    parts, position = [content[:start]], start
    while position < len(content):
        end = position + length(position)
        parts.append(content[position:end])
        position = end
    return parts
