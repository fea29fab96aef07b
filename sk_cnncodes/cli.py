"""The `sk-cnncodes` command."""

from __future__ import annotations

from typing import Annotated

import typer

import sk_cnncodes

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="CNN codes for scikit-learn: look at backbones and their layers.",
)


def main() -> None:
    """Run the command; errors of the library become one line and exit code 1."""
    try:
        app()
    except (ValueError, sk_cnncodes.DeviceError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from error


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


@app.command()
def layers(
    backbone: Annotated[str, typer.Argument(help="Name, or path of an ONNX file.")],
) -> None:
    """List the layers at which a backbone can be cut, the penultimate (-1) last.

    Example: sk-cnncodes layers cnncodes-mini
    """
    found = sk_cnncodes.load_backbone(backbone).layers
    width = max(len(layer.label) for layer in found)
    typer.echo(
        f"layer  {'name':<{width}}  {'shape':<14}  channels  share of parameters"
    )
    for layer in found:
        shape = "x".join(map(str, layer.shape))
        typer.echo(
            f"{layer.position:>5}  {layer.label:<{width}}  {shape:<14}  "
            f"{layer.n_channels:>8}  {layer.parameter_share:>18.1%}"
        )
