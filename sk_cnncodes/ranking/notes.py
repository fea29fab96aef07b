"""What a ranking notes of groups, classes and copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from sk_cnncodes.ranking.scoring import Targets

# Rows that are compared at once.
_ROWS = 8192


def group_numbers(groups: Any, n_images: int) -> np.ndarray:
    """The number of each image's group."""
    groups = np.asarray(groups)
    if groups.shape != (n_images,):
        raise ValueError(
            f"groups: expected one for each of the {n_images} images, got the shape "
            f"{groups.shape}."
        )
    try:
        names, numbers = np.unique(groups, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(group).__name__ for group in groups})
        raise ValueError(
            f"groups: expected names of one type, such as text, got {kinds}."
        ) from error
    if len(names) < 2:
        raise ValueError(f"groups: expected at least 2, got {names.tolist()}.")
    found: np.ndarray = numbers
    return found


def notes_on_classes(targets: Targets, groups: np.ndarray | None) -> list[str]:
    """Classes that no model without the image, or its group, can know."""
    if targets.kind != "classification":
        return []
    units = np.arange(len(targets.numbers)) if groups is None else groups
    pairs = np.unique(np.column_stack([targets.numbers, units]), axis=0)
    alone = np.bincount(pairs[:, 0]) == 1
    if not alone.any():
        return []
    where = "one image" if groups is None else "one group"
    names = ", ".join(map(repr, targets.classes[alone].tolist()[:10]))
    return [
        f"Classes with {where} only are never predicted: {alone.sum()} of "
        f"{len(alone)}, such as {names}."
    ]


def notes_on_copies(codes: Any, groups: np.ndarray | None) -> list[str]:
    """Images that are the same as others, which predict them."""
    hashes = np.empty(len(codes), np.int64)
    for start in range(0, len(codes), _ROWS):
        part = np.asarray(codes[start : start + _ROWS])
        hashes[start : start + len(part)] = [hash(code.tobytes()) for code in part]
    units = np.arange(len(codes)) if groups is None else groups
    _, first, numbers = np.unique(hashes, return_index=True, return_inverse=True)
    n_copies = np.count_nonzero(units[first[numbers]] != units)
    if not n_copies:
        return []
    return [
        f"{n_copies} images are copies of others, which makes the scores optimistic: "
        "remove them, or give equal images the same group."
    ]
