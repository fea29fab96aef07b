"""Analysis of a backbone's graph: its tensors, and its numbered layers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sk_cnncodes.backbones.shape_probe import measured_types
from sk_cnncodes.base.exceptions import (
    BackboneError,
    LayerError,
    PreprocessingError,
    first_line,
)
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.graphs.checks import all_graphs, check_batch
from sk_cnncodes.graphs.reading import read_outline
from sk_cnncodes.graphs.view import GraphView, constant_names, value_shape
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.layers.blocks import BlockFinder
from sk_cnncodes.layers.candidates import LayerDecision
from sk_cnncodes.layers.layer import Layer, LayerGraph
from sk_cnncodes.layers.typed_graph import image_input, image_inputs

if TYPE_CHECKING:
    import onnx

# Element types of an image input (`onnx.TensorProto.DataType`): float, integers of
# 8 to 64 bits, float16, double, and bfloat16.
IMAGE_ELEMENTS = frozenset([1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 16])

# Metadata key for the penultimate tensor of files in which it cannot be found.
PENULTIMATE_KEY = "sk_cnncodes.penultimate"
# Layers that an error names.
_MAX_LISTED = 12


class Network(Protocol):
    """What is analysed: a `Backbone`."""

    @property
    def path(self) -> Path: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def penultimate(self) -> str | None: ...
    @property
    def description(self) -> str: ...
    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Numbering:
    """The numbered layers of a backbone.

    Attributes
    ----------
    graph : LayerGraph
    layers : list of Layer
        In order from the image; the last is -1.
    decisions : list of LayerDecision
        The candidates, and the rule that decided on each.
    """

    graph: LayerGraph
    layers: list[Layer]
    decisions: list[LayerDecision]


_analysis_lock = fork_safe_lock()


def numbering(backbone: Network) -> Numbering:
    """Number the layers of a backbone.

    Raises
    ------
    BackboneError
        If it has no layer -1, or several image inputs.
    """
    with _analysis_lock:
        return _number(backbone)


def named_layer(backbone: Network, which: str) -> Layer:
    """A layer by its label or the name of its tensor or module.

    A tensor that depends on one image input and no other needs no numbered layers.

    Raises
    ------
    LayerError
        If there is no such layer, or codes cannot be pooled from it.
    """
    with _analysis_lock:
        return _find_layer(backbone, which)


@lru_cache(maxsize=64)
def _find_layer(backbone: Network, which: str) -> Layer:
    try:
        numbered, reason = _number(backbone).layers, None
    except PreprocessingError:
        raise
    except BackboneError as error:
        numbered, reason = [], str(error)
    for layer in numbered:
        if which in (layer.name, layer.label):
            return layer
    names: set[str] = set()
    with _named_errors(backbone, f"layer={which!r}: "):
        model = read_outline(backbone.path)
        for value in image_inputs(model):
            names |= GraphView(model, value.name).image_dependent
            try:
                graph = _graph(backbone, value.name)
            except PreprocessingError:
                if which in names:
                    raise
                continue  # another input than that of the layer
            tensor = graph.module_outputs.get(which, which)
            if tensor in graph.view.image_dependent:
                _check_inputs(graph, tensor)
                return graph.layer(tensor)
        _check_dependent(model, which)
    raise no_layer(backbone, which, numbered, reason, names)


def _check_inputs(graph: LayerGraph, tensor: str) -> None:
    """Refuse a tensor that needs other inputs than one image."""
    others = graph.view.other_inputs(tensor)
    if others:
        raise LayerError(
            f"the tensor {tensor!r} needs the inputs {others} besides the image input "
            f"{graph.view.input_name!r}. Expected a tensor that needs one image only."
        )


def _check_dependent(model: onnx.ModelProto, which: str) -> None:
    """Refuse a tensor that exists, but does not hold one code per image."""
    for number, graph in enumerate(all_graphs(model.graph)):
        known = constant_names(graph) | {value.name for value in graph.input}
        if which in known.union(*(node.output for node in graph.node)):
            where = "lies inside of a branch or a loop"
            if number == 0:
                where = "does not depend on an image"
            raise LayerError(
                f"the tensor {which!r} {where}. Expected a tensor of the main graph "
                "that depends on an image."
            )


def no_layer(
    backbone: Network,
    which: int | str,
    numbered: list[Layer],
    reason: str | None = None,
    names: Iterable[str] = (),
) -> LayerError:
    """The error for a layer that does not exist; it lists those that do."""
    listed = [
        f"{layer.position} ({layer.label!r}, {layer.n_channels} channels)"
        for layer in reversed(numbered)
    ]
    if len(listed) > _MAX_LISTED:
        middle = f"and so on to {listed[-1]}"
        listed = [*listed[: _MAX_LISTED - 2], middle]
    expected = f"Expected {', '.join(listed)}, or the name of another tensor."
    if reason is not None:
        expected = (
            "Expected the name of a tensor that depends on an image. Its layers have "
            f"no numbers: {reason}"
        )
    close = difflib.get_close_matches(str(which), names, n=3)
    suggestion = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return LayerError(
        f"layer={which!r} is not a layer of the {backbone.description}. "
        f"{expected}{suggestion}"
    )


@lru_cache(maxsize=16)
def _number(backbone: Network) -> Numbering:
    with _named_errors(backbone):
        model = read_outline(backbone.path)
        graph = _graph(backbone, image_input(model).name)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        penultimate, stated_by = backbone.penultimate, "the catalogue"
        if penultimate is None and PENULTIMATE_KEY in metadata:
            penultimate = metadata[PENULTIMATE_KEY]
            stated_by = f"the file's metadata {PENULTIMATE_KEY!r}"
        if penultimate is not None and penultimate not in graph.view.image_dependent:
            raise BackboneError(
                f"its penultimate tensor {penultimate!r}, stated by {stated_by}, does "
                "not exist or does not depend on the image."
            )
        finder = BlockFinder(graph, penultimate, stated_by)
        return Numbering(graph, finder.layers(), finder.decisions)


@lru_cache(maxsize=16)
def _graph(backbone: Network, input_name: str) -> LayerGraph:
    """The graph of the network behind one of its image inputs, without weights."""
    model = read_outline(backbone.path)
    (value,) = [v for v in model.graph.input if v.name == input_name]
    _check_input(backbone.preprocessing, value)
    shape = _input_shape(backbone.preprocessing, value)
    return LayerGraph(
        model,
        value.name,
        shape,
        lambda known: measured_types(backbone.path, known, value, shape),
    )


@contextmanager
def _named_errors(backbone: Network, layer: str = "") -> Iterator[None]:
    """Name the file, and a layer that was asked for, in errors.

    A file may violate any rule of ONNX that the analysis relies on.
    """
    try:
        yield
    except BackboneError as error:
        error_type = LayerError if layer else BackboneError
        if isinstance(error, PreprocessingError):
            error_type, layer = PreprocessingError, ""
        raise error_type(f"{layer}{backbone.description}: {error}") from error
    except (LookupError, TypeError, ValueError, StopIteration) as error:
        raise BackboneError(
            f"{backbone.description}: its graph is malformed "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error


def _input_shape(
    preprocessing: Preprocessing, value: onnx.ValueInfoProto
) -> tuple[int, ...]:
    """Shape of the input; the batch size is 1, or the one that the file fixes."""
    stated = value_shape(value)
    batch = (stated[0] if stated else None) or 1
    check_batch(batch)
    return (batch, *preprocessing.input_shape[1:])


def _check_integers(preprocessing: Preprocessing, value: onnx.ValueInfoProto) -> None:
    """Refuse a preprocessing whose values an integer input cannot represent."""
    import numpy as np
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if dtype.kind not in "iu":
        return
    scale, bounds = preprocessing.scale, np.iinfo(dtype)
    pairs = list(zip(preprocessing.mean, preprocessing.std, strict=True))
    steps = [scale / std for _, std in pairs]
    values = [(pixel * scale - mean) / std for mean, std in pairs for pixel in (0, 255)]
    low, high = min(values), max(values)
    whole = all(float(number).is_integer() for number in (*steps, *values))
    if whole and bounds.min <= low and high <= bounds.max:
        return
    raise PreprocessingError(
        f"the preprocessing gives values from {low:.6g} to {high:.6g} in steps of "
        f"{steps[0]:.6g}, but the backbone's input {value.name!r} takes {dtype.name}. "
        f"Expected whole numbers from {bounds.min} to {bounds.max}. Such a network "
        "usually normalises by itself: set scale=1, mean=0 and std=1."
    )


def _check_input(preprocessing: Preprocessing, value: onnx.ValueInfoProto) -> None:
    """Compare the preprocessing with what the file states about its input."""
    element = value.type.tensor_type.elem_type
    if element not in IMAGE_ELEMENTS:
        raise BackboneError(
            f"its input {value.name!r} has the element type {element}. Expected floats "
            "or integers."
        )
    _check_integers(preprocessing, value)
    stated = value_shape(value)
    if stated is None:
        return
    wanted = preprocessing.input_shape
    pairs = zip(stated[1:], wanted[1:], strict=True)
    if all(s is None or s == w for s, w in pairs):
        return
    raise PreprocessingError(
        f"the preprocessing gives inputs of shape {['N', *wanted[1:]]} "
        f"({preprocessing.layout}), but the backbone's input {value.name!r} has the "
        f"shape {['N', *(d or '?' for d in stated[1:])]}. Expected a preprocessing "
        "whose crop_size, channels and layout give that shape."
    )
