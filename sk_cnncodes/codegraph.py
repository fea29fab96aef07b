"""Code graphs: a cut backbone with its preprocessing and pooling as nodes.

A code graph takes ``images``, uint8 [N, height, width, 3] in RGB, and gives one
float32 [N, d] output for each of its layers, ``codes_0``, ``codes_1``, ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sk_cnncodes.exceptions import LayerError
from sk_cnncodes.graph import GraphView, cut_model, rename_tensors, value_shape
from sk_cnncodes.layers import Layer, image_input
from sk_cnncodes.model_checks import check_loops, check_repeatable
from sk_cnncodes.model_files import embed_external_data
from sk_cnncodes.preprocessing import Preprocessing

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
# Element types of ONNX: float, float16, double and bfloat16.
_FLOATS = (1, 10, 11, 16)
# Operators that round the images of a batch by the largest value of all of them.
_SCALED_BY_BATCH = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
# Luma of ITU-R BT.601, as Pillow's convert("L").
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class CodeGraph:
    """A model that gives codes, and how many images it takes at a time.

    Attributes
    ----------
    model : bytes
        The serialised `onnx.ModelProto`.
    batch_size : int or None
        Number of images in each run; None where any number will do.
    freed : bool
        Whether the file had a batch size, which was taken out. Then any number will
        do only if a run says so.
    """

    model: bytes
    batch_size: int | None
    freed: bool = False


def resolve_pooling(layer: Layer, pooling: str) -> Pooling:
    """The pooling that is used at a layer: what "auto" stands for there.

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
        f"{_described(layer)}. Expected 'auto' or one of {valid}."
    )


def _described(layer: Layer) -> str:
    shape = "x".join(map(str, layer.shape))
    if layer.kind == "map":
        return f"a map of shape {shape}"
    if layer.kind == "tokens":
        with_class = "with" if layer.has_class_token else "without"
        return f"tokens of shape {shape} {with_class} a class token"
    return f"a vector of length {shape}"


def code_length(layer: Layer, pooling: Pooling) -> int:
    """Number of values of a code."""
    return int(np.prod(layer.shape)) if pooling == "flatten" else layer.n_channels


def build_code_graphs(
    read: Callable[[], onnx.ModelProto],
    folder: Path,
    layers: list[tuple[Layer, Pooling]],
    preprocessing: Preprocessing,
    norm: str | None,
) -> Iterator[CodeGraph]:
    """The code graphs of a backbone, the most capable first.

    A backbone with a free batch dimension gives one graph for any number of images
    and one for single images. Where the batch size is baked in, the first graph has
    it freed, which not every network survives, and the second has it as it was.
    Which of them is right, only a run can tell.

    Parameters
    ----------
    read : callable
        Gives the model in the normal form of `sk_cnncodes.model_files.read_model`.
        It is called for each graph: a model is large, and the second graph is rarely
        asked for.
    folder : Path
        Where the model's external data lie.
    layers : list of (Layer, Pooling)
        One for each output.
    preprocessing : Preprocessing
        Its normalisation becomes nodes; its resize and crop do not.
    norm : "l2" or None
        Whether codes are scaled to unit length.
    """
    names = [layer.name for layer, _ in layers]
    for free in (True, False):
        # In one expression: while the graph is loaded, nothing else holds weights.
        yield _code_graph(
            *_cut(read(), folder, names), layers, preprocessing, norm, free=free
        )


def _cut(
    model: onnx.ModelProto, folder: Path, outputs: list[str]
) -> tuple[onnx.ModelProto, onnx.ValueInfoProto]:
    """What a backbone needs for some tensors, with its weights; its image input."""
    cut = cut_model(model, outputs)
    embed_external_data(cut, folder)
    rename_tensors(cut.graph, _backbone_name)
    check_loops(cut.graph)
    check_repeatable(cut.graph)
    name = _backbone_name(image_input(model).name)
    (value,) = [value for value in cut.graph.input if value.name == name]
    return cut, value


def _backbone_name(name: str) -> str:
    """The name of a backbone's tensor, where a code graph has its own of that name."""
    own = name == INPUT or name.startswith(("codes_", "sk_cnncodes/"))
    return f"backbone/{name}" if own else name


def _code_graph(
    model: onnx.ModelProto,
    image: onnx.ValueInfoProto,
    layers: list[tuple[Layer, Pooling]],
    preprocessing: Preprocessing,
    norm: str | None,
    *,
    free: bool,
) -> CodeGraph:
    """Turn a cut model into a code graph, with a free batch dimension or as it was."""
    import onnx

    stated = value_shape(image)
    baked = stated[0] if stated else None
    batch_size = None if free else baked or 1
    if free and baked is not None:
        _free_batch(model, image.name, baked)
    if free and any(node.op_type in _SCALED_BY_BATCH for node in model.graph.node):
        batch_size = 1
    # Inner types may hold a baked-in batch size.
    model.graph.ClearField("value_info")
    build = _Builder(model)
    _add_normalisation(build, image, preprocessing)
    model.graph.input.remove(image)
    batch: int | str = batch_size if batch_size is not None else "N"
    shape = [batch, *preprocessing.crop_size, 3]
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, shape)
    )
    model.graph.ClearField("output")
    for number, (layer, pooling) in enumerate(layers):
        code = _add_pooling(
            build, replace(layer, name=_backbone_name(layer.name)), pooling
        )
        if norm == "l2":
            code = build.node("LpNormalization", [code], axis=1, p=2)
        name = f"codes_{number}"
        build.node("Identity", [code], output=name)
        length = code_length(layer, pooling)
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(
                name, onnx.TensorProto.FLOAT, [batch, length]
            )
        )
    build.finish()
    freed = free and baked is not None
    return CodeGraph(bytes(model.SerializeToString()), batch_size, freed)


class _Builder:
    """Adds nodes before and behind those of a model; names them out of its way."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.before: list[onnx.NodeProto] = []
        self.behind: list[onnx.NodeProto] = []
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"sk_cnncodes/{self._count}"

    def constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = self._name()
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def node(
        self,
        op_type: str,
        inputs: list[str],
        *,
        output: str | None = None,
        before: bool = False,
        **attributes: Any,
    ) -> str:
        import onnx

        output = output or self._name()
        node = onnx.helper.make_node(op_type, inputs, [output], **attributes)
        (self.before if before else self.behind).append(node)
        return output

    def finish(self) -> None:
        nodes = [*self.before, *self.graph.node, *self.behind]
        self.graph.ClearField("node")
        self.graph.node.extend(nodes)


def _add_normalisation(
    build: _Builder, image: onnx.ValueInfoProto, preprocessing: Preprocessing
) -> None:
    """From uint8 NHWC RGB to what the network's input was trained on."""
    import onnx

    def add(op_type: str, inputs: list[str], **attributes: Any) -> str:
        return build.node(op_type, inputs, before=True, **attributes)

    element = image.type.tensor_type.elem_type
    pixels = add("Cast", [INPUT], to=onnx.TensorProto.FLOAT)
    if preprocessing.channels == "GRAY":
        luma = build.constant(np.array(_LUMA, np.float32).reshape(3, 1))
        pixels = add("MatMul", [pixels, luma])
        if element not in _FLOATS:
            half = build.constant(np.array(0.5, np.float32))
            pixels = add("Floor", [add("Add", [pixels, half])])
    channel_axis, shape = 3, (1, 1, 1, -1)
    if preprocessing.layout == "NCHW":
        pixels = add("Transpose", [pixels], perm=[0, 3, 1, 2])
        channel_axis, shape = 1, (1, -1, 1, 1)
    if preprocessing.channels == "BGR":
        # Of whole planes where it can be: 20 times faster than pixel by pixel.
        order = build.constant(np.array([2, 1, 0], np.int64))
        pixels = add("Gather", [pixels, order], axis=channel_axis)
    std = np.array(preprocessing.std, np.float64)
    factor = (preprocessing.scale / std).astype(np.float32).reshape(shape)
    offset = (np.array(preprocessing.mean) / std).astype(np.float32).reshape(shape)
    if (factor != 1).any():
        pixels = add("Mul", [pixels, build.constant(factor)])
    if offset.any():
        pixels = add("Sub", [pixels, build.constant(offset)])
    build.node("Cast", [pixels], output=image.name, before=True, to=element)


def _add_pooling(build: _Builder, layer: Layer, pooling: Pooling) -> str:
    """From a layer's activations to a float32 matrix."""
    import onnx

    code = layer.name
    if layer.element != onnx.TensorProto.FLOAT:
        code = build.node("Cast", [code], to=onnx.TensorProto.FLOAT)
    if pooling == "cls":
        first = build.constant(np.array(0, np.int64))
        return build.node("Gather", [code, first], axis=1)
    if pooling != "flatten":
        # The channels go to axis 1, where ONNX's global poolings want them.
        if layer.kind == "tokens":
            code = build.node("Transpose", [code], perm=[0, 2, 1])
        elif layer.channel_axis == 3:
            code = build.node("Transpose", [code], perm=[0, 3, 1, 2])
    if pooling == "gem":
        floor = build.constant(np.array(GEM_FLOOR, np.float32))
        power = build.constant(np.array(GEM_EXPONENT, np.float32))
        root = build.constant(np.array(1 / GEM_EXPONENT, np.float32))
        # Relu and a sum, because Max broadcasts only since opset 8.
        code = build.node("Add", [build.node("Relu", [code]), floor])
        code = build.node("Pow", [code, power])
        code = build.node("GlobalAveragePool", [code])
        code = build.node("Pow", [code, root])
    elif pooling in ("avg", "mean"):
        code = build.node("GlobalAveragePool", [code])
    elif pooling == "max":
        code = build.node("GlobalMaxPool", [code])
    return build.node("Flatten", [code], axis=1)


def _free_batch(model: onnx.ModelProto, input_name: str, baked: int) -> None:
    """Let a model with a baked-in batch size take any, as far as that is possible.

    A Reshape to [baked, ...] is told to copy the batch instead (0).
    """
    from onnx import numpy_helper

    view = GraphView(model, input_name)
    for index, node in enumerate(model.graph.node):
        if node.op_type != "Reshape" or node.input[0] not in view.dependent:
            continue
        wanted = view.constant_value(node.input[1])
        if not wanted or wanted[0] != baked or _is_set(node.attribute, "allowzero"):
            continue
        name = f"sk_cnncodes/reshape_{index}"
        array = np.array([0, *wanted[1:]], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        node.input[1] = name


def _is_set(attributes: Iterable[onnx.AttributeProto], name: str) -> bool:
    return any(a.name == name and a.i for a in attributes)
