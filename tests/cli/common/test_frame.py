"""Exit codes, errors and help of all commands."""

from __future__ import annotations

from pathlib import Path

import pytest

import sk_cnncodes
from sk_cnncodes.cli.common.frame import check_output
from tests.cli.commands import invoke, run

COMMANDS = [
    "rank",
    "advise",
    "audit",
    "train",
    "evaluate",
    "predict",
    "embed",
    "similar",
    "backbones",
    "layers",
    "download",
    "benchmark",
    "doctor",
]


def test_version() -> None:
    assert run("--version").stdout.strip() == sk_cnncodes.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layers", "nothing.onnx"], "backbone 'nothing.onnx': no such file"),
        (["download", "resnet-50"], "backbone 'resnet-50': not in the catalogue"),
    ],
)
def test_errors_are_three_lines(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {message}")
    assert 1 < len(result.stderr.splitlines()) <= 3
    assert all(line.startswith("  ") for line in result.stderr.splitlines()[1:])


def test_main_help_lists_commands_and_exit_codes() -> None:
    text = invoke("--help").stdout
    assert [
        line.split()[0]
        for line in text.split("Commands:")[1].splitlines()[1 : 1 + len(COMMANDS)]
    ] == COMMANDS
    for code in ("0 done", "1 an error", "2 wrong usage", "3 done, but", "130"):
        assert code in " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"sk-cnncodes {command}" in result.stdout.split("Example")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["predict"],
        ["embed", "photo.jpg"],
        ["embed", "photo.jpg", "-o", "codes.txt"],
        ["embed", "photo.jpg", "-o", "no-such-folder/codes.npz"],
        ["predict", "m.joblib", "photo.jpg", "-o", "."],
        ["train", "no-such-folder", "-o", "model.joblib"],
        ["train", ".", "-o", "model.joblib", "--head", "forest"],
        ["train", ".", "-o", "model.joblib", "--cv", "1"],
        ["train", ".", "-o", "model.joblib", "--jobs", "0"],
        ["train", ".", "-o", "model.joblib", "--onnx", "model.txt"],
        ["similar", "cnncodes-mini", "photo.jpg"],
    ],
)
def test_wrong_usage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert "Error" in result.stderr
    assert not list(tmp_path.iterdir())


def test_check_output_accepts_new_and_existing_files(tmp_path: Path) -> None:
    check_output(tmp_path / "new.npz", (".npz",))
    (tmp_path / "old.NPZ").touch()
    check_output(tmp_path / "old.NPZ", (".npz",))
