"""The command that writes the codes of images to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sk_cnncodes.cli.common.code_files import WRITERS
from sk_cnncodes.cli.common.frame import (
    CacheOption,
    DeviceOption,
    check_output,
    end_with,
    interruptible,
    note,
    parse_layer,
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
from sk_cnncodes.datasets.tables import is_image_name


def embed(
    images: ImagesArgument,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help=".npz: arrays codes and paths; .npy: codes, which can be "
            "memory-mapped, with their paths beside codes.npy in codes.paths.json; "
            ".parquet: columns path and code (needs pyarrow).",
        ),
    ],
    backbone: Annotated[
        str,
        typer.Option(
            help="Name of a known backbone, path of an ONNX file, or hf://owner/name."
        ),
    ] = "cnncodes-mini",
    layer: Annotated[
        str,
        typer.Option(
            help="-1: penultimate, -2: the one before, and so on; or a name; -1,-3: "
            "the codes of both side by side."
        ),
    ] = "-1",
    pooling: Annotated[
        str, typer.Option(help="auto, avg, max, gem, cls, mean or flatten.")
    ] = "auto",
    norm: Annotated[
        str | None,
        typer.Option(
            help="l2: scale codes to unit length; power: signed square roots first.",
            show_default=False,
        ),
    ] = None,
    max_pixels: MaxPixelsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    shards: Annotated[
        bool,
        typer.Option(
            "--shards",
            help="Write a folder of Parquet files, whatever the number of images, and "
            "go on where an earlier run stopped (needs pyarrow). IMAGES is then one "
            "folder, table (CSV, JSON lines, Parquet, Lance), or -; or tar, zip, "
            "Parquet or Lance files with images.",
        ),
    ] = False,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="With --shards: images of each file.")
    ] = 8192,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            show_default=False,
            help="With --shards: do part I, from 0 to N - 1, of N, as a job of an "
            "array does.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help="With --shards: a column of the table or archives that is written "
            "too; repeat it for several.",
        ),
    ] = None,
    remote: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX",
            show_default=False,
            help="With --shards: the beginning of addresses that may be read, and "
            "written to, such as s3://bucket/; repeat it for several. Without it, "
            "SK_CNNCODES_REMOTE=1 allows https:// and object stores.",
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="With --shards: the column with the images.",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="With --shards: local, or ray, which divides the work among the Ray "
            "cluster that RAY_ADDRESS names, or the cores of this machine."
        ),
    ] = "local",
) -> None:
    """Write the codes of images to a file, or to a folder of shards.

    Each code is stored with its path. An image that cannot be read gets a row of NaN
    and does not stop the others; the exit code is then 3. Memory use does not grow with
    the number of images, except for a list of their paths. With --shards there is none:
    only the names in a single folder, which are sorted, and a JSON array are held.

    \b
    Examples:
      sk-cnncodes embed photos -o codes.npz
      sk-cnncodes embed photos -o codes.parquet --backbone resnet50 --layer -2
      find . -name '*.jpg' | sk-cnncodes embed - -o codes.npy --cache codes.sqlite3
      sk-cnncodes embed photos -o codes/ --shards --part 3/16
      sk-cnncodes embed uris.parquet -o codes/ --shards --engine ray
      sk-cnncodes embed s3://b/photos/ -o s3://b/codes/ --shards --remote s3://b/
    """
    from sk_cnncodes.codes.transformer import CNNCodeTransformer

    how: dict[str, Any] = {"part": _parse_part(part), "columns": column or []}
    if engine not in ("local", "ray"):
        raise typer.BadParameter(f"--engine {engine!r}: expected 'local' or 'ray'.")
    file = Path(output)
    if shards:
        if not output or (file.exists() and not file.is_dir()):
            raise typer.BadParameter(f"{output!r}: expected a folder.")
    elif part or column or image_column or remote or engine != "local":
        raise typer.BadParameter(
            "--part, --column, --image-column, --remote and --engine: expected with "
            "--shards."
        )
    else:
        check_output(file, tuple(WRITERS), [backbone, cache])
    kind = file.suffix.lower()
    if not shards and kind == ".parquet" and find_spec("pyarrow") is None:
        raise ImportError(
            f"{output!r}: Parquet files need pyarrow, which is not installed: "
            "pip install 'sk-cnncodes[pandas]'; or write .npz or .npy."
        )
    transformer = CNNCodeTransformer(
        backbone,
        layer=parse_layer(layer),
        pooling=pooling,
        norm=norm,
        cache=cache,
        device=device,
        **pixel_limit(max_pixels),
    )
    if shards:
        how |= {"shard_rows": shard_rows, "image_column": image_column}
        how["engine"] = engine
        how["remote"] = remote or None
        _write_shards(transformer, images, output, how)
        return
    paths = listed_paths(images)
    check_output(file, inputs=paths)
    length = len(transformer.fit(paths).get_feature_names_out())
    bad: list[str] = []
    with (
        interruptible(cache, f"{output!r} was not written."),
        image_bar(len(paths), "Embed") as bar,
    ):

        def blocks() -> Iterator[np.ndarray]:
            for part in compute_parts(transformer.transform, paths, bar):
                if part.result is None:
                    bad.extend(part.paths)
                    yield np.full((1, length), np.nan, np.float32)
                else:
                    yield part.result

        WRITERS[kind](file, paths, length, blocks())
    note(f"Wrote {len(paths)} codes of length {length} to {output}.")
    end_with(len(bad))


def _parse_part(text: str | None) -> tuple[int, int] | None:
    """Parse ``3/16``."""
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise typer.BadParameter(
            f"--part {text!r}: expected I/N, such as 3/16; the parts of 16 are 0/16 to "
            "15/16."
        )
    return int(index), int(count)


def _write_shards(
    transformer: Any, images: list[str], output: str, how: dict[str, Any]
) -> None:
    """Write the codes of a source to a folder."""
    from sk_cnncodes.scale.embed import embed_to
    from sk_cnncodes.scale.sources.local import is_archive

    source: Any = images if len(images) > 1 else images[0]
    if source == "-":
        source = ((path, path) for path in image_paths(images))
    elif len(images) > 1 and not all(is_archive(path) for path in images):
        raise typer.BadParameter(
            f"--shards: got {len(images)} arguments. Expected one folder, table or -; "
            "or tar, zip or Parquet files."
        )
    elif len(images) == 1 and is_image_name(source):
        raise typer.BadParameter(
            f"--shards: got the image {source!r}. Expected a folder, a table or -; or "
            "tar, zip or Parquet files."
        )
    transformer.verbose = sys.stderr.isatty()
    resume = "Run the same command again to go on: finished shards are kept."
    with interruptible(None, f"{output!r} is not complete.", resume):
        report = embed_to(transformer, output, source, **how)
    note(
        f"Wrote {report.n_images} codes in {report.n_shards} shards to {output}"
        + (", which is complete." if report.complete else "; other parts are missing.")
    )
    end_with(_count_bad(output, how))


def _count_bad(output: str, how: dict[str, Any]) -> int:
    """Count the bad images of a folder, or of a part; an earlier run may have met them.

    A run that resumes then ends with the exit code of one that was never interrupted.
    """
    from sk_cnncodes.images.addresses import allowed_prefixes
    from sk_cnncodes.images.remote import RemoteReader
    from sk_cnncodes.scale.manifest import count_bad
    from sk_cnncodes.scale.remote_paths import any_path

    folder = any_path(output, RemoteReader(allowed_prefixes(how["remote"])))
    return count_bad(folder, how["part"] or (0, 1))
