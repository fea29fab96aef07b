"""The command `sk-cnncodes`: a module for each of its commands, or for a few.

Arguments, tables, exit codes and messages on the terminal; whatever is computed comes
from the folders below. Imports all of them, late, so that `--help` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Annotated

import typer

import sk_cnncodes
from sk_cnncodes.cli import (
    backbones,
    benchmark,
    doctor,
    embed,
    predict,
    similar,
    train,
)
from sk_cnncodes.cli.frame import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="CNN codes for scikit-learn: train a classifier of images, use it, look at "
    "backbones and layers.",
    epilog="Exit codes: 0 done; 1 an error, and no file was written, or doctor found "
    "a problem; 2 wrong usage; 3 done, but some images could not be read; 130 "
    "interrupted; 143 terminated. Results go to the standard output, all else to "
    "standard error.",
)
for name, command in (
    ("train", train.train),
    ("predict", predict.predict),
    ("embed", embed.embed),
    ("similar", similar.similar),
    ("backbones", backbones.backbones),
    ("layers", backbones.layers),
    ("download", backbones.download),
    ("benchmark", benchmark.benchmark),
    ("doctor", doctor.doctor),
):
    app.command(name)(command)


def main() -> None:
    """Run the command, as the script `sk-cnncodes` and `python -m sk_cnncodes` do."""
    _open_closed_streams()
    _clean_up_when_ended()
    # File names need not be UTF-8.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    app(prog_name="sk-cnncodes")


def _open_closed_streams() -> None:
    """Let those that were closed, as by `2>&-`, read and write nothing.

    They are None else, and a file that is opened next takes the place of one.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)  # workers need them, too
            setattr(sys, name, stream)


def _clean_up_when_ended() -> None:
    """Have SIGTERM and SIGHUP end as an error does: without files or workers left."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # `nohup` has it ignored.
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(sk_cnncodes.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Show the version.",
        ),
    ] = False,
) -> None:
    pass
