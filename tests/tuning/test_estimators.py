"""FineTunedClassifier and FineTunedRegressor: what they learn, keep and refuse."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_cnncodes import (
    BackboneError,
    CNNCodeTransformer,
    CodeCache,
    FineTunedClassifier,
    FineTunedRegressor,
    ImageError,
    LayerError,
    OnnxClassifier,
    Preprocessing,
    load_backbone,
    load_model,
    save_model,
    to_onnx,
)
from sk_cnncodes.cache.shared_folder import shared_folder
from tests import networks
from tests.forwards import counted_forwards
from tests.rows import TakesRows

torch = pytest.importorskip("torch")

from sk_cnncodes.tuning import maps as maps_module  # noqa: E402
from sk_cnncodes.tuning import run, training  # noqa: E402
from sk_cnncodes.tuning.validation import Decision, Parts  # noqa: E402

DIGITS = load_digits()
# Mixed: each writer's digits follow each other.
ORDER = np.random.default_rng(0).permutation(len(DIGITS.target))
IMAGES = [np.uint8(image * 15) for image in DIGITS.images[ORDER]]
Y = DIGITS.target[ORDER]
PLAIN = Preprocessing(
    resize_size=None, crop_size=(networks.SIDE, networks.SIDE), mean=(0, 0, 0)
)


def narrow() -> onnx.ModelProto:
    """Four residual blocks with random weights and codes of length 5."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    width = 8
    for number, (out, stride) in enumerate([(8, 1), (16, 2), (16, 1), (5, 1)]):
        y = net.op("Relu", net.conv(x, width, out, strides=[stride, stride]))
        y = net.conv(y, out, out)
        short = net.conv(x, width, out, 1, strides=[stride, stride])
        x = net.op("Relu", net.op("Add", y, short), out=f"block{number}")
        width = out
    x = net.op("Flatten", net.op("GlobalAveragePool", x, out="pooled"), axis=1)
    return net.model(net.dense(x, 5, 10, out="scores"))


# A random network with short codes has much to learn.
FEW: dict[str, Any] = {
    "preprocessing": PLAIN,
    "train_from": -3,
    "views": "center",
    "learning_rate": 1e-2,
    "head_learning_rate": 1e-2,
    "max_epochs": 8,
    "batch_size": 32,
    "n_jobs": 1,
}
ONCE = FEW | {"max_epochs": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return networks.save(narrow(), tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(scope="module")
def model(path: str) -> FineTunedClassifier:
    return FineTunedClassifier(path, **FEW).fit(IMAGES[:500], Y[:500])


@pytest.fixture
def always_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuned model of the last epoch is taken, whatever the validation says."""
    decide, falling = Parts.decide, itertools.count(0, -1)

    def taken(self: Parts, frozen: np.ndarray, tuned: np.ndarray) -> Decision:
        return replace(decide(self, frozen, tuned), tuned=True)

    monkeypatch.setattr(Parts, "decide", taken)
    monkeypatch.setattr(Parts, "loss", lambda *_: float(next(falling)))


@pytest.fixture(autouse=True)
def no_file_is_left() -> Iterator[None]:
    yield
    folder = shared_folder(os.getpid())
    assert not list(folder.glob("*.maps"))


def test_tuned_layers_are_better_than_frozen_ones(model: FineTunedClassifier) -> None:
    assert model.is_tuned_, model.decision_
    assert model.tuned_score_ > model.frozen_score_ + 0.05
    X, y = IMAGES[500:900], Y[500:900]
    assert model.score(X, y) > model.frozen_score_ + 0.03
    assert abs(model.score(X, y) - model.tuned_score_) < 0.08
    assert model.decision_.startswith("The tuned model is taken: on 100 validation")
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert abs(probabilities.max(axis=1).mean() - model.score(X, y)) < 0.1


def test_the_history_has_a_row_for_each_epoch(model: FineTunedClassifier) -> None:
    history = model.history_
    assert history["epoch"] == list(range(model.n_iter_ + 1))
    assert len({len(column) for column in history.values()}) == 1
    assert history["validation_score"][model.best_epoch_] == model.tuned_score_
    assert history["learning_rate"][0] == 0 < history["learning_rate"][1]
    assert history["learning_rate"][-1] < history["learning_rate"][1]
    assert np.isnan(history["loss"][0])
    assert history["loss"][-1] < history["loss"][1]


def test_the_same_seed_gives_the_same_model(
    model: FineTunedClassifier, path: str
) -> None:
    again = FineTunedClassifier(path, **FEW).fit(IMAGES[:500], Y[:500])
    for name, column in model.history_.items():
        if name != "seconds":
            np.testing.assert_array_equal(again.history_[name], column)
    np.testing.assert_array_equal(
        again.predict_proba(IMAGES[500:550]), model.predict_proba(IMAGES[500:550])
    )
    other = FineTunedClassifier(path, **FEW, random_state=1)
    other.fit(IMAGES[:500], Y[:500])
    assert other.history_["loss"][1] != model.history_["loss"][1]


def test_the_backbone_is_saved_and_tuned_at_every_layer(
    model: FineTunedClassifier, path: str, tmp_path: Path
) -> None:
    saved = model.save_backbone(tmp_path / "tuned.onnx")
    before, after = load_backbone(path, PLAIN), load_backbone(saved)
    assert [layer.name for layer in after.layers] == [x.name for x in before.layers]
    assert after.preprocessing == before.preprocessing
    X = IMAGES[:20]
    for layer in range(-len(before.layers), 0):
        old, new = (
            CNNCodeTransformer(b, layer=layer, preprocessing=PLAIN).transform(X)
            for b in (path, saved)
        )
        if layer <= FEW["train_from"]:
            np.testing.assert_array_equal(new, old)
        else:
            assert np.abs(new - old).max() > 1e-3 * np.abs(old).max()
    codes = CNNCodeTransformer(saved, norm="power").transform(X)
    np.testing.assert_array_equal(model.pipeline_["codes"].transform(X), codes)


def test_a_backbone_that_is_not_tuned_is_not_saved(tmp_path: Path) -> None:
    kept = FineTunedClassifier(max_epochs=1, train_from=-2, learning_rate=1e-6)
    kept.fit(IMAGES[:120], Y[:120])
    assert not kept.is_tuned_
    assert "The frozen model is kept" in kept.decision_
    assert "standard error" in kept.decision_
    assert kept.score(IMAGES[500:600], Y[500:600]) > 0.85
    with pytest.raises(ValueError, match="The frozen model is kept"):
        kept.save_backbone(tmp_path / "tuned.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["pickle", "joblib", "skops", "onnx"])
def test_a_saved_model_needs_neither_torch_nor_the_backbone(
    form: str, tmp_path: Path
) -> None:
    backbone = networks.save(narrow(), tmp_path / "net.onnx")
    fitted = FineTunedClassifier(backbone, **FEW).fit(IMAGES[:500], Y[:500])
    assert fitted.is_tuned_, fitted.decision_
    np.save(tmp_path / "X.npy", np.stack(IMAGES[500:520]))
    wanted = fitted.predict_proba(IMAGES[500:520])
    file = tmp_path / f"model.{form}"
    if form == "onnx":
        pytest.importorskip("skl2onnx")
        to_onnx(fitted, file)
    elif form == "pickle":
        file.write_bytes(pickle.dumps(fitted))
    elif form == "joblib":
        joblib.dump(fitted, file)
    else:
        pytest.importorskip("skops")
        save_model(fitted, file)
    Path(backbone).unlink()
    source = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import numpy as np\n"
        "from sk_cnncodes import load_model\n"
        f"model = load_model({str(file)!r})\n"
        f"X = list(np.load({str(tmp_path / 'X.npy')!r}))\n"
        f"np.save({str(tmp_path / 'p.npy')!r}, model.predict_proba(X))\n"
    )
    subprocess.run([sys.executable, "-c", source], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), wanted, atol=1e-4)


def test_store_backbone_works(model: FineTunedClassifier, tmp_path: Path) -> None:
    file = save_model(model, tmp_path / "m.joblib", store_backbone=True)
    loaded = load_model(file, cache=None)
    np.testing.assert_array_equal(loaded.predict(IMAGES[:9]), model.predict(IMAGES[:9]))
    assert loaded.save_backbone(tmp_path / "b.onnx").stat().st_size > 1000


@pytest.mark.parametrize("two", [False, True])
def test_hidden_layers(path: str, two: bool, tmp_path: Path) -> None:
    y = Y % 2 if two else Y
    found = FineTunedClassifier(path, **FEW, head="mlp", hidden=np.array([24, 16]))
    found.fit(IMAGES[:1000], y[:1000])
    assert found.is_tuned_, found.decision_
    assert found.score(IMAGES[500:700], y[500:700]) > found.frozen_score_
    assert found.pipeline_["head"].coefs_[0].shape[1] == 24
    pytest.importorskip("skl2onnx")
    to_onnx(found, tmp_path / "m.onnx")
    X = IMAGES[500:530]
    served = OnnxClassifier(tmp_path / "m.onnx").predict_proba(X)
    np.testing.assert_allclose(served, found.predict_proba(X), atol=1e-3)


def test_the_head_alone(path: str) -> None:
    alone = FineTunedClassifier(path, **{**FEW, "train_from": -1})
    alone.fit(IMAGES[:300], Y[:300])
    assert alone.maps_bytes_ == 300 * 5 * 2
    assert alone.history_["learning_rate"] == [0] * (alone.n_iter_ + 1)


def test_the_whole_network(path: str) -> None:
    whole = FineTunedClassifier(path, **{**FEW, "train_from": "all"})
    whole.fit(IMAGES[:400], Y[:400])
    assert whole.is_tuned_, whole.decision_
    assert whole.score(IMAGES[500:700], Y[500:700]) > whole.frozen_score_


def test_rates_grow_from_early_to_late_layers(path: str) -> None:
    from sk_cnncodes.tuning.parameters import block_rates
    from sk_cnncodes.tuning.tail import read_tail

    backbone = load_backbone(path, PLAIN)
    blocks = read_tail(backbone, -3).blocks
    rates = block_rates(1e-3, 0.5, backbone, -3, blocks)
    by_block = sorted({(blocks[name], rate) for name, rate in rates.items()})
    last = by_block[-1][0]
    assert by_block == [(n, 1e-3 * 0.5 ** (last - n)) for n, _ in by_block]
    first = min(blocks.values())
    named = {n - 2: 10.0 ** -(9 - n) for n in set(blocks.values())}
    found = block_rates(named, 0.5, backbone, -3, blocks)
    assert {found[name] for name in blocks if blocks[name] == first} == {
        named[first - 2]
    }
    with pytest.raises(ValueError, match="none for"):
        block_rates({-1: 1e-3}, 0.5, backbone, -4, read_tail(backbone, -4).blocks)
    with pytest.raises(ValueError, match="not among the trained layers"):
        block_rates({-4: 1e-3}, 0.5, backbone, -3, blocks)


def test_numbers_of_layers_may_be_those_of_numpy(path: str) -> None:
    rates = dict.fromkeys(np.arange(-2, 0), 1e-3)
    few = {**ONCE, "train_from": np.int64(-3), "learning_rate": rates}
    found = FineTunedClassifier(path, **few, layer=np.int64(-1))
    plain = FineTunedClassifier(path, **{**ONCE, "learning_rate": 1e-3}, layer_decay=1)
    found.fit(IMAGES[:100], Y[:100])
    plain.fit(IMAGES[:100], Y[:100])
    assert found.history_["loss"][1:] == plain.history_["loss"][1:]


def test_warm_start_continues(path: str) -> None:
    found = FineTunedClassifier(path, **FEW, warm_start=True)
    found.fit(IMAGES[:400], Y[:400])
    first = found.tuned_score_
    assert found.is_tuned_
    found.fit(IMAGES[:400], Y[:400])
    assert found.history_["validation_score"][0] > found.frozen_score_
    assert found.tuned_score_ > first - 0.1
    found.set_params(train_from=-2)
    with pytest.raises(ValueError, match="warm_start: expected"):
        found.fit(IMAGES[:400], Y[:400])


@pytest.mark.usefixtures("always_taken")
@pytest.mark.parametrize("start", [-3, -1])
def test_warm_start_refuses_the_head_alone(path: str, start: int) -> None:
    """It would drop the tuned layers; and a tuned head where layers follow."""
    found = FineTunedClassifier(path, **{**ONCE, "train_from": start}, warm_start=True)
    found.fit(IMAGES[:100], Y[:100]).fit(IMAGES[:100], Y[:100])
    found.set_params(train_from=-4 - start)
    with pytest.raises(ValueError, match="warm_start: expected the train_from"):
        found.fit(IMAGES[:100], Y[:100])
    found.set_params(warm_start=False).fit(IMAGES[:100], Y[:100])


@pytest.mark.usefixtures("always_taken")
def test_warm_start_says_what_was_trained_on_before(path: str) -> None:
    found = FineTunedClassifier(path, **ONCE, warm_start=True)
    first = found.fit(IMAGES[:100], Y[:100]).validation_rows_
    assert found.fit(IMAGES[:100], Y[:100]).notes_ == []
    found.set_params(random_state=1)
    with pytest.warns(UserWarning, match="were trained on by an earlier fit") as caught:
        found.fit(IMAGES[:100], Y[:100])
    n_seen, n_valid = (
        len(np.setdiff1d(found.validation_rows_, first)),
        len(found.validation_rows_),
    )
    assert found.notes_[0].startswith(f"warm_start: {n_seen} of the {n_valid} val")
    assert [Path(each.filename).name for each in caught] == ["test_estimators.py"]
    # Other images, and none of an earlier fit.
    assert found.fit(IMAGES[100:200], Y[100:200]).notes_ == []
    # Both fits before count, and a fit that begins anew forgets them.
    with pytest.warns(UserWarning, match="were trained on by an earlier fit"):
        found.fit(IMAGES[:100], Y[:100])
    found.set_params(warm_start=False, random_state=2)
    assert found.fit(IMAGES[:100], Y[:100]).notes_ == []


def test_warm_start_keeps_what_is_not_trained_again(path: str) -> None:
    found = FineTunedClassifier(path, **{**FEW, "max_epochs": 3}, warm_start=True)
    found.fit(IMAGES[:1000], Y[:1000])
    first = found.history_["validation_loss"][found.best_epoch_]
    assert found.is_tuned_ and found.best_epoch_
    rates = {"learning_rate": {-2: 0.0, -1: 3e-4}, "head_learning_rate": 3e-4}
    found.set_params(**rates, max_epochs=8)
    found.fit(IMAGES[:1000], Y[:1000])
    assert found.is_tuned_ and found.best_epoch_
    assert found.history_["validation_loss"][found.best_epoch_] < first


def test_warm_start_refuses_another_network(path: str, tmp_path: Path) -> None:
    found = FineTunedClassifier(path, **FEW, warm_start=True)
    found.fit(IMAGES[:400], Y[:400])
    model = onnx.load(path)
    model.producer_name = "another"
    found.set_params(backbone=networks.save(model, tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match="warm_start: expected the backbone"):
        found.fit(IMAGES[:400], Y[:400])


# -- weights, groups, values ---------------------------------------------------


def test_groups_stay_together(path: str) -> None:
    groups = np.arange(300) // 3
    found = FineTunedClassifier(path, **{**FEW, "max_epochs": 1}).fit(
        IMAGES[:300], Y[:300], groups=groups
    )
    valid = found.validation_rows_
    trained = np.setdiff1d(np.arange(300), valid)
    assert len(valid) and not set(groups[trained]) & set(groups[valid])


@pytest.mark.parametrize("kind", [FineTunedClassifier, FineTunedRegressor])
def test_few_groups(path: str, kind: Any) -> None:
    """One group validates: nothing says what chance does, and the frozen is kept."""
    groups = np.arange(100) % 5
    found = kind(path, **{**FEW, "max_epochs": 1})
    found.fit(IMAGES[:100], Y[:100], groups=groups)
    assert len(set(groups[found.validation_rows_])) == 1
    assert not found.is_tuned_


def test_copies_are_said(path: str) -> None:
    found = FineTunedClassifier(path, **{**FEW, "max_epochs": 1})
    found.fit(IMAGES[:50], Y[:50])
    assert found.notes_ == []
    (note,) = found.fit(IMAGES[:50] * 2, np.r_[Y[:50], Y[:50]]).notes_
    assert note.startswith("50 images are copies of others")


def test_images_of_weight_zero_are_left_out(path: str) -> None:
    y = np.r_[Y[:200], np.arange(50) % 10]
    weights = np.r_[np.ones(200), np.zeros(50)]
    found = []
    for ink in (0, 255):
        X = IMAGES[:200] + [np.full((8, 8), ink, np.uint8)] * 49 + IMAGES[300:301]
        found.append(FineTunedClassifier(path, **FEW).fit(X, y, weights))
    for model in found:
        assert model.frozen_head_ == "ridge"
        assert model.validation_rows_.max() < 200
    for name in ("loss", "validation_loss"):
        np.testing.assert_array_equal(*(model.history_[name] for model in found))
    for bad in (-weights, weights * np.nan, weights * 0, weights[:3]):
        with pytest.raises(ValueError, match="sample_weight: expected"):
            FineTunedClassifier(path, **FEW).fit(X, y, bad)
    with pytest.raises(ValueError, match="sample_weight: expected numbers.*'x'"):
        FineTunedClassifier(path, **FEW).fit(X, y, ["x"] * len(X))
    without = dict.fromkeys(range(10), 0)
    with pytest.raises(ValueError, match="class_weight.* got 0 for all"):
        FineTunedClassifier(path, **FEW, class_weight=without).fit(X, y)


def test_images_of_weight_zero_take_no_place(path: str) -> None:
    """The split is drawn of the others, of which few are enough."""
    for seed in range(3):
        weights = np.zeros(20)
        weights[np.random.default_rng(seed).permutation(20)[:4]] = 1
        few = {**ONCE, "random_state": seed, "validation_fraction": 0.5}
        one = FineTunedRegressor(path, **few)
        one.fit(IMAGES[:20], np.arange(20.0), sample_weight=weights)
        assert weights[one.validation_rows_].tolist() == [1, 1]
        weights = np.zeros(20)
        weights[[0, 1, 10, 11]] = 1
        two = FineTunedClassifier(path, **few)
        two.fit(IMAGES[:20], np.arange(20) > 9, sample_weight=weights)
        assert set(two.validation_rows_ > 9) == {False, True}


def test_a_value_that_does_not_vary_in_the_validation_part(path: str) -> None:
    values = np.c_[Y[:60], np.arange(60) == 3].astype(float)
    found = FineTunedRegressor(path, **ONCE).fit(IMAGES[:60], values)
    assert 3 not in found.validation_rows_
    assert np.isfinite([found.frozen_score_, found.tuned_score_]).all()


@pytest.mark.parametrize("number", [2, 3, 5])
def test_too_few_values(path: str, number: int) -> None:
    with pytest.raises(ValueError, match=r"y: .*, got fewer|y: .*images.*, got \d"):
        FineTunedRegressor(path, **ONCE).fit(IMAGES[:number], np.arange(number))


def test_class_weights_count_in_the_validation(path: str) -> None:
    rows = np.r_[np.flatnonzero(Y == 0)[:100], np.flatnonzero(Y == 8)[:20]]
    X, y = [IMAGES[row] for row in rows], Y[rows]
    found = FineTunedClassifier(path, **FEW, class_weight="balanced").fit(X, y)
    recalls = [
        found.score([x for x, c in zip(X, y, strict=True) if c == k], [k] * n)
        for k, n in ((0, 100), (8, 20))
    ]
    assert min(recalls) > 0.8
    if not found.is_tuned_:
        return
    valid = found.validation_rows_
    weights = np.where(y == 8, 5.0, 1.0)[valid]
    right = found.predict([X[row] for row in valid]) == y[valid]
    assert found.tuned_score_ == pytest.approx(np.average(right, weights=weights))


def test_values_are_regressed(path: str, tmp_path: Path) -> None:
    values = np.array([image.astype(float).mean() for image in IMAGES]) ** 2
    found = FineTunedRegressor(path, **FEW).fit(IMAGES[:400], values[:400])
    assert found.score(IMAGES[500:700], values[500:700]) > 0.4
    assert found.predict(IMAGES[:3]).shape == (3,)
    both = np.column_stack([values, -2 * values + 3])
    several = FineTunedRegressor(path, **FEW, head="mlp").fit(IMAGES[:300], both[:300])
    assert several.predict(IMAGES[:3]).shape == (3, 2)
    assert several.score(IMAGES[500:700], both[500:700]) > 0.3
    # Wherever zero is.
    far = FineTunedRegressor(path, **FEW, head="mlp")
    assert far.fit(IMAGES[:400], values[:400] + 1e5).tuned_score_ > 0.3


def test_how_it_is_trained(path: str) -> None:
    """Mixup, smoothing, half precision, early stops; torch is as it was afterwards."""
    threads = torch.get_num_threads()

    def fitted(**parameters: Any) -> FineTunedClassifier:
        model = FineTunedClassifier(path, **{**FEW, "max_epochs": 2, **parameters})
        return model.fit(IMAGES[:200], Y[:200])

    plain = fitted().history_["loss"][1:]
    for parameters in (
        {"mixup": 0.4},
        {"label_smoothing": 0.2},
        {"weight_decay": 10.0},
        {"precision": "bfloat16"},
    ):
        losses = fitted(**parameters).history_["loss"][1:]
        assert np.isfinite(losses).all() and losses != plain, parameters
    still = fitted(learning_rate=1e-12, head_learning_rate=1e-12, max_epochs=9)
    assert still.n_iter_ < 9
    fitted(n_jobs=1)
    with pytest.raises(FloatingPointError):
        fitted(learning_rate=1e30, n_jobs=1)
    assert torch.get_num_threads() == threads


def test_what_a_caller_set_for_torch_changes_nothing(path: str) -> None:
    def losses() -> list[float]:
        model = FineTunedClassifier(path, **ONCE).fit(IMAGES[:100], Y[:100])
        return model.history_["loss"][1:]

    plain = losses()
    for setting in (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.device("meta"),  # stands for a GPU
    ):
        with setting:
            assert losses() == plain
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    try:
        assert losses() == plain
        assert torch.get_default_dtype() == torch.float64
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("can", [True, False])
def test_precision_suits_the_machine(
    path: str, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = frozenset({"bfloat16"} if can else ())
    monkeypatch.setattr(
        "sk_cnncodes.tuning.torch_settings.cpu_features", lambda: features
    )
    few = {**FEW, "max_epochs": 1, "device": "cpu"}
    found = FineTunedClassifier(path, **few, precision="auto")
    found.fit(IMAGES[:200], Y[:200])
    assert found.precision_ == ("bfloat16" if can else "float32")
    same = FineTunedClassifier(path, **few, precision=found.precision_)
    same.fit(IMAGES[:200], Y[:200])
    assert same.history_["loss"][1:] == found.history_["loss"][1:]


def test_the_head_is_trained_in_float32(path: str) -> None:
    """Where it is trained alone, precision changes nothing."""

    def losses(precision: str) -> list[float]:
        few = {**FEW, "train_from": -1, "max_epochs": 2}
        model = FineTunedClassifier(path, **few, precision=precision)
        return model.fit(IMAGES[:200], Y[:200]).history_["loss"][1:]

    assert losses("bfloat16") == losses("float32")


@pytest.mark.usefixtures("always_taken")
def test_small_differences_of_torch_and_onnx_runtime(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are compared without roots, which are 0.03 where a thousandth is."""
    share, run_tail = 0.0, run.run_tail

    def shifted(*arguments: Any) -> np.ndarray:
        codes = run_tail(*arguments)
        return codes + np.float32(share) * codes.max()

    monkeypatch.setattr(run, "run_tail", shifted)
    found = FineTunedClassifier(path, **{**ONCE, "pooling": "flatten"})
    share = 1e-3
    assert found.fit(IMAGES[:100], Y[:100]).is_tuned_
    share = 0.1
    with pytest.raises(BackboneError, match="ONNX Runtime and torch differ"):
        found.fit(IMAGES[:100], Y[:100])


# -- scikit-learn --------------------------------------------------------------


def test_a_search_runs_the_frozen_layers_once(path: str) -> None:
    grid = {"train_from": [-3, -2], "layer_decay": [0.5, 1.0]}
    cache = CodeCache()
    estimator = FineTunedClassifier(
        path, **{**FEW, "max_epochs": 1, "views": "flip"}, cache=cache
    )
    X, y = IMAGES[:90], Y[:90] % 3
    # Predictions of tuned networks are passes that nothing shares.
    search = GridSearchCV(estimator, grid, cv=2, refit=False, scoring=_tuned_score)
    search.fit(X, y)
    info = cache.info()
    # Two layers and two views; and where torch and ONNX Runtime are compared.
    compared = 4 * 2 * 8
    assert 2 * 2 * 90 <= info.misses <= 2 * 2 * 90 + compared
    assert info.hits >= 2 * 2 * 90
    assert set(search.cv_results_["param_train_from"]) == {-3, -2}


def _tuned_score(estimator: Any, X: Any, y: Any) -> float:
    return float(estimator.tuned_score_)


def test_it_is_cloned_and_stands_in_a_pipeline(model: FineTunedClassifier) -> None:
    copied = clone(model)
    assert copied.get_params()["train_from"] == -3
    assert not hasattr(copied, "pipeline_")
    assert copied._tuned_model is None
    short = clone(model).set_params(max_epochs=1)
    pipeline = make_pipeline(short).fit(IMAGES[:100], Y[:100])
    assert pipeline.predict(IMAGES[:5]).shape == (5,)


class RowsClassifier(TakesRows, FineTunedClassifier):
    def predict_proba(self, X: Any) -> np.ndarray:
        return super().predict_proba(self._images(X, reset=False))


class RowsRegressor(TakesRows, FineTunedRegressor):
    pass


@parametrize_with_checks(
    [
        RowsClassifier(train_from=-1, max_epochs=1, validation_fraction=0.5),
        RowsRegressor(train_from=-1, max_epochs=1, validation_fraction=0.5),
    ]
)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


# -- faults --------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_found_before_anything_runs(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(
        maps_module.shutil, "disk_usage", lambda _: usage._replace(free=2**20)
    )
    with (
        counted_forwards() as count,
        pytest.raises(OSError, match=r"100 images.* need"),
    ):
        FineTunedClassifier(path, **FEW).fit(IMAGES[:100], Y[:100])
    assert count.images == 0


def test_a_disk_that_fills_up(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(maps_module, "reserve_disk", full)
    with pytest.raises(OSError, match="No space left"):
        FineTunedClassifier(path, **FEW).fit(IMAGES[:100], Y[:100])


def test_a_loss_that_is_not_finite(path: str) -> None:
    found = FineTunedClassifier(path, **FEW | {"learning_rate": 1e30})
    with pytest.raises(FloatingPointError, match=r"lower learning_rate .*1e\+30\) or"):
        found.fit(IMAGES[:200], Y[:200])
    assert not hasattr(found, "pipeline_")
    alone = FEW | {"head_learning_rate": 1e38, "train_from": -1}
    found = FineTunedClassifier(path, **alone, weight_decay=1e20)
    cure = r"lower head_learning_rate \(1e\+38\)\.$"
    with pytest.raises(FloatingPointError, match=cure):
        found.fit(IMAGES[:200], Y[:200])


def test_one_class_in_the_validation_part(path: str) -> None:
    y = np.repeat([0, 1], 50)
    groups = np.where(y, 99, np.arange(100) // 5)  # of class 1 there is one group
    with pytest.raises(ValueError, match="needs at least 2 classes, got only 0"):
        FineTunedClassifier(path, **FEW).fit(IMAGES[:100], y, groups=groups)


@pytest.mark.parametrize("each", [1, 2])
def test_few_images_of_a_class(path: str, each: int) -> None:
    y = np.repeat(np.arange(6), each)
    estimator = FineTunedClassifier(path, **FEW)
    if each == 1:
        with pytest.raises(ValueError, match="at least 2 images"):
            estimator.fit(IMAGES[: len(y)], y)
    else:
        assert estimator.fit(IMAGES[: len(y)], y).predict(IMAGES[:2]).shape == (2,)


def test_a_small_class_does_not_enlarge_the_validation_part(path: str) -> None:
    y = np.r_[Y[:100] % 2, 2, 2]
    found = FineTunedClassifier(path, **FEW).fit(IMAGES[:102], y)
    assert "on 20 validation" in found.decision_ or "on 21" in found.decision_


@pytest.mark.parametrize("epoch", [0, 2])
def test_an_interrupt_keeps_the_best_so_far(
    path: str, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = training._Training._step_on

    def interrupted(self: Any, *arguments: Any) -> float:
        if len(self.rows) - 1 == epoch:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(training._Training, "_step_on", interrupted)
    found = FineTunedClassifier(path, **FEW)
    with pytest.warns(UserWarning, match=f"interrupted after epoch {epoch} of 8"):
        found.fit(IMAGES[:300], Y[:300])
    assert found.n_iter_ == epoch
    assert found.score(IMAGES[500:600], Y[500:600]) > 0.3


def test_an_interrupt_of_a_head_that_is_trained_alone(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Training, "_step_on", interrupted)
    found = FineTunedClassifier(path, **FEW, head="mlp")
    with pytest.warns(UserWarning, match="interrupted after epoch 0 of 8"):
        found.fit(IMAGES[:300], Y[:300])
    assert found.n_iter_ == 0


def test_an_interrupt_while_maps_are_computed_leaves_nothing(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(maps_module.Maps, "write", interrupted)
    found = FineTunedClassifier(path, **FEW)
    with pytest.raises(KeyboardInterrupt):
        found.fit(IMAGES[:100], Y[:100])
    assert not hasattr(found, "pipeline_")


def test_torch_is_named_if_it_is_missing(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"sk-cnncodes\[torch\]"):
        FineTunedClassifier(path, **FEW).fit(IMAGES[:100], Y[:100])


def test_a_bad_image_is_named(path: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    X: list[Any] = [*IMAGES[:50], str(bad), *IMAGES[50:99]]
    with pytest.raises(ImageError, match=r"bad\.jpg") as caught:
        FineTunedClassifier(path, **FEW).fit(X, Y[:100])
    assert caught.value.index == 50


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"head": "tree"}, ValueError, "head: expected one of"),
        ({"views": "five_crop"}, ValueError, "views: expected one of"),
        ({"maps": "int8"}, ValueError, "maps: expected one of"),
        ({"layer_decay": 0}, ValueError, "layer_decay: expected a number above 0"),
        ({"learning_rate": -1}, ValueError, "learning_rate: expected a number above"),
        ({"max_epochs": 0}, ValueError, "max_epochs: expected an int"),
        ({"batch_size": 2.5}, ValueError, "batch_size: expected an int"),
        ({"validation_fraction": 0.9}, ValueError, "validation_fraction: expected"),
        ({"hidden": ()}, ValueError, "hidden: expected at least one"),
        ({"train_from": 1.5}, TypeError, "train_from: expected"),
        ({"train_from": -99}, LayerError, "^train_from=-99 .* Set train_from=-5, or"),
        ({"train_from": "x"}, LayerError, "^train_from='x' is not.* Or 'all'"),
        ({"learning_rate": {-99: 1}}, ValueError, "learning_rate: -99 is not among"),
        ({"hidden": np.array([4, 0])}, ValueError, "hidden: expected an int"),
        ({"train_from": -1, "layer": -2}, BackboneError, "train_from"),
        ({"device": ["cuda:0"]}, TypeError, "device: expected one"),
    ],
)
def test_bad_parameters(
    path: str, parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with counted_forwards() as count, pytest.raises(error, match=message):
        FineTunedClassifier(path, **FEW | parameters).fit(IMAGES[:100], Y[:100])
    assert count.images == 0


def test_several_labels_are_refused(path: str) -> None:
    labels = np.column_stack([Y[:100] % 2, Y[:100] > 4]).astype(int)
    with pytest.raises(ValueError, match="one class for each image"):
        FineTunedClassifier(path, **FEW).fit(IMAGES[:100], labels)
    with pytest.raises(ValueError, match="use FineTunedRegressor"):
        FineTunedClassifier(path, **FEW).fit(IMAGES[:100], Y[:100] + 0.5)


@pytest.mark.parametrize(
    ("kind", "y", "groups", "message"),
    [
        (FineTunedRegressor, ["a", "b"], None, "y: FineTunedRegressor takes numbers"),
        (FineTunedRegressor, [None, 1], None, "y: .* got None for 5 of 10, first at"),
        (FineTunedRegressor, [{}, 1], None, "y: FineTunedRegressor takes numbers"),
        (FineTunedClassifier, ["a", None], None, "got None for 5 of 10.*position 1"),
        (FineTunedClassifier, [1, 2], None, r"objects\. Give y\.astype\(int\)"),
        (FineTunedClassifier, ["a", "b"], [None, "g"], "groups: .* got None for 5"),
        (FineTunedClassifier, ["a", "b"], [np.nan, "g"], "groups: .* got nan for 5"),
    ],
)
def test_bad_targets_and_groups(
    path: str, kind: Any, y: list[Any], groups: list[Any] | None, message: str
) -> None:
    targets = np.array(y * 5, str if "b" in y else object)
    given = None if groups is None else np.array(groups * 5, object)
    with pytest.raises(ValueError, match=message):
        kind(path, **ONCE).fit(IMAGES[:10], targets, groups=given)
