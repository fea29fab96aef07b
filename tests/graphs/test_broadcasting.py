"""Networks of opset 6 broadcast along an axis, by an attribute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sk_cnncodes import BackboneError, CNNCodeTransformer, Preprocessing, load_backbone
from tests import networks


def network(
    op_type: str, axis: int | None, *, old: bool, batch: int | str = "N"
) -> onnx.ModelProto:
    """A bias or scale for each channel or column, as opset 6 or 17 writes it."""
    net = networks.Net()
    x = net.conv("data", 3, 8, strides=[2, 2])
    values = net.rng.uniform(0.5, 2, 16 if axis is None else 8).astype(np.float32)
    options = {"broadcast": 1} if old else {}
    if axis is not None and old:
        options["axis"] = axis
    elif axis is not None:
        values = values[:, None, None]
    x = net.op(op_type, x, net.constant(values), **options)
    x = net.op("Relu", x, out="stem")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    # Gemm broadcast by an attribute as well.
    last = {"broadcast": 1} if old else {}
    x = net.op("Gemm", x, net.weight(8, 10), net.weight(10), **last)
    model = net.model(x, opset=6 if old else 17, batch=batch)
    if old:  # initializers were inputs too
        for tensor in model.graph.initializer:
            value = helper.make_tensor_value_info(
                tensor.name, tensor.data_type, tensor.dims
            )
            model.graph.input.append(value)
    return model


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
def test_codes_are_those_of_a_new_opset(
    op_type: str,
    axis: int | None,
    batch: int | str,
    photographs: list[np.ndarray],
    plain: Preprocessing,
    tmp_path: Path,
) -> None:
    codes = [
        CNNCodeTransformer(
            networks.save(
                network(op_type, axis, old=old, batch=batch), tmp_path / f"{old}.onnx"
            ),
            preprocessing=plain,
        ).fit_transform(photographs)
        for old in (True, False)
    ]
    np.testing.assert_allclose(*codes, rtol=1e-5, atol=1e-5)


def test_an_unknown_rank_is_named(plain: Preprocessing, tmp_path: Path) -> None:
    model = network("Add", 1, old=True)
    (node,) = (node for node in model.graph.node if node.op_type == "Add")
    unknown = helper.make_node("Unknown", [node.input[0]], ["unknown"], domain="mine")
    model.graph.node.insert(1, unknown)
    node.input[0] = "unknown"
    path = networks.save(model, tmp_path / "net.onnx")
    expected = r"net.onnx.*Add \['add_1'\] broadcasts along axis 1 of 'unknown'"
    with pytest.raises(BackboneError, match=expected):
        load_backbone(path, plain).layers  # noqa: B018
