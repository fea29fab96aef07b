"""TailPlan: the nodes, weights and shapes of the part of a backbone that is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.code_graph import (
    Pooling,
    make_batch_dynamic,
    resolve_pooling,
)
from sk_cnncodes.base.exceptions import BackboneError, LayerError
from sk_cnncodes.graphs.reading import embed_external_data
from sk_cnncodes.graphs.view import (
    GraphView,
    cut_model,
    default_opset,
    node_reads,
    value_shape,
)
from sk_cnncodes.layers.layer import Layer
from sk_cnncodes.layers.typed_graph import image_input
from sk_cnncodes.tuning.interpreter.node import TailNode, read_node
from sk_cnncodes.tuning.interpreter.weights import (
    Folding,
    Slot,
    Weight,
    WeightFinder,
    can_fold,
    fold,
    is_constant_normalisation,
)

if TYPE_CHECKING:
    import onnx

# Everything after the image, instead of after a layer.
ALL = "all"
_INTEGER = ("QLinear", "Quantize", "Dequantize", "DynamicQuantize", "QGemm")


@dataclass
class TailPlan:
    """What a tail computes, before torch computes it.

    Attributes
    ----------
    input_name, output_name : str
        Tensors between which it lies.
    input_shape : tuple of int
        Of one image's maps.
    layer : Layer
        At the end.
    pooling : str
    nodes : list of TailNode
        In the order of computation.
    arrays : dict of str to ndarray
        Constants, weights among them.
    frozen_shapes : dict of str to tuple of int
        Shapes, without the batch, of earlier tensors of which only the shape is read.
    weights : list of Weight
    foldings : list of Folding
    blocks : dict of str to int
        Block of each weight; 0 is the nearest to the frozen part.
    """

    input_name: str
    output_name: str
    input_shape: tuple[int, ...]
    layer: Layer
    pooling: Pooling
    nodes: list[TailNode]
    arrays: dict[str, np.ndarray]
    frozen_shapes: dict[str, tuple[int, ...]]
    weights: list[Weight]
    foldings: list[Folding]
    blocks: dict[str, int]


def plan_tail(
    backbone: Backbone,
    train_from: int | str,
    layer: int | str,
    pooling: str,
    known: Collection[str],
) -> TailPlan:
    """Plan the part of a backbone from one layer to the codes of another.

    Parameters
    ----------
    known : collection of str
        The operators that can be computed.
    """
    end = backbone.layer(layer)
    model = backbone.read()
    image = image_input(model)
    start_shape = tuple(backbone.preprocessing.input_shape[1:])
    start = image.name
    if train_from != ALL:
        first = backbone.layer(train_from)
        start, start_shape = first.name, first.shape
    fixed_batch = (value_shape(image) or (None,))[0]
    if fixed_batch is not None:
        make_batch_dynamic(model, image.name, fixed_batch)
    view = GraphView(model, image.name)
    part, shaped = _between(view, start, end.name, train_from, layer)
    opset = default_opset(model)
    nodes = [read_node(node, opset) for node in part.graph.node]
    boundaries = _boundaries(backbone, nodes, start, end.name)
    depths = _depths(nodes, boundaries)
    _check_operators(backbone, nodes, known, boundaries, depths, start)
    embed_external_data(part, backbone.path.parent)
    arrays = _constants(part)
    varying = _dependents(nodes, {start})
    finder = WeightFinder(nodes, arrays, varying, _needed_before(view, start))
    foldings = _foldings(nodes, finder, end.name)
    weights = _weights(finder, foldings)
    blocks = {}
    for weight in weights:
        uses = [n for n in nodes if n.outputs[0] in {out for out, _ in weight.slots}]
        reached = [
            depths[each.outputs[0]]
            for node in uses
            for each in (
                [node]
                if node.outputs[0] in varying
                else [e for out in node.outputs for e in finder.first_uses(out)]
            )
        ]
        blocks[weight.name] = min(reached, default=0)
    order = {node.outputs[0]: number for number, node in enumerate(nodes)}
    weights.sort(key=lambda weight: order[weight.slots[0][0]])
    return TailPlan(
        start,
        end.name,
        start_shape,
        end,
        resolve_pooling(end, pooling),
        nodes,
        arrays,
        {name: tuple(backbone.graph.shape(name)[1:]) for name in shaped},
        weights,
        foldings,
        {weight.name: blocks[weight.name] for weight in weights},
    )


def _between(
    view: GraphView,
    start: str,
    end: str,
    train_from: int | str,
    layer: int | str,
) -> tuple[onnx.ModelProto, list[str]]:
    """The nodes between two tensors with their constants, and tensors read for shapes.

    Raises
    ------
    LayerError
        If the second does not depend on the first, or on other values before it.
    """
    inside = view.dependents([start])
    if end not in inside:
        raise LayerError(
            f"train_from={train_from!r} is not before layer={layer!r}: the tensor "
            f"{end!r} does not depend on {start!r}. Expected an earlier layer to train "
            "from."
        )
    wanted, shaped, waiting = set[int](), list[str](), [end]
    while waiting:
        name = waiting.pop()
        if name == start:
            continue
        if name in view.image_dependent and name not in inside:
            raise LayerError(
                f"train_from={train_from!r}: layer={layer!r} also depends on the "
                f"tensor {name!r}, which does not come after it. Expected a numbered "
                "layer, through which all paths pass."
            )
        index = view.producer.get(name)
        if index is None or index in wanted:
            continue
        wanted.add(index)
        node = view.nodes[index]
        for read in node_reads(view.nodes[index]):
            frozen = read in view.image_dependent and read not in inside
            if node.op_type in ("Shape", "Size") and frozen:
                shaped.append(read)
            else:
                waiting.append(read)
    part = cut_model(view.model, [end])
    nodes = [view.nodes[index] for index in sorted(wanted)]
    part.graph.ClearField("node")
    part.graph.node.extend(nodes)
    needed = {name for index in wanted for name in node_reads(view.nodes[index])}
    kept = [tensor for tensor in part.graph.initializer if tensor.name in needed]
    part.graph.ClearField("initializer")
    part.graph.initializer.extend(kept)
    sparse = {tensor.values.name for tensor in part.graph.sparse_initializer} & needed
    if sparse:
        raise BackboneError(
            f"its weights {sorted(sparse)} are sparse, which cannot be trained."
        )
    return part, shaped


def _needed_before(view: GraphView, start: str) -> set[str]:
    """Tensors that the frozen part is computed from."""
    before = view.ancestors([start])
    return {name for index in before for name in view.nodes[index].output}


def _boundaries(
    backbone: Backbone, nodes: list[TailNode], start: str, end: str
) -> list[Layer]:
    """Numbered layers between two tensors, in order."""
    computed = {name for node in nodes for name in node.outputs} - {start, end}
    try:
        layers = backbone.layers
    except BackboneError:  # a named tensor of a network without numbered layers
        return []
    return [layer for layer in layers if layer.name in computed]


def _dependents(nodes: list[TailNode], names: set[str]) -> set[str]:
    """Names of the given tensors and of all that depend on them."""
    found = set(names)
    for node in nodes:
        if not found.isdisjoint(node.inputs):
            found.update(filter(None, node.outputs))
    return found


def _depths(nodes: list[TailNode], boundaries: list[Layer]) -> dict[str, int]:
    """Number of layers that each node comes after, by its first output."""
    depths = dict.fromkeys((node.outputs[0] for node in nodes), 0)
    for layer in boundaries:
        after = _dependents(nodes, {layer.name}) - {layer.name}
        for name in after & depths.keys():
            depths[name] += 1
    return depths


def _check_operators(
    backbone: Backbone,
    nodes: list[TailNode],
    known: Collection[str],
    boundaries: list[Layer],
    depths: Mapping[str, int],
    start: str,
) -> None:
    """Refuse what cannot be trained, before anything is computed."""
    for node in nodes:
        operator = node.operator.rpartition(".")[2]
        depth = depths[node.outputs[0]]
        place = f"after the layer {boundaries[depth - 1].position}" if depth else ""
        place = place or f"after the tensor {start!r}"
        if operator.startswith(_INTEGER) or operator.endswith("Integer"):
            raise BackboneError(
                f"{backbone.description}: the network is quantised: its node "
                f"{node.title}, {place}, computes with integers, which cannot be "
                "trained. Expected the network of floats that it was made from."
            )
        if node.operator not in known:
            raise BackboneError(
                f"{backbone.description}: its operator {node.title}, {place}, cannot "
                "be trained: it is not among those that are computed with torch. "
                "Expected a train_from after it."
            )


def _constants(part: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Constants as arrays; floats of any precision as float32."""
    from onnx import numpy_helper

    arrays = {}
    for tensor in part.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type in (1, 10, 11, 16):
            array = array.astype(np.float32)
        arrays[tensor.name] = array
    return arrays


def _foldings(
    nodes: list[TailNode], finder: WeightFinder, output: str
) -> list[Folding]:
    """The normalisations with constant statistics."""
    producer = {name: node for node in nodes for name in node.outputs if name}
    found = []
    for node in nodes:
        if is_constant_normalisation(node, finder.arrays):
            conv = producer.get(node.inputs[0])
            if not can_fold(node, conv, finder, output):
                conv = None
            found.append(fold(node, conv, finder.arrays))
    return found


def _weights(finder: WeightFinder, foldings: list[Folding]) -> list[Weight]:
    """All weights, with different names."""
    weights: list[Weight] = []
    taken: set[str] = set()
    folded: set[tuple[str, int]] = set()
    for folding in foldings:
        output = folding.node.outputs[0]
        folded.update((output, position) for position in range(1, 5))
        if folding.conv is not None:
            folded.update((folding.conv.outputs[0], position) for position in (1, 2))
        for weight in folding.weights:
            weight.name = _own_name(weight.name, weight.slots[0], taken)
            weights.append(weight)
    for name, array in finder.arrays.items():
        slots = [slot for slot in finder.slots(name) if slot not in folded]
        if slots:
            own = _own_name(name, slots[0], taken)
            weights.append(Weight(own, np.array(array), slots))
    return weights


def _own_name(name: str, slot: Slot, taken: set[str]) -> str:
    """A name of its own for a weight whose constant became several."""
    output, position = slot
    names = (name, f"{name} of {output}", f"{name} of {output}, input {position}")
    own = next(each for each in names if each not in taken)
    taken.add(own)
    return own
