"""Workers: ordered results, bounded concurrency, and no threads left afterwards."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, ImageError, Preprocessing, load_backbone
from sk_cnncodes.codes.elements import Elements
from sk_cnncodes.codes.workers import Workers
from tests import networks


class Mean:
    """A session whose code is the mean colour; later images take less time."""

    def __init__(self, n_concurrent_runs: int, fail_at: int | None = None) -> None:
        self.n_concurrent_runs = n_concurrent_runs
        self.on_cpu = True
        self.fail_at = fail_at
        self.sizes: list[int] = []
        self.callers: set[str] = set()
        self.running = self.most_running = 0
        self._lock = threading.Lock()

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.callers.add(threading.current_thread().name)
            self.sizes.append(len(images))
            if self.fail_at is not None and len(self.sizes) > self.fail_at:
                self.running -= 1
                raise MemoryError("no more")
        time.sleep(0.001 * float(255 - images.mean()) / 50)
        with self._lock:
            self.running -= 1
        return [images.mean((1, 2)).astype(np.float32)]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, plain: Preprocessing) -> str:
    model = networks.resnet()
    for key, value in plain.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return networks.save(model, tmp_path_factory.mktemp("net") / "net.onnx")


def images_of(count: int) -> list[Any]:
    return [np.full((8, 8, 3), number % 256, np.uint8) for number in range(count)]


def run(
    net: str,
    images: list[Any],
    session: Mean,
    n_threads: int,
    size: int,
    stop_at_fault: bool = True,
) -> tuple[list[int], np.ndarray, list[ImageError]]:
    """Positions with codes, the codes, and the faults, in the order returned."""
    spec = load_backbone(net).spec(-1, "auto", None)
    rows, codes, faults = [], [], []
    with Workers(
        Elements(images), spec, n_threads, stop_at_fault=stop_at_fault
    ) as workers:
        items = ((index, None) for index in range(len(images)))
        for batch in workers.run(items, session, size):
            rows += [o.index for o in batch.outcomes if o.fault is None]
            faults += [o.fault for o in batch.outcomes if o.fault is not None]
            if faults and stop_at_fault:
                break
            codes += [part[:, 0] for part in batch.outputs]
    return rows, np.concatenate(codes) if codes else np.empty(0), faults


def remaining_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("sk_cnncodes")]


@pytest.mark.parametrize(
    ("n_threads", "n_concurrent_runs"), [(1, 1), (1, 4), (3, 3), (4, 1), (4, 2)]
)
@pytest.mark.parametrize("size", [1, 3, 50])
def test_codes_come_in_order(
    net: str, n_threads: int, n_concurrent_runs: int, size: int
) -> None:
    session = Mean(n_concurrent_runs)
    rows, codes, faults = run(net, images_of(40), session, n_threads, size)
    assert rows == list(range(40))
    np.testing.assert_allclose(codes, range(40))
    assert not faults
    assert max(session.sizes) <= size
    assert session.most_running <= min(n_concurrent_runs, n_threads)
    prefix = "MainThread" if 1 in (n_threads, n_concurrent_runs) else "sk_cnncodes-"
    assert all(name.startswith(prefix) for name in session.callers)
    assert not remaining_threads()


@pytest.mark.parametrize("n_concurrent_runs", [1, 4])
def test_bad_images_do_not_shift_rows(net: str, n_concurrent_runs: int) -> None:
    images = images_of(30)
    for bad in (0, 7, 8, 29):
        images[bad] = b"no image"
    rows, codes, faults = run(
        net, images, Mean(n_concurrent_runs), 4, 3, stop_at_fault=False
    )
    good = [row for row in range(30) if row not in (0, 7, 8, 29)]
    assert rows == good
    np.testing.assert_allclose(codes, good)
    assert [fault.index for fault in faults] == [0, 7, 8, 29]


@pytest.mark.parametrize("n_concurrent_runs", [1, 4])
def test_the_first_fault_is_that_of_the_first_bad_image(
    net: str, n_concurrent_runs: int, tmp_path: Path
) -> None:
    """Even though that image takes longer to fail than the next one."""
    images = images_of(40)
    large = np.zeros((2000, 2000, 3), np.float64)
    large[-1, -1] = 7  # out of range, found only after checking all values
    images[5], images[6], images[9] = large, b"no image", str(tmp_path / "gone.jpg")
    _, _, faults = run(net, images, Mean(n_concurrent_runs), 4, 1)
    assert faults[0].index == 5
    transformer = CNNCodeTransformer(net, n_jobs=4, cache=None)
    with pytest.raises(ImageError, match="image 5"):
        transformer.transform(images)
    assert not remaining_threads()


@pytest.mark.parametrize("n_concurrent_runs", [1, 4])
def test_a_session_error_ends_all_threads(net: str, n_concurrent_runs: int) -> None:
    session = Mean(n_concurrent_runs, fail_at=2)
    with pytest.raises(MemoryError, match="no more"):
        run(net, images_of(2000), session, 4, 2)
    assert len(session.sizes) < 40
    assert not remaining_threads()


# Python itself drops a Ctrl-C that arrives while an object is being deleted.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("n_concurrent_runs", [1, 4])
def test_ctrl_c_ends_all_threads(net: str, n_concurrent_runs: int) -> None:
    session, ended = Mean(n_concurrent_runs), threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.4):
            _thread.interrupt_main()

    # Shells start background processes with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threading.Thread(target=interrupt).start()
            run(net, images_of(100_000), session, 4, 2)
        assert not remaining_threads()
    finally:
        ended.set()
        signal.signal(signal.SIGINT, before)


def test_codes_do_not_depend_on_threads_and_batches(
    net: str, photographs: list[np.ndarray]
) -> None:
    images = photographs * 20
    expected = CNNCodeTransformer(net, cache=None, n_jobs=1, batch_size=1).transform(
        images
    )
    for n_jobs in (1, 2, 5):
        for batch_size in ("auto", 2, 7, 64):
            codes = CNNCodeTransformer(
                net, cache=None, n_jobs=n_jobs, batch_size=batch_size
            ).transform(images)
            np.testing.assert_allclose(codes, expected, rtol=1e-5, atol=1e-5)
