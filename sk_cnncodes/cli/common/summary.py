"""What was found of labelled images, as text: the first thing that commands say."""

from __future__ import annotations

import statistics
from collections import Counter

from sk_cnncodes.cli.common.frame import format_table
from sk_cnncodes.datasets.labelled_images import LabelledImages

# Rows of the table of classes; of more, the smallest and the largest are shown.
_MAX_ROWS = 24
_SPLITS = ("train", "validation", "test")


def summary(images: LabelledImages, data: str) -> str:
    """Images a class, a split and a group, and what was left out, with its cure.

    Parameters
    ----------
    images : LabelledImages
    data : str
        Where they were found.
    """
    parts = [_headline(images, data), *images.notes]
    if images.task == "regression":
        parts.append(_values(images))
    else:
        parts += ["", _classes(images), ""]
    parts += ["Left out:"] * bool(images.left_out)
    parts += [f"  {each}" for each in images.left_out]
    return "\n".join(parts).rstrip("\n")


def _headline(images: LabelledImages, data: str) -> str:
    count = len(images)
    text = f"{data}: {count} {'image' if count == 1 else 'images'}"
    if images.task != "regression":
        noun = "classes" if images.task == "classification" else "labels"
        noun = (
            noun.removesuffix("es" if noun == "classes" else "s")
            * (len(images.classes) == 1)
            or noun
        )
        text += f" {'of' if images.task == 'classification' else 'with'}"
        text += f" {len(images.classes)} {noun}"
    if images.groups is not None:
        text += f", in {len({*images.groups})} groups"
    return f"{text}."


def _classes(images: LabelledImages) -> str:
    """A row for each class: its images, those of each split, and its groups."""
    labels = images.labels
    if images.task == "classification":
        labels = [[label] for label in labels]
    counts = Counter(label for each in labels for label in each)
    names = sorted(images.classes, key=lambda name: (-counts[name], name))
    header = ["class" if images.task == "classification" else "label", "images"]
    columns = [[str(counts[name]) for name in names]]
    if images.splits is not None:
        for split in _SPLITS:
            rows = images.rows_of(split)
            inside = Counter(label for row in rows for label in labels[row])
            if rows:
                header.append(split)
                columns.append([str(inside[name]) for name in names])
    if images.groups is not None:
        pairs = {
            (label, group)
            for each, group in zip(labels, images.groups, strict=True)
            for label in each
        }
        groups = Counter(label for label, _ in pairs)
        header.append("groups")
        columns.append([str(groups[name]) for name in names])
    table = [list(row) for row in zip(names, *columns, strict=True)]
    if len(table) > _MAX_ROWS:
        half = _MAX_ROWS // 2
        dots = [f"... {len(table) - 2 * half} more", *[""] * len(columns)]
        table = [*table[:half], dots, *table[-half:]]
    return format_table([header, *table], {*header[1:]})


def _values(images: LabelledImages) -> str:
    low, middle, high = (
        f"{value:g}"
        for value in (
            min(images.labels),
            statistics.median(images.labels),
            max(images.labels),
        )
    )
    text = f"Values from {low} to {high}, median {middle}."
    if images.splits is not None:
        counts = Counter(images.splits)
        shown = [f"{counts[each]} {each}" for each in _SPLITS if counts[each]]
        text += f" Images: {', '.join(shown)}."
    return text
