"""The gallery: the examples with what they print and draw, as `examples/README.md`.

    python -m tests.gallery
    python -m tests.gallery groups few_images

runs all scripts, or those that are named, and writes the page and `examples/pictures`.
`tests/test_examples.py` runs them again and compares.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = EXAMPLES / "README.md"
PICTURES = EXAMPLES / "pictures"
# In the order of the page.
SCRIPTS = (
    *("first_classifier", "choose_a_layer", "earlier_layers"),
    *("choose_layer_and_classifier", "few_images", "fine_tuning"),
    *("groups", "unbalanced_classes"),
    *("several_labels", "read_a_gauge", "report_on_photographs", "wrong_labels"),
    "similar_images",
    *("unknown_class", "serve_onnx", "stream_of_images", "train_in_chunks"),
    *("ray_cluster", "spark_cluster", "hugging_face_datasets"),
)
# What scripts need beyond the extra `report`; pyspark (455 MB) is in no extra.
NEEDED = {
    "ray_cluster": ("ray.data", "pyarrow"),
    "spark_cluster": ("pyspark", "pyarrow"),
    "hugging_face_datasets": ("datasets", "pyarrow"),
    "fine_tuning": ("torch",),
}
# What needs data beside the checkout, and minutes. `tests/test_examples.py` runs it on
# few images, which shows that it runs, and not that the figures are right.
WITH_DATA = {"fine_tuning": ("--data", str(ROOT.parent / "shared" / "data"))}
_WIDTH = 1000
# The picture is a part of the page that the script writes, taken in a browser.
BY_HAND = {"report_on_photographs"}
_HEAD = """# Examples

Each script runs offline in seconds, with data that anyone has: what scikit-learn
brings, or what the script draws; fine-tuning alone takes minutes, and data that its
text names. Here are their subjects, what they print and what they draw.
`python examples/NAME.py` runs one, and writes files to the folder that it is run in;
the pictures need `pip install 'sk-cnncodes[report]'`, fine-tuning `sk-cnncodes[torch]`,
those of clusters `sk-cnncodes[ray]` or pyspark, and that of a Hugging Face data set the
package datasets.

[first_classifier.ipynb](first_classifier.ipynb) is a notebook for a start: a
classifier, the ranking of its layers, its mistakes and a report.

[scale.md](scale.md) says what ten and a hundred million images take.

"""


def run_example(name: str, folder: Path, *arguments: str) -> str:
    """Run a script in a folder; return what it printed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
        env=os.environ | {"PYTHONPATH": path, "MPLBACKEND": "Agg"},
    )
    if result.returncode:
        raise RuntimeError(f"{name}.py: {result.stderr}")
    return result.stdout


def docstring(name: str) -> tuple[str, str]:
    """Title and text of a script."""
    text = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text("utf-8")))
    assert text is not None, f"{name}.py has no docstring"
    title, line, body = text.split("\n", 2)
    assert set(line) == {"="}, f"{name}.py: its docstring begins with a title"
    # Indented commands of docstrings are blocks of code in Markdown, too.
    return title, body.strip()


def anchor(title: str) -> str:
    """The address of a heading on GitHub."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def entry(name: str, output: str) -> str:
    """The section of a script."""
    title, body = docstring(name)
    text = f"## {title}\n\n{body}\n\n[{name}.py]({name}.py) prints:\n\n"
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    text += "```text\n" + "\n".join(lines) + "\n```\n"
    if (PICTURES / f"{name}.webp").exists():
        text += f"\n![{title}](pictures/{name}.webp)\n"
    return text


def keep_picture(name: str, folder: Path) -> None:
    """Move the picture that a script drew, made small, to `examples/pictures`."""
    if name in BY_HAND:
        return
    kept = PICTURES / f"{name}.webp"
    kept.unlink(missing_ok=True)
    if (folder / f"{name}.png").exists():
        with Image.open(folder / f"{name}.png") as image:
            picture = image.convert("RGB")
        picture.thumbnail((_WIDTH, _WIDTH))
        picture.save(kept, quality=80, method=6)


def shown_outputs() -> dict[str, str]:
    """What the page says that each script prints."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"\((\w+)\.py\) prints:\n\n```text\n(.*?)\n```", page, re.DOTALL)
    return dict(found)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    sections = []
    known = shown_outputs() if PAGE.exists() else {}
    for name in SCRIPTS:
        if sys.argv[1:] and name not in sys.argv[1:] and name in known:
            sections.append(entry(name, known[name]))
            continue
        with tempfile.TemporaryDirectory() as folder:
            output = run_example(name, Path(folder), *WITH_DATA.get(name, ()))
            keep_picture(name, Path(folder))
        sections.append(entry(name, output))
        print(f"{name}:\n{output}", flush=True)
    titles = [docstring(name)[0] for name in SCRIPTS]
    contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in titles)
    text = _HEAD + contents + "\n\n" + "\n".join(sections)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
