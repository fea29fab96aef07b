"""RemainingImages: the images of a source whose shards are not finished."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from sk_cnncodes.images.remote import RemoteReader
from sk_cnncodes.scale.remote_paths import AnyPath
from sk_cnncodes.scale.shards import KeyDigest, ShardId, read_facts, shards_in
from sk_cnncodes.scale.sources.stream import Source, SourceImage


class RemainingImages:
    """The images that a call has to compute, as pairs (item, element of X).

    Each key is seen, also those of finished shards, which must be the same as before.

    Parameters
    ----------
    source : Source
    folder : Path or RemotePath
        Of the shards.
    spec : str
        Digest of the code specs.
    shard_rows : int
    part : tuple of int
        ``(i, n)``: part i of n.
    remote : RemoteReader

    Attributes
    ----------
    shards : list of ShardId
        Those of this part that were passed, finished ones included.
    n_images : int or None
        Images of the source that were passed; None where parts see archives of their
        own.
    fault : Exception or None
        What ended the stream: raised in it, it would be named as a generator's.
    """

    def __init__(
        self,
        source: Source,
        folder: AnyPath,
        spec: str,
        shard_rows: int,
        part: tuple[int, int],
        remote: RemoteReader,
    ) -> None:
        self._source = source
        self._remote = remote
        self._spec = spec
        self._rows = shard_rows
        self._index, self._count = part
        self._by_piece = len(source.pieces) >= self._count > 1
        self._finished = shards_in(folder)
        # The numbers of finished shards, by piece.
        self._numbers: dict[int, list[int]] = {}
        for shard in self._finished:
            self._numbers.setdefault(shard.piece, []).append(shard.number)
        self.n_images: int | None = None if self._by_piece else 0
        self.shards: list[ShardId] = []
        self.fault: Exception | None = None
        self._positions = count()

    def __iter__(self) -> Iterator[tuple[tuple[ShardId, SourceImage], Any]]:
        try:
            for piece in range(len(self._source.pieces)):
                if not self._by_piece or piece % self._count == self._index:
                    yield from self._images(piece)
        except Exception as error:
            self.fault = error

    def _is_mine(self, shard: ShardId) -> bool:
        if self._by_piece:
            return True
        return (shard.piece + shard.number) % self._count == self._index

    def _is_left(self, shard: ShardId) -> bool:
        return self._is_mine(shard) and shard not in self._finished

    def _images(self, piece: int) -> Iterator[Any]:
        def wanted(position: int) -> bool:
            return self._is_left(ShardId(piece, position // self._rows))

        if self._has_all(piece):
            return
        images = self._source.read(piece, wanted)
        keys = KeyDigest()
        shard = ShardId(piece, 0)
        is_left = self._is_left(shard)
        for position, item in enumerate(images):
            if position and position % self._rows == 0:
                self._end(shard, keys)
                shard, keys = ShardId(piece, shard.number + 1), KeyDigest()
                is_left = self._is_left(shard)
            keys.add(item.key)
            self._count_images(1)
            if is_left:
                item.position = next(self._positions)
                item.remote = self._remote
                yield (shard, item), item.element
        if keys.count:
            self._end(shard, keys)
        last = self._numbers.get(piece, [-1])[-1]
        if last > shard.number or (last >= 0 and not keys.count):
            self._refuse(ShardId(piece, last), "has fewer images than it had")

    def _count_images(self, number: int) -> None:
        if self.n_images is not None:
            self.n_images += number

    def _has_all(self, piece: int) -> bool:
        """Whether no image of an archive is left; others may have got more files."""
        if self._source.pieces == [""]:
            return False
        numbers = self._numbers.get(piece)
        if not numbers or numbers[-1] != len(numbers) - 1:
            return False
        finished = [ShardId(piece, number) for number in numbers]
        last = read_facts(self._finished[finished[-1]])
        if last.rows == self._rows:
            return False
        self._count_images(numbers[-1] * self._rows + last.rows)
        self.shards += [shard for shard in finished if self._is_mine(shard)]
        return True

    def _end(self, shard: ShardId, keys: KeyDigest) -> None:
        """Note a shard of this part, and check it if it was finished before."""
        if not self._is_mine(shard):
            return
        self.shards.append(shard)
        if shard not in self._finished:
            return
        facts = read_facts(self._finished[shard])
        if facts.spec != self._spec:
            self._refuse(shard, "has codes of other settings", "")
        if (facts.rows, facts.keys_sha256) != (keys.count, keys.hexdigest()):
            self._refuse(shard, "has other keys than it had, or another order")

    def _refuse(self, shard: ShardId, what: str, whose: str = "the source ") -> None:
        path = str(self._finished[shard])
        raise ValueError(
            f"{path!r}: {whose}{what} when this shard was written. Expected the same "
            "source; for another, choose another folder."
        )
