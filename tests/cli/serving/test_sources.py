"""Images that come while the command runs."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sk_cnncodes.cli.serving import sources
from sk_cnncodes.cli.serving.sources import WatchedFolder, as_they_come


def test_what_is_there_comes_together() -> None:
    taken = threading.Event()

    def paths() -> Iterator[str]:
        yield "a"
        taken.wait(10)
        yield from ["b", "c"]

    parts = as_they_come(paths())
    assert next(parts) == ["a"]
    taken.set()
    time.sleep(0.2)
    assert next(parts) == ["b", "c"]
    assert list(parts) == []


def test_a_fast_stream_comes_in_chunks() -> None:
    parts = list(as_they_come(map(str, range(10_000))))
    assert [path for part in parts for path in part] == list(map(str, range(10_000)))
    assert max(map(len, parts)) <= sources.CHUNK_SIZE
    assert len(parts) < 5_000


def test_an_error_comes_after_the_paths_before_it() -> None:
    def paths() -> Iterator[str]:
        yield "a"
        raise OSError("gone")

    parts = as_they_come(paths())
    assert next(parts) == ["a"]
    with pytest.raises(OSError, match="gone"):
        next(parts)


# -- a watched folder -------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inbox" / "sub").mkdir(parents=True)
    return tmp_path / "inbox"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("INTERVAL", 0.01), ("SETTLED", 0.05), ("RETRY", 0.05)):
        monkeypatch.setattr(sources, f"_{name}", seconds)
    monkeypatch.setattr(sources, "_PATIENCE", 0.5)


def within(parts: Iterator[list[str]], seconds: float = 5) -> list[str]:
    start = time.monotonic()
    found = next(parts)
    assert time.monotonic() - start < seconds
    return found


def test_new_and_changed_files(folder: Path, photograph_files: list[Path]) -> None:
    photo, other = photograph_files[:2]
    shutil.copy(photo, folder / "before.jpg")
    parts = WatchedFolder(folder, {}).parts()
    shutil.copy(photo, folder / "sub" / "a.jpg")
    (folder / "notes.txt").touch()
    (folder / ".hidden.jpg").touch()
    assert within(parts) == [str(folder / "sub" / "a.jpg")]
    shutil.copy(other, folder / "before.jpg")
    assert within(parts) == [str(folder / "before.jpg")]
    (folder / "sub" / "a.jpg").unlink()
    shutil.copy(photo, folder / "b.jpg")
    assert within(parts) == [str(folder / "b.jpg")]


def test_a_half_written_file_is_waited_for(
    folder: Path, photograph_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_PATIENCE", 60)
    content = photograph_files[0].read_bytes()
    path = folder / "slow.jpg"
    path.write_bytes(content[:1000])
    parts = WatchedFolder(folder, {})
    parts._taken.clear()  # as if it had begun after the start
    done = threading.Event()

    def write_rest() -> None:
        time.sleep(0.4)  # much longer than a file must stay as it is
        done.set()
        with open(path, "ab") as file:
            file.write(content[1000:])

    writer = threading.Thread(target=write_rest)
    writer.start()
    assert within(parts.parts()) == [str(path)]
    assert done.is_set()
    writer.join()


def test_a_bad_file_is_taken_in_the_end(folder: Path) -> None:
    parts = WatchedFolder(folder, {}).parts()
    (folder / "bad.jpg").write_text("no image")
    start = time.monotonic()
    assert within(parts) == [str(folder / "bad.jpg")]
    assert time.monotonic() - start > 0.5


def test_files_that_were_taken_otherwise(
    folder: Path, photograph_files: list[Path]
) -> None:
    watched = WatchedFolder(folder, {})
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photograph_files[0], folder / name)
    watched.leave_out([os.path.relpath(folder / "a.jpg"), "elsewhere.jpg"])
    assert within(watched.parts()) == [str(folder / "b.jpg")]


def test_a_folder_that_goes_ends_it(folder: Path) -> None:
    parts = WatchedFolder(folder, {}).parts()
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        next(parts)
