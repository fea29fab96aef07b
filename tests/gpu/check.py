"""Everything about the GPU in one command, for a machine that is lent for minutes.

    python -m tests.gpu.check [--parts NAME,NAME] [--out FOLDER] [--quick]

Each part has a process of its own and a time limit. What it finds is printed and
appended to `results.jsonl` in the output folder at once, so that a cut loses little; a
table comes last. `python -m tests.gpu.data` fills `.gpu/data`, which has to be carried
to the machine. Without a GPU all parts run on the CPU with small sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.gpu.context import readable, write_record
from tests.gpu.data import CARRIED, ROOT

PARITY = (
    *("resnet50", "vit_b16", "mobilenet_v2"),
    *("vit_s16", "squeezenet1.1", "cnncodes-mini"),
)


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes
    ----------
    name : str
        Those with a colon belong together: "parity:resnet50" is run by "parity" too.
    target : str
        Module and function.
    limit : float
        Seconds after which it is killed.
    group : str
        Parts of the same group that follow each other run at the same time. Those that
        measure time are alone in theirs.
    """

    name: str
    target: str
    limit: float
    group: str


# In the order of their worth; what is not timed runs at the same time.
PARTS = [
    Part("prepare", "tests.gpu.prepare:prepare", 60, "prepare"),
    Part("doctor", "tests.gpu.prepare:doctor", 40, "prepare"),
    *(Part(f"parity:{n}", "tests.gpu.parity:parity", 75, "right") for n in PARITY),
    Part("tests", "tests.gpu.prepare:marked_tests", 75, "right"),
    Part("faults:sessions", "tests.gpu.faults:two_sessions", 50, "right"),
    Part("faults:device", "tests.gpu.faults:missing_device", 30, "right"),
    Part("faults:fork", "tests.gpu.faults:fork_after_use", 50, "right"),
    Part("faults:pickle", "tests.gpu.faults:pickling", 50, "right"),
    Part("faults:loky", "tests.gpu.faults:loky_workers", 60, "right"),
    Part("faults:image", "tests.gpu.faults:bad_image", 50, "right"),
    Part("throughput", "tests.gpu.speed:throughput", 120, "throughput"),
    Part("stages", "tests.gpu.stages:stages", 60, "stages"),
    Part("faults:memory", "tests.gpu.faults:huge_batch", 60, "memory"),
    Part("faults:full", "tests.gpu.faults:full_memory", 50, "full"),
    Part("decode", "tests.gpu.stages:decode_limits", 45, "decode"),
    Part("torch", "tests.gpu.torch_pipeline:torch_pipeline", 100, "torch"),
    Part("variants", "tests.gpu.variants:variants", 90, "variants"),
    Part("precisions", "tests.gpu.speed:precisions", 60, "precisions"),
    Part("jpeg", "tests.gpu.optional:gpu_jpeg", 50, "jpeg"),
    Part("tensorrt", "tests.gpu.optional:tensorrt", 90, "tensorrt"),
]


def chosen_parts(names: str) -> list[Part]:
    """The parts of a list such as "doctor,parity,faults:fork"; "" means all."""
    if not names:
        return PARTS
    wanted = [name.strip() for name in names.split(",")]
    known = {part.name for part in PARTS} | {p.name.split(":")[0] for p in PARTS}
    if unknown := set(wanted) - known:
        raise SystemExit(f"unknown parts {sorted(unknown)}; known: {sorted(known)}")
    return [p for p in PARTS if p.name in wanted or p.name.split(":")[0] in wanted]


class Running:
    """A part that runs: its process, which is the first of a session of its own."""

    def __init__(self, part: Part, options: dict[str, Any], log: Any) -> None:
        self.part = part
        self._start = time.monotonic()
        given = {**options, "part": part.name, "target": part.target}
        environment = os.environ | {
            "SK_CNNCODES_HOME": str(Path(options["work"]) / "home"),
            "SK_CNNCODES_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.child", json.dumps(given)],
            cwd=ROOT,
            env=environment,
            stderr=log,
            start_new_session=True,
        )

    def end(self) -> dict[str, Any] | None:
        """How it ended, None if it runs; at its limit it is killed."""
        code = self._process.poll()
        seconds = time.monotonic() - self._start
        if code is None and seconds < self.part.limit:
            return None
        self.kill()
        ended = "done" if code == 0 else f"failed, exit code {code}"
        if code is None:
            ended = f"killed after {self.part.limit:.0f} s"
        return {"ended": ended, "ok": code == 0, "seconds": round(seconds, 2)}

    def kill(self) -> None:
        """End the process and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # in the driver; the others go on
            print(f"{self.part.name}: does not end", flush=True)


def run_parts(parts: Sequence[Part], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Run parts group by group; how each of them ended.

    `options` are those of `Context` but the part, as strings.
    """
    out = Path(options["out"])
    ends = []
    with open(out / "stderr.log", "ab") as log:
        for _, group in groupby(parts, key=lambda part: part.group):
            running = [Running(part, options, log) for part in group]
            left = list(running)
            try:
                while left:
                    time.sleep(0.02)
                    for each in [*left]:
                        if (end := each.end()) is None:
                            continue
                        left.remove(each)
                        ends.append({"part": each.part.name, "name": "end", **end})
                        write_record(out, ends[-1])
            finally:
                for each in running:
                    each.kill()
    return ends


def read_records(out: Path) -> list[dict[str, Any]]:
    """All results; a line that was cut is left out."""
    records = []
    for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            print(f"not a result: {line[:80]}")
    return records


def print_table(records: list[dict[str, Any]]) -> None:
    """Speeds, then what is not as it should be, then how the parts ended."""
    print("\n== images a second")
    for key, group in groupby(records, key=lambda r: (r["part"], _stem(r["name"]))):
        speeds = [
            f"{r['name'].removeprefix(key[1])} {r['images_per_second']:.0f}"
            for r in group
            if r.get("images_per_second")
        ]
        if speeds:
            print(f"{key[0]:<10} {key[1]}{''.join(speeds)}")
    print("\n== not as it should be")
    for record in records:
        if record.get("ok") is False:
            hidden = ("part", "name", "ok")
            values = {k: v for k, v in record.items() if k not in hidden}
            print(f"{record['part']}: {record['name']}: {readable(values)[:400]}")
    print("\n== parts")
    ends = [r for r in records if r["name"] == "end"]
    print("  ".join(f"{r['part']} {r['ended']} {r['seconds']:.0f}s" for r in ends))


def _stem(name: str) -> str:
    """A name without what follows its last comma."""
    return str(name).rpartition(",")[0] or str(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="", help="names with commas; default all")
    parser.add_argument("--out", default=os.environ.get("OUT", ""))
    parser.add_argument("--data", default=str(CARRIED))
    parser.add_argument("--quick", action="store_true", help="measure for a moment")
    given = parser.parse_args()
    parts = chosen_parts(given.parts)
    out = Path(given.out or tempfile.mkdtemp(prefix="sk_cnncodes-gpu-"))
    out.mkdir(parents=True, exist_ok=True)
    # Kept from call to call on the same machine.
    work = Path(tempfile.gettempdir()) / "sk_cnncodes-gpu-check"
    work.mkdir(exist_ok=True)
    options = {"out": str(out), "data": given.data, "work": str(work)}
    options["quick"] = "1" if given.quick else ""
    if not Path("/dev/nvidiactl").exists() and not Path("/proc/driver/nvidia").exists():
        print("No GPU: a rehearsal on the CPU, with four times the limits.")
        parts = [replace(part, limit=4 * part.limit) for part in parts]
    start = time.monotonic()
    try:
        run_parts(parts, options)
    finally:
        records = read_records(out)
        text = json.dumps(records, indent=1)
        (out / "results.json").write_text(text, encoding="utf-8")
        print_table(records)
        print(f"{time.monotonic() - start:.0f} s in all; results in {out}")


if __name__ == "__main__":
    main()
