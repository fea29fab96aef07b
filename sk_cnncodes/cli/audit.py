"""The command that finds duplicates, suspect labels and outliers."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sk_cnncodes.cli.common.frame import (
    AsJson,
    CacheOption,
    DeviceOption,
    end_with,
    interruptible,
    note,
    parse_layer,
)
from sk_cnncodes.cli.common.image_arguments import MaxPixelsOption, pixel_limit
from sk_cnncodes.cli.common.labelled_images import (
    DataArgument,
    DataOptions,
    cache_file,
    embed_labelled,
    found_as_dict,
    labelled_images,
    takes_data_options,
)
from sk_cnncodes.cli.common.pages import ReportOption, check_page, write_audit_page


@takes_data_options
def audit(
    data: DataArgument,
    backbone: Annotated[
        str, typer.Option(help="Name of a backbone, or path of an ONNX file.")
    ] = "cnncodes-mini",
    layer: Annotated[
        str,
        typer.Option(help="-1: penultimate, -2: the one before, and so on; or a name."),
    ] = "-1",
    data_options: DataOptions = DataOptions(),  # noqa: B008
    report: ReportOption = None,
    as_json: AsJson = False,
    max_pixels: MaxPixelsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Find duplicates, suspect labels and outliers among labelled images.

    Duplicates are equal files, and crops, copies of other size or quality, and
    neighbours in a burst. Suspect labels are those that models without the image, and
    its neighbours, disagree with. Nothing is changed. Images that cannot be read are
    reported and skipped; the exit code is then 3.

    \b
    Examples:
      sk-cnncodes audit photos
      sk-cnncodes audit photos --report audit.html
      sk-cnncodes audit labels.csv --group-column animal --json
      sk-cnncodes audit photos --backbone resnet50 --cache codes.sqlite3
    """
    from sk_cnncodes.codes.transformer import CNNCodeTransformer
    from sk_cnncodes.inspection.audit import audit as audit_images

    check_page(report, [backbone, cache, data])
    found = labelled_images(data, data_options, quiet=True)
    for each in found.left_out:
        note(f"Left out {each}")
    which = parse_layer(layer)
    with interruptible(cache, "Nothing was found out."), cache_file(cache) as codes:
        transformer = CNNCodeTransformer(
            backbone, cache=codes, device=device, **pixel_limit(max_pixels)
        )
        images, bad = embed_labelled([(transformer, [which])], found)
        if not images.paths:
            raise ValueError(f"{str(data)!r}: none of the images can be read.")
        audited = audit_images(
            images.paths,
            images.labels,
            images.groups,
            backbone=transformer,
            layer=which,
            cache=codes,
            device=device,
        )
        if report is not None:
            write_audit_page(report, audited, f"Audit of {data.name}")
    if as_json:
        rest = found_as_dict(images, bad)
        rest["report"] = None if report is None else str(report)
        typer.echo(json.dumps(audited.as_dict() | rest, indent=1))
    else:
        typer.echo(repr(audited))
        if report is not None:
            typer.echo(f"\nSaved {report} ({report.stat().st_size / 1e6:.2f} MB).")
    end_with(len(bad))
