"""Operators by what they do to activations."""

from __future__ import annotations

# Operators that keep every value and at most move it.
LAYOUT_OPS = frozenset(
    [
        "Cast",
        "Dropout",
        "DynamicQuantizeLinear",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "DequantizeLinear",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
GLOBAL_POOLS = frozenset(["GlobalAveragePool", "ReduceMean", "AveragePool"])
POOLS = frozenset(["AveragePool", "MaxPool", "LpPool"])
NORMALISATIONS = frozenset(
    [
        "BatchNormalization",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LpNormalization",
        "RMSNormalization",
        "ReduceMean",
        "SimplifiedLayerNormalization",
    ]
)
# Operators without a view of neighbours: activations and normalisations.
POINTWISE = (
    LAYOUT_OPS
    | NORMALISATIONS
    | frozenset(
        [
            "Abs",
            "Add",
            "Celu",
            "Clip",
            "Div",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
            "Log",
            "Max",
            "Min",
            "Mish",
            "Mul",
            "Neg",
            "PRelu",
            "Pow",
            "Reciprocal",
            "Relu",
            "Selu",
            "Sigmoid",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Sub",
            "Swish",
            "Tanh",
            "ThresholdedRelu",
        ]
    )
)
LINEAR_OPS = frozenset(
    [
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DynamicQuantizeMatMul",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "MatMul",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
    ]
)
CONVOLUTIONS = frozenset(["Conv", "ConvInteger", "ConvTranspose", "FusedConv"])
MERGES = frozenset(["Add", "Concat", "Max", "Mean", "Mul", "Sub", "Sum"])
# Operators by which scores become one: a bias, or the average of several classifiers.
JOINS_SCORES = frozenset(["Add", "Concat", "Mean", "Sum"])
# Operators that may stand between scores, read as their only data, and the output.
AFTER_SCORES = LAYOUT_OPS | frozenset(
    [
        "ArgMax",
        "AveragePool",
        "Clip",
        "Div",
        "Exp",
        "GlobalAveragePool",
        "Log",
        "LogSoftmax",
        "Mul",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Sigmoid",
        "Softmax",
        "TopK",
    ]
)
ATTENTION = frozenset(["Attention", "MultiHeadAttention", "Softmax"])


def plain_operator(op_type: str) -> str:
    """The operator that one on integers, or on channels last, stands for; or itself."""
    if op_type == "QGemm":
        return "Gemm"
    return op_type.removeprefix("QLinear").removeprefix("Nhwc")
