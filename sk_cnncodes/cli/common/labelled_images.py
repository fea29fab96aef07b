"""Labelled images that a command gets, and their codes in a cache."""

from __future__ import annotations

import functools
import inspect
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sk_cnncodes.cli.common.frame import note
from sk_cnncodes.cli.common.image_arguments import compute_parts, image_bar
from sk_cnncodes.cli.common.messages import with_options
from sk_cnncodes.cli.common.summary import summary
from sk_cnncodes.datasets.folders import labelled_folder
from sk_cnncodes.datasets.labelled_images import LabelledImages
from sk_cnncodes.datasets.labels import read_labels

if TYPE_CHECKING:
    from sk_cnncodes.codes.transformer import CNNCodeTransformer

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        show_default=False,
        exists=True,
        help="A folder with one sub-folder of images for each class; or a table of "
        "image files and labels: CSV, TSV, JSON lines, JSON or Parquet.",
    ),
]
TestOption = Annotated[
    Path | None,
    typer.Option(
        "--test",
        metavar="DATA",
        show_default=False,
        exists=True,
        help="Another folder or table, whose images are those held out.",
    ),
]
BackbonesOption = Annotated[
    list[str],
    typer.Option(
        "--backbone",
        help="Name of a backbone, path of an ONNX file, or hf://owner/name; "
        "repeatable.",
    ),
]


class Task(StrEnum):
    """Same as `sk_cnncodes.datasets.labelled_images.TASKS`."""

    classification = "classification"
    multilabel = "multilabel"
    regression = "regression"


def _column(name: str, what: str) -> Any:
    return typer.Option(
        f"--{name}", metavar="NAME", show_default=False, help=f"Table: {what}"
    )


@dataclass(frozen=True)
class DataOptions:
    """Options about DATA, which several commands have; `takes_data_options` adds them.

    Attributes
    ----------
    flat : bool
    groups : str or None
        A regular expression.
    image_column, label_column, group_column, split_column : str or None
    root : Path or None
    label_separator : str or None
    task : Task or None
    """

    flat: Annotated[
        bool,
        typer.Option(
            "--flat",
            help="Folder: take only images directly in the folder of their class, "
            "not those in folders inside of it.",
        ),
    ] = False
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            metavar="REGEX",
            show_default=False,
            help="Images whose path below DATA, as CLASS/FILE, matches this with the "
            "same text (of its first group, if it has one) belong together: one burst, "
            "object or patient; '/(.+)/' are folders inside of those of classes.",
        ),
    ] = None
    image_column: Annotated[
        str | None,
        _column("image-column", "column of the image files.  [default: guessed]"),
    ] = None
    label_column: Annotated[
        str | None, _column("label-column", "column of the labels.  [default: guessed]")
    ] = None
    group_column: Annotated[
        str | None,
        _column(
            "group-column",
            "column of what images belong to, such as burst, object or patient.",
        ),
    ] = None
    split_column: Annotated[
        str | None,
        _column("split-column", "column that says train, val or test."),
    ] = None
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            show_default=False,
            help="Table: folder that image files start from.  [default: the table's]",
        ),
    ] = None
    label_separator: Annotated[
        str | None,
        typer.Option(
            "--label-separator",
            metavar="TEXT",
            show_default=False,
            help="Table: what separates several labels of an image in a cell.",
        ),
    ] = None
    task: Annotated[
        Task | None,
        typer.Option(
            "--task",
            show_default=False,
            help="Table: classes, several labels an image, or values; by default what "
            "the labels look like.",
        ),
    ] = None


def takes_data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `DataOptions`, as its parameter `data_options`."""
    hints = get_type_hints(DataOptions, include_extras=True)
    names = [field.name for field in fields(DataOptions)]
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(DataOptions)
    ]
    signature = inspect.signature(command, eval_str=True)
    parameters = list[inspect.Parameter]()
    for parameter in signature.parameters.values():
        parameters += options if parameter.name == "data_options" else [parameter]

    @functools.wraps(command)
    def with_options(**values: Any) -> Any:
        given = DataOptions(**{name: values.pop(name) for name in names})
        return command(**values, data_options=given)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_options


def words_of(options: DataOptions) -> list[str]:
    """Options as words of a command line, for the next command."""
    words = list[str]()
    for field in fields(DataOptions):
        value = getattr(options, field.name)
        name = f"--{field.name.replace('_', '-')}"
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return words


def labelled_images(
    data: Path, options: DataOptions | None = None, *, quiet: bool = False
) -> LabelledImages:
    """The labelled images of a folder or a table; what was found is noted.

    Parameters
    ----------
    data : Path
        A folder or a table.
    options : DataOptions or None, default=None
        None are the defaults.
    quiet : bool, default=False
        Whether not to note on standard error what was found.

    Returns
    -------
    LabelledImages

    Raises
    ------
    typer.BadParameter
        If options do not fit the data.
    OSError, ImportError, ValueError
        As `find_labelled_images` and `read_labels`, with the names of options.
    """
    options = DataOptions() if options is None else options
    pattern = _compiled(options.groups)
    if data.is_dir():
        _check_folder(options)
        _, images = labelled_folder(data, options.flat)
    else:
        images = _read_table(data, options)
    if pattern is not None:
        start = data if data.is_dir() else options.root or data.parent
        images = replace(images, groups=_groups(images.paths, start, pattern))
    images = _with_option_names(images)
    if not quiet:
        note(summary(images, str(data)))
    return images


def _check_folder(options: DataOptions) -> None:
    of_tables = (
        *("image_column", "label_column", "group_column", "split_column"),
        *("root", "label_separator"),
    )
    for name in of_tables:
        if getattr(options, name) is not None:
            raise typer.BadParameter(
                f"--{name.replace('_', '-')}: expected a table, got a folder. In a "
                "folder, classes are sub-folders; --groups REGEX makes groups of "
                "file names."
            )
    if options.task not in (None, Task.classification):
        raise typer.BadParameter(
            f"--task {options.task}: expected a table; the sub-folders of a folder are "
            "classes."
        )


def _read_table(data: Path, options: DataOptions) -> LabelledImages:
    if options.flat:
        raise typer.BadParameter("--flat: expected a folder, got a table.")
    if options.groups is not None and options.group_column is not None:
        raise typer.BadParameter("expected one of --groups and --group-column.")
    return read_labels(
        data,
        image_column=options.image_column,
        label_column=options.label_column,
        group_column=options.group_column,
        split_column=options.split_column,
        root=options.root,
        label_separator=options.label_separator,
        task=None if options.task is None else options.task.value,
    )


def _with_option_names(images: LabelledImages) -> LabelledImages:
    """The same, with cures that name options as the command line does."""
    left_out = tuple(
        replace(each, cure=_option_names(each.cure)) for each in images.left_out
    )
    notes = tuple(map(_option_names, images.notes))
    return replace(images, left_out=left_out, notes=notes)


def _option_names(text: str) -> str:
    """A sentence with options instead of parameters."""
    names = [field.name for field in fields(DataOptions)]
    options = {name: f"--{name.replace('_', '-')}" for name in names}
    return with_options(text.replace("flat=True", "--flat"), options)


def _compiled(groups: str | None) -> re.Pattern[str] | None:
    try:
        return None if groups is None else re.compile(groups)
    except re.error as error:
        raise typer.BadParameter(
            f"--groups: expected a regular expression, got {groups!r}: {error}."
        ) from error


def _groups(paths: list[str], start: Path, pattern: re.Pattern[str]) -> list[str]:
    """The group of each image: what a pattern finds in its path below a folder."""
    groups, n_alone = list[str](), 0
    for path in paths:
        below = Path(path)
        if below.is_relative_to(start):
            below = below.relative_to(start)
        match = pattern.search(below.as_posix())
        if match is None:
            groups.append(f"\0{path}")  # a group of its own
            n_alone += 1
        else:
            groups.append(match[1 if pattern.groups else 0] or "")
    if n_alone:
        note(f"--groups: {n_alone} images do not match; each is a group of its own.")
    return groups


def found_as_dict(images: LabelledImages, bad: list[dict[str, str]]) -> dict[str, Any]:
    """What was found, for JSON.

    Parameters
    ----------
    images : LabelledImages
    bad : list of dict
        As `embed_labelled` returns them.
    """
    return {
        "ignored": sum(len(each.items) for each in images.left_out),
        "left_out": [asdict(each) for each in images.left_out],
        "unreadable": bad,
    }


# -- codes ---------------------------------------------------------------------


@contextmanager
def cache_file(cache: Path | None) -> Iterator[Path]:
    """The cache file to use: a temporary one if none is given.

    A file can be shared by processes, and holds any number of codes.
    """
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder, "codes.sqlite3")


def embed_labelled(
    layers_of: list[tuple[CNNCodeTransformer, list[Any]]], images: LabelledImages
) -> tuple[LabelledImages, list[dict[str, str]]]:
    """Store the codes of images in the cache.

    Parameters
    ----------
    layers_of : list of (transformer, layers)
        The layers are those whose codes are needed.
    images : LabelledImages

    Returns
    -------
    images : LabelledImages
        Those that can be read.
    bad : list of dict
        ``path`` and ``error`` of each image that cannot be read.
    """
    for transformer, layers in layers_of:
        for layer in layers:  # fail early on a wrong layer
            transformer.set_params(layer=layer).fit(images.paths)
    paths, bad = images.paths, list[dict[str, str]]()
    with image_bar(len(paths) * len(layers_of), "Embed") as bar:
        for transformer, layers in layers_of:
            good = list[str]()
            for part in compute_parts(_storing(transformer, layers), paths, bar):
                if part.result is None:
                    bad.append({"path": part.paths[0], "error": part.fault})
                else:
                    good += part.paths
            paths = good
    if bad and not paths:
        first = f"{bad[0]['path']!r}: {bad[0]['error']}"
        raise ValueError(f"none of {len(bad)} images can be read. The first: {first}")
    readable = {*paths}
    rows = [row for row, path in enumerate(images.paths) if path in readable]
    return images.take(rows), bad


def _storing(
    transformer: CNNCodeTransformer, layers: list[Any]
) -> Callable[[list[str]], bool]:
    """Return a function that caches the codes of images at all layers."""

    def store(paths: list[str]) -> bool:
        # The first layer's forward pass stores all layers; the others are cache hits,
        # except for codes that an older cache lacks.
        for layer in layers:
            transformer.set_params(layer=layer).transform(paths)
        return True

    return store
