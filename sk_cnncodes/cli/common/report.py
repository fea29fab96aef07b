"""The training report: ranked codes, compared heads, held-out images, confusions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.cli.common.frame import format_table
from sk_cnncodes.cli.common.held_out import held_out_figures, shown_interval
from sk_cnncodes.datasets.labelled_images import LabelledImages

if TYPE_CHECKING:
    from sk_cnncodes.cli.common.tuning import Tuning
    from sk_cnncodes.heads.code_estimators import CNNCodeClassifier, CNNCodeRegressor
    from sk_cnncodes.inspection.evaluation import Evaluation

_WIDTH = 80
# Best codes that the text shows, besides the recommended ones.
_MAX_RANKED = 5


class Report:
    """What a fitted model chose, and its figures on held-out images.

    Parameters
    ----------
    model : CNNCodeClassifier or CNNCodeRegressor
        Fitted.
    train : LabelledImages
        The images that it was fitted to.
    held_out : Evaluation or None
        Of others.
    refitted : bool
        Whether the saved model is fitted to all images.
    groups : sequence of str or None, default=None
        Of the held-out images.
    warnings : sequence of str, default=()
        What to know of the images, for JSON: `train` has said it before.
    tuning : Tuning or None, default=None
        The fine-tuning that came after. If it is taken, `held_out` is about its model.
    frozen : Evaluation or None, default=None
        What the frozen model predicts for the held-out images then.
    """

    def __init__(
        self,
        model: CNNCodeClassifier | CNNCodeRegressor,
        train: LabelledImages,
        held_out: Evaluation | None,
        refitted: bool,
        groups: Sequence[str] | None = None,
        warnings: Sequence[str] = (),
        tuning: Tuning | None = None,
        frozen: Evaluation | None = None,
    ) -> None:
        from sk_cnncodes.ranking.ranked_codes import SHARES

        self._model = model
        self._train = train
        self._n_held_out = 0 if held_out is None else len(held_out.tested)
        self._refitted = refitted
        self._classes = list(train.classes)
        self._warnings = list(warnings)
        self._figures = None
        if held_out is not None:
            self._figures = held_out_figures(held_out, groups)
        self._tuning = tuning
        self._frozen = None if frozen is None else held_out_figures(frozen, groups)
        self._scoring = model.ranking_.scoring
        self._in_percent = self._scoring in SHARES

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values for JSON.

        The keys are

        - ``task``: "classification", "multilabel" or "regression";
        - ``warnings``: what to know of images and figures, in sentences;
        - ``images``, ``classes``: their number, and the names;
        - ``scoring``: the name of the scores of the ranking and the search;
        - ``ranking``: the attributes of `RankedCodes` for each layer and norm, the best
          first; ``ranking_notes``: what a reader of its scores should know;
        - ``folds``, ``search``: the compared combinations, with mean and standard
          deviation of their score over that many folds; ``chosen``: the best;
        - ``chosen_interval``: the 95% interval of its accuracy, or null;
        - ``fine_tuning``: null, or of what, if it was taken and why, the scores of both
          models on its validation part, the gain with its standard error, and the
          history by epoch; ``held_out_frozen`` are figures of the frozen model where
          ``held_out`` is about the tuned one;
        - ``held_out``: null, or figures of a model that did not see them: the number of
          held-out ``images``; of classes the ``accuracy`` and ``balanced_accuracy``,
          each with its 95% interval, the ``baseline`` of the most frequent class, the
          ``mean_probability`` for what is predicted, its
          ``expected_calibration_error`` in 10 bins, the scores of ``classes``, and the
          ``confusion_matrix``, a row for each true class; of several labels the
          ``average_precision``, their mean, the ``accuracy``, the share of images with
          all labels right, the ``baseline``, and the scores of ``labels``; of values
          ``r2``, ``mean_absolute_error`` with its interval, ``median_absolute_error``
          and the ``baseline`` of the mean. Intervals take images of a group, and
          copies, as dependent;
        - ``fitted_images``: the number of images that the saved model was fitted to.
        """
        search = self._combinations()
        return {
            "task": self._train.task,
            "warnings": self._warnings,
            "images": len(self._train) + self._n_held_out,
            "classes": self._classes,
            "scoring": self._scoring,
            "ranking": [asdict(row) for row in self._model.ranking_.rows],
            "ranking_notes": list(self._model.ranking_.notes),
            "folds": self._n_folds,
            "search": search,
            "chosen": search[self._model.best_index_],
            "chosen_interval": None if self._interval is None else [*self._interval],
            "fine_tuning": self._fine_tuning(),
            "held_out": None if self._figures is None else self._figures.as_dict(),
            "fitted_images": self._n_fitted,
        }

    def as_text(self) -> str:
        """Return the report as text for a terminal."""
        total = len(self._train) + self._n_held_out
        names = {
            "classification": f" of {len(self._classes)} classes",
            "multilabel": f" with {len(self._classes)} labels",
            "regression": "",
        }
        unit = ", in %" if self._in_percent else ""
        score = self._scoring
        left_out = "leave-one-group-out" if self._train.groups else "leave-one-out"
        parts = [
            f"{total} images{names[self._train.task]}; {self._n_held_out} held out.",
            f"The best codes, by exact {left_out} {score} of ridge{unit}:",
            self._ranked(),
            *map(_wrapped, self._model.ranking_.notes),
            f"Mean {score} in {self._n_folds}-fold cross-validation{unit}:",
            self._compared(),
            self._verdict(),
        ]
        if self._tuning is not None:
            parts.append(_wrapped(self._tuning.decision()))
        if self._figures is not None:
            lines = self._figures.headline().splitlines()
            if self._frozen is not None:
                frozen = self._frozen.headline().splitlines()[0]
                lines.append(f"Of the frozen model: {frozen}")
            parts[-1] = "\n".join([parts[-1], *map(_wrapped, lines)])
            parts += self._figures.tables()
        parts.append(self._what_is_saved())
        return "\n\n".join(parts)

    # -- parts of the text -----------------------------------------------------

    def _ranked(self) -> str:
        """The table of the best codes, and what its marks mean."""
        rows = self._model.ranking_.rows
        recommended = self._model.ranking_.recommended
        shown = list(rows[:_MAX_RANKED])
        shown += [recommended] if recommended not in shown else []
        header = ["", "score", "+-", *_CODES, "kernel", "length", "compute"]
        table = [header] + [
            [
                "*" if row.recommended else "=" if row.indistinguishable else "",
                self._shown(row.score),
                self._shown(row.error),
                *_codes(row.backbone, row.layer, row.norm),
                row.kernel,
                f"{row.code_length}",
                f"{row.compute_share:.0%}",
            ]
            for row in shown
        ]
        right = {"score", "+-", "layer", "length", "compute"}
        legend = (
            "=: chance can explain the difference from the best; *: the cheapest of "
            "these."
        )
        more = len(rows) - len(shown)
        if more:
            legend += f" {more} more with --json."
        return f"{_fitting(table, right)}\n\n{_wrapped(legend)}"

    def _compared(self) -> str:
        """The table of heads by codes."""
        found = self._combinations()
        heads = list(dict.fromkeys(each["head"] for each in found))
        lines: dict[tuple[str, ...], list[str]] = {}
        for each in found:
            codes = _codes(each["backbone"], each["layer"], each["norm"])
            lines.setdefault(tuple(codes), []).append(self._shown(each["mean"]))
        table = [[*_CODES, *heads], *([*codes, *row] for codes, row in lines.items())]
        return _fitting(table, {"layer", *heads})

    def _verdict(self) -> str:
        from sk_cnncodes.heads.presets import HEADS, REGRESSORS

        best = self._combinations()[self._model.best_index_]
        backbone, layer, norm = _codes(best["backbone"], best["layer"], best["norm"])
        heads = REGRESSORS if self._train.task == "regression" else HEADS
        head = heads[best["head"]][0]
        percent = "%" if self._in_percent else f" {self._scoring}"
        interval = ""
        if self._interval is not None:
            interval = f" (95% interval {shown_interval(self._interval)})"
        return _wrapped(
            f"Chosen: {backbone}, layer {layer}, {norm} norm, {head}: "
            f"{self._shown(best['mean'])}{percent} in cross-validation{interval}."
        )

    def _fine_tuning(self) -> dict[str, Any] | None:
        if self._tuning is None:
            return None
        frozen = None if self._frozen is None else self._frozen.as_dict()
        return self._tuning.as_dict(frozen)

    def _what_is_saved(self) -> str:
        tuning = self._tuning
        if tuning is not None and tuning.taken and not self._refitted:
            return _wrapped(
                f"The saved model is the tuned one. It was trained on "
                f"{tuning.n_trained} images, and its epoch was chosen on "
                f"{tuning.n_validation} others; --refit trains it anew with the "
                "held-out images."
            )
        if not self._n_held_out:
            return "The model is fitted to all images."
        if not self._refitted:
            return "The model is fitted to the images that are not held out."
        return _wrapped(
            f"The saved model is this combination, fitted anew to all {self._n_fitted} "
            "images; the model of the figures above did not see the held-out ones."
        )

    # -- values ----------------------------------------------------------------

    @cached_property
    def _interval(self) -> tuple[float, float] | None:
        """Of the accuracy of the best combination in cross-validation."""
        from sk_cnncodes.inspection.intervals import accuracy_interval

        if self._train.task != "classification" or self._scoring != "accuracy":
            return None
        values = self._model.cv_predictions_
        tested = np.isfinite(values).all(axis=1)
        predicted = np.asarray(self._train.classes)[values[tested].argmax(axis=1)]
        groups = self._train.groups
        return accuracy_interval(
            predicted == self._train.targets[tested],
            None if groups is None else np.asarray(groups)[tested],
        )

    def _shown(self, score: float) -> str:
        return f"{100 * score:.2f}" if self._in_percent else f"{score:.3f}"

    @property
    def _n_fitted(self) -> int:
        if self._tuning is not None and self._tuning.taken and not self._refitted:
            return self._tuning.n_trained
        return len(self._train) + (self._n_held_out if self._refitted else 0)

    @property
    def _n_folds(self) -> int:
        keys = self._model.cv_results_
        return sum(key.startswith("split") for key in keys)

    def _combinations(self) -> list[dict[str, Any]]:
        """The compared combinations with their scores."""
        results = self._model.cv_results_
        return [
            {**parameters, "mean": float(mean), "std": float(std)}
            for parameters, mean, std in zip(
                results["params"],
                results["mean_test_score"],
                results["std_test_score"],
                strict=True,
            )
        ]


_CODES = ("backbone", "layer", "norm")


def _codes(backbone: str, layer: Any, norm: str) -> list[str]:
    """What stands in the columns `_CODES`."""
    from sk_cnncodes.ranking.ranked_codes import layer_text, short_name

    layers = layer if isinstance(layer, list) else [layer]
    return [short_name(backbone), layer_text(layers), norm]


def _fitting(table: list[list[str]], right: set[str]) -> str:
    """Lay out a table, with names cut so that its lines fit a terminal."""
    for column in ("backbone", "layer"):
        position = table[0].index(column)
        excess = max(map(len, format_table(table, right).splitlines())) - _WIDTH
        longest = max(len(row[position]) for row in table)
        if excess > 0:
            limit = max(longest - excess, len(column), 8)
            for row in table[1:]:
                row[position] = _cut(row[position], limit)
    return format_table(table, right)


def _cut(text: str, limit: int) -> str:
    """A text without its middle if it is longer than a limit."""
    if len(text) <= limit:
        return text
    start = (limit - 2) // 2
    return f"{text[:start]}..{text[len(text) - (limit - 2 - start) :]}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False, break_long_words=False)
