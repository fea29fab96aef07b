"""The measurement of engines, precisions and batch sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, Preprocessing
from sk_cnncodes.cli.measurement import advice, constructor_call, measure_backbone
from sk_cnncodes.engines.execution import has_openvino, working_precisions
from tests import networks


def test_all_working_configurations_are_measured(
    tmp_path: Path, plain: Preprocessing, photographs: list[np.ndarray]
) -> None:
    net = networks.save(networks.resnet(), tmp_path / "net.onnx")
    measured = measure_backbone(
        net,
        photographs[:3],
        preprocessing=plain,
        batch_sizes=[2],
        rounds=1,
        n_images=6,
    )
    faults = working_precisions()
    on_cpu = [m for m in measured if m.device == "cpu"]
    configurations = {(m.engine, m.precision) for m in on_cpu}
    expected = {("onnxruntime", "float32")}
    if not faults["int8"]:
        expected.add(("onnxruntime", "int8"))
    if has_openvino():
        short = {p for p in ("bfloat16", "int8") if not faults[p]}
        expected |= {("openvino", p) for p in {"float32", *short}}
    assert configurations == expected
    speeds = [m.images_per_second for m in measured]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[-1] > 0
    for m in on_cpu:
        assert m.least_cosine <= m.median_cosine
        assert m.least_cosine > (0.9999 if m.precision == "float32" else 0.9)
    # The lines run without changes.
    for m in on_cpu:
        line = constructor_call(net, m)
        made = eval(line, {"CNNCodeTransformer": CNNCodeTransformer})
        assert (made.precision, made.batch_size) == (m.precision, 2)
        assert ("engine" in line) == (
            m.engine == ("openvino" if m.precision == "float32" else "onnxruntime")
            and (m.engine, m.precision) != ("onnxruntime", "float32")
            and has_openvino()
        )
    text = "\n".join(advice(net, measured))
    assert f"In float32:  CNNCodeTransformer({net!r}" in text


def test_a_backbone_that_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="no known backbone"):
        measure_backbone("resnet9000")
