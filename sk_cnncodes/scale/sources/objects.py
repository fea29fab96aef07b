"""Data sets of Hugging Face and iterables as sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sk_cnncodes.codes.streaming import keyed_images
from sk_cnncodes.datasets.tables import as_text, check_columns
from sk_cnncodes.scale.sources.stream import SourceImage, Wanted


class DatasetSource:
    """A data set of Hugging Face, map-style or streaming; keys are positions."""

    def __init__(
        self, dataset: Any, columns: Sequence[str], image_column: str | None
    ) -> None:
        features = dict(dataset.features or {})
        named = [n for n, kind in features.items() if type(kind).__name__ == "Image"]
        if image_column is None and len(named) != 1:
            raise ValueError(
                f"source: got a data set with {len(named)} columns of images among "
                f"{list(features)}. Name one by image_column=NAME."
            )
        self._image = image_column or named[0]
        check_columns([self._image, *columns], list(features), "source")
        kind = features[self._image]
        if type(kind).__name__ == "Image":
            # Files, not pixels: decoding is done here.
            dataset = dataset.cast_column(self._image, type(kind)(decode=False))
        self._dataset = dataset.select_columns([self._image, *columns])
        self._columns = columns
        self.pieces = [""]

    def read(self, piece: int, wanted: Wanted) -> Iterator[SourceImage]:
        if not hasattr(self._dataset, "__len__"):
            for position, row in enumerate(self._dataset):
                yield self._item(position, row if wanted(position) else None)
            return
        for position in range(len(self._dataset)):
            row = self._dataset[position] if wanted(position) else None
            yield self._item(position, row)

    def _item(self, position: int, row: Any) -> SourceImage:
        if row is None:
            return SourceImage(str(position), None)
        columns = {name: as_text(row[name]) for name in self._columns}
        image = row[self._image]
        missing: dict[str, Any] = {"bytes": None, "path": None}
        return SourceImage(str(position), missing if image is None else image, columns)


class IterableSource:
    """Pairs (key, image), or images, whose keys are then their positions."""

    def __init__(self, images: Any) -> None:
        self._images = images
        self._pairs: Iterator[tuple[Any, Any]] | None = keyed_images(images)
        self.pieces = [""]

    def read(self, piece: int, wanted: Wanted) -> Iterator[SourceImage]:
        pairs, self._pairs = self._pairs, None
        for key, image in pairs or keyed_images(self._images):
            yield SourceImage(str(key), image)
