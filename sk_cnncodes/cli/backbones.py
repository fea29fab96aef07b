"""Commands that list, inspect and download backbones."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sk_cnncodes
from sk_cnncodes.backbones import catalogue
from sk_cnncodes.cli.common.frame import AsJson, print_table

if TYPE_CHECKING:
    from sk_cnncodes import Backbone


def backbones(as_json: AsJson = False) -> None:
    """List the known backbones.

    The last column shows which of them are on this machine.

    Example: sk-cnncodes backbones
    """
    rows = catalogue.list_backbones()
    if as_json:
        typer.echo(json.dumps([_backbone_facts(row) for row in rows], indent=1))
        return
    header = "name,aliases,architecture,input,code,MB,top-1,license,local"
    table = [header.split(",")]
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
                _availability(row),
            ]
        )
    print_table(table, right={"code", "MB", "top-1"})


def _availability(row: catalogue.CatalogueRow) -> str:
    """Whether a backbone can be used offline."""
    if row.bundled:
        return "bundled"
    if catalogue.local_file(row) is not None:
        return "yes"
    return "no" if row.addresses else "no, cannot be downloaded"


def _backbone_facts(row: catalogue.CatalogueRow) -> dict[str, Any]:
    path = catalogue.local_file(row)
    return asdict(row) | {"path": None if path is None else str(path)}


def layers(
    backbone: Annotated[
        str,
        typer.Argument(
            help="Name of a known backbone, path of an ONNX file, or hf://owner/name."
        ),
    ],
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show all candidate tensors, and the rule that decided on each.",
        ),
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            show_default=False,
            help="Height and width of the input, if the preprocessing is not known and "
            "the file does not state them.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the layers of a backbone.

    The backbone can be cut at each of them; the last one listed, -1, is the penultimate
    layer. Compute and parameters are shares of the multiply-adds and parameters of the
    whole network.

    \b
    Examples:
      sk-cnncodes layers cnncodes-mini
      sk-cnncodes layers network.onnx --explain --size 224
    """
    from sk_cnncodes.backbones.loading import load_network

    loaded = load_network(backbone, None if size is None else (size, size))
    if explain:
        _explain_layers(loaded, as_json)
    else:
        _list_layers(loaded, as_json)


def _list_layers(backbone: Backbone, as_json: bool) -> None:
    from sk_cnncodes.backbones.code_graph import code_length, resolve_pooling
    from sk_cnncodes.layers.multiply_adds import layer_multiply_adds

    found = backbone.layers
    multiply_adds, total = layer_multiply_adds(
        backbone.graph, [layer.name for layer in found]
    )
    facts = [
        {
            "position": layer.position,
            "name": layer.label,
            "tensor": layer.name,
            "shape": list(layer.shape),
            "code_length": code_length(layer, resolve_pooling(layer, "auto")),
            "multiply_adds": multiply_adds[layer.name],
            "compute_share": multiply_adds[layer.name] / max(total, 1),
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
    print_table(table, right={"layer", "code", "compute", "parameters"})


def _explain_layers(backbone: Backbone, as_json: bool) -> None:
    positions = {layer.name: layer.position for layer in backbone.layers}
    facts = [
        {"position": positions.get(each.tensor)} | asdict(each)
        for each in backbone.layer_decisions
    ]
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    table = [["layer", "tensor", "shape", "rule"]]
    for each in backbone.layer_decisions:
        shape = "x".join(map(str, each.shape[1:]))
        position = positions.get(each.tensor)
        number = "" if position is None else f"{position}"
        table.append([number, each.tensor, shape, each.rule])
    print_table(table, right={"layer"})


def download(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Names of known backbones, or addresses on the Hugging Face Hub."
        ),
    ],
) -> None:
    """Download backbones for offline use.

    The Hub is asked what an address hf://owner/name[@revision][/file.onnx] stands for
    now, also if an earlier commit is on this machine.

    Example: sk-cnncodes download resnet50 hf://onnx-community/dinov2-small
    """
    for name in names:
        typer.echo(f"{name}: {sk_cnncodes.download_backbone(name)}")
