"""to_onnx of unions, columns, frozen estimators and thresholds."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.svm import SVC

from sk_cnncodes import (
    CNNCodeTransformer,
    ExportError,
    OnnxClassifier,
    Preprocessing,
    code_union,
    load_backbone,
    load_model,
    save_model,
    to_onnx,
)
from sk_cnncodes.export import joint_codes
from tests import networks

DIGITS = load_digits()
X, Y = DIGITS.images[:60] / 16, DIGITS.target[:60]
CODES = CNNCodeTransformer(norm="l2")
UNION = FeatureUnion(
    [
        ("a", CODES),
        ("b", make_pipeline(CNNCodeTransformer(layer=-2), PCA(8, random_state=0))),
        ("c", FrozenEstimator(CNNCodeTransformer())),
    ],
    transformer_weights={"a": 2},
)


def check(model: Any, path: Path, images: Any = X) -> None:
    given = images if images is X else images["image"]
    to_onnx(model, path)
    classifier = OnnxClassifier(path)
    expected = model.predict(images)
    assert len(np.unique(expected)) > 1
    assert (classifier.predict(given) != expected).sum() <= 1  # of 60
    method = "predict_proba" if hasattr(model, "predict_proba") else "decision_function"
    wanted = getattr(model, method)(images)
    np.testing.assert_allclose(getattr(classifier, method)(given), wanted, atol=2e-3)


def test_unions(tmp_path: Path) -> None:
    nested = FeatureUnion([("u", UNION), ("d", CNNCodeTransformer(layer=-2))])
    model = make_pipeline(nested, LogisticRegression(C=0.1)).fit(X, Y)
    check(model, tmp_path / "m.onnx")
    facts = OnnxClassifier(tmp_path / "m.onnx").metadata["codes"]
    assert [each["norm"] for each in facts] == ["l2", None, None, None]
    # The network is in the file once.
    network = load_backbone("cnncodes-mini").path.stat().st_size
    assert (tmp_path / "m.onnx").stat().st_size < 1.3 * network


def test_backbones_that_crop_differently_have_inputs_of_their_own(
    plain: Preprocessing,
    photographs: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that crop alike share one; each image is given once."""
    own = load_backbone("cnncodes-mini").preprocessing
    squashed = replace(own, resize="exact", resize_size=None)
    small = networks.resnet()
    for key, value in plain.to_metadata().items():
        small.metadata_props.add(key=key, value=value)
    union = FeatureUnion(
        [
            ("a", CODES),
            ("b", CNNCodeTransformer(preprocessing=squashed, layer=-2)),
            ("c", CNNCodeTransformer(networks.save(small, tmp_path / "small.onnx"))),
            ("d", CNNCodeTransformer(preprocessing=replace(own, scale=own.scale / 2))),
        ]
    )
    model = make_pipeline(union, LogisticRegression(C=0.1)).fit(X, Y)
    with monkeypatch.context() as patched:
        patched.setattr(joint_codes, "MAX_INPUTS", 2)
        with pytest.raises(ExportError, match="in 3 ways. Expected at most 2"):
            to_onnx(model)
    exported = to_onnx(model, tmp_path / "m.onnx")
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim][1:]
        for value in exported.graph.input
    }
    assert shapes == {
        "images": [116, 116, 3],
        "images_1": [116, 116, 3],
        "images_2": [32, 32, 3],
    }
    check(model, tmp_path / "m.onnx")
    classifier = OnnxClassifier(tmp_path / "m.onnx")
    np.testing.assert_allclose(
        classifier.predict_proba(photographs),
        model.predict_proba(photographs),
        atol=2e-3,
    )
    # A damaged record of an input.
    for entry in exported.metadata_props:
        if entry.key == "sk_cnncodes.preprocessing.images_2":
            entry.value = entry.value.replace("[32, 32]", "[64, 64]")
        if entry.key == "sk_cnncodes.sha256":
            digest = entry
    exported.metadata_props.remove(digest)
    (tmp_path / "m.onnx").write_bytes(exported.SerializeToString())
    with pytest.raises(ExportError, match=r"expected 3 of type .* \[N, 64, 64, 3\]"):
        OnnxClassifier(tmp_path / "m.onnx")


def test_two_graphs_in_one_file(tmp_path: Path) -> None:
    """The same network with another normalisation is a second graph."""
    own = load_backbone("cnncodes-mini").preprocessing
    brighter = CNNCodeTransformer(preprocessing=replace(own, scale=own.scale * 1.1))
    union = FeatureUnion([("a", CODES), ("b", brighter)])
    model = make_pipeline(union, LogisticRegression(C=0.1)).fit(X, Y)
    check(model, tmp_path / "m.onnx")


def test_one_column_of_images(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": list(X), "other": list(X)})
    parts = [("a", CODES, "image"), ("b", CNNCodeTransformer(layer=-2), ["image"])]
    columns = ColumnTransformer(parts)
    model = make_pipeline(columns, LogisticRegression(C=0.1)).fit(frame, Y)
    check(model, tmp_path / "m.onnx", frame)
    both = ColumnTransformer([*parts, ("c", CODES, "other")])
    model = make_pipeline(both, LogisticRegression(C=0.1)).fit(frame, Y)
    with pytest.raises(ExportError, match=r"'c' takes.*other.*same single column"):
        to_onnx(model)


def test_other_features_beside_the_codes_are_refused() -> None:
    union = FeatureUnion([("a", CODES), ("b", "drop")])
    union.fit(X)
    union.transformer_list[1] = ("b", PCA(2).fit(X.reshape(60, -1)))
    model = make_pipeline(union, SVC())
    model[-1].fit(np.zeros((60, 802)) + Y[:, None], Y)
    with pytest.raises(ExportError, match="'featureunion__b' is PCA"):
        to_onnx(model)


@pytest.mark.parametrize("head", [LogisticRegression(), SVC()])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"threshold": 0.3},
        {"threshold": -0.2, "response_method": "decision_function"},
        {"threshold": 0.6, "pos_label": "high"},
    ],
)
def test_thresholds(head: Any, parameters: dict[str, Any], tmp_path: Path) -> None:
    y = np.where(Y > 4, "high", "low")
    inside = make_pipeline(CODES, FixedThresholdClassifier(head, **parameters))
    check(inside.fit(X, y), tmp_path / "inside.onnx")
    around = FixedThresholdClassifier(make_pipeline(CODES, head), **parameters)
    check(around.fit(X, y), tmp_path / "around.onnx")


def test_tuned_and_frozen(tmp_path: Path) -> None:
    tuned = TunedThresholdClassifierCV(make_pipeline(CODES, SVC()), cv=2)
    check(tuned.fit(X, Y > 4), tmp_path / "tuned.onnx")
    frozen = FrozenEstimator(make_pipeline(CODES, SVC()).fit(X, Y))
    check(
        FixedThresholdClassifier(FrozenEstimator(tuned)).fit(X, Y > 4), tmp_path / "f"
    )
    check(frozen, tmp_path / "frozen.onnx")


@pytest.mark.parametrize("norm", [None, "l2", "power"])
def test_several_layers(norm: str | None, tmp_path: Path) -> None:
    codes = CNNCodeTransformer(layer=[-1, -3], norm=norm)
    model = make_pipeline(codes, LogisticRegression(C=0.1, max_iter=1000)).fit(X, Y)
    check(model, tmp_path / "m.onnx")
    facts = OnnxClassifier(tmp_path / "m.onnx").metadata["codes"]
    backbone = load_backbone("cnncodes-mini")
    assert [each["layer"] for each in facts] == [
        backbone.layer(number).name for number in (-1, -3)
    ]
    assert [each["norm"] for each in facts] == [norm, norm]
    assert (tmp_path / "m.onnx").stat().st_size < 1.3 * backbone.path.stat().st_size


def test_a_union_of_backbones_of_several_layers(
    plain: Preprocessing, tmp_path: Path
) -> None:
    """They crop alike; the rest of their preprocessing is in the graph."""
    backbones = []
    for made, mean in ((networks.resnet(), 0.2), (networks.squeezenet(), 0.5)):
        own = replace(plain, mean=(mean, mean, mean))
        for key, value in own.to_metadata().items():
            made.metadata_props.add(key=key, value=value)
        backbones.append(networks.save(made, tmp_path / f"{mean}.onnx"))
    union = code_union(backbones, layer=[-1, -2], norm="power")
    check(make_pipeline(union, SVC(C=1000)).fit(X, Y), tmp_path / "m.onnx")
    facts = OnnxClassifier(tmp_path / "m.onnx").metadata["codes"]
    assert [each["backbone"] for each in facts] == [
        name for name in ("0.2.onnx", "0.5.onnx") for _ in range(2)
    ]
    assert str(tmp_path).encode() not in (tmp_path / "m.onnx").read_bytes()


def test_a_list_of_one_layer(tmp_path: Path) -> None:
    codes = CNNCodeTransformer(layer=[-3], norm="power", store_backbone=True)
    model = make_pipeline(codes, LogisticRegression(C=10)).fit(X, Y)
    check(pickle.loads(pickle.dumps(model)), tmp_path / "m.onnx")
    assert "codes" not in OnnxClassifier(tmp_path / "m.onnx").metadata


def test_several_layers_of_a_stored_network(tmp_path: Path) -> None:
    codes = CNNCodeTransformer(layer=(-3, -1), norm="l2", store_backbone=True)
    model = make_pipeline(codes, LogisticRegression(C=1)).fit(X, Y)
    check(pickle.loads(pickle.dumps(model)), tmp_path / "m.onnx")


def test_equal_stored_networks_that_crop_differently(
    plain: Preprocessing, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    path = networks.save(networks.resnet(), tmp_path / "net.onnx")
    ways = [plain, replace(plain, resize="exact", resize_size=None)]
    assert ways[0] != ways[1]
    union = FeatureUnion(
        [
            (f"way{n}", CNNCodeTransformer(path, preprocessing=way, norm="l2"))
            for n, way in enumerate(ways)
        ]
    )
    model = make_pipeline(union, SVC(C=10)).fit(photographs, [0, 1] * 4)
    stored = save_model(model, tmp_path / "m.joblib", store_backbone=True)
    to_onnx(load_model(stored), tmp_path / "m.onnx")
    np.testing.assert_allclose(
        OnnxClassifier(tmp_path / "m.onnx").decision_function(photographs),
        model.decision_function(photographs),
        atol=2e-3,
    )
