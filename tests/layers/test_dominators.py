"""The tensors on every path from the image to the output."""

from __future__ import annotations

from pathlib import Path

import pytest

from sk_cnncodes import Preprocessing, load_backbone
from tests import networks


@pytest.mark.parametrize("op_type", ["Add", "Concat", "Mul"])
@pytest.mark.parametrize("image_first", [False, True])
def test_a_merge_may_read_the_image(
    op_type: str, image_first: bool, plain: Preprocessing, tmp_path: Path
) -> None:
    net = networks.Net()
    branches = [net.conv("data", 3, 3), "data"]
    options = {"axis": 1} if op_type == "Concat" else {}
    x = net.op(op_type, *branches[:: -1 if image_first else 1], out="merged", **options)
    width = 6 if op_type == "Concat" else 3
    x = net.op("Relu", net.conv(x, width, 8, strides=[2, 2]), out="last")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    path = networks.save(net.model(net.dense(x, 8, 10)), tmp_path / "net.onnx")
    layers = load_backbone(path, plain).layers
    assert [layer.name for layer in layers] == ["merged", "last"]
