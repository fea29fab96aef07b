"""The option `--scoring`, of the commands that compare layers or heads."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sk_cnncodes.datasets.labelled_images import Task


class Scoring(StrEnum):
    """All of `sk_cnncodes.ranking.scoring.SCORINGS`, whose import takes a second."""

    accuracy = "accuracy"
    balanced_accuracy = "balanced_accuracy"
    neg_log_loss = "neg_log_loss"
    f1_macro = "f1_macro"
    average_precision = "average_precision"
    r2 = "r2"
    neg_mean_absolute_error = "neg_mean_absolute_error"


ScoringOption = Annotated[
    Scoring | None,
    typer.Option(
        "--scoring",
        show_default=False,
        help="What is compared. Of classes the first four, of several labels accuracy "
        "or average_precision, of values the last two.  [default: accuracy, "
        "average_precision, r2]",
    ),
]


def score_name(scoring: Scoring | None, task: Task) -> str | None:
    """What `rank_codes` takes for an option; None is its default."""
    if scoring is not None:
        return scoring.value
    # Without it, values that happen to be whole are classes.
    return Scoring.r2.value if task == "regression" else None
