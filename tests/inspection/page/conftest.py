"""Reports on pictures that the tests draw, and pages in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sk_cnncodes import CNNCodeClassifier, CNNCodeRegressor
from tests.inspection.page.chromium import Browser, browser, find_chromium

CLASSES = ("disc", "square", "<script>alert(1)</script>")
# A mistake that no model can avoid: files of one class that show another.
N_TRAIN, N_TEST, N_SWAPPED = 12, 10, 2


@dataclass(frozen=True)
class Drawn:
    """Drawn pictures in files.

    Attributes
    ----------
    train, test : list of str
    train_labels, test_labels : list of str
    """

    train: list[str]
    test: list[str]
    train_labels: list[str]
    test_labels: list[str]


def draw(path: Path, kind: int, rng: np.random.Generator) -> None:
    """A disc, a square or a cross on a noisy ground."""
    ground = rng.integers(150, 256, (72, 96, 3), np.uint8)
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    x, y, r = rng.integers(30, 60), rng.integers(25, 45), rng.integers(14, 24)
    color = tuple(int(v) for v in rng.integers(0, 120, 3))
    box = (int(x - r), int(y - r), int(x + r), int(y + r))
    if kind == 0:
        pen.ellipse(box, fill=color)
    elif kind == 1:
        pen.rectangle(box, fill=color)
    else:
        pen.line(box, fill=color, width=6)
        pen.line((box[0], box[3], box[2], box[1]), fill=color, width=6)
    image.save(path, quality=90)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """Three classes; the first two test images of each show the next class."""
    folder, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    parts: dict[str, tuple[list[str], list[str]]] = {
        "train": ([], []),
        "test": ([], []),
    }
    for part, count in (("train", N_TRAIN), ("test", N_TEST)):
        parts[part] = ([], [])
        for kind, label in enumerate(CLASSES):
            below = folder / part / f"class {kind}"
            below.mkdir(parents=True)
            for number in range(count):
                swapped = part == "test" and number < N_SWAPPED
                path = below / f"{number} &<b>.jpg"
                draw(path, (kind + swapped) % 3, rng)
                parts[part][0].append(str(path))
                parts[part][1].append(label)
    (train, train_labels), (test, test_labels) = parts["train"], parts["test"]
    return Drawn(train, test, train_labels, test_labels)


@pytest.fixture(scope="session")
def classifier(drawn: Drawn) -> CNNCodeClassifier:
    model = CNNCodeClassifier(layers=[-1, -3], heads=["lda", "ridge"], n_codes=2, cv=3)
    return model.fit(drawn.train, drawn.train_labels)


@pytest.fixture(scope="session")
def labeller(drawn: Drawn) -> CNNCodeClassifier:
    """A classifier of the labels "round", "filled" and "any"."""
    model = CNNCodeClassifier(layers=[-1], heads="ridge", norms="l2", cv=3)
    return model.fit(drawn.train, several_labels(drawn.train_labels))


@pytest.fixture(scope="session")
def regressor(drawn: Drawn) -> CNNCodeRegressor:
    """A regression of the mean of an image."""
    model = CNNCodeRegressor(layers=[-3], heads="ridge", norms="l2", cv=3)
    return model.fit(drawn.train, brightness(drawn.train))


def several_labels(labels: list[str]) -> np.ndarray:
    numbers = np.array([CLASSES.index(label) for label in labels])
    return np.column_stack([numbers == 0, numbers < 2, numbers % 2 == 0]).astype(int)


def brightness(paths: list[str]) -> list[float]:
    return [float(np.asarray(Image.open(path)).mean()) for path in paths]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium with an empty page."""
    if find_chromium() is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with browser() as found:
        yield found


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, which finds faults of accessibility."""
    spec = find_spec("axe_core_python")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs axe-core: pip install axe-core-python")
    folder = Path(spec.submodule_search_locations[0])
    return (folder / "axe.min.js").read_text(encoding="utf-8")
