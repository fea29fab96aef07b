"""Code graphs: a cut backbone with its preprocessing and pooling as nodes.

A code graph takes ``images``, uint8 [N, height, width, 3] in RGB, and returns one
float32 [N, d] output per layer: ``codes_0``, ``codes_1``, ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sk_cnncodes.base.exceptions import LayerError
from sk_cnncodes.engines.precision import CODE_OUTPUT, CODE_PREFIX
from sk_cnncodes.graphs.builder import GraphBuilder
from sk_cnncodes.graphs.checks import check_domains, check_loops, check_repeatable
from sk_cnncodes.graphs.reading import embed_external_data
from sk_cnncodes.graphs.view import GraphView, cut_model, rename_tensors, value_shape
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.layers.layer import Layer
from sk_cnncodes.layers.typed_graph import image_input

if TYPE_CHECKING:
    import onnx

INPUT = "images"

Pooling = Literal["avg", "max", "gem", "cls", "mean", "flatten"]
POOLINGS: dict[str, tuple[Pooling, ...]] = {
    "map": ("avg", "max", "gem", "flatten"),
    "tokens": ("cls", "mean", "max", "flatten"),
    "vector": ("flatten",),
}
# Generalised mean: exponent and floor of Radenovic et al. (2018), arXiv:1711.02512.
GEM_EXPONENT = 3.0
GEM_FLOOR = 1e-6
# ONNX element types: float, float16, double and bfloat16.
_FLOATS = (1, 10, 11, 16)
# Operators that quantise with a scale from all images of the batch.
_SCALED_BY_BATCH = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
# Luma of ITU-R BT.601, as Pillow's convert("L").
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class CodeGraph:
    """A model that computes codes, and its batch size.

    Attributes
    ----------
    model : bytes
        The serialised `onnx.ModelProto`.
    batch_size : int or None
        Fixed batch size; None if it is dynamic.
    batch_made_dynamic : bool
        Whether a batch size fixed in the file was made dynamic. Only a run shows
        whether the network then still works.
    """

    model: bytes
    batch_size: int | None
    batch_made_dynamic: bool = False


def resolve_pooling(layer: Layer, pooling: str) -> Pooling:
    """Check a pooling for a layer, and resolve "auto".

    Raises
    ------
    LayerError
        If the pooling does not fit the layer's kind.
    """
    fitting = POOLINGS[layer.kind]
    if pooling == "auto":
        if layer.kind == "tokens":
            return "cls" if layer.has_class_token else "mean"
        return fitting[0]
    for name in fitting:
        if name == pooling and (name != "cls" or layer.has_class_token):
            return name
    valid = [n for n in fitting if n != "cls" or layer.has_class_token]
    raise LayerError(
        f"pooling={pooling!r} does not fit the layer {layer.name!r}, "
        f"{layer}. Expected 'auto' or one of {valid}."
    )


def code_length(layer: Layer, pooling: Pooling) -> int:
    """Length of a code."""
    return int(np.prod(layer.shape)) if pooling == "flatten" else layer.n_channels


def build_code_graphs(
    read: Callable[[], onnx.ModelProto],
    folder: Path,
    layers: list[tuple[Layer, Pooling]],
    preprocessing: Preprocessing,
) -> Iterator[CodeGraph]:
    """Yield the code graphs of a backbone, the most capable first.

    A backbone with a dynamic batch size gives one graph for any number of images and
    one for single images. If the file fixes the batch size, the first graph makes it
    dynamic, which does not work for every network, and the second keeps it. Only a run
    shows whether the first one works.

    Parameters
    ----------
    read : callable
        Returns the model in the normal form of
        `sk_cnncodes.graphs.reading.read_model`. Called once per graph, because a model
        is large and the second graph is rarely needed.
    folder : Path
        Folder of the model's external data.
    layers : list of (Layer, Pooling)
        One per output.
    preprocessing : Preprocessing
        Its normalisation becomes nodes; its resize and crop do not.
    """
    names = [layer.name for layer, _ in layers]
    for dynamic in (True, False):
        # One expression: no variable keeps the model alive while the graph is loaded.
        yield _code_graph(
            *_cut(read(), folder, names), layers, preprocessing, dynamic=dynamic
        )


def with_outputs(model: bytes, numbers: list[int]) -> bytes:
    """Cut a code graph to some of its outputs, in the given order.

    Parameters
    ----------
    model : bytes
        A serialised code graph.
    numbers : list of int
        Positions of the outputs.
    """
    import onnx

    whole = onnx.load_model_from_string(model)
    kept = [whole.graph.output[number] for number in numbers]
    renamed = {value.name: f"{CODE_OUTPUT}{new}" for new, value in enumerate(kept)}
    cut = cut_model(whole, list(renamed))
    rename_tensors(cut.graph, lambda name: renamed.get(name, name))
    del cut.graph.output[:]
    for value in kept:
        value.name = renamed[value.name]
        cut.graph.output.append(value)
    return bytes(cut.SerializeToString())


def _cut(
    model: onnx.ModelProto, folder: Path, outputs: list[str]
) -> tuple[onnx.ModelProto, onnx.ValueInfoProto]:
    """The part of a model up to some tensors, with weights, and its image input."""
    cut = cut_model(model, outputs)
    embed_external_data(cut, folder)
    rename_tensors(cut.graph, _backbone_name)
    check_loops(cut.graph)
    check_repeatable(cut.graph)
    check_domains(cut.graph)
    # Layers depend on one image input and no other.
    return cut, image_input(cut)


def _backbone_name(name: str) -> str:
    """Name of a backbone's tensor, with a prefix if the code graph reserves it."""
    reserved = name == INPUT or name.startswith((CODE_OUTPUT, CODE_PREFIX))
    return f"backbone/{name}" if reserved else name


def _code_graph(
    model: onnx.ModelProto,
    image: onnx.ValueInfoProto,
    layers: list[tuple[Layer, Pooling]],
    preprocessing: Preprocessing,
    *,
    dynamic: bool,
) -> CodeGraph:
    """Turn a cut model into a code graph, with a dynamic or its own batch size."""
    import onnx

    stated = value_shape(image)
    fixed_batch = stated[0] if stated else None
    batch_size = None if dynamic else fixed_batch or 1
    if dynamic and fixed_batch is not None:
        make_batch_dynamic(model, image.name, fixed_batch)
    if dynamic and _decides_by_batch(model, image.name):
        batch_size = 1
    # Types of intermediate tensors may contain a fixed batch size.
    model.graph.ClearField("value_info")
    # Calibrations of int8 know the tensors before the network by these names.
    before, after = GraphBuilder(CODE_PREFIX), GraphBuilder(f"{CODE_PREFIX}code/")
    _add_normalisation(before, image, preprocessing)
    model.graph.input.remove(image)
    batch: int | str = batch_size if batch_size is not None else "N"
    shape = [batch, *preprocessing.crop_size, 3]
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, shape)
    )
    model.graph.ClearField("output")
    for number, (layer, pooling) in enumerate(layers):
        renamed = replace(layer, name=_backbone_name(layer.name))
        code = _add_pooling(after, renamed, pooling)
        name = f"{CODE_OUTPUT}{number}"
        after.node("Identity", code, output=name)
        length = code_length(layer, pooling)
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(
                name, onnx.TensorProto.FLOAT, [batch, length]
            )
        )
    nodes = [*before.nodes, *model.graph.node, *after.nodes]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*before.initializers, *after.initializers])
    content = bytes(model.SerializeToString())
    return CodeGraph(content, batch_size, dynamic and fixed_batch is not None)


def _decides_by_batch(model: onnx.ModelProto, input_name: str) -> bool:
    """Whether one scale, or one branch of an If, is chosen for all images of a batch.

    A run does not show it where the images that it is tried with take the same branch.
    """
    dependent = GraphView(model, input_name).image_dependent
    return any(
        node.op_type in _SCALED_BY_BATCH
        or (node.op_type == "If" and not dependent.isdisjoint(node.input[:1]))
        for node in model.graph.node
    )


def _add_normalisation(
    build: GraphBuilder, image: onnx.ValueInfoProto, preprocessing: Preprocessing
) -> None:
    """Add nodes from uint8 NHWC RGB to the network's input."""
    import onnx

    element = image.type.tensor_type.elem_type
    pixels = build.node("Cast", INPUT, to=onnx.TensorProto.FLOAT)
    if preprocessing.channels == "GRAY":
        luma = build.constant(np.array(_LUMA).reshape(3, 1))
        pixels = build.node("MatMul", pixels, luma)
        if element not in _FLOATS:
            pixels = build.node("Add", pixels, build.constant(0.5))
            pixels = build.node("Floor", pixels)
    channel_axis, shape = 3, (1, 1, 1, -1)
    if preprocessing.layout == "NCHW":
        pixels = build.node("Transpose", pixels, perm=[0, 3, 1, 2])
        channel_axis, shape = 1, (1, -1, 1, 1)
    if preprocessing.channels == "BGR":
        # Moves whole planes where possible: 20 times faster than pixel by pixel.
        order = build.constant([2, 1, 0], np.int64)
        pixels = build.node("Gather", pixels, order, axis=channel_axis)
    std = np.array(preprocessing.std, np.float64)
    factor = (preprocessing.scale / std).astype(np.float32).reshape(shape)
    offset = (np.array(preprocessing.mean) / std).astype(np.float32).reshape(shape)
    if (factor != 1).any():
        pixels = build.node("Mul", pixels, build.constant(factor))
    if offset.any():
        pixels = build.node("Sub", pixels, build.constant(offset))
    build.node("Cast", pixels, output=image.name, to=element)


def _add_pooling(build: GraphBuilder, layer: Layer, pooling: Pooling) -> str:
    """Add nodes from a layer's activations to a float32 matrix; return its name."""
    import onnx

    code = layer.name
    if layer.element != onnx.TensorProto.FLOAT:
        code = build.node("Cast", code, to=onnx.TensorProto.FLOAT)
    if pooling == "cls":
        return build.node("Gather", code, build.constant(0, np.int64), axis=1)
    if pooling != "flatten":
        # ONNX's global poolings expect the channels on axis 1.
        if layer.kind == "tokens":
            code = build.node("Transpose", code, perm=[0, 2, 1])
        elif layer.channel_axis == 3:
            code = build.node("Transpose", code, perm=[0, 3, 1, 2])
    if pooling == "gem":
        # Relu and Add, because Max broadcasts only since opset 8.
        code = build.node("Relu", code)
        code = build.node("Add", code, build.constant(GEM_FLOOR))
        code = build.node("Pow", code, build.constant(GEM_EXPONENT))
        code = build.node("GlobalAveragePool", code)
        code = build.node("Pow", code, build.constant(1 / GEM_EXPONENT))
    elif pooling in ("avg", "mean"):
        code = build.node("GlobalAveragePool", code)
    elif pooling == "max":
        code = build.node("GlobalMaxPool", code)
    return build.node("Flatten", code, axis=1)


def make_batch_dynamic(
    model: onnx.ModelProto, input_name: str, fixed_batch: int
) -> None:
    """Make the fixed batch size of a model dynamic, as far as possible.

    A Reshape to [fixed_batch, ...] becomes one to [0, ...], which copies the size.
    """
    from onnx import numpy_helper

    view = GraphView(model, input_name)
    for index, node in enumerate(model.graph.node):
        if node.op_type != "Reshape" or node.input[0] not in view.image_dependent:
            continue
        wanted = view.constant_value(node.input[1])
        if (
            not wanted
            or wanted[0] != fixed_batch
            or _has_flag(node.attribute, "allowzero")
        ):
            continue
        name = f"{CODE_PREFIX}reshape_{index}"
        array = np.array([0, *wanted[1:]], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        node.input[1] = name


def _has_flag(attributes: Iterable[onnx.AttributeProto], name: str) -> bool:
    return any(a.name == name and a.i for a in attributes)
