"""Exit codes, errors, Ctrl-C, options and tables, shared by all commands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from sk_cnncodes.base.exceptions import DeviceError
from sk_cnncodes.base.files import check_not_an_input
from sk_cnncodes.cli.common.messages import in_lines, options_of

ERROR, BAD_IMAGES, INTERRUPTED = 1, 3, 130
# Errors that a user can do something about.
_OF_USERS = (ValueError, OSError, ImportError, DeviceError, MemoryError)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DeviceOption = Annotated[
    str,
    typer.Option(help="cpu, cuda, cuda:N, or auto: a working GPU, otherwise the CPU."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FILE",
        dir_okay=False,
        help="File that stores codes, created if missing. Stored codes are not "
        "computed again, so an interrupted command can resume.",
    ),
]


class Commands(TyperGroup):
    """Command group that reports errors in a few lines, and interruptions."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; user errors end with exit code 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            end_interrupted("No partial output was left; run the command again.")
        except BrokenPipeError:
            raise  # the reader, such as `head`, has finished
        except _OF_USERS as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            options = {} if command is None else options_of(command)
            typer.echo(f"Error: {in_lines(error, options)}", err=True)
            raise typer.Exit(ERROR) from error


@contextmanager
def interruptible(cache: Path | None, output: str, resume: str = "") -> Iterator[None]:
    """On Ctrl-C, report what became of the output and how to resume.

    Parameters
    ----------
    cache : Path or None
        Cache file of codes.
    output : str
        A sentence about what has been written.
    resume : str, default=""
        How to go on, if that needs no cache.
    """
    try:
        yield
    except KeyboardInterrupt:
        if resume:
            how = resume
        elif cache is None:
            how = (
                "Run it again to start over; with --cache FILE, codes are kept, and an "
                "interrupted command resumes where it stopped."
            )
        else:
            how = (
                f"Run the same command again to resume: {str(cache)!r} has the codes "
                "computed so far."
            )
        end_interrupted(f"{output} {how}")


def end_interrupted(message: str) -> NoReturn:
    """Exit as after Ctrl-C, with a sentence about what is left."""
    typer.echo(f"\nInterrupted. {message}", err=True)
    raise typer.Exit(INTERRUPTED) from None


def end_with(bad_images: int) -> None:
    """Exit with code 3 if there were bad images; otherwise return."""
    if bad_images:
        noun = "image" if bad_images == 1 else "images"
        typer.echo(f"{bad_images} {noun} could not be read.", err=True)
        raise typer.Exit(BAD_IMAGES)


def note(message: str) -> None:
    """Print a message to standard error."""
    typer.echo(message, err=True)


def parse_layer(text: str) -> int | str | list[int | str]:
    """Parse a layer option: a negative number or a name; several with commas."""
    layers: list[int | str] = []
    for part in text.split(","):
        try:
            layers.append(int(part))
        except ValueError:
            layers.append(part)
    return layers if len(layers) > 1 else layers[0]


def check_output(
    path: Path,
    suffixes: tuple[str, ...] = (),
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Check, before any work is done, that an output can be written.

    Raises
    ------
    typer.BadParameter
        If the path is not a possible file name.
    ValueError
        If the output is one of the inputs.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise typer.BadParameter(
            f"{str(path)!r}: expected a name that ends in {' or '.join(suffixes)}."
        )
    if path.is_dir():
        raise typer.BadParameter(f"{str(path)!r} is a folder. Expected a file name.")
    if not path.parent.is_dir():
        raise typer.BadParameter(
            f"{str(path)!r}: there is no folder {str(path.parent)!r}. Create it first."
        )
    if str(path) == "-":
        raise typer.BadParameter(
            "'-': expected a file name; use /dev/stdout for standard output."
        )
    check_not_an_input(path, [name for name in inputs if name is not None])


def print_table(table: list[list[str]], right: set[str]) -> None:
    """Print a table with a header row; `right` names right-aligned columns."""
    typer.echo(format_table(table, right))


def format_table(table: list[list[str]], right: set[str]) -> str:
    """Lay out a table with a header row; `right` names right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        padded = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(cells, widths, table[0], strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
