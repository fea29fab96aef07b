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
from sk_cnncodes.cli.common.frame import (
    CacheOption,
    check_output,
    end_with,
    interruptible,
)
from sk_cnncodes.cli.common.image_arguments import (
    ImagesArgument,
    MaxPixelsOption,
    compute_parts,
    image_bar,
    image_paths,
    listed_paths,
    pixel_limit,
)
from sk_cnncodes.cli.common.models import set_up

if TYPE_CHECKING:
    from sk_cnncodes.export.onnx_classifier import OnnxClassifier

FIELDS = ("path", "label", "probability", "error")
# The label of an image, and its probability if the model gives one.
Prediction = tuple[Any, float | None]


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Joblib or ONNX file that train wrote, or a skops file. Loading a "
            "joblib file runs the code in it: use only files from people you trust. "
            "The other formats run no code.",
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
            help="Write to a file, which appears when all is done; default: print.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines instead of CSV.")
    ] = False,
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
    """Classify images with a saved model.

    Writes CSV or JSON lines with path, label, probability and error. The probability
    is that of the label, and empty if the model gives none. An image that cannot be
    read gets an error and no label, and does not stop the others; the exit code is then
    3.

    \b
    Examples:
      sk-cnncodes predict model.joblib photo1.jpg photo2.jpg
      sk-cnncodes predict model.onnx folder --json > labels.jsonl
      find . -name '*.jpg' | sk-cnncodes predict model.joblib - -o labels.csv
    """
    if output is not None:
        check_output(output, inputs=[model, cache])
    predictions = _predictor(model, cache, device, max_pixels)
    streamed = "-" in images
    paths = image_paths(images) if streamed else iter(listed := listed_paths(images))
    total = None if streamed else len(listed)
    if output is not None and not streamed:
        check_output(output, inputs=listed)
    bad = 0
    written = (
        "The printed rows are complete."
        if output is None
        else f"{str(output)!r} was not written."
    )
    with (
        interruptible(cache, written),
        image_bar(total, "Predict", beside_rows=output is None) as bar,
        _opened(output) as file,
    ):
        first = next(paths, None)
        if first is None:
            raise ValueError("found no images in the arguments.")
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
    """Open the file for the rows; without one, use standard output."""
    if output is None:
        yield sys.stdout
        return
    with (
        atomic_write(output) as part,
        open(part, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


def _row_writer(file: TextIO, as_json: bool) -> Callable[[tuple[Any, ...]], object]:
    """Return a function that writes one row; for CSV, write the header."""
    if as_json:
        return lambda row: file.write(
            json.dumps(dict(zip(FIELDS, row, strict=True))) + "\n"
        )
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(FIELDS)
    return lambda row: writer.writerow(["" if cell is None else cell for cell in row])


# -- models ------------------------------------------------------------------


def _predictor(
    path: Path, cache: Path | None, device: str | None, max_pixels: int | None
) -> Callable[[list[str]], list[Prediction]]:
    """Load a model; return a function that predicts images."""
    from sk_cnncodes.export.loading import load_with_transformers
    from sk_cnncodes.export.onnx_classifier import OnnxClassifier

    model, transformers = load_with_transformers(path)
    if not hasattr(model, "predict"):
        raise ValueError(
            f"model {str(path)!r}: contains a {type(model).__name__}, which "
            "cannot predict. Expected a fitted pipeline that ends with a classifier."
        )
    if not isinstance(model, OnnxClassifier) and not transformers:
        raise ValueError(
            f"model {str(path)!r}: contains a {type(model).__name__}, which takes no "
            "images. Expected a model with a CNNCodeTransformer."
        )
    if isinstance(model, OnnxClassifier):
        if cache is not None:
            raise typer.BadParameter(
                f"{str(path)!r} gives labels, and no codes that --cache could store. "
                "Expected --cache only with a joblib or skops file."
            )
        model.device = device or model.device
        if max_pixels is not None:
            model.max_pixels = pixel_limit(max_pixels)["max_pixels"]
        return lambda images: _onnx_predictions(model, images)
    set_up(transformers, cache, device, pixel_limit(max_pixels))
    return lambda images: _predictions(model, images)


def _onnx_predictions(model: OnnxClassifier, images: list[str]) -> list[Prediction]:
    outputs = model.run(images)
    if "label" not in outputs:
        values = outputs["values"]
        column = values[:, 0] if values.shape[1] == 1 else values
        return [(value, None) for value in _as_list(column)]
    labels = _as_list(outputs["label"])
    if "probabilities" not in outputs:
        return [(label, None) for label in labels]
    return _with_probabilities(labels, model.classes_, outputs["probabilities"])


def _predictions(model: Any, images: list[str]) -> list[Prediction]:
    labels = _as_list(model.predict(images))
    if not hasattr(model, "predict_proba"):
        return [(label, None) for label in labels]
    return _with_probabilities(labels, model.classes_, model.predict_proba(images))


def _as_list(predicted: Any) -> list[Any]:
    """Predictions, one per image, as plain values."""
    labels = np.asarray(predicted)
    if labels.ndim != 1:
        raise ValueError(
            f"the model gives predictions of shape {labels.shape}. Expected one label "
            "per image."
        )
    return list(labels.tolist())


def _with_probabilities(
    labels: list[Any], classes: Any, table: Any
) -> list[Prediction]:
    """Pair labels with their probabilities from a table with one column per class."""
    column = {label: i for i, label in enumerate(np.asarray(classes).tolist())}
    return [
        (label, round(float(row[column[label]]), 6))
        for label, row in zip(labels, np.asarray(table), strict=True)
    ]
