"""The command that checks what works on a machine."""

from __future__ import annotations

import json

import typer

import sk_cnncodes
from sk_cnncodes.cli.common.frame import ERROR, AsJson


def doctor(as_json: AsJson = False) -> None:
    """Check what works on this machine.

    Shows versions, working providers and folders, and how to fix problems. The exit
    code is 1 if there is a problem.

    Example: sk-cnncodes doctor
    """
    from sk_cnncodes.cli.diagnosis import as_dict, as_text, diagnose

    found = diagnose()
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=1))
    else:
        typer.echo(f"{'sk-cnncodes':<13} {sk_cnncodes.__version__}\n{as_text(found)}")
    if found.problems:
        raise typer.Exit(ERROR)
