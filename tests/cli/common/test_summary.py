"""What commands say first of the images they found."""

from __future__ import annotations

from sk_cnncodes import LabelledImages, LeftOut
from sk_cnncodes.cli.common.summary import summary


def test_classes_parts_and_groups() -> None:
    images = LabelledImages(
        ["1.jpg", "2.jpg", "3.jpg"],
        ["b", "b", "a"],
        groups=["x", "x", "y"],
        splits=["train", "test", "train"],
        left_out=(LeftOut("rows", ("row 4", "row 5"), "no label", "Fill it in."),),
        notes=("Read as utf-8.",),
    )
    assert summary(images, "labels.csv").splitlines() == [
        "labels.csv: 3 images of 2 classes, in 2 groups.",
        "Read as utf-8.",
        "",
        "class  images  train  test  groups",
        "b           2      1     1       1",
        "a           1      1     0       1",
        "",
        "Left out:",
        "  2 rows: no label (row 4, row 5). Fill it in.",
    ]


def test_many_classes_are_cut_in_the_middle() -> None:
    labels = [f"{number:02}" for number in range(40) for _ in range(40 - number)]
    images = LabelledImages([f"{row}.jpg" for row in range(len(labels))], labels)
    lines = summary(images, "data").splitlines()
    assert lines[3].split() == ["00", "40"] and lines[-1].split() == ["39", "1"]
    assert "... 16 more" in lines
    assert len(lines) == 28


def test_values_and_labels() -> None:
    values = LabelledImages(["1.jpg", "2.jpg"], [1.5, 3.0], task="regression")
    assert summary(values, "t.csv").splitlines() == [
        "t.csv: 2 images.",
        "Values from 1.5 to 3, median 2.25.",
    ]
    several = LabelledImages(["1.jpg"], [["a"]], task="multilabel")
    assert summary(several, "t.csv").startswith("t.csv: 1 image with 1 label.\n")
