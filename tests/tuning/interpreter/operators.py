"""Compares operators on torch tensors with ONNX Runtime, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from sk_cnncodes.tuning.interpreter.module import OPERATORS
from sk_cnncodes.tuning.interpreter.node import TailNode, read_node

# The IR version is that of the oldest supported onnxruntime.
IR_VERSION = 10
ort.set_default_logger_severity(4)


def one_node(
    operator: str, inputs: list[np.ndarray | None], opset: int, outputs: int, **attrs
) -> onnx.ModelProto:
    """A network of one node whose inputs are given."""
    domain, _, op_type = operator.rpartition(".")
    while inputs[-1] is None:  # what is left out at the end is not named
        inputs = inputs[:-1]
    names = ["" if value is None else f"x{i}" for i, value in enumerate(inputs)]
    node = helper.make_node(
        op_type, names, [f"y{i}" for i in range(outputs)], domain=domain, **attrs
    )
    given = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in zip(names, inputs, strict=True)
        if value is not None
    ]
    graph = helper.make_graph(
        [node], "one", given, [onnx.ValueInfoProto(name=n) for n in node.output]
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1)] * bool(domain)
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def by_runtime(
    model: onnx.ModelProto, inputs: list[np.ndarray | None]
) -> list[np.ndarray]:
    session = ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    named = {f"x{i}": value for i, value in enumerate(inputs) if value is not None}
    return session.run(None, named)


def by_torch(node: TailNode, inputs: list[Any]) -> list[torch.Tensor]:
    found = OPERATORS[node.operator](node, *inputs)
    return [*found] if isinstance(found, tuple) else [found]


def check_operator(
    operator: str,
    *inputs: np.ndarray | None,
    opset: int = 17,
    outputs: int = 1,
    gradients: bool = True,
    **attrs: Any,
) -> None:
    """The same values as ONNX Runtime, and gradients as finite differences give."""
    arrays = [
        x if x is None else np.ascontiguousarray(x).reshape(x.shape) for x in inputs
    ]
    model = one_node(operator, arrays, opset, outputs, **attrs)
    expected = by_runtime(model, arrays)
    node = read_node(model.graph.node[0], opset)
    tensors = [None if x is None else torch.from_numpy(x.copy()) for x in arrays]
    found = by_torch(node, tensors)
    for value, reference in zip(found, expected, strict=False):
        assert tuple(value.shape) == reference.shape
        assert value.dtype == torch.from_numpy(reference).dtype
        scale = np.abs(reference).max(initial=1e-6) if reference.dtype != bool else 1
        np.testing.assert_allclose(
            value.numpy(), reference, rtol=1e-5, atol=float(scale) * 3e-6
        )
    if gradients:
        check_gradients(node, tensors)


def check_gradients(node: TailNode, tensors: list[torch.Tensor | None]) -> None:
    floats = [
        i for i, x in enumerate(tensors) if x is not None and x.is_floating_point()
    ]
    given = [tensors[i].double().requires_grad_() for i in floats]

    def compute(*values: torch.Tensor) -> torch.Tensor:
        inputs: list[Any] = [*tensors]
        for i, value in zip(floats, values, strict=True):
            inputs[i] = value
        return by_torch(node, inputs)[0]

    assert torch.autograd.gradcheck(compute, given, fast_mode=True)


def array(*shape: int, seed: int = 0, low: float = -2, high: float = 2) -> np.ndarray:
    """Numbers without ties, so that no derivative is at a corner."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    values = np.linspace(low, high, count + 2)[1:-1] + rng.uniform(0, 1e-3)
    return rng.permutation(values).reshape(shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def tensor_of(value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(value)
