"""Detection of external data in the bytes of a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sk_cnncodes.graphs.wire_format import _TENSOR_FIELDS, has_external_data
from tests import networks


def outside() -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "outside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    return tensor


def _constant() -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["constant"], value=outside())


def _branch(graph: onnx.GraphProto) -> onnx.NodeProto:
    node = helper.make_node("If", ["condition"], ["x"], then_branch=graph)
    return helper.make_node(
        "If", ["condition"], ["x"], then_branch=helper.make_graph([node], "b", [], [])
    )


def _sparse(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[9])
    sparse.values.CopyFrom(outside())


def _function(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "f", [], ["y"], [_constant()], opsets)
    model.functions.append(function)


LOCATIONS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "initializer": lambda m: m.graph.initializer.append(outside()),
    "sparse initializer": _sparse,
    "constant": lambda m: m.graph.node.append(_constant()),
    "list of tensors": lambda m: m.graph.node.append(
        helper.make_node("Own", [], ["x"], domain="own", tensors=[outside()])
    ),
    "initializer of a body in a body": lambda m: m.graph.node.append(
        _branch(helper.make_graph([], "body", [], [], [outside()]))
    ),
    "constant of a body in a body": lambda m: m.graph.node.append(
        _branch(helper.make_graph([_constant()], "body", [], []))
    ),
    "function": _function,
    "training": lambda m: m.training_info.add().algorithm.initializer.append(outside()),
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_external_data_is_found_everywhere(location: str) -> None:
    model = networks.squeezenet()
    assert not has_external_data(model.SerializeToString())
    LOCATIONS[location](model)
    assert has_external_data(model.SerializeToString())


def test_an_external_location_without_data() -> None:
    model = networks.squeezenet()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    assert has_external_data(model.SerializeToString())
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    assert not has_external_data(model.SerializeToString())


def test_a_truncated_tensor() -> None:
    model = networks.squeezenet()
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-1]
    with pytest.raises(ValueError, match=r"has (\d+) bytes instead of"):
        has_external_data(model.SerializeToString())
    tensor.dims[0] = -1
    with pytest.raises(ValueError, match="bytes instead of"):
        has_external_data(model.SerializeToString())


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 5)])
def test_whole_tensors(dtype: str, shape: tuple[int, ...]) -> None:
    model = networks.squeezenet()
    array = np.zeros(shape, dtype)
    model.graph.initializer.append(numpy_helper.from_array(array, "whole"))
    assert not has_external_data(model.SerializeToString())


def test_all_paths_to_a_tensor_are_known() -> None:
    """Compares with the definition in the package onnx."""
    messages = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name

    def leads(name: str, seen: tuple[str, ...] = ()) -> bool:
        held = [f.message_type for f in messages[name].fields if f.message_type]
        return name == "TensorProto" or any(
            leads(m.name, (*seen, name))
            for m in held
            if m.name in messages and m.name not in (*seen, name)
        )

    found = {}
    for name in _TENSOR_FIELDS:
        fields = [f for f in messages[name].fields if f.message_type]
        fields = [f for f in fields if f.message_type.name in messages]
        found[name] = {
            f.number: f.message_type.name for f in fields if leads(f.message_type.name)
        }
    assert found == _TENSOR_FIELDS
    numbers = {f.name: f.number for f in messages["TensorProto"].fields}
    assert numbers["external_data"] == 13 and numbers["data_location"] == 14


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\x3a\x05\x0a", "ends inside a field"),
        (b"\x3a", "ends inside a number"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "number is not terminated"),
        (b"\x3b\x3c", "unknown wire type 3"),
    ],
)
def test_malformed_bytes(content: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        has_external_data(content)
