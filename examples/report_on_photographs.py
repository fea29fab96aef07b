"""See why a classifier errs: train one on parts of photographs, and write its report.

Uses the two photographs that scikit-learn ships, so that it runs without a download.
Cut into small pieces, they become images of four classes; pieces at the border of two
parts are what a model may get wrong.

    python examples/report_on_photographs.py

writes report.html. With your own images, it is one command:

    sk-cnncodes train photos -o model.joblib --report report.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from sk_cnncodes import CNNCodeClassifier, report

SIDE, PIECES = 72, 40
# Photograph, and the rows and columns that the middle of a piece may have.
PARTS = {
    "sky": ("china.jpg", (36, 90), (36, 600)),
    "temple": ("china.jpg", (110, 300), (60, 580)),
    "petals": ("flower.jpg", (150, 330), (190, 450)),
    "leaves": ("flower.jpg", (40, 390), (40, 120)),
}


def cut_pieces(folder: Path) -> tuple[list[str], list[str]]:
    """Write pieces of the photographs as files; return their paths and classes."""
    rng = np.random.default_rng(0)
    paths, labels = [], []
    for label, (name, rows, columns) in PARTS.items():
        photograph = load_sample_image(name)
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(PIECES):
            top = max(0, rng.integers(*rows) - SIDE // 2)
            left = max(0, rng.integers(*columns) - SIDE // 2)
            piece = photograph[top : top + SIDE, left : left + SIDE]
            path = folder / label / f"{number:02}.jpg"
            Image.fromarray(piece).save(path, quality=90)
            paths.append(str(path))
            labels.append(label)
    return paths, labels


def main() -> None:
    paths, labels = cut_pieces(Path("pieces"))
    train = [i for i in range(len(paths)) if i % 4 == 0]
    test = [i for i in range(len(paths)) if i % 4 != 0]
    images, y = np.array(paths), np.array(labels)

    model = CNNCodeClassifier(["cnncodes-mini"]).fit(images[train], y[train])
    page = report(
        model,
        images[test],
        y[test],
        train_images=images[train],
        train_labels=y[train],
        title="Parts of photographs",
    )
    page.save("report.html")

    wrong = int((model.predict(images[test]) != y[test]).sum())
    print(f"{len(train)} pieces to train on, {len(test)} to test on; {wrong} wrong.")
    print(f"Wrote report.html ({len(page.html) / 1e6:.2f} MB): open it in a browser.")


if __name__ == "__main__":
    main()
