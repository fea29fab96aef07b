"""Every example runs and prints what the gallery shows."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from tests.gallery import (
    BY_HAND,
    EXAMPLES,
    NEEDED,
    PAGE,
    PICTURES,
    SCRIPTS,
    WITH_DATA,
    docstring,
    entry,
    run_example,
    shown_outputs,
)


def is_close(shown: str, printed: str) -> bool:
    """Whether two words are equal, with a tolerance for numbers on other processors."""
    try:
        a, b = (float(word.strip("%,;:()[]")) for word in (shown, printed))
    except ValueError:
        return shown == printed
    if "%" in shown:
        return abs(a - b) <= (2 if abs(a) >= 10 else 0.5)
    return abs(a - b) <= max(0.05, 0.05 * abs(a))


def test_words_are_compared() -> None:
    assert is_close("98.7%", "98.2%")
    assert not is_close("98.7%", "95.2%")
    assert not is_close("0.2%", "1.6%")
    assert is_close("0.027", "0.031")
    assert not is_close("layer", "layers")
    assert not is_close("-1", "-2")


def test_the_gallery_has_all_scripts() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS}
    assert len(SCRIPTS) >= 12
    assert list(shown_outputs()) == [*SCRIPTS]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in WITH_DATA])
def test_the_gallery_shows_what_is_printed(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    shown = shown_outputs()[name].splitlines()
    # Title, docstring and link to the picture are those of the script.
    assert entry(name, "\n".join(shown)) in PAGE.read_text(encoding="utf-8")
    printed = run_example(name, tmp_path).strip("\n").splitlines()
    assert len(printed) == len(shown)
    for line, expected in zip(printed, shown, strict=True):
        words, others = expected.split(), line.split()
        assert len(words) == len(others) and all(map(is_close, words, others)), (
            f"{name}.py printed {line!r}, and the gallery shows {expected!r}: "
            "python -m tests.gallery"
        )
    drawn = (tmp_path / f"{name}.png").exists()
    assert (PICTURES / f"{name}.webp").exists() == (drawn or name in BY_HAND)


def test_what_spark_calls_needs_no_spark() -> None:
    files = [b"not an image", *PICTURES.glob("*.webp")]
    contents = [
        each if isinstance(each, bytes) else each.read_bytes() for each in files
    ]
    names = runpy.run_path(str(EXAMPLES / "spark_cluster.py"))
    rows = names["make_predict"]()(np.array(contents, object))
    assert len(rows) == len(contents) > 2
    assert {*rows[0]} == {"code", "error"}
    assert np.isnan(rows[0]["code"]).all() and "not an image file" in rows[0]["error"]
    expected = names["transformer"].transform(contents[1:])
    np.testing.assert_allclose([row["code"] for row in rows[1:]], expected, rtol=1e-4)
    assert {row["error"] for row in rows[1:]} == {""}


def test_pictures_are_small_and_shown() -> None:
    pictures = [*PICTURES.glob("*")]
    assert sum(picture.stat().st_size for picture in pictures) < 600_000
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    for picture in pictures:
        shown = PAGE.read_text(encoding="utf-8") + readme
        assert f"pictures/{picture.name})" in shown


def test_titles_are_linked_from_the_readme() -> None:
    page = PAGE.read_text(encoding="utf-8")
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"examples/README\.md#([\w-]+)", readme)
    assert links
    for link in links:
        assert f"](#{link})" in page
    for name in SCRIPTS:
        assert len(docstring(name)[1].splitlines()) >= 3


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, one after the other as plain Python: without a Jupyter kernel."""
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    matplotlib.use("Agg")
    notebook = json.loads((EXAMPLES / "first_classifier.ipynb").read_text("utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    matplotlib.pyplot.close("all")
    assert names["model"].score(names["new_images"], names["new_labels"]) > 0.95  # type: ignore[attr-defined]
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_notebook_shows_its_pictures() -> None:
    text = (EXAMPLES / "first_classifier.ipynb").read_text("utf-8")
    assert len(text) < 300_000
    assert text.count('"image/png"') >= 2
    assert "stderr" not in text


def test_caltech(shared: Path, tmp_path: Path) -> None:
    train = shared / "data" / "caltech20" / "train"
    for path in sorted(train.glob("*/*.jpg"))[::2]:  # 15 of each of 20 classes
        link = tmp_path / "images" / path.relative_to(train)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    arguments = ["--images", str(tmp_path / "images")]
    for name in ("squeezenet1.1.onnx", "mobilenet_v2.onnx"):
        arguments += ["--backbone", str(shared / "backbones" / name)]
    output = run_example("choose_layer_and_classifier", tmp_path, *arguments)
    chosen = re.search(r"Chosen: (\S+), layer .*: ([\d.]+)% in cross-val", output)
    assert chosen is not None and chosen.group(1) == "mobilenet_v2.onnx"
    assert float(chosen.group(2)) >= 96


def test_fine_tuning(shared: Path, tmp_path: Path) -> None:
    """On a few images: the words of what it prints, but not the figures."""
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    shown = shown_outputs()["fine_tuning"].splitlines()
    page = PAGE.read_text(encoding="utf-8")
    assert entry("fine_tuning", "\n".join(shown)) in page
    few = ("--few", "40", "--many", "60", "--tested", "20")
    data = ("--data", str(shared / "data"))
    printed = run_example("fine_tuning", tmp_path, *data, *few).splitlines()
    assert [line[:37] for line in printed[:6]] == [line[:37] for line in shown[:6]]
    assert re.match(r"The (frozen|tuned) model is (kept|taken)", printed[7])
    for line in printed[2:6]:
        assert len(re.findall(r"\d+\.\d%", line)) == 3
    assert (tmp_path / "fine_tuning.png").exists()


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="found no images"):
        run_example("choose_layer_and_classifier", tmp_path, "--images", str(tmp_path))
