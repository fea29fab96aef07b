"""Exact and near duplicates, what follows for splits, and bursts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from sk_cnncodes import CNNCodeTransformer, DuplicateImages
from sk_cnncodes.inspection.duplicates import (
    duplicate_groups,
    find_bursts,
    find_duplicates,
)
from tests.inspection.scenes import arrays, burst, scene


def _codes(images: list[np.ndarray]) -> np.ndarray:
    return CNNCodeTransformer().fit_transform(images)


def _recompressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def _crop(image: Image.Image, share: float) -> Image.Image:
    side = round(share * image.width)
    return image.crop((image.width - side, 0, image.width, side))


def test_copies_are_found_and_different_scenes_are_not() -> None:
    scenes = [scene(seed) for seed in range(30)]
    copies = [
        _recompressed(scenes[0], 30),
        scenes[1].resize((80, 80)),
        scenes[2].resize((400, 400)),
        ImageEnhance.Brightness(scenes[3]).enhance(1.3),
    ]
    images = arrays([*scenes, *copies])
    found = find_duplicates(images, _codes(images))
    assert {each.images for each in found} == {(row, 30 + row) for row in range(4)}
    assert not any(each.exact for each in found)
    assert all(each.similarity >= 0.87 for each in found)


def test_exact_ones_are_told_by_their_digests() -> None:
    images = arrays([scene(seed) for seed in range(25)])
    images += [images[3], images[3]]
    digests = [image.tobytes() for image in images]
    (found,) = find_duplicates(images, _codes(images), digests=digests)
    assert found == DuplicateImages((3, 25, 26), True, 1.0, ())
    (found,) = find_duplicates(images, _codes(images))  # files may differ
    assert found == DuplicateImages((3, 25, 26), False, 1.0, ())


def test_a_crop_of_a_copied_image_joins_all_copies() -> None:
    scenes = [scene(seed) for seed in range(25)]
    images = arrays([*scenes, scenes[3], _crop(scenes[3], 0.95)])
    digests = [image.tobytes() for image in images]
    found = find_duplicates(images, _codes(images), digests=digests)
    assert [(each.images, each.exact) for each in found] == [
        ((3, 25), True),
        ((3, 25, 26), False),
    ]


def test_contradicting_labels_come_first() -> None:
    scenes = [scene(seed) for seed in range(25)]
    images = arrays([*scenes, *scenes[:3], _crop(scenes[4], 0.95)])
    labels = np.array(["cat"] * 25 + ["cat", "dog", "cat", "dog"])
    digests = [image.tobytes() for image in images]
    found = find_duplicates(images, _codes(images), labels, digests=digests)
    assert [(each.images, each.labels) for each in found] == [
        ((1, 26), ("cat", "dog")),
        ((4, 28), ("cat", "dog")),
        ((0, 25), ("cat",)),
        ((2, 27), ("cat",)),
    ]
    assert [each.is_contradiction for each in found] == [True, True, False, False]


def test_values_need_not_be_equal_for_near_duplicates() -> None:
    scenes = [scene(seed) for seed in range(25)]
    images = arrays([*scenes, scenes[0], _crop(scenes[1], 0.95)])
    digests = [image.tobytes() for image in images]
    values = np.arange(27) / 3
    exact, near = find_duplicates(images, _codes(images), values, digests=digests)
    assert (exact.images, exact.is_contradiction) == ((0, 25), True)
    assert (near.images, near.is_contradiction) == ((1, 26), False)


def test_small_images_that_look_alike_are_no_duplicates() -> None:
    """Digits of 8 x 8 pixels: half of the pairs match better than crops of photos."""
    images = load_digits().images[:200] / 16
    assert len(find_duplicates(images, _codes(list(images)))) <= 1


def test_images_without_contrast() -> None:
    images = [np.full((40, 40, 3), value, np.uint8) for value in range(0, 240, 8)]
    assert all(each.similarity == 1 for each in find_duplicates(images, _codes(images)))


@pytest.mark.parametrize("count", [1, 2])
def test_few_images(count: int) -> None:
    images = arrays([scene(0), _recompressed(scene(0), 50)][:count])
    found = find_duplicates(images, _codes(images))
    assert [each.images for each in found] == [(0, 1)] * (count - 1)


def test_groups_keep_duplicates_and_given_groups_together() -> None:
    duplicates = [
        DuplicateImages((0, 3), True, 1.0, ()),
        DuplicateImages((4, 5), False, 0.9, ()),
    ]
    found = duplicate_groups(duplicates, 7)
    assert len(np.unique(found)) == 5
    assert found[0] == found[3]
    assert found[4] == found[5]
    # Groups a and b share a duplicate; c does not.
    found = duplicate_groups(duplicates, 7, list("aabbccd"))
    assert [len(set(found[:4])), len(set(found[4:6])), len(set(found))] == [1, 1, 3]
    assert len(np.unique(duplicate_groups([], 7))) == 7


def test_bursts_are_recognised() -> None:
    """Most images of a burst are joined, and no two scenes."""
    images = [each for k in range(12) for each in burst(scene(k), 6, k)]
    truth = np.repeat(np.arange(12), 6)
    labels = np.where(truth < 6, "fox", "owl")
    found = find_duplicates(arrays(images), _codes(arrays(images)), labels)
    assert all(len({*truth[list(each.images)]}) == 1 for each in found)
    bursts = find_bursts(found, labels, len(images))
    assert bursts is not None
    assert bursts.in_bursts > 60
    assert 12 <= bursts.scenes <= 20
    assert (bursts.largest, bursts.images) == (6, 72)
    assert 4 <= bursts.typical <= 6
    assert {*bursts.classes} == {"fox", "owl"}


def test_few_near_duplicates_are_no_bursts() -> None:
    duplicates = [DuplicateImages((0, 1), False, 0.9, ("a",))]
    assert find_bursts(duplicates, ["a"] * 50 + ["b"] * 50, 100) is None
    copies = [DuplicateImages(tuple(range(90)), True, 1.0, ("a",))]
    assert find_bursts(copies, ["a"] * 100, 100) is None


def test_photographs(shared: Path) -> None:
    """Caltech-101 has copies of its own; crops of its photographs are found."""
    paths = sorted((shared / "data" / "caltech20" / "train").glob("*/*.jpg"))[::5]
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    chosen = range(0, 120, 4)
    crops = []
    for row in chosen:
        height, width = images[row].shape[:2]
        crops.append(images[row][height // 8 :, : width - width // 8])
    every = images + crops
    groups = duplicate_groups(find_duplicates(every, _codes(every)), len(every))
    same = groups[list(chosen)] == groups[len(images) :]
    assert same.mean() >= 0.9
    assert len(np.unique(groups[: len(images)])) >= len(images) - 6
