"""Copies among labelled images, which belong on one side of each split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.cli.common.splitting import group_numbers, strata
from sk_cnncodes.datasets.labelled_images import LabelledImages

if TYPE_CHECKING:
    from sk_cnncodes.inspection.findings import DuplicateImages
    from sk_cnncodes.ranking.layer_codes import ComparedBackbone


@dataclass(frozen=True)
class Copies:
    """Images that are the same as others, or nearly so.

    Attributes
    ----------
    duplicates : list of DuplicateImages
    together : ndarray of int, shape (n_images,), or None
        Numbers of the groups that keep them, and the groups of the images, together;
        None without either.
    notes : tuple of str
        Sentences about them.
    """

    duplicates: list[DuplicateImages]
    together: np.ndarray | None
    notes: tuple[str, ...] = ()

    def as_list(self, paths: list[str]) -> list[dict[str, Any]]:
        """Each set of copies as values for JSON."""
        return [
            {"images": [paths[row] for row in each.images], "exact": each.exact}
            for each in self.duplicates
        ]


def copies_of(images: LabelledImages, backbone: ComparedBackbone) -> Copies:
    """Find images that are the same, or nearly so.

    Parameters
    ----------
    images : LabelledImages
        That can be read.
    backbone : ComparedBackbone
        Its cache has their codes. Those of the deepest layer tell copies best.
    """
    from sklearn.base import clone

    from sk_cnncodes.inspection.audit import data_warnings, image_digests
    from sk_cnncodes.inspection.duplicates import (
        duplicate_groups,
        find_bursts,
        find_duplicates,
    )
    from sk_cnncodes.ranking.layer_codes import parts_of

    deepest = max(backbone.layers, key=lambda layer: layer.multiply_adds)
    own = clone(backbone.transformer)
    own.set_params(layer=parts_of(deepest.which)[0], norm=None, verbose=False)
    codes = own.fit_transform(images.paths)
    digests = image_digests(images.paths, own)
    labels = images.labels
    duplicates = find_duplicates(
        images.paths, codes, labels, digests=digests, n_jobs=own.n_jobs
    )
    groups = images.groups
    if not duplicates:
        return Copies([], None if groups is None else group_numbers(groups))
    together = duplicate_groups(duplicates, len(images), groups)
    count = len({row for each in duplicates for row in each.images})
    shown = [Path(images.paths[row]).parts[-2:] for row in duplicates[0].images[:3]]
    names = ", ".join(map("/".join, shown))
    how = "are kept on one side of each split"
    if not _can_be_split(together, strata(images)):
        # Photographs of a fixed scene, such as of a production line.
        exact = [each for each in duplicates if each.exact]
        together = duplicate_groups(exact, len(images), groups)
        how = "are too many to keep on one side; only equal files are"
    note = (
        f"{count} images are copies of each other, or nearly, such as {names}. They "
        f"{how}. sk-cnncodes audit lists them."
    )
    bursts = None
    if groups is None:
        bursts = find_bursts(duplicates, labels, len(images))
    alone = groups is None and len(np.unique(together)) == len(images)
    notes = (note, *data_warnings(duplicates, [], bursts))
    return Copies(duplicates, None if alone else together, notes)


def _can_be_split(together: np.ndarray, kinds: np.ndarray) -> bool:
    """Whether no group is most of the images, and most classes have several."""
    pairs = np.unique(np.column_stack([kinds, together]), axis=0)
    several = np.bincount(pairs[:, 0])[np.bincount(kinds) > 1] > 1
    largest = np.bincount(together).max()
    return bool(3 * largest <= len(together) and 2 * several.sum() >= len(several))
