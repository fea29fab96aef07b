"""Progress bars: they are closed with the work, and never stop it."""

from __future__ import annotations

import io
import os
import sys
import threading

import pytest

from sk_cnncodes.base.progress import progress_bar
from tests.faults.programs import output_of


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [Broken(), None])
def test_the_work_continues_if_a_bar_cannot_be_shown(
    stream: Broken | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress_bar(total=3, mininterval=0)
    for _ in range(3):
        bar.update(1)
    bar.close()


def test_no_thread_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with progress_bar(total=1) as bar:
        assert threading.active_count() == before
        bar.update(1)
    assert "1/1" in capsys.readouterr().err


def test_an_interrupt_leaves_no_lock_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's bar would have waited forever."""
    bar = progress_bar(total=1)

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bar, "sp", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bar.refresh()
    thread = threading.Thread(target=lambda: progress_bar(total=1).close(), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


FORKS = """
warnings.simplefilter("ignore")
stop = threading.Event()
def codes():
    cache = CodeCache()
    return CNNCodeTransformer(net, cache=cache, n_jobs=1, verbose=True).transform(files)
def work():
    while not stop.is_set():
        codes()
codes()
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(12):
    time.sleep(0.02)
    child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(0 if right(codes()) else 3)
    assert os.waitpid(child, 0)[1] == 0, "a child hung or was wrong"
stop.set()
for thread in threads:
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_while_threads_show_bars(given: tuple[str, ...]) -> None:
    """The child waited for the lock of tqdm or of sys.stderr."""
    output_of(FORKS, *given)
