"""Data sets of Hugging Face and iterables as sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL.Image import Image as PILImage

from sk_cnncodes.codes.streaming import keyed_images
from sk_cnncodes.datasets.tables import as_text, check_columns
from sk_cnncodes.scale.sources.stream import SourceImage, Wanted


class DatasetSource:
    """A data set of Hugging Face, map-style or streaming; keys are positions."""

    def __init__(
        self, dataset: Any, columns: Sequence[str], image_column: str | None
    ) -> None:
        # Before what is below, which gives it another one.
        self.pieces = [_state_of(dataset)]
        if (getattr(dataset, "format", None) or {}).get("type") != "custom":
            # Objects of Python; a function of the user's own is kept.
            dataset = dataset.with_format(None)
        features = dict(dataset.features or {}) or _kinds_of_first(dataset)
        named = [n for n, kind in features.items() if _holds_images(kind)]
        if image_column is None and len(named) != 1:
            raise ValueError(
                f"source: got a data set with {len(named)} columns of images among "
                f"{list(features)}. Name one by image_column=NAME."
            )
        self._image = image_column or named[0]
        self.image_column: str | None = self._image
        check_columns([self._image, *columns], list(features), "source")
        kind = features[self._image]
        if dataset.features and type(kind).__name__ == "Image":
            # Files, not pixels: decoding is done here.
            dataset = dataset.cast_column(self._image, type(kind)(decode=False))
        self._dataset = dataset.select_columns([self._image, *columns])
        self._columns = columns

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


def _kinds_of_first(dataset: Any) -> dict[str, Any]:
    """The first row, where a stream does not know its features; else no columns."""
    return dict(next(iter(dataset), {}))


def _holds_images(kind: Any) -> bool:
    """Whether a feature, or a cell, is of images."""
    is_cell = isinstance(kind, Mapping) and {"bytes", "path"} <= {*kind}
    return is_cell or isinstance(kind, PILImage) or type(kind).__name__ == "Image"


class IterableSource:
    """Pairs (key, image), or images, whose keys are then their positions."""

    image_column: str | None = None

    def __init__(self, images: Any) -> None:
        self._images = images
        self._pairs: Iterator[tuple[Any, Any]] | None = keyed_images(images)
        self.pieces = [""]

    def read(self, piece: int, wanted: Wanted) -> Iterator[SourceImage]:
        pairs, self._pairs = self._pairs, None
        for key, image in pairs or keyed_images(self._images):
            yield SourceImage(str(key), image)


def _state_of(dataset: Any) -> str:
    """What tells a map-style data set from itself in another order; "" of others.

    It is the same in other processes, also of data in memory; only after a `map` by a
    function that cannot be pickled, it is a new one each time.
    """
    fingerprint = getattr(dataset, "_fingerprint", None)
    is_known = fingerprint is not None and hasattr(dataset, "__len__")
    return f"data set {fingerprint}" if is_known else ""
