"""The commands that rank layers for a folder of images, and say what follows."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from enum import StrEnum
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
    LabelledFolder,
    LabelledImages,
    cache_file,
    embed_labelled,
    labelled_images,
)

if TYPE_CHECKING:
    from sk_cnncodes.ranking.code_ranking import CodeRanking


class Scoring(StrEnum):
    """The `scoring` of `rank_codes` for classes."""

    accuracy = "accuracy"
    balanced_accuracy = "balanced_accuracy"
    neg_log_loss = "neg_log_loss"


LayersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        show_default=False,
        help="-1: penultimate, -2: the one before, and so on; or a name; -1,-3: "
        "the codes of both side by side; repeatable.  [default: all layers]",
    ),
]
ScoringOption = Annotated[Scoring, typer.Option(help="What is compared.")]
GroupsOption = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        show_default=False,
        help="Images whose CLASS/FILE matches this with the same text (of its "
        "first group, if it has one) are left out together: one burst, object or "
        "patient.",
    ),
]


def rank(
    folder: LabelledFolder,
    backbone: BackbonesOption = ["cnncodes-mini"],  # noqa: B006
    layer: LayersOption = None,
    scoring: ScoringOption = Scoring.accuracy,
    groups: GroupsOption = None,
    as_json: AsJson = False,
    max_pixels: MaxPixelsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Rank backbones and layers for a folder of images.

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

    ranking, images = _rank_folder(
        folder, backbone, layer, scoring, groups, max_pixels, cache, device
    )
    options = _next_options(cache, max_pixels, device)
    chosen = ranking.recommended
    following = train_command(chosen.backbone, layers_of(chosen), str(folder), options)
    if as_json:
        rest = {"next": following, "ignored": images.ignored, "unreadable": images.bad}
        typer.echo(json.dumps(_as_dict(ranking) | rest, indent=1))
    else:
        typer.echo(repr(ranking))
        typer.echo(f"\nNext: {following}")
    end_with(len(images.bad))


def advise(
    folder: LabelledFolder,
    backbone: BackbonesOption = ["cnncodes-mini"],  # noqa: B006
    layer: LayersOption = None,
    scoring: ScoringOption = Scoring.accuracy,
    groups: GroupsOption = None,
    as_json: AsJson = False,
    max_pixels: MaxPixelsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Say what would help to classify the images of a folder.

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
    ranking, images = _rank_folder(
        folder, backbone, layer, scoring, groups, max_pixels, cache, device
    )
    options = _next_options(cache, max_pixels, device)
    ranking_options = [] if groups is None else ["--groups", groups]
    if scoring is not Scoring.accuracy:
        ranking_options += ["--scoring", scoring.value]
    advice = ranking.advice(str(folder), options, ranking_options)
    if as_json:
        rest = {"ignored": images.ignored, "unreadable": images.bad}
        typer.echo(json.dumps(advice.as_dict() | rest, indent=1))
    else:
        typer.echo(repr(advice))
    end_with(len(images.bad))


def _rank_folder(
    folder: Path,
    backbone: list[str],
    layer: list[str] | None,
    scoring: Scoring,
    groups: str | None,
    max_pixels: int | None,
    cache: Path | None,
    device: str,
) -> tuple[CodeRanking, LabelledImages]:
    """Rank with the options of `rank`; also return the images that can be read."""
    from sk_cnncodes.codes.transformer import CNNCodeTransformer
    from sk_cnncodes.ranking.layer_codes import compared_backbones
    from sk_cnncodes.ranking.rank_codes import rank_codes

    pattern = _compiled(groups)
    layers: Any = "all"
    if layer:
        layers = [parse_layer(text) for text in dict.fromkeys(layer)]
    found = labelled_images(folder)
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
        images = embed_labelled(
            [(each.transformer, each.single_layers) for each in compared], found
        )
        ranking = rank_codes(
            images.paths,
            images.labels,
            transformers,
            layers,
            groups=None if pattern is None else _groups(images.paths, pattern),
            scoring=scoring.value,
            cache=codes,
            device=device,
            verbose=sys.stderr is not None and sys.stderr.isatty(),
        )
    return ranking, images


def _next_options(cache: Path | None, max_pixels: int | None, device: str) -> list[str]:
    """Options that the next command has too."""
    options = [] if cache is None else ["--cache", str(cache)]
    options += [] if max_pixels is None else ["--max-pixels", str(max_pixels)]
    return options + ([] if device == "auto" else ["--device", device])


def _compiled(groups: str | None) -> re.Pattern[str] | None:
    try:
        return None if groups is None else re.compile(groups)
    except re.error as error:
        raise typer.BadParameter(
            f"--groups: expected a regular expression, got {groups!r}: {error}."
        ) from error


def _groups(paths: list[str], pattern: re.Pattern[str]) -> list[str]:
    """The group of each image: what a pattern finds in the end of its path."""
    groups, n_alone = list[str](), 0
    for path in paths:
        match = pattern.search("/".join(Path(path).parts[-2:]))
        if match is None:
            groups.append(f"\0{path}")  # a group of its own
            n_alone += 1
        else:
            groups.append(match[1 if pattern.groups else 0] or "")
    if n_alone:
        note(f"--groups: {n_alone} images do not match; each is a group of its own.")
    return groups


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
