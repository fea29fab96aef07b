"""Which images are held out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_cnncodes import LabelledImages
from sk_cnncodes.cli.common.splitting import Parts, split_images, with_test


def made(labels: list[str], **more: list[str]) -> LabelledImages:
    return LabelledImages([f"{row}.jpg" for row in range(len(labels))], labels, **more)


def check(images: LabelledImages, parts: Parts) -> None:
    """Nothing is lost, and no group is on both sides."""
    assert sorted(parts.train.paths + parts.held_out.paths) == sorted(images.paths)
    assert parts.everything.paths == images.paths
    if parts.train.groups is not None and parts.held_out.groups is not None:
        assert not {*parts.train.groups} & {*parts.held_out.groups}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_each_class_trains_and_groups_stay_together(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=5))
    labels = [name for name, n in zip("abcde", sizes, strict=False) for _ in range(n)]
    few = data.draw(st.integers(1, 30))
    groups = data.draw(
        st.none()
        | st.lists(st.integers(0, few), min_size=len(labels), max_size=len(labels))
    )
    names = None if groups is None else [str(group) for group in groups]
    images = made(labels, groups=names)
    share = data.draw(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.8]))
    try:
        parts = split_images(images, share, data.draw(st.integers(0, 3)))
    except ValueError as error:
        assert "too few images to train on" in str(error)
        return
    check(images, parts)
    assert {*parts.train.labels} == {*labels}
    pairs = {*zip(labels, names or images.paths, strict=True)}
    units = Counter(label for label, _ in pairs)
    for name, count in Counter(parts.held_out.labels).items():
        assert units[name] > 1, count
    if groups is None and share > 0:
        assert {*parts.held_out.labels} == {n for n in units if units[n] > 1}


def test_the_share_is_kept() -> None:
    images = made(["a"] * 60 + ["b"] * 40)
    assert Counter(split_images(images, 0.2, 0).held_out.labels) == {"a": 12, "b": 8}
    groups = [f"{number // 5}" for number in range(100)]
    parts = split_images(made(images.labels, groups=groups), 0.2, 0)
    assert 15 <= len(parts.held_out) <= 25
    assert {*parts.held_out.labels} == {"a", "b"}


def test_images_of_which_a_few_belong_together() -> None:
    together = np.arange(100)
    together[[3, 50, 97]] = 3
    images = made(["a"] * 60 + ["b"] * 40)
    parts = split_images(images, 0.3, 0, together)
    assert 25 <= len(parts.held_out) <= 35
    of_copies = [path in parts.train.paths for path in ("3.jpg", "50.jpg", "97.jpg")]
    assert of_copies in ([True] * 3, [False] * 3)


def test_a_class_of_one_image_trains_and_is_said() -> None:
    parts = split_images(made(["a"] * 20 + ["b"] * 20 + ["c"]), 0.2, 0)
    assert "c" in parts.train.labels
    notes = " ".join(parts.notes)
    assert "Classes with one image to train on: 'c'." in notes
    assert "No image of 'c' is held out: too few images of it." in notes
    assert "Class sizes differ much: 'a' has 16 images to train on, 'c' 1." in notes


def test_few_held_out_images_are_said() -> None:
    parts = split_images(made(["a", "b"] * 20), 0.2, 0)
    assert "Only 8 images are held out" in parts.notes[-1]
    assert "One more mistake is 12 points of accuracy." in parts.notes[-1]
    assert split_images(made(["a", "b"] * 80), 0.2, 0).notes == ()


# -- given parts ---------------------------------------------------------------


def test_the_part_test_is_held_out() -> None:
    splits = ["train"] * 4 + ["validation"] * 2 + ["test"] * 3
    groups = [*"ppqqrr", *"pst"]
    images = made(["a", "b"] * 3 + ["a", "b", "c"], splits=splits, groups=groups)
    parts = split_images(images, 0.2, 0)
    assert parts.held_out.paths == ["6.jpg", "7.jpg"]
    assert len(parts.train) == 6 and not parts.drawn
    assert parts.everything.paths == [f"{number}.jpg" for number in range(8)]
    notes = " ".join(parts.notes)
    assert "1 groups, or sets of copies, have images in both" in notes
    assert "of classes that no image trains, and are left out: 'c'" in notes
    assert len(split_images(images, 0, 0).train) == 9


def test_without_a_part_test_validation_is_held_out() -> None:
    splits = ["train"] * 6 + ["validation"] * 2
    parts = split_images(made(["a", "b"] * 4, splits=splits), 0.2, 0)
    assert parts.held_out.paths == ["6.jpg", "7.jpg"]


def test_a_part_may_be_missing() -> None:
    images = made(["a", "b"] * 4, splits=["test"] * 8)
    with pytest.raises(ValueError, match="images to train on, and images to test on"):
        split_images(images, 0.2, 0)


def test_ready_test_images() -> None:
    joined = with_test(made(["a", "b"] * 3), made(["b", "a"]))
    parts = split_images(joined, 0.2, 0)
    assert (len(parts.train), parts.held_out.labels) == (6, ["b", "a"])
    values = LabelledImages(["x.jpg"], [1.5], task="regression")
    with pytest.raises(ValueError, match="expected labels for classification"):
        with_test(made(["a", "b"]), values)


# -- other tasks ---------------------------------------------------------------


def test_values_and_several_labels() -> None:
    paths = [f"{row}.jpg" for row in range(50)]
    values = LabelledImages(paths, [float(row) for row in range(50)], task="regression")
    parts = split_images(values, 0.2, 0)
    assert len(parts.held_out) == 10
    labels = [["common", "rare"] if row < 4 else ["common"] for row in range(50)]
    several = LabelledImages(paths, labels, task="multilabel")
    parts = split_images(several, 0.2, 0)
    held_out = [label for each in parts.held_out.labels for label in each]
    assert (held_out.count("rare"), len(parts.held_out)) == (1, 10)
    assert parts.train.targets.shape == (40, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 9, r"found images of 1 class: \['a'\]. Expected at least 2"),
        (["a"] * 9 + ["b"], "too few images to train on: 'a' has 7, 'b' has 1"),
    ],
)
def test_too_few_images(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_images(made(labels), 0.2, 0)


def test_one_folder_inside_another_is_named() -> None:
    paths = ["data/all/cat/1.jpg", "data/all/dog/2.jpg"]
    with pytest.raises(ValueError, match="pass 'data/all' if its folders are"):
        split_images(LabelledImages(paths, ["all", "all"]), 0.2, 0)
