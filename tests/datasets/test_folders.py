"""Image files in folders."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sk_cnncodes.datasets import image_files
from sk_cnncodes.datasets.folders import find_labelled_images
from sk_cnncodes.datasets.image_files import find_images, walk_images
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


def test_a_walk_finds_the_same_in_order_folder_by_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_BLOCK", 3)
    names = ["\U0001f408", "\ufb01", "\udcff", "a b", "a", "Z", "\xe9", "10", "9"]
    touch(tmp_path, *(f"{name}.png" for name in names), "b/2.png", "b/1.png", "x.txt")
    touch(tmp_path, "a/deep/3.png", ".hidden/4.png", "a.d/5.png")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "0-link").symlink_to(tmp_path / "a")
    found = list(walk_images(tmp_path))
    assert found == find_images(tmp_path).paths
    direct = [path for path in found if Path(path).parent == tmp_path]
    assert len(found) == len({*found}) == 13 and direct == sorted(direct)


def test_names_of_a_large_folder_take_their_bytes() -> None:
    count = 200_000
    names = image_files._ImageNames()
    tracemalloc.start()
    for number in range(count):
        name = f"IMG_{number * 7919 % count:012}_abc.jpg"
        names.take(SimpleNamespace(name=name, path=f"/images/{name}"))  # type: ignore[arg-type]
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # 24 bytes and a zero, and names that are not packed yet.
    assert held < 25 * count + 8 * 2**20
    found = names.pop_names()
    assert next(found) == "IMG_000000000000_abc.jpg"
    assert sum(1 for _ in found) == count - 1


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


def test_flat_takes_what_lies_in_the_folders_of_classes(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/in/2.jpg", "dog/in/3.jpg", "dog/4.jpg")
    found = find_labelled_images(tmp_path, flat=True)
    assert [Path(path).name for path in found.paths] == ["1.jpg", "4.jpg"]
    (left_out,) = found.left_out
    assert left_out.items == (str(Path("cat/in/2.jpg")), str(Path("dog/in/3.jpg")))
    assert left_out.cure == "Without flat=True they are of its class."
    assert len(find_labelled_images(tmp_path)) == 4


def test_system_folders_are_not_searched(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/@eaDir/1.jpg/thumb.jpg", "__MACOSX/cat/._1.jpg")
    touch(tmp_path, "$RECYCLE.BIN/2.jpg", "cat/.ipynb_checkpoints/1.jpg")
    touch(tmp_path, "dog/2.jpg", "dog/._2.jpg", "dog/desktop.ini", "dog/.DS_Store")
    found = find_labelled_images(tmp_path)
    assert [Path(path).name for path in found.paths] == ["1.jpg", "2.jpg"]
    (left_out,) = found.left_out
    assert (len(left_out.items), left_out.what) == (7, "entries")
    assert find_images(tmp_path).paths == found.paths


# -- links ---------------------------------------------------------------------


def test_links_to_folders_are_followed_alike(tmp_path: Path) -> None:
    touch(tmp_path, "other/old/1.jpg", "data/cat/2.jpg", "data/dog/3.jpg")
    try:
        (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "other")
    except OSError:
        pytest.skip("this system makes no links")
    (tmp_path / "data" / "fox").symlink_to(tmp_path / "other")
    below = [
        Path(path).relative_to(tmp_path / "data").as_posix()
        for path in find_images(tmp_path / "data").paths
    ]
    assert below == ["cat/2.jpg", "dog/3.jpg", "fox/old/1.jpg"]  # once
    found = find_labelled_images(tmp_path / "data")
    assert found.labels == ["cat", "cat", "dog", "fox"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "dog/in/2.jpg")
    try:
        (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    except OSError:
        pytest.skip("this system makes no links")
    (tmp_path / "dog" / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "dog" / "aside").symlink_to(tmp_path / "dog" / "in")
    assert len(find_images(tmp_path).paths) == 2
    found = find_labelled_images(tmp_path)
    assert found.labels == ["cat", "dog"]
    names = {"cat/again", "dog/in/up", "dog/aside"}
    (left_out,) = found.left_out
    assert {Path(item).as_posix() for item in left_out.items} == names
    assert left_out.reason == "to folders that were searched already"


# -- parts of a data set -------------------------------------------------------


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/in/2.jpg", "Test/cat/3.jpg")
    touch(tmp_path, "val/dog/4.jpg", "val/loose.jpg")
    found = find_labelled_images(tmp_path)
    assert found.labels == ["cat", "cat", "dog", "dog"]
    assert found.splits == ["test", "train", "train", "validation"]
    assert found.notes == (
        "The folders 'Test', 'train' and 'val' are taken as parts of a data set, and "
        "the folders in them as classes.",
    )
    (left_out,) = found.left_out
    assert left_out.items == (str(Path("val/loose.jpg")),)


def test_one_part_has_no_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg")
    found = find_labelled_images(tmp_path)
    assert (found.labels, found.splits) == (["cat", "dog"], None)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "train/steam/2.jpg", "bus/3.jpg")
    assert find_labelled_images(tmp_path).labels == ["bus", "train", "train"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train/cat/1.jpg", "test/cat/2.jpg", "new/3.jpg"),
            "'test' and 'train' look like parts of a data set, and 'new' beside",
        ),
        (("train/1.jpg", "test/2.jpg"), "no folders of classes in them"),
        (("1.jpg",), "found no images in its sub-folders.*such as"),
        ((), "found no images in its sub-folders. Expected one sub-folder"),
    ],
)
def test_what_is_no_folder_of_classes(
    names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        find_labelled_images(tmp_path)
