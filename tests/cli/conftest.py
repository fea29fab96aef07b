"""Folders of photographs, and trained models, for the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sk_cnncodes.heads.presets import HEADS
from tests.cli.commands import STARTED, invoke


def copies(files: list[Path], folder: Path, count: int) -> list[Path]:
    """Copy image files; bytes after the image make the content of each unique."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        content = files[number % len(files)].read_bytes()
        path.write_bytes(content + number.to_bytes(4, "big"))
    return paths


@pytest.fixture(autouse=True)
def no_process_remains() -> Iterator[None]:
    yield
    while STARTED:
        with STARTED.pop() as process:  # closes its streams
            process.kill()


@pytest.fixture(scope="session")
def photos(
    photograph_files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with two classes of 12 photographs, and other files."""
    folder = tmp_path_factory.mktemp("photos")
    copies(photograph_files[:4], folder / "china", 12)
    copies(photograph_files[4:], folder / "flower", 12)
    (folder / "README.txt").write_text("Two classes.")
    (folder / "china" / ".DS_Store").touch()
    (folder / "flower" / "Thumbs.db").touch()
    return folder


@pytest.fixture(scope="session")
def models(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that train wrote for each head."""
    folder = tmp_path_factory.mktemp("models")
    paths = {head: folder / f"{head}.joblib" for head in HEADS}
    for head, path in paths.items():
        layers = ("--layer", "-1", "--layer", "-2")
        arguments = ("train", photos, "-o", path, "--head", head, *layers, "--cv", "3")
        result = invoke(*arguments, "--cache", folder / "codes.sqlite3")
        assert result.exit_code == 0, result.stderr
    return paths
