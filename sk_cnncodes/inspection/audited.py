"""Audit: what is noteworthy about labelled images, as text, frames and values."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from sk_cnncodes.base.public import public
from sk_cnncodes.inspection.findings import (
    Bursts,
    ClassSize,
    DuplicateImages,
    Outlier,
    SuspectLabel,
)

# Findings of a kind that the text shows: all of it should fit a screen.
_SHOWN, _SHOWN_DUPLICATES, _SHOWN_OUTLIERS = 5, 3, 3
# Images of a set of duplicates, and classes, half of them the smallest.
_SHOWN_IMAGES, _SHOWN_CLASSES = 3, 6
_WIDTH = 80


@public
@dataclass(frozen=True, repr=False, eq=False)
class Audit:
    """What is noteworthy about labelled images; see `audit`.

    Attributes
    ----------
    images : sequence
        As given; findings name them by position.
    labels : list or None
        As given.
    duplicates : tuple of DuplicateImages
        Exact and near ones; those under several labels first.
    suspects : tuple of SuspectLabel
        The most suspect first; only of classes.
    outliers : tuple of Outlier
        The farthest first.
    class_sizes : tuple of ClassSize
        The largest first; empty for values.
    bursts : Bursts or None
        None if groups were given, or few images are near duplicates.
    warnings : tuple of str
        Sentences, the most important first.
    groups : ndarray of int, shape (n_images,)
        Numbers that keep duplicates, and given groups, together: `groups` of
        `CNNCodeClassifier.fit` and of scikit-learn's splitters.
    """

    images: Sequence[Any]
    labels: list[Any] | None
    duplicates: tuple[DuplicateImages, ...]
    suspects: tuple[SuspectLabel, ...]
    outliers: tuple[Outlier, ...]
    class_sizes: tuple[ClassSize, ...]
    bursts: Bursts | None
    warnings: tuple[str, ...]
    groups: np.ndarray

    def name(self, image: int) -> str:
        """The path of an image, or its position."""
        element = self.images[image]
        return str(element) if isinstance(element, (str, os.PathLike)) else f"#{image}"

    def as_dict(self) -> dict[str, Any]:
        """All findings as values for JSON, with the names of images."""

        def named(finding: Any) -> dict[str, Any]:
            values = asdict(finding)
            for key in ("images", "neighbours"):
                if key in values:
                    values[key] = [self.name(row) for row in values[key]]
            if "image" in values:
                values["image"] = self.name(values["image"])
            return values

        return {
            "images": len(self.images),
            "warnings": list(self.warnings),
            "duplicates": [named(each) for each in self.duplicates],
            "suspects": [named(each) for each in self.suspects],
            "outliers": [named(each) for each in self.outliers],
            "class_sizes": [asdict(each) for each in self.class_sizes],
            "bursts": None if self.bursts is None else asdict(self.bursts),
        }

    def to_frame(self, kind: str = "suspects") -> Any:
        """Findings of one kind as a pandas frame, with the names of images.

        Parameters
        ----------
        kind : {"suspects", "duplicates", "outliers", "class_sizes"}, \
                default="suspects"
            Of duplicates, each image has a row, and its set a number.

        Returns
        -------
        frame : pandas.DataFrame
        """
        import pandas as pd

        kinds = ("suspects", "duplicates", "outliers", "class_sizes")
        if kind not in kinds:
            raise ValueError(f"kind: expected one of {list(kinds)}, got {kind!r}.")
        rows = self.as_dict()[kind]
        if kind == "duplicates":
            rows = [
                {"set": number, "image": image, "exact": row["exact"]}
                | {"similarity": row["similarity"], "labels": row["labels"]}
                for number, row in enumerate(rows)
                for image in row["images"]
            ]
        return pd.DataFrame(rows)

    # -- text --------------------------------------------------------------------

    def __repr__(self) -> str:
        parts = [
            textwrap.fill(
                text, _WIDTH, break_on_hyphens=False, subsequent_indent=indent
            )
            for text, indent in [
                (self._title(), ""),
                *((f"! {each}", "  ") for each in self.warnings),
            ]
        ]
        for title, lines, more in self._sections():
            parts.append(f"\n{title}:")
            parts += [f"  {line}" for line in lines]
            parts += [f"  ... {more} more"] * (more > 0)
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        html = f"<p>{escape(self._title())}</p>\n"
        html += "".join(f"<p>&#9888; {escape(each)}</p>\n" for each in self.warnings)
        for title, lines, more in self._sections():
            items = "".join(f"<li>{escape(line)}</li>\n" for line in lines)
            rest = f"<p>... {more} more</p>\n" * (more > 0)
            html += f"<h4>{escape(title)}</h4>\n<ul>\n{items}</ul>\n{rest}"
        return html

    def _title(self) -> str:
        count = len(self.images)
        text = f"{count} image{'s' * (count != 1)}"
        if self.class_sizes:
            text += f" of {len(self.class_sizes)} classes"
        copies = sum(len(each.images) - 1 for each in self.duplicates if each.exact)
        near = sum(len(each.images) - 1 for each in self.duplicates if not each.exact)
        return (
            f"{text}: {copies} exact and {near} near duplicates, {len(self.suspects)} "
            f"suspect labels, {len(self.outliers)} outliers."
        )

    def _sections(self) -> Iterable[tuple[str, list[str], int]]:
        """Title, lines, and how many findings of a kind are not shown."""
        if self.suspects:
            lines = [
                f"{each.score:.2f}  {self.name(each.image)}: {each.label}, or rather "
                f"{each.suggested}?"
                for each in self.suspects[:_SHOWN]
            ]
            more = len(self.suspects) - len(lines)
            yield "Suspect labels, worst first", lines, more
        if self.duplicates:
            shown = self.duplicates[:_SHOWN_DUPLICATES]
            lines = [line for each in shown for line in self._of_duplicates(each)]
            more = len(self.duplicates) - len(shown)
            yield "Sets of duplicates, worst first", lines, more
        if self.outliers:
            lines = [
                f"{each.ratio:.1f} times as far from others as usual: "
                f"{self.name(each.image)}"
                for each in self.outliers[:_SHOWN_OUTLIERS]
            ]
            yield "Outliers, worst first", lines, len(self.outliers) - len(lines)
        if self.class_sizes:
            yield self._sizes()

    def _of_duplicates(self, found: DuplicateImages) -> list[str]:
        what = "the same" if found.exact else f"near ({found.similarity:.2f})"
        if found.is_contradiction:
            what += f", labelled {' and '.join(map(str, found.labels))}"
        shown = [f"  {self.name(row)}" for row in found.images[:_SHOWN_IMAGES]]
        more = len(found.images) - len(shown)
        return [f"{what}:", *shown, *([f"  and {more} more"] if more else [])]

    def _sizes(self) -> tuple[str, list[str], int]:
        sizes = list(self.class_sizes)
        if len(sizes) > _SHOWN_CLASSES:
            sizes = sizes[: _SHOWN_CLASSES // 2] + sizes[-_SHOWN_CLASSES // 2 :]
        width = max(len(str(each.label)) for each in sizes)
        lines = [
            f"{each.label!s:<{width}}  {each.images:5}"
            + (f"  ({each.scenes} scenes)" if each.scenes < each.images else "")
            for each in sizes
        ]
        more = len(self.class_sizes) - len(sizes)
        title = "Images a class" + (", the largest and the smallest" if more else "")
        return title, lines, more
