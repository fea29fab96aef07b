"""Saved models load with every later version, wherever files of the package move.

``python -m tests.test_saved_models`` saves those of this version to `tests/data`.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_digits
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

import sk_cnncodes
from sk_cnncodes import (
    SKOPS_TRUSTED_TYPES,
    Calibration,
    CNNCodeTransformer,
    CodeCache,
    Preprocessing,
    load_backbone,
    load_model,
)

DATA = Path(__file__).parent / "data"
DIGITS = load_digits()
IMAGES, LABELS = DIGITS.images / 16, DIGITS.target
SAVED = sorted([*DATA.glob("*.joblib"), *DATA.glob("*.skops")])


def saved_objects() -> dict[str, Any]:
    """A fitted pipeline, and one of each other class that a saved model can hold."""
    backbone = load_backbone("cnncodes-mini")
    codes = CNNCodeTransformer(
        preprocessing=backbone.preprocessing, cache=CodeCache(max_bytes=10_000_000)
    )
    pipeline = make_pipeline(codes, KNeighborsClassifier(1, algorithm="brute"))
    return {
        "pipeline": pipeline.fit(list(IMAGES[:20]), LABELS[:20]),
        "preprocessing": Preprocessing(crop_size=(32, 48), resize="exact", std=2.0),
        "calibration": Calibration(backbone.sha256, 3, {"a": (0.0, 1.5)}, "{}"),
    }


@pytest.fixture(params=SAVED, ids=lambda path: path.name)
def loaded(request: pytest.FixtureRequest) -> dict[str, Any]:
    with warnings.catch_warnings():
        # Of scikit-learn's own classes, if another version saved them.
        warnings.simplefilter("ignore", InconsistentVersionWarning)
        found: dict[str, Any] = load_model(request.param)
    return found


def test_there_are_saved_models() -> None:
    assert [path.suffix for path in SAVED] == [".joblib", ".skops"]


def test_a_saved_pipeline_predicts(loaded: dict[str, Any]) -> None:
    pipeline = loaded["pipeline"]
    assert isinstance(pipeline[0], CNNCodeTransformer)
    np.testing.assert_array_equal(pipeline.predict(list(IMAGES[:20])), LABELS[:20])
    expected = CNNCodeTransformer(cache=None).transform(list(IMAGES[:3]))
    np.testing.assert_array_equal(pipeline[0].transform(list(IMAGES[:3])), expected)
    assert len(pipeline[0].get_feature_names_out()) == 800


def test_the_other_classes(loaded: dict[str, Any]) -> None:
    assert loaded["preprocessing"] == saved_objects()["preprocessing"]
    assert loaded["calibration"] == saved_objects()["calibration"]
    assert loaded["pipeline"][0].cache.max_bytes == 10_000_000


def test_a_pickle_names_no_file_of_the_package() -> None:
    operations = pickletools.genops(pickle.dumps(saved_objects()))
    texts = [argument for _, argument, _ in operations if isinstance(argument, str)]
    modules = {text for text in texts if text.startswith("sk_cnncodes")}
    assert modules == {"sk_cnncodes"}


def test_a_skops_file_names_no_file_of_the_package() -> None:
    content = skops.io.dumps(saved_objects())
    schema = zipfile.ZipFile(io.BytesIO(content)).read("schema.json").decode()
    assert '"sk_cnncodes"' in schema
    assert '"sk_cnncodes.' not in schema
    assert all(
        name.count(".") == 1
        for name in SKOPS_TRUSTED_TYPES
        if name.startswith("sk_cnncodes")
    )


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    version = sk_cnncodes.__version__
    joblib.dump(saved_objects(), DATA / f"saved-{version}.joblib", compress=3)
    skops.io.dump(saved_objects(), DATA / f"saved-{version}.skops")
