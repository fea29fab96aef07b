"""audit: everything noteworthy about labelled images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sk_cnncodes import Audit, audit
from sk_cnncodes.inspection.audit import audit_codes, data_warnings
from sk_cnncodes.inspection.findings import Bursts, ClassSize, DuplicateImages
from tests.inspection.scenes import arrays, scene


@pytest.fixture(scope="module")
def digits() -> Audit:
    """An audit of 150 digits, one of them mislabelled and one copied."""
    data = load_digits()
    images = np.concatenate([data.images[:150], data.images[20:21]]) / 16
    labels = np.append(data.target[:150], data.target[20])
    labels[17] = 3  # it is a 7
    return audit(images, labels)


def test_findings_name_images(digits: Audit) -> None:
    assert (digits.suspects[0].image, digits.suspects[0].suggested) == (17, 7)
    (copy,) = digits.duplicates
    assert (copy.images, copy.exact) == ((20, 150), True)
    assert digits.groups[20] == digits.groups[150]
    assert len(np.unique(digits.groups)) == 150
    assert sum(each.images for each in digits.class_sizes) == 151
    assert digits.bursts is None
    assert digits.warnings == ()


def test_it_shows_itself(digits: Audit) -> None:
    text = repr(digits)
    assert text.startswith("151 images of 10 classes: 1 exact and 0 near duplicates")
    assert "#17: 3, or rather 7?" in text
    assert max(map(len, text.splitlines())) <= 80
    html = digits._repr_html_()
    assert "#17: 3, or rather 7?" in html
    assert html.count("<ul>") == html.count("</ul>") >= 3


def test_frames(digits: Audit) -> None:
    pytest.importorskip("pandas")
    frame = digits.to_frame()
    assert frame["image"][0] == "#17"
    assert len(frame) == len(digits.suspects)
    assert digits.to_frame("duplicates")["image"].tolist() == ["#20", "#150"]
    assert len(digits.to_frame("class_sizes")) == 10
    assert len(digits.to_frame("outliers")) == len(digits.outliers)
    with pytest.raises(ValueError, match="kind: expected one of"):
        digits.to_frame("other")


def test_images_without_labels_with_several_and_with_values() -> None:
    images = arrays([scene(seed) for seed in range(24)])
    images.append(images[0])
    plain = audit(images)
    assert [each.images for each in plain.duplicates] == [(0, 24)]
    assert (plain.suspects, plain.class_sizes) == ((), ())
    several = audit(images, [["a", "b"]] * 12 + [["b"]] * 13)
    assert several.duplicates[0].is_contradiction
    assert [(each.label, each.images) for each in several.class_sizes] == [
        ("b", 25),
        ("a", 12),
    ]
    values = audit(images, [number / 2 for number in range(25)])
    assert values.duplicates[0].labels == (0.0, 12.0)
    assert values.class_sizes == ()


def test_lengths_must_agree() -> None:
    images = arrays([scene(seed) for seed in range(4)])
    codes = np.eye(4, 9, dtype=np.float32)
    with pytest.raises(ValueError, match="labels: expected one for each of the 4"):
        audit_codes(images, codes, ["a"])
    with pytest.raises(ValueError, match="groups: expected one for each of the 4"):
        audit_codes(images, codes, ["a", "b", "a", "b"], [1])


def test_warnings_say_what_to_do() -> None:
    duplicates = [
        DuplicateImages((0, 1), True, 1.0, ("a", "b")),
        DuplicateImages((2, 3), False, 0.9, ("a",)),
    ]
    sizes = [ClassSize("a", 44, 40), ClassSize("b", 4, 4)]
    bursts = Bursts(48, 40, 10, 8, 8, ("a",))
    first, second, third = data_warnings(duplicates, sizes, bursts)
    assert first.startswith("1 set of duplicates has several labels, 1 of them equal")
    assert "40 of 48 images" in second
    assert "--group-column" in second
    assert "11 to 1" in third
    assert data_warnings(duplicates[1:], sizes[:1], None) == []
