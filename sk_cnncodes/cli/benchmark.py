"""The command that measures the fastest configuration of a backbone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sk_cnncodes.cli.common.frame import AsJson, print_table
from sk_cnncodes.cli.common.image_arguments import (
    MaxPixelsOption,
    listed_paths,
    pixel_limit,
)


def benchmark(
    backbone: Annotated[
        str, typer.Argument(help="Name of a known backbone, or path of an ONNX file.")
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, or folders of them [default: two samples]."),
    ] = None,
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option("--batch-size", min=1, help="Batch size to try; repeatable."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Number of timings per configuration.")
    ] = 3,
    max_pixels: MaxPixelsOption = None,
    as_json: AsJson = False,
) -> None:
    """Measure engines, precisions and batch sizes, and recommend the fastest.

    Prints images per second from files to codes, the cosine similarity of the codes
    with float32 codes from the CPU, and the code of the fastest configuration.

    Example: sk-cnncodes benchmark cnncodes-mini photos
    """
    from sk_cnncodes.cli.measurement import advice, constructor_call, measure_backbone

    paths = listed_paths([str(path) for path in images]) if images else None
    measured = measure_backbone(
        backbone,
        paths,
        batch_sizes=batch_sizes,
        rounds=rounds,
        **pixel_limit(max_pixels),
    )
    if as_json:
        facts = [asdict(m) | {"code": constructor_call(backbone, m)} for m in measured]
        typer.echo(json.dumps(facts, indent=1))
        return
    header = ["device", "engine", "precision", "batch", "img/s", "cosine", "least"]
    table = [header]
    for m in measured:
        figures = [f"{m.images_per_second:.1f}"]
        figures += [f"{cosine:.5f}" for cosine in (m.median_cosine, m.least_cosine)]
        table.append([m.device, m.engine, m.precision, f"{m.batch_size}", *figures])
    print_table(table, right=set(header[3:]))
    typer.echo("\n" + "\n".join(advice(backbone, measured)))
