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
# Operators that compute the length of a vector, by which it is divided.
LENGTHS = frozenset(["Expand", "ReduceL2", "ReduceSum", "ReduceSumSquare"])
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
# Operators of ai.onnx.ml that compute scores from features.
ML_CLASSIFIERS = frozenset(
    [
        "LinearClassifier",
        "LinearRegressor",
        "SVMClassifier",
        "SVMRegressor",
        "TreeEnsemble",
        "TreeEnsembleClassifier",
        "TreeEnsembleRegressor",
    ]
)
# Operators that make sequences or maps of scores.
CONTAINERS = frozenset(
    [
        "ConcatFromSequence",
        "Optional",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceInsert",
        "SplitToSequence",
        "ZipMap",
    ]
)
# Operators that combine scores: a bias, or the average of several classifiers.
JOINS_SCORES = CONTAINERS | frozenset(
    ["Add", "Concat", "Max", "Mean", "Min", "Sub", "Sum"]
)
# Operators that are applied to scores and never to the features of a file's output.
ONLY_AFTER_SCORES = CONTAINERS | frozenset(
    [
        "ArgMax",
        "ArgMin",
        "ArrayFeatureExtractor",
        "Equal",
        "Exp",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "Hardmax",
        "LabelEncoder",
        "Less",
        "LessOrEqual",
        "LogSoftmax",
        "OneHot",
        "Sigmoid",
        "Softmax",
        "TopK",
    ]
)
# Operators that end features as often as scores.
AFTER_SCORES_OR_FEATURES = frozenset(
    [
        "Abs",
        "BatchNormalization",
        "Celu",
        "Clip",
        "Elu",
        "LeakyRelu",
        "Max",
        "Min",
        "PRelu",
        "Pow",
        "Relu",
        "Selu",
        "Softplus",
        "Softsign",
        "Tanh",
        "ThresholdedRelu",
        "Where",
    ]
)
# Operators that may come between scores and the output, with one data input.
AFTER_SCORES = (
    LAYOUT_OPS
    | ONLY_AFTER_SCORES
    | AFTER_SCORES_OR_FEATURES
    | frozenset(
        [
            "AveragePool",
            "Ceil",
            "CumSum",
            "Div",
            "Erf",
            "Expand",
            "Floor",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Log",
            "Mul",
            "Neg",
            "Normalizer",
            "Not",
            "Pad",
            "Reciprocal",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
            "Round",
            "Scaler",
            "Sign",
            "Sqrt",
            "Tile",
        ]
    )
)
# Normalisations with constant statistics, which a classifier may begin with.
FIXED_NORMALISATIONS = frozenset(["BatchNormalization", "Scaler"])
ATTENTION = frozenset(["Attention", "MultiHeadAttention", "Softmax"])


def plain_operator(op_type: str) -> str:
    """The standard operator of an integer or channels-last variant, or itself."""
    if op_type == "QGemm":
        return "Gemm"
    return op_type.removeprefix("QLinear").removeprefix("Nhwc")
