"""ONNX operators grouped by their effect on activations."""

from __future__ import annotations

# Operators that keep the values and at most rearrange them.
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
# Operators without spatial context: activations and normalisations.
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
# Operators that combine scores: a bias, or the average of several classifiers.
JOINS_SCORES = frozenset(["Add", "Concat", "Mean", "Sum"])
# Operators that may come between scores and the output, with one data input.
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
    """The standard operator of an integer or channels-last variant, or itself."""
    if op_type == "QGemm":
        return "Gemm"
    return op_type.removeprefix("QLinear").removeprefix("Nhwc")
