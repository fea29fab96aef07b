"""Atomic writes and refused outputs."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer
from sk_cnncodes.base.files import (
    atomic_write,
    check_not_an_input,
    is_running,
    remove_unfinished,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_file_appears_only_when_complete(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "codes.npz") as part:
        part.write_text("whole")
        assert names(tmp_path) == [part.name]
        assert (part.parent, part.suffix) == (tmp_path, ".npz")
    assert names(tmp_path) == ["codes.npz"]
    assert (tmp_path / "codes.npz").read_text() == "whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_existing_file_survives(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "codes.npz"
    path.write_text("before")
    with pytest.raises(error), atomic_write(path) as part:
        part.write_text("half")
        raise error
    assert names(tmp_path) == ["codes.npz"]
    assert path.read_text() == "before"


def test_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "codes.npz"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_the_target_of_a_symlink_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "codes.csv", tmp_path / "link.csv"
    target.write_text("before")
    link.symlink_to(target)
    with atomic_write(link) as part:
        part.write_text("after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert names(target.parent) == ["codes.csv"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    with atomic_write(pipe) as part:
        part.write_text("rows")
    reader.join()
    assert (found, pipe.is_fifo(), names(tmp_path)) == (["rows"], True, ["pipe"])


def test_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder '.*gone'"):
        atomic_write(tmp_path / "gone" / "codes.npy").__enter__()
    with pytest.raises(IsADirectoryError, match="is a folder. Expected a file name"):
        atomic_write(tmp_path).__enter__()


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    model, link = tmp_path / "model.joblib", tmp_path / "link.joblib"
    model.touch()
    link.symlink_to(model)
    check_not_an_input(tmp_path / "labels.csv", [model, "a\0b", "gone"])
    for output in (model, link, tmp_path / "." / "model.joblib"):
        with pytest.raises(ValueError, match="output .*it is one of the inputs"):
            check_not_an_input(output, [model])
    with pytest.raises(ValueError, match="one of the inputs"):
        check_not_an_input(tmp_path / "new.sqlite3", [tmp_path / "new.sqlite3"])


def test_codes_do_not_replace_an_image(
    photograph_files: list[Path], tmp_path: Path
) -> None:
    image = tmp_path / "image.jpg"
    image.write_bytes(photograph_files[0].read_bytes())
    transformer = CNNCodeTransformer().fit([image])
    with pytest.raises(ValueError, match="output '.*image.jpg': it is one of the"):
        transformer.transform_to(image, [photograph_files[1], str(image)])
    assert image.read_bytes() == photograph_files[0].read_bytes()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_full_disk_is_reported_before_codes_are_written(
    photographs: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int, _start: int, length: int) -> None:
        assert length == 128 + 8 * 800 * 4
        raise OSError(errno.ENOSPC, "No space left on device")

    transformer = CNNCodeTransformer().fit(photographs)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            transformer.transform_to(tmp_path / "codes.npy", photographs)
    assert names(tmp_path) == []


def test_threads_write_to_one_path(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    transformer = CNNCodeTransformer().fit(photographs)
    expected = transformer.transform(photographs)
    results: list[np.ndarray] = []

    def write() -> None:
        codes = transformer.transform_to(tmp_path / "codes.npy", photographs)
        results.append(np.array(codes))

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(threads)
    for codes in results:
        np.testing.assert_array_equal(codes, expected)
    assert names(tmp_path) == ["codes.npy"]


def test_a_full_disk_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left")
    assert str(caught.value).endswith(f"No space left: {str(path)!r}")


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot delete folders in use")
def test_a_deleted_working_directory(tmp_path: Path) -> None:
    """A missing image aborted the run, with an error that did not name it."""
    folder = tmp_path / "gone"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        folder.rmdir()
        image = np.zeros((9, 9, 3), np.uint8)
        transformer = CNNCodeTransformer(cache=None, on_error="nan")
        with pytest.warns(UserWarning, match="start from a folder that was deleted"):
            codes = transformer.transform(["missing.png", image])
        assert np.isnan(codes).any(axis=1).tolist() == [True, False]
    finally:
        os.chdir(before)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder of Linux")
def test_errors_name_the_file_not_its_temporary_one() -> None:
    with (
        pytest.raises(OSError, match="'/proc/x.csv'") as caught,
        atomic_write(Path("/proc/x.csv")) as part,
    ):
        part.write_text("")
    assert caught.value.filename == "/proc/x.csv"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_device_is_named() -> None:
    with (
        pytest.raises(OSError, match="No space left.*'/dev/full'"),
        atomic_write(Path("/dev/full")) as part,
    ):
        part.write_text("x")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere it cannot be asked")
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert is_running(os.getpid()) and is_running(1)
    assert not is_running(ended.pid) and not is_running(2**70)
    path = tmp_path / "a.index"
    names = [f".a.{process}-0f.part.index" for process in (ended.pid, os.getpid())]
    names += [f".b.{ended.pid}-0f.part.index", f".a.{ended.pid}-1e.part.index"]
    for name in names:
        (tmp_path / name).write_bytes(b"part")
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / names[3])  # perhaps another machine writes it
    remove_unfinished(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names[1:])
    # The names are those that `atomic_write` gives.
    with atomic_write(path) as part:
        stem = rf"\.a\.{os.getpid()}-[0-9a-f]+\.part\.index"
        assert re.fullmatch(stem, part.name)
        part.write_bytes(b"all")
