"""Runs cases in separate processes, which may crash, hang or run out of memory.

A target is a module with a function ``check(case: int) -> str``, which returns a word
for the outcome of a case and raises if the case fails.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Limits of a case: CPU seconds, and bytes beyond the use before the first case.
MAX_SECONDS = 5.0
MAX_MEMORY = 1_000_000_000
# Seconds without output; on a busy machine, a case waits for the CPU.
_SILENCE = 180.0


@dataclass
class Outcome:
    """Outcomes of cases: counts by word, and failures with their cases."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"case {case}: {fault}" for case, fault in sorted(self.failures)[:20]]
        counts = ", ".join(f"{n} {word}" for word, n in self.counts.most_common())
        return "\n".join([f"{counts}; {len(self.failures)} failures", *lines])


def asked_cases(default: int) -> int:
    """Number of cases to run: the default times `SK_CNNCODES_FUZZ`."""
    return int(default * float(os.environ.get("SK_CNNCODES_FUZZ", "1")))


def run_cases(target: str, count: int, processes: int = 2) -> Outcome:
    """Check the cases 0 to `count` of a target."""
    outcome, lock = Outcome(), threading.Lock()

    def work(first: int) -> None:
        start = first
        while start < count:
            start = _run_one_process(target, start, count, processes, outcome, lock)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def _run_one_process(
    target: str,
    start: int,
    stop: int,
    step: int,
    outcome: Outcome,
    lock: threading.Lock,
) -> int:
    """Run cases in a process until it ends; return the case to continue with."""
    command = [sys.executable, "-m", "tests.fuzz.pool", target]
    errors = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [*command, str(start), str(stop), str(step)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=errors,
    )
    assert process.stdout is not None
    case, fault, partial = start, "", b""
    while not fault:
        ready, _, _ = select.select([process.stdout], [], [], _SILENCE)
        text = os.read(process.stdout.fileno(), 2**16) if ready else b""
        if not ready:
            fault = f"no answer in {_SILENCE:g} s"
        elif not text:
            break
        *lines, partial = (partial + text).split(b"\n")
        for line in lines:
            number, word, detail = line.decode().split(" ", 2)
            case = int(number) + step
            with lock:
                if word == "failure":
                    outcome.failures.append((int(number), eval(detail)))
                else:
                    outcome.counts[word] += 1
    if fault:
        process.kill()
    process.wait()  # it has closed its output, so it is exiting
    process.stdout.close()
    if not fault and process.returncode != 0 and case < stop:
        errors.seek(0)
        fault = f"exit status {process.returncode}, {errors.read().decode()[-500:]}"
    errors.close()
    if fault:
        with lock:
            outcome.failures.append((case, fault))
        case += step
    return case if fault or case < stop else stop


def _largest_memory() -> int:
    """Peak memory of this process, in bytes."""
    if sys.platform == "linux":  # whose ru_maxrss starts at that of the parent
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _main(target: str, start: str, stop: str, step: str) -> None:
    warnings.simplefilter("ignore")
    # Libraries may write to standard output too.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    check = importlib.import_module(target).check
    with contextlib.suppress(Exception):
        check(int(start))  # one-time allocations do not count
    usage = _largest_memory()
    size = 0
    if sys.platform == "linux":  # protects the machine
        size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MAX_MEMORY,) * 2)
    for case in range(int(start), int(stop), int(step)):
        began = time.process_time()
        try:
            word, detail = check(case), ""
            seconds = time.process_time() - began
            grown = _largest_memory() - usage
            if seconds > MAX_SECONDS:
                word, detail = "failure", f"took {seconds:.1f} s"
            if grown > MAX_MEMORY:
                word, detail = "failure", f"took {grown / 1e9:.2f} GB"
        except BaseException:
            grown, word, detail = 0, "failure", traceback.format_exc()[-1500:]
        print(case, word, repr(detail), file=answers)
        if grown > MAX_MEMORY:
            return  # the peak is only reset in a new process


if __name__ == "__main__":
    _main(*itertools.islice(sys.argv, 1, None))
