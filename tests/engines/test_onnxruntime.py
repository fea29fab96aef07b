"""The GPU engine: its logic tested on the CPU, and codes computed on a GPU."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer
from sk_cnncodes.base.exceptions import DeviceError
from sk_cnncodes.engines import onnxruntime as onnxruntime_engine
from sk_cnncodes.engines import onnxruntime_runners
from sk_cnncodes.engines.devices import Device, count_gpus
from sk_cnncodes.engines.onnxruntime import (
    gpu_providers,
    import_onnxruntime,
    is_out_of_memory,
)
from sk_cnncodes.engines.onnxruntime_runners import GpuRunner
from sk_cnncodes.engines.session import CodeSession, MultiDeviceRunner
from tests.engines.test_session import code_graph
from tests.faults.conftest import allow_threads

# Messages of ONNX Runtime and its libraries when a GPU is out of memory.
OUT_OF_MEMORY = [
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while "
    "running Conv node. Status Message: bfc_arena.cc:376 AllocateRawInternal Failed to "
    "allocate memory for requested buffer of size 1233125376",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; "
    "expr=cudaMalloc((void**)&p, size);",
    "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    "CUBLAS failure 3: the resource allocation failed ; GPU=0 ; hostname=vm ; "
    "file=cuda_stream_handle.cc ; line=79 ; expr=cublasCreate(&cublas_handle_);",
]


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)


def gpu_runner(*, fixed_batch: bool = False) -> GpuRunner:
    """A GpuRunner whose memory and session are on the CPU."""
    session = import_onnxruntime().InferenceSession(
        code_graph(), providers=["CPUExecutionProvider"]
    )
    return GpuRunner(session, 0, fixed_batch=fixed_batch, memory="cpu")


# -- batches -----------------------------------------------------------------


def test_bound_batches_return_the_codes_of_their_images() -> None:
    runner = gpu_runner()
    for count in (1, 5, 8, 3, 13, 2, 13):
        X = images(count, seed=count)
        (codes,) = runner.run(X)
        np.testing.assert_allclose(codes, X.mean((1, 2)), rtol=1e-5)


def test_batches_are_padded_to_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = gpu_runner()
    sizes: list[int] = []
    slot_run = onnxruntime_runners._Slot.run

    def recorded(self, X: np.ndarray, padded_rows: int) -> list[np.ndarray]:
        sizes.append(padded_rows)
        outputs = slot_run(self, X, padded_rows)
        assert len(outputs[0]) == padded_rows
        return outputs

    monkeypatch.setattr(onnxruntime_runners._Slot, "run", recorded)
    for count in (2, 1, 50, 37, 7, 5, 50, 3, 60, 55, 1):
        assert len(runner.run(images(count))[0]) == count
    assert sizes == [2, 2, 50, 50, 50, 50, 50, 4, 60, 60, 2]
    sizes.clear()
    fixed = gpu_runner(fixed_batch=True)
    fixed.run(images(5))
    fixed.run(images(3))
    assert sizes == [5, 3]


def test_threads_do_not_mix_up_batches() -> None:
    runner = gpu_runner()
    assert runner.n_concurrent_runs == 2

    def work(seed: int) -> None:
        X = images(1 + seed % 9, seed)
        (codes,) = runner.run(X)
        np.testing.assert_allclose(codes, X.mean((1, 2)), rtol=1e-5)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(300)))


def test_memory_is_pinned_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def driver(refuses: str = "") -> SimpleNamespace:
        def function(name: str):
            def call(*arguments: object) -> int:
                calls.append(name)
                return 2 if name == refuses else 0

            return call

        names = ("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent")
        names += ("cuMemHostRegister_v2", "cuMemHostUnregister")
        return SimpleNamespace(**{name: function(name) for name in names})

    monkeypatch.setattr(onnxruntime_runners, "cuda_driver", driver)
    runner = gpu_runner()
    np.testing.assert_allclose(runner.run(images(3))[0], images(3).mean((1, 2)))
    assert calls[-1] == "cuMemHostRegister_v2"
    runner.run(images(9))  # in the other slot
    assert calls.count("cuMemHostUnregister") == 0
    runner.run(images(9))  # in the first slot, which needs more memory
    assert calls.count("cuMemHostRegister_v2") == 3
    assert calls.count("cuMemHostUnregister") == 1
    # If the driver refuses, codes are still correct.
    monkeypatch.setattr(
        onnxruntime_runners, "cuda_driver", lambda: driver("cuMemHostRegister_v2")
    )
    del runner
    calls.clear()
    runner = gpu_runner()
    np.testing.assert_allclose(runner.run(images(3))[0], images(3).mean((1, 2)))
    del runner
    assert "cuMemHostUnregister" not in calls


# -- several devices -----------------------------------------------------------


def test_several_devices_run_concurrently() -> None:
    barrier = threading.Barrier(3)
    used: set[str] = set()

    class Slow:
        provider, n_concurrent_runs, image_shape = "CUDAExecutionProvider", 1, (4, 4, 3)

        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, X: np.ndarray) -> list[np.ndarray]:
            used.add(self.name)
            barrier.wait(timeout=20)  # until all three run
            return [X.mean((1, 2))]

    session = CodeSession(
        MultiDeviceRunner([Slow(name) for name in "abc"]), None, on_cpu=False
    )
    assert session.n_concurrent_runs == 3
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(session.run, [images(2, seed) for seed in range(6)]))
    assert used == {"a", "b", "c"}
    for seed, (codes,) in enumerate(made):
        np.testing.assert_allclose(codes, images(2, seed).mean((1, 2)))


# -- memory --------------------------------------------------------------------


class Small:
    """A GPU runner with memory for a few images."""

    provider, n_concurrent_runs, image_shape = "CUDAExecutionProvider", 2, (4, 4, 3)

    def __init__(self, capacity: int, message: str = OUT_OF_MEMORY[0]) -> None:
        self.capacity, self.message = capacity, message
        self.tried: list[int] = []

    def run(self, X: np.ndarray) -> list[np.ndarray]:
        self.tried.append(len(X))
        if len(X) > self.capacity:
            raise RuntimeError(self.message)
        return [X.mean((1, 2))]


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch_and_warns_once(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    runner = Small(5, message)
    session = CodeSession(runner, None, on_cpu=False)
    with pytest.warns(RuntimeWarning, match="32 images does not fit") as warned:
        (codes,) = session.run(images(32))
    assert len(warned) == 1
    np.testing.assert_allclose(codes, images(32).mean((1, 2)))
    assert runner.tried[:4] == [32, 16, 8, 4]
    runner.tried.clear()
    session.run(images(32))  # without a warning, directly in batches that fit
    assert runner.tried == [4] * 8
    assert session.choose_batch_size(1000) == 4


def test_gpu_without_memory_for_one_image() -> None:
    session = CodeSession(Small(0), None, on_cpu=False)
    with (
        pytest.warns(RuntimeWarning, match="Continuing with 1"),
        pytest.raises(DeviceError, match="one image does not fit"),
    ):
        session.run(images(2))


def test_a_batch_that_did_not_fit_keeps_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = gpu_runner()
    with monkeypatch.context() as patch:

        def no_memory(*_: object) -> None:
            raise RuntimeError(OUT_OF_MEMORY[0])

        patch.setattr(runner._session, "run_with_iobinding", no_memory)
        with pytest.raises(RuntimeError, match=re.escape(OUT_OF_MEMORY[0])):
            runner.run(images(50))
    while not runner._slots._free.empty():
        slot = runner._slots._free.get()
        assert not slot._device_tensors
        assert not slot._staging.array.size


def test_other_errors_are_not_retried() -> None:
    runner = Small(0, "the shapes do not fit")
    with pytest.raises(RuntimeError, match="do not fit"):
        CodeSession(runner, None, on_cpu=False).run(images(8))
    assert runner.tried == [8]


# -- options -------------------------------------------------------------------


def test_cuda_options() -> None:
    ((name, exact),) = gpu_providers(b"", Device(1, required=True), "float32", None, "")
    assert name == "CUDAExecutionProvider"
    assert exact == {
        "device_id": "1",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    ((_, fast),) = gpu_providers(b"", Device(0, required=True), "tf32", None, "")
    assert fast["use_tf32"] == "1"


def test_tensorrt_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    device = Device(1, required=True, tensorrt=True)
    (name, options), (second, _) = gpu_providers(
        code_graph(), device, "float16", None, str(tmp_path)
    )
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_fp16_enable"] == "1"
    assert options["trt_engine_cache_path"] == str(tmp_path)
    assert options["trt_profile_max_shapes"] == "images:256x4x4x3"
    assert options["trt_profile_min_shapes"] == "images:1x4x4x3"
    (_, fixed), _ = gpu_providers(b"", device, "float16", 8, str(tmp_path))
    assert "trt_profile_max_shapes" not in fixed


# -- on a GPU ------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(count_gpus() == 0, reason="needs a GPU")
@pytest.mark.parametrize(
    ("precision", "difference"), [("float32", 1e-3), ("tf32", 1e-2), ("float16", 2e-2)]
)
def test_gpu_codes_match_cpu_codes(
    photographs: list[np.ndarray], precision: str, difference: float
) -> None:
    many = photographs * 20
    expected = CNNCodeTransformer(cache=None, device="cpu").transform(many)
    codes = CNNCodeTransformer(
        cache=None, device="cuda", precision=precision, batch_size=32
    ).transform(many)
    assert np.abs(codes - expected).max() <= difference * np.abs(expected).max()


@pytest.mark.gpu
@pytest.mark.skipif(count_gpus() == 0, reason="needs a GPU")
def test_two_concurrent_sessions_on_a_gpu(photographs: list[np.ndarray]) -> None:
    expected = CNNCodeTransformer(cache=None, device="cpu").transform(photographs)

    def work(layer: int) -> np.ndarray:
        transformer = CNNCodeTransformer(cache=None, device="cuda", layer=layer)
        return transformer.transform(photographs)

    with ThreadPoolExecutor(2) as pool:
        last, _ = pool.map(work, [-1, -2])
    np.testing.assert_allclose(last, expected, atol=1e-3 * np.abs(expected).max())


def test_session_whose_threads_cannot_all_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression: if one of three started, ONNX Runtime waited forever."""
    before = threading.active_count()
    with monkeypatch.context() as patch:
        allow_threads(patch, 1)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            onnxruntime_engine.load_session(b"", Device(None, required=True), 4)
    assert threading.active_count() == before
