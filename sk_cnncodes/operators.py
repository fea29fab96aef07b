"""Operators by what they do to activations."""

from __future__ import annotations

# Operators that keep every value and at most move it.
MOVES = frozenset(
    [
        "Cast",
        "Dropout",
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
# Operators without a view of neighbours: activations and normalisations.
POINTWISE = MOVES | frozenset(
    [
        "Abs",
        "Add",
        "BatchNormalization",
        "Celu",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "InstanceNormalization",
        "LayerNormalization",
        "LRN",
        "LeakyRelu",
        "Log",
        "LpNormalization",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "PRelu",
        "Pow",
        "RMSNormalization",
        "Reciprocal",
        "ReduceMean",
        "Relu",
        "Selu",
        "Sigmoid",
        "SimplifiedLayerNormalization",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    ]
)
WEIGHTED = frozenset(
    [
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    ]
)
MERGES = frozenset(["Add", "Concat", "Max", "Mean", "Mul", "Sub", "Sum"])
ATTENTION = frozenset(["Attention", "MultiHeadAttention", "Softmax"])
