"""OpenVINO: the same codes, no telemetry, threads and child processes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sk_cnncodes import (
    BackboneError,
    CNNCodeTransformer,
    Preprocessing,
    load_backbone,
)
from sk_cnncodes.engines.execution import Execution, has_openvino
from sk_cnncodes.engines.openvino import OpenVinoRunner
from sk_cnncodes.engines.session import open_session
from tests import networks
from tests.conftest import run_python
from tests.engines.arithmetic import needs_bfloat16, needs_int8
from tests.engines.test_session import code_graph

pytestmark = pytest.mark.skipif(not has_openvino(), reason="needs openvino")


def test_float32_codes_match_onnxruntime(
    photographs: list[np.ndarray], shared: Path
) -> None:
    for backbone in ("mobilenet_v2", "squeezenet1.1"):
        path = shared / "backbones" / f"{backbone}.onnx"
        expected = CNNCodeTransformer(path, cache=None).transform(photographs)
        codes = CNNCodeTransformer(path, cache=None, engine="openvino").transform(
            photographs
        )
        assert np.abs(codes - expected).max() <= 1e-4 * np.abs(expected).max()


@needs_bfloat16
def test_bfloat16_codes_are_close_and_cached_separately(
    photographs: list[np.ndarray],
) -> None:
    expected = CNNCodeTransformer().transform(photographs)
    codes = CNNCodeTransformer(precision="bfloat16").transform(photographs)
    norms = np.linalg.norm(codes, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((codes * expected).sum(1) / norms).min() > 0.995
    # Not those of float32 from the cache.
    assert np.abs(codes - expected).max() > 1e-4 * np.abs(expected).max()
    np.testing.assert_array_equal(CNNCodeTransformer().transform(photographs), expected)


def test_concurrent_runs() -> None:
    runner = OpenVinoRunner(
        code_graph(), n_threads=2, n_concurrent_runs=3, bfloat16=False
    )
    assert (runner.n_concurrent_runs, runner.image_shape) == (3, (4, 4, 3))

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        X = rng.integers(0, 256, (1 + seed % 7, 4, 4, 3), np.uint8)
        (codes,) = runner.run(X)
        np.testing.assert_allclose(codes, X.mean((1, 2)), rtol=1e-5)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(work, range(200)))


def test_no_telemetry(tmp_path: Path) -> None:
    """Its telemetry is not imported, and the user's home is unchanged."""
    program = (
        "import sys, numpy as np; from sk_cnncodes import CNNCodeTransformer\n"
        "X = np.zeros((2, 9, 9, 3), np.uint8)\n"
        "CNNCodeTransformer(engine='openvino', cache=None).transform(X)\n"
        "assert 'openvino' in sys.modules\n"
        "print([n for n in sys.modules if n.startswith('openvino_telemetry')])\n"
    )
    assert run_python(program, HOME=str(tmp_path)) == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_computes_codes() -> None:
    program = (
        "import os, warnings, numpy as np; from sk_cnncodes import CNNCodeTransformer\n"
        "warnings.simplefilter('ignore')\n"
        "X = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), np.uint8)\n"
        "make = lambda: CNNCodeTransformer(engine='openvino', cache=None)\n"
        "codes = make().transform(X)\n"
        "child = os.fork()\n"
        "same = np.allclose(make().transform(X), codes, rtol=1e-4)\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    print('ended', same)\n"
        "else:\n"
        "    assert same\n"
    )
    assert run_python(program) == "ended True"


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("int8", marks=needs_int8)]
)
def test_fixed_batch_size_that_cannot_be_made_dynamic(
    precision: str, photographs: list[np.ndarray], plain: Preprocessing, tmp_path: Path
) -> None:
    """OpenVINO would run the graph with more images, and write out of bounds."""
    path = networks.save(networks.vit(baked=True), tmp_path / "net.onnx")
    codes = [
        CNNCodeTransformer(
            path, preprocessing=plain, cache=None, precision=precision, engine=engine
        ).fit_transform(photographs)
        for engine in ("openvino", "onnxruntime")
    ]
    norms = np.linalg.norm(codes[0], axis=1) * np.linalg.norm(codes[1], axis=1)
    assert (codes[0] * codes[1]).sum(axis=1).min() > 0.99 * norms.min()
    backbone = load_backbone(path, plain)
    graph = next(backbone.code_graphs([backbone.spec(-1, "auto", None)]))
    assert graph.batch_made_dynamic
    execution = Execution(devices=(), engine="openvino")
    with pytest.raises(BackboneError, match="OpenVINO cannot run the backbone"):
        open_session([graph], execution, 1)
