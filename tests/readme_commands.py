"""The commands of the README on Caltech-20: the shown and the actual output.

    python -m tests.readme_commands ../shared

prints each command with all of its output, to be pasted into the README.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SHOWN = re.compile(
    r"^<!-- on Caltech-20 -->\n```bash\n(?P<command>.*?)^```$\n"
    r"(?:\n```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Shown:
    """A command of the README and its shown output; "..." stands for any lines."""

    command: str
    output: str


def shown_commands() -> list[Shown]:
    """All shown commands in order; later ones use files of earlier ones."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [Shown(m["command"], m["output"] or "") for m in _SHOWN.finditer(text)]


def prepare(folder: Path, shared: Path) -> None:
    """Link the images and backbones that the commands use into a folder."""
    (folder / "caltech20").symlink_to(shared.resolve() / "data" / "caltech20")
    for name in ("mobilenet_v2.onnx", "squeezenet1.1.onnx"):
        (folder / name).symlink_to(shared.resolve() / "backbones" / name)


def run_command(command: str, folder: Path) -> str:
    """Run a command with this Python; return the output of both streams."""
    function = f'sk-cnncodes() {{ "{sys.executable}" -m sk_cnncodes "$@"; }}\n'
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        ["bash", "-c", f"set -eo pipefail\n{function}{command}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "80"},
    )
    if result.returncode:
        raise RuntimeError(f"{command}exit code {result.returncode}:\n{result.stdout}")
    return result.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), Path(sys.argv[1]))
        for shown in shown_commands():
            output = run_command(shown.command, Path(name))
            print(f"$ {shown.command}{output}", flush=True)


if __name__ == "__main__":
    main()
