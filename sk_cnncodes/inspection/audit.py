"""Audit labelled images: duplicates, suspect labels, outliers, class sizes."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import clone

from sk_cnncodes.base.public import public
from sk_cnncodes.base.threads import OrderedThreadPool
from sk_cnncodes.cache.code_cache import CodeCache, resolve_cache
from sk_cnncodes.codes.digests import ImageDigests
from sk_cnncodes.codes.elements import Elements
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.images.containers import as_image_sequence
from sk_cnncodes.inspection.audited import Audit
from sk_cnncodes.inspection.duplicates import (
    duplicate_groups,
    find_bursts,
    find_duplicates,
)
from sk_cnncodes.inspection.findings import (
    Bursts,
    ClassSize,
    DuplicateImages,
    SuspectLabel,
)
from sk_cnncodes.inspection.suspects import find_outliers, find_suspect_labels

# The largest class may have so many times the images of the smallest.
_MAX_RATIO = 10


@public
def audit(
    images: Any,
    labels: Any = None,
    groups: Any = None,
    *,
    backbone: Any = "cnncodes-mini",
    layer: Any = -1,
    cache: str | os.PathLike[str] | CodeCache | None = "memory",
    device: str = "auto",
    n_jobs: int | None = -1,
    verbose: bool = False,
) -> Audit:
    """Find duplicates, suspect labels and outliers among images.

    Parameters
    ----------
    images : container of images
        As for `CNNCodeTransformer`, without generators.
    labels : sequence or None, default=None
        A class for each image; a list of labels; or a value to regress. Of the last
        two, no label is called suspect.
    groups : array-like, shape (n_images,), or None, default=None
        What each image belongs to, such as its photographed object or its burst.
        Images of a group are no witnesses for each other's labels.
    backbone : str, path-like or CNNCodeTransformer, default="cnncodes-mini"
        As in `rank_codes`.
    layer : int, str or list of them, default=-1
        As in `CNNCodeTransformer`.
    cache : "memory", str, path-like, CodeCache or None, default="memory"
        As in `CNNCodeTransformer`.
    device : str, default="auto"
        As in `CNNCodeTransformer`.
    n_jobs : int or None, default=-1
        Number of threads; -1 uses all cores.
    verbose : bool, default=False
        Whether to show a progress bar on standard error.

    Returns
    -------
    audit : Audit
        It prints as text, at most a screenful.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid, or the lengths differ.
    ImageError
        If an image cannot be read.

    Notes
    -----
    Near duplicates are crops of 70% or more, mirrored, rotated by a few degrees,
    recompressed or scaled copies, and neighbours in a burst. They are sought among the
    three nearest neighbours of each image by code, and confirmed by the pixels of
    thumbnails. Suspect labels are those of `SuspectLabel`: models without the image, or
    its group, prefer another class. Their number is no estimate of wrong labels: where
    classes are hard to tell apart, right labels are among them, with lower scores.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import audit
    >>> digits = load_digits()
    >>> labels = digits.target[:200].copy()
    >>> labels[17] = 3  # it is a 7
    >>> found = audit(digits.images[:200] / 16, labels)
    >>> found.suspects[0].image, found.suspects[0].suggested
    (17, 7)
    """
    images = as_image_sequence(images)
    given = isinstance(backbone, CNNCodeTransformer)
    transformer = CNNCodeTransformer(backbone) if not given else backbone
    transformer = configured(transformer, layer, cache, device, n_jobs, verbose)
    codes = transformer.fit_transform(images)
    digests = image_digests(images, transformer)
    return audit_codes(images, codes, labels, groups, digests=digests, n_jobs=n_jobs)


def configured(
    transformer: CNNCodeTransformer,
    layer: Any,
    cache: Any,
    device: str,
    n_jobs: int | None,
    verbose: bool = False,
) -> CNNCodeTransformer:
    """A transformer with the codes that `audit_codes` takes."""
    found: CNNCodeTransformer = clone(transformer).set_params(
        layer=layer,
        norm=None,
        cache=cache,
        device=device,
        n_jobs=n_jobs,
        verbose=verbose,
        on_error="raise",
    )
    return found


def image_digests(images: Any, transformer: CNNCodeTransformer) -> list[bytes]:
    """Digests of images, of which a cache remembers those of files.

    Parameters
    ----------
    images : sequence
        That can be read.
    transformer : CNNCodeTransformer
        Its cache, threads and limit of pixels are used.
    """
    n_threads = effective_n_jobs(transformer.n_jobs)
    cache = resolve_cache(transformer.cache) or CodeCache()
    found = list[bytes]()
    elements = Elements(as_image_sequence(images))
    with OrderedThreadPool(n_threads, "digests") as pool:

        def run(function: Any, items: Any) -> Any:
            return pool.in_order(function, items, 4 * n_threads)

        digests = ImageDigests(elements, cache, run, transformer.max_pixels)
        for chunk in elements.chunks(4096, run):
            for index, digest in zip(chunk, digests.many(chunk), strict=True):
                if not isinstance(digest, bytes):
                    raise digest
                found.append(digest)
                elements.drop(index)
    return found


def audit_codes(
    images: Sequence[Any],
    codes: np.ndarray,
    labels: Any = None,
    groups: Any = None,
    *,
    digests: Sequence[bytes] | None = None,
    probabilities: np.ndarray | None = None,
    duplicates: Sequence[DuplicateImages] | None = None,
    n_jobs: int | None = -1,
) -> Audit:
    """Audit images whose codes are known; see `audit`.

    Parameters
    ----------
    codes : ndarray of float32, shape (n_images, n_features)
        Of layer -1, without norm.
    digests : sequence of bytes or None, default=None
        As of `image_digests`.
    probabilities : ndarray, shape (n_images, n_classes), or None, default=None
        Out-of-fold, as `CNNCodeClassifier.cv_predictions_`; None computes them.
    duplicates : sequence of DuplicateImages or None, default=None
        As of `find_duplicates`, if they are known.
    """
    n_images = len(codes)
    labels = None if labels is None else list(labels)
    for name, values in (("labels", labels), ("groups", groups)):
        if values is not None and len(values) != n_images:
            raise ValueError(
                f"{name}: expected one for each of the {n_images} images, got "
                f"{len(values)}."
            )
    if duplicates is None:
        duplicates = find_duplicates(
            images, codes, labels, digests=digests, n_jobs=n_jobs
        )
    scenes = duplicate_groups(duplicates, n_images, groups)
    suspects: list[SuspectLabel] = []
    sizes: list[ClassSize] = []
    if labels is not None and not _are_values(labels):
        if not _are_lists(labels):
            suspects = find_suspect_labels(
                codes, labels, scenes, probabilities=probabilities
            )
        sizes = _class_sizes(labels, scenes)
    bursts = None
    if groups is None:
        bursts = find_bursts(duplicates, labels, n_images)
    return Audit(
        images=images,
        labels=labels,
        duplicates=tuple(duplicates),
        suspects=tuple(suspects),
        outliers=tuple(find_outliers(codes, scenes)),
        class_sizes=tuple(sizes),
        bursts=bursts,
        warnings=tuple(data_warnings(duplicates, sizes, bursts)),
        groups=scenes,
    )


def _are_values(labels: list[Any]) -> bool:
    return isinstance(labels[0], (float, np.floating))


def _are_lists(labels: list[Any]) -> bool:
    return isinstance(labels[0], (list, tuple, np.ndarray))


def _class_sizes(labels: list[Any], scenes: np.ndarray) -> list[ClassSize]:
    """Sizes of classes, or of labels, of which an image may have several."""
    counts, units = Counter[Any](), defaultdict[Any, set[int]](set)
    for label, scene in zip(labels, scenes.tolist(), strict=True):
        several: Iterable[Any] = [label]
        if isinstance(label, np.ndarray):
            several = np.flatnonzero(label).tolist()
        elif isinstance(label, (list, tuple)):
            several = label
        for each in several:
            each = each.item() if isinstance(each, np.generic) else each
            counts[each] += 1
            units[each].add(scene)
    sizes = [ClassSize(each, counts[each], len(units[each])) for each in counts]
    return sorted(sizes, key=lambda each: (-each.images, str(each.label)))


def data_warnings(
    duplicates: Iterable[DuplicateImages],
    sizes: Sequence[ClassSize],
    bursts: Bursts | None,
) -> list[str]:
    """What makes figures about these images misleading, in sentences."""
    found = list(duplicates)
    warnings = []
    contradictions = [each for each in found if each.is_contradiction]
    if contradictions:
        same = sum(each.exact for each in contradictions)
        count = len(contradictions)
        sets = "set of duplicates has" if count == 1 else "sets of duplicates have"
        warnings.append(
            f"{count} {sets} several labels, {same} of them equal files: no model can "
            "learn both. Keep the right one."
        )
    if bursts is not None:
        where = ""
        if bursts.classes:
            names = ", ".join(map(str, bursts.classes[:3]))
            more = len(bursts.classes) - 3
            where = f", above all in {names}{f' and {more} more' if more > 0 else ''}"
        warnings.append(
            f"Looks like bursts: {bursts.in_bursts} of {bursts.images} images have "
            f"near duplicates, about {bursts.typical} of each scene{where}; in all "
            f"about {bursts.scenes} scenes. Figures are too good where other images of "
            "the same object are on the other side: say what belongs together with "
            "--group-column or --groups."
        )
    if sizes and sizes[0].images > _MAX_RATIO * sizes[-1].images:
        ratio = sizes[0].images / sizes[-1].images
        warnings.append(
            f"Classes differ in size by {ratio:.0f} to 1 ({sizes[0].label}: "
            f"{sizes[0].images}, {sizes[-1].label}: {sizes[-1].images}): look at the "
            "balanced accuracy, and at small classes one by one."
        )
    return warnings
