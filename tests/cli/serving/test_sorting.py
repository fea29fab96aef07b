"""Folders by label: nothing is moved or replaced, and names are safe on all systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from sk_cnncodes.cli.serving.predictor import Prediction
from sk_cnncodes.cli.serving.sorting import (
    LabelFolders,
    check_sorted_folder,
    folder_names,
)


def listed(folder: Path) -> list[str]:
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    return sorted(name for name in found if not (folder / name).is_dir())


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cat", "cat"),
        ("größe", "größe"),
        ("a/b", "a_b"),
        ("a\\b", "a_b"),
        ("..", "_"),
        (".", "_"),
        ("", "_"),
        ("../../etc", "_._.._etc"),
        (".hidden", "_hidden"),
        ("/etc", "_etc"),
        ("C:", "C_"),
        ("NUL", "NUL_"),
        ("com1.txt", "com1.txt_"),
        ("dog. ", "dog"),
        ("line\nbreak", "line_break"),
        ("x" * 300, "x" * 100),
    ],
)
def test_safe_names(label: str, name: str) -> None:
    assert folder_names([label]) == {label: name}
    assert Path("sorted", name).resolve().parent == Path("sorted").resolve()


def test_different_labels_have_different_folders() -> None:
    names = folder_names(["a/b", "a_b", "A_B", "a:b"])
    assert len({name.casefold() for name in names.values()}) == 4


def test_a_label_called_unknown_shares_the_folder(tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(b"a")
    folders = LabelFolders(tmp_path / "to", ["unknown", "cat"], links=False)
    folders.put(str(image), Prediction("unknown"))
    assert listed(tmp_path / "to") == ["unknown/a.jpg"]


def test_copies_neither_move_nor_replace(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tar.jpg").write_bytes(name.encode())
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "a.tar.jpg").write_bytes(b"two")
    images = [tmp_path / f / "a.tar.jpg" for f in ("one", "two", "three", "same")]
    os.utime(images[0], (1e9, 1e9))
    for again in (False, True):
        folders = LabelFolders(tmp_path / "to", ["cat"], links=False)
        for image in images:
            folders.put(str(image), Prediction("cat"))
        assert (folders.added, folders.kept) == ((0, 4) if again else (3, 1))
        to = tmp_path / "to" / "cat"
        assert {path.name: path.read_text() for path in to.iterdir()} == {
            "a.tar.jpg": "one",
            "a.tar-2.jpg": "two",
            "a.tar-3.jpg": "three",
        }
    assert (to / "a.tar.jpg").stat().st_mtime == 1e9
    assert all(image.exists() for image in images)


def test_links_lead_to_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Path("in", name).write_bytes(name.encode())
    try:
        Path("try").symlink_to("in")
    except OSError:
        pytest.skip("no symbolic links here")
    for _ in range(2):
        folders = LabelFolders(Path("to"), [3], links=True)
        for name in ("a.jpg", "b.jpg"):
            folders.put(f"in/{name}", Prediction(3))
    assert folders.summary() == (
        "0 links in 'to', in a folder per label; 2 were there already."
    )
    assert listed(tmp_path / "to") == ["3/a.jpg", "3/b.jpg"]
    assert Path("to/3/a.jpg").is_symlink()
    assert Path("to/3/b.jpg").read_bytes() == b"b.jpg"


def test_a_broken_link_of_that_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "to" / "cat").mkdir(parents=True)
    (tmp_path / "to" / "cat" / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    folders = LabelFolders(tmp_path / "to", ["cat"], links=False)
    folders.put(str(tmp_path / "a.jpg"), Prediction("cat"))
    assert (tmp_path / "to" / "cat" / "a.jpg").is_symlink()
    assert (tmp_path / "to" / "cat" / "a-2.jpg").read_bytes() == b"a"


def test_several_labels_and_none(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    folders = LabelFolders(tmp_path / "to", ["cat", "dog"], links=False)
    folders.put(str(tmp_path / "a.jpg"), Prediction(["cat", "dog"]))
    folders.put(str(tmp_path / "a.jpg"), Prediction([]))
    assert listed(tmp_path / "to") == ["cat/a.jpg", "dog/a.jpg", "unknown/a.jpg"]


def test_no_part_of_a_copy_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.jpg").write_bytes(b"a")
    monkeypatch.setattr("shutil.copyfileobj", full)
    folders = LabelFolders(tmp_path / "to", ["cat"], links=False)
    with pytest.raises(OSError, match=r"No space left.*cat.a\.jpg"):
        folders.put(str(tmp_path / "a.jpg"), Prediction("cat"))
    assert listed(tmp_path / "to") == []


def test_not_inside_of_what_is_sorted(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    check_sorted_folder(tmp_path / "sorted", [tmp_path / "photos", "-", "a.jpg"])
    check_sorted_folder(tmp_path, [tmp_path / "photos"])
    for folder in (tmp_path / "photos", tmp_path / "photos" / "sorted"):
        with pytest.raises(typer.BadParameter, match="Expected a folder outside"):
            check_sorted_folder(folder, [tmp_path / "photos"])
    (tmp_path / "file").touch()
    with pytest.raises(typer.BadParameter, match="is no folder"):
        check_sorted_folder(tmp_path / "file", [])
