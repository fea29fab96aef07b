"""What all commands share: exit codes, errors, Ctrl-C, options and tables."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sk_cnncodes.base.exceptions import DeviceError
from sk_cnncodes.base.files import check_not_an_input

ERROR, BAD_IMAGES, INTERRUPTED = 1, 3, 130

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DeviceOption = Annotated[
    str,
    typer.Option(help="cpu, cuda, cuda:N, or auto: a GPU that works, else the CPU."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FILE",
        dir_okay=False,
        help="A file that keeps codes: what it holds is not computed again, so that "
        "an interrupted command goes on where it stopped. Made if need be.",
    ),
]


class Commands(TyperGroup):
    """Commands whose errors are one line, and whose interruption is said."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error of its user ends in exit code 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _end_interrupted("Nothing was left half written; run the command again.")
        except BrokenPipeError:
            raise  # a reader such as `head` has enough
        except (ValueError, OSError, ImportError, DeviceError) as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(ERROR) from error


@contextmanager
def interruptible(cache: Path | None, output: str) -> Iterator[None]:
    """Say on Ctrl-C what became of the output, and how to go on.

    Parameters
    ----------
    cache : Path or None
        Of codes.
    output : str
        A sentence about what was written.
    """
    try:
        yield
    except KeyboardInterrupt:
        if cache is None:
            how = (
                "Run it again to start anew; with --cache FILE, codes are kept, and an "
                "interrupted command goes on where it stopped."
            )
        else:
            how = (
                f"Run the same command again to go on: {str(cache)!r} keeps the codes "
                "that were computed."
            )
        _end_interrupted(f"{output} {how}")


def start_workers(count: int) -> None:
    """Start the processes of joblib so that they leave Ctrl-C to this one.

    It ends them itself; each would print a traceback else. They inherit the mask of
    signals from the thread that starts them. A Ctrl-C meanwhile is not lost.
    """
    import joblib

    if count == 1 or not hasattr(signal, "pthread_sigmask"):
        return
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import resource_tracker as loky_resource_tracker

    # Either starts with the first worker else, and resets the mask.
    resource_tracker.ensure_running()
    loky_resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        joblib.Parallel(count)(joblib.delayed(int)() for _ in range(abs(count)))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_interrupted(message: str) -> None:
    typer.echo(f"\nInterrupted. {message}", err=True)
    raise typer.Exit(INTERRUPTED) from None


def end_with(bad_images: int) -> None:
    """End a command that is done, by an exit code that tells of bad images."""
    if bad_images:
        noun = "image" if bad_images == 1 else "images"
        typer.echo(f"{bad_images} {noun} could not be read.", err=True)
        raise typer.Exit(BAD_IMAGES)


def note(message: str) -> None:
    """Say something that is no result."""
    typer.echo(message, err=True)


def parse_layer(text: str) -> int | str:
    """A layer option: a negative number or a name."""
    try:
        return int(text)
    except ValueError:
        return text


def check_output(
    path: Path,
    suffixes: tuple[str, ...] = (),
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Fail before the work, not after it, where a file cannot or must not be written.

    Raises
    ------
    typer.BadParameter
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise typer.BadParameter(
            f"{str(path)!r}: expected a name that ends in {' or '.join(suffixes)}."
        )
    if path.is_dir():
        raise typer.BadParameter(f"{str(path)!r} is a folder. Expected a file name.")
    if not path.parent.is_dir():
        raise typer.BadParameter(
            f"{str(path)!r}: there is no folder {str(path.parent)!r}. Make it first."
        )
    if str(path) == "-":
        raise typer.BadParameter(
            "'-': expected a file name; /dev/stdout is the standard output."
        )
    check_not_an_input(path, [name for name in inputs if name is not None])


def print_table(table: list[list[str]], right: set[str]) -> None:
    """Print rows below their heads, some columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = [
            cell.rjust(width) if head in right else cell.ljust(width)
            for cell, width, head in zip(cells, widths, table[0], strict=True)
        ]
        typer.echo("  ".join(padded).rstrip())
