"""save_model: every transformer of a model is found, and a network is stored once."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
import skops.io
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from sk_cnncodes import (
    SKOPS_TRUSTED_TYPES,
    BackboneError,
    CNNCodeTransformer,
    CodeCache,
    OnnxClassifier,
    Preprocessing,
    SavedModelError,
    load_model,
    save_model,
    to_onnx,
)
from sk_cnncodes.backbones.spec import CODE_VERSION
from sk_cnncodes.backbones.stored import record_digest, stored_backbone
from sk_cnncodes.codes.saving import code_parameters
from tests import networks
from tests.forwards import counted_forwards

LABELS = np.array(["china", "flower", "sky"] * 8)


@pytest.fixture(scope="module")
def images(
    photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> np.ndarray:
    """Paths of 24 small images: eight photographs in three colours."""
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number, pixels in enumerate(photographs):
        for shift in range(3):
            path = folder / f"{number}-{shift}.png"
            Image.fromarray(np.roll(pixels[::4, ::4], shift, -1)).save(path)
            paths.append(str(path))
    return np.array(paths, object)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, plain: Preprocessing) -> Path:
    model = networks.resnet()
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return Path(networks.save(model, tmp_path_factory.mktemp("nets") / "net.onnx"))


class Holder(BaseEstimator):
    """A classifier of one's own, with transformers in containers of its attributes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def fit(self, X: Any, y: Any) -> Holder:
        fitted = [each.fit(X, y) for each in self.inner]
        objects = np.empty(2, object)
        objects[:] = [{"a": (fitted[0],)}, [fitted[1]]]
        self.kept_ = {"deep": [objects]}
        return self

    def predict(self, X: Any) -> Any:
        first, second = self.kept_["deep"][0]
        found = first["a"][0].predict(X), second[0].predict(X)
        return np.where(found[0] == found[1], found[0], "differ")


def pipe(net: Path, head: Any = None, **given: Any) -> Pipeline:
    head = head or LogisticRegression(C=0.1, max_iter=2000)
    return Pipeline([("codes", CNNCodeTransformer(str(net), **given)), ("head", head)])


def columns(net: Path) -> Pipeline:
    parts = [("a", CNNCodeTransformer(str(net)), 0)]
    parts.append(("b", CNNCodeTransformer(str(net), layer=-2), 1))
    return make_pipeline(ColumnTransformer(parts), LogisticRegression(max_iter=2000))


def union(net: Path) -> Pipeline:
    given = [
        {"layer": -1},
        {"layer": -2, "norm": "l2"},
        {"layer": -2, "pooling": "max"},
    ]
    parts = [CNNCodeTransformer(str(net), **each) for each in given]
    return make_pipeline(make_union(*parts), LogisticRegression(max_iter=2000))


def pair(net: Path) -> list[tuple[str, Pipeline]]:
    return [("a", pipe(net)), ("b", pipe(net, KNeighborsClassifier(1), layer=-2))]


GRID = {"codes__layer": [-1, -2]}
CASES: dict[str, Callable[[Path], Any]] = {
    "Pipeline": pipe,
    "FeatureUnion": union,
    "ColumnTransformer": columns,
    "GridSearchCV": lambda net: GridSearchCV(pipe(net), GRID, cv=2),
    "RandomizedSearchCV": lambda net: RandomizedSearchCV(
        pipe(net), GRID, n_iter=2, cv=2, random_state=0
    ),
    "HalvingGridSearchCV": lambda net: HalvingGridSearchCV(
        pipe(net), GRID, cv=2, random_state=0
    ),
    "VotingClassifier": lambda net: VotingClassifier(pair(net), voting="soft"),
    "StackingClassifier": lambda net: StackingClassifier(pair(net), cv=2),
    "OneVsRestClassifier": lambda net: OneVsRestClassifier(pipe(net)),
    "CalibratedClassifierCV": lambda net: CalibratedClassifierCV(pipe(net), cv=2),
    "calibrated, one for all folds": lambda net: CalibratedClassifierCV(
        pipe(net), cv=2, ensemble=False
    ),
    "BaggingClassifier": lambda net: BaggingClassifier(pipe(net), random_state=0),
    "TransformedTargetRegressor": lambda net: TransformedTargetRegressor(
        pipe(net, Ridge()), func=np.sqrt, inverse_func=np.square
    ),
    "FixedThresholdClassifier": lambda net: FixedThresholdClassifier(pipe(net)),
    "TunedThresholdClassifierCV": lambda net: TunedThresholdClassifierCV(
        pipe(net), cv=2
    ),
    "MultiOutputClassifier": lambda net: MultiOutputClassifier(pipe(net)),
    "ClassifierChain": lambda net: make_pipeline(
        CNNCodeTransformer(str(net)), ClassifierChain(LogisticRegression())
    ),
    "a search in a bagging in a vote": lambda net: VotingClassifier(
        [("c", BaggingClassifier(GridSearchCV(pipe(net), GRID, cv=2), 2)), *pair(net)]
    ),
    "containers of attributes": lambda net: Holder([each for _, each in pair(net)]),
}
# Of one image column each, as those that take rows apart expect; the rest take paths.
TWO_DIMENSIONAL = ("BaggingClassifier", "a search", "MultiOutput")
# Formats: those of skops where it trusts all types.
NO_SKOPS = {
    "containers of attributes",  # a class of the user
}


def fitted(name: str, net: Path, images: np.ndarray) -> tuple[Any, Any]:
    """A fitted model, and the X that it takes."""
    X, y = images, LABELS
    if name == "ColumnTransformer":
        X = np.stack([images, images[::-1]], 1)
    elif name.startswith(TWO_DIMENSIONAL):
        X = images[:, None]
    if name == "TransformedTargetRegressor":
        y = np.arange(24.0)
    elif name in ("MultiOutputClassifier", "ClassifierChain"):
        y = np.stack([np.arange(24) % 2, np.arange(24) // 4 % 2], 1)
    elif "Threshold" in name:
        y = np.arange(24) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CASES[name](net).fit(X, y), X


PROGRAM = """
import pathlib, sys
import joblib, numpy as np
from tests.export import test_saving  # classes of the user
from sk_cnncodes import load_model

found = {}
folder = pathlib.Path(sys.argv[1])
inputs = joblib.load(folder / "inputs")
for path in sorted(folder.glob("*.model.*")):
    model = load_model(path, device="cpu", n_jobs=1)
    found[path.name] = model.predict(inputs[path.name.split(".")[0]])
joblib.dump(found, folder / "predictions")
"""


@dataclass
class Saved:
    """Predictions before saving, and in a process without the backbone's file."""

    expected: dict[str, Any]
    predicted: dict[str, Any]
    n_networks: dict[str, int]


@pytest.fixture(scope="module")
def saved(
    net: Path, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Saved:
    folder = tmp_path_factory.mktemp("models")
    inputs, expected = {}, {}
    for name in CASES:
        model, X = fitted(name, net, images)
        inputs[name], expected[name] = X, model.predict(X)
        save_model(model, folder / f"{name}.model.joblib", store_backbone=True)
        if name not in NO_SKOPS:
            save_model(model, folder / f"{name}.model.skops", store_backbone=True)
        if name == "Pipeline":
            frozen = FrozenEstimator(model)
            for suffix in ("joblib", "joblib.gz", "pickle", "skops"):
                path = folder / f"FrozenEstimator.model.{suffix}"
                save_model(frozen, path, store_backbone=True)
            inputs["FrozenEstimator"] = X
            expected["FrozenEstimator"] = expected[name]
    joblib.dump(inputs, folder / "inputs")
    moved = net.rename(net.with_name("moved"))
    try:
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder)], check=True, timeout=600
        )
    finally:
        moved.rename(net)
    stem = onnx.load(net).graph.initializer[0].raw_data
    n_networks = {
        path.name: path.read_bytes().count(stem)
        for path in folder.glob("*.model.*")
        if path.suffix != ".gz"
    }
    return Saved(expected, joblib.load(folder / "predictions"), n_networks)


@pytest.mark.parametrize("name", [*CASES, "FrozenEstimator"])
def test_a_fresh_process_without_the_backbone_predicts_the_same(
    name: str, saved: Saved
) -> None:
    found = {k: v for k, v in saved.predicted.items() if k.startswith(f"{name}.")}
    assert len(found) >= 1 + (name not in NO_SKOPS)
    for predicted in found.values():
        if name == "TransformedTargetRegressor":
            np.testing.assert_allclose(predicted, saved.expected[name], rtol=1e-4)
        else:
            np.testing.assert_array_equal(predicted, saved.expected[name])


def test_each_file_stores_the_network_once(saved: Saved) -> None:
    assert len(saved.n_networks) == 2 * len(CASES) + 3 - len(NO_SKOPS)
    assert set(saved.n_networks.values()) == {1}


@pytest.mark.parametrize("suffix", ["joblib", "pickle", "skops"])
def test_layers_of_one_network_share_a_pass_after_loading(
    suffix: str, net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    """As they did before; and a part can be taken out."""
    model = union(net).fit(images, LABELS)
    save_model(model, tmp_path / f"m.{suffix}", store_backbone=True)
    loaded = load_model(tmp_path / f"m.{suffix}", cache=CodeCache())
    parts = [part for _, part in loaded[0].transformer_list]
    assert len({id(part._stored_graph["model"]) for part in parts}) == 1
    expected = model[0].transform(images)
    with counted_forwards() as count:
        np.testing.assert_allclose(
            loaded[0].transform(images), expected, rtol=1e-5, atol=1e-6
        )
    assert (count.images, count.sessions) == (len(images), 1)
    for part, (_, original) in zip(parts, model[0].transformer_list, strict=True):
        np.testing.assert_allclose(
            part.set_params(cache=None).transform(images[:3]),
            original.transform(images[:3]),
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_stored_network_of_several_layers_is_exported_once(
    net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    model = union(net).fit(images, LABELS)
    path = save_model(model, tmp_path / "m.joblib", store_backbone=True)
    to_onnx(load_model(path), tmp_path / "m.onnx")
    stem = onnx.load(net).graph.initializer[0].raw_data
    assert (tmp_path / "m.onnx").read_bytes().count(stem) == 1
    found = load_model(tmp_path / "m.onnx").predict(list(images))
    np.testing.assert_array_equal(found, model.predict(images))


def test_what_is_saved_is_saved_again_without_the_file(
    net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    model = BaggingClassifier(pipe(net), 3, random_state=0).fit(images[:, None], LABELS)
    expected = model.predict(images[:, None])
    first = save_model(model, tmp_path / "first.joblib", store_backbone=True)
    moved = net.rename(net.with_name("moved"))
    try:
        loaded = load_model(first, cache=None)
        again = save_model(loaded, tmp_path / "again.skops")
        joblib.dump(loaded, tmp_path / "plain.joblib")
        for path in (again, tmp_path / "plain.joblib"):
            found = load_model(path, cache=None).predict(images[:, None])
            np.testing.assert_array_equal(found, expected)
        sizes = [p.stat().st_size for p in (first, tmp_path / "plain.joblib")]
        assert abs(sizes[1] - sizes[0]) < 2000
    finally:
        moved.rename(net)


def test_saving_changes_nothing_of_the_model(net: Path, images: np.ndarray) -> None:
    model = pipe(net).fit(images, LABELS)
    path = net.with_name("m.joblib")
    save_model(model, path, store_backbone=True)
    assert model["codes"].store_backbone is False
    assert load_model(path)["codes"].store_backbone is True
    small = len(pickle.dumps(model))
    save_model(model, path)
    assert path.stat().st_size < small + 1000
    model.set_params(codes__store_backbone=True)
    save_model(model, path)
    assert path.stat().st_size > small + 10_000
    assert [file.name for file in path.parent.glob(".*")] == []


def test_a_failure_leaves_the_old_file(
    net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "m.joblib"
    model = pipe(net).fit(images, LABELS)
    save_model(model, path)
    before = path.read_bytes()
    model.later_ = lambda: 0
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_model(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_calls(net: Path, images: np.ndarray, tmp_path: Path) -> None:
    model = pipe(net)
    with pytest.raises(SavedModelError, match=r"contains no fitted.*1 not fitted"):
        save_model(model, tmp_path / "m.joblib", store_backbone=True)
    model.fit(images, LABELS)
    with pytest.raises(ValueError, match="to_onnx"):
        save_model(model, tmp_path / "m.onnx")
    other = tmp_path / "net.model"
    other.write_bytes(net.read_bytes())
    with pytest.raises(ValueError, match="one of the inputs"):
        save_model(pipe(other).fit(images, LABELS), other)
    with pytest.raises(FileNotFoundError, match="Create it first"):
        save_model(model, tmp_path / "no" / "m.joblib")


# -- loading -----------------------------------------------------------------


def transformers(model: Any) -> list[CNNCodeTransformer]:
    parts = [bag["codes"] for bag in model.estimators_]
    return [*parts, model.estimator["codes"]]


@pytest.mark.parametrize("suffix", ["joblib", "skops"])
def test_settings_reach_all_transformers(
    suffix: str, net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    model = BaggingClassifier(pipe(net, device="cuda:7"), 2)
    model.set_params(estimator__codes__device="cpu").fit(images[:, None], LABELS)
    path = save_model(model, tmp_path / f"m.{suffix}")
    unchanged = load_model(path)
    assert {each.cache for each in transformers(unchanged)} == {"memory"}
    assert {each.n_jobs for each in transformers(unchanged)} == {-1}
    cache = CodeCache()
    loaded = load_model(path, device="auto", cache=cache, n_jobs=1)
    for each in transformers(loaded):
        assert (each.device, each.cache, each.n_jobs) == ("auto", cache, 1)
    assert {each.cache for each in transformers(load_model(path, cache=None))} == {None}
    with pytest.raises(ValueError, match="device"):
        load_model(path, device="gpu")
    with pytest.raises((TypeError, ValueError), match="n_jobs"):
        load_model(path, n_jobs=0)


def test_settings_without_a_transformer(
    net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    save_model({"a": [1, 2]}, tmp_path / "m.joblib")
    assert load_model(tmp_path / "m.joblib") == {"a": [1, 2]}
    with pytest.raises(SavedModelError, match=r"no CNNCodeTransformer.*device"):
        load_model(tmp_path / "m.joblib", device="cpu")
    path = tmp_path / "m.onnx"
    model = pipe(net).fit(images, LABELS)
    to_onnx(model, path)
    loaded = load_model(path, device="cpu", n_jobs=2)
    assert isinstance(loaded, OnnxClassifier)
    assert (loaded.device, loaded.n_jobs) == ("cpu", 2)
    with pytest.raises(SavedModelError, match="no codes to cache"):
        load_model(path, cache=None)


# -- what has no effect, and what was done already ----------------------------


def test_parameters_set_after_fit_that_reach_no_fitted_part(
    net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    search = GridSearchCV(pipe(net), GRID, cv=2).fit(images, LABELS)
    path = tmp_path / "m.joblib"
    search.set_params(estimator__codes__store_backbone=True, estimator__codes__n_jobs=1)
    message = r"no effect.*n_jobs=1 \(.* have -1\).*store_backbone=True \(.* have False"
    with pytest.warns(UserWarning, match=message):
        save_model(search, path)
    with pytest.warns(UserWarning, match=r"no effect.*n_jobs=1") as caught:
        save_model(search, path, store_backbone=True)
    assert "store_backbone" not in str(caught[0].message)  # it was done
    search.best_estimator_.set_params(codes__store_backbone=True, codes__n_jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(search, path)  # set on both
        search.set_params(estimator__codes__device="cpu").fit(images, LABELS)
        save_model(search, path)  # set before the last fit


def test_a_fitted_estimator_in_a_search_is_only_its_template(
    net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    search = GridSearchCV(pipe(net).fit(images, LABELS), GRID, cv=2)
    search.fit(images, LABELS).set_params(estimator__codes__device="cpu")
    with pytest.warns(UserWarning, match=r"device='cpu' \(.* have 'auto'"):
        save_model(search, tmp_path / "m.joblib")


def test_fitted_parts_may_have_settings_of_their_own(
    net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    """The others of a union, and those of a part whose clones are elsewhere."""
    model = union(net).fit(images, LABELS)
    GridSearchCV(model, {"logisticregression__C": [1.0, 2.0]}, cv=2).fit(images, LABELS)
    model[0].transformer_list[0][1].set_params(device="cpu")
    search = GridSearchCV(pipe(net), GRID, cv=2).fit(images, LABELS)
    search.best_estimator_.set_params(codes__device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(model, tmp_path / "m.joblib")
        save_model(search, tmp_path / "m.joblib")


def test_a_message_advises_what_was_not_done(
    net: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SK_CNNCODES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SK_CNNCODES_OFFLINE", "1")
    model = pipe(net, cache=None).fit(images, LABELS)
    complete = pickle.loads(pickle.dumps(model.set_params(codes__store_backbone=True)))
    small = pickle.loads(pickle.dumps(model.set_params(codes__store_backbone=False)))
    moved = net.rename(net.with_name("moved"))
    try:
        with pytest.raises(BackboneError, match="or save the pipeline with store_back"):
            small.predict(images)
        small.set_params(codes__store_backbone=True)
        with pytest.raises(BackboneError, match="save the pipeline again, so that"):
            small.predict(images)
        complete.predict(images)
        complete.set_params(codes__layer=-2)
        with pytest.raises(BackboneError, match=r"set the parameters back.*layer=-1\."):
            complete.predict(images)
        monkeypatch.setenv("SK_CNNCODES_BACKBONES", str(tmp_path))
        with pytest.raises(BackboneError, match=r"Add .* to SK_CNNCODES_BACKBONES='"):
            complete.predict(images)
    finally:
        moved.rename(net)


# -- graphs of other versions --------------------------------------------------


def test_codes_that_an_old_graph_normalised_are_cached_apart(
    net: Path, images: np.ndarray
) -> None:
    """Graphs once had the norm inside; their rows are no codes without norm."""
    digests = {}
    for norm in ("l2", None):
        codes = CNNCodeTransformer(str(net), norm=norm, store_backbone=True).fit(images)
        now = codes.__getstate__()["_stored_graph"]
        before = {key: value for key, value in now.items() if key != "outputs"}
        before["check"] = record_digest(
            {key: value for key, value in before.items() if key != "model"}
        )
        parameters = code_parameters(codes.get_params(deep=False))
        for age, record in (("now", now), ("before", before)):
            found = stored_backbone(record, parameters)
            assert found is not None
            digests[norm, age] = found.specs[0].without_norm.digest
        old = CNNCodeTransformer.__new__(CNNCodeTransformer)
        old.__setstate__(codes.__getstate__() | {"_stored_graph": before})
        np.testing.assert_allclose(
            old.set_params(cache=None).transform(images[:2]),
            codes.transform(images[:2]),
            rtol=1e-5,
            atol=1e-6,
        )
    assert digests[None, "now"] == digests[None, "before"] == digests["l2", "now"]
    assert digests["l2", "before"] != digests["l2", "now"]
    assert now["spec"]["version"] == CODE_VERSION


def test_skops_files_name_trusted_types_only(
    net: Path, images: np.ndarray, tmp_path: Path
) -> None:
    model = GridSearchCV(pipe(net), GRID, cv=2).fit(images, LABELS)
    path = save_model(model, tmp_path / "m.skops", store_backbone=True)
    unknown = set(skops.io.get_untrusted_types(file=path)) - set(SKOPS_TRUSTED_TYPES)
    assert not unknown
    loaded = skops.io.load(
        path, trusted=list(SKOPS_TRUSTED_TYPES)
    )  # without load_model
    np.testing.assert_array_equal(loaded.predict(images), model.predict(images))
