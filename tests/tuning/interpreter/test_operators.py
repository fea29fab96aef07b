"""Each operator against ONNX Runtime, and its gradients against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from sk_cnncodes.tuning.interpreter.module import OPERATORS
from tests.tuning.interpreter.operators import (
    array,
    by_torch,
    check_operator,
    integers,
    one_node,
    read_node,
    tensor_of,
)

X = array(2, 3, 4)
Y = array(2, 3, 4, seed=1)
POSITIVE = array(2, 3, 4, low=0.1)
MAP = array(2, 4, 5, 6)
YES = X > 0
FLAT = {"gradients": False}


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


# Operator, inputs, and attributes, opset and what else `check_operator` takes.
Case = tuple[str, list[Any], dict[str, Any]]
CASES: list[Case] = [
    # Element by element.
    *((name, [X], {}) for name in ("Abs", "Cos", "Erf", "Exp", "Neg", "Relu")),
    *((name, [X], {}) for name in ("Sigmoid", "Sin", "Softsign", "Tanh", "Softplus")),
    *((name, [POSITIVE], {}) for name in ("Log", "Reciprocal", "Sqrt")),
    *((name, [X], {}) for name in ("Ceil", "Floor", "Round", "Sign", "Identity")),
    ("Round", [np.float32([0.5, 1.5, 2.5, -0.5, -1.5])], FLAT),
    ("Softplus", [np.float32([-200, -20, 0, 20, 200])], FLAT),
    ("Mish", [X], {"opset": 18}),
    ("Not", [YES], FLAT),
    ("IsNaN", [np.float32([0, np.nan, -np.inf, 1])], FLAT),
    *((name, [X, Y], {}) for name in ("Add", "Sub", "Mul")),
    ("Add", [X, Y[0, :, :1]], {}),
    ("Mul", [X[:1], Y], {}),
    ("Sub", [integers(5, 7), integers(2, -9)], FLAT),
    ("Div", [X, POSITIVE], {}),
    ("Div", [integers(7, -7, 9, -9), integers(2, 2, -4, -4)], FLAT),
    ("Pow", [POSITIVE, Y], {}),
    ("Pow", [X, number(3)], {"gradients": False}),
    ("Pow", [X, np.int64([2])], {"gradients": False}),
    ("Mod", [integers(7, -7, 9, -9), integers(4, 4, -4, -4)], FLAT),
    ("Mod", [X, POSITIVE], {"fmod": 1, **FLAT}),
    *((name, [X, Y, POSITIVE[:1]], {}) for name in ("Sum", "Max", "Min", "Mean")),
    *((name, [YES, Y > 0], FLAT) for name in ("And", "Or", "Xor")),
    *((name, [X, Y], FLAT) for name in ("Greater", "Less")),
    *((name, [X, X], FLAT) for name in ("GreaterOrEqual", "LessOrEqual", "Equal")),
    (
        "Clip",
        [X, number(-1), number(0.5)],
        {"gradients": False},
    ),
    ("Clip", [X, None, number(0.5)], {"gradients": False}),
    ("Clip", [X], {}),
    ("Clip", [X], {"opset": 10, "min": 0.0, "max": 1.5}),
    ("Clip", [X], {"opset": 10, "max": 1.5}),
    ("Where", [YES, X, Y[:, :1]], {}),
    ("Cast", [X], {"to": onnx.TensorProto.FLOAT}),
    ("Cast", [X], {"to": onnx.TensorProto.INT64, **FLAT}),
    ("Cast", [X], {"to": onnx.TensorProto.BOOL, **FLAT}),
    ("Cast", [integers(1, 2)], {"to": onnx.TensorProto.FLOAT, **FLAT}),
    ("CastLike", [integers(1, 2), X], FLAT),
    ("CastLike", [X, Y], FLAT),
    # Activations.
    *((name, [X], {}) for name in ("LeakyRelu", "Elu", "Selu", "HardSigmoid")),
    *((name, [X], {"alpha": 0.3}) for name in ("LeakyRelu", "Elu", "HardSigmoid")),
    ("Selu", [X], {"alpha": 0.3, "gamma": 2.0}),
    ("Celu", [X], {}),
    ("Celu", [X], {"alpha": 0.3}),
    ("HardSigmoid", [X], {"alpha": 1 / 6, "beta": 0.4}),
    ("HardSwish", [4 * X], {}),
    ("ThresholdedRelu", [X], {"alpha": 0.7}),
    ("PRelu", [X, array(4, seed=1)], {}),
    ("PRelu", [MAP, array(4, 1, 1, seed=1)], {}),
    ("Gelu", [X], {"opset": 20}),
    ("Gelu", [X], {"opset": 20, "approximate": "tanh"}),
    ("com.microsoft.Gelu", [X], {}),
    ("com.microsoft.QuickGelu", [X], {"alpha": 1.5}),
    ("com.microsoft.FastGelu", [X], {}),
    ("com.microsoft.FastGelu", [X, array(4, seed=1)], {}),
    ("com.microsoft.BiasGelu", [X, array(4, seed=1)], {}),
    *(
        (name, [X], {"opset": opset, **attrs})
        for name in ("Softmax", "LogSoftmax")
        for opset in (11, 13)
        for attrs in ({}, {"axis": 1}, {"axis": -1}, {"axis": 2})
    ),
    # Products.
    ("MatMul", [X, array(4, 5, seed=1)], {}),
    ("MatMul", [X, array(2, 4, 5, seed=1)], {}),
    ("MatMul", [array(3), array(3, 2)], {}),
    ("Gemm", [array(2, 3), array(3, 4)], {}),
    ("Gemm", [array(2, 3), array(3, 4), array(4)], {}),
    ("Gemm", [array(3, 2), array(4, 3), array(2, 1)], {"transA": 1, "transB": 1}),
    ("Gemm", [array(2, 3), array(3, 4), array(4)], {"alpha": 0.5, "beta": 2.0}),
    ("Einsum", [X, Y], {"equation": "bij, bkj -> bik"}),
    # Reductions.
    *(
        (name, [POSITIVE], {"opset": opset, **attrs})
        for name in (
            *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1"),
            *("ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
        )
        for opset, attrs in (
            (13, {}),
            (13, {"axes": [1, -1]}),
            (13, {"axes": [0], "keepdims": 0}),
            (18, {}),
            (18, {"keepdims": 0}),
        )
    ),
    *(
        (name, [POSITIVE, integers(-1, 0)], {"opset": 18, "keepdims": keep})
        for name in (
            *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1"),
            *("ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
        )
        for keep in (0, 1)
    ),
    ("ReduceMean", [X, integers()], {"opset": 18, "noop_with_empty_axes": 1}),
    ("ReduceSum", [X], {"opset": 11, "axes": [1]}),
    ("ReduceSum", [X, integers(1)], {"opset": 13, "keepdims": 0}),
    ("ReduceSum", [X], {"opset": 13, "noop_with_empty_axes": 1}),
    # Layout.
    ("Dropout", [X], {"outputs": 2}),
    ("Dropout", [X], {"opset": 10, "ratio": 0.9}),
    ("Reshape", [X, integers(0, -1)], {}),
    ("Reshape", [X, integers(4, 3, 2)], {}),
    ("Reshape", [array(0, 3), integers(3, 0)], {"allowzero": 1, **FLAT}),
    *(("Flatten", [MAP], {"axis": axis}) for axis in (0, 1, 2, -1, 4)),
    ("Flatten", [MAP], {}),
    ("Transpose", [X], {}),
    ("Transpose", [MAP], {"perm": [0, 2, 3, 1]}),
    ("Squeeze", [X[:, :1]], {"opset": 11, "axes": [1]}),
    ("Squeeze", [X[:1, :1]], {"opset": 11}),
    ("Squeeze", [X[:1, :1], integers(-2)], {"opset": 13}),
    ("Unsqueeze", [X], {"opset": 11, "axes": [0, 4]}),
    ("Unsqueeze", [X, integers(-1, 1)], {"opset": 13}),
    ("Concat", [X, Y], {"axis": -1}),
    ("Concat", [X, Y, X[:, :, :2].copy()], {"axis": 2}),
    ("Slice", [X], {"opset": 9, "starts": [1, 0], "ends": [2, -1], "axes": [1, 2]}),
    ("Slice", [X], {"opset": 9, "starts": [1], "ends": [9]}),
    ("Slice", [X, integers(1), integers(2**62)], {}),
    ("Slice", [X, integers(-(2**63)), integers(-1)], {}),
    ("Slice", [X, integers(-1), integers(-(2**62)), integers(2), integers(-1)], {}),
    ("Slice", [X, integers(2), integers(0), integers(-1), integers(-1)], {}),
    ("Slice", [X, integers(-9), integers(9), integers(1), integers(2)], {}),
    ("Split", [MAP], {"opset": 11, "outputs": 2, "axis": 1}),
    ("Split", [MAP], {"opset": 11, "outputs": 2, "axis": 1, "split": [1, 3]}),
    ("Split", [MAP, integers(1, 3)], {"opset": 13, "outputs": 2, "axis": 1}),
    ("Split", [MAP], {"opset": 18, "outputs": 3, "axis": 2, "num_outputs": 3}),
    ("Expand", [X[:, :1], integers(2, 1, 3, 1)], {}),
    ("Tile", [X, integers(1, 2, 3)], {}),
    ("Gather", [X, integers(1, -1)], {"axis": 1}),
    ("Gather", [X, np.array(-1, np.int64)], {"axis": 1}),
    ("Gather", [X, np.array([[0, 1], [1, 1]], np.int32)], {}),
    ("GatherElements", [X, np.array([[[0, -1, 2, 1]]] * 2, np.int64)], {"axis": 1}),
    ("GatherND", [X, np.array([[0, 1], [1, 2]], np.int64)], {}),
    ("ScatterND", [X, np.array([[0, 1], [1, 2]], np.int64), array(2, 4)], {}),
    ("Shape", [X], FLAT),
    ("Shape", [X], {"start": 1, "end": -1, **FLAT}),
    ("Size", [X], FLAT),
    ("Range", [np.array(v, np.int64) for v in (1, 9, 3)], FLAT),
    ("Range", [np.array(v, np.int64) for v in (9, 1, -3)], FLAT),
    ("ConstantOfShape", [integers(2, 3)], FLAT),
    ("ConstantOfShape", [integers(2)], {"value": tensor_of(integers(7)), **FLAT}),
    ("Pad", [X], {"opset": 10, "pads": [0, 1, 2, 0, 0, 1], "value": 3.0}),
    ("Pad", [X, integers(0, 1, 2, 0, 0, 1)], {"opset": 13}),
    (
        "Pad",
        [X, integers(0, 1, 2, 0, 0, 1), number(3)],
        {"opset": 13, **FLAT},
    ),
    ("Pad", [X, integers(0, -1, 2, 0, 0, -1)], {"opset": 13}),
    ("Pad", [X, integers(1, 2), None, integers(-1)], {"opset": 18}),
    *(
        ("Pad", [X, integers(0, 1, 2, 0, 0, 1)], {"opset": 19, "mode": mode})
        for mode in ("edge", "reflect", "wrap")
    ),
    *(
        ("DepthToSpace", [array(2, 8, 2, 3)], {"blocksize": 2, "mode": mode})
        for mode in ("DCR", "CRD")
    ),
    ("SpaceToDepth", [array(2, 3, 4, 6)], {"blocksize": 2}),
    ("Trilu", [X], {}),
    ("Trilu", [X, np.array(1, np.int64)], {"upper": 0}),
    ("Trilu", [X, np.array(-1, np.int64)], {}),
    *(
        ("CumSum", [X, np.array(1, np.int64)], {"exclusive": e, "reverse": r})
        for e in (0, 1)
        for r in (0, 1)
    ),
    # Windows and normalisations; `test_windows` has all of their attributes.
    ("Conv", [MAP, array(3, 4, 2, 3), array(3)], {}),
    ("ConvTranspose", [MAP, array(4, 3, 2, 3), array(3)], {}),
    ("AveragePool", [MAP], {"kernel_shape": [2, 3]}),
    ("MaxPool", [MAP], {"kernel_shape": [2, 3]}),
    ("LpPool", [MAP], {"kernel_shape": [2, 3], "opset": 18}),
    ("LpPool", [MAP], {"kernel_shape": [2, 3], "p": 3, "strides": [2, 1], "opset": 18}),
    ("GlobalAveragePool", [MAP], {}),
    ("GlobalMaxPool", [MAP], {}),
    (
        "BatchNormalization",
        [MAP, array(4), array(4, seed=1), array(4, seed=2), array(4, low=0.1)],
        {"epsilon": 1e-3, **FLAT},
    ),
    (
        "BatchNormalization",
        [array(3, 4), array(4), array(4, seed=1), array(4), array(4, low=0.1)],
        {"opset": 9},
    ),
    *(
        ("LayerNormalization", [X, array(*shape), bias], {"axis": axis})
        for axis, shape in ((-1, (4,)), (1, (3, 4)), (-2, (3, 4)))
        for bias in (None, array(*shape, seed=1))
    ),
    ("LayerNormalization", [X, array(4)], {"epsilon": 0.1}),
    ("RMSNormalization", [X, array(4)], {"opset": 23, "epsilon": 0.1}),
    ("RMSNormalization", [X, array(3, 4)], {"opset": 23, "axis": 1}),
    ("SimplifiedLayerNormalization", [X, array(4)], {"epsilon": 0.1}),
    ("InstanceNormalization", [MAP, array(4), array(4, seed=1)], {"epsilon": 0.1}),
    (
        "GroupNormalization",
        [MAP, array(2), array(2, seed=1)],
        {"opset": 18, "num_groups": 2},
    ),
    (
        "GroupNormalization",
        [MAP, array(4), array(4, seed=1)],
        {"opset": 21, "num_groups": 2, "epsilon": 0.1},
    ),
    *(
        ("LRN", [MAP], {"size": size, "alpha": 0.5, "beta": 0.6, "bias": 2.0})
        for size in (1, 3)
    ),
    *(
        ("LpNormalization", [X], {"axis": axis, "p": p})
        for axis in (-1, 1)
        for p in (1, 2)
    ),
]
# Not in ONNX Runtime; compared with their definition.
UNKNOWN_TO_RUNTIME = {"Swish"}


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(CASES)]
)
def test_operator(case: Case) -> None:
    name, inputs, options = case
    check_operator(name, *inputs, **options)


def test_all_operators_are_tested() -> None:
    assert {name for name, _, _ in CASES} | UNKNOWN_TO_RUNTIME == set(OPERATORS)


def test_swish() -> None:
    import torch

    model = one_node("Swish", [X], 24, 1, alpha=0.5)
    (found,) = by_torch(read_node(model.graph.node[0], 24), [torch.from_numpy(X)])
    np.testing.assert_allclose(found, X / (1 + np.exp(-0.5 * X)), rtol=1e-5)
