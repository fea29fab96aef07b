"""Labels that models and neighbours disagree with, and images like no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sk_cnncodes import CNNCodeTransformer
from sk_cnncodes.inspection.suspects import find_outliers, find_suspect_labels


def _flipped(
    labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, set[int]]:
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), round(share * len(labels)), replace=False)
    found, classes = labels.copy(), np.unique(labels)
    for row in rows:
        found[row] = rng.choice(classes[classes != labels[row]])
    return found, {*rows.tolist()}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Codes and labels of 400 digits."""
    data = load_digits()
    images = list(data.images[:400] / 16)
    return CNNCodeTransformer(layer=-3).fit_transform(images), data.target[:400]


def test_flipped_labels_are_the_most_suspect(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    codes, truth = digits
    labels, wrong = _flipped(truth, 0.05, 0)
    found = find_suspect_labels(codes, labels)
    top = found[: len(wrong)]
    assert len({each.image for each in top} & wrong) >= 0.9 * len(wrong)
    assert all(each.label == labels[each.image] for each in found)
    right = [each.suggested == truth[each.image] for each in top if each.image in wrong]
    assert np.mean(right) > 0.9
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    assert all(each.suggested_probability > each.probability for each in found)
    assert all(len(each.neighbours) == 10 for each in found)
    assert all(each.image not in each.neighbours for each in found)


def test_given_probabilities_are_used(digits: tuple[np.ndarray, np.ndarray]) -> None:
    codes, truth = digits
    sure = np.eye(10)[truth]
    sure[3] = np.eye(10)[(truth[3] + 1) % 10]
    sure[4] = np.nan  # no fold tested it
    (found,) = find_suspect_labels(codes, truth, probabilities=sure)
    assert (found.image, found.suggested) == (3, (truth[3] + 1) % 10)


def test_images_of_a_group_are_no_witnesses(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    """A burst under a wrong label: its images confirm each other."""
    codes, truth = digits
    row = int(np.flatnonzero(truth == 7)[0])
    codes = np.vstack([codes, np.repeat(codes[row : row + 1], 12, axis=0)])
    labels = np.concatenate([truth, [3] * 12])
    labels[row] = 3
    groups = np.concatenate([np.arange(400), [row] * 12])
    alone = {each.image for each in find_suspect_labels(codes, labels)}
    together = find_suspect_labels(codes, labels, groups)
    assert row not in alone
    assert row in {each.image for each in together[:14]}
    (found,) = (each for each in together if each.image == row)
    assert not {*found.neighbours} & {*range(400, 412)}
    assert found.suggested == 7


def test_classes_that_no_model_can_know_are_left_out(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    codes, truth = digits
    labels = truth.astype(str)
    labels[10] = "alone"
    assert 10 not in {each.image for each in find_suspect_labels(codes, labels)}
    assert find_suspect_labels(codes, np.zeros(400)) == []


def test_outliers_are_images_like_no_other(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    codes, _ = digits
    rng = np.random.default_rng(0)
    noise = list(rng.random((2, 8, 8)))
    codes = np.vstack([codes, CNNCodeTransformer(layer=-3).fit_transform(noise)])
    found = find_outliers(codes)
    assert {each.image for each in found[:2]} == {400, 401}
    assert all(each.ratio > 1 for each in found)
    # Images of a group do not make each other usual.
    many = np.vstack([codes, np.repeat(codes[400:401], 12, axis=0)])
    groups = np.concatenate([np.arange(402), [400] * 12])
    assert 400 in {each.image for each in find_outliers(many, groups)}
    assert 400 not in {each.image for each in find_outliers(many)}


def test_wrong_labels_of_photographs(shared: Path) -> None:
    paths = sorted((shared / "data" / "caltech20" / "train").glob("*/*.jpg"))
    truth = np.array([path.parent.name for path in paths])
    codes = CNNCodeTransformer().fit_transform(paths)
    shares = []
    for seed in range(5):
        labels, wrong = _flipped(truth, 0.05, seed)
        top = find_suspect_labels(codes, labels)[: len(wrong)]
        shares.append(len({each.image for each in top} & wrong) / len(wrong))
    assert np.mean(shares) >= 0.9
    assert min(shares) >= 0.8
