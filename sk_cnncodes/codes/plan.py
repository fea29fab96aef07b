"""CodePlan: the parameters of a transformer, resolved on this machine.

Functions take the state of a transformer, as returned by `state_of`: its parameters and
the attributes set by `fit`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sklearn.exceptions import NotFittedError

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.loading import load_backbone
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.backbones.stored import StoredBackbone, stored_backbone
from sk_cnncodes.base.exceptions import BackboneError, LayerError
from sk_cnncodes.base.home import cache_dir
from sk_cnncodes.base.logs import logger
from sk_cnncodes.cache.code_cache import resolve_cache
from sk_cnncodes.codes.calibration import preprocessing_json
from sk_cnncodes.codes.parameters import layer_list
from sk_cnncodes.codes.saving import (
    STORED_KEY,
    backbone_text,
    code_parameters,
    find_backbone,
)
from sk_cnncodes.codes.sessions import code_session
from sk_cnncodes.codes.shared_pass import pass_outputs
from sk_cnncodes.engines.devices import usable_threads
from sk_cnncodes.engines.execution import Execution, resolve_execution
from sk_cnncodes.engines.jpeg_decoder import check_gpu_decoding
from sk_cnncodes.engines.quantisation import Calibration
from sk_cnncodes.engines.session import CodeSession

State = Mapping[str, Any]


@dataclass(frozen=True)
class CodePlan:
    """The backbone, the code specs and the engine of a transformer.

    Attributes
    ----------
    backbone : Backbone or StoredBackbone
    float32_specs : list of CodeSpec
        Of the codes that are returned, side by side, one for each layer; with float32
        as precision. They differ in layer and pooling only.
    float32_outputs : list of CodeSpec
        What a forward pass computes, without norm: the codes that are returned, and
        others that are stored in the cache.
    execution : Execution
    calibration : Calibration or None
        None unless the precision is int8.
    n_threads : int
    """

    backbone: Backbone | StoredBackbone
    float32_specs: list[CodeSpec]
    float32_outputs: list[CodeSpec]
    execution: Execution
    calibration: Calibration | None
    n_threads: int

    @property
    def specs(self) -> list[CodeSpec]:
        """The code specs with the actual precision, calibration and engine."""
        return [self._as_computed(spec) for spec in self.float32_specs]

    @property
    def outputs(self) -> list[CodeSpec]:
        """The outputs with the actual precision, calibration and engine."""
        return [self._as_computed(spec) for spec in self.float32_outputs]

    def _as_computed(self, spec: CodeSpec) -> CodeSpec:
        return replace(
            spec,
            precision=self.execution.precision,
            calibration=None if self.calibration is None else self.calibration.digest,
            engine=self.execution.engine,
        )

    @property
    def decoding_gpu(self) -> int | None:
        """The GPU that decodes images; None for Pillow alone."""
        if self.float32_specs[0].decoder != "gpu":
            return None
        return self.execution.devices[0].gpu or 0

    @property
    def code_lengths(self) -> list[int]:
        """Number of values of a code, from each layer."""
        return [self.backbone.code_length(spec) for spec in self.float32_specs]

    def open_session(self, single_run_uses_all_threads: bool) -> CodeSession:
        """The session that computes these codes."""
        return code_session(
            self.backbone,
            self.outputs,
            self.execution,
            self.n_threads,
            self.calibration,
            single_run_uses_all_threads=single_run_uses_all_threads,
        )


def state_of(transformer: Any) -> dict[str, Any]:
    """The state of a transformer: its parameters and the attributes set by `fit`."""
    return {**vars(transformer), **transformer.get_params(deep=False)}


def plan_fit(state: State, execution: Execution) -> CodePlan:
    """The plan of `fit`, from the parameters alone.

    Raises
    ------
    BackboneError
        If the backbone is missing or does not have the layer.
    """
    layers = layer_list(state["layer"])
    return _plan(state, _load_for_fit(state), layers, execution, None)


def plan_transform(
    state: State,
    n_images: int = 1,
    others: Sequence[State] = (),
) -> CodePlan:
    """The plan of `transform`, with the backbone and the calibration of `fit`.

    Parameters
    ----------
    state : mapping
    n_images : int
    others : sequence of mapping
        States of other transformers that may need the same pass.

    Raises
    ------
    BackboneError
        If the backbone is missing, has changed since `fit`, or does not have the
        layer.
    DeviceError
        If this machine does not have the device or does not support the precision.
    NotFittedError
        If ``precision="int8"`` and `fit` was not called.
    """
    backbone, layers = load_fitted(state), _fitted_layers(state)
    execution = execution_of(state)
    if state["precision"] == "int8":
        calibration = _calibration(state)
        plan = _plan(state, backbone, layers, execution, calibration)
        _check_calibration(state, calibration, plan.float32_specs[0])
        return plan
    if state["precision"] != "float32":
        return _plan(state, backbone, layers, execution, None)
    room = _room(state, n_images)
    return _plan(state, backbone, layers, execution, None, others, room)


def _room(state: State, n_images: int) -> float:
    """Bytes an image that the cache has for codes that are not asked for."""
    cache = resolve_cache(state["cache"])
    return 0.0 if cache is None else cache.capacity / 2 / n_images


def _plan(
    state: State,
    backbone: Backbone | StoredBackbone,
    layers: list[int | str],
    execution: Execution,
    calibration: Calibration | None,
    others: Sequence[State] = (),
    max_bytes: float = 0.0,
) -> CodePlan:
    specs = _specs(state, backbone, layers)
    outputs = [spec.without_norm for spec in specs]
    if isinstance(backbone, Backbone) and state["cache"] is not None:
        cache_layers = state["cache_layers"]
        outputs = pass_outputs(
            backbone,
            specs,
            cache_layers=[] if cache_layers is None else cache_layers,
            pooling=state["pooling"],
            searched=state.get("_searched", frozenset()),
            search_is_over=state.get("_search_is_over", False),
            others=others,
            max_bytes=max_bytes,
        )
    elif isinstance(backbone, StoredBackbone) and state["cache"] is not None:
        outputs = _stored_outputs(backbone, others, max_bytes)
    n_threads = usable_threads(state["n_jobs"])
    logger.debug(
        "%s (sha256 %s), preprocessing from %s; layer %s, pooling %s, norm %s, views "
        "%s, %d outputs; %s, %d threads",
        backbone.description,
        specs[0].backbone_sha256[:12],
        getattr(backbone, "preprocessing_origin", "the saved model"),
        ", ".join(spec.layer for spec in specs),
        ", ".join(spec.pooling for spec in specs),
        specs[0].norm,
        specs[0].views,
        len(outputs),
        execution,
        n_threads,
    )
    return CodePlan(backbone, specs, outputs, execution, calibration, n_threads)


# -- the backbone ------------------------------------------------------------


def _load_for_fit(state: State) -> Backbone | StoredBackbone:
    """The backbone named by the parameters; if it is missing, the stored one."""
    try:
        return load_backbone(state["backbone"], state["preprocessing"])
    except BackboneError:
        stored = _stored(state)
        if stored is None:
            raise
        return stored


def load_fitted(state: State) -> Backbone | StoredBackbone:
    """The backbone used in `fit`: the stored one, or its file wherever it is now.

    Without `fit`, or if the parameter `backbone` has changed since, it is the backbone
    named by the parameters.
    """
    reference = state.get("fitted_backbone_")
    if reference is None:
        return _load_for_fit(state)
    stored = _stored(state)
    if stored is not None:
        return stored
    if reference["parameter"] == backbone_text(state["backbone"]):
        return find_backbone(reference, state["preprocessing"], _advice(state))
    return load_backbone(state["backbone"], state["preprocessing"])


def _advice(state: State) -> str:
    """What saving could do, or what it did, about a missing file."""
    stored = state.get(STORED_KEY)
    if stored is not None:
        now = code_parameters(state)
        then = ", ".join(
            f"{name}={value!r}"
            for name, value in stored["parameters"].items()
            if now.get(name) != value
        )
        return f"or set the parameters back for which the network was stored: {then}."
    if state["store_backbone"]:
        return "and save the pipeline again, so that store_backbone=True stores it."
    return "or save the pipeline with store_backbone=True where the file is."


def _stored(state: State) -> StoredBackbone | None:
    """The stored backbone; None if there is none for these parameters."""
    stored = state.get(STORED_KEY)
    return None if stored is None else stored_backbone(stored, code_parameters(state))


def _stored_outputs(
    backbone: StoredBackbone, others: Sequence[State], max_bytes: float
) -> list[CodeSpec]:
    """What a pass of a stored network computes: for others that share it, too."""
    sharing = [backbone]
    for other in others:
        theirs = _stored(other)
        if theirs is not None and theirs.sha256 == backbone.sha256:
            sharing.append(theirs)
    found = {
        spec.without_norm: length
        for each in sharing
        for spec, length in zip(each.specs, each.lengths, strict=True)
    }
    own = [spec.without_norm for spec in backbone.specs]
    useful = own if 4 * sum(found.values()) > max_bytes else found
    return sorted(useful, key=lambda spec: (spec.layer, spec.pooling))


# -- specs, engine, calibration ----------------------------------------------


def _fitted_layers(state: State) -> list[int | str]:
    """The layers; as the tensors that `fit` found, unless parameters have changed.

    A newer version may number the layers of a backbone in another way.
    """
    reference, fitted = state.get("fitted_backbone_"), state.get("_fitted_codes")
    if reference is not None and fitted is not None:
        parameters, _ = fitted
        if parameters == code_parameters(state):
            return layer_list(reference["layer"])
    return layer_list(state["layer"])


def _specs(
    state: State, backbone: Backbone | StoredBackbone, layers: list[int | str]
) -> list[CodeSpec]:
    """The float32 specs of the codes, one for each layer."""
    if isinstance(backbone, StoredBackbone):
        return list(backbone.specs)
    decoder = "gpu" if state["decoder"] == "gpu" else "pillow"
    found: dict[CodeSpec, int | str] = {}
    for layer in layers:
        how = (state["pooling"], state["norm"], state["views"])
        spec = replace(backbone.spec(layer, *how), decoder=decoder)
        if spec in found:
            raise LayerError(
                f"layer={state['layer']!r}: {found[spec]!r} and {layer!r} are the same "
                f"layer, {spec.layer!r}. Expected each layer once."
            )
        found[spec] = layer
    return list(found)


def fitted_specs(state: State) -> tuple[Backbone | StoredBackbone, list[CodeSpec]]:
    """The backbone of `fit` and the float32 specs of its codes, whatever the device.

    Raises
    ------
    BackboneError
        As `plan_transform`.
    """
    backbone = load_fitted(state)
    return backbone, _specs(state, backbone, _fitted_layers(state))


def execution_of(state: State) -> Execution:
    """Engine, devices and precision of a transformer on this machine.

    Raises
    ------
    DeviceError
        If this machine does not have the device or does not support the precision.
    """
    if state["decoder"] == "gpu":
        check_gpu_decoding()
    tensorrt = "tensorrt" in str(state["device"])
    folder = str(cache_dir() / "tensorrt") if tensorrt else ""
    return resolve_execution(
        state["device"], state["engine"], state["precision"], folder
    )


def _calibration(state: State) -> Calibration:
    calibration: Calibration | None = state.get("calibration_")
    if calibration is None:
        raise NotFittedError(
            "precision='int8': this CNNCodeTransformer is not fitted. Expected a "
            "calibration on images. Call fit before transform."
        )
    return calibration


def _check_calibration(state: State, calibration: Calibration, spec: CodeSpec) -> None:
    """Refuse a calibration made with another backbone or preprocessing."""
    if calibration.backbone_sha256 != spec.backbone_sha256:
        raise BackboneError(
            f"backbone={os.fspath(state['backbone'])!r}: precision='int8' was "
            f"calibrated with another backbone. Expected sha256 "
            f"{calibration.backbone_sha256}, got {spec.backbone_sha256}. Fit again."
        )
    if calibration.preprocessing != preprocessing_json(spec.preprocessing):
        raise BackboneError(
            f"preprocessing={state['preprocessing']!r}: precision='int8' was "
            "calibrated with another preprocessing. Fit again."
        )
