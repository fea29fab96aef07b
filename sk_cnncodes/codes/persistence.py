"""How transformers are saved and loaded, alone or at any depth of a model.

pickle and skops reach every object of a model. While `save_model` or `load_model` runs
them, each transformer reports itself to a **visit**, whatever meta-estimator, attribute
or container it is in.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.backbones.stored import StoredBackbone, store_graph, working_graph
from sk_cnncodes.codes.parameters import check_parameters
from sk_cnncodes.codes.plan import fitted_specs, state_of
from sk_cnncodes.codes.saving import (
    STORED_KEY,
    Reference,
    code_parameters,
    restored_state,
    saved_state,
)
from sk_cnncodes.codes.shared_pass import register

_NOT_SAVED = (
    *("_searched", "_search_is_over", "_fitted_on"),
    *("_family", "_set_since_clone"),
)

Record = dict[str, Any]


@dataclass
class Visit:
    """The transformers that pickle or skops has met, and what they save or load.

    Attributes
    ----------
    found : dict of int to transformer
        By `id`, in the order in which they were met.
    records : dict of int to dict
        Stored graphs to save, by the `id` of their transformers.
    only_looks : bool
        Whether nothing is saved: stored graphs are left out.
    models : dict of str to bytes
        The loaded networks by their digests: equal ones share their memory.
    """

    found: dict[int, Any] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)
    only_looks: bool = False
    models: dict[str, bytes] = field(default_factory=dict)


_visit: ContextVar[Visit | None] = ContextVar("sk_cnncodes_visit", default=None)


@contextmanager
def visiting(visit: Visit) -> Iterator[Visit]:
    """Transformers that are saved or loaded inside of it report themselves."""
    token = _visit.set(visit)
    try:
        yield visit
    finally:
        _visit.reset(token)


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, content: Any) -> int:
        return len(content)


def find_transformers(model: Any) -> list[Any]:
    """All transformers that saving a model would reach."""
    with visiting(Visit(only_looks=True)) as visit:
        # Contents of arrays are not even read.
        pickle.Pickler(_Nowhere(), 5, buffer_callback=lambda _: None).dump(model)
    return list(visit.found.values())


def is_fitted(transformer: Any) -> bool:
    """Whether `fit` was called, so that the backbone is known."""
    return hasattr(transformer, "fitted_backbone_")


def stored_records(transformers: Iterable[Any]) -> dict[int, Record]:
    """The stored graphs of fitted transformers, by `id`.

    Transformers of one backbone share one network, with one output for each layer and
    pooling.

    Raises
    ------
    BackboneError
        If a backbone is missing, or cannot be run.
    """
    records: dict[int, Record] = {}
    models: dict[str, bytes] = {}
    groups: dict[Any, list[tuple[Any, list[CodeSpec]]]] = {}
    backbones: dict[Any, Backbone] = {}
    for transformer in transformers:
        state = state_of(transformer)
        check_parameters(state)
        backbone, specs = fitted_specs(state)
        if isinstance(backbone, StoredBackbone):
            record = state[STORED_KEY]
            model = models.setdefault(record["sha256"], record["model"])
            records[id(transformer)] = record | {"model": model}
            continue
        # A calibration knows tensors by names that other outputs could change.
        is_int8 = state["precision"] == "int8"
        alone = tuple(map(_output, specs)) if is_int8 else None
        key = (specs[0].backbone_sha256, specs[0].preprocessing, alone)
        backbones[key] = backbone
        groups.setdefault(key, []).append((transformer, specs))
    for key, members in groups.items():
        found = {_output(spec): spec for _, specs in members for spec in specs}
        outputs = [found[output] for output in sorted(found)]
        graph, _ = working_graph(backbones[key], outputs)
        for transformer, specs in members:
            parameters = code_parameters(state_of(transformer))
            lengths = [backbones[key].code_length(spec) for spec in specs]
            record = store_graph(parameters, specs, lengths, graph, outputs)
            model = models.setdefault(record["sha256"], record["model"])
            records[id(transformer)] = record | {"model": model}
    return records


def _output(spec: CodeSpec) -> tuple[str, str]:
    return spec.layer, spec.pooling


class SavingMixin:
    """The methods by which pickle, skops and `clone` copy a transformer."""

    store_backbone: bool
    fitted_backbone_: Reference
    # What a transformer and its clones have in common; and the parameters that were set
    # since it was cloned, which its clones do not have. Neither is saved.
    _family: object = None
    _set_since_clone: frozenset[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        saved = saved_state(state)
        for name in _NOT_SAVED:
            saved.pop(name, None)
        visit = _visit.get()
        if visit is not None:
            visit.found[id(self)] = self
            if id(self) in visit.records:
                record = visit.records[id(self)]
                return saved | {"store_backbone": True, STORED_KEY: record}
        looks = visit is not None and visit.only_looks
        if looks or not self.store_backbone or not is_fitted(self):
            saved.pop(STORED_KEY, None)
            return saved
        return saved | {STORED_KEY: stored_records([self])[id(self)]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        restored = restored_state(state, type(self))
        visit = _visit.get()
        record = restored.get(STORED_KEY)
        if visit is not None:
            visit.found[id(self)] = self
            if record is not None:
                model = visit.models.setdefault(record["sha256"], record["model"])
                restored[STORED_KEY] = record | {"model": model}
        super().__setstate__(restored)  # type: ignore[misc]
        register(self)

    def __sklearn_clone__(self) -> Self:
        if self._family is None:
            self._family = object()
        self._set_since_clone = frozenset()
        copied: Self = super().__sklearn_clone__()  # type: ignore[misc]
        copied._family = self._family
        return copied

    def _note_set(self, names: Iterable[str]) -> None:
        """Remember parameters that were set after the transformer was cloned."""
        if self._set_since_clone is not None:
            self._set_since_clone |= frozenset(names)


def ineffective_parameters(transformers: list[Any]) -> dict[str, tuple[Any, list[Any]]]:
    """Parameters set on an estimator after `fit` cloned it, which no clone has.

    Parameters
    ----------
    transformers : list of CNNCodeTransformer
        All those of a model.

    Returns
    -------
    dict of str to (object, list)
        By the name of the parameter: the value that was set, and those of the fitted
        clones.
    """
    found = {}
    for given in transformers:
        clones = [
            other
            for other in transformers
            if other is not given and is_fitted(other) and _is_clone(other, given)
        ]
        for name in sorted(given._set_since_clone or ()):
            value = getattr(given, name)
            theirs = [getattr(clone, name) for clone in clones]
            if theirs and repr(value) not in map(repr, theirs):
                found[name] = (value, theirs)
    return found


def _is_clone(other: Any, given: Any) -> bool:
    if other._family is None:  # fitted in another process, or loaded
        return not is_fitted(given)
    return other._family is given._family
