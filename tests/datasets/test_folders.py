"""Image files in folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sk_cnncodes.datasets.folders import find_images, find_labelled_images
from sk_cnncodes.images.decode import read_rgb
from sk_cnncodes.images.formats import FORMATS, image_suffixes
from tests.fuzz.image_seeds import encoded


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_has_a_suffix_and_can_be_read(name: str, tmp_path: Path) -> None:
    if name in ("HEIF", "JXL"):
        package = f"pillow_{name.lower()}"
        pytest.importorskip(package, reason=f"needs the extra {name.lower()}")
    known = [s for s, f in Image.registered_extensions().items() if f == name]
    rare = {"HEIF": ".heic", "JXL": ".jxl"}
    suffix = rare.get(name) or min(set(known) & image_suffixes())
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encoded(Image.new("RGB", (3, 3)), name))
    assert find_images(tmp_path).paths == [str(path)]
    assert read_rgb(path, 0).size == (3, 3)


def test_find_images_is_recursive_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/1.JPEG", "a/deep/3.webp", "0.jpg")
    touch(tmp_path, "notes.txt", ".hidden.jpg", ".cache/5.jpg", "b/noext")
    found = find_images(tmp_path)
    paths = [Path(path).relative_to(tmp_path).as_posix() for path in found.paths]
    assert paths == ["0.jpg", "a/deep/3.webp", "b/1.JPEG", "b/2.png"]
    assert found.ignored == 4


def test_relative_folders_give_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "photos/cat/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert find_images("photos").paths == [str(Path("photos", "cat", "1.jpg"))]
    assert find_labelled_images("photos").paths == [str(Path("photos/cat/1.jpg"))]


def test_missing_folder() -> None:
    with pytest.raises(FileNotFoundError):
        find_images("no-such-folder")


def test_labels_are_sub_folder_names(tmp_path: Path) -> None:
    touch(tmp_path, "dog/2.jpg", "cat/1.png", "cat/3.gif", "cat/in/deep/6.jpg")
    touch(tmp_path, "top.jpg", ".git/4.jpg", "cat/.5.jpg", "dog/Thumbs.db", "cow/x.txt")
    found = find_labelled_images(tmp_path)
    names = ["1.png", "3.gif", "6.jpg", "2.jpg"]
    assert [Path(path).name for path in found.paths] == names
    assert found.labels == ["cat", "cat", "cat", "dog"]
    assert (found.groups, found.splits) == (None, None)
    left_out = {each.what: each.items for each in found.left_out}
    assert left_out == {
        ".txt file": (str(Path("cow/x.txt")),),
        "entries": (".git", str(Path("cat/.5.jpg")), str(Path("dog/Thumbs.db"))),
        "image": ("top.jpg",),
        "folder": ("cow",),
    }
