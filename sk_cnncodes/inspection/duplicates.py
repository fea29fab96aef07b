"""Copies of images: exact ones by digest, near ones by code and pixels; and bursts.

Near duplicates are looked for among the nearest neighbours of each image by code, and
confirmed by pixels: codes alone cannot tell a crop from another image of its class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sk_cnncodes.images.containers import as_image_sequence
from sk_cnncodes.inspection.findings import Bursts, DuplicateImages
from sk_cnncodes.inspection.neighbours import nearest, unit_codes
from sk_cnncodes.inspection.pixel_matching import pixel_similarity, thumbnails

# Nearest neighbours of each image that are compared with it, and the least cosine at
# which they are. Nearly all crops of 80% of an image, and most of 70%, are above it.
_N_COMPARED = 3
_LEAST_COSINE = 0.45
# Fewer images are all compared: their mean, which cosines leave out, is no one's.
_FEW_IMAGES = 20
# Mirrored images have similar codes.
_LEAST_MIRRORED_COSINE = 0.7
# The least similarity of pixels of near duplicates, and for images that look alike
# anyway, such as shirts of 28 x 28 pixels: so many times, on Fisher's scale, what 95%
# of pairs that are no neighbours stay below.
_LEAST_SIMILARITY = 0.87
_TIMES_UNRELATED = 2.5
_N_UNRELATED = 200
_UNRELATED_COSINE = 0.6
# Bursts are reported from this share of images, or of those of one class.
_LEAST_BURST_SHARE = 0.2
_LEAST_CLASS_SHARE = 0.5
_LEAST_IN_CLASS = 10


def find_duplicates(
    images: Sequence[Any],
    codes: np.ndarray,
    labels: Any = None,
    *,
    digests: Sequence[bytes] | None = None,
    n_jobs: int | None = -1,
) -> list[DuplicateImages]:
    """Find images that are the same, or nearly the same, photograph.

    Parameters
    ----------
    images : container of images
        As for `CNNCodeTransformer`, without generators; those whose codes are near are
        opened.
    codes : ndarray of float32, shape (n_images, n_features)
        Of layer -1, without norm.
    labels : array-like, shape (n_images,) or (n_images, n_labels), or None
        Values to regress need not be equal for near duplicates.
    digests : sequence of bytes or None, default=None
        As of `image_digests`; None finds no exact duplicates, but those with equal
        codes as near ones.
    n_jobs : int or None, default=-1
        Number of threads that open images.

    Returns
    -------
    list of DuplicateImages
        Those under several labels first, then the exact ones, then the largest. An
        image may be in an exact one and in a near one that contains all of those.
    """
    images = as_image_sequence(images)
    codes = np.asarray(codes)
    by_digest = _equal(digests) if digests is not None else []
    by_code = _equal(blake2b(row.tobytes()).digest() for row in codes)
    copies = {rows[0]: rows for rows in by_code}
    again = {row for rows in by_code for row in rows[1:]}
    kept = np.array([row for row in range(len(codes)) if row not in again])
    near = [
        ([each for row in kept[rows] for each in copies.get(row, [row])], similarity)
        for rows, similarity in _near(images, codes, kept, n_jobs)
    ]
    # Equal codes of files or pixels that differ, such as by their metadata.
    exact = {*map(tuple, by_digest)}
    linked = {row for rows, _ in near for row in rows}
    near += [
        (rows, 1.0)
        for rows in by_code
        if tuple(rows) not in exact and rows[0] not in linked
    ]
    keys = _keys(labels, len(codes))
    of_near = [()] * len(codes) if _are_values(labels) else keys
    found = [_record(rows, True, 1.0, keys) for rows in by_digest]
    found += [_record(rows, False, similarity, of_near) for rows, similarity in near]
    return sorted(
        found,
        key=lambda each: (
            *(not each.is_contradiction, not each.exact),
            *(-len(each.images), -each.similarity, each.images),
        ),
    )


def _equal(values: Iterable[Hashable]) -> list[list[int]]:
    """Positions of values that occur several times."""
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        rows[value].append(row)
    return [each for each in rows.values() if len(each) > 1]


def _near(
    images: Sequence[Any], codes: np.ndarray, kept: np.ndarray, n_jobs: int | None
) -> list[tuple[list[int], float]]:
    """Sets of positions in `kept` of near duplicates, with their least similarity."""
    units = unit_codes(codes[kept] if len(kept) < len(codes) else codes)
    rows, cosines = nearest(units, _N_COMPARED)
    gate = _LEAST_COSINE if len(kept) >= _FEW_IMAGES else -2.0
    places = np.nonzero(cosines > gate)
    pairs = np.column_stack([places[0], rows[places]])
    pairs.sort(axis=1)
    pairs = np.unique(pairs, axis=0)
    if not len(pairs):
        return []
    opened, numbers = np.unique(pairs, return_inverse=True)
    thumbs = thumbnails(images, kept[opened], n_jobs)
    first, second = numbers.reshape(pairs.shape).T
    similarity = pixel_similarity(thumbs[first], thumbs[second])
    least = _least_similarity(thumbs, units[opened])
    alike = (units[pairs[:, 0]] * units[pairs[:, 1]]).sum(axis=1)
    turned = np.flatnonzero((similarity < least) & (alike > _LEAST_MIRRORED_COSINE))
    similarity[turned] = np.maximum(
        similarity[turned],
        pixel_similarity(thumbs[first[turned]], thumbs[second[turned]], mirrored=True),
    )
    sure = similarity >= least
    return _merged(pairs[sure], similarity[sure], units, gate)


def _least_similarity(thumbs: np.ndarray, units: np.ndarray) -> float:
    """What pixels of near duplicates must reach among these images."""
    if len(thumbs) < _FEW_IMAGES:
        return _LEAST_SIMILARITY
    pairs = np.random.default_rng(0).integers(0, len(thumbs), (4 * _N_UNRELATED, 2))
    cosines = (units[pairs[:, 0]] * units[pairs[:, 1]]).sum(axis=1)
    first, second = pairs[cosines < _UNRELATED_COSINE][:_N_UNRELATED].T
    if not len(first):
        return _LEAST_SIMILARITY
    typical = np.percentile(pixel_similarity(thumbs[first], thumbs[second]), 95)
    scaled = np.tanh(_TIMES_UNRELATED * np.arctanh(np.clip(typical, 0, 0.99)))
    return float(max(_LEAST_SIMILARITY, scaled))


def _merged(
    pairs: np.ndarray, similarity: np.ndarray, units: np.ndarray, gate: float
) -> list[tuple[list[int], float]]:
    """Join pairs to sets, the surest first.

    Sets are joined if their images are near each other on average too: otherwise a
    chain from image to image would join what has nothing in common.
    """
    members = {int(row): [int(row)] for row in np.unique(pairs)}
    sums = {row: units[row].copy() for row in members}
    least = dict.fromkeys(members, 1.0)
    owner = {row: row for row in members}
    for position in np.argsort(-similarity, kind="stable"):
        a, b = (owner[int(row)] for row in pairs[position])
        if a == b:
            continue
        n_pairs = len(members[a]) * len(members[b])
        if float(sums[a] @ sums[b]) / n_pairs < gate:
            continue
        if len(members[a]) < len(members[b]):
            a, b = b, a
        for row in members[b]:
            owner[row] = a
        members[a] += members.pop(b)
        sums[a] += sums.pop(b)
        least[a] = min(least[a], least.pop(b), float(similarity[position]))
    return [(rows, least[a]) for a, rows in members.items() if len(rows) > 1]


def _record(
    rows: Iterable[int], exact: bool, similarity: float, keys: Sequence[Any]
) -> DuplicateImages:
    rows = sorted(map(int, rows))
    labels = {keys[row] for row in rows} - {()}
    return DuplicateImages(
        tuple(rows), exact, min(similarity, 1.0), tuple(sorted(labels, key=str))
    )


def _are_values(labels: Any) -> bool:
    return labels is not None and isinstance(labels[0], (float, np.floating))


def _keys(labels: Any, count: int) -> list[Any]:
    """The label of each image, or all of its labels; () without labels."""
    if labels is None:
        return [()] * count
    rows = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    return [tuple(row) if isinstance(row, list) else row for row in rows]


# -- what follows ----------------------------------------------------------------


def duplicate_groups(
    duplicates: Iterable[DuplicateImages], n_images: int, groups: Any = None
) -> np.ndarray:
    """Numbers of groups that keep duplicates, and given groups, on one side of a split.

    Parameters
    ----------
    duplicates : iterable of DuplicateImages
    n_images : int
    groups : array-like, shape (n_images,), or None, default=None
        Groups that share a duplicate become one.

    Returns
    -------
    ndarray of int, shape (n_images,)
        Numbers from 0; those of images alone in their group are of no other image.
    """

    links = [
        np.column_stack([each.images[:-1], each.images[1:]]) for each in duplicates
    ]
    if groups is not None:
        numbers = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
        order = np.argsort(numbers, kind="stable")
        same = numbers[order[:-1]] == numbers[order[1:]]
        links.append(np.column_stack([order[:-1], order[1:]])[same])
    first, second = np.concatenate(links).T if links else np.zeros((2, 0), int)
    shape = (n_images, n_images)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape)
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found


def find_bursts(
    duplicates: Iterable[DuplicateImages], labels: Any, n_images: int
) -> Bursts | None:
    """Tell whether many images have a near duplicate of the same class.

    Parameters
    ----------
    duplicates : iterable of DuplicateImages
    labels : array-like, shape (n_images,), or None
    n_images : int

    Returns
    -------
    Bursts or None
        None if they are less than a fifth of all images, and less than half of each
        class of ten images or more.
    """
    near = [each for each in duplicates if not each.exact]
    scenes = duplicate_groups(near, n_images)
    keys = _keys(labels, n_images)
    sizes = np.bincount(scenes)
    bursts = sizes[sizes > 1]
    in_burst = sizes[scenes] > 1
    rows: dict[Any, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    classes = [
        key
        for key, members in rows.items()
        if len(members) >= _LEAST_IN_CLASS
        and in_burst[members].mean() >= _LEAST_CLASS_SHARE
    ]
    share = in_burst.mean() if n_images >= _LEAST_IN_CLASS else 0
    if share < _LEAST_BURST_SHARE and not classes:
        return None
    return Bursts(
        images=n_images,
        in_bursts=int(in_burst.sum()),
        scenes=len(sizes),
        largest=int(bursts.max()),
        typical=int(np.median(bursts)),
        classes=tuple(classes if len(rows) > 1 else ()),
    )
