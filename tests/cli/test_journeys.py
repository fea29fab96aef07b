"""Whole jobs from shell commands, with data as people have it."""

from __future__ import annotations

import csv
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import run

# -- the curator: a tree that grew over years ----------------------------------


@pytest.fixture(scope="module")
def messy_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paintings and pots, and whatever else lies around."""
    folder = tmp_path_factory.mktemp("archive") / "Fotos 2019 & neu"
    rng = np.random.default_rng(0)

    def save(name: str, hue: int, suffix: str = ".jpg") -> Path:
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (72, 96, 3))
        pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
        pixels[..., hue] += 100
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return path

    for number in range(14):
        save(f"Gemälde/Öl/{'ABC'[number % 3]}/Bild {number}", 0)
        save(f"陶器/pot_{number}", 2, ".png")
    save("einzeln/nur eins", 1)
    save("Gemälde/@eaDir/Bild 0.jpg/SYNOPHOTO_THUMB_M", 0)
    save("__MACOSX/Gemälde/._Bild 0", 0)
    save("lose", 1)
    (folder / "Gemälde" / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (folder / "陶器" / "DSC_0001.NEF").write_bytes(b"MM\0*")
    (folder / "Gemälde" / "Thumbs.db").touch()
    (folder / "Liste.xlsx").touch()
    (folder / "leer").mkdir()
    # Two that cannot be read, and a scan of 60 megapixels, whose file is small.
    good = (folder / "陶器" / "pot_0.png").read_bytes()
    (folder / "陶器" / "halb.png").write_bytes(good[: len(good) // 2])
    (folder / "陶器" / "nichts.jpg").write_bytes(b"")
    Image.new("L", (10_000, 6_000), 90).save(folder / "Gemälde" / "Scan.png")
    outside = folder.parent / "nachgereicht"
    outside.mkdir()
    save("../nachgereicht/später", 2)
    try:
        (folder / "陶器" / "nachgereicht").symlink_to(outside)
    except OSError:
        pytest.skip("this system makes no links")
    (folder / "Gemälde" / "Kreis").symlink_to(folder)
    return folder


def test_the_curator(messy_tree: Path, tmp_path: Path) -> None:
    """A model, a report, and a list of what was not used, and why."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    model, page = tmp_path / "model.joblib", tmp_path / "report.html"
    options = ("--layer", "-1", "--head", "lda", "--json")
    result = run("train", messy_tree, "-o", model, "--report", page, *options)
    assert result.returncode == 3, result.stderr
    assert model.exists()
    text = page.read_text(encoding="utf-8")
    assert "Gemälde" in text and "陶器" in text
    assert json.loads(result.stdout)["report"] == str(page)
    said = result.stderr
    # With pillow-heif, the HEIC file is an image, and one that cannot be read.
    heic = int(find_spec("pillow_heif") is not None)
    assert f"{messy_tree}: {33 + heic} images of 3 classes." in said
    assert re.search(r"\neinzeln +1\n", said) and re.search(r"\n陶器 +17\n", said)
    assert heic or "1 .heic file: cannot be read here (" in said
    assert "1 .nef file: cannot be read here (" in said
    assert "Convert them to JPEG, PNG or TIFF." in said
    assert "Classes with one image to train on: 'einzeln'." in said
    assert "halb.png: " in said and "nichts.jpg: " in said
    assert f"{3 + heic} images could not be read." in said
    assert "10000 x 6000 pixels" in said and "--max-pixels" in said
    found = json.loads(result.stdout)
    assert found["images"] == 30
    assert found["classes"] == ["Gemälde", "einzeln", "陶器"]
    assert found["held_out"]["accuracy"] > 0.9
    unreadable = {Path(each["path"]).name for each in found["unreadable"]}
    assert unreadable == {
        *("halb.png", "nichts.jpg", "Scan.png"),
        *["IMG_0001.HEIC"] * heic,
    }
    left_out = {each["what"]: each["items"] for each in found["left_out"]}
    assert left_out[".nef file"] == [str(Path("陶器/DSC_0001.NEF"))]
    assert left_out[".xlsx file"] == ["Liste.xlsx"]
    assert left_out["image"] == ["lose.jpg"]
    assert left_out["link"] == [str(Path("Gemälde/Kreis"))]
    assert left_out["folder"] == ["leer"]
    assert {Path(item).name for item in left_out["entries"]} == {
        *("@eaDir", "__MACOSX", "Thumbs.db"),
    }
    # What is said about the scan takes it in.
    options = ("--max-pixels", "60000000", *options)
    result = run("train", messy_tree, "-o", model, *options)
    assert json.loads(result.stdout)["images"] == 31, result.stderr


# -- the biologist: three animals, photographed in bursts ----------------------


def camera_trap(folder: Path, bursts: dict[str, list[int]], seed: int) -> Path:
    """Images of animals that tell little, before backgrounds that tell the burst."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rows = []
    for number, (animal, sizes) in enumerate(bursts.items()):
        for size in sizes:
            burst = f"b{len({row[2] for row in rows}):03}"
            coarse = rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)
            scene = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
            scene = np.asarray(scene).astype(int)
            place = rng.integers(10, 50, 2)
            for _ in range(size):
                pixels = np.roll(scene, rng.integers(-2, 3, 2), (0, 1)).copy()
                top, left = place + rng.integers(-3, 4, 2)
                pixels[top : top + 26, left : left + 26, number] += 18
                pixels = pixels + rng.normal(0, 3, pixels.shape)
                name = f"IMG_{len(rows):04}.jpg"
                pixels = pixels.clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name, quality=92)
                rows.append((name, animal, burst, "north"))
    table = folder / "sightings.csv"
    with table.open("w", newline="", encoding="utf-16") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["File", "Species", "Sequence", "Site"])
        writer.writerows(rows)
    return table


BURSTS = {"deer": [10] * 30, "fox": [4] * 5, "lynx": [2] * 3}


@pytest.fixture(scope="module")
def sightings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("traps")
    new = {"deer": [2] * 92, "fox": [2] * 6, "lynx": [2] * 2}
    return camera_trap(folder / "old", BURSTS, 1), camera_trap(folder / "new", new, 2)


FAST = ("--layer", "-1", "--head", "rbf", "--json")


def test_the_biologist(sightings: tuple[Path, Path], tmp_path: Path) -> None:
    """With groups, the figure is that of new bursts, within three points."""
    old, new = sightings
    model = tmp_path / "model.joblib"
    result = run("train", old, "-o", model, "--group-column", "Sequence", *FAST)
    assert result.returncode == 0, result.stderr
    assert "326 images of 3 classes, in 38 groups." in result.stderr
    assert "Columns: image 'File', label 'Species', group 'Sequence'" in result.stderr
    assert "not used: 'Site'" in result.stderr
    assert "--scoring balanced_accuracy and --class-weight balanced" in result.stderr
    found = json.loads(result.stdout)
    said = run("predict", model, *sorted(map(str, new.parent.glob("*.jpg"))), "--json")
    assert said.returncode == 0, said.stderr
    predicted = [json.loads(line)["label"] for line in said.stdout.splitlines()]
    with new.open(encoding="utf-16") as file:
        truth = [row["Species"] for row in csv.DictReader(file, delimiter=";")]
    accuracy = np.mean([one == two for one, two in zip(predicted, truth, strict=True)])
    assert abs(found["held_out"]["accuracy"] - accuracy) <= 0.03


def test_the_biologist_without_groups(
    sightings: tuple[Path, Path], tmp_path: Path
) -> None:
    result = run("train", sightings[0], "-o", tmp_path / "model.joblib", *FAST)
    assert result.returncode == 0, result.stderr
    assert "Looks like bursts: " in result.stderr
    assert "--group-column" in result.stderr
