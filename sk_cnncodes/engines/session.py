"""Sessions: loaded code graphs with a common interface for all engines and devices."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from sk_cnncodes.base.exceptions import BackboneError, DeviceError, first_line
from sk_cnncodes.base.forks import fork_lock
from sk_cnncodes.base.threads import OrderedThreadPool, ResourcePool
from sk_cnncodes.engines.devices import CPU, Device
from sk_cnncodes.engines.execution import Execution
from sk_cnncodes.engines.onnxruntime import CPU_PROVIDER, is_out_of_memory, padded
from sk_cnncodes.engines.onnxruntime_runners import open_runner
from sk_cnncodes.engines.quantisation import Calibration

# Maximum difference between the codes of an image alone and in a batch, relative to the
# largest value: rounding stays below it, mixed-up rows do not.
_BATCH_TOLERANCE = {
    "float32": 1e-3,
    "tf32": 1e-2,
    "float16": 1e-2,
    "bfloat16": 0.1,
    "int8": 0.1,
}
_ENGINE_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
GPU_BATCH_SIZE = 128
# On a CPU, most networks are fastest with one or two images per run, which stay in the
# CPU caches. Large dense layers need more, so that their weights are read less often.
_UNMEASURED_BATCH_SIZE = 2
_MAX_CPU_BATCH_SIZE = 64
# Images that make a measurement worthwhile, and the speed-up to require of doubling.
_MIN_IMAGES_TO_MEASURE = 128
_MIN_SPEED_UP = 1.04


class RunnableGraph(Protocol):
    """A serialised code graph.

    Attributes
    ----------
    model : bytes
    batch_size : int or None
        Fixed batch size; None if it is dynamic.
    batch_made_dynamic : bool
        Whether a fixed batch size of the file was made dynamic, which some networks do
        not support.
    """

    @property
    def model(self) -> bytes: ...

    @property
    def batch_size(self) -> int | None: ...

    @property
    def batch_made_dynamic(self) -> bool: ...


class Runner(Protocol):
    """A network loaded by an engine, as used by `CodeSession`.

    Attributes
    ----------
    provider : str
        The execution provider in use, or "OpenVINO".
    n_concurrent_runs : int
        Number of concurrent calls of `run` that increase the throughput.
    image_shape : tuple of int
        Height, width and channels of an input image.
    """

    @property
    def provider(self) -> str: ...

    @property
    def n_concurrent_runs(self) -> int: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Codes of a batch, one float32 array [N, d] for each layer."""
        ...


class CodeSession:
    """A loaded code graph.

    Parameters
    ----------
    runner : Runner
    batch_size : int or None
        Fixed batch size of the graph; None if it is dynamic.
    on_cpu : bool, default=True
        Whether the network runs on the CPU, where the best batch size is measured.

    Attributes
    ----------
    on_cpu : bool
    """

    def __init__(
        self, runner: Runner, batch_size: int | None, *, on_cpu: bool = True
    ) -> None:
        self._runner = runner
        self.batch_size = batch_size
        self.n_concurrent_runs = runner.n_concurrent_runs
        self.provider = runner.provider
        self.image_shape = runner.image_shape
        self.on_cpu = on_cpu
        self._measure_lock = threading.Lock()
        self._limit_lock = threading.Lock()
        self._measured_batch_size: int | None = None
        # Number of images that fit in memory; None until a batch did not.
        self._max_batch_size: int | None = None

    def choose_batch_size(self, n_images: int) -> int:
        """Choose the number of images per run for a total of `n_images`.

        For many images on a CPU it is measured once, by doubling the batch until that
        is no faster.
        """
        if self.batch_size is not None:
            return self.batch_size
        if not self.on_cpu:
            return min(GPU_BATCH_SIZE, self._max_batch_size or GPU_BATCH_SIZE)
        if n_images < _MIN_IMAGES_TO_MEASURE:
            return _UNMEASURED_BATCH_SIZE
        with self._measure_lock:
            if self._measured_batch_size is None:
                self._measured_batch_size = self._fastest_batch_size()
            measured = self._measured_batch_size
        return min(measured, -(-n_images // (2 * self.n_concurrent_runs)))

    def _fastest_batch_size(self) -> int:
        """Double the batch size until that is no faster."""
        size, speed = 1, self._images_per_second(1)
        while size < _MAX_CPU_BATCH_SIZE:
            doubled_speed = self._images_per_second(2 * size)
            if doubled_speed < _MIN_SPEED_UP * speed:
                break
            size, speed = 2 * size, doubled_speed
        return size

    def _images_per_second(self, batch_size: int) -> float:
        """Throughput of all concurrent runs together: the best of three rounds."""
        images = np.zeros((batch_size, *self.image_shape), np.uint8)
        batches = [images] * self.n_concurrent_runs
        with OrderedThreadPool(self.n_concurrent_runs, "sk_cnncodes-measure") as pool:
            seconds = []
            for _ in range(4):  # the first round allocates memory
                start = time.perf_counter()
                list(pool.in_order(self.run, batches, self.n_concurrent_runs))
                seconds.append(time.perf_counter() - start)
        return batch_size * self.n_concurrent_runs / min(seconds[1:])

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute the codes of a batch; thread-safe.

        If a batch does not fit in memory, usually that of a GPU, the batch size is
        halved permanently, with a warning.

        Parameters
        ----------
        images : ndarray of uint8, shape (n_images, height, width, 3)

        Returns
        -------
        list of ndarray of float32, shape (n_images, d)
            One for each layer.

        Raises
        ------
        BackboneError
            If the network does not return one row per image.
        DeviceError
            If a single image does not fit in memory.
        """
        if self.batch_size is not None:
            return self._run_in_parts(images, self.batch_size, pad=True)
        limit = self._max_batch_size
        if limit is not None and len(images) > limit:
            return self._run_in_parts(images, limit, pad=False)
        try:
            return self._run(images)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._halve_batch(len(images), error)
        return self.run(images)

    def _run_in_parts(
        self, images: np.ndarray, size: int, *, pad: bool
    ) -> list[np.ndarray]:
        """Run batches of `size` images in turn; `pad` the last one with copies."""
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            rows = len(part)
            if pad:
                part = padded(part, size)
            outputs = self._run(part) if pad else self.run(part)
            parts.append([codes[:rows] for codes in outputs])
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def _halve_batch(self, n_images: int, error: Exception) -> None:
        """Halve the batch size after a batch did not fit in memory; warn once."""
        memory = "memory" if self.on_cpu else "GPU memory"
        if n_images == 1:
            alternative = "" if self.on_cpu else ", or device='cpu'"
            raise DeviceError(
                f"{self.provider}: a batch of one image does not fit in {memory} "
                f"({first_line(error)}). Expected more free memory, a smaller "
                f"backbone, or an earlier layer{alternative}."
            ) from error
        with self._limit_lock:
            first = self._max_batch_size is None
            limit = min(self._max_batch_size or n_images, -(-n_images // 2))
            self._max_batch_size = limit
        if first:
            warnings.warn(
                f"{self.provider}: a batch of {n_images} images does not fit in "
                f"{memory}. Continuing with {limit} or fewer; set batch_size={limit} "
                "to avoid the failed attempt.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run a batch, and check the shapes of the codes."""
        outputs = self._runner.run(images)
        for codes in outputs:
            if codes.ndim != 2 or len(codes) != len(images):
                raise BackboneError(
                    f"the network returned codes of shape {codes.shape} for "
                    f"{len(images)} images. Expected one row per image."
                )
        return outputs


class MultiDeviceRunner:
    """The same network on several devices that are used at once.

    Parameters
    ----------
    runners : list of Runner
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self.n_concurrent_runs = sum(runner.n_concurrent_runs for runner in runners)
        self.provider = runners[0].provider
        self.image_shape = runners[0].image_shape
        # Interleaved, so that the first batches go to different devices.
        self._runners = ResourcePool(
            runner
            for turn in range(max(runner.n_concurrent_runs for runner in runners))
            for runner in runners
            if turn < runner.n_concurrent_runs
        )

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Codes of a batch, computed by the device that has been idle longest."""
        return self._runners.use(lambda runner: runner.run(images))


def open_session(
    graphs: Iterable[RunnableGraph],
    execution: Execution | Device,
    n_threads: int,
    n_concurrent_runs: int = 1,
    calibration: Calibration | None = None,
) -> CodeSession:
    """Load the first of several graphs whose rows do not depend on the batch.

    Parameters
    ----------
    graphs : iterable of RunnableGraph
    execution : Execution or Device
        A device means ONNX Runtime in float32 on that device.
    n_threads : int
        Number of CPU threads of all concurrent runs together.
    n_concurrent_runs : int, default=1
        Number of concurrent runs on the CPU, which share `n_threads`.
    calibration : Calibration or None, default=None
        Required for int8.

    Raises
    ------
    BackboneError
        If the engine cannot run any of the graphs.
    DeviceError
        If a required GPU does not work.
    """
    if isinstance(execution, Device):
        execution = Execution(devices=(execution,))
    fault: Exception | None = None
    for graph in graphs:
        try:
            session, fault = _open_checked(
                graph, execution, n_threads, n_concurrent_runs, calibration
            )
        except DeviceError as error:
            if execution.devices[0].required:
                raise
            warnings.warn(f"{error} The CPU is used instead.", stacklevel=2)
            execution = replace(execution, devices=(CPU,))
            session, fault = _open_checked(
                graph, execution, n_threads, n_concurrent_runs, calibration
            )
        if session is not None and fault is None:
            return session
    assert fault is not None
    engine = _ENGINE_NAMES[execution.engine]
    raise BackboneError(
        f"{engine} cannot run the backbone: {first_line(fault)}"
    ) from fault


def _open_checked(
    graph: RunnableGraph,
    execution: Execution,
    n_threads: int,
    n_concurrent_runs: int,
    calibration: Calibration | None,
) -> tuple[CodeSession | None, Exception | None]:
    """Load a graph, and compare two images alone and together; the fault, if any."""
    try:
        if graph.batch_made_dynamic and execution.engine == "openvino":
            _check_dynamic_batch(graph, n_threads)
        with fork_lock:
            runner = _open_runner(
                graph, execution, n_threads, n_concurrent_runs, calibration
            )
        # With device="auto", a GPU that does not work is replaced by the CPU.
        on_cpu = execution.on_cpu or runner.provider == CPU_PROVIDER
        session = CodeSession(runner, graph.batch_size, on_cpu=on_cpu)
        return session, _batch_fault(session, _BATCH_TOLERANCE[execution.precision])
    except DeviceError:
        raise
    except Exception as error:
        return None, error


def _check_dynamic_batch(graph: RunnableGraph, n_threads: int) -> None:
    """Raise if ONNX Runtime finds inconsistent shapes.

    OpenVINO would run such a graph and access memory out of bounds.
    """
    cpu = Execution()
    with fork_lock:
        runner = _open_runner(graph, cpu, n_threads, 1, None)
    fault = _batch_fault(
        CodeSession(runner, graph.batch_size), _BATCH_TOLERANCE["float32"]
    )
    if fault is not None:
        raise fault


def _open_runner(
    graph: RunnableGraph,
    execution: Execution,
    n_threads: int,
    n_concurrent_runs: int,
    calibration: Calibration | None,
) -> Runner:
    """Convert a graph to its precision, and load it on all its devices."""
    model = in_precision(graph.model, execution.precision, calibration)
    if execution.engine == "openvino":
        from sk_cnncodes.engines.openvino import OpenVinoRunner

        return OpenVinoRunner(
            model,
            n_threads=n_threads,
            n_concurrent_runs=n_concurrent_runs,
            bfloat16=execution.precision == "bfloat16",
        )
    if execution.engine != "onnxruntime":
        raise ValueError(f"engine: no code loads a network by {execution.engine!r}.")
    runners = [
        open_runner(
            model,
            device,
            n_threads=n_threads,
            n_concurrent_runs=n_concurrent_runs,
            precision=execution.precision,
            batch_size=graph.batch_size,
            engine_cache=execution.engine_cache,
        )
        for device in execution.devices
    ]
    return runners[0] if len(runners) == 1 else MultiDeviceRunner(runners)


def in_precision(
    model: bytes, precision: str, calibration: Calibration | None
) -> bytes:
    """Convert a float32 code graph to a precision.

    Only float16 and int8 change the graph; the others are options of the engine.
    """
    if precision == "float16":
        from sk_cnncodes.engines.precision import to_float16

        return to_float16(model)
    if precision == "int8":
        from sk_cnncodes.engines.quantisation import quantise

        assert calibration is not None
        return quantise(model, calibration.ranges)
    return model


def _batch_fault(session: CodeSession, tolerance: float) -> Exception | None:
    """Check that two images have the same codes alone and together; None if so.

    With a fixed batch size, an image alone is padded with copies of itself.
    """
    rng = np.random.default_rng(0)
    shape = session.image_shape
    coarse = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
    # Not only in their pixels: a network may scale by the range or the mean of a batch.
    coarse[1] = coarse[1] // 3 + 20
    repeats = (-(-shape[0] // 4), -(-shape[1] // 4))
    images = coarse.repeat(repeats[0], axis=1).repeat(repeats[1], axis=2)
    images = np.ascontiguousarray(images[:, : shape[0], : shape[1]])
    together = session.run(images)
    if session.batch_size == 1:
        return None
    for index in range(2):
        alone = session.run(images[index : index + 1])
        for one, both in zip(alone, together, strict=True):
            largest = np.abs(one).max(initial=1e-6)
            difference = np.abs(one[0] - both[index]).max(initial=0)
            if not difference <= tolerance * largest:
                return BackboneError(
                    "codes of an image depend on the other images of its batch "
                    f"(largest difference {difference:.3g} of {largest:.3g})."
                )
    return None
