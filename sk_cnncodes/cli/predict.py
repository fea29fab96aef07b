"""The command that classifies images with a saved model."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import numpy as np
import typer

from sk_cnncodes.base.files import atomic_write
from sk_cnncodes.cli.frame import (
    CacheOption,
    check_output,
    end_with,
    interruptible,
)
from sk_cnncodes.cli.image_arguments import (
    ImagesArgument,
    compute_parts,
    image_bar,
    image_paths,
    listed_paths,
)
from sk_cnncodes.cli.models import code_transformers, set_up

if TYPE_CHECKING:
    from sk_cnncodes.export.onnx_classifier import OnnxClassifier

FIELDS = ("path", "label", "probability", "error")
# The label of an image, and its probability where the model gives one.
Prediction = tuple[Any, float | None]


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="What train wrote: a joblib file, or an ONNX file; or a skops file. "
            "Loading a joblib file runs code that it holds: take none from people you "
            "do not trust; the others run none.",
        ),
    ],
    images: ImagesArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Write to a file, which is there when all is done; default: print.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines instead of CSV.")
    ] = False,
    cache: CacheOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:N or auto; default: as the model says.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Classify images with a saved model.

    Gives CSV or JSON lines with path, label, probability and error. The probability
    is that of the label, and empty where the model gives none. An image that cannot
    be read has an error and no label, and the others go on; the exit code is 3 then.

    \b
    Examples:
      sk-cnncodes predict model.joblib photo1.jpg photo2.jpg
      sk-cnncodes predict model.onnx folder --json > labels.jsonl
      find . -name '*.jpg' | sk-cnncodes predict model.joblib - -o labels.csv
    """
    if output is not None:
        check_output(output, inputs=[model, cache])
    predictions = _predictor(model, cache, device)
    streamed = "-" in images
    paths = image_paths(images) if streamed else iter(listed := listed_paths(images))
    total = None if streamed else len(listed)
    if output is not None and not streamed:
        check_output(output, inputs=listed)
    bad = 0
    what = (
        "The rows that were printed are whole."
        if output is None
        else f"{str(output)!r} was not written."
    )
    with (
        interruptible(cache, what),
        image_bar(total, "Predict", beside_rows=output is None) as bar,
        _opened(output) as file,
    ):
        first = next(paths, None)
        if first is None:
            raise ValueError("found no images in what was given.")
        write = _row_writer(file, as_json)
        for part in compute_parts(predictions, chain([first], paths), bar):
            rows = part.result or [(None, None)]
            bad += part.result is None
            for path, (label, probability) in zip(part.paths, rows, strict=True):
                write((path, label, probability, part.fault or None))
            file.flush()
    end_with(bad)


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """The file to write rows to; standard output without one."""
    if output is None:
        yield sys.stdout
        return
    with (
        atomic_write(output) as part,
        open(part, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


def _row_writer(file: TextIO, as_json: bool) -> Callable[[tuple[Any, ...]], object]:
    if as_json:
        return lambda row: file.write(
            json.dumps(dict(zip(FIELDS, row, strict=True))) + "\n"
        )
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(FIELDS)
    return lambda row: writer.writerow(["" if cell is None else cell for cell in row])


# -- models ------------------------------------------------------------------


def _predictor(
    path: Path, cache: Path | None, device: str | None
) -> Callable[[list[str]], list[Prediction]]:
    """A function that gives the predictions of images."""
    from sk_cnncodes.export.loading import load_model
    from sk_cnncodes.export.onnx_classifier import OnnxClassifier

    model = load_model(path)
    if not hasattr(model, "predict"):
        raise ValueError(
            f"model {str(path)!r}: holds a {type(model).__name__}, which does not "
            "predict. Expected a fitted pipeline with a classifier at its end."
        )
    if not isinstance(model, OnnxClassifier) and not code_transformers(model):
        raise ValueError(
            f"model {str(path)!r}: holds a {type(model).__name__} that takes no "
            "images. Expected a pipeline that starts with a CNNCodeTransformer."
        )
    if isinstance(model, OnnxClassifier):
        if cache is not None:
            raise typer.BadParameter(
                f"{str(path)!r} gives labels, and no codes that --cache could keep. "
                "Expected --cache with a joblib file only."
            )
        model.device = device or model.device
        return lambda images: _predictions_of_onnx(model, images)
    set_up(model, cache, device)
    return lambda images: _predictions(model, images)


def _predictions_of_onnx(model: OnnxClassifier, images: list[str]) -> list[Prediction]:
    outputs = model.run(images)
    if "label" not in outputs:
        values = outputs["values"]
        one = values[:, 0] if values.shape[1] == 1 else values
        return [(value, None) for value in _one_each(one)]
    labels = _one_each(outputs["label"])
    if "probabilities" not in outputs:
        return [(label, None) for label in labels]
    return _with_probabilities(labels, model.classes_, outputs["probabilities"])


def _predictions(model: Any, images: list[str]) -> list[Prediction]:
    labels = _one_each(model.predict(images))
    if not hasattr(model, "predict_proba"):
        return [(label, None) for label in labels]
    return _with_probabilities(labels, model.classes_, model.predict_proba(images))


def _one_each(predicted: Any) -> list[Any]:
    """Predictions as plain values."""
    labels = np.asarray(predicted)
    if labels.ndim != 1:
        raise ValueError(
            f"the model gives predictions of shape {labels.shape}. Expected one label "
            "an image."
        )
    return list(labels.tolist())


def _with_probabilities(
    labels: list[Any], classes: Any, table: Any
) -> list[Prediction]:
    column = {label: i for i, label in enumerate(np.asarray(classes).tolist())}
    return [
        (label, round(float(row[column[label]]), 6))
        for label, row in zip(labels, np.asarray(table), strict=True)
    ]
