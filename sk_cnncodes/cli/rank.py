"""The commands that rank layers for a folder of images, and say what follows."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    BackbonesOption,
    DataArgument,
    DataOptions,
    cache_file,
    embed_labelled,
    found_as_dict,
    labelled_images,
    takes_data_options,
    words_of,
)
from sk_cnncodes.cli.common.scoring import Scoring, ScoringOption, score_name

if TYPE_CHECKING:
    from sk_cnncodes.ranking.code_ranking import CodeRanking


LayersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        show_default=False,
        help="-1: penultimate, -2: the one before, and so on; or a name; -1,-3: "
        "the codes of both side by side; repeatable.  [default: all layers]",
    ),
]


@takes_data_options
def rank(
    data: DataArgument,
    backbone: BackbonesOption = ["cnncodes-mini"],  # noqa: B006
    layer: LayersOption = None,
    scoring: ScoringOption = None,
    data_options: DataOptions = DataOptions(),  # noqa: B008
    as_json: AsJson = False,
    max_pixels: MaxPixelsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Rank backbones and layers for labelled images.

    Each image is classified by a ridge classifier of all others, on the codes of each
    layer: exactly, by a closed form, in seconds. The cheapest layer that chance cannot
    tell from the best is recommended. Images that cannot be read are reported and
    skipped; the exit code is then 3.

    \b
    Examples:
      sk-cnncodes rank photos
      sk-cnncodes rank photos --backbone cnncodes-mini --backbone resnet50 \\
          --cache codes.sqlite3
      sk-cnncodes rank photos --layer -1 --layer -3 --layer -1,-3
      sk-cnncodes rank photos --groups '(IMG_[0-9]+)_crop'
    """
    from sk_cnncodes.ranking.advice import train_command
    from sk_cnncodes.ranking.ranked_codes import layers_of

    ranking, found = _rank(
        data, data_options, backbone, layer, scoring, max_pixels, cache, device
    )
    options = _next_options(data_options, scoring, cache, max_pixels, device)
    chosen = ranking.recommended
    following = train_command(chosen.backbone, layers_of(chosen), str(data), options)
    if as_json:
        typer.echo(
            json.dumps(_as_dict(ranking) | {"next": following} | found, indent=1)
        )
    else:
        typer.echo(repr(ranking))
        typer.echo(f"\nNext: {following}")
    end_with(len(found["unreadable"]))


@takes_data_options
def advise(
    data: DataArgument,
    backbone: BackbonesOption = ["cnncodes-mini"],  # noqa: B006
    layer: LayersOption = None,
    scoring: ScoringOption = None,
    data_options: DataOptions = DataOptions(),  # noqa: B008
    as_json: AsJson = False,
    max_pixels: MaxPixelsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Say what would help to classify labelled images.

    Ranks backbones and layers, as `rank` does, and says in sentences whether the images
    are like those of the backbone; whether several layers, another backbone, more
    images or fine-tuning may help; and which command to run next. Images that cannot be
    read are reported and skipped; the exit code is then 3.

    \b
    Examples:
      sk-cnncodes advise photos
      sk-cnncodes advise photos --backbone cnncodes-mini --backbone resnet50 \\
          --cache codes.sqlite3
      sk-cnncodes advise photos --groups '(IMG_[0-9]+)_crop' --json
    """
    ranking, found = _rank(
        data, data_options, backbone, layer, scoring, max_pixels, cache, device
    )
    options = _next_options(data_options, scoring, cache, max_pixels, device)
    advice = ranking.advice(str(data), options)
    if as_json:
        typer.echo(json.dumps(advice.as_dict() | found, indent=1))
    else:
        typer.echo(repr(advice))
    end_with(len(found["unreadable"]))


def _rank(
    data: Path,
    data_options: DataOptions,
    backbone: list[str],
    layer: list[str] | None,
    scoring: Scoring | None,
    max_pixels: int | None,
    cache: Path | None,
    device: str,
) -> tuple[CodeRanking, dict[str, Any]]:
    """Rank with the options of `rank`; also return what was found, for JSON."""
    from sk_cnncodes.codes.transformer import CNNCodeTransformer
    from sk_cnncodes.ranking.layer_codes import compared_backbones
    from sk_cnncodes.ranking.rank_codes import rank_codes

    layers: Any = "all"
    if layer:
        layers = [parse_layer(text) for text in dict.fromkeys(layer)]
    found = labelled_images(data, data_options)
    if tested := found.rows_of("test"):
        note(f"{len(tested)} images of the part 'test' are left for the last figure.")
        found = found.take(found.rows_of("train") + found.rows_of("validation"))
    with (
        interruptible(cache, "Nothing was ranked."),
        cache_file(cache) as codes,
    ):
        transformers = [
            CNNCodeTransformer(
                name, cache=codes, device=device, **pixel_limit(max_pixels)
            )
            for name in dict.fromkeys(backbone)
        ]
        compared = compared_backbones(transformers, layers)
        images, bad = embed_labelled(
            [(each.transformer, each.single_layers) for each in compared], found
        )
        ranking = rank_codes(
            images.paths,
            images.targets,
            transformers,
            layers,
            groups=images.groups,
            scoring=score_name(scoring, images.task),
            cache=codes,
            device=device,
            verbose=sys.stderr is not None and sys.stderr.isatty(),
        )
    return ranking, found_as_dict(images, bad)


def _next_options(
    data_options: DataOptions,
    scoring: Scoring | None,
    cache: Path | None,
    max_pixels: int | None,
    device: str,
) -> list[str]:
    """Options that the next command has too."""
    options = words_of(data_options)
    options += [] if scoring is None else ["--scoring", scoring.value]
    options += [] if cache is None else ["--cache", str(cache)]
    options += [] if max_pixels is None else ["--max-pixels", str(max_pixels)]
    return options + ([] if device == "auto" else ["--device", device])


def _as_dict(ranking: CodeRanking) -> dict[str, Any]:
    """A ranking as values for JSON."""
    rows = [asdict(row) for row in ranking.rows]
    return {
        "images": ranking.n_images,
        "classes": [str(name) for name in ranking.classes],
        "groups": ranking.n_groups,
        "scoring": ranking.scoring,
        "notes": list(ranking.notes),
        "ranking": rows,
        "recommended": rows[ranking.rows.index(ranking.recommended)],
    }
