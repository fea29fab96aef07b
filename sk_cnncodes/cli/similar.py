"""The command that finds the images most similar to others."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from sk_cnncodes.cli.common.frame import (
    CacheOption,
    DeviceOption,
    check_output,
    end_with,
    interruptible,
    parse_layer,
    print_table,
)
from sk_cnncodes.cli.common.image_arguments import (
    MaxPixelsOption,
    compute_parts,
    image_bar,
    listed_paths,
    pixel_limit,
)
from sk_cnncodes.cli.common.models import different_transformers

if TYPE_CHECKING:
    from sk_cnncodes.codes.transformer import CNNCodeTransformer

FIELDS = ("query", "rank", "path", "distance")


class Metric(StrEnum):
    """Distances between codes."""

    cosine = "cosine"
    euclidean = "euclidean"


def similar(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_BACKBONE",
            show_default=False,
            help="Joblib file that train wrote, whose backbone and layer are used "
            "(loading it runs the code in it); or the name of a known backbone; or the "
            "path of a backbone's ONNX file.",
        ),
    ],
    query: Annotated[
        list[str],
        typer.Argument(metavar="QUERY", show_default=False, help="Image files."),
    ],
    among: Annotated[
        list[str],
        typer.Option(
            metavar="IMAGES",
            show_default=False,
            help="Folder, searched recursively, or image; repeatable; or - to read "
            "paths from standard input; or a folder that embed --shards wrote; or a "
            "file of --save-index.",
        ),
    ],
    count: Annotated[
        int, typer.Option("--count", "-k", min=1, help="Number of images per query.")
    ] = 5,
    metric: Annotated[
        Metric, typer.Option(help="Distance between codes.")
    ] = Metric.cosine,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Layer of a backbone; -1: penultimate, -2: the one before, and so on; "
            "or a name; -1,-3: both side by side.  [default: -1]",
            show_default=False,
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    save_index: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Write the index of a folder that embed --shards wrote, for later "
            "searches with --among FILE.",
        ),
    ] = None,
    max_pixels: MaxPixelsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Find the images most similar to query images.

    These are the images with the nearest codes. A query that is itself among the images
    comes first. Images that cannot be read are reported and skipped; the exit code is
    then 3.

    \b
    Examples:
      sk-cnncodes similar cnncodes-mini photo.jpg --among photos
      sk-cnncodes similar model.joblib a.jpg b.jpg --among photos -k 3 --csv
      sk-cnncodes similar resnet50 a.jpg --among codes/ --save-index codes.index
      sk-cnncodes similar resnet50 b.jpg --among codes.index
    """
    from sk_cnncodes.scale.index import CodeIndex
    from sk_cnncodes.scale.index_file import is_index
    from sk_cnncodes.scale.shards import PLAN

    if as_csv and as_json:
        raise typer.BadParameter("--csv, --json: expected only one of them.")
    given = Path(among[0]) if len(among) == 1 else Path()
    in_shards, in_index = (given / PLAN).is_file(), is_index(given)
    if save_index is not None:
        if not in_shards:
            raise typer.BadParameter(
                "--save-index: expected --among with a folder that embed --shards "
                "wrote."
            )
        _check_outside(save_index, given)
        check_output(save_index, inputs=[model, cache, *query])
    if in_shards:
        _check_complete(given)
    transformer = _transformer(model, layer).set_params(
        cache=cache,
        device=device,
        on_error="raise",
        cache_layers=None,
        **pixel_limit(max_pixels),
    )
    if save_index is not None:
        # Of a name or a saved model, it is known only now.
        backbone = getattr(transformer, "fitted_backbone_", {}).get("path")
        check_output(save_index, inputs=[backbone])
    kept: list[str] = []
    paths = [] if in_shards or in_index else listed_paths(among)
    index = CodeIndex(metric.value, n_jobs=-1)
    with interruptible(cache, "Nothing was written."):
        if in_index:
            index = CodeIndex.open(given, n_jobs=-1)
            if index.metric != metric.value:
                raise typer.BadParameter(
                    f"--metric {metric.value}: {str(given)!r} has {index.metric} "
                    f"distances. Expected --metric {index.metric}."
                )
        readable_queries, queries = _codes(transformer.transform, query, "QUERY")
        if in_shards:
            index.add(given)
            if save_index is not None:
                index.save(save_index)
        elif not in_index:
            kept, codes = _codes(transformer.transform, paths, "--among")
            # A path that is given twice is found twice.
            index.add(codes, [str(row) for row in range(len(kept))])
        # Paths that were just embedded are of the same spec.
        found, distances = index.search(
            queries, count, spec=None if paths else transformer
        )
    names = np.array(kept, object)[found.astype(int)] if paths else found
    rows = [
        (image, rank, path, round(float(distance), 6))
        for image, near, far in zip(readable_queries, names, distances, strict=True)
        for rank, (path, distance) in enumerate(zip(near, far, strict=True), 1)
    ]
    _print(rows, as_csv, as_json)
    end_with(len(query) - len(readable_queries) + len(paths) - len(kept))


def _check_outside(index: Path, shards: Path) -> None:
    """Refuse an index among the files of a folder of shards.

    Raises
    ------
    ValueError
        If it would be there.
    """
    if index.resolve().is_relative_to(shards.resolve()):
        raise ValueError(
            f"output {str(index)!r}: it is inside of --among {str(shards)!r}, whose "
            "files could be replaced. Expected a file outside of it."
        )


def _check_complete(shards: Path) -> None:
    """Refuse a folder of shards that are not all written; this command takes no part.

    Raises
    ------
    ValueError
        If some are missing.
    """
    from sk_cnncodes.scale.manifest import is_complete, read_manifest
    from sk_cnncodes.scale.shards import shards_in

    files = {path.name for path in shards_in(shards).values()}
    if not is_complete(read_manifest(shards), files):
        raise ValueError(
            f"--among {str(shards)!r}: not all codes are written. Run embed --shards "
            "again as before, or its other parts."
        )


def _transformer(model: str, layer: str | None) -> CNNCodeTransformer:
    """The transformer of a saved model, or a new one for a backbone."""
    from sk_cnncodes.base.exceptions import BackboneError
    from sk_cnncodes.codes.transformer import CNNCodeTransformer
    from sk_cnncodes.export.loading import load_with_transformers

    if Path(model).suffix.lower() not in (".joblib", ".pkl", ".pickle", ".skops"):
        transformer = CNNCodeTransformer(model, layer=parse_layer(layer or "-1"))
        try:
            return transformer.fit([model])
        except BackboneError as error:
            if _is_classifier(model):
                raise ValueError(
                    f"{model!r} is an exported classifier, which gives labels and no "
                    "codes. Expected its joblib file, or a backbone."
                ) from error
            raise
    if layer is not None:
        raise typer.BadParameter(
            f"{model!r} has its own layer. Expected --layer only with a backbone."
        )
    found = different_transformers(load_with_transformers(model)[1])
    if len(found) != 1:
        which = " of different codes" if found else ""
        raise ValueError(
            f"model {model!r}: contains {len(found)} CNNCodeTransformers{which}. "
            "Expected one, or a backbone."
        )
    return found[0]


def _is_classifier(model: str) -> bool:
    """Whether `to_onnx` wrote a file."""
    from sk_cnncodes.base.exceptions import ExportError
    from sk_cnncodes.export.onnx_classifier import OnnxClassifier

    try:
        return bool(OnnxClassifier(model).outputs)
    except ExportError:
        return False


def _codes(
    transform: Callable[[list[str]], np.ndarray], paths: list[str], argument: str
) -> tuple[list[str], np.ndarray]:
    """Compute codes; return the paths of readable images and their codes."""
    kept: list[str] = []
    blocks = []
    with image_bar(len(paths), "Embed") as bar:
        for part in compute_parts(transform, paths, bar):
            if part.result is not None:
                kept += part.paths
                blocks.append(part.result)
    if not kept:
        raise ValueError(f"{argument}: none of the images can be read.")
    return kept, np.concatenate(blocks)


def _print(rows: list[tuple[Any, ...]], as_csv: bool, as_json: bool) -> None:
    """Print rows as JSON lines, CSV or a table."""
    if as_json:
        for row in rows:
            typer.echo(json.dumps(dict(zip(FIELDS, row, strict=True))))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([FIELDS, *rows])
    else:
        several = len({row[0] for row in rows}) > 1
        start = 0 if several else 1
        table = [list(FIELDS)] + [
            [query, f"{rank}", path, f"{distance:.4f}"]
            for query, rank, path, distance in rows
        ]
        print_table([cells[start:] for cells in table], right={"rank", "distance"})
