"""Sessions: devices, batches, the session table, threads and forked children."""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sk_cnncodes.base.exceptions import BackboneError, DeviceError
from sk_cnncodes.engines import onnxruntime as onnxruntime_engine
from sk_cnncodes.engines import onnxruntime_runners
from sk_cnncodes.engines.devices import Device, count_gpus
from sk_cnncodes.engines.session import CodeSession, open_session
from sk_cnncodes.engines.session_table import SessionTable
from tests import networks
from tests.conftest import run_python


@dataclass
class Graph:
    model: bytes
    batch_size: int | None = None
    batch_made_dynamic: bool = False


def code_graph(kind: str = "mean") -> bytes:
    """A graph from uint8 [N, 4, 4, 3] to correct, mixed-up or too few codes."""
    from onnx import TensorProto, helper

    net = networks.Net()
    x = net.op("Cast", "images", to=TensorProto.FLOAT)
    x = net.op("ReduceMean", x, axes=[1, 2], keepdims=0)
    if kind == "mixed":  # subtracts the mean of the batch
        x = net.op("Sub", x, net.op("ReduceMean", x, axes=[0], keepdims=1))
    elif kind == "few":
        x = net.op("ReduceMean", x, axes=[0], keepdims=1)
    net.op("Identity", x, out="codes_0")
    model = net.model("codes_0", shape=(4, 4, 3), element=TensorProto.UINT8)
    model.graph.input[0].name = "images"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    helper.set_model_props(model, {"kind": kind})
    return model.SerializeToString()


CPU = Device(None, required=True)


@pytest.mark.skipif(count_gpus() > 0, reason="there is a GPU")
def test_unusable_gpu_is_an_error_or_a_warning() -> None:
    """ONNX Runtime itself falls back to the CPU."""
    graph = [Graph(code_graph())]
    with pytest.raises(DeviceError, match="cannot use CUDA"):
        open_session(graph, Device(0, required=True), 1)
    with pytest.warns(UserWarning, match="The CPU is used instead"):
        session = open_session(graph, Device(0, required=False), 1)
    assert session.provider == "CPUExecutionProvider"


def test_a_gpu_without_memory_is_an_error_or_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it shows while the network is loaded or in its first run."""
    make_session = onnxruntime_engine.make_session
    at_loading = True

    class NoMemory:
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="images", shape=["N", 4, 4, 3])]

        def io_binding(self) -> None:
            raise RuntimeError("CUBLAS failure 3: the resource allocation failed")

    def pretend(model: bytes, options: Any, providers: Any = ()) -> Any:
        if not providers:
            return make_session(model, options)
        if at_loading:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        return NoMemory()

    monkeypatch.setattr(onnxruntime_engine, "make_session", pretend)
    monkeypatch.setattr(
        onnxruntime_runners._Slot, "_copy_to_device", lambda self, staged: None
    )
    graph = [Graph(code_graph())]
    for step in ("loading", "running"):
        at_loading = step == "loading"
        with (
            warnings.catch_warnings(),
            pytest.raises(DeviceError, match="memory"),
        ):
            warnings.simplefilter("ignore")
            open_session(graph, Device(0, required=True), 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            session = open_session(graph, Device(0, required=False), 1)
        assert "The CPU is used instead" in str(caught[-1].message)
        assert session.provider == "CPUExecutionProvider"
        assert session.on_cpu


@pytest.mark.skipif(count_gpus() > 0, reason="there is a GPU")
def test_auto_does_not_warn_without_a_gpu() -> None:
    program = (
        "import numpy as np; from sk_cnncodes import CNNCodeTransformer;"
        "X = np.zeros((2, 9, 9, 3), np.uint8);"
        "print(CNNCodeTransformer().fit_transform(X).shape)"
    )
    assert run_python(program) == "(2, 800)"


def test_import_is_lazy_and_telemetry_is_off() -> None:
    program = (
        "import os, sys, sk_cnncodes; assert 'onnx' not in sys.modules;"
        "assert 'onnxruntime' not in sys.modules;"
        "from sk_cnncodes.engines.onnxruntime import import_onnxruntime;"
        "import_onnxruntime();"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    assert run_python(program) == "1"
    assert run_python(program, ORT_DISABLE_TELEMETRY="0") == "0"


# -- sessions ----------------------------------------------------------------


def test_graph_that_mixes_up_rows_is_not_run_in_batches() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    expected = images.mean((1, 2))
    for wrong in ("mixed", "few"):
        graph_list = [Graph(code_graph(wrong)), Graph(code_graph(), 1)]
        session = open_session(graph_list, CPU, 1)
        assert session.batch_size == 1
        np.testing.assert_allclose(session.run(images)[0], expected, rtol=1e-5)
        with pytest.raises(BackboneError, match="cannot run the backbone: "):
            open_session(graph_list[:1], CPU, 1)


def test_fixed_batches_are_padded() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    session = open_session([Graph(code_graph(), 3)], CPU, 1)
    np.testing.assert_allclose(session.run(images)[0], images.mean((1, 2)), rtol=1e-5)


def test_table_makes_each_session_once_and_drops_the_oldest() -> None:
    table = SessionTable(max_sessions=2)
    made: list[str] = []

    def make(name: str) -> CodeSession:
        made.append(name)
        return open_session([Graph(code_graph())], CPU, 1)

    threads = [
        threading.Thread(target=table.get, args=("a", lambda: make("a")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["a"]
    first = table.get("a", lambda: make("a"))
    table.get("b", lambda: make("b"))
    assert table.get("a", lambda: make("a")) is first
    table.get("c", lambda: make("c"))
    assert made == ["a", "b", "c"]
    table.get("b", lambda: make("b"))
    assert made == ["a", "b", "c", "b"]


def test_failed_session_is_retried() -> None:
    table = SessionTable()

    def fail() -> CodeSession:
        raise BackboneError("broken")

    with pytest.raises(BackboneError):
        table.get("a", fail)
    session = table.get("a", lambda: open_session([Graph(code_graph())], CPU, 1))
    assert session.provider == "CPUExecutionProvider"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_transforms_and_exits() -> None:
    program = (
        "import os, warnings, numpy as np; from sk_cnncodes import CNNCodeTransformer\n"
        "warnings.simplefilter('ignore')\n"
        "X = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), np.uint8)\n"
        "codes = CNNCodeTransformer().transform(X)\n"
        "child = os.fork()\n"
        "same = np.allclose(CNNCodeTransformer().transform(X), codes, rtol=1e-4)\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    print('ended', same)\n"
        "else:\n"
        "    assert same\n"
    )
    assert run_python(program) == "ended True"


class Small:
    """A CPU runner with memory for one image."""

    provider, image_shape = "CPUExecutionProvider", (4, 4, 3)

    def __init__(self, n_concurrent_runs: int) -> None:
        self.n_concurrent_runs = n_concurrent_runs

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        if len(images) > 1:
            raise RuntimeError("Failed to allocate memory for requested buffer")
        return [images.mean((1, 2)).astype(np.float32)]


@pytest.mark.parametrize("n_concurrent_runs", [1, 2])
def test_running_out_of_memory_during_measurement(n_concurrent_runs: int) -> None:
    """Regression: the lock of the measurement was acquired twice, a deadlock."""
    session = CodeSession(Small(n_concurrent_runs), None)
    with pytest.warns(RuntimeWarning, match="2 images does not fit in memory"):
        assert session.choose_batch_size(1000) >= 1
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    (codes,) = session.run(images)
    np.testing.assert_array_equal(codes[:, 0], [0, 1, 2])
