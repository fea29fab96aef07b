"""8-bit code graphs: static quantisation with scales from calibration images.

Weights are int8 with one scale per channel, activations uint8 with one scale per
tensor; normalisation of the pixels, pooling and L2 norm stay in float32. Operators that
ONNX Runtime and OpenVINO compute in 8 bits are surrounded by QuantizeLinear and
DequantizeLinear, the others are unchanged. See B. Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
2018, arXiv:1712.05877, and M. Nagel et al., "A White Paper on Neural Network
Quantization", arXiv:2106.08295.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.base.public import public
from sk_cnncodes.engines.onnxruntime import (
    import_tool,
    make_session,
    session_options,
)
from sk_cnncodes.engines.precision import fused_graph, is_added_by_code_graph

if TYPE_CHECKING:
    import onnx

# Operators whose second input is a weight, and those quantised only on feature maps.
_LINEAR_OPS = ("Conv", "Gemm", "MatMul")
_FEATURE_MAP_OPS = ("Add", "Relu", "Clip", "MaxPool", "AveragePool", "Concat")
# First opset with one scale per channel.
_OPSET = 13

Ranges = Mapping[str, tuple[float, float]]


@public
@dataclass(frozen=True)
class Calibration:
    """Ranges of a backbone's activations, which determine its 8-bit scales.

    Attributes
    ----------
    backbone_sha256 : str
        SHA-256 of the backbone.
    n_images : int
        Number of images that the ranges were measured on.
    ranges : dict of str to (float, float)
        For each quantised tensor, its minimum and its maximum, each averaged over the
        images so that single outliers do not reduce the resolution.
    preprocessing : str
        Preprocessing of the images, as JSON.
    """

    backbone_sha256: str
    n_images: int
    ranges: dict[str, tuple[float, float]] = field(repr=False)
    preprocessing: str = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the ranges, which determine the backbone's quantised graph."""
        values = json.dumps(self.ranges, sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()


def measure_ranges(
    model: bytes, batches: Iterable[np.ndarray], n_threads: int
) -> dict[str, tuple[float, float]]:
    """Measure the ranges of the tensors to quantise by running a code graph on images.

    Parameters
    ----------
    model : bytes
        A serialised code graph in float32.
    batches : iterable of ndarray of uint8, shape (n, height, width, 3)
        The extremes of each batch are averaged, so batches should have one image each
        where the graph allows it.
    n_threads : int

    Returns
    -------
    dict of str to (float, float)
        Mean minimum and mean maximum of each tensor to quantise.

    Raises
    ------
    BackboneError
        If the graph has nothing to quantise, or cannot be fused.
    """
    import onnx

    fused = fused_graph(model, _OPSET)
    names = _find_targets(fused).tensors
    outputs = []
    for name in names:
        for op_type in ("ReduceMin", "ReduceMax"):
            output = f"sk_cnncodes/{op_type}/{name}"
            node = onnx.helper.make_node(op_type, [name], [output], keepdims=0)
            fused.graph.node.append(node)
            value = onnx.helper.make_tensor_value_info(output, 1, [])
            fused.graph.output.append(value)
            outputs.append(output)
    options = session_options(n_threads)
    session = make_session(fused.SerializeToString(), options)
    (image_input,) = session.get_inputs()
    extremes = [session.run(outputs, {image_input.name: batch}) for batch in batches]
    means = np.array(extremes, np.float64).mean(0).reshape(-1, 2)
    return {
        name: (float(low), float(high))
        for name, (low, high) in zip(names, means, strict=True)
    }


def quantise(model: bytes, ranges: Ranges) -> bytes:
    """Quantise a code graph to 8 bits.

    Parameters
    ----------
    model : bytes
        A serialised code graph in float32.
    ranges : dict of str to (float, float)
        Output of `measure_ranges`.

    Raises
    ------
    BackboneError
        If a tensor to quantise has no range.
    """
    quantization = import_tool("quantization")
    calibrate = import_tool("quantization.calibrate")
    fused = fused_graph(model, _OPSET)
    targets = _find_targets(fused)
    missing = [name for name in targets.tensors if name not in ranges]
    if missing:
        raise BackboneError(
            f"int8: the calibration lacks {len(missing)} of {len(targets.tensors)} "
            f"tensors, the first is {missing[0]!r}: it was made for other layers, or "
            "by another version of onnxruntime. Call fit again."
        )
    data = {
        name: calibrate.TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ((name, ranges[name]) for name in targets.tensors)
    }
    quantizer = quantization.QDQQuantizer(
        fused,
        per_channel=True,
        reduce_range=False,
        weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QUInt8,
        tensors_range=calibrate.TensorsData(
            quantization.CalibrationMethod.MinMax, data
        ),
        nodes_to_quantize=targets.nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=[*_LINEAR_OPS, *_FEATURE_MAP_OPS],
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    return bytes(quantizer.model.model.SerializeToString())


@dataclass(frozen=True)
class _Targets:
    """Names of nodes to quantise, and of their input and output activations."""

    nodes: list[str]
    tensors: list[str]


def _find_targets(model: onnx.ModelProto) -> _Targets:
    """Find the nodes and activations of a fused code graph to quantise."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    rank = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == 1
    }
    nodes, tensors = [], dict[str, None]()
    for node in graph.node:
        if is_added_by_code_graph(node):
            continue
        if node.op_type in _LINEAR_OPS:
            suitable = node.input[1] in weights and node.output[0] in rank
            inputs = node.input[:1]
        else:
            # Not on tokens: outliers in their sums leave too little resolution.
            on_maps = rank.get(node.output[0]) == 4
            inputs = [i for i in node.input if i in rank]
            all_known = node.op_type == "Clip" or len(inputs) == len(node.input)
            suitable = node.op_type in _FEATURE_MAP_OPS and on_maps and all_known
        if suitable:
            nodes.append(node.name)
            tensors.update(dict.fromkeys([*inputs, node.output[0]]))
    if not any(n.op_type in _LINEAR_OPS and n.name in set(nodes) for n in graph.node):
        raise BackboneError(
            "int8: found no convolution or matrix product with constant weights up to "
            "the layer. Expected precision='float32' here."
        )
    return _Targets(nodes, list(tensors))
