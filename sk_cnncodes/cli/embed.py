"""The command that writes the codes of images to a file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

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
    listed_paths,
    pixel_limit,
)


def embed(
    images: ImagesArgument,
    output: Annotated[
        Path,
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
        str, typer.Option(help="Name of a known backbone, or path of an ONNX file.")
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
) -> None:
    """Write the codes of images to a file.

    Each code is stored with its path. An image that cannot be read gets a row of NaN
    and does not stop the others; the exit code is then 3. Memory use does not grow with
    the number of images.

    \b
    Examples:
      sk-cnncodes embed photos -o codes.npz
      sk-cnncodes embed photos -o codes.parquet --backbone resnet50 --layer -2
      find . -name '*.jpg' | sk-cnncodes embed - -o codes.npy --cache codes.sqlite3
    """
    from sk_cnncodes.codes.transformer import CNNCodeTransformer

    check_output(output, tuple(WRITERS), [backbone, cache])
    kind = output.suffix.lower()
    if kind == ".parquet" and find_spec("pyarrow") is None:
        raise ImportError(
            f"{str(output)!r}: Parquet files need pyarrow, which is not installed: "
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
    paths = listed_paths(images)
    check_output(output, inputs=paths)
    length = len(transformer.fit(paths).get_feature_names_out())
    bad: list[str] = []
    with (
        interruptible(cache, f"{str(output)!r} was not written."),
        image_bar(len(paths), "Embed") as bar,
    ):

        def blocks() -> Iterator[np.ndarray]:
            for part in compute_parts(transformer.transform, paths, bar):
                if part.result is None:
                    bad.extend(part.paths)
                    yield np.full((1, length), np.nan, np.float32)
                else:
                    yield part.result

        WRITERS[kind](output, paths, length, blocks())
    note(f"Wrote {len(paths)} codes of length {length} to {output}.")
    end_with(len(bad))
