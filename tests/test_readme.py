"""The code and commands of the README run and print what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from typer.main import get_command

from sk_cnncodes import CNNCodeTransformer, CodeCache
from sk_cnncodes.cli import app
from tests.readme_commands import prepare, run_command, shown_commands

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_code_runs(
    photographs: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # Workers of another test have its working directory.
    get_reusable_executor().shutdown(wait=True)
    for number in range(24):
        pixels = photographs[number % 8][number:, number:]
        folder = tmp_path / "photos" / ("china" if number % 8 < 4 else "flower")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    codes = blocks("python")
    assert codes
    names: dict[str, object] = {}  # later blocks use what earlier ones define
    for code in codes:
        exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "classifier.joblib").exists()
    assert "china" in capsys.readouterr().out


def test_the_ten_lines_print_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = re.findall(
        r"<!-- the ten lines -->\n```python\n(.*?)```.*?```text\n(.*?)```",
        README,
        re.DOTALL,
    )
    code, shown = found
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.split()
    assert len(printed) == len(shown.split())
    assert all(map(same, shown.split(), printed)), printed


def test_first_two_commands_are_one_line_each() -> None:
    two = README.partition("## Two commands\n")[2].partition("\n## ")[0]
    main, tests = re.findall(r"^```bash\n(.*?)^```$", two, re.DOTALL | re.MULTILINE)
    assert main.count("\n") == tests.count("\n") == 1
    assert "pip install ." in main
    assert "examples/choose_layer_and_classifier.py" in main
    assert tests.rstrip().endswith("-m pytest -n 2 --dist loadfile")


def test_commands_and_their_options_exist() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    lines = "".join(blocks("(?:ba)?sh")).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line) for line in lines if line.startswith("sk-cnncodes ")]
    assert {call[1] for call in calls} >= {"train", "predict", "embed", "similar"}
    for _, name, *words in calls:
        options = {o for option in known[name].params for o in option.opts}
        assert {word for word in words if re.match("--?[a-z]", word)} <= options
    for name in re.findall(r"`sk-cnncodes (\w+)", README):
        assert name in known


def same(shown: str, printed: str) -> bool:
    """Whether two words are equal, with a tolerance for numbers on other processors."""
    try:
        a, b = (float(word.rstrip("%,;.")) for word in (shown, printed))
    except ValueError:
        return shown == printed
    return abs(a - b) <= max(0.005, 0.01 * abs(a))


def test_commands_print_what_is_shown(shared: Path, tmp_path: Path) -> None:
    prepare(tmp_path, shared)
    commands = shown_commands()
    assert len(commands) == 7
    for shown in commands:
        printed = run_command(shown.command, tmp_path).splitlines()
        lines = shown.output.splitlines()
        assert lines, f"README shows nothing of {shown.command}"
        rest = iter(printed)
        for line in lines:
            if line.strip() == "...":
                continue
            words = re.split(r"[\s,]+", line.strip())
            found = any(
                len(got) == len(words) and all(map(same, words, got))
                for got in (re.split(r"[\s,]+", other.strip()) for other in rest)
            )
            assert found, f"{shown.command}does not print {line!r} in order: {printed}"


def test_the_explanation_is_what_is_shown(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, shared)
    monkeypatch.chdir(tmp_path)
    (shown,) = re.findall(
        r"<!-- the explanation -->\n```text\n(.*?)\n```", README, re.DOTALL
    )
    transformer = CNNCodeTransformer(
        shared / "backbones" / "squeezenet1.1.onnx",
        norm="l2",
        cache=CodeCache(),
        device="cpu",
    )
    printed = repr(transformer.explain("caltech20/train/starfish/image_0008.jpg"))
    for line, expected in zip(printed.splitlines(), shown.splitlines(), strict=True):
        if not expected.startswith("backbone"):  # its path is another one
            assert line == expected
