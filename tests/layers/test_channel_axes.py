"""The channel axis of maps, found from the operators around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, Preprocessing, load_backbone
from tests import networks
from tests.conftest import prepared, run_tensor

WINDOWS, TOKENS, WIDTH = 4, 16, 6


def windows_of_tokens(side: int) -> networks.Net:
    """NesT: blocks on tokens in several windows, without convolutions."""
    net = networks.Net()

    def numbers(*values: int) -> str:
        return net.constant(np.array(values, np.int64))

    patch = side // 8
    kernel, bias = net.weight(WIDTH, 3, patch, patch), net.weight(WIDTH)
    x = net.op("Conv", "data", kernel, bias, strides=[patch, patch])
    x = net.op("Reshape", x, numbers(0, WIDTH, WINDOWS, TOKENS))
    x = net.op("Transpose", x, perm=[0, 2, 3, 1])
    x = net.op("Reshape", x, numbers(0, WINDOWS, TOKENS, WIDTH))
    x = net.op("Add", x, net.weight(WINDOWS, TOKENS, WIDTH), out="windows")
    ones = net.constant(np.ones(WIDTH, np.float32))
    y = net.op("LayerNormalization", x, ones, net.weight(WIDTH), axis=-1)
    y = net.op("Relu", net.linear(y, WIDTH, 12))
    x = net.op("Add", x, net.linear(y, 12, WIDTH), out="block")
    return net


@pytest.mark.parametrize("layer", ["windows", "block"])
def test_channels_of_windows_of_tokens(
    layer: str, photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    net = windows_of_tokens(networks.SIDE)
    x = net.op("ReduceMean", "block", axes=[1, 2], keepdims=0)
    model = net.model(net.dense(x, WIDTH, 10))
    path = networks.save(model, tmp_path / "net.onnx")
    found = load_backbone(path, plain).layer(layer)
    assert (found.kind, found.channel_axis, found.n_channels) == ("map", 3, WIDTH)
    transformer = CNNCodeTransformer(path, layer=layer, preprocessing=plain)
    codes = transformer.fit_transform(photographs)
    expected = run_tensor(model, layer, prepared(photographs, plain), plain)
    np.testing.assert_allclose(codes, expected.mean((1, 2)), rtol=1e-4, atol=1e-5)
