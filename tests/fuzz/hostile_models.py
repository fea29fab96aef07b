"""Crafted ONNX files: each gives correct codes, or a BackboneError that names it.

A case writes a model into a folder, beside a file of weights that no model may read.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sk_cnncodes import BackboneError, CNNCodeTransformer
from sk_cnncodes.codes.sessions import SESSIONS
from tests import networks
from tests.fuzz.models import PLAIN, images

SECRET = "secret.bin"  # beside the model's folder: 400 kB of float32


def head(net: networks.Net, x: str) -> str:
    """Pooling and classifier after a feature map of eight channels."""
    return net.dense(net.op("Flatten", net.op("GlobalAveragePool", x)), 8, 10)


def stem(net: networks.Net) -> str:
    return net.op("Relu", net.conv("data", 3, 8, strides=[2, 2]), out="first")


def around(op_type: str, *inputs: str, **attributes) -> onnx.ModelProto:
    """A small network with one more operator between two convolutions."""
    net = networks.Net()
    x = net.op(op_type, stem(net), *inputs, out="middle", **attributes)
    return net.model(head(net, net.op("Relu", net.conv(x, 8, 8))))


def with_constant(op_type: str, values: list[int], **attributes) -> onnx.ModelProto:
    """Like `around`, with a constant of integers as an input of the operator."""
    model = around(op_type, "numbers", **attributes)
    array = np.array(values, np.int64)
    model.graph.initializer.append(numpy_helper.from_array(array, "numbers"))
    return model


def made_from(op_type: str, values: list[int], **attributes) -> onnx.ModelProto:
    """A network that adds a tensor made from constant numbers to its activations."""
    net = networks.Net()
    x = stem(net)
    numbers = [net.constant(np.array(values, np.int64))]
    if op_type == "Range":
        numbers = [net.constant(np.array(v, np.float32)) for v in values]
    made = net.op(op_type, *numbers, **attributes)
    x = net.op("Add", x, net.op("ReduceSum", made, keepdims=0), out="middle")
    return net.model(head(net, net.op("Relu", net.conv(x, 8, 8))), opset=13)


def looped(rounds: int | None, nested: int = 0) -> onnx.ModelProto:
    """A Loop that doubles its activations; without a bound if `rounds` is None."""

    def body(depth: int) -> onnx.GraphProto:
        inner = [helper.make_node("Add", [f"x{depth}"] * 2, [f"y{depth}"])]
        own = []
        if depth < nested:
            names = ["bound", "", f"x{depth}"]
            inner = [
                helper.make_node("Loop", names, [f"y{depth}"], body=body(depth + 1))
            ]
            own = [numpy_helper.from_array(np.array(rounds or 2, np.int64), "bound")]
        inner.append(helper.make_node("Identity", [f"go{depth}"], [f"on{depth}"]))
        info = helper.make_tensor_value_info
        return helper.make_graph(
            inner,
            "body",
            [
                info(f"i{depth}", TensorProto.INT64, []),
                info(f"go{depth}", TensorProto.BOOL, []),
                info(f"x{depth}", TensorProto.FLOAT, None),
            ],
            [
                info(f"on{depth}", TensorProto.BOOL, []),
                info(f"y{depth}", TensorProto.FLOAT, None),
            ],
            own,
        )

    net = networks.Net()
    x = stem(net)
    bound = "" if rounds is None else net.constant(np.array(rounds, np.int64))
    go = net.constant(np.array(True))
    x = net.op("Loop", bound, go, x, body=body(0), out="middle")
    return net.model(head(net, net.op("Relu", net.conv(x, 8, 8))))


def recursive(*called: str) -> onnx.ModelProto:
    """Model-local functions, each calling the one named at its position."""
    model = networks.with_function()
    del model.functions[:]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for number, name in enumerate(called):
        nodes = [helper.make_node(name, ["x"], ["y"], domain="local")]
        model.functions.append(
            helper.make_function(
                "local",
                f"F{number}" if number else "Doubled",
                ["x"],
                ["y"],
                nodes,
                imports,
            )
        )
    return model


def multiplying(depth: int) -> onnx.ModelProto:
    """Functions that each call the next one twice: 2 ** `depth` nodes."""
    model = networks.with_function()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    del model.functions[:]
    for number in range(depth):
        name = "Doubled" if number == 0 else f"F{number}"
        inner, domain = f"F{number + 1}", "local"
        if number == depth - 1:
            inner, domain = "Relu", ""
        nodes = [
            helper.make_node(inner, ["x"], ["m"], domain=domain),
            helper.make_node(inner, ["m"], ["y"], domain=domain),
        ]
        model.functions.append(
            helper.make_function("local", name, ["x"], ["y"], nodes, imports)
        )
    return model


def if_in_ifs(depth: int) -> onnx.ModelProto:
    net = networks.Net()
    x, condition = stem(net), net.constant(np.array(True))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    leaf = helper.make_graph(
        [helper.make_node("Identity", ["first"], ["y"])], "b", [], [out]
    )
    body = leaf
    for _ in range(depth):
        node = helper.make_node(
            "If", [condition], ["y"], then_branch=body, else_branch=leaf
        )
        body = helper.make_graph([node], "b", [], [out])
    x = net.op("If", condition, then_branch=body, else_branch=leaf, out="middle")
    return net.model(head(net, net.op("Relu", net.conv(x, 8, 8))))


def deep_bodies(depth: int) -> bytes:
    """Nested bodies, as bytes: protobuf would not serialise them."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))  # node, attribute, graph
    return networks.resnet().SerializeToString() + field(7, graph)


def chain(length: int) -> onnx.ModelProto:
    net = networks.Net()
    x = stem(net)
    for _ in range(length):
        x = net.op("Relu", x)
    return net.model(head(net, x))


def ladder(length: int) -> onnx.ModelProto:
    """Residual sums without weights, one after another."""
    net = networks.Net()
    x = stem(net)
    for _ in range(length):
        x = net.op("Add", x, net.op("Sigmoid", x))
    return net.model(head(net, x))


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = networks.resnet()
    change(model)
    return model


def weight(model: onnx.ModelProto) -> onnx.TensorProto:
    """The kernel of the first convolution."""
    return model.graph.initializer[0]


def put_outside(tensor: onnx.TensorProto, location: str, **more: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)


def external(location: str, **more: str) -> onnx.ModelProto:
    size = str(8 * 3 * 3 * 3 * 4)
    more = {"length": size, **more}
    return changed(lambda m: put_outside(weight(m), location, **more))


def external_in_body(location: str) -> onnx.ModelProto:
    """External data of an initializer, and of a constant, in the body of an If."""
    model = networks.with_if()
    (node,) = [n for n in model.graph.node if n.op_type == "If"]
    body = node.attribute[0].g
    tensor = numpy_helper.from_array(np.ones((1, 8, 1, 1), np.float32), "inner")
    put_outside(tensor, location, length="32")
    body.initializer.append(tensor)
    body.node[0].input[1] = "inner"
    return model


def external_constant(location: str) -> onnx.ModelProto:
    net = networks.Net()
    tensor = numpy_helper.from_array(np.ones((1, 8, 1, 1), np.float32), "inner")
    put_outside(tensor, location, length="32")
    constant = net.op("Constant", value=tensor)
    x = net.op("Mul", stem(net), constant, out="middle")
    return net.model(head(net, net.op("Relu", net.conv(x, 8, 8))))


def external_sparse(location: str) -> onnx.ModelProto:
    net = networks.Net()
    values = numpy_helper.from_array(np.ones(3, np.float32), "sparse")
    put_outside(values, location, length="12")
    indices = numpy_helper.from_array(np.arange(3, dtype=np.int64), "indices")
    model = net.model(head(net, net.op("Mul", stem(net), "sparse")))
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, indices, [16])
    )
    return model


def two_opsets(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("", 9))


def zero(attribute: str) -> onnx.ModelProto:
    """Set an attribute to zero; ONNX Runtime 1.23 divided by it and crashed."""
    model = networks.resnet()
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    kept = [a for a in node.attribute if a.name != attribute]
    value = 0 if attribute == "group" else [0, 2]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])
    return model


def shorten_weight(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]


def shorten_bias(model: onnx.ModelProto) -> None:
    """Shorten the bias of a convolution, which ONNX Runtime 1.23 overread."""
    (node,) = [node for node in model.graph.node if node.op_type == "Conv"][:1]
    (bias,) = [t for t in model.graph.initializer if t.name == node.input[2]]
    bias.dims[0] -= 1
    bias.raw_data = bias.raw_data[:-4]


def scalar_bias(model: onnx.ModelProto) -> None:
    """A scalar bias, overread before ONNX Runtime 1.30 if the weight is computed."""
    (node,) = [node for node in model.graph.node if node.op_type == "Conv"][:1]
    same = helper.make_node("Identity", [node.input[1]], ["same_weight"])
    model.graph.node.insert(0, same)
    node.input[1] = "same_weight"
    (bias,) = [t for t in model.graph.initializer if t.name == node.input[2]]
    bias.CopyFrom(numpy_helper.from_array(np.float32(1), bias.name))


def self_feeding(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = model.graph.node[3].output[0]


def bad_name(content: bytes) -> bytes:
    return content.replace(b"block2", b"\xff\xfe\xfd\xfcxx")


def with_producer(name: str) -> onnx.ModelProto:
    return changed(lambda model: setattr(model, "producer_name", name))


def random_in_body() -> onnx.ModelProto:
    model = networks.with_if()
    (chooser,) = [node for node in model.graph.node if node.op_type == "If"]
    for attribute in chooser.attribute:
        (node,) = attribute.g.node
        node.op_type = "Bernoulli"
        del node.input[1:]
    return model


Made = onnx.ModelProto | bytes
CASES: dict[str, tuple[Callable[[], Made], str]] = {
    # External data outside the folder of the model.
    "parent": (lambda: external(f"../{SECRET}"), "errors"),
    "parent_inside": (lambda: external(f"sub/../../{SECRET}"), "errors"),
    "absolute": (lambda: external("/ABSOLUTE"), "errors"),
    "symlink": (lambda: external("soft_link"), "errors"),
    "hard_link": (lambda: external("hard_link"), "errors"),
    "linked_folder": (lambda: external(f"linked_folder/{SECRET}"), "errors"),
    "pipe": (lambda: external("pipe"), "errors"),
    "folder": (lambda: external("sub"), "errors"),
    "missing": (lambda: external("missing"), "errors"),
    "nul": (lambda: external("a\0b"), "errors"),
    "nameless": (lambda: external(""), "errors"),
    "backslash": (lambda: external(f"..\\{SECRET}"), "errors"),
    "before_start": (lambda: external("inside.bin", offset="-4"), "errors"),
    "after_end": (lambda: external("inside.bin", offset="399999"), "errors"),
    "too_long": (lambda: external("inside.bin", length=str(2**62)), "errors"),
    "no_number": (lambda: external("inside.bin", offset="x"), "errors"),
    "body_parent": (lambda: external_in_body(f"../{SECRET}"), "errors"),
    "body_absolute": (lambda: external_in_body("/ABSOLUTE"), "errors"),
    "body_current": (lambda: external_in_body("current.bin"), "errors"),
    "constant_parent": (lambda: external_constant(f"../{SECRET}"), "errors"),
    "constant_absolute": (lambda: external_constant("/ABSOLUTE"), "errors"),
    "sparse_parent": (lambda: external_sparse(f"../{SECRET}"), "errors"),
    "inside": (lambda: external("inside.bin"), "codes"),
    "inside_sub": (lambda: external("sub/inside.bin", offset="64"), "codes"),
    "body_inside": (lambda: external_in_body("inside.bin"), "codes"),
    "constant_inside": (lambda: external_constant("inside.bin"), "codes"),
    # Invalid graphs.
    "empty": (lambda: b"", "errors"),
    "empty_graph": (lambda: changed(lambda m: m.graph.ClearField("node")), "errors"),
    "no_graph": (lambda: changed(lambda m: m.ClearField("graph")), "errors"),
    "no_output": (lambda: changed(lambda m: m.graph.ClearField("output")), "errors"),
    "no_input": (lambda: changed(lambda m: m.graph.ClearField("input")), "errors"),
    "no_weights": (
        lambda: changed(lambda m: m.graph.ClearField("initializer")),
        "errors",
    ),
    "no_weight": (lambda: changed(lambda m: m.graph.initializer.pop(0)), "errors"),
    "cycle": (lambda: changed(self_feeding), "errors"),
    "short_weight": (lambda: changed(shorten_weight), "errors"),
    "short_bias": (lambda: changed(shorten_bias), "errors"),
    "scalar_bias": (lambda: changed(scalar_bias), "errors"),
    "zero_strides": (lambda: zero("strides"), "errors"),
    "zero_dilations": (lambda: zero("dilations"), "errors"),
    "zero_window": (lambda: zero("kernel_shape"), "errors"),
    "zero_group": (lambda: zero("group"), "errors"),
    "invalid_utf8_name": (
        lambda: bad_name(networks.resnet().SerializeToString()),
        "errors",
    ),
    "invalid_utf8_producer": (
        lambda: bad_name(with_producer("block2").SerializeToString()),
        "errors",
    ),
    "own_format": (lambda: with_producer("ORTM" * 9), "codes"),
    # Implausible numbers.
    "negative": (
        lambda: changed(lambda m: weight(m).dims.__setitem__(0, -8)),
        "errors",
    ),
    "vast": (lambda: changed(lambda m: weight(m).dims.__setitem__(0, 2**40)), "errors"),
    "overflow": (
        lambda: changed(lambda m: weight(m).dims.extend([2**32, 2**32])),
        "errors",
    ),
    "zero": (lambda: changed(lambda m: weight(m).dims.__setitem__(0, 0)), "errors"),
    "strings": (
        lambda: changed(lambda m: setattr(weight(m), "data_type", 8)),
        "errors",
    ),
    "no_type": (
        lambda: changed(lambda m: setattr(weight(m), "data_type", 0)),
        "errors",
    ),
    "unknown_type": (
        lambda: changed(lambda m: setattr(weight(m), "data_type", 999)),
        "errors",
    ),
    "vast_expand": (lambda: with_constant("Expand", [1, 8, 2**18, 2**18]), "errors"),
    "vast_tile": (lambda: with_constant("Tile", [1, 1, 2**17, 2**17]), "errors"),
    "vast_pad": (
        lambda: with_constant("Pad", [0, 0, 0, 0, 0, 0, 2**20, 2**20]),
        "errors",
    ),
    "vast_constant": (lambda: made_from("ConstantOfShape", [2**34]), "errors"),
    "vast_range": (lambda: made_from("Range", [0, 2**36, 1]), "errors"),
    "vast_kernel": (lambda: around("MaxPool", kernel_shape=[2**31, 2**31]), "errors"),
    "vast_pads": (
        lambda: around("MaxPool", kernel_shape=[2, 2], pads=[1, 1, 2**30, 2**30]),
        "errors",
    ),
    "vast_batch": (lambda: networks.resnet(batch=2**16), "errors"),
    # Operators and operator sets.
    "random": (lambda: around("RandomNormalLike"), "errors"),
    "random_in_body": (random_in_body, "errors"),
    "custom": (lambda: around("Custom", domain="custom.operators"), "errors"),
    "contrib": (lambda: around("NoSuchOperator", domain="com.microsoft"), "errors"),
    "unknown_opset": (lambda: networks.resnet(opset=999), "errors"),
    "no_opset": (lambda: changed(lambda m: m.ClearField("opset_import")), "errors"),
    "two_opsets": (lambda: changed(two_opsets), "codes"),
    # Bodies, functions and loops.
    "if": (networks.with_if, "codes"),
    "function": (networks.with_function, "codes"),
    "recursive_function": (lambda: recursive("Doubled"), "errors"),
    "cyclic_functions": (lambda: recursive("F1", "F2", "Doubled"), "errors"),
    "undefined_function": (lambda: recursive("F9"), "errors"),
    "multiplying_functions": (lambda: multiplying(40), "errors"),
    "deep_bodies": (lambda: deep_bodies(5_000), "errors"),
    "if_in_ifs": (lambda: if_in_ifs(10), "codes"),
    "loop": (lambda: looped(3), "codes"),
    "endless_loop": (lambda: looped(None), "errors"),
    "long_loop": (lambda: looped(2**62), "errors"),
    "loops_in_loops": (lambda: looped(1000, nested=3), "errors"),
    # Sizes of graphs.
    "long_chain": (lambda: chain(4_000), "codes"),
    "longer_chain": (lambda: chain(60_000), "errors"),
    "long_ladder": (lambda: ladder(1_500), "codes"),
}
NAMES = list(CASES)


def check(case: int) -> str:
    """Fit and transform with the file of a case; the secret file must not matter."""
    name = NAMES[case]
    make, expected = CASES[name]
    made = make()
    results = [_codes(made, secret) for secret in (1.0, -3.0)]
    if isinstance(results[0], str):
        assert expected == "errors", f"{name}: {results[0]}"
        assert results[0] == results[1]
        return "errors"
    assert expected == "codes", f"{name} should be refused"
    assert np.array_equal(results[0], results[1]), "a file outside was read"
    return "codes"


def _codes(made: Made, secret: float) -> np.ndarray | str:
    SESSIONS.clear()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "model")
        _write_files(folder, secret)
        content = made if isinstance(made, bytes) else made.SerializeToString()
        absolute = str(folder.parent / SECRET).encode()
        if b"/ABSOLUTE" in content:
            model = onnx.load_from_string(content)
            _replace(model.graph, absolute.decode())
            content = model.SerializeToString()
        (folder / "net.onnx").write_bytes(content)
        codes = CNNCodeTransformer(
            folder / "net.onnx", preprocessing=PLAIN, cache=None, device="cpu", n_jobs=1
        )
        try:
            return codes.fit_transform(images())
        except BackboneError as error:
            assert "net.onnx" in str(error), f"does not name the file: {error}"
            return str(error).replace(root, "")


def _replace(graph: onnx.GraphProto, path: str) -> None:
    for tensor in graph.initializer:
        for entry in tensor.external_data:
            if entry.value == "/ABSOLUTE":
                entry.value = path
    for node in graph.node:
        for attribute in node.attribute:
            for entry in attribute.t.external_data if attribute.HasField("t") else ():
                if entry.value == "/ABSOLUTE":
                    entry.value = path
            if attribute.HasField("g"):
                _replace(attribute.g, path)


def _write_files(folder: Path, secret: float) -> None:
    import os

    (folder / "sub").mkdir(parents=True)
    outside = folder.parent / SECRET
    outside.write_bytes(np.full(100_000, secret, np.float32).tobytes())
    inside = np.linspace(-1, 1, 100_000, dtype=np.float32).tobytes()
    (folder / "inside.bin").write_bytes(inside)
    (folder / "sub" / "inside.bin").write_bytes(inside)
    (folder / "soft_link").symlink_to(outside)
    (folder / "linked_folder").symlink_to(folder.parent)
    (folder / "hard_link").hardlink_to(outside)
    os.mkfifo(folder / "pipe")


if __name__ == "__main__":
    print(check(NAMES.index(sys.argv[1])))
