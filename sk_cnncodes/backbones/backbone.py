"""Backbone: an ONNX file with its preprocessing and its layers."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sk_cnncodes.backbones.code_graph import (
    CodeGraph,
    build_code_graphs,
    code_length,
    resolve_pooling,
)
from sk_cnncodes.backbones.shape_probe import measured_types
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.exceptions import (
    BackboneError,
    LayerError,
    PreprocessingError,
    first_line,
)
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.base.public import public
from sk_cnncodes.graphs.checks import check_batch
from sk_cnncodes.graphs.reading import digest_with_data, read_model, read_outline
from sk_cnncodes.graphs.view import value_shape
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.views import check_views
from sk_cnncodes.layers.blocks import BlockFinder
from sk_cnncodes.layers.candidates import LayerDecision
from sk_cnncodes.layers.layer import Layer, LayerGraph
from sk_cnncodes.layers.typed_graph import image_input

if TYPE_CHECKING:
    import onnx

# Element types of an image input (`onnx.TensorProto.DataType`): float, integers of
# 8 to 64 bits, float16, double, and bfloat16.
IMAGE_ELEMENTS = frozenset([1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 16])

# Metadata key for the penultimate tensor of files in which it cannot be found.
PENULTIMATE_KEY = "sk_cnncodes.penultimate"


@public
@dataclass(frozen=True)
class Backbone:
    """A pretrained network in an ONNX file, with its preprocessing.

    `load_backbone` creates one from a name or a path.

    Parameters
    ----------
    path : Path
        The ONNX file.
    sha256 : str
        Digest of the file and of its external weight files, if any.
    preprocessing : Preprocessing
    name : str or None
        Its name in the catalogue.
    penultimate : str or None
        Tensor of layer -1 if the catalogue states it; None to find it.
    preprocessing_origin : str
        Source of the preprocessing: the parameter, the file's metadata, a row of the
        catalogue, or a JSON file.
    """

    path: Path
    sha256: str
    preprocessing: Preprocessing
    name: str | None = None
    penultimate: str | None = None
    preprocessing_origin: str = field(
        default="the parameter preprocessing", compare=False
    )

    @property
    def description(self) -> str:
        """Name of the backbone in messages."""
        return f"backbone file {str(self.path)!r}"

    @property
    def graph(self) -> LayerGraph:
        """The graph of the network, without its weights."""
        return _analysis(self).graph

    @property
    def layers(self) -> list[Layer]:
        """The numbered layers, in order from the image; the last is -1."""
        return list(_analysis(self).layers)

    @property
    def layer_decisions(self) -> list[LayerDecision]:
        """Candidates for numbered layers, and the rule that decided on each."""
        return list(_analysis(self).decisions)

    def layer(self, which: int | str) -> Layer:
        """Return a layer by its position, its label or the name of its tensor.

        Raises
        ------
        LayerError
            If there is no such layer; the message lists the numbered layers.
        """
        analysis = _analysis(self)
        layers = analysis.layers
        if isinstance(which, int):
            if -len(layers) <= which <= -1:
                return layers[which]
        else:
            for layer in layers:
                if which in (layer.name, layer.label):
                    return layer
            tensor = analysis.graph.module_outputs.get(which, which)
            if tensor in analysis.graph.view.image_dependent:
                try:
                    return analysis.graph.layer(tensor)
                except BackboneError as error:
                    raise LayerError(f"layer={which!r}: {error}") from error
        raise LayerError(
            f"layer={which!r} is not a layer of the backbone {str(self.path)!r}. "
            f"Expected {_valid_layers(layers)}, or the name of another tensor."
            f"{_suggestion(which, analysis.graph)}"
        )

    def spec(
        self,
        layer: int | str,
        pooling: str,
        norm: str | None,
        views: str = "center",
    ) -> CodeSpec:
        """Return the code spec of a layer, with pooling and layer name resolved.

        Raises
        ------
        LayerError
            If the layer does not exist, or the pooling does not fit it.
        PreprocessingError
            If the views do not fit the preprocessing.
        """
        check_views(self.preprocessing, views)
        found = self.layer(layer)
        return CodeSpec(
            backbone_sha256=self.sha256,
            layer=found.name,
            pooling=resolve_pooling(found, pooling),
            norm=norm,
            preprocessing=self.preprocessing,
            views=views,
        )

    def code_length(self, spec: CodeSpec) -> int:
        """Length of the codes of a spec."""
        return code_length(self.layer(spec.layer), spec.pooling)

    def code_graphs(self, specs: list[CodeSpec]) -> Iterator[CodeGraph]:
        """Yield code graphs with one output per spec, the most capable first.

        The specs may differ in layer and pooling only. Codes that are averaged over
        views later are not normalised in the graph.
        """
        first = specs[0]
        layers = [(self.layer(spec.layer), spec.pooling) for spec in specs]
        return build_code_graphs(
            self._read,
            self.path.parent,
            layers,
            first.preprocessing,
            first.norm if first.views == "center" else None,
        )

    def _read(self) -> onnx.ModelProto:
        """Read the whole model, and check that the file is still the same."""
        model = read_model(self.path)
        sha256 = digest_with_data(self.path, model)
        if sha256 != self.sha256:
            raise BackboneError(
                f"{self.description}: the file changed after it was loaded. Expected "
                f"sha256 {self.sha256}, got {sha256}. Load it again."
            )
        return model


def _valid_layers(layers: list[Layer]) -> str:
    """The numbered layers, for a message."""
    names = [
        f"{layer.position} ({layer.label!r}, {layer.n_channels} channels)"
        for layer in reversed(layers)
    ]
    return ", ".join(names)


def _suggestion(which: Any, graph: LayerGraph) -> str:
    """Similar tensor names, for a message; "" if there are none."""
    if not isinstance(which, str):
        return ""
    close = difflib.get_close_matches(which, graph.view.image_dependent, n=3)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


# -- the analysis of a file --------------------------------------------------


@dataclass(frozen=True)
class _Analysis:
    """Analysis of a backbone's graph."""

    graph: LayerGraph
    layers: list[Layer]
    decisions: list[LayerDecision]


_analysis_lock = fork_safe_lock()


def _analysis(backbone: Backbone) -> _Analysis:
    with _analysis_lock:
        return _analyse(backbone)


@lru_cache(maxsize=16)
def _analyse(backbone: Backbone) -> _Analysis:
    model = read_outline(backbone.path)
    try:
        value = image_input(model)
        _check_input(backbone.preprocessing, value)
        shape = _input_shape(backbone.preprocessing, value)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        penultimate, stated_by = backbone.penultimate, "the catalogue"
        if penultimate is None and PENULTIMATE_KEY in metadata:
            penultimate = metadata[PENULTIMATE_KEY]
            stated_by = f"the file's metadata {PENULTIMATE_KEY!r}"
        graph = LayerGraph(
            model,
            value.name,
            shape,
            lambda known: measured_types(backbone.path, known, value, shape),
        )
        if penultimate is not None and penultimate not in graph.view.image_dependent:
            raise BackboneError(
                f"its penultimate tensor {penultimate!r}, stated by {stated_by}, does "
                "not exist or does not depend on the image."
            )
        finder = BlockFinder(graph, penultimate, stated_by)
        return _Analysis(graph, finder.layers(), finder.decisions)
    except BackboneError as error:
        is_preprocessing = isinstance(error, PreprocessingError)
        error_type = PreprocessingError if is_preprocessing else BackboneError
        raise error_type(f"{backbone.description}: {error}") from error
    except (LookupError, TypeError, ValueError, StopIteration) as error:
        # A file may violate any ONNX rule that the analysis relies on.
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
