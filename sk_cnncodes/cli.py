"""The `sk-cnncodes` command."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

import sk_cnncodes
from sk_cnncodes import catalogue

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="CNN codes for scikit-learn: look at backbones and layers, get backbones.",
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
def backbones(as_json: AsJson = False) -> None:
    """List the known backbones, and which of them are on this machine.

    Example: sk-cnncodes backbones
    """
    rows = catalogue.list_backbones()
    if as_json:
        typer.echo(json.dumps([_backbone_facts(row) for row in rows], indent=1))
        return
    heads = "name,also,architecture,input,code,MB,top-1,license,here"
    table = [heads.split(",")]
    for row in rows:
        height, width = row.input_size
        table.append(
            [
                row.name,
                ", ".join(row.aliases),
                row.architecture,
                f"{height}x{width}",
                f"{row.code_length}",
                f"{row.size / 1e6:.1f}",
                "" if row.top1 is None else f"{row.top1:.1f}",
                row.license,
                _where(row),
            ]
        )
    _print_table(table, right={"code", "MB", "top-1"})


def _where(row: catalogue.CatalogueRow) -> str:
    """Whether a backbone can be used offline."""
    if row.bundled:
        return "bundled"
    if catalogue.local_file(row) is not None:
        return "yes"
    return "no" if row.addresses else "no, nor to download"


def _backbone_facts(row: catalogue.CatalogueRow) -> dict[str, Any]:
    path = catalogue.local_file(row)
    return asdict(row) | {"path": None if path is None else str(path)}


@app.command()
def layers(
    backbone: Annotated[
        str, typer.Argument(help="Name of a known backbone, or path of an ONNX file.")
    ],
    as_json: AsJson = False,
) -> None:
    """List the layers at which a backbone can be cut, the penultimate (-1) last.

    The shares are of the multiply-adds and of the parameters of the whole network.

    Example: sk-cnncodes layers cnncodes-mini
    """
    from sk_cnncodes.codegraph import code_length, resolve_pooling
    from sk_cnncodes.compute import layer_multiply_adds

    loaded = sk_cnncodes.load_backbone(backbone)
    found = loaded.layers
    work, total = layer_multiply_adds(loaded, [layer.name for layer in found])
    facts = [
        {
            "position": layer.position,
            "name": layer.label,
            "tensor": layer.name,
            "shape": list(layer.shape),
            "code_length": code_length(layer, resolve_pooling(layer, "auto")),
            "multiply_adds": work[layer.name],
            "compute_share": work[layer.name] / max(total, 1),
            "parameter_share": layer.parameter_share,
        }
        for layer in found
    ]
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    table = [["layer", "name", "shape", "code", "compute", "parameters"]]
    for layer, fact in zip(found, facts, strict=True):
        table.append(
            [
                f"{layer.position}",
                layer.label,
                "x".join(map(str, layer.shape)),
                f"{fact['code_length']}",
                f"{fact['compute_share']:.1%}",
                f"{layer.parameter_share:.1%}",
            ]
        )
    _print_table(table, right={"layer", "code", "compute", "parameters"})


def _print_table(table: list[list[str]], right: set[str]) -> None:
    """Print rows below their heads, some columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = [
            cell.rjust(width) if head in right else cell.ljust(width)
            for cell, width, head in zip(cells, widths, table[0], strict=True)
        ]
        typer.echo("  ".join(padded).rstrip())


@app.command()
def download(
    names: Annotated[list[str], typer.Argument(help="Names of known backbones.")],
) -> None:
    """Get backbones onto this machine, so that they can be used offline.

    Example: sk-cnncodes download resnet50 vgg16
    """
    for name in names:
        typer.echo(f"{name}: {catalogue.download_backbone(name)}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, working providers and folders, and how to cure what is wrong.

    The exit code is 1 where there is a problem.

    Example: sk-cnncodes doctor
    """
    from sk_cnncodes.doctor import as_dict, as_text, diagnose

    found = diagnose()
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=1))
    else:
        typer.echo(f"{'sk-cnncodes':<13} {sk_cnncodes.__version__}\n{as_text(found)}")
    if found.problems:
        raise typer.Exit(1)
