"""Small ONNX networks with random weights, as exporters write them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 32


class Net:
    """Builds a network node by node; methods return the name of a tensor."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, name: str | None = None, gain: float = 1) -> str:
        fan_in = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 1
        deviation = gain * np.sqrt(2 / fan_in)
        value = self.rng.normal(0, deviation, shape).astype(np.float32)
        return self.constant(value, name)

    def constant(self, value: np.ndarray, name: str | None = None) -> str:
        name = name or f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, op_type: str, *inputs: str, out: str | None = None, **attrs) -> str:
        out = out or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [out], **attrs))
        return out

    def conv(self, x: str, c_in: int, c_out: int, kernel: int = 3, **attrs) -> str:
        """Convolution; `gain` multiplies its kernel."""
        pad = kernel // 2
        out, gain = attrs.pop("out", None), attrs.pop("gain", 1)
        kernel_name = self.weight(c_out, c_in, kernel, kernel, gain=gain)
        bias = self.weight(c_out)
        attrs |= {"pads": [pad] * 4, "kernel_shape": [kernel] * 2}
        return self.op("Conv", x, kernel_name, bias, out=out, **attrs)

    def conv_depthwise(self, x: str, channels: int) -> str:
        """3x3 depthwise convolution with a stride of 2."""
        kernel, bias = self.weight(channels, 1, 3, 3), self.weight(channels)
        attrs = {"pads": [1] * 4, "kernel_shape": [3, 3], "strides": [2, 2]}
        return self.op("Conv", x, kernel, bias, group=channels, **attrs)

    def dense(self, x: str, c_in: int, c_out: int, out: str | None = None) -> str:
        matrix = self.constant(
            self.rng.normal(0, np.sqrt(2 / c_in), (c_in, c_out)).astype(np.float32)
        )
        return self.op("Gemm", x, matrix, self.weight(c_out), out=out)

    def linear(self, x: str, c_in: int, c_out: int) -> str:
        matrix = self.rng.normal(0, np.sqrt(1 / c_in), (c_in, c_out))
        product = self.op("MatMul", x, self.constant(matrix.astype(np.float32)))
        return self.op("Add", product, self.weight(c_out))

    def model(
        self,
        output: str | list[str],
        *,
        batch: int | str = "N",
        shape: tuple[int | str, ...] = (3, SIDE, SIDE),
        opset: int = 17,
        element: int = TensorProto.FLOAT,
    ) -> onnx.ModelProto:
        outputs = [output] if isinstance(output, str) else output
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("data", element, [batch, *shape])],
            [helper.make_tensor_value_info(o, element, None) for o in outputs],
            self.weights,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )


def alexnet() -> onnx.ModelProto:
    """Convolutions and poolings, then fully connected layers fc6, fc7, fc8."""
    net = Net()
    x = net.op("Relu", net.conv("data", 3, 8), out="relu1")
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], out="pool1")
    x = net.op("Relu", net.conv(x, 8, 12), out="relu2")
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], out="pool2")
    x = net.op("Relu", net.conv(x, 12, 16), out="relu3")
    x = net.op("Relu", net.conv(x, 16, 16), out="relu4")
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], out="pool5")
    x = net.op("Flatten", x, axis=1)
    x = net.op("Dropout", net.op("Relu", net.dense(x, 256, 40), out="fc6"))
    x = net.op("Dropout", net.op("Relu", net.dense(x, 40, 24), out="fc7"))
    x = net.op("Softmax", net.dense(x, 24, 10, out="fc8"), axis=1, out="prob")
    return net.model(x)


def resnet(**options) -> onnx.ModelProto:
    """A stem and four residual blocks in two stages; options go to `Net.model`."""
    net = Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="stem")
    width = 8
    for number, (out, stride) in enumerate([(8, 1), (8, 1), (16, 2), (16, 1)]):
        y = net.op("Relu", net.conv(x, width, out, strides=[stride, stride]))
        y = net.conv(y, out, out)
        short = x if out == width else net.conv(x, width, out, 1, strides=[2, 2])
        x = net.op("Relu", net.op("Add", y, short), out=f"block{number}")
        width = out
    x = net.op("GlobalAveragePool", x, out="pooled")
    batch = options.get("batch", "N")
    if options.pop("reshape", False):
        first = batch if isinstance(batch, int) else -1
        x = net.op("Reshape", x, net.constant(np.array([first, 16], np.int64)))
    else:
        x = net.op("Flatten", x, axis=1)
    return net.model(net.dense(x, 16, 10, out="scores"), **options)


def squeezenet() -> onnx.ModelProto:
    """Fire modules and a classifier that is a 1x1 convolution."""
    net = Net()
    x = net.op("Relu", net.conv("data", 3, 16, strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], out="pool1")
    for number, c_in in enumerate([16, 32]):
        squeezed = net.op("Relu", net.conv(x, c_in, 8, 1))
        left = net.op("Relu", net.conv(squeezed, 8, 16, 1))
        right = net.op("Relu", net.conv(squeezed, 8, 16, 3))
        x = net.op("Concat", left, right, axis=1, out=f"fire{number}")
    x = net.op("Relu", net.conv(x, 32, 10, 1, out="conv10"))
    x = net.op("GlobalAveragePool", x)
    return net.model(net.op("Flatten", x, axis=1, out="scores"))


def vit(baked: bool = False, registers: int = 0) -> onnx.ModelProto:
    """Patches, a class token, two transformer blocks; the head reads the class token.

    With `baked`, shapes contain a batch size of 1, as tracing exporters write them.
    Registers are put between the class token and the patches, as DINOv2 has them.
    """
    net = Net()
    d, tokens = 16, 17

    def numbers(*values: int) -> str:
        return net.constant(np.array(values, np.int64))

    kernel, bias = net.weight(d, 3, 8, 8), net.weight(d)
    x = net.op("Conv", "data", kernel, bias, kernel_shape=[8, 8], strides=[8, 8])
    x = net.op("Reshape", x, numbers(1 if baked else 0, d, 16))
    x = net.op("Transpose", x, perm=[0, 2, 1])
    token = net.weight(1, 1, d)
    if not baked:
        size = net.op("Shape", "data")
        size = net.op("Gather", size, numbers(0), axis=0)
        size = net.op("Concat", size, numbers(1, d), axis=0)
        token = net.op("Expand", token, size)
    x = net.op("Concat", token, x, axis=1)
    x = net.op("Add", x, net.weight(1, tokens, d), out="embedded")
    if registers:
        first = net.op("Slice", x, numbers(0), numbers(1), numbers(1))
        rest = net.op("Slice", x, numbers(1), numbers(tokens), numbers(1))
        size = net.op("Gather", net.op("Shape", "data"), numbers(0), axis=0)
        size = net.op("Concat", size, numbers(registers, d), axis=0)
        added = net.op("Expand", net.weight(1, registers, d), size)
        x = net.op("Concat", first, added, rest, axis=1)

    def norm(x: str, out: str | None = None) -> str:
        scale = net.constant(np.ones(d, np.float32))
        return net.op("LayerNormalization", x, scale, net.weight(d), axis=-1, out=out)

    for number in range(2):
        y = norm(x)
        q, k, v = (net.linear(y, d, d) for _ in range(3))
        product = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
        product = net.op("MatMul", net.op("Softmax", product, axis=-1), v)
        x = net.op("Add", x, net.linear(product, d, d), out=f"attention{number}")
        y = net.op("Relu", net.linear(norm(x), d, 2 * d))
        x = net.op("Add", x, net.linear(y, 2 * d, d), out=f"block{number}")
    x = norm(x, out="normed")
    x = net.op("Gather", x, net.constant(np.array(0, np.int64)), axis=1)
    return net.model(net.dense(x, d, 10, out="scores"), batch=1 if baked else "N")


def nhwc() -> onnx.ModelProto:
    """A network with an NHWC input and features transposed to NHWC."""
    net = Net()
    x = net.op("Transpose", "data", perm=[0, 3, 1, 2])
    x = net.op("Relu", net.conv(x, 3, 8, strides=[2, 2]))
    y = net.op("Relu", net.conv(x, 8, 8))
    x = net.op("Add", x, net.conv(y, 8, 8))
    x = net.op("Transpose", x, perm=[0, 2, 3, 1], out="features")
    x = net.op("ReduceMean", x, axes=[1, 2], keepdims=0)
    return net.model(net.dense(x, 8, 10, out="scores"), shape=(SIDE, SIDE, 3))


def with_if() -> onnx.ModelProto:
    """An If whose bodies read a weight and a tensor of the graph around them."""
    net = Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="first")
    captured = net.constant(np.full((1, 8, 1, 1), 2, np.float32), "captured")

    def body(op_type: str) -> onnx.GraphProto:
        node = helper.make_node(op_type, ["first", captured], ["branch"])
        out = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
        return helper.make_graph([node], op_type, [], [out])

    condition = net.constant(np.array(True))
    x = net.op(
        "If", condition, then_branch=body("Mul"), else_branch=body("Add"), out="chosen"
    )
    net.weight(64, 64, name="unused_weight")
    x = net.op("Relu", net.conv(x, 8, 8), out="second")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    return net.model(net.dense(x, 8, 10, out="scores"))


def with_function() -> onnx.ModelProto:
    """A block that is a model-local function."""
    net = Net()
    x = net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="first")
    x = net.op("Doubled", x, domain="local", out="doubled")
    x = net.op("Relu", net.conv(x, 8, 8), out="second")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    model = net.model(net.dense(x, 8, 10, out="scores"))
    imports = [helper.make_opsetid("", 17)]
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    function = helper.make_function("local", "Doubled", ["x"], ["y"], nodes, imports)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def quantised(
    model: onnx.ModelProto, data: np.ndarray, *, operators: bool = False
) -> onnx.ModelProto:
    """Quantise a model to 8 bits with ONNX Runtime's tool, calibrated on `data`.

    In QDQ format, or with `operators` such as QLinearConv.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        rows = iter(data)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"data": row[None]}

    formats = quantization.QuantFormat
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "quantised.onnx")
        onnx.save(model, source)
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=formats.QOperator if operators else formats.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
        return onnx.load(target)


def save(model: onnx.ModelProto, path: Path, **external) -> str:
    """Write a model; return the path as users pass it."""
    onnx.save(model, path, **external)
    return str(path)
