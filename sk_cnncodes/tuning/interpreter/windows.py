"""Convolutions, poolings and normalisations on torch tensors.

Each function computes one ONNX operator: the node, then its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sk_cnncodes.tuning.interpreter.arithmetic import Operator
from sk_cnncodes.tuning.interpreter.node import TailNode

Pads = list[tuple[int, int]]


# -- windows -----------------------------------------------------------------


def _window(
    node: TailNode, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and dilations, each with one number a spatial axis."""
    ones = [1] * len(kernel)
    return (
        [*kernel],
        [*node.get("strides", ones)],
        [*node.get("dilations", ones)],
    )


def _pads(
    node: TailNode,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    lowest: int = 0,
) -> Pads:
    """Padding before and after each spatial axis, `lowest` together at least."""
    mode, rank = node.get("auto_pad", "NOTSET"), len(sizes)
    if mode in ("NOTSET", ""):
        stated = node.get("pads", [0] * (2 * rank))
        return [*zip(stated[:rank], stated[rank:], strict=True)]
    if mode == "VALID":
        return [(0, 0)] * rank
    pads = []
    for size, k, stride, dilation in zip(
        sizes, kernel, strides, dilations, strict=True
    ):
        places = -(-size // stride)
        total = max((places - 1) * stride + (k - 1) * dilation + 1 - size, lowest)
        # Rounded towards zero, as by ONNX Runtime.
        before = int((total + (mode == "SAME_LOWER")) / 2)
        pads.append((before, total - before))
    return pads


def _padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """Pad the last axes."""
    numbers = [number for pair in reversed(pads) for number in pair]
    return functional.pad(x, numbers, value=value) if any(numbers) else x


def _ceiled(
    node: TailNode,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Pads,
) -> Pads:
    """Pads that let windows with a missing end count, if the node says so.

    A window that would start in the padding after the image does not count.
    """
    if not node.get("ceil_mode", 0):
        return pads
    wider = []
    for size, k, stride, dilation, (before, after) in zip(
        sizes, kernel, strides, dilations, pads, strict=True
    ):
        reach = (k - 1) * dilation + 1
        places = -(-(size + before + after - reach) // stride) + 1
        if (places - 1) * stride >= size + before:
            places -= 1
        missing = (places - 1) * stride + reach - (size + before + after)
        wider.append((before, after + max(missing, 0)))
    return wider


# -- convolutions ------------------------------------------------------------


def conv(
    node: TailNode, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Conv along one, two or three axes."""
    kernel, strides, dilations = _window(node, weight.shape[2:])
    pads = _pads(node, x.shape[2:], kernel, strides, dilations)
    padding = [before for before, _ in pads]
    if any(before != after or before < 0 for before, after in pads):
        x, padding = _padded(x, pads), [0] * len(pads)
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
    return function[len(kernel)](
        x, weight, bias, strides, padding, dilations, node.get("group", 1)
    )


def conv_transpose(
    node: TailNode, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """ConvTranspose along one, two or three axes."""
    kernel, strides, dilations = _window(node, weight.shape[2:])
    rank = len(kernel)
    extra = node.get("output_padding", [0] * rank)
    wanted = node.get("output_shape")
    reach = [
        (size - 1) * stride + (k - 1) * dilation + 1 + more
        for size, stride, k, dilation, more in zip(
            x.shape[2:], strides, kernel, dilations, extra, strict=True
        )
    ]
    mode = node.get("auto_pad", "NOTSET")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [s * stride for s, stride in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        crops = []
        for whole, part in zip(reach, wanted[-rank:], strict=True):
            less = (whole - part) // 2
            more = whole - part - less
            crops.append((less, more) if mode == "SAME_UPPER" else (more, less))
    else:
        crops = _pads(node, x.shape[2:], kernel, strides, dilations)
    function = {
        1: functional.conv_transpose1d,
        2: functional.conv_transpose2d,
        3: functional.conv_transpose3d,
    }[rank]
    whole_map = function(
        x, weight, None, strides, 0, 0, node.get("group", 1), dilations
    )
    # Extra places at the end are zeros of the sum; then pads are cropped.
    whole_map = _padded(
        whole_map, [(-a, more - b) for (a, b), more in zip(crops, extra, strict=True)]
    )
    if bias is None:
        return whole_map
    return whole_map + bias.reshape(1, -1, *[1] * rank)


# -- poolings ----------------------------------------------------------------


def average_pool(node: TailNode, x: Tensor) -> Tensor:
    """AveragePool: the mean of what lies in the image, or in the stated padding."""
    kernel, strides, dilations = _window(node, node.get("kernel_shape"))
    sizes = x.shape[2:]
    # Strides longer than the kernel crop the image in ONNX Runtime.
    pads = _pads(node, sizes, kernel, strides, dilations, lowest=-max(sizes))
    wider = _ceiled(node, sizes, kernel, strides, dilations, pads)
    with_padding = bool(node.get("count_include_pad", 0))
    plain = all(d == 1 for d in dilations)
    if plain and wider == pads and (with_padding or not any(map(any, pads))):
        return _mean_of_windows(_padded(x, pads), kernel, strides)
    counted = torch.ones_like(x[:1, :1])
    if with_padding:
        counted = _padded(counted, pads, 1.0)
        counted = _padded(
            counted,
            [(0, b - a) for (_, a), (_, b) in zip(pads, wider, strict=True)],
        )
    else:
        counted = _padded(counted, wider)
    x = _padded(x, wider)
    if plain:
        total = _mean_of_windows(x, kernel, strides)
        return total / _mean_of_windows(counted, kernel, strides)
    return _sum_of_windows(x, kernel, strides, dilations) / _sum_of_windows(
        counted, kernel, strides, dilations
    )


def _mean_of_windows(x: Tensor, kernel: list[int], strides: list[int]) -> Tensor:
    function = {
        1: functional.avg_pool1d,
        2: functional.avg_pool2d,
        3: functional.avg_pool3d,
    }
    return function[len(kernel)](x, kernel, strides)


def _sum_of_windows(
    x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]
) -> Tensor:
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
    planes = x.reshape(-1, 1, *x.shape[2:])
    total = function[len(kernel)](
        planes, x.new_ones(1, 1, *kernel), None, strides, 0, dilations
    )
    return total.reshape(*x.shape[:2], *total.shape[2:])


def max_pool(node: TailNode, x: Tensor) -> Tensor:
    """MaxPool, without indices."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise ValueError("indices of the largest values are not computed")
    kernel, strides, dilations = _window(node, node.get("kernel_shape"))
    sizes = x.shape[2:]
    pads = _pads(node, sizes, kernel, strides, dilations)
    pads = _ceiled(node, sizes, kernel, strides, dilations, pads)
    function = {
        1: functional.max_pool1d,
        2: functional.max_pool2d,
        3: functional.max_pool3d,
    }
    x = _padded(x, pads, -math.inf)
    return function[len(kernel)](x, kernel, strides, 0, dilations)


def lp_pool(node: TailNode, x: Tensor) -> Tensor:
    """LpPool."""
    kernel, strides, dilations = _window(node, node.get("kernel_shape"))
    sizes, p = x.shape[2:], node.get("p", 2)
    pads = _pads(node, sizes, kernel, strides, dilations)
    pads = _ceiled(node, sizes, kernel, strides, dilations, pads)
    powers = _padded(x.abs() ** p, pads)
    return _sum_of_windows(powers, kernel, strides, dilations) ** (1 / p)


def global_average_pool(node: TailNode, x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    return x.mean([*range(2, x.ndim)], keepdim=True)


def global_max_pool(node: TailNode, x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return x.amax([*range(2, x.ndim)], keepdim=True)


# -- normalisations ----------------------------------------------------------


def channels(values: Tensor, rank: int) -> Tensor:
    """A vector of channels, to be broadcast along axis 1."""
    return values.reshape(1, -1, *[1] * (rank - 2))


def batch_normalization(
    node: TailNode, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """BatchNormalization with the statistics of the file.

    In training mode, as of standardised weights, they are those of the values.
    """
    if node.get("training_mode", 0):
        var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    gain = scale / torch.sqrt(var + node.get("epsilon", 1e-5))
    rank = x.ndim
    shifted = x - channels(mean, rank)
    return shifted * channels(gain, rank) + channels(bias, rank)


def layer_normalization(
    node: TailNode, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """LayerNormalization; only its first output."""
    shape = x.shape[node.get("axis", -1) % x.ndim :]
    epsilon = node.get("epsilon", 1e-5)
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    normal = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return normal if bias is None else normal + bias


def simplified_layer_normalization(node: TailNode, x: Tensor, scale: Tensor) -> Tensor:
    """RMSNormalization, and ONNX Runtime's older name of it."""
    axes = [*range(node.get("axis", -1) % x.ndim, x.ndim)]
    squares = (x * x).mean(axes, keepdim=True)
    return x * torch.rsqrt(squares + node.get("epsilon", 1e-5)) * scale


def instance_normalization(
    node: TailNode, x: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """InstanceNormalization."""
    return functional.instance_norm(
        x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5)
    )


def group_normalization(
    node: TailNode, x: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """GroupNormalization: one scale a group before opset 21, then one a channel."""
    groups, channels = node.get("num_groups"), x.shape[1]
    if len(scale) != channels:
        scale = scale.repeat_interleave(channels // groups)
        bias = bias.repeat_interleave(channels // groups)
    return functional.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def local_response_normalization(node: TailNode, x: Tensor) -> Tensor:
    """LRN: over neighbouring channels; of an even number, one more lies after."""
    size = node.get("size")
    before = (size - 1) // 2
    squares = (x * x).movedim(1, -1)
    squares = functional.pad(squares, [before, size - 1 - before])
    total = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    alpha, beta = node.get("alpha", 1e-4), node.get("beta", 0.75)
    return x / (node.get("bias", 1.0) + alpha / size * total) ** beta


def lp_normalization(node: TailNode, x: Tensor) -> Tensor:
    """LpNormalization; a vector of zeros stays one."""
    axis, p = node.get("axis", -1), node.get("p", 2)
    length = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / length)


OPERATORS: dict[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "AveragePool": average_pool,
    "MaxPool": max_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "BatchNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": simplified_layer_normalization,
    "SimplifiedLayerNormalization": simplified_layer_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "LRN": local_response_normalization,
    "LpNormalization": lp_normalization,
}
