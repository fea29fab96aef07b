"""One fine-tuning from images to a pipeline: what needs torch, in order."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from torch import nn

from sk_cnncodes._version import __version__
from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.loading import load_backbone
from sk_cnncodes.backbones.norms import apply_norm
from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.engines.devices import usable_threads
from sk_cnncodes.graphs.wire_format import metadata_of
from sk_cnncodes.ranking.notes import notes_on_copies
from sk_cnncodes.ranking.scoring import temperature_factors
from sk_cnncodes.tuning.frozen import (
    FrozenHeads,
    compare_frozen,
    fit_frozen,
    fit_ridge,
)
from sk_cnncodes.tuning.head_weights import HeadWeights, random_hidden
from sk_cnncodes.tuning.interpreter.writing import TUNING_KEY
from sk_cnncodes.tuning.maps import Maps, computed_maps
from sk_cnncodes.tuning.parameters import block_rates, hidden_sizes
from sk_cnncodes.tuning.tail import Tail, read_tail, start_layer, tuned_model
from sk_cnncodes.tuning.torch_head import TorchHead
from sk_cnncodes.tuning.torch_settings import (
    repeatable,
    torch_device,
    training_precision,
)
from sk_cnncodes.tuning.training import Codes, Outcome, Recipe, run_tail, train
from sk_cnncodes.tuning.tuned_codes import opened, tuned_name, tuned_transformer
from sk_cnncodes.tuning.validation import Decision, Parts

# Images whose codes torch and ONNX Runtime both compute after training, and how much
# they may differ without norm, relative to the largest value: maps of float16, and
# networks of float16, differ by up to 2e-3, and a fault of an operator by 0.5.
_COMPARED = 8
_TOLERANCE = 3e-2
# Epochs, at most, in which a head with hidden layers is trained before the tail is.
_PROBE_EPOCHS, _PROBE_PATIENCE = 20, 5


@dataclass(frozen=True)
class Task:
    """What is to be fitted.

    Attributes
    ----------
    parameters : mapping
        Of the estimator, checked.
    images : sequence
    y : ndarray
        Classes or values, as heads take them.
    parts : Parts
    weighted : bool
        Whether images have weights of their own.
    seeds : sequence of int
        Of the training, and of folds.
    previous : bytes or None
        The tuned model to continue from.
    trained_after : str or None
        The tensor after which the fit to continue from trained. Where that was the
        head alone, there is no model of it.
    trained_on : ndarray of int or None
        Digests of the images that the model to continue from was trained on.
    """

    parameters: Mapping[str, Any]
    images: Sequence[Any]
    y: np.ndarray
    parts: Parts
    weighted: bool
    seeds: Sequence[int]
    previous: bytes | None
    trained_after: str | None
    trained_on: np.ndarray | None


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes
    ----------
    pipeline : Pipeline
    model : bytes or None
        The tuned ONNX model; None if the network is as it was.
    trained_after : str
        The tensor after which everything was trained.
    trained_on : ndarray of int or None
        Digests of all images that the model was trained on, by earlier fits too.
    decision : Decision
    frozen : FrozenHeads
    outcome : Outcome
    notes : list of str
        On copies among the images, and on those that earlier fits trained on.
    maps_bytes : int
    timings : dict of str to float
        Seconds.
    """

    pipeline: Pipeline
    model: bytes | None
    trained_after: str
    trained_on: np.ndarray | None
    decision: Decision
    frozen: FrozenHeads
    outcome: Outcome
    notes: list[str]
    maps_bytes: int
    timings: dict[str, float]


@dataclass(frozen=True)
class _HeadAlone:
    """Stands for a tail where no layer of the network is trained."""

    input_name: str
    input_shape: tuple[int, ...]
    module: nn.Module
    blocks: Mapping[str, int]


def fine_tune(task: Task) -> Result:
    """Fit the frozen and the tuned model, and take one of them.

    Raises
    ------
    BackboneError
        If torch cannot run the layers that are to be trained.
    OSError
        If the disk has no room for the maps.
    FloatingPointError
        If the training diverges.
    """
    timings: dict[str, float] = {}
    given = task.parameters
    device = torch_device(given["device"])
    backbone = load_backbone(given["backbone"], given["preprocessing"])
    n_threads = usable_threads(given["n_jobs"])
    # Faults of parameters and operators show before anything is computed.
    with repeatable(device, n_threads):
        tail = _tail(given, backbone)
    _rates(given, backbone, tail)
    _check_previous(task, backbone, tail)
    with (
        _timed(timings, "all"),
        _maps_of(task, tail, timings) as maps,
        repeatable(device, n_threads),
    ):
        with _timed(timings, "frozen"):
            module, every = tail.module.to(device).eval(), np.arange(len(task.images))
            plain = run_tail(module, maps, every, device)
            codes = apply_norm(plain, "power")
            notes = notes_on_copies(plain, task.parts.groups)
            notes += _note_on_seen(task, maps)
            frozen = compare_frozen(
                *(codes, task.parts, task.y, given.get("class_weight")),
                kernel=not task.weighted,
            )
        with _timed(timings, "training"):
            start = frozen.start
            if task.previous is not None and isinstance(tail, Tail):
                with _previous(task.previous, backbone) as tuned:
                    tail = _tail(given, tuned)
                plain = run_tail(tail.module.to(device).eval(), maps, every, device)
                continued = apply_norm(plain, "power")
                start = fit_ridge(continued, task.parts, task.parts.train)
            head, outcome = _train(task, backbone, tail, maps, plain, start, device)
        decision = task.parts.decide(frozen.values, outcome.values)
        with _timed(timings, "final"):
            if decision.tuned:
                transformer, model = _tuned_codes(
                    task, backbone, tail, maps, outcome, device
                )
                last = _tuned_head(task, head, outcome)
            else:
                transformer, model = _transformer(task).fit(task.images), None
                last = fit_frozen(
                    *(frozen.name, codes, task.parts, task.y),
                    *(given.get("class_weight"), task.seeds[1]),
                )
        pipeline = Pipeline([("codes", transformer), ("head", last)])
        trained_on = None
        if model is not None:
            trained_on = maps.digests(task.parts.train)
            if task.trained_on is not None:
                trained_on = np.union1d(trained_on, task.trained_on)
    fitted = pipeline, model, tail.input_name, trained_on, decision, frozen, outcome
    return Result(*fitted, notes, maps.n_bytes, timings)


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - start


# -- the tail ------------------------------------------------------------------


def _tail(given: Mapping[str, Any], backbone: Backbone) -> Tail | _HeadAlone:
    """The part of the network that is trained."""
    layer, train_from = given["layer"], given["train_from"]
    spec = backbone.spec(layer, given["pooling"], None)
    if train_from != "all" and start_layer(backbone, train_from).name == spec.layer:
        return _HeadAlone(spec.layer, (backbone.code_length(spec),), nn.Identity(), {})
    return read_tail(backbone, train_from, layer, given["pooling"])


def _check_previous(task: Task, backbone: Backbone, tail: Tail | _HeadAlone) -> None:
    """Refuse to continue from the tail of another network, or from another layer."""
    checked = [("train_from", task.trained_after, tail.input_name)]
    if task.previous is not None:
        origin = json.loads(metadata_of(task.previous)[TUNING_KEY])
        checked.insert(0, ("backbone", origin["backbone_sha256"], backbone.sha256))
    for name, before, now in checked:
        if before not in (None, now):
            raise ValueError(
                f"warm_start: expected the {name} of the last fit, {before!r}, got "
                f"{now!r}. Set warm_start=False to begin anew."
            )


def _previous(model: bytes, backbone: Backbone) -> AbstractContextManager[Backbone]:
    """The model that the last fit tuned, as a backbone."""
    return opened(model, tuned_name(backbone), backbone.preprocessing)


def _rates(
    given: Mapping[str, Any], backbone: Backbone, tail: Tail | _HeadAlone
) -> dict[str, float]:
    return block_rates(
        *(given["learning_rate"], given["layer_decay"], backbone),
        *(given["train_from"], tail.blocks),
    )


def _transformer(task: Task, **changes: Any) -> CNNCodeTransformer:
    """The transformer of the codes, with some other parameters."""
    names = ("layer", "pooling", "preprocessing", "cache", "device", "n_jobs")
    parameters = {name: task.parameters[name] for name in names}
    parameters |= {"norm": "power"} | changes
    return CNNCodeTransformer(task.parameters["backbone"], **parameters)


@contextmanager
def _maps_of(
    task: Task, tail: Tail | _HeadAlone, timings: dict[str, float]
) -> Iterator[Maps]:
    """What the tail reads, of all images."""
    given, start = task.parameters, time.perf_counter()
    changes: dict[str, Any] = {"norm": None}
    if isinstance(tail, Tail):
        changes |= {"layer": tail.input_name, "pooling": "flatten"}
    with computed_maps(
        *(task.images, _transformer(task, **changes), tail.input_shape),
        views=given["views"],
        dtype=given["maps"],
        verbose=bool(given["verbose"]),
    ) as maps:
        timings["maps"] = time.perf_counter() - start
        yield maps


def _note_on_seen(task: Task, maps: Maps) -> list[str]:
    """Validation images that the model to continue from was trained on."""
    if task.trained_on is None:
        return []
    train, valid = (maps.digests(rows) for rows in (task.parts.train, task.parts.valid))
    # Copies of what is trained on now have a note of their own.
    seen = np.isin(valid, task.trained_on) & ~np.isin(valid, train)
    if not seen.any():
        return []
    note = (
        f"warm_start: {seen.sum()} of the {len(valid)} validation images were trained "
        "on by an earlier fit, which makes the scores of the tuned model optimistic: "
        "fit to the same images and y with the same random_state and "
        "validation_fraction, or set warm_start=False."
    )
    warnings.warn(note, UserWarning, stacklevel=5)  # the caller of `fit`
    return [note]


# -- training ------------------------------------------------------------------


def _train(
    task: Task,
    backbone: Backbone,
    tail: Tail | _HeadAlone,
    maps: Maps,
    plain: np.ndarray,
    start: HeadWeights,
    device: torch.device,
) -> tuple[TorchHead, Outcome]:
    """Train tail and head, which starts from ridge; both keep their best weights.

    Parameters
    ----------
    plain : ndarray of float32, shape (n_images, n_features)
        Codes of the tail before training, without norm.
    start : HeadWeights
        Ridge on them.
    """
    given, parts = task.parameters, task.parts
    recipe = Recipe(
        rates=_rates(given, backbone, tail),
        head_learning_rate=float(given["head_learning_rate"]),
        max_epochs=int(given["max_epochs"]),
        patience=int(given["patience"]),
        batch_size=int(given["batch_size"]),
        weight_decay=float(given["weight_decay"]),
        label_smoothing=float(given.get("label_smoothing", 0)),
        mixup=float(given["mixup"]),
        precision=training_precision(given["precision"], device),
        seed=task.seeds[0],
    )
    mean = np.zeros(parts.targets.values.shape[1])
    spread = np.ones_like(mean)
    if parts.targets.kind == "regression":
        mean = parts.targets.values[parts.train].mean(axis=0)
        spread = parts.spread
    magnitude, interrupted = float(np.abs(plain[parts.train]).mean()), False

    def head_of(weights: HeadWeights) -> TorchHead:
        found: TorchHead = TorchHead(weights, magnitude, mean, spread).to(device)
        return found

    head = head_of(start)
    if given["head"] == "mlp":
        # A random head would first spoil the layers before it.
        rng = np.random.default_rng(recipe.seed)
        sizes = hidden_sizes(given["hidden"])
        head = head_of(random_hidden(plain.shape[1], sizes, rng, mean, spread))
        probe = replace(
            recipe, rates={}, max_epochs=_PROBE_EPOCHS, patience=_PROBE_PATIENCE
        )
        rows, alone = Codes(plain), nn.Identity()
        found = train(alone, head, rows, parts, probe, device, verbose=False)
        if found.interrupted:
            recipe, interrupted = replace(recipe, max_epochs=0), True
    verbose = bool(given["verbose"])
    outcome = train(tail.module, head, maps, parts, recipe, device, verbose=verbose)
    return head, replace(outcome, interrupted=outcome.interrupted or interrupted)


# -- the pipeline --------------------------------------------------------------


def _tuned_head(task: Task, head: TorchHead, outcome: Outcome) -> Any:
    """The head as an estimator; probabilities have the temperature of validation."""
    weights: HeadWeights = head.weights()
    targets = task.parts.targets
    if targets.kind == "regression":
        return weights.regressor(task.y.ndim == 1)
    numbers = targets.numbers[task.parts.valid]
    factor = temperature_factors(outcome.values, numbers)
    return weights.scaled(float(factor)).classifier(targets.classes)


def _tuned_codes(
    task: Task,
    backbone: Backbone,
    tail: Tail | _HeadAlone,
    maps: Maps,
    outcome: Outcome,
    device: torch.device,
) -> tuple[CNNCodeTransformer, bytes | None]:
    """The transformer of the tuned network, and its ONNX model."""
    model = task.previous
    if isinstance(tail, Tail) and outcome.best_epoch:
        facts = _provenance(task, backbone, outcome)
        # The tail was read from the model that it continues.
        source: AbstractContextManager[Backbone] = nullcontext(backbone)
        if task.previous is not None:
            source = _previous(task.previous, backbone)
        with source as read:
            model = tuned_model(read, tail, facts)
    if model is None or not isinstance(tail, Tail):
        return _transformer(task).fit(task.images), None
    layer = backbone.layer(task.parameters["layer"])
    which = layer.name if layer.position is None else layer.position
    with opened(model, tuned_name(backbone), None) as tuned:
        found, plain = (
            tuned_transformer(tuned, _transformer(task, norm=norm), which)
            for norm in ("power", None)
        )
    some = task.parts.valid[:_COMPARED]
    # Without norm: near zero, a root makes large differences of small ones.
    wanted = run_tail(tail.module, maps, some, device)
    got = plain.transform([task.images[number] for number in some])
    error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    if not error <= _TOLERANCE:
        raise BackboneError(
            f"{backbone.description}: after training, ONNX Runtime and torch differ by "
            f"{error:.2g} of the largest value of a code. Expected {_TOLERANCE:g} at "
            "most. Another train_from may work; please report the network."
        )
    return found, model


def _provenance(task: Task, backbone: Backbone, outcome: Outcome) -> dict[str, Any]:
    """What the metadata of the tuned model say of its origin."""
    return {
        "version": __version__,
        "backbone": backbone.name or backbone.path.name,
        "backbone_sha256": backbone.sha256,
        "train_from": str(task.parameters["train_from"]),
        "layer": str(task.parameters["layer"]),
        "n_images": len(task.parts.train),
        "epochs": outcome.best_epoch,
    }
