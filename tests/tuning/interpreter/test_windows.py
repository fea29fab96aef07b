"""Convolutions and poolings with random attributes, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

pytest.importorskip("torch")

from tests.tuning.interpreter.operators import array, check_operator

AUTO = st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])


def numbers(draw: Any, low: int, high: int, count: int = 2) -> list[int]:
    return [draw(st.integers(low, high)) for _ in range(count)]


def window(draw: Any, rank: int, dilated: bool = True) -> dict[str, Any]:
    """Attributes that convolutions and poolings share."""
    attrs: dict[str, Any] = {"strides": numbers(draw, 1, 3, rank)}
    mode = draw(AUTO)
    if mode != "NOTSET":
        attrs["auto_pad"] = mode
    if dilated and mode == "NOTSET":
        attrs["dilations"] = numbers(draw, 1, 2, rank)
    return attrs


@st.composite
def convolutions(draw: Any) -> tuple[list[Any], dict[str, Any]]:
    rank = draw(st.integers(1, 3))
    kernel = numbers(draw, 1, 3, rank)
    sizes = numbers(draw, 6, 8, rank)
    group = draw(st.sampled_from([1, 2, 4]))
    attrs = window(draw, rank) | {"group": group}
    if "auto_pad" not in attrs:
        attrs["pads"] = numbers(draw, 0, 2, 2 * rank)
    bias = array(8, seed=2) if draw(st.booleans()) else None
    inputs = [array(2, 4, *sizes), array(8, 4 // group, *kernel, seed=1), bias]
    if draw(st.booleans()):
        attrs["kernel_shape"] = kernel
    return inputs, attrs


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_conv(case: tuple[list[Any], dict[str, Any]]) -> None:
    inputs, attrs = case
    check_operator("Conv", *inputs, gradients=False, **attrs)


@st.composite
def poolings(draw: Any) -> dict[str, Any]:
    kernel = numbers(draw, 1, 3)
    attrs = window(draw, 2) | {"kernel_shape": kernel}
    if "auto_pad" not in attrs:
        # Pads are smaller than the kernel: no window lies in the padding alone.
        attrs["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        attrs["ceil_mode"] = draw(st.integers(0, 1))
    return attrs


@settings(max_examples=80, deadline=None)
@given(poolings(), st.integers(5, 8), st.integers(5, 8))
def test_max_pool(attrs: dict[str, Any], height: int, width: int) -> None:
    same = attrs.get("auto_pad", "").startswith("SAME")
    pairs = zip(attrs["kernel_shape"], attrs["strides"], strict=True)
    # ONNX Runtime fails where that leads to negative padding.
    assume(not same or all(kernel >= stride for kernel, stride in pairs))
    x = array(2, 3, height, width)
    check_operator("MaxPool", x, gradients=False, **attrs)


@settings(max_examples=80, deadline=None)
@given(poolings(), st.integers(5, 8), st.integers(5, 8), st.booleans())
def test_average_pool(
    attrs: dict[str, Any], height: int, width: int, counted: bool
) -> None:
    x = array(2, 3, height, width)
    check_operator(
        "AveragePool",
        x,
        opset=19,
        gradients=False,
        count_include_pad=int(counted),
        **attrs,
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_conv_transpose(data: st.DataObject) -> None:
    draw = data.draw
    kernel, strides = numbers(draw, 1, 3), numbers(draw, 1, 3)
    attrs: dict[str, Any] = {"strides": strides, "dilations": numbers(draw, 1, 2)}
    if draw(st.booleans()):
        attrs["pads"] = numbers(draw, 0, 1, 4)
        attrs["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
        reach = [
            4 * s + (k - 1) * d + 1
            for s, k, d in zip(strides, kernel, attrs["dilations"], strict=True)
        ]
        assume(min(reach) > 2)
    group = draw(st.sampled_from([1, 2]))
    x, weight = array(2, 4, 5, 5), array(4, 3, *kernel, seed=1)
    bias = array(3 * group, seed=2)
    check_operator(
        "ConvTranspose", x, weight, bias, gradients=False, group=group, **attrs
    )


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 3]])
def test_gradients_of_asymmetric_padding(mode: str, strides: list[int]) -> None:
    x, weight = array(1, 2, 5, 6), array(2, 2, 2, 4, seed=1)
    attrs = {"auto_pad": mode, "strides": strides}
    check_operator("Conv", x, weight, **attrs)
    check_operator("MaxPool", x, kernel_shape=[2, 3], **attrs)
    check_operator("AveragePool", x, kernel_shape=[2, 3], **attrs)
    ceiled = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    check_operator("MaxPool", x, **ceiled)
    check_operator("AveragePool", x, opset=19, count_include_pad=1, **ceiled)


def test_pooling_with_indices_is_refused() -> None:
    with pytest.raises(ValueError, match="indices"):
        check_operator("MaxPool", array(1, 1, 4, 4), outputs=2, kernel_shape=[2, 2])


def test_dilated_average() -> None:
    x = np.ascontiguousarray(array(1, 2, 7, 7))
    check_operator("AveragePool", x, opset=19, kernel_shape=[2, 2], dilations=[2, 3])
