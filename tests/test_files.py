"""Files that are there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sk_cnncodes.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "codes.npz") as part:
        part.write_text("whole")
        assert names(tmp_path) == [part.name]
        assert (part.parent, part.suffix) == (tmp_path, ".npz")
    assert names(tmp_path) == ["codes.npz"]
    assert (tmp_path / "codes.npz").read_text() == "whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_former_file_survives(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "codes.npz"
    path.write_text("before")
    with pytest.raises(error), replacing(path) as part:
        part.write_text("half")
        raise error
    assert names(tmp_path) == ["codes.npz"]
    assert path.read_text() == "before"


def test_failure_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "codes.npz"):
        raise ZeroDivisionError
    assert names(tmp_path) == []
