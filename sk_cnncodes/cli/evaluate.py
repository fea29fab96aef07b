"""The command that evaluates a saved model on labelled images."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sk_cnncodes.cli.common.frame import (
    AsJson,
    CacheOption,
    end_with,
    interruptible,
    note,
)
from sk_cnncodes.cli.common.held_out import held_out_figures
from sk_cnncodes.cli.common.image_arguments import (
    MaxPixelsOption,
    compute_parts,
    image_bar,
)
from sk_cnncodes.cli.common.labelled_images import (
    DataArgument,
    DataOptions,
    Task,
    found_as_dict,
    labelled_images,
    takes_data_options,
)
from sk_cnncodes.cli.common.pages import (
    ReportOption,
    audited_tested,
    check_page,
    copies_among,
    evaluated,
    write_page,
)
from sk_cnncodes.cli.serving.predictor import Predictor
from sk_cnncodes.datasets.labelled_images import LabelledImages

_TASKS = {
    "classes": Task.classification,
    "labels": Task.multilabel,
    "values": Task.regression,
}


@takes_data_options
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Joblib or ONNX file that train wrote, or a skops file. Loading a "
            "joblib file runs the code in it: use only files from people you trust.",
        ),
    ],
    data: DataArgument,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train",
            metavar="DATA",
            show_default=False,
            exists=True,
            help="The folder or table that the model was trained on: the report then "
            "shows the most similar training images of each mistake.",
        ),
    ] = None,
    report: ReportOption = None,
    data_options: DataOptions = DataOptions(),  # noqa: B008
    as_json: AsJson = False,
    max_pixels: MaxPixelsOption = None,
    cache: CacheOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:N or auto; default: the setting of the model.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Evaluate a saved model on labelled images that it was not trained on.

    DATA is a folder with a sub-folder of images for each class, or a table, as for
    train; of data with parts, the part "test" is evaluated. With --report, an HTML page
    shows the mistakes, the worst first, and more. Images that cannot be read are
    reported and skipped; the exit code is then 3.

    \b
    Examples:
      sk-cnncodes evaluate model.joblib photos/test
      sk-cnncodes evaluate model.onnx photos/test --train photos/train --report r.html
      sk-cnncodes evaluate model.joblib labels.csv --label-column species --json
    """
    check_page(report, [model, cache, data])
    predictor = Predictor(model, cache, device, max_pixels)
    if data_options.task is None and not data.is_dir():
        # Numbers are classes, or values, as the model has them.
        data_options = replace(data_options, task=_TASKS[predictor.kind])
    found = labelled_images(data, data_options)
    seen = None if train is None else labelled_images(train, data_options, quiet=True)
    if found.splits is not None:
        name = "test" if found.rows_of("test") else "validation"
        rows = found.rows_of(name)
        if rows:
            note(f"Evaluated: the {len(rows)} images of the part {name!r}.")
            if seen is None and found.rows_of("train"):
                seen = found.take(found.rows_of("train"))
            found = found.take(rows)
    if seen is not None and seen.splits is not None and seen.rows_of("train"):
        seen = seen.take(seen.rows_of("train"))
    task = _TASKS[predictor.kind].value
    for path, images in ((data, found), (train, seen)):
        if images is not None and images.task != task:
            raise ValueError(
                f"{str(path)!r}: has labels for {images.task}. Expected those for "
                f"{task}, as the model {str(model)!r} was trained for."
            )
    with interruptible(cache, "Nothing was evaluated."):
        bad = list[dict[str, str]]()
        found = _readable(predictor, _aligned(found, predictor), bad)
        if not found.paths:
            raise ValueError(f"{str(data)!r}: none of the images can be read.")
        if seen is not None:
            seen = _readable(predictor, _aligned(seen, predictor), [])
            seen = seen if seen.paths else None
        warnings = [f"{len(bad)} images could not be read."] if bad else []
        if seen is not None:
            warnings += copies_among(found, seen)
        for each in warnings:
            note(each)
        evaluation = evaluated(predictor.model, seen, found)
        if report is not None:
            words = shlex.quote(str(model))
            write_page(
                report,
                evaluation,
                predictor.model,
                warnings,
                card=predictor.card,
                audit=audited_tested(evaluation, found),
                title=f"{model.name} on {data.name}",
                next_commands=[
                    (
                        "Classify other images",
                        f"sk-cnncodes predict {words} DIR -o labels.csv",
                    ),
                    (
                        "Look for duplicates and wrong labels",
                        f"sk-cnncodes audit {shlex.quote(str(data))}",
                    ),
                ],
            )
    figures = held_out_figures(evaluation, found.groups)
    if as_json:
        values = {
            "model": str(model),
            "task": task,
            "classes": evaluation.classes,
            "held_out": figures.as_dict(),
            "report": None if report is None else str(report),
        }
        typer.echo(json.dumps(values | found_as_dict(found, bad), indent=1))
    else:
        typer.echo("\n\n".join([figures.headline(), *figures.tables()]))
        if report is not None:
            typer.echo(f"\nSaved {report} ({report.stat().st_size / 1e6:.2f} MB).")
    end_with(len(bad))


def _aligned(images: LabelledImages, predictor: Predictor) -> LabelledImages:
    """The same images, of several labels with those of the model in its order."""
    if images.task != "multilabel":
        return images
    names = tuple(map(str, predictor.classes))
    strange = sorted({*images.classes} - {*names})
    if strange:
        raise ValueError(
            f"labels {strange[:9]}: the model does not know them. Expected some of "
            f"{list(names)[:9]}."
        )
    return replace(images, classes=names)


def _readable(
    predictor: Predictor, images: LabelledImages, bad: list[dict[str, str]]
) -> LabelledImages:
    """The images that can be read; their codes are then in a cache."""
    from sk_cnncodes.inspection.predicting import reads_codes

    read = reads_codes(predictor.model)
    good = set[str]()
    with image_bar(len(images), "Embed") as bar:
        for part in compute_parts(lambda paths: [read(paths)], images.paths, bar):
            if part.result is None:
                bad.append({"path": part.paths[0], "error": part.fault})
            else:
                good.update(part.paths)
    return images.take([r for r, path in enumerate(images.paths) if path in good])
