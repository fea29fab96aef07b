"""Sessions: loaded code graphs, with one face for all engines and devices."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from sk_cnncodes.base.exceptions import BackboneError, DeviceError, first_line
from sk_cnncodes.base.forks import fork_lock
from sk_cnncodes.base.threads import OrderedThreadPool, ResourcePool
from sk_cnncodes.engines.devices import Device
from sk_cnncodes.engines.execution import Execution
from sk_cnncodes.engines.onnxruntime import is_out_of_memory, open_runner, padded
from sk_cnncodes.engines.quantisation import Calibration

# Codes of one image alone and in a batch may differ by this much, relative to the
# largest value: rounding does, mixed-up rows do not.
_BATCH_TOLERANCE = {
    "float32": 1e-3,
    "tf32": 1e-2,
    "float16": 1e-2,
    "bfloat16": 0.1,
    "int8": 0.1,
}
GPU_BATCH_SIZE = 64
# On a CPU, most networks are quickest with one or two images in a run: more leave the
# caches. Large dense layers want more, whose weights are then read less often.
_UNMEASURED_BATCH_SIZE = 2
_MAX_CPU_BATCH_SIZE = 64
# So many images pay for a measurement; and so much quicker must a larger batch be.
_WORTH_MEASURING = 128
_WORTHWHILE = 1.04


class RunnableGraph(Protocol):
    """A serialised model and how many images it takes in each run (None: any).

    Where its batch size was taken out (freed), some networks stand no other.
    """

    @property
    def model(self) -> bytes: ...

    @property
    def batch_size(self) -> int | None: ...

    @property
    def batch_made_dynamic(self) -> bool: ...


class Runner(Protocol):
    """A network loaded by an engine; what `CodeSession` needs of it.

    Attributes
    ----------
    provider : str
        What really runs it.
    n_concurrent_runs : int
        How many threads may call `run` at once and gain by it.
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
        Number of images that each run must have; None for any number.
    on_cpu : bool, default=True
        Whether the best batch size is found by measuring.
    """

    def __init__(
        self, runner: Runner, batch_size: int | None, *, on_cpu: bool = True
    ) -> None:
        self._runner = runner
        self.batch_size = batch_size
        self.n_concurrent_runs = runner.n_concurrent_runs
        self.provider = runner.provider
        self.image_shape = runner.image_shape
        self._on_cpu = on_cpu
        self._measuring = threading.Lock()
        self._limiting = threading.Lock()
        self._measured: int | None = None
        # How many images fit into memory; None while all did.
        self._most: int | None = None

    def choose_batch_size(self, n_images: int) -> int:
        """How many images a run should have, if there are so many in all.

        On a CPU it is measured once for many images: the batch is doubled until that
        gains nothing.
        """
        if self.batch_size is not None:
            return self.batch_size
        if not self._on_cpu:
            return min(GPU_BATCH_SIZE, self._most or GPU_BATCH_SIZE)
        if n_images < _WORTH_MEASURING:
            return _UNMEASURED_BATCH_SIZE
        with self._measuring:
            if self._measured is None:
                self._measured = self._quickest_batch_size()
        return min(self._measured, -(-n_images // (2 * self.n_concurrent_runs)))

    def _quickest_batch_size(self) -> int:
        size, quickest = 1, self._images_per_second(1)
        while size < _MAX_CPU_BATCH_SIZE:
            doubled = self._images_per_second(2 * size)
            if doubled < _WORTHWHILE * quickest:
                break
            size, quickest = 2 * size, doubled
        return size

    def _images_per_second(self, batch_size: int) -> float:
        """Speed of all callers together: the best of three rounds."""
        images = np.zeros((batch_size, *self.image_shape), np.uint8)
        at_once = [images] * self.n_concurrent_runs
        with OrderedThreadPool(
            self.n_concurrent_runs, "sk_cnncodes-measure"
        ) as callers:
            seconds = []
            for _ in range(4):  # the first one finds its memory
                start = time.perf_counter()
                list(callers.in_order(self.run, at_once, self.n_concurrent_runs))
                seconds.append(time.perf_counter() - start)
        return batch_size * self.n_concurrent_runs / min(seconds[1:])

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Codes of a batch. Several threads may call it at once.

        Where memory, above all that of a GPU, does not hold the batch, it is halved,
        once and for all, with a warning.

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
            If the network does not return one row an image.
        DeviceError
            If memory does not hold a single image.
        """
        if self.batch_size is not None:
            return self._run_in_parts(images, self.batch_size, fill=True)
        most = self._most
        if most is not None and len(images) > most:
            return self._run_in_parts(images, most, fill=False)
        try:
            return self._run(images)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._halve_batch(len(images), error)
        return self.run(images)

    def _run_in_parts(
        self, images: np.ndarray, size: int, *, fill: bool
    ) -> list[np.ndarray]:
        """Run some images after others; `fill` the last part up with copies."""
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            rows = len(part)
            if fill:
                part = padded(part, size)
            made = self._run(part) if fill else self.run(part)
            parts.append([codes[:rows] for codes in made])
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def _halve_batch(self, tried: int, error: Exception) -> None:
        """Halve the batches after one that memory did not hold; say so once."""
        memory = "memory" if self._on_cpu else "the GPU's memory"
        if tried == 1:
            other = "" if self._on_cpu else ", or device='cpu'"
            raise DeviceError(
                f"{self.provider}: {memory} does not hold a run of one image "
                f"({first_line(error)}). Expected more of it to be free, a smaller "
                f"backbone, or an earlier layer{other}."
            ) from error
        with self._limiting:
            first = self._most is None
            self._most = min(self._most or tried, -(-tried // 2))
        if first:
            warnings.warn(
                f"{self.provider}: {memory} does not hold {tried} images at "
                f"once; it goes on with {self._most}, or fewer. batch_size={self._most}"
                " avoids the attempt.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        outputs = self._runner.run(images)
        for codes in outputs:
            if codes.ndim != 2 or len(codes) != len(images):
                raise BackboneError(
                    f"the network returned codes of shape {codes.shape} for "
                    f"{len(images)} images. Expected one row an image."
                )
        return outputs


class MultiDeviceRunner:
    """The same network on several devices, used at once.

    Parameters
    ----------
    runners : list of Runner
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self.n_concurrent_runs = sum(runner.n_concurrent_runs for runner in runners)
        self.provider = runners[0].provider
        self.image_shape = runners[0].image_shape
        # In turns, so that the first batches go to different devices.
        self._runners = ResourcePool(
            runner
            for turn in range(max(runner.n_concurrent_runs for runner in runners))
            for runner in runners
            if turn < runner.n_concurrent_runs
        )

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Codes of a batch, from the device that has waited longest."""
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
        A device stands for ONNX Runtime in float32 on it.
    n_threads : int
        CPU threads of all runs together.
    n_concurrent_runs : int, default=1
        How many threads will call `run` at once on the CPU; each run has its share of
        `n_threads`.
    calibration : Calibration or None, default=None
        What int8 needs.

    Raises
    ------
    BackboneError
        If the engine loads or runs none of them.
    DeviceError
        If a required GPU does not work.
    """
    if isinstance(execution, Device):
        execution = Execution(devices=(execution,))
    fault: Exception | None = None
    for graph in graphs:
        try:
            if graph.batch_made_dynamic and execution.engine == "openvino":
                _check_freed(graph, n_threads)
            with fork_lock:
                runner = _open_runner(
                    graph, execution, n_threads, n_concurrent_runs, calibration
                )
            on_cpu = runner.provider in ("CPUExecutionProvider", "OpenVINO")
            session = CodeSession(runner, graph.batch_size, on_cpu=on_cpu)
            fault = _batch_fault(session, _BATCH_TOLERANCE[execution.precision])
        except DeviceError:
            raise
        except Exception as error:
            fault = error
        if fault is None:
            return session
    assert fault is not None
    engine = "OpenVINO" if execution.engine == "openvino" else "ONNX Runtime"
    raise BackboneError(
        f"{engine} cannot run the backbone: {first_line(fault)}"
    ) from fault


def _check_freed(graph: RunnableGraph, n_threads: int) -> None:
    """Fail where ONNX Runtime finds shapes that contradict each other.

    OpenVINO runs such a graph, and reads or writes outside of its memory.
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
    """A graph in its precision, loaded by its engine on all its devices."""
    model = in_precision(graph.model, execution.precision, calibration)
    if execution.engine == "openvino":
        from sk_cnncodes.engines.openvino import OpenVinoRunner

        return OpenVinoRunner(
            model,
            n_threads=n_threads,
            n_concurrent_runs=n_concurrent_runs,
            bfloat16=execution.precision == "bfloat16",
        )
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
    """A float32 code graph as an engine wants it for a precision.

    float16 and int8 are written into the graph; the others are options of the engine.
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
    """Run two images alone and together; what is wrong with the rows, if anything.

    In a batch of baked-in size, an image alone has copies of itself beside it.
    """
    rng = np.random.default_rng(0)
    shape = session.image_shape
    coarse = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
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
