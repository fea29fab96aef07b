"""The check itself: parts in processes of their own, with their time limits."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.gpu.check import (
    PARTS,
    Part,
    chosen_parts,
    print_table,
    read_records,
    run_parts,
)
from tests.gpu.context import Context


def works(context: Context) -> None:
    context.record("process", number=os.getpid(), images_per_second=1234.5)


def overruns(context: Context) -> None:
    sleeper = subprocess.Popen(["sleep", "100"])
    context.record("before", sleeper=sleeper.pid)
    time.sleep(100)


def fails(context: Context) -> None:
    context.record("before", ok=True)
    raise RuntimeError("as it should")


def part(name: str, limit: float, group: str) -> Part:
    return Part(name, f"tests.gpu.test_check:{name}", limit, group)


def test_each_part_has_its_process_and_its_limit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An overrun and an error are recorded, and the next part runs."""
    folders = {"out": tmp_path, "data": tmp_path, "work": tmp_path}
    options = {k: str(v) for k, v in folders.items()} | {"quick": "1"}
    parts = [
        part("fails", 60, "first"),
        part("overruns", 8, "first"),
        part("works", 60, "last"),
    ]
    ends = run_parts(parts, options)
    assert [(end["part"], end["ended"]) for end in ends] == [
        ("fails", "failed, exit code 1"),
        ("overruns", "killed after 8 s"),
        ("works", "done"),
    ]
    records = read_records(tmp_path)
    named = {(r["part"], r["name"]): r for r in records}
    assert named["fails", "before"]["ok"]
    assert named["fails", "failed"]["error"] == "RuntimeError: as it should"
    assert named["works", "process"]["number"] != os.getpid()
    sleeper = named["overruns", "before"]["sleeper"]
    state = Path(f"/proc/{sleeper}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    # Each line was written when it was found, the last one when its part had ended.
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert (records[-1]["part"], records[-1]["name"]) == ("works", "end")
    print_table(records)
    printed = capfd.readouterr().out
    assert "works: process: number" in printed
    assert "works" in printed.partition("== images a second")[2]
    assert "as it should" in printed.partition("== not as it should be")[2]
    assert "overruns killed after 8 s" in printed.partition("== parts")[2]


def test_parts_are_chosen_by_name_or_by_what_they_belong_to() -> None:
    assert chosen_parts("") == PARTS
    chosen = [each.name for each in chosen_parts("faults:fork, parity,doctor")]
    parity = [p.name for p in PARTS if p.name.startswith("parity:")]
    assert chosen == ["doctor", *parity, "faults:fork"]
    with pytest.raises(SystemExit, match="unknown parts \\['speed'\\]"):
        chosen_parts("speed")
    assert len({each.name for each in PARTS}) == len(PARTS)
