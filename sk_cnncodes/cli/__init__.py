"""The command `sk-cnncodes`, with one module per command or group of commands.

Contains arguments, tables, exit codes and terminal messages; the folders below do the
computation. Imports all of them, late, so that `--help` is fast.
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
    audit,
    backbones,
    benchmark,
    doctor,
    embed,
    evaluate,
    predict,
    rank,
    similar,
    train,
)
from sk_cnncodes.cli.common.frame import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="CNN codes for scikit-learn: train and use image classifiers, inspect "
    "backbones and layers.",
    epilog="Exit codes: 0 done; 1 an error, and no file was written, or doctor found "
    "a problem; 2 wrong usage; 3 done, but some images could not be read; 130 "
    "interrupted; 143 terminated. Results go to standard output, everything else to "
    "standard error.",
)
for name, command in (
    ("rank", rank.rank),
    ("advise", rank.advise),
    ("audit", audit.audit),
    ("train", train.train),
    ("evaluate", evaluate.evaluate),
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
    """Entry point of `sk-cnncodes` and `python -m sk_cnncodes`."""
    _open_closed_streams()
    _clean_up_on_signals()
    # File names need not be UTF-8.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    app(prog_name="sk-cnncodes")


def _open_closed_streams() -> None:
    """Connect standard streams that were closed, as by `2>&-`, to the null device.

    Otherwise they are None, and the next opened file gets the descriptor of one.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)  # for worker processes
            setattr(sys, name, stream)


def _clean_up_on_signals() -> None:
    """Make SIGTERM and SIGHUP exit like an error, leaving no files or workers."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # `nohup` ignores SIGHUP.
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _exit_on_signal)


def _exit_on_signal(number: int, _: object) -> None:
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
