"""Which images are held out for the report, and what to know of them."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from sk_cnncodes.datasets.labelled_images import LabelledImages

# Ratio of class sizes, and number of held-out images, that a warning names.
MAX_RATIO = 10
FEW_HELD_OUT = 30


@dataclass(frozen=True)
class Parts:
    """Images to train on, and images held out for the report.

    Attributes
    ----------
    train, held_out : LabelledImages
    everything : LabelledImages
        All of them.
    drawn : bool
        Whether they were held out at random; otherwise the data says which.
    notes : tuple of str
        Sentences about how they were chosen, and what to beware of.
    """

    train: LabelledImages
    held_out: LabelledImages
    everything: LabelledImages
    drawn: bool
    notes: tuple[str, ...]


def _join(one: LabelledImages, other: LabelledImages) -> LabelledImages:
    """The images of both, without splits."""
    groups = None
    if one.groups is not None and other.groups is not None:
        groups = one.groups + other.groups
    return replace(
        one,
        paths=one.paths + other.paths,
        labels=one.labels + other.labels,
        groups=groups,
        splits=None,
        classes=one.classes if one.task == "multilabel" else (),
    )


def with_test(images: LabelledImages, test: LabelledImages) -> LabelledImages:
    """Images to train on, and ready ones to test on, by their splits.

    Raises
    ------
    ValueError
        If they are for different tasks.
    """
    if images.task != test.task:
        raise ValueError(
            f"--test: expected labels for {images.task}, as those of DATA, got "
            f"{test.task}."
        )
    classes = tuple(sorted({*images.classes, *test.classes}))
    joined = _join(replace(images, classes=classes), test)
    own = images.splits or ["train"] * len(images)
    return replace(joined, splits=[*own, *["test"] * len(test)])


def split_images(
    images: LabelledImages,
    share: float,
    seed: int,
    together: np.ndarray | None = None,
) -> Parts:
    """Hold out images for the report.

    Those of the part "test" of the data, or else "validation", if it has parts.
    Otherwise a share of the images, at random: of each class about the same share, and
    at least one, but not the last one or the last group; whole groups.

    Parameters
    ----------
    images : LabelledImages
    share : float
        Between 0 and 1; 0 holds nothing out.
    seed : int
    together : ndarray of int, shape (n_images,), or None, default=None
        Images of the same number are kept on one side; None are the groups. They are
        the groups of the parts.

    Raises
    ------
    ValueError
        If too few images are left to train on.
    """
    notes = list[str]()
    if together is None and images.groups is not None:
        together = group_numbers(images.groups)
    if together is not None:
        images = replace(images, groups=[str(number) for number in together])
    drawn = images.splits is None or share == 0
    if not drawn:
        train, held_out = _given_parts(images, notes)
    elif share > 0:
        train, held_out = _drawn(images, share, seed, together)
    else:
        train, held_out = list(range(len(images))), []
    images = replace(images, splits=None)
    parts = images.take(train), images.take(held_out)
    _check(images, parts[0], share)
    notes += _warnings(*parts, together is not None)
    return Parts(*parts, images.take(sorted(train + held_out)), drawn, tuple(notes))


def _given_parts(
    images: LabelledImages, notes: list[str]
) -> tuple[list[int], list[int]]:
    """Positions of the parts that the data itself has."""
    name = "test" if images.rows_of("test") else "validation"
    held_out = images.rows_of(name)
    train = [row for row in range(len(images)) if row not in {*held_out}]
    if not train or not held_out:
        raise ValueError(
            "the parts of the data: expected images to train on, and images to test "
            f"on; got {len(train)} and {len(held_out)}. --held-out 0 trains on all."
        )
    notes.append(
        f"Held out: the {len(held_out)} images of the part {name!r}; the other "
        f"{len(train)} train."
    )
    if images.groups is not None:
        of_train = {images.groups[row] for row in train}
        both = {images.groups[row] for row in held_out} & of_train
        if both:
            notes.append(
                f"{len(both)} groups, or sets of copies, have images in both parts: "
                "the held-out figures are too good for new ones."
            )
    if images.task == "classification":
        known = {images.labels[row] for row in train}
        strange = [row for row in held_out if images.labels[row] not in known]
        if strange:
            names = sorted({images.labels[row] for row in strange})
            notes.append(
                f"{len(strange)} held-out images are of classes that no image trains, "
                f"and are left out: {_listed(names)}."
            )
            held_out = [row for row in held_out if row not in {*strange}]
    return train, held_out


def group_numbers(groups: list[str]) -> np.ndarray:
    """Groups by numbers without gaps."""
    numbers: np.ndarray = np.unique(groups, return_inverse=True)[1]
    return numbers


def strata(images: LabelledImages) -> np.ndarray:
    """What images are spread by: their class, or the rarest of their labels."""
    if images.task == "regression":
        return np.zeros(len(images), int)
    labels = images.labels
    if images.task == "multilabel":
        counts = Counter(label for each in labels for label in each)
        labels = [
            min(each, key=lambda label: (counts[label], label), default="")
            for each in labels
        ]
    numbers: np.ndarray = np.unique(labels, return_inverse=True)[1]
    return numbers


def _drawn(
    images: LabelledImages, share: float, seed: int, together: np.ndarray | None
) -> tuple[list[int], list[int]]:
    """Positions of images to train on, and of those that are drawn to be held out."""
    kinds = strata(images)
    units = np.arange(len(images)) if together is None else together
    pairs = np.unique(np.column_stack([kinds, units]), axis=0)
    # Classes of one image, or one group, train.
    several = np.bincount(pairs[:, 0]) > 1
    fixed = np.isin(units, pairs[~several[pairs[:, 0]], 1])
    free = np.flatnonzero(~fixed)
    if len(np.unique(units[free])) < 2:
        return list(range(len(images))), []
    first = np.unique(units[free], return_index=True)[1]
    if 2 * len(first) > len(free):  # most are alone, and stand for themselves
        ones = free[np.sort(first)]
        counts = np.bincount(kinds[ones])
        ones = ones[counts[kinds[ones]] > 1]
        if not len(ones):
            return list(range(len(images))), []
        train, held_out = _drawn_images(kinds, ones, share, seed)
        rest = np.setdiff1d(free, np.concatenate([train, held_out]))
        apart = np.isin(units[rest], units[held_out])
        train = np.concatenate([train, rest[~apart]])
        held_out = np.concatenate([held_out, rest[apart]])
    else:
        train, held_out = _drawn_groups(kinds, units, free, share, seed)
    train = np.concatenate([train, np.flatnonzero(fixed)])
    # Of each class, a group trains.
    for kind in np.setdiff1d(kinds, kinds[train]):
        back = np.isin(held_out, np.flatnonzero(kinds == kind)).argmax()
        moved = units[held_out] == units[held_out[back]]
        train, held_out = np.append(train, held_out[moved]), held_out[~moved]
    return train.tolist(), held_out.tolist()


def _drawn_images(
    kinds: np.ndarray, free: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    n_kinds = len(np.unique(kinds[free]))
    n_held_out = max(round(share * len(free)), n_kinds)
    train, held_out = train_test_split(
        free,
        test_size=min(n_held_out, len(free) - n_kinds),
        stratify=kinds[free],
        random_state=seed,
    )
    # Of small classes, it may have taken none.
    for kind in np.setdiff1d(kinds[free], kinds[held_out]):
        moved = np.argmax(kinds[train] == kind)
        held_out, train = np.append(held_out, train[moved]), np.delete(train, moved)
    return np.asarray(train), np.asarray(held_out)


def _drawn_groups(
    kinds: np.ndarray, units: np.ndarray, free: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whole groups: the fold that has the right size, or is what it leaves."""
    from sklearn.model_selection import StratifiedGroupKFold

    small = min(share, 1 - share)
    most = min(len(np.unique(units[free])), np.bincount(kinds[free]).max())
    n_folds = min(max(2, round(1 / small)), int(most))
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    wanted = len(free) * small
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        found = [test for _, test in folds.split(free, kinds[free], units[free])]

    def misfit(test: np.ndarray) -> tuple[int, float]:
        missing = len(np.unique(kinds[free])) - len(np.unique(kinds[free[test]]))
        return missing, abs(len(test) - wanted)

    best = min((test for test in found if len(test)), key=misfit)
    chosen, others = free[best], np.delete(free, best)
    return (others, chosen) if share <= 0.5 else (chosen, others)


# -- what to know of them ------------------------------------------------------


def _check(images: LabelledImages, train: LabelledImages, share: float) -> None:
    """Raise a ValueError if too few images are left to train on."""
    if images.task == "regression":
        if len(train) < 4:
            raise ValueError(
                f"too few images: {len(train)} to train on. Expected at least 4."
            )
        return
    counts = _counts(images)
    if images.task == "classification" and len(counts) < 2:
        raise ValueError(
            f"found images of {len(counts)} class: {sorted(counts)}. Expected at "
            f"least 2 classes{_hint(images)}."
        )
    left = _counts(train)
    if sum(count > 1 for count in left.values()) < min(2, len(counts)):
        few = [f"{name!r} has {left[name]}" for name in sorted(counts)[:5]]
        raise ValueError(
            f"too few images to train on: {', '.join(few)}. Expected at least 2 of at "
            f"least 2 classes ({share:g} of all are held out). Add images, or lower "
            "--held-out."
        )


def _hint(images: LabelledImages) -> str:
    """Where classes may be if there is one folder alone."""
    folders = {os.path.dirname(path) for path in images.paths}  # noqa: PTH120
    if len(folders) < 2:
        return ""
    return f"; pass {os.path.commonpath(folders)!r} if its folders are the classes"


def _counts(images: LabelledImages) -> Counter[str]:
    if images.task == "multilabel":
        return Counter(label for labels in images.labels for label in labels)
    return Counter(images.labels)


def _warnings(
    train: LabelledImages, held_out: LabelledImages, grouped: bool
) -> list[str]:
    """What to beware of, in plain words."""
    notes = list[str]()
    if train.task == "classification":
        counts, tested = _counts(train), _counts(held_out)
        alone = sorted(name for name, count in counts.items() if count == 1)
        if alone:
            notes.append(
                f"Classes with one image to train on: {_listed(alone)}. It trains, and "
                "is not tested in cross-validation."
            )
        untested = sorted(name for name in counts if not tested[name])
        if len(held_out) and untested:
            of = "groups" if grouped else "images"
            notes.append(
                f"No image of {_listed(untested)} is held out: too few {of} of it."
            )
        sizes = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        (large, most), *_, (small, least) = sizes
        if most > MAX_RATIO * least:
            notes.append(
                f"Class sizes differ much: {large!r} has {most} images to train on, "
                f"{small!r} {least}. The accuracy says little of small classes; "
                "--scoring balanced_accuracy and --class-weight balanced count classes "
                "alike."
            )
    if 0 < len(held_out) < FEW_HELD_OUT:
        count = len(held_out)
        effect = ""
        if train.task == "classification":
            effect = f" One more mistake is {100 / count:.0f} points of accuracy."
        notes.append(
            f"Only {count} {'image is' if count == 1 else 'images are'} held out: "
            f"figures about them are uncertain.{effect} Trust cross-validation more."
        )
    return notes


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
