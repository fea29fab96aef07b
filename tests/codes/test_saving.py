"""Saved transformers find their backbone, refuse another one, or include their own."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import onnx
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline

import sk_cnncodes
from sk_cnncodes import (
    BackboneError,
    CNNCodeTransformer,
    DeviceError,
    Preprocessing,
    SavedModelError,
)
from sk_cnncodes.backbones import stored as stored_module
from sk_cnncodes.base.files import file_sha256
from sk_cnncodes.base.home import cache_dir
from sk_cnncodes.codes.saving import code_parameters
from sk_cnncodes.codes.sessions import SESSIONS
from tests import networks


@pytest.fixture(autouse=True)
def isolated_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbones exist only where a test puts them."""
    monkeypatch.setenv("SK_CNNCODES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SK_CNNCODES_OFFLINE", "1")
    monkeypatch.delenv("SK_CNNCODES_BACKBONES", raising=False)


@pytest.fixture
def net(tmp_path: Path, plain: Preprocessing) -> Path:
    """A backbone with preprocessing metadata, in a separate folder."""
    model = networks.resnet()
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    (tmp_path / "nets").mkdir()
    return Path(networks.save(model, tmp_path / "nets" / "net.onnx"))


@pytest.fixture
def fitted(net: Path, photographs: list[np.ndarray]) -> CNNCodeTransformer:
    return CNNCodeTransformer(str(net), cache=None).fit(photographs)


def move(net: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    net.rename(folder / net.name)


# -- finding the backbone ----------------------------------------------------


def test_a_saved_pipeline_is_small_and_names_its_backbone(
    fitted: CNNCodeTransformer, net: Path
) -> None:
    saved = pickle.dumps(fitted)
    assert len(saved) < 10_000
    reference = pickle.loads(saved).fitted_backbone_
    assert reference["path"] == str(net)
    assert reference["sha256"] == sk_cnncodes.load_backbone(net).sha256
    bundled = CNNCodeTransformer().fit(np.zeros((1, 8, 8, 3)))
    assert pickle.loads(pickle.dumps(bundled)).fitted_backbone_["name"] == (
        "cnncodes-mini"
    )


@pytest.mark.parametrize("location", ["folders", "home", "working directory"])
def test_a_moved_backbone_is_found(
    location: str,
    fitted: CNNCodeTransformer,
    net: Path,
    photographs: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes = fitted.transform(photographs)
    saved = pickle.dumps(fitted)
    if location == "folders":
        move(net, tmp_path / "elsewhere")
        folders = f"{tmp_path / 'none'}{os.pathsep}{tmp_path / 'elsewhere'}"
        monkeypatch.setenv("SK_CNNCODES_BACKBONES", folders)
    elif location == "home":
        move(net, tmp_path / "home")
    else:  # a relative path is also tried in the current working directory
        monkeypatch.chdir(net.parent)
        relative = CNNCodeTransformer(net.name, cache=None).fit(photographs)
        saved = pickle.dumps(relative)
        move(net, tmp_path / "elsewhere")
        monkeypatch.chdir(tmp_path / "elsewhere")
    again = pickle.loads(saved).transform(photographs)
    np.testing.assert_array_equal(again, codes)


def test_a_relative_path_is_found_from_another_folder(
    net: Path,
    photographs: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(net.parent)
    fitted = CNNCodeTransformer(net.name, cache=None).fit(photographs)
    codes = fitted.transform(photographs)
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(pickle.dumps(fitted)).transform(photographs)
    np.testing.assert_array_equal(again, codes)


def test_a_known_backbone_is_downloaded(
    photographs: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is gone, but the catalogue has its digest."""
    copied = tmp_path / "copy.onnx"
    copied.write_bytes(sk_cnncodes.download_backbone("cnncodes-mini").read_bytes())
    fitted = CNNCodeTransformer(copied, cache=None).fit(photographs)
    codes = fitted.transform(photographs)
    copied.unlink()
    np.testing.assert_array_equal(fitted.transform(photographs), codes)


def test_a_missing_backbone_is_an_error_that_lists_the_paths(
    fitted: CNNCodeTransformer,
    net: Path,
    photographs: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SK_CNNCODES_BACKBONES", str(net.parents[1] / "shelf"))
    net.unlink()
    message = r"not found(.|\n)*shelf.*home.*SK_CNNCODES_BACKBONES.*store_backbone=True"
    with pytest.raises(BackboneError, match=message):
        fitted.transform(photographs)


def test_one_changed_byte_is_refused(
    fitted: CNNCodeTransformer, net: Path, photographs: list[np.ndarray]
) -> None:
    content = bytearray(net.read_bytes())
    digest = sk_cnncodes.load_backbone(net).sha256
    for position in (len(content) // 2, 0):  # a weight; the head, which breaks it
        changed = content.copy()
        changed[position] ^= 1
        net.write_bytes(changed)
        with pytest.raises(
            BackboneError, match=rf"Expected sha256 {digest}, got (?!{digest})\w{{64}}"
        ):
            fitted.transform(photographs)
    net.write_bytes(content)
    fitted.transform(photographs)


def test_preprocessing_stays_that_of_fit(
    net: Path, photographs: list[np.ndarray], tmp_path: Path, plain: Preprocessing
) -> None:
    """Even if the file beside the backbone that states it is gone."""
    bare = networks.save(networks.resnet(), tmp_path / "bare.onnx")
    beside = tmp_path / "preprocessor_config.json"
    beside.write_text(
        '{"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], '
        '"image_std": [0.25, 0.25, 0.25], "image_processor_type": "ViTImageProcessor"}'
    )
    fitted = CNNCodeTransformer(bare, cache=None).fit(photographs)
    codes = fitted.transform(photographs)
    beside.unlink()
    again = pickle.loads(pickle.dumps(fitted)).transform(photographs)
    np.testing.assert_array_equal(again, codes)


# -- edited and foreign files ------------------------------------------------


def test_an_edited_reference_is_refused(
    fitted: CNNCodeTransformer, net: Path, tmp_path: Path
) -> None:
    other = tmp_path / "nets" / "two.onnx"
    networks.save(networks.squeezenet(), other)
    digest = fitted.fitted_backbone_["sha256"]
    forged = file_sha256(other)
    saved = pickle.dumps(fitted)
    edits = [
        [(digest, forged)],
        [("net.onnx", "two.onnx")],
        [(digest, forged), ("net.onnx", "two.onnx")],
    ]
    for edit in edits:
        changed = saved
        for old, new in edit:
            assert old.encode() in changed
            changed = changed.replace(old.encode(), new.encode())
        with pytest.raises(SavedModelError, match="fitted_backbone_.*was changed"):
            pickle.loads(changed)


def test_an_edited_graph_is_refused(fitted: CNNCodeTransformer) -> None:
    fitted.set_params(store_backbone=True)
    state = fitted.__getstate__()
    model = bytearray(state["_stored_graph"]["model"])
    model[len(model) // 2] ^= 1
    state["_stored_graph"]["model"] = bytes(model)
    with pytest.raises(SavedModelError, match="_stored_graph.*was changed"):
        CNNCodeTransformer().__setstate__(state)


def test_a_model_saved_by_a_newer_version_is_refused(
    fitted: CNNCodeTransformer,
) -> None:
    state = fitted.__getstate__() | {"_sk_cnncodes_version": "9.1", "zoom": 2}
    with pytest.raises(SavedModelError, match=r"9\.1.*\['zoom'\].*9\.1 or newer"):
        CNNCodeTransformer.__new__(CNNCodeTransformer).__setstate__(state)


# -- the stored graph --------------------------------------------------------


PROGRAM = """
import sys, joblib, numpy as np
transformer, images = joblib.load(sys.argv[1]), joblib.load(sys.argv[2])
np.save(sys.argv[3], transformer.transform(images))
"""


@pytest.mark.parametrize("layer", [-1, -2])
def test_a_stored_graph_needs_no_file(
    layer: int,
    fitted: CNNCodeTransformer,
    net: Path,
    photographs: list[np.ndarray],
    tmp_path: Path,
) -> None:
    """In a new process, without the file and without an open session."""
    fitted.set_params(layer=layer, store_backbone=True, norm="l2").fit(photographs)
    codes = fitted.transform(photographs)
    joblib.dump(fitted, tmp_path / "model.joblib")
    joblib.dump(photographs, tmp_path / "images.joblib")
    net.unlink()
    files = [str(tmp_path / n) for n in ("model.joblib", "images.joblib", "codes.npy")]
    subprocess.run([sys.executable, "-c", PROGRAM, *files], check=True, timeout=300)
    np.testing.assert_allclose(np.load(files[2]), codes, rtol=1e-5, atol=1e-6)


def test_a_stored_graph_is_cut_at_the_layer(
    photographs: list[np.ndarray], fitted: CNNCodeTransformer, net: Path
) -> None:
    fitted.set_params(layer=-4, store_backbone=True)
    assert len(pickle.dumps(fitted)) < net.stat().st_size / 2


def test_a_stored_graph_stays_through_copies_and_refits(
    fitted: CNNCodeTransformer, net: Path, photographs: list[np.ndarray]
) -> None:
    fitted.set_params(store_backbone=True)
    codes = fitted.transform(photographs)
    loaded = pickle.loads(pickle.dumps(fitted))
    net.unlink()
    SESSIONS.clear()
    copies = [copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))]
    copies.append(copy.deepcopy(loaded).fit(photographs))
    for each in (loaded, *copies):
        np.testing.assert_array_equal(each.transform(photographs), codes)
        assert list(each.get_feature_names_out()) == list(
            loaded.get_feature_names_out()
        )


def test_a_stored_graph_holds_for_its_parameters_only(
    fitted: CNNCodeTransformer, net: Path, photographs: list[np.ndarray]
) -> None:
    fitted.set_params(store_backbone=True)
    loaded = pickle.loads(pickle.dumps(fitted))
    earlier = fitted.set_params(layer=-2).transform(photographs)
    loaded.set_params(layer=-2)
    np.testing.assert_array_equal(loaded.transform(photographs), earlier)
    net.unlink()
    with pytest.raises(BackboneError, match="not found"):
        loaded.transform(photographs)


def test_cached_codes_stay_valid_with_a_stored_graph(
    fitted: CNNCodeTransformer,
    net: Path,
    photographs: list[np.ndarray],
    tmp_path: Path,
) -> None:
    fitted.set_params(store_backbone=True, cache=tmp_path / "c.sqlite3")
    codes = fitted.transform(photographs)
    loaded = pickle.loads(pickle.dumps(fitted))
    net.unlink()
    SESSIONS.clear()
    before = sk_cnncodes.cache.code_cache.resolve_cache(loaded.cache).info()
    np.testing.assert_array_equal(loaded.transform(photographs), codes)
    after = sk_cnncodes.cache.code_cache.resolve_cache(loaded.cache).info()
    assert after.misses == before.misses
    assert after.hits == before.hits + len(photographs)


def test_a_stored_graph_with_external_weights_is_refused(
    fitted: CNNCodeTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the digests were recomputed."""
    monkeypatch.chdir(tmp_path)
    state = fitted.set_params(store_backbone=True).__getstate__()
    model = onnx.load_from_string(state["_stored_graph"]["model"])
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    Path("weights.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    content = model.SerializeToString()
    stored = {k: v for k, v in state["_stored_graph"].items() if k != "model"}
    stored["sha256"] = hashlib.sha256(content).hexdigest()
    stored["check"] = stored_module.record_digest(stored)
    state["_stored_graph"] = stored | {"model": content}
    with pytest.raises(SavedModelError, match="_stored_graph.*another file"):
        CNNCodeTransformer().__setstate__(state)


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_a_stored_graph_of_another_precision(
    precision: str, net: Path, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    """Its codes are cached separately from float32 codes, and need no file either."""
    given = {"store_backbone": True, "cache": tmp_path / "c.sqlite3"}
    exact = CNNCodeTransformer(net, **given).fit_transform(photographs)
    fitted = CNNCodeTransformer(net, precision=precision, **given)
    try:
        codes = fitted.fit_transform(photographs)
    except (DeviceError, BackboneError) as error:
        pytest.skip(f"this machine does not compute in {precision}: {error}")
    assert not np.array_equal(codes, exact)
    loaded = pickle.loads(pickle.dumps(fitted))
    net.unlink()
    SESSIONS.clear()
    np.testing.assert_array_equal(loaded.transform(photographs), codes)
    loaded.set_params(cache=None)
    np.testing.assert_allclose(loaded.transform(photographs), codes, atol=1e-5)


def test_a_stored_graph_of_another_version_has_another_digest(
    fitted: CNNCodeTransformer, photographs: list[np.ndarray]
) -> None:
    fitted.set_params(store_backbone=True)
    now = pickle.loads(pickle.dumps(fitted))._stored_graph
    before = dict(now) | {"spec": dict(now["spec"]) | {"version": 0}}
    parameters = code_parameters(fitted.get_params(deep=False))
    digests = {
        spec.digest
        for stored in (now, before)
        for spec in stored_module.stored_backbone(stored, parameters).specs
    }
    assert len(digests) == 2
    assert fitted.fitted_specs()[1][0].digest in digests


# -- copies ------------------------------------------------------------------


def test_paths_become_strings_that_mean_the_same(
    photographs: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that equals the name of a known backbone still means the file."""
    monkeypatch.chdir(tmp_path)
    networks.save(networks.resnet(), tmp_path / "resnet50")
    plain = Preprocessing(crop_size=(32, 32), scale=1 / 255)
    fitted = CNNCodeTransformer(
        Path("resnet50"), preprocessing=plain, cache=tmp_path / "c.sqlite3"
    ).fit(photographs)
    loaded = pickle.loads(pickle.dumps(fitted))
    assert isinstance(loaded.backbone, str)
    assert isinstance(loaded.cache, str)
    np.testing.assert_array_equal(
        loaded.transform(photographs), fitted.transform(photographs)
    )


@pytest.mark.parametrize("store", [False, True])
def test_cloudpickle_and_deepcopy(
    store: bool, fitted: CNNCodeTransformer, photographs: list[np.ndarray]
) -> None:
    fitted.set_params(store_backbone=store)
    codes = fitted.transform(photographs)
    for each in (copy.deepcopy(fitted), cloudpickle.loads(cloudpickle.dumps(fitted))):
        np.testing.assert_array_equal(each.transform(photographs), codes)
    assert not hasattr(clone(fitted), "fitted_backbone_")


@pytest.mark.parametrize("store", [False, True])
def test_estimators_come_back_from_processes(
    store: bool, net: Path, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    codes = CNNCodeTransformer(
        net, cache=tmp_path / "c.sqlite3", store_backbone=store, n_jobs=1
    )
    labels = [0, 1] * 4
    found: dict[str, Any] = cross_validate(
        make_pipeline(codes, LogisticRegression()),
        photographs,
        labels,
        cv=2,
        n_jobs=2,
        return_estimator=True,
        error_score="raise",
    )
    if store:
        net.unlink()
    for pipeline in found["estimator"]:
        assert pipeline.predict(photographs).shape == (8,)


def test_home_folder_is_not_needed(
    fitted: CNNCodeTransformer, photographs: list[np.ndarray]
) -> None:
    assert not cache_dir().exists()
    fitted.transform(photographs)
    assert not cache_dir().exists()


def test_saving_and_exporting_need_no_device_of_the_codes(
    fitted: CNNCodeTransformer, photographs: list[np.ndarray]
) -> None:
    """A model for another machine, which has the GPU, is saved here."""
    codes = fitted.transform(photographs)
    fitted.set_params(store_backbone=True, device="cuda:7")
    copied = pickle.loads(pickle.dumps(fitted)).set_params(device="cpu")
    np.testing.assert_array_equal(copied.transform(photographs), codes)


def test_a_subclass_may_have_a_parameter_as_a_property(
    photographs: list[np.ndarray],
) -> None:
    class OneThread(CNNCodeTransformer):
        @property
        def n_jobs(self) -> int:
            return 1

        @n_jobs.setter
        def n_jobs(self, value: object) -> None:
            pass

    codes = OneThread(cache=None).fit_transform(photographs)
    expected = CNNCodeTransformer(cache=None).transform(photographs)
    np.testing.assert_array_equal(codes, expected)
