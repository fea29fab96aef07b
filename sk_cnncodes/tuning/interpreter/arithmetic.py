"""Operators element by element, matrix products and reductions, on torch tensors.

Each function computes one ONNX operator: the node, then its inputs.
https://onnx.ai/onnx/operators
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sk_cnncodes.tuning.interpreter.node import TailNode

Operator = Callable[..., Any]


def together(*values: Tensor) -> list[Tensor]:
    """Tensors on one device: shapes and indices stay in the computer's memory."""
    devices = {value.device for value in values}
    if len(devices) == 1:
        return [*values]
    device = next(d for d in devices if d.type != "cpu")
    return [value.to(device) for value in values]


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda node, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda node, x, y: function(*together(x, y))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda node, *inputs: reduce(function, together(*inputs))


# -- element by element ------------------------------------------------------


def divide(node: TailNode, x: Tensor, y: Tensor) -> Tensor:
    """Div: of integers, towards zero."""
    x, y = together(x, y)
    if x.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def power(node: TailNode, x: Tensor, y: Tensor) -> Tensor:
    """Pow: the result has the type of the base."""
    if y.numel() == 1:
        # A number: the derivative by the exponent is neither needed nor finite.
        return (
            torch.pow(x, y.item())
            .to(x.dtype)
            .reshape(torch.broadcast_shapes(x.shape, y.shape))
        )
    x, y = together(x, y)
    return torch.pow(x, y).to(x.dtype)


def modulo(node: TailNode, x: Tensor, y: Tensor) -> Tensor:
    """Mod: the sign of the divisor, or with fmod that of the dividend."""
    function = torch.fmod if node.get("fmod", 0) else torch.remainder
    return function(*together(x, y))


def mean_of(node: TailNode, *inputs: Tensor) -> Tensor:
    """Mean, element by element, of any number of tensors."""
    return reduce(torch.add, together(*inputs)) / len(inputs)


def clip(
    node: TailNode, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    """Clip: bounds are attributes before opset 11, then inputs."""
    bounds = [low, high]
    if node.opset < 11:
        bounds = [node.get("min"), node.get("max")]
    numbers = [b.item() if isinstance(b, Tensor) else b for b in bounds]
    if numbers == [None, None]:
        return x
    return torch.clamp(x, *numbers)


def where(node: TailNode, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Where."""
    return torch.where(*together(condition, x, y))


def cast(node: TailNode, x: Tensor) -> Tensor:
    """Cast; among floats nothing is converted, training has one precision."""
    # Element types of onnx.TensorProto.
    integers = {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32}
    integers |= {7: torch.int64, 9: torch.bool}
    to = node.get("to")
    if to in integers:
        return x.to(integers[to])
    if to not in (1, 10, 11, 16):
        raise ValueError(f"expected numbers, got the element type {to}")
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def cast_like(node: TailNode, x: Tensor, y: Tensor) -> Tensor:
    """CastLike."""
    if x.is_floating_point() and y.is_floating_point():
        return x
    return x.to(y.dtype)


# -- activations -------------------------------------------------------------


def leaky_relu(node: TailNode, x: Tensor) -> Tensor:
    """LeakyRelu."""
    return functional.leaky_relu(x, node.get("alpha", 0.01))


def parametric_relu(node: TailNode, x: Tensor, slope: Tensor) -> Tensor:
    """PRelu; the slope is broadcast from the last axis."""
    return torch.where(x < 0, x * slope, x)


def elu(node: TailNode, x: Tensor) -> Tensor:
    """Elu."""
    return functional.elu(x, node.get("alpha", 1.0))


def celu(node: TailNode, x: Tensor) -> Tensor:
    """Celu."""
    return functional.celu(x, node.get("alpha", 1.0))


def selu(node: TailNode, x: Tensor) -> Tensor:
    """Selu."""
    alpha = node.get("alpha", 1.6732632423543772848170429916717)
    gamma = node.get("gamma", 1.0507009873554804934193349852946)
    return gamma * functional.elu(x, alpha)


def hard_sigmoid(node: TailNode, x: Tensor) -> Tensor:
    """HardSigmoid."""
    return (x * node.get("alpha", 0.2) + node.get("beta", 0.5)).clamp(0, 1)


def hard_swish(node: TailNode, x: Tensor) -> Tensor:
    """HardSwish."""
    return x * (x / 6 + 0.5).clamp(0, 1)


def thresholded_relu(node: TailNode, x: Tensor) -> Tensor:
    """ThresholdedRelu."""
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


def softplus(node: TailNode, x: Tensor) -> Tensor:
    """Softplus, exact for large values too."""
    return torch.logaddexp(x, torch.zeros_like(x))


def gelu(node: TailNode, x: Tensor) -> Tensor:
    """Gelu."""
    return functional.gelu(x, approximate=node.get("approximate", "none"))


def quick_gelu(node: TailNode, x: Tensor) -> Tensor:
    """QuickGelu of ONNX Runtime."""
    return x * torch.sigmoid(node.get("alpha", 1.702) * x)


def fast_gelu(node: TailNode, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """FastGelu of ONNX Runtime."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def bias_gelu(node: TailNode, x: Tensor, bias: Tensor) -> Tensor:
    """BiasGelu of ONNX Runtime."""
    return functional.gelu(x + bias)


def swish(node: TailNode, x: Tensor) -> Tensor:
    """Swish."""
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


def _along(node: TailNode, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Before opset 13, all axes from the given one on count as one."""

    def apply(x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, dim=node.get("axis", -1))
        axis = node.get("axis", 1) % max(x.ndim, 1)
        rows = x.reshape(math.prod(x.shape[:axis]), -1)
        return function(rows, dim=1).reshape(x.shape)

    return apply


def softmax(node: TailNode, x: Tensor) -> Tensor:
    """Softmax."""
    return _along(node, torch.softmax)(x)


def log_softmax(node: TailNode, x: Tensor) -> Tensor:
    """LogSoftmax."""
    return _along(node, torch.log_softmax)(x)


# -- products ----------------------------------------------------------------


def matmul(node: TailNode, x: Tensor, y: Tensor) -> Tensor:
    """MatMul."""
    return torch.matmul(*together(x, y))


def gemm(node: TailNode, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm."""
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if c is not None and c.ndim == 1 and alpha == beta == 1:
        return torch.addmm(c, a, b)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    if c is None:
        return product
    return product + (c if beta == 1 else beta * c)


def einsum(node: TailNode, *inputs: Tensor) -> Tensor:
    """Einsum."""
    return torch.einsum(node.get("equation").replace(" ", ""), *together(*inputs))


# -- reductions --------------------------------------------------------------

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(function: Reduction, axes_are_inputs_since: int = 18) -> Operator:
    def apply(node: TailNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
        stated = node.get("axes")
        if node.opset >= axes_are_inputs_since:
            stated = None if axes is None else axes.tolist()
        if not stated:
            if node.get("noop_with_empty_axes", 0):
                return x
            stated = [*range(x.ndim)]
        along = sorted({axis % max(x.ndim, 1) for axis in stated})
        return function(x, along, bool(node.get("keepdims", 1)))

    return apply


def _product(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keepdims)
    return x


def _root_of_squares(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return torch.linalg.vector_norm(x, 2, axes, keepdims)


def _mean(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return x.mean(axes, keepdim=keepdims)


def _sum(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return x.sum(axes, keepdim=keepdims)


OPERATORS: dict[str, Operator] = {
    **{
        name: _unary(function)
        for name, function in {
            "Abs": torch.abs,
            "Ceil": torch.ceil,
            "Cos": torch.cos,
            "Erf": torch.erf,
            "Exp": torch.exp,
            "Floor": torch.floor,
            "IsNaN": torch.isnan,
            "Log": torch.log,
            "Mish": functional.mish,
            "Neg": torch.neg,
            "Not": torch.logical_not,
            "Reciprocal": torch.reciprocal,
            "Relu": torch.relu,
            "Round": torch.round,
            "Sigmoid": torch.sigmoid,
            "Sign": torch.sign,
            "Sin": torch.sin,
            "Softsign": functional.softsign,
            "Sqrt": torch.sqrt,
            "Tanh": torch.tanh,
        }.items()
    },
    **{
        name: _binary(function)
        for name, function in {
            "Add": torch.add,
            "Sub": torch.sub,
            "Mul": torch.mul,
            "And": torch.logical_and,
            "Or": torch.logical_or,
            "Xor": torch.logical_xor,
            "Equal": torch.eq,
            "Greater": torch.gt,
            "GreaterOrEqual": torch.ge,
            "Less": torch.lt,
            "LessOrEqual": torch.le,
        }.items()
    },
    "Sum": _variadic(torch.add),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mean": mean_of,
    "Div": divide,
    "Pow": power,
    "Mod": modulo,
    "Clip": clip,
    "Where": where,
    "Cast": cast,
    "CastLike": cast_like,
    "LeakyRelu": leaky_relu,
    "PRelu": parametric_relu,
    "Elu": elu,
    "Celu": celu,
    "Selu": selu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "ThresholdedRelu": thresholded_relu,
    "Softplus": softplus,
    "Gelu": gelu,
    "Swish": swish,
    "com.microsoft.Gelu": gelu,
    "com.microsoft.QuickGelu": quick_gelu,
    "com.microsoft.FastGelu": fast_gelu,
    "com.microsoft.BiasGelu": bias_gelu,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "ReduceMean": _reduction(_mean),
    "ReduceSum": _reduction(_sum, 13),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceL1": _reduction(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": _reduction(_root_of_squares),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: _sum(x * x, axes, keep)),
    "ReduceLogSum": _reduction(lambda x, axes, keep: _sum(x, axes, keep).log()),
    "ReduceLogSumExp": _reduction(
        lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)
    ),
}
