"""The command that classifies images with a saved model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from sk_cnncodes.cli.common.frame import (
    CacheOption,
    check_output,
    end_interrupted,
    end_with,
    interruptible,
    note,
)
from sk_cnncodes.cli.common.image_arguments import (
    ImagesArgument,
    MaxPixelsOption,
    chunks_of,
    compute_chunks,
    image_bar,
    image_paths,
    listed_paths,
    pixel_limit,
)
from sk_cnncodes.cli.serving.predictor import UNKNOWN, Prediction, Predictor
from sk_cnncodes.cli.serving.rows import Rows, open_rows
from sk_cnncodes.cli.serving.sorting import LabelFolders, check_sorted_folder
from sk_cnncodes.cli.serving.sources import WatchedFolder, as_they_come


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
    images: ImagesArgument = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Write to a file, which appears when all is done; with --watch, rows "
            "are added to it as they come. A .csv file begins with a byte order mark, "
            "for spreadsheets. Default: print.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines instead of CSV.")
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            show_default=False,
            help="The K most probable classes with their probabilities.",
        ),
    ] = None,
    reject: Annotated[
        float | None,
        typer.Option(
            metavar="ACCURACY",
            show_default=False,
            help=f"Label images {UNKNOWN!r} below the probability from which on that "
            "share of predictions was right in training, such as 0.95.",
        ),
    ] = None,
    reject_below: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            show_default=False,
            help=f"Label images {UNKNOWN!r} below this probability.",
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            show_default=False,
            help="Then wait for images that come into this folder, until Ctrl-C. Those "
            "that are there at the start are taken if IMAGES names the folder too.",
        ),
    ] = None,
    sort_into: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Copy each image into the folder of its label in DIR. No file is "
            "moved or replaced.",
        ),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="With --sort-into: links instead of copies.")
    ] = False,
    label_separator: Annotated[
        str,
        typer.Option(help="Stands between several labels or values in a CSV cell."),
    ] = ";",
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

    Writes CSV or JSON lines with path, label, probability and error; of a model for
    several labels, label and score; of one for values, the value. The probability is
    that of the label, and empty if the model gives none. An image that cannot be read
    gets an error and no label, and does not stop the others; the exit code is then 3.
    With -, each row is written as soon as its path comes.

    \b
    Examples:
      sk-cnncodes predict model.joblib photo1.jpg photo2.jpg
      sk-cnncodes predict model.onnx folder --json > labels.jsonl
      sk-cnncodes predict model.joblib photos --reject 0.95 --sort-into sorted
      sk-cnncodes predict model.joblib --watch inbox --top 5 -o labels.csv
      find . -name '*.jpg' | sk-cnncodes predict model.joblib - -o labels.csv
    """
    streamed = "-" in images
    if watch is None and not images:
        raise typer.BadParameter(
            "expected IMAGES: files, folders or -; or --watch DIR."
        )
    if watch is not None and streamed:
        raise typer.BadParameter("--watch: expected no - among IMAGES.")
    if output is not None:
        check_output(output, inputs=[model, cache])
    predictor = Predictor(model, cache, device, max_pixels)
    _check_options(predictor, top, sort_into, link, label_separator)
    _set_threshold(predictor, reject, reject_below)
    predictor.top = top or 0
    folders = None
    if sort_into is not None:
        check_sorted_folder(sort_into, [*images, *([watch] if watch else [])])
        folders = LabelFolders(sort_into, predictor.classes, link)
    watched = None if watch is None else WatchedFolder(watch, pixel_limit(max_pixels))
    total, chunks = _chunks(images, output, watched)
    written = "The printed rows are complete."
    if output is not None and watch is None:
        written = f"{str(output)!r} was not written."
    elif output is not None:
        written = f"The rows in {str(output)!r} are complete."
    bad = 0
    with (
        _watching(watch, written) if watch else interruptible(cache, written),
        image_bar(total, "Predict", beside_rows=output is None) as bar,
        open_rows(output, is_appended=watch is not None) as file,
    ):
        rows = Rows(
            file,
            predictor,
            as_json,
            shows_best=predictor.least > 0,
            separator=label_separator,
            output=output,
        )
        for part in compute_chunks(predictor, chunks, bar):
            found: Sequence[Prediction | None] = part.result or [None]
            bad += part.result is None
            for path, prediction in zip(part.paths, found, strict=True):
                if folders is not None and prediction is not None:
                    folders.put(path, prediction)
                rows.write(path, prediction, part.fault)
            rows.flush()
    if folders is not None:
        note(folders.summary())
    end_with(bad)


def _check_options(
    predictor: Predictor,
    top: int | None,
    sort_into: Path | None,
    link: bool,
    separator: str,
) -> None:
    """Refuse options that the model has nothing for."""
    path = f"model {str(predictor.path)!r}"
    if link and sort_into is None:
        raise typer.BadParameter("--link: expected --sort-into DIR beside it.")
    if predictor.kind == "values" and (top is not None or sort_into is not None):
        option = "--sort-into" if top is None else "--top"
        raise typer.BadParameter(
            f"{option}: {path} gives values, not labels. Expected a classifier."
        )
    if top is not None and not predictor.gives_scores:
        raise typer.BadParameter(
            f"--top: {path} gives no probabilities to rank its classes by. Models of "
            "sk-cnncodes train do."
        )
    clash = next((each for each in predictor.classes if separator in str(each)), None)
    if predictor.kind == "labels" and clash is not None:
        raise typer.BadParameter(
            f"--label-separator {separator!r}: it is in the label {clash!r}. Expected "
            "one that is in no label."
        )


def _set_threshold(
    predictor: Predictor, reject: float | None, reject_below: float | None
) -> None:
    """Set the probability below which a class is unknown."""
    if reject is None and reject_below is None:
        return
    option = "--reject-below" if reject is None else "--reject"
    if reject is not None and reject_below is not None:
        raise typer.BadParameter("expected --reject or --reject-below, not both.")
    path = f"model {str(predictor.path)!r}"
    if predictor.kind != "classes" or not predictor.gives_scores:
        raise typer.BadParameter(
            f"{option}: {path} gives no probabilities of classes. Expected a "
            "classifier of sk-cnncodes train."
        )
    if reject_below is not None:
        predictor.least = reject_below
        return
    assert reject is not None
    if not 0 < reject < 1:
        raise typer.BadParameter(
            f"--reject {reject:g}: expected a share above 0 and below 1, such as 0.95."
        )
    if predictor.card is None or not predictor.card.operating_points:
        raise typer.BadParameter(
            f"--reject: {path} does not say which probability gives which accuracy; "
            "those of nearest neighbours and of older versions do not. Train it again, "
            "or use --reject-below P."
        )
    try:
        point = predictor.card.threshold_for(reject)
    except ValueError as error:
        reason = str(error).removeprefix("accuracy: ")
        raise typer.BadParameter(f"--reject {reject:g}: {reason}") from error
    predictor.least = point.threshold
    note(
        f"{UNKNOWN!r}: below a probability of {point.threshold:.4f}. In training, "
        f"{point.accuracy:.1%} of the {point.coverage:.0%} of images above it were "
        "right."
    )


def _chunks(
    images: list[str], output: Path | None, watched: WatchedFolder | None
) -> tuple[int | None, Iterable[list[str]]]:
    """The number of images, if it is known, and their paths in parts."""
    if "-" in images:
        return None, _some(as_they_come(image_paths(images)))
    if watched is None:
        listed = listed_paths(images)
        if output is not None:
            check_output(output, inputs=listed)
        return len(listed), chunks_of(listed)
    listed = list(image_paths(images))
    watched.leave_out(listed)
    return None, chain(chunks_of(listed), watched.parts())


def _some(chunks: Iterable[list[str]]) -> Iterator[list[str]]:
    """The same; raise a ValueError if there are none."""
    empty = True
    for chunk in chunks:
        empty = False
        yield chunk
    if empty:
        raise ValueError("found no images in the arguments.")


@contextmanager
def _watching(folder: Path, written: str) -> Iterator[None]:
    """Say how to end the watching of a folder, and that it ended."""
    note(f"Watching {str(folder)!r}; Ctrl-C ends it.")
    try:
        yield
    except KeyboardInterrupt:
        end_interrupted(written)
