"""`layer` as a list: the codes of several layers side by side, from one pass."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline

from sk_cnncodes import (
    BackboneError,
    CNNCodeTransformer,
    CodeCache,
    DeviceError,
    LayerError,
    Preprocessing,
    layer_grid,
    load_backbone,
    load_model,
    save_model,
)
from sk_cnncodes.codes.sessions import SESSIONS
from tests import networks
from tests.forwards import counted_forwards

Photographs = list[np.ndarray]
# Of the bundled backbone, and the lengths of their codes. Codes have the order of the
# list, not that of the network.
LAYERS = {-1: 800, "stem": 64, -3: 512}


@pytest.fixture
def net(tmp_path: Path, plain: Preprocessing) -> str:
    model = networks.resnet()
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return networks.save(model, tmp_path / "net.onnx")


def side_by_side(photographs: Any, **parameters: Any) -> np.ndarray:
    """The codes of transformers of one layer each."""
    parts = [
        CNNCodeTransformer(layer=layer, cache=None, **parameters).transform(photographs)
        for layer in LAYERS
    ]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("norm", [None, "l2", "power"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_codes_are_those_of_each_layer(
    photographs: Photographs, norm: str | None, cached: bool, n_jobs: int
) -> None:
    transformer = CNNCodeTransformer(
        layer=list(LAYERS),
        norm=norm,
        cache=CodeCache() if cached else None,
        n_jobs=n_jobs,
        batch_size=3,
    )
    images = [*photographs, photographs[0]]
    codes = transformer.fit_transform(images)
    np.testing.assert_allclose(codes, side_by_side(images, norm=norm), atol=1e-4)
    if norm is not None:
        np.testing.assert_allclose((codes**2).sum(axis=1), len(LAYERS), rtol=1e-5)
    if cached:
        with counted_forwards() as count:
            np.testing.assert_array_equal(transformer.transform(images), codes)
        assert count.images == 0


def test_one_pass_for_all_ways_to_combine_layers(photographs: Photographs) -> None:
    """Each layer's part is an entry of the cache, whoever computed it."""
    cache = CodeCache()
    grid = [-1, -3, [-1, -3], (-3, -1), ["stem"]]
    transformer = CNNCodeTransformer(cache=cache)
    pipeline = make_pipeline(transformer, LogisticRegression())
    with counted_forwards() as count:
        search = GridSearchCV(pipeline, {"cnncodetransformer__layer": grid}, cv=2)
        search.fit(photographs, [0, 1] * 4)
        assert search.best_params_["cnncodetransformer__layer"] in grid
        found = {
            str(layer): clone(transformer)
            .set_params(layer=layer)
            .fit_transform(photographs)
            for layer in grid
        }
    assert count.images == len(photographs)
    np.testing.assert_array_equal(
        found["[-1, -3]"], np.hstack([found["-1"], found["-3"]])
    )
    np.testing.assert_array_equal(
        found["(-3, -1)"], np.hstack([found["-3"], found["-1"]])
    )
    assert found["['stem']"].shape == (8, 64)


def test_layer_grid(photographs: Photographs) -> None:
    cache = CodeCache()
    pipeline = make_pipeline(CNNCodeTransformer(cache=cache), LogisticRegression())
    grid = layer_grid([-1, [-1, "/fire8/Concat_output_0"]])
    with counted_forwards() as count:
        GridSearchCV(pipeline, grid, cv=2).fit(photographs, [0, 1] * 4)
    assert count.images == len(photographs)
    assert cache.info().rows == 2 * len(photographs)


def test_only_what_is_missing_is_computed(photographs: Photographs) -> None:
    cache = CodeCache()
    for layer in (-1, -3):
        CNNCodeTransformer(layer=layer, cache=cache).transform(photographs)
    CNNCodeTransformer(layer=-2, cache=cache).transform(photographs[:5])
    with counted_forwards() as count:
        both = CNNCodeTransformer(layer=[-1, -3], cache=cache).transform(photographs)
        assert count.images == 0
        CNNCodeTransformer(layer=[-1, -2], cache=cache).transform(photographs)
        assert count.images == 3
    assert both.shape == (8, 800 + 512)
    assert cache.info().rows == 3 * len(photographs)


def test_a_union_shares_the_pass(photographs: Photographs) -> None:
    cache = CodeCache()
    union = FeatureUnion(
        [
            ("a", CNNCodeTransformer(layer=[-1, -3], norm="l2", cache=cache)),
            ("b", CNNCodeTransformer(layer=[-2, -3], cache=cache)),
        ]
    )
    with counted_forwards() as count:
        assert union.fit_transform(photographs).shape == (8, 800 + 512 + 512 + 512)
    assert count.images == len(photographs)


def test_specs_are_those_of_single_layers(photographs: Photographs) -> None:
    fitted = CNNCodeTransformer(layer=list(LAYERS)).fit(photographs)
    backbone = load_backbone("cnncodes-mini")
    assert [spec.digest for spec in fitted.fitted_specs()[1]] == [
        backbone.spec(layer, "auto", None).digest for layer in LAYERS
    ]


def test_pooling_is_resolved_for_each_layer(photographs: Photographs) -> None:
    fitted = CNNCodeTransformer(layer=[-1, -2]).fit(photographs)
    assert [s.pooling for s in fitted.fitted_specs()[1]] == ["flatten", "avg"]
    with pytest.raises(
        LayerError, match="pooling='max' does not fit the layer '/codes"
    ):
        CNNCodeTransformer(layer=[-1, -2], pooling="max").fit(photographs)


def test_bad_images_are_rows_of_nan(photographs: Photographs) -> None:
    transformer = CNNCodeTransformer(layer=list(LAYERS), on_error="nan")
    with pytest.warns(UserWarning, match="1 of 9 images could not be read"):
        codes = transformer.transform([*photographs[:4], b"no image", *photographs[4:]])
    assert np.isnan(codes[4]).all()
    good = np.delete(codes, 4, axis=0)
    np.testing.assert_allclose(good, side_by_side(photographs), atol=1e-4)


def test_files_and_generators(photographs: Photographs, tmp_path: Path) -> None:
    transformer = CNNCodeTransformer(layer=list(LAYERS), cache=tmp_path / "c.sqlite3")
    with counted_forwards() as count:
        transformer.precompute(iter(photographs))
        after = count.images
        codes = transformer.transform_to(tmp_path / "codes.npy", iter(photographs))
    assert count.images == after
    np.testing.assert_allclose(codes, side_by_side(photographs), atol=1e-4)


def test_feature_names_say_the_layer(photographs: Photographs) -> None:
    transformer = CNNCodeTransformer(layer=list(LAYERS)).set_output(transform="pandas")
    frame = transformer.fit_transform(photographs)
    names = frame.columns.tolist()
    assert len(names) == sum(LAYERS.values()) == len(set(names))
    assert names[0] == "cnncodetransformer_-1_0"
    assert names[800] == "cnncodetransformer_stem_0"
    assert names[-1] == "cnncodetransformer_-3_511"
    np.testing.assert_array_equal(names, transformer.get_feature_names_out())


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ([], ValueError, r"layer: expected at least one layer, got \[\]"),
        ([-1, True], TypeError, "a negative int, a name, or a list of them"),
        ([-1, [-2]], TypeError, "a negative int, a name, or a list of them"),
        (None, TypeError, "a negative int, a name, or a list of them"),
        ([-1, -1], LayerError, "-1 and -1 are the same layer, '/codes/"),
        ([-1, -2, "codes"], LayerError, "-1 and 'codes' are the same layer, '/codes/"),
        ([-1, -99], LayerError, r"layer=-99 is not a layer .*Expected -1 \('codes'"),
        ([-1, "fire99"], LayerError, r"layer='fire99' .*Expected -1 \('codes'"),
    ],
)
def test_invalid_lists(
    layer: Any, error: type[Exception], message: str, photographs: Photographs
) -> None:
    transformer = CNNCodeTransformer(layer=layer)
    for method in (transformer.fit, transformer.transform):
        with pytest.raises(error, match=message):
            method(photographs)


# -- copies and saving -----------------------------------------------------------


def test_copies(photographs: Photographs) -> None:
    layers = [-1, np.int64(-3)]
    transformer = CNNCodeTransformer(layer=layers, norm="power")
    assert transformer.layer is layers
    copied = clone(transformer)
    assert copied.layer == layers
    assert copied.layer is not layers
    fitted = clone(transformer).fit(photographs)
    codes = fitted.transform(photographs)
    for each in (clone(fitted).fit(photographs), pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(each.transform(photographs), codes)
        assert len(each.get_feature_names_out()) == codes.shape[1]
    assert "layer=[-1, " in repr(fitted)
    assert "layer" in fitted._repr_html_()


@pytest.mark.parametrize("suffix", ["joblib", "skops"])
@pytest.mark.parametrize("layer", [[-1, -3], (-2, -1), [-2], ["stem", -1]])
def test_a_stored_network_needs_no_file(
    photographs: Photographs, net: str, tmp_path: Path, suffix: str, layer: Any
) -> None:
    """Together with that of a transformer of one layer."""
    both = CNNCodeTransformer(net, layer=layer, norm="l2")
    one = CNNCodeTransformer(net, layer=-4 if suffix == "skops" else -1)
    union = FeatureUnion([("both", both), ("one", one)])
    codes = union.fit_transform(photographs)
    length = len(both.get_feature_names_out())
    path = save_model(union, tmp_path / f"m.{suffix}", store_backbone=True)
    Path(net).unlink()
    SESSIONS.clear()
    loaded = load_model(path, cache=CodeCache())
    with counted_forwards() as count:
        np.testing.assert_allclose(loaded.transform(photographs), codes, atol=1e-5)
    assert count.images == len(photographs)
    loaded_both = loaded.transformer_list[0][1]
    assert len(loaded_both.get_feature_names_out()) == length
    SESSIONS.clear()
    loaded_both.set_params(cache=None)
    np.testing.assert_allclose(
        loaded_both.transform(photographs),
        codes[:, :length],
        atol=1e-5,
    )
    with pytest.raises(BackboneError, match="or set the parameters back"):
        loaded_both.set_params(layer=[-1]).transform(photographs)


def test_a_stored_network_of_other_lists_is_not_used(
    photographs: Photographs, net: str
) -> None:
    fitted = CNNCodeTransformer(net, layer=[-1, -2], store_backbone=True)
    fitted = pickle.loads(pickle.dumps(fitted.fit(photographs)))
    swapped = fitted.set_params(layer=[-2, -1]).transform(photographs)
    fresh = CNNCodeTransformer(net, layer=[-2, -1]).transform(photographs)
    np.testing.assert_allclose(swapped, fresh, atol=1e-5)


def test_layers_are_those_of_fit(photographs: Photographs, net: str) -> None:
    """Also if a newer version numbers the layers in another way."""
    fitted = CNNCodeTransformer(net, layer=[-1, -3], cache=None).fit(photographs)
    names = [load_backbone(net).layer(number).name for number in (-1, -3)]
    assert fitted.fitted_backbone_["layer"] == names
    fitted.fitted_backbone_["layer"] = names[::-1]
    other = CNNCodeTransformer(net, layer=[-3, -1], cache=None).fit(photographs)
    np.testing.assert_allclose(
        fitted.transform(photographs), other.transform(photographs), atol=1e-5
    )


def test_int8(photographs: Photographs) -> None:
    layers = [-1, -3]
    fitted = CNNCodeTransformer(layer=layers, precision="int8", norm="l2")
    try:
        codes = fitted.fit_transform(photographs)
    except (DeviceError, BackboneError) as error:
        pytest.skip(f"this machine does not compute in int8: {error}")
    exact = CNNCodeTransformer(layer=layers, norm="l2").fit_transform(photographs)
    assert not np.array_equal(codes, exact)
    cosines = (codes * exact).sum(axis=1) / len(layers)
    assert cosines.min() > 0.9
    loaded = pickle.loads(pickle.dumps(fitted.set_params(store_backbone=True)))
    np.testing.assert_array_equal(loaded.transform(photographs), codes)
    loaded.set_params(cache=None)
    np.testing.assert_allclose(loaded.transform(photographs), codes, atol=1e-5)


# -- explain ---------------------------------------------------------------------


def test_an_explanation_names_all_layers(photographs: Photographs) -> None:
    transformer = CNNCodeTransformer(layer=list(LAYERS), cache=CodeCache())
    found = transformer.explain(photographs[0])
    assert found.from_cache is False
    assert [each.label for each in found.layers] == ["codes", "stem", "fire8"]
    assert [each.position for each in found.layers] == [-1, -10, -3]
    assert found.layer_label == "codes"
    np.testing.assert_array_equal(found.code, transformer.transform(photographs)[0])
    assert transformer.explain(photographs[0]).from_cache is True
    lines = repr(found).splitlines()
    layers = [line for line in lines if line.startswith("layer ")]
    assert [line.split()[1] for line in layers] == ["-1,", "-10,", "-3,"]
    pooled = [line.split()[1] for line in lines if line.startswith("pooled ")]
    assert pooled == ["flatten,", "avg,", "avg,"]


def test_an_explanation_with_a_stored_network(
    photographs: Photographs, net: str
) -> None:
    fitted = CNNCodeTransformer(net, layer=[-1, -2], store_backbone=True)
    before = fitted.fit(photographs).explain(photographs[0])
    loaded = pickle.loads(pickle.dumps(fitted))
    found = loaded.explain(photographs[0])
    assert [each.rule for each in found.layers] == [each.rule for each in before.layers]
    assert [each.spec.layer for each in found.layers] == (
        fitted.fitted_backbone_["layer"]
    )
