"""Errors in the words of the command line."""

from __future__ import annotations

import errno

import pytest

from sk_cnncodes.cli.common.messages import in_lines, with_options

OPTIONS = {
    "max_pixels": "--max-pixels",
    "device": "--device",
    "jobs": "--jobs",
    "cache": "--cache",
    "layer": "--layer",
    "cv": "--cv",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pass max_pixels=None.", "pass --max-pixels 0."),
        ("raise max_pixels=1000, each", "raise --max-pixels 1000, each"),
        ("n_jobs: expected -1", "--jobs: expected -1"),
        ("device: expected cpu", "--device: expected cpu"),
        ("layer=-9 is not", "--layer -9 is not"),
        ("layer='a b' is not", "--layer 'a b' is not"),
        ("Choose cache=PATH, on a disk", "Choose --cache FILE, on a disk"),
        ("backbone='a.onnx': no such file", "backbone 'a.onnx': no such file"),
        ("y: expected 2 classes", "labels: expected 2 classes"),
        ("in list_backbones(),", "in the list of `sk-cnncodes backbones`,"),
        # Neither options of this command, nor parameters.
        ("that pooling='mean' does", "that pooling='mean' does"),
        ("the cache: it is full", "the cache: it is full"),
        ("Preprocessing(layer=1)", "Preprocessing(layer=1)"),
        ("recv=1 my.cv=2", "recv=1 my.cv=2"),
    ],
)
def test_options_have_the_names_of_the_command_line(text: str, shown: str) -> None:
    assert with_options(text, OPTIONS) == shown


def test_a_short_message_stays_in_one_line() -> None:
    error = ValueError("photos: no images. Expected some.")
    assert in_lines(error, {}) == "photos: no images. Expected some."


def test_a_long_message_has_a_line_for_each_sentence() -> None:
    parts = [f"'my. Photos {x * 30}': is wrong." for x in "abc"]
    text = " ".join([*parts, "Do this. Or that."])
    lines = in_lines(ValueError(text), {}).splitlines()
    assert [line.strip() for line in lines] == [
        parts[0],
        parts[1],
        f"{parts[2]} Do this. Or that.",
    ]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "x.csv"),
            "'x.csv': permission denied. Use another folder, or allow yourself to use "
            "it.",
        ),
        (OSError(errno.ENOSPC, "No space"), "The disk is full. Free some space, or "),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "a", None, "b"),
            "'a' -> 'b': no such file or folder.",
        ),
        (OSError(errno.EIO, "Input/output error", "a"), "'a': Input/output error."),
        (OSError("something else"), "something else"),
        (MemoryError(), "there is not enough memory. Close other programs."),
    ],
)
def test_errors_of_the_system_say_what_to_do(error: Exception, shown: str) -> None:
    assert in_lines(error, {}).startswith(shown)
